//! Finds, and where missing makes, the target of a mount inside a rootfs. Runs in the child: no allocation.
//!
//! Every lookup is an openat2(2) with RESOLVE_IN_ROOT from the rootfs's own descriptor, so neither `..` nor a symlink,
//! absolute or swapped in the middle of it, leads out (CVE-2019-19921, CVE-2021-30465, CVE-2024-45310).

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, mkdirat, mknodat, openat2, readlinkat_raw, statat};
use rustix::io::{Errno, Result};

/// What to make where a target is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Make {
    Directory,
    File,
}

/// As many symlinks as the kernel follows (path_resolution(7)).
const MAX_SYMLINKS: u32 = 40;

/// A path in memory of the caller's: no allocation.
struct PathBuffer {
    bytes: [u8; libc::PATH_MAX as usize],
    len: usize,
}

impl PathBuffer {
    const fn new() -> Self {
        Self { bytes: [0; libc::PATH_MAX as usize], len: 0 }
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// The path as a C string; an empty one is ".".
    fn as_cstr(&self) -> &CStr {
        if self.len == 0 {
            return c".";
        }
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or(c".")
    }

    /// Sets the length and the terminating null byte.
    fn truncate(&mut self, len: usize) {
        self.len = len;
        if let Some(end) = self.bytes.get_mut(len) {
            *end = 0;
        }
    }

    /// Appends `/name`, or just `name` in front.
    fn push(&mut self, name: &[u8]) -> Result<()> {
        let start = if self.len == 0 { 0 } else { self.len + 1 };
        let end = start + name.len();
        // One byte more for the null byte.
        if end + 1 > self.bytes.len() {
            return Err(Errno::NAMETOOLONG);
        }
        if start > 0 {
            self.bytes[self.len] = b'/';
        }
        self.bytes[start..end].copy_from_slice(name);
        self.truncate(end);
        Ok(())
    }

    /// Removes the last component.
    fn pop(&mut self) {
        let len = self.as_bytes().iter().rposition(|b| *b == b'/').unwrap_or(0);
        self.truncate(len);
    }
}

/// Opens `path` inside `root` as O_PATH, following symlinks inside it.
pub(crate) fn open(root: BorrowedFd<'_>, path: &CStr, flags: OFlags) -> Result<OwnedFd> {
    open_with(root, path, flags, ResolveFlags::empty())
}

/// Opens `path` inside `root` as O_PATH, refusing symlinks anywhere in it (ELOOP).
pub(crate) fn open_no_symlinks(root: BorrowedFd<'_>, path: &CStr, flags: OFlags) -> Result<OwnedFd> {
    open_with(root, path, flags | OFlags::NOFOLLOW, ResolveFlags::NO_SYMLINKS)
}

fn open_with(root: BorrowedFd<'_>, path: &CStr, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd> {
    let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        // EAGAIN: a rename happened meanwhile and the kernel could not be sure (openat2(2)).
        match openat2(root, path, flags | OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            result => return result,
        }
    }
}

