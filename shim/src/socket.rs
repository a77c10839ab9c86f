//! The shim's socket: its name, and who may bind or remove it.
//!
//! Every container of a group computes the same name, so whoever binds it first serves the group. Binding and
//! removing happen under a lock on the folder: two `start`s at once can neither both find a stale socket nor find
//! one that is bound but not yet listening.
//!
//! A shim that is killed closes its connections and its socket one after the other, with time between on a busy machine.
//! containerd calls `delete` at the first, when the socket still takes connections: so whoever listens is asked for, and one
//! that is about to end is waited for.

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, connect, getsockopt, listen, socket};
use sha2::{Digest, Sha256};
use std::fmt::Write;
use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Where sockets are when containerd names no folder.
pub const DEFAULT_DIR: &str = "/run/containerd/s";

const SCHEME: &str = "unix://";

/// How long the socket of a process that is about to end may take to close, in milliseconds.
const CLOSING: u16 = 10_000;

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
    New(Claim),
    /// Another shim answers there: it is the group's.
    Live,
}

/// A socket that is bound, for the server to take over. Until then nobody else binds or removes one in the folder.
pub struct Claim {
    listener: UnixListener,
    lock: File,
}

impl Claim {
    /// Makes this process the one that listens, also after a fork.
    pub fn take_over(self) -> Result<UnixListener> {
        // Whoever connects learns the pid of the process that called listen(2) last (unix(7), SO_PEERCRED).
        listen(&self.listener, Backlog::MAXCONN).context("listen on the socket")?;
        // Of both processes: what is locked is the open file, which a fork shares (flock(2)).
        self.lock.unlock().context("unlock the folder for sockets")?;
        Ok(self.listener)
    }
}

/// Binds the socket, makes it 0600 in a 0700 folder, and replaces one that nobody listens on.
pub fn bind(path: &Path) -> Result<Bound> {
    let dir = path.parent().ok_or_else(|| anyhow!("the socket {} has no folder", path.display()))?;
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("create the folder {} for sockets", dir.display()))?;
    let lock = lock(dir)?;
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
    Ok(Bound::New(Claim { listener, lock }))
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

/// Held until dropped, or until [`Claim::take_over`].
fn lock(dir: &Path) -> Result<File> {
    let file = File::open(dir).with_context(|| format!("open the folder {}", dir.display()))?;
    file.lock().with_context(|| format!("lock the folder {}", dir.display()))?;
    Ok(file)
}

/// Whether somebody listens who isn't about to end. A full backlog is an answer, too.
fn is_live(path: &Path) -> Result<bool> {
    let probe = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)
        .context("create a socket")?;
    match connect(probe.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) => Ok(!(is_ending(&probe) && hangs_up(&probe)?)),
        Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ECONNREFUSED | Errno::ENOENT) => Ok(false),
        Err(errno) => Err(errno).with_context(|| format!("connect to {}", path.display())),
    }
}

/// Whether the process that listens has begun to exit. One that is not there is another one's socket: its pid is known only
/// if it has called [`Claim::take_over`].
fn is_ending(probe: &OwnedFd) -> bool {
    /// `PF_EXITING` of the kernel's task flags, the ninth field of /proc/PID/stat (proc_pid_stat(5)).
    const EXITING: u64 = 0x4;
    let Ok(peer) = getsockopt(probe, PeerCredentials) else { return false };
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{}/stat", peer.pid())) else { return false };
    // The name, in parentheses, may have anything in it.
    let flags = stat.rsplit_once(") ").and_then(|(_, fields)| fields.split(' ').nth(6)?.parse::<u64>().ok());
    flags.is_some_and(|flags| flags & EXITING != 0)
}

/// Waits for the end of a connection that nobody has accepted: it comes when the socket closes.
fn hangs_up(probe: &OwnedFd) -> Result<bool> {
    let mut end = [PollFd::new(probe.as_fd(), PollFlags::empty())];
    loop {
        match poll(&mut end, PollTimeout::from(CLOSING)) {
            Err(Errno::EINTR) => {}
            ready => return Ok(ready.context("wait for a socket to close")? > 0),
        }
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
        let first = first.take_over().unwrap();
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

    #[test]
    fn one_that_is_about_to_end_is_told_from_one_that_lives() {
        let temp = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(temp.path().join("socket")).unwrap();
        let address = UnixAddr::new(&temp.path().join("socket")).unwrap();
        let probe = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(probe.as_raw_fd(), &address).unwrap();
        assert!(!is_ending(&probe));
        drop(listener);
        assert!(hangs_up(&probe).unwrap());
    }
}
