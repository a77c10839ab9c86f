//! Writes to the host's procfs, and to nothing else, whatever is mounted or linked where (CVE-2025-52881). System calls only:
//! the child uses it too.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::{Errno, Result};

/// The kernel's magic number of procfs (statfs(2)).
const MAGIC: u64 = 0x9fa0;

/// The inode of procfs's root folder (PROC_ROOT_INO).
const ROOT_INODE: u64 = 1;

/// The root folder of the procfs at /proc.
pub(crate) struct Procfs(OwnedFd);

impl Procfs {
    /// Opens /proc; ENODEV when it is another file system or not its root.
    pub fn open() -> Result<Procfs> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(c"/proc", flags, Mode::empty())?;
        if is_root(root.as_fd())? { Ok(Procfs(root)) } else { Err(Errno::NODEV) }
    }

    /// A folder below it, as [`write_below`] wants it.
    pub fn folder(&self, path: &CStr) -> Result<OwnedFd> {
        open_below(self.0.as_fd(), path, OFlags::PATH | OFlags::DIRECTORY)
    }

    /// Writes all of `value` to a file below it at once. `self` and `thread-self` are followed.
    pub fn write(&self, path: &CStr, value: &[u8]) -> Result<()> {
        write_below(self.0.as_fd(), path, value)
    }
}

/// Writes all of `value` at once to the file at `path` below a folder that is known to be procfs: nothing that is mounted
/// in it is crossed, and no link leads out.
pub(crate) fn write_below(folder: BorrowedFd<'_>, path: &CStr, value: &[u8]) -> Result<()> {
    let file = open_below(folder, path, OFlags::WRONLY)?;
    rustix::io::write(file, value).map(drop)
}

fn open_below(folder: BorrowedFd<'_>, path: &CStr, flags: OFlags) -> Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(folder, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Whether a file is of procfs.
pub(crate) fn contains(file: BorrowedFd<'_>) -> Result<bool> {
    Ok(rustix::fs::fstatfs(file)?.f_type as u64 == MAGIC)
}

/// Whether a folder is the root of a procfs.
pub(crate) fn is_root(folder: BorrowedFd<'_>) -> Result<bool> {
    Ok(contains(folder)? && rustix::fs::fstat(folder)?.st_ino == ROOT_INODE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_procfs_is_written_to() {
        let procfs = Procfs::open().unwrap();
        let score = std::fs::read("/proc/self/oom_score_adj").unwrap();
        procfs.write(c"self/oom_score_adj", score.trim_ascii()).unwrap();
        procfs.write(c"thread-self/comm", b"written").unwrap();
        assert_eq!(std::fs::read("/proc/thread-self/comm").unwrap(), b"written\n");
        // Out by the folder above, by an absolute path, and by the links that are more than text.
        for path in [c"../proc/self/comm", c"/proc/self/comm", c"self/root/proc/self/comm", c"self/cwd", c"self/exe"] {
            let errno = procfs.write(path, b"x").unwrap_err();
            assert!(matches!(errno, Errno::XDEV | Errno::LOOP), "{path:?}: {errno}");
        }
        assert_eq!(procfs.write(c"no-such-file", b"x"), Err(Errno::NOENT));
    }

    #[test]
    fn other_file_systems_are_told_from_it() {
        let open = |path| rustix::fs::open(path, OFlags::PATH, Mode::empty()).unwrap();
        assert!(is_root(open("/proc").as_fd()).unwrap());
        assert!(!is_root(open("/proc/sys").as_fd()).unwrap() && contains(open("/proc/sys").as_fd()).unwrap());
        assert!(!contains(open("/").as_fd()).unwrap());
    }
}