/// Opens `path` inside `root` as O_PATH; what is missing of it is made: folders 0755, and at the end what `make` says.
/// Symlinks are followed inside the root even where they dangle, as `/etc/resolv.conf` does in many images.
pub(crate) fn open_or_make(root: BorrowedFd<'_>, path: &CStr, make: Make) -> Result<OwnedFd> {
    match open(root, path, OFlags::empty()) {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    // `rest` is what is still to be walked; `done` is free of symlinks and "..".
    let mut rest = PathBuffer::new();
    rest.push(path.to_bytes())?;
    let mut done = PathBuffer::new();
    let mut symlinks = 0;
    let mut current = open(root, c".", OFlags::DIRECTORY)?;
    let mut position = 0;
    loop {
        let remaining = rest.as_bytes().get(position..).unwrap_or_default();
        let skip = remaining.iter().take_while(|b| **b == b'/').count();
        let remaining = remaining.get(skip..).unwrap_or_default();
        if remaining.is_empty() {
            return Ok(current);
        }
        let length = remaining.iter().position(|b| *b == b'/').unwrap_or(remaining.len());
        let name = remaining.get(..length).unwrap_or_default();
        let last = remaining.get(length..).unwrap_or_default().iter().all(|b| *b == b'/');
        position += skip + length;
        match name {
            b"." => continue,
            b".." => {
                done.pop();
                current = open_no_symlinks(root, done.as_cstr(), OFlags::DIRECTORY)?;
                continue;
            }
            _ => done.push(name)?,
        }
        let mut component = [0u8; 256];
        let Some(slot) = component.get_mut(..name.len()).filter(|_| name.len() < 256) else {
            return Err(Errno::NAMETOOLONG);
        };
        slot.copy_from_slice(name);
        let name = CStr::from_bytes_until_nul(&component).map_err(|_| Errno::INVAL)?;
        match statat(&current, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => {
                symlinks += 1;
                if symlinks > MAX_SYMLINKS {
                    return Err(Errno::LOOP);
                }
                done.pop();
                position = expand(current.as_fd(), name, &mut rest, position)?;
                if rest.as_bytes().get(position) == Some(&b'/') {
                    done.truncate(0);
                    current = open(root, c".", OFlags::DIRECTORY)?;
                }
                continue;
            }
            Ok(_) => {}
            Err(Errno::NOENT) => make_one(current.as_fd(), name, if last { make } else { Make::Directory })?,
            Err(e) => return Err(e),
        }
        current = open_no_symlinks(root, done.as_cstr(), OFlags::empty())?;
    }
}

/// Replaces what was walked of `rest` by the target of the symlink `name`: afterwards `rest`, from the position returned,
/// is that target and what was left behind it.
fn expand(directory: BorrowedFd<'_>, name: &CStr, rest: &mut PathBuffer, position: usize) -> Result<usize> {
    let mut target = [std::mem::MaybeUninit::uninit(); libc::PATH_MAX as usize];
    let (target, _) = readlinkat_raw(directory, name, &mut target)?;
    let mut expanded = PathBuffer::new();
    expanded.push(target)?;
    let left = rest.as_bytes().get(position..).unwrap_or_default();
    if !left.is_empty() {
        expanded.push(left)?;
    }
    *rest = expanded;
    Ok(0)
}

fn make_one(directory: BorrowedFd<'_>, name: &CStr, make: Make) -> Result<()> {
    let made = match make {
        Make::Directory => mkdirat(directory, name, Mode::from_raw_mode(0o755)),
        Make::File => mknodat(directory, name, FileType::RegularFile, Mode::from_raw_mode(0o644), 0),
    };
    match made {
        // Somebody else made it meanwhile; what it is shows when it is opened.
        Err(Errno::EXIST) => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};

    struct Root(PathBuf);

    impl Root {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("hybrid-resolve-{name}-{}", std::process::id()));
            std::fs::create_dir(&path).unwrap();
            std::fs::create_dir(path.join("root")).unwrap();
            Self(path)
        }

        fn make(&self, path: &str, make: Make) -> Result<PathBuf> {
            let root = rustix::fs::open(self.root(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
            let fd = open_or_make(root.as_fd(), &CString::new(path).unwrap(), make)?;
            let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
            Ok(std::fs::read_link(link).unwrap().strip_prefix(self.root()).unwrap().to_owned())
        }

        fn root(&self) -> PathBuf {
            self.0.join("root")
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn missing_folders_and_files_are_made() {
        let root = Root::new("missing");
        assert_eq!(root.make("/a/b/c", Make::Directory).unwrap(), Path::new("a/b/c"));
        assert_eq!(root.make("a//b/./file", Make::File).unwrap(), Path::new("a/b/file"));
        assert!(root.root().join("a/b/c").is_dir());
        assert!(root.root().join("a/b/file").is_file());
    }

    #[test]
    fn a_dangling_symlink_is_followed_inside() {
        let root = Root::new("dangling");
        std::fs::create_dir(root.root().join("etc")).unwrap();
        symlink("../run/resolve/stub.conf", root.root().join("etc/resolv.conf")).unwrap();
        assert_eq!(root.make("/etc/resolv.conf", Make::File).unwrap(), Path::new("run/resolve/stub.conf"));
        symlink("/abs/target", root.root().join("link")).unwrap();
        assert_eq!(root.make("/link/below", Make::Directory).unwrap(), Path::new("abs/target/below"));
    }

    #[test]
    fn nothing_leads_out() {
        let root = Root::new("out");
        symlink("../../..", root.root().join("up")).unwrap();
        symlink("/", root.root().join("slash")).unwrap();
        assert_eq!(root.make("/up/up/x/../y", Make::Directory).unwrap(), Path::new("y"));
        assert_eq!(root.make("/slash/../../z", Make::Directory).unwrap(), Path::new("z"));
        assert_eq!(std::fs::read_dir(&root.0).unwrap().count(), 1);
    }

    #[test]
    fn loops_and_long_names_are_errors() {
        let root = Root::new("loops");
        symlink("b", root.root().join("a")).unwrap();
        symlink("a", root.root().join("b")).unwrap();
        assert_eq!(root.make("/a/x", Make::Directory), Err(Errno::LOOP));
        assert_eq!(root.make(&"n".repeat(300), Make::Directory), Err(Errno::NAMETOOLONG));
        std::fs::write(root.root().join("file"), "").unwrap();
        assert_eq!(root.make("/file/x", Make::Directory), Err(Errno::NOTDIR));
    }
}
