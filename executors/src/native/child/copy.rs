//! A folder's content copied into a new file system (`tmpcopyup`). System calls only, as everything in here.
//!
//! The content is an image's: symlinks are copied, never followed, and files are opened by their names in their own folder.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RawDir, Stat, Timespec, Timestamps, Uid, XattrFlags, chownat, fchmod, fchown,
    fgetxattr, flistxattr, fsetxattr, fstat, futimens, mkdirat, mknodat, openat, readlinkat_raw, sendfile, statat,
    symlinkat,
};
use rustix::io::{Errno, Result};

/// How deep folders may be: each level takes some of this thread's stack.
const MAX_DEPTH: u32 = 128;

/// Copies what is in the folder `from` to the folder `to`, with owners, modes, times, and the extended attributes of folders and
/// regular files. Hard links become files of their own.
pub(super) fn folder(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let (from, to) = (open_folder(from, c".")?, open_folder(to, c".")?);
    let stat = fstat(&from)?;
    fchown(&to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    attributes(from.as_fd(), to.as_fd())?;
    entries(from.as_fd(), to.as_fd(), MAX_DEPTH)
}

fn entries(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: u32) -> Result<()> {
    if depth == 0 {
        return Err(Errno::NAMETOOLONG);
    }
    let mut buffer = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(from, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                mkdirat(to, name, Mode::RWXU)?;
                let (from, to) = (open_folder(from, name)?, open_folder(to, name)?);
                self::entries(from.as_fd(), to.as_fd(), depth - 1)?;
                finish(from.as_fd(), to.as_fd())?;
            }
            FileType::RegularFile => file(from, to, name)?,
            FileType::Symlink => symlink(from, to, name, &stat)?,
            kind => {
                mknodat(to, name, kind, mode(&stat), stat.st_rdev)?;
                own(to, name, &stat)?;
            }
        }
    }
    Ok(())
}

fn open_folder(at: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    openat(at, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn file(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr) -> Result<()> {
    // As much as sendfile(2) takes at once.
    const ALL: usize = 0x7fff_f000;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let from = openat(from, name, flags, Mode::empty())?;
    let to = openat(to, name, OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC, Mode::RUSR)?;
    while sendfile(&to, &from, None, ALL)? > 0 {}
    finish(from.as_fd(), to.as_fd())
}

fn symlink(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); libc::PATH_MAX as usize];
    let (target, _) = readlinkat_raw(from, name, &mut space)?;
    let mut text = [0; libc::PATH_MAX as usize + 1];
    for (byte, read) in text.iter_mut().zip(target) {
        *byte = *read;
    }
    symlinkat(CStr::from_bytes_until_nul(&text).map_err(|_| Errno::NAMETOOLONG)?, to, name)?;
    own(to, name, stat)
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

fn own(to: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    chownat(to, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
}

/// Owner first: a change of it takes set-user-ID bits and file capabilities away.
fn finish(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    let stat = &fstat(from)?;
    fchown(to, Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))?;
    attributes(from, to)?;
    fchmod(to, mode(stat))?;
    let time = |seconds: i64, nanoseconds: u64| Timespec { tv_sec: seconds, tv_nsec: nanoseconds as i64 };
    let last_access = time(stat.st_atime, stat.st_atime_nsec);
    let last_modification = time(stat.st_mtime, stat.st_mtime_nsec);
    futimens(to, &Timestamps { last_access, last_modification })
}

/// Extended attributes: file capabilities, ACLs, those of users. What this file system or user namespace has not is left out.
fn attributes(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<()> {
    // As long as a list or a value can be (xattr(7)).
    const MAX: usize = 65536;
    let (mut names, mut value) = ([MaybeUninit::uninit(); MAX], [MaybeUninit::uninit(); MAX]);
    let (names, _) = match flistxattr(from, &mut names) {
        Err(Errno::OPNOTSUPP) => return Ok(()),
        names => names?,
    };
    let mut names: &[u8] = names;
    while let Ok(name) = CStr::from_bytes_until_nul(names) {
        names = names.get(name.count_bytes() + 1..).unwrap_or_default();
        // By the label that its policy has for it here.
        if name == c"security.selinux" {
            continue;
        }
        let (value, _) = fgetxattr(from, name, &mut value)?;
        match fsetxattr(to, name, value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}
