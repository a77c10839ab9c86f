//! An entry: what is in it, how it is made, and what is checked before it is used.

use std::fs::{DirBuilder, File, Metadata, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, SystemTime};

use runner::{CODE, Facts};
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::key;
use crate::Kind;
use crate::error::{OrKind, Result};
use crate::wasm::precompile::{self, MAX_ANSWER};

/// The file of an entry beside [`CODE`].
const ABOUT: &str = "about.json";

/// The largest [`ABOUT`] that is read, in bytes: the facts, and little beside.
const MAX_ABOUT: u64 = MAX_ANSWER + 4096;

/// How exactly the last use of an entry is known.
const MINUTE: Duration = Duration::from_secs(60);

/// After how long without use the code's digest is taken anew.
const DAY: Duration = Duration::from_secs(86400);

/// An entry of the cache.
pub(in crate::wasm) struct Entry {
    /// Its folder, with [`CODE`] in it, locked: it is not removed as long as this descriptor is open anywhere.
    pub folder: OwnedFd,
    pub facts: Facts,
}

/// What [`ABOUT`] holds.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct About {
    facts: Facts,
    /// The length of the code in bytes.
    length: u64,
    /// When the code's file was last changed, in seconds and nanoseconds since 1970 (inode(7), ctime): whatever is done to
    /// it, by whomever, makes it another.
    changed: (i64, i64),
    /// The code's SHA-256 digest.
    digest: String,
}

impl About {
    fn new(code: &mut File, facts: Facts) -> Result<About> {
        code.rewind().or_kind(Kind::Internal, || "read the code")?;
        let metadata = code.metadata().or_kind(Kind::Internal, || "stat the code")?;
        let changed = (metadata.ctime(), metadata.ctime_nsec());
        Ok(About { facts, length: metadata.len(), changed, digest: digest(code, metadata.len())? })
    }

    /// From the text of the file, which may be anything.
    pub fn read(json: &[u8]) -> Option<About> {
        (json.len() as u64 <= MAX_ABOUT).then(|| serde_json::from_slice(json).ok())?
    }

    /// Whether a file is the code that this is about, and such as Wasmtime writes: an ELF file of an ABI of its own.
    fn is_of(&self, code: &File) -> bool {
        const ELF: &[u8] = b"\x7fELF";
        const ABI: (usize, u8) = (7, 200);
        let mut head = [0; 8];
        code.metadata().is_ok_and(|metadata| {
            metadata.len() == self.length && (metadata.ctime(), metadata.ctime_nsec()) == self.changed
        }) && code.read_exact_at(&mut head, 0).is_ok()
            && head.starts_with(ELF)
            && head[ABI.0] == ABI.1
    }
}

/// An entry that is whole and that only root could have written; anything else is as if it were not there. It is used now.
pub(super) fn open(path: &Path) -> Option<Entry> {
    is_roots(&std::fs::symlink_metadata(path.parent()?).ok()?).then_some(())?;
    let folder = open_folder(path).ok()?;
    // Whoever has it to themselves is removing it.
    folder.try_lock_shared().ok()?;
    let metadata = folder.metadata().ok()?;
    is_roots(&metadata).then_some(())?;
    let (about, mut code) = (open_in(&folder, ABOUT)?, open_in(&folder, CODE)?);
    let mut json = Vec::new();
    about.take(MAX_ABOUT + 1).read_to_end(&mut json).ok()?;
    let about = About::read(&json)?;
    about.is_of(&code).then_some(())?;
    // A clock that was set back makes it older than anything.
    let idle = metadata.modified().ok()?.elapsed().unwrap_or(Duration::MAX);
    if idle > MINUTE {
        let since_boot = u64::try_from(rustix::system::sysinfo().uptime).unwrap_or_default();
        if idle > DAY.min(Duration::from_secs(since_boot)) && digest(&mut code, about.length).ok()? != about.digest {
            return None;
        }
        // A cache that can't be written has no last uses and needs none: nothing is removed from it either.
        let _ = folder.set_modified(SystemTime::now());
    }
    Some(Entry { folder: folder.into(), facts: about.facts })
}

/// An entry's folder; not what a link leads to.
pub(super) fn open_folder(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW).open(path)
}

/// A file of an entry, if it is root's.
fn open_in(folder: &File, name: &str) -> Option<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(folder, name, flags, Mode::empty()).ok()?);
    let metadata = file.metadata().ok()?;
    (metadata.is_file() && is_roots(&metadata)).then_some(file)
}

/// Whether nobody but root can have written it. A link to elsewhere never is so: everyone may write those, as its mode says.
pub(super) fn is_roots(metadata: &Metadata) -> bool {
    metadata.uid() == 0 && metadata.mode() & 0o022 == 0
}

fn digest(code: &mut File, length: u64) -> Result<String> {
    key::digest(code, &mut std::io::sink(), length)
}

/// Makes an entry out of a module, in a folder that isn't there.
pub(super) fn make(module: OwnedFd, folder: &Path, proposals: &[String]) -> Result<()> {
    let what = || format!("write {}", folder.display());
    let create = |name| OpenOptions::new().create_new(true).read(true).write(true).mode(0o644).open(folder.join(name));
    DirBuilder::new().mode(0o755).create(folder).or_kind(Kind::Unavailable, what)?;
    let mut code = create(CODE).or_kind(Kind::Unavailable, what)?;
    let facts = precompile::precompile(module, code.try_clone().or_kind(Kind::Internal, what)?, folder, proposals)?;
    // Otherwise the names could be on the disk before the bytes are: rename(2) promises nothing about a crash.
    code.sync_data().or_kind(Kind::Unavailable, what)?;
    let about = About::new(&mut code, facts).map_err(|e| e.context(what()))?;
    let json = serde_json::to_vec(&about).or_kind(Kind::Internal, what)?;
    create(ABOUT).and_then(|mut file| file.write_all(&json)).or_kind(Kind::Unavailable, what)
}
