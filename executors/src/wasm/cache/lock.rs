//! Locks of entries among all shims of the node: whoever makes or removes an entry has the file `NAME.lock` locked (flock(2)).
//!
//! Whoever uses an entry has its folder locked with others, for as long as files in it are still to be opened.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::Kind;
use crate::error::{OrKind, Result};

/// What the name of a lock's file ends with.
pub(super) const SUFFIX: &str = ".lock";

/// The permission to make or remove an entry.
pub(super) struct Lock {
    path: PathBuf,
    _file: File,
}

impl Lock {
    /// Waits until nobody else has it.
    pub fn wait(cache: &Path, name: &str) -> Result<Lock> {
        let path = cache.join(format!("{name}{SUFFIX}"));
        let what = || format!("lock {}", path.display());
        loop {
            let file = open(&path).or_kind(Kind::Unavailable, what)?;
            file.lock().or_kind(Kind::Internal, what)?;
            if is_named(&path, &file).or_kind(Kind::Internal, what)? {
                return Ok(Lock { path, _file: file });
            }
        }
    }

    /// The lock, unless somebody has it.
    pub fn if_free(cache: &Path, name: &str) -> std::io::Result<Option<Lock>> {
        let path = cache.join(format!("{name}{SUFFIX}"));
        let file = open(&path)?;
        match file.try_lock() {
            Ok(()) if is_named(&path, &file)? => Ok(Some(Lock { path, _file: file })),
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }
}

/// Whoever waits for the lock looks for the entry first, so the file may go while it is locked.
impl Drop for Lock {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

/// Whether the file is still the one of that name: whoever had the lock has removed it, and somebody else may have made it
/// anew; that one is the lock then.
fn is_named(path: &Path, file: &File) -> std::io::Result<bool> {
    let locked = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (locked.dev(), locked.ino())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}
