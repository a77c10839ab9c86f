//! The cache's size: what was not used for longest goes, and what killed processes left.

use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use super::entry::open_folder;
use super::lock::{self, Lock};
use super::{NEW, key, remove};
use crate::Kind;
use crate::error::{OrKind, Result, bail};

/// How large the cache may be unless something else is said, in bytes: code is about three times as large as its module, so
/// this is room for five or more of the largest that there are (language interpreters) beside hundreds of the usual, and
/// little of a node's disk.
const MOST: u64 = 1 << 30;

/// Says something else for the whole node; a runtime option goes before it.
const VARIABLE: &str = "HYBRID_WASM_CACHE_SIZE";

/// What is expected of a size.
pub(in crate::wasm) const WANTED: &str = "a number of bytes, or of Ki, Mi or Gi as in 512Mi";

/// A size as [`WANTED`], in bytes.
pub(in crate::wasm) fn parse(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match &text[digits.len()..] {
        "" => 0,
        "Ki" => 10,
        "Mi" => 20,
        "Gi" => 30,
        _ => return None,
    };
    digits.bytes().all(|byte| byte.is_ascii_digit()).then_some(())?;
    digits.parse::<u64>().ok()?.checked_mul(1 << unit)
}

/// The bound that holds, given that of the runtime options.
///
/// # Errors
/// InvalidArgument when the variable is not a size.
pub(super) fn most(option: Option<u64>) -> Result<u64> {
    let Some(text) = std::env::var_os(VARIABLE).filter(|_| option.is_none()) else { return Ok(option.unwrap_or(MOST)) };
    match text.to_str().and_then(parse) {
        Some(size) => Ok(size),
        None => bail!(InvalidArgument, "the variable {VARIABLE} is {text:?}; {WANTED} is expected"),
    }
}

/// An entry as it lies there, usable or not.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Kept {
    /// Whether this build made it: what others did goes first.
    ours: bool,
    /// When it was last used; see [`super::entry::open`].
    used: SystemTime,
    name: String,
    /// In bytes, as they lie on the disk.
    size: u64,
}

/// Removes entries until the rest has no more than `most` bytes. What is in use stays, and so does what isn't the cache's.
///
/// # Errors
/// Internal when the cache can't be read. An entry that can't be removed is passed over.
pub(super) fn hold(cache: &Path, most: u64) -> Result<()> {
    let what = || format!("bound {}", cache.display());
    let folder = File::open(cache).or_kind(Kind::Internal, what)?;
    // One at a time, or two would both remove what one has to.
    folder.lock().or_kind(Kind::Internal, what)?;
    let build = key::build()?;
    let (mut kept, mut unfinished) = (Vec::new(), BTreeSet::new());
    for file in std::fs::read_dir(cache).or_kind(Kind::Internal, what)? {
        let name = file.or_kind(Kind::Internal, what)?.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(entry) = name.strip_suffix(NEW).or_else(|| name.strip_suffix(lock::SUFFIX)) {
            unfinished.extend(key::is_entry(entry).then(|| entry.to_owned()));
        } else if key::is_entry(name)
            && let Ok(metadata) = std::fs::symlink_metadata(cache.join(name))
        {
            let used = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            let size = size(&cache.join(name), &metadata);
            kept.push(Kept { ours: key::is_of(name, &build), used, name: name.to_owned(), size });
        }
    }
    for name in unfinished {
        // Whoever makes an entry has it locked.
        if let Ok(Some(_lock)) = Lock::if_free(cache, &name) {
            pass_over(remove(&cache.join(format!("{name}{NEW}"))));
        }
    }
    kept.sort_unstable();
    let mut total: u64 = kept.iter().map(|entry| entry.size).sum();
    for entry in kept {
        if total <= most {
            break;
        }
        if discard(cache, &entry.name) {
            log::info!("cache of precompiled code: removed {} ({} bytes)", entry.name, entry.size);
            total -= entry.size;
        }
    }
    Ok(())
}

/// What an entry takes of the disk.
fn size(path: &Path, folder: &Metadata) -> u64 {
    const BLOCK: u64 = 512;
    let files = std::fs::read_dir(path).into_iter().flatten().flatten().filter_map(|file| file.metadata().ok());
    files.map(|file| file.blocks()).chain([folder.blocks()]).sum::<u64>() * BLOCK
}

/// Removes an entry unless it is in use or being made; says whether it did.
fn discard(cache: &Path, name: &str) -> bool {
    let Ok(Some(_lock)) = Lock::if_free(cache, name) else { return false };
    let path = cache.join(name);
    // Never one whose code is still to be mapped. What is mapped stays there for whoever has mapped it.
    let folder = open_folder(&path).ok();
    if folder.as_ref().is_some_and(|folder| folder.try_lock().is_err()) {
        return false;
    }
    pass_over(remove(&path))
}

fn pass_over(removed: Result<()>) -> bool {
    removed.inspect_err(|e| log::warn!("cache of precompiled code: {e}")).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        let sizes = [("0", 0), ("4096", 4096), ("3Ki", 3 << 10), ("512Mi", 512 << 20), ("2Gi", 2 << 30)];
        for (text, size) in sizes {
            assert_eq!(parse(text), Some(size), "{text}");
        }
        for text in ["", "Gi", "-1", "+1", "1 Gi", "1.5Gi", "1GB", "1G", "1gi", "99999999999Gi", "99999999999999999999"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
