//! Precompiled code on disk, shared by every shim of the node.
//!
//! An entry is a folder named by the module's digest and the engine, with the code and what is known of the module. It is
//! made under another name and renamed, so it is whole or not there. Only root may enter the cache; what is in an entry is
//! readable to all, because a container's user maps the code (which it gets by a mount of the entry, not by this path).

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use runner::{CODE, Facts};
use rustix::fs::{MemfdFlags, SealFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::precompile;
use crate::Kind;
use crate::error::{OrKind, Result};

/// The cache's folder, unless the variable says otherwise.
const FOLDER: &str = "/var/cache/hybrid/wasm";
const FOLDER_VARIABLE: &str = "HYBRID_WASM_CACHE";

/// The file of an entry beside [`CODE`].
const ABOUT: &str = "about.json";

/// An entry of the cache.
pub(super) struct Entry {
    /// Its folder, with [`CODE`] in it.
    pub folder: PathBuf,
    pub facts: Facts,
}

/// What [`ABOUT`] holds.
#[derive(Serialize, Deserialize)]
struct About {
    facts: Facts,
    /// The length of the code in bytes.
    length: u64,
}

/// The entry for a module with these proposals; compiled now if it isn't there. Of several callers at once one compiles, the
/// others wait.
pub(super) fn get(mut module: File, proposals: &[String]) -> Result<Entry> {
    let folder = folder();
    let key = key(&mut module, &mut std::io::sink(), proposals)?;
    if let Some(entry) = open(&folder.join(&key)) {
        return Ok(entry);
    }
    make_folder(&folder)?;
    // What is compiled has to be what the key is made of, however the file changes meanwhile: else whoever can write to one
    // container's module could put code of their own under the key of another's.
    let (module, key) = sealed_copy(&mut module, proposals)?;
    compile_once(module, &folder, &key, proposals)
}

/// The same for a module whose digest (SHA-256, in hexadecimal) is known: it is only read, into a sealed file and compared with
/// the digest, when it has to be compiled.
pub(super) fn get_known(digest: &str, read: impl FnOnce() -> Result<OwnedFd>, proposals: &[String]) -> Result<Entry> {
    let (folder, key) = (folder(), name(digest, proposals)?);
    if let Some(entry) = open(&folder.join(&key)) {
        return Ok(entry);
    }
    make_folder(&folder)?;
    compile_once(read()?, &folder, &key, proposals)
}

/// Compiles a sealed module unless somebody else does or has.
fn compile_once(module: OwnedFd, folder: &Path, key: &str, proposals: &[String]) -> Result<Entry> {
    let lock_path = folder.join(format!("{key}.lock"));
    let lock = lock(&lock_path)?;
    let entry = match open(&folder.join(key)) {
        Some(entry) => Ok(entry),
        None => compile(module, folder, key, proposals),
    };
    // Whoever waits for the lock looks for the entry first, so the file may go while it is locked.
    let _ = std::fs::remove_file(&lock_path);
    drop(lock);
    entry
}

fn folder() -> PathBuf {
    std::env::var_os(FOLDER_VARIABLE).map_or_else(|| PathBuf::from(FOLDER), PathBuf::from)
}

/// An entry that is whole and that only root could have written; anything else is as if it were not there.
fn open(path: &Path) -> Option<Entry> {
    let trusted = |path: &Path| {
        let metadata = std::fs::symlink_metadata(path).ok()?;
        // Not root's, or writable to others: somebody else may have made it.
        (metadata.uid() == 0 && metadata.mode() & 0o022 == 0 && !metadata.is_symlink()).then_some(metadata)
    };
    trusted(path.parent()?)?;
    trusted(path)?;
    let code = trusted(&path.join(CODE))?;
    trusted(&path.join(ABOUT))?;
    let about: About = serde_json::from_slice(&std::fs::read(path.join(ABOUT)).ok()?).ok()?;
    (code.is_file() && code.len() == about.length).then(|| Entry { folder: path.to_owned(), facts: about.facts })
}

/// Names the code of a module: its digest and everything that decides whether compiled code fits this host and binary.
fn key(module: &mut File, copy: &mut dyn Write, proposals: &[String]) -> Result<String> {
    let what = || "read it";
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let n = match module.read(&mut buffer) {
            Err(e) if e.kind() == ErrorKind::Interrupted => continue,
            n => n.or_kind(Kind::Internal, what)?,
        };
        if n == 0 {
            break;
        }
        digest.update(&buffer[..n]);
        copy.write_all(&buffer[..n]).or_kind(Kind::Unavailable, || "copy it")?;
    }
    module.rewind().or_kind(Kind::Internal, what)?;
    name(&hex(&digest.finalize()), proposals)
}

