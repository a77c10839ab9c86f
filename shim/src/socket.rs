//! The shim's socket: its name, and who may bind or remove it.
//!
//! Every container of a group computes the same name, so whoever binds it first serves the group. Binding and
//! removing happen under a lock on the folder: two `start`s at once can neither both find a stale socket nor find
//! one that is bound but not yet listening.

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Where sockets are when containerd names no folder.
pub const DEFAULT_DIR: &str = "/run/containerd/s";

const SCHEME: &str = "unix://";

/// The socket of a group: `<dir>/<sha256 of containerd's address, namespace and group>`.
pub fn path(dir: &Path, containerd: &str, namespace: &str, group: &str) -> PathBuf {
    let mut name = String::with_capacity(64);
    for byte in Sha256::digest(format!("{containerd}/{namespace}/{group}")) {
        write!(name, "{byte:02x}").expect("writing to a String does not fail");
    }
    dir.join(name)
}

/// The form in which containerd takes a socket.
pub fn address(path: &Path) -> String {
    format!("{SCHEME}{}", path.display())
}

/// The inverse of [`address`].
pub fn path_of(address: &str) -> Option<PathBuf> {
    address.trim().strip_prefix(SCHEME).map(PathBuf::from)
}

/// What [`bind`] found.
pub enum Bound {
    /// The socket is ours now, and nobody else's.
    New(UnixListener),
    /// Another shim answers there: it is the group's.
    Live,
}

/// Binds the socket, makes it 0600 in a 0700 folder, and replaces one that nobody listens on.
pub fn bind(path: &Path) -> Result<Bound> {
    let dir = path.parent().ok_or_else(|| anyhow!("the socket {} has no folder", path.display()))?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("create the folder {} for sockets", dir.display()))?;
    let _lock = lock(dir)?;
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if is_live(path)? {
                return Ok(Bound::Live);
            }
            std::fs::remove_file(path).with_context(|| format!("remove the stale socket {}", path.display()))?;
            UnixListener::bind(path)
        }
        bound => bound,
    }
    .with_context(|| format!("bind the socket {}", path.display()))?;
    if let Err(error) = std::fs::set_permissions(path, Permissions::from_mode(0o600)) {
        // The first error is what matters; a leftover is found stale by the next start.
        let _ = std::fs::remove_file(path);
        return Err(error).with_context(|| format!("restrict the socket {}", path.display()));
    }
    Ok(Bound::New(listener))
}

/// Removes the socket of a shim that does not answer any more. One that is live or gone already is left alone.
pub fn remove_stale(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let Some(dir) = path.parent() else { return Ok(()) };
    let _lock = lock(dir)?;
    if is_live(path)? { Ok(()) } else { remove(path) }
}

/// Removes the socket; that it is gone already is fine.
pub fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove the socket {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Held until dropped. It must not outlive a fork: the child would hold it too (flock(2)).
fn lock(dir: &Path) -> Result<File> {
    let file = File::open(dir).with_context(|| format!("open the folder {}", dir.display()))?;
    file.lock().with_context(|| format!("lock the folder {}", dir.display()))?;
    Ok(file)
}

/// Whether somebody listens. Never blocks: a full backlog is an answer, too.
fn is_live(path: &Path) -> Result<bool> {
    let probe = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
        .context("create a socket")?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno).with_context(|| format!("connect to {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn names_differ_by_each_part_and_fit_into_a_socket_address() {
        let dir = Path::new(DEFAULT_DIR);
        let name = path(dir, "/c", "n", "g");
        assert_eq!(name.as_os_str().len(), DEFAULT_DIR.len() + 1 + 64);
        for other in [path(dir, "/d", "n", "g"), path(dir, "/c", "m", "g"), path(dir, "/c", "n", "h")] {
            assert_ne!(name, other);
        }
        assert_eq!(path_of(&address(&name)), Some(name));
        assert_eq!(path_of("/no/scheme"), None);
    }

    #[test]
    fn a_live_socket_is_reused_and_a_stale_one_replaced() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("s/socket");
        let Bound::New(first) = bind(&path).unwrap() else { panic!("nobody else listens") };
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        assert_eq!(path.parent().unwrap().metadata().unwrap().mode() & 0o777, 0o700);
        assert!(matches!(bind(&path).unwrap(), Bound::Live));
        remove_stale(&path).unwrap();
        assert!(path.exists());

        drop(first);
        let Bound::New(second) = bind(&path).unwrap() else { panic!("the first one is gone") };
        drop(second);
        remove_stale(&path).unwrap();
        assert!(!path.exists());
        remove_stale(&path).unwrap();
    }
}
