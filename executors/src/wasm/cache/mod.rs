//! Precompiled code on disk, shared by every shim of the node.
//!
//! ```text
//! NAME/        an entry: code and about.json; see key.rs for its name
//! NAME.new/    an entry that is being made: renamed when it is whole
//! NAME.lock    locked by whoever makes or removes the entry
//! ```
//! Only root may enter the cache; what is in an entry is readable to all, because a container's user maps the code (which it
//! gets by a mount of the entry, not by this path).

pub(super) mod bound;
mod entry;
mod key;
mod lock;

use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

pub(super) use self::entry::Entry;
use self::lock::Lock;
use super::WasmOptions;
use crate::Kind;
use crate::error::{OrKind, Result, bail};

/// The cache's folder, unless the variable says otherwise.
const FOLDER: &str = "/var/cache/hybrid/wasm";
const FOLDER_VARIABLE: &str = "HYBRID_WASM_CACHE";

/// What the name of an entry ends with while it is being made.
const NEW: &str = ".new";

/// The entry for a module with these options' proposals; compiled now if it isn't there. Of several callers at once one
/// compiles, the others wait.
pub(super) fn get(mut module: File, options: &WasmOptions) -> Result<Entry> {
    let (cache, proposals) = (folder(), &options.settings.proposals);
    let name = key::of(&mut module, proposals)?;
    if let Some(entry) = entry::open(&cache.join(&name)) {
        return Ok(entry);
    }
    let most = bound::most(options.cache_size)?;
    make_folder(&cache)?;
    // What is compiled has to be what the name is made of, however the file changes meanwhile: else whoever can write to one
    // container's module could put code of their own under the name of another's.
    let (module, name) = key::sealed(module, name, proposals)?;
    let lock = Lock::wait(&cache, &name)?;
    if let Some(entry) = entry::open(&cache.join(&name)) {
        return Ok(entry);
    }
    let entry = compile(module, &cache, &name, proposals)?;
    drop(lock);
    // The entry is good, whatever becomes of others.
    let _ = bound::hold(&cache, most).inspect_err(|e| log::warn!("{e}"));
    Ok(entry)
}

/// The entry for the module with this SHA-256 digest (64 hexadecimal digits), if there is one: whoever knows the digest need
/// not have the module.
///
/// # Errors
/// InvalidArgument for what is not such a digest.
pub(super) fn by_digest(digest: &str, options: &WasmOptions) -> Result<Option<Entry>> {
    Ok(entry::open(&folder().join(key::named(digest, &options.settings.proposals)?)))
}

/// Whether a text is what [`entry::About`] reads.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn is_about(json: &[u8]) -> bool {
    entry::About::read(json).is_some()
}

fn folder() -> PathBuf {
    std::env::var_os(FOLDER_VARIABLE).map_or_else(|| PathBuf::from(FOLDER), PathBuf::from)
}

/// Makes the cache's folder if need be. One that others can change would be of no use: see [`entry::open`].
fn make_folder(folder: &Path) -> Result<()> {
    let what = || format!("create {}", folder.display());
    DirBuilder::new().recursive(true).mode(0o700).create(folder).or_kind(Kind::Unavailable, what)?;
    let metadata = std::fs::symlink_metadata(folder).or_kind(Kind::Internal, what)?;
    if !metadata.is_dir() {
        bail!(FailedPrecondition, "the cache {} is a link: {FOLDER_VARIABLE} names another folder", folder.display());
    }
    if !entry::is_roots(&metadata) {
        bail!(FailedPrecondition, "the cache {} is not root's alone: others may write to it", folder.display());
    }
    Ok(())
}

fn compile(module: OwnedFd, cache: &Path, name: &str, proposals: &[String]) -> Result<Entry> {
    let (new, path) = (cache.join(format!("{name}{NEW}")), cache.join(name));
    // Left by a process that was killed.
    remove(&new)?;
    let made = entry::make(module, &new, proposals).and_then(|()| {
        // What is there can't be used: see open.
        remove(&path)?;
        std::fs::rename(&new, &path).or_kind(Kind::Internal, || format!("rename to {}", path.display()))
    });
    if let Err(e) = made {
        // The next to compile it tries again.
        let _ = remove(&new);
        return Err(e);
    }
    entry::open(&path).ok_or_else(|| {
        crate::Error::new(Kind::Internal, anyhow::anyhow!("the cache entry {} is not usable", path.display()))
    })
}

fn remove(path: &Path) -> Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(()),
        result => result.or_kind(Kind::Internal, || format!("remove {}", path.display())),
    }
}