/// The name of an entry, from a module's digest.
fn name(digest: &str, proposals: &[String]) -> Result<String> {
    // Another build may have been made with another configuration of Wasmtime, whatever the numbers say.
    let binary = std::fs::metadata("/proc/self/exe").or_kind(Kind::Internal, || "stat /proc/self/exe")?;
    let build = (binary.dev(), binary.ino(), binary.size(), binary.mtime(), binary.mtime_nsec());
    let mut engine = Sha256::new();
    engine.update(format!("{} {} {build:?} {:?} {proposals:?}", runner::WASMTIME, runner::REVISION, processor()));
    Ok(format!("{digest}-{}", &hex(&engine.finalize())[..16]))
}

/// A copy of the module that nobody can change any more (memfd_create(2), "File sealing"), and its key.
fn sealed_copy(module: &mut File, proposals: &[String]) -> Result<(OwnedFd, String)> {
    let what = || "copy it";
    let memory = rustix::fs::memfd_create("hybrid-module", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING);
    let mut copy = File::from(memory.or_kind(Kind::Unavailable, what)?);
    let key = key(module, &mut copy, proposals)?;
    copy.rewind().or_kind(Kind::Internal, what)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    rustix::fs::fcntl_add_seals(&copy, seals).or_kind(Kind::Internal, what)?;
    Ok((copy.into(), key))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The processor's features as numbers: code compiled for more of them must not be loaded after a machine moved.
fn processor() -> Vec<u32> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::__cpuid_count;
        let features = [__cpuid_count(1, 0), __cpuid_count(7, 0), __cpuid_count(7, 1), __cpuid_count(0x8000_0001, 0)];
        // In leaf 1, ebx tells which processor it is asked on, and bit 27 of ecx repeats a choice of the kernel's.
        let [basic, others @ ..] = features;
        let mut words = vec![basic.eax, basic.ecx, basic.edx];
        words.extend(others.iter().flat_map(|leaf| [leaf.ebx, leaf.ecx, leaf.edx]));
        words
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        [rustix::param::linux_hwcap().0, rustix::param::linux_hwcap().1].map(|word| word as u32).to_vec()
    }
}

fn make_folder(folder: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .or_kind(Kind::Internal, || format!("create {}", folder.display()))
}

/// Waits until nobody else compiles the same module.
fn lock(path: &Path) -> Result<File> {
    let what = || format!("lock {}", path.display());
    loop {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path)
            .or_kind(Kind::Internal, what)?;
        file.lock().or_kind(Kind::Internal, what)?;
        // Whoever had the lock has removed the file, and somebody else may have made it anew: that one is the lock then.
        let locked = file.metadata().or_kind(Kind::Internal, what)?;
        match std::fs::symlink_metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (locked.dev(), locked.ino()) => return Ok(file),
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).or_kind(Kind::Internal, what),
            _ => {}
        }
    }
}

fn compile(module: OwnedFd, folder: &Path, key: &str, proposals: &[String]) -> Result<Entry> {
    let temporary = folder.join(format!("{key}.{}", std::process::id()));
    // Left by a process of the same pid that was killed.
    remove(&temporary)?;
    let made = fill(module, &temporary, proposals).and_then(|()| {
        let path = folder.join(key);
        // What is there can't be used: see open.
        remove(&path)?;
        std::fs::rename(&temporary, &path).or_kind(Kind::Internal, || format!("rename to {}", path.display()))?;
        Ok(path)
    });
    match made {
        Ok(path) => open(&path).ok_or_else(|| {
            crate::Error::new(Kind::Internal, anyhow::anyhow!("the cache entry {} is not usable", path.display()))
        }),
        Err(e) => {
            remove(&temporary)?;
            Err(e)
        }
    }
}

fn fill(module: OwnedFd, folder: &Path, proposals: &[String]) -> Result<()> {
    let what = || format!("write {}", folder.display());
    let create = |name| OpenOptions::new().create_new(true).write(true).mode(0o644).open(folder.join(name));
    DirBuilder::new().mode(0o755).create(folder).or_kind(Kind::Internal, what)?;
    let code = create(CODE).or_kind(Kind::Internal, what)?;
    let written = code.try_clone().or_kind(Kind::Internal, what)?;
    let facts = precompile::precompile(module, code, folder, proposals)?;
    // Otherwise the names could be on the disk before the bytes are: rename(2) promises nothing about a crash.
    written.sync_data().or_kind(Kind::Unavailable, what)?;
    let length = written.metadata().or_kind(Kind::Internal, what)?.len();
    let about = serde_json::to_vec(&About { facts, length }).or_kind(Kind::Internal, what)?;
    create(ABOUT).and_then(|mut file| file.write_all(&about)).or_kind(Kind::Internal, what)
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
