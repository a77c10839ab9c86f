//! The container's mount tree: what is attached, made, masked and made read-only in the rootfs, and how it becomes `/`.
//!
//! All paths are resolved inside the rootfs, by descriptor (see `resolve.rs`).

use std::ffi::{CStr, CString};
use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::{Errno, Result};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use super::identity::enter_folder;
use super::{Context, copy};
use crate::native::filesystem::{NewFilesystem, make_filesystem, reconfigure};
use crate::native::mounts;
use crate::native::resolve::{self, Make};
use crate::native::step::{Source, Target};
use crate::procfs;
use crate::sys::{self, MountAttr};

pub(super) const READ_ONLY: MountAttr =
    MountAttr { set: libc::MOUNT_ATTR_RDONLY, clear: 0, propagation: 0, userns_fd: 0 };

pub(super) const WRITABLE: MountAttr =
    MountAttr { set: 0, clear: libc::MOUNT_ATTR_RDONLY, propagation: 0, userns_fd: 0 };

pub(super) fn propagation_flags(flags: u64) -> MountPropagationFlags {
    MountPropagationFlags::from_bits_retain(flags as u32)
}

impl<'a> Context<'a> {
    pub(super) fn mount_console(&self, slave: BorrowedFd<'_>) -> Result<()> {
        let console = clone_tree(slave, false)?;
        attach_at(console, self.target_without_symlinks(c"/dev/console", Make::File)?)
    }

    pub(super) fn attach(&mut self, tree: BorrowedFd<'a>, at: &Target) -> Result<()> {
        let target = if at.no_symlinks {
            self.target_without_symlinks(&at.path, at.make)?
        } else {
            sys::leak(resolve::open_or_make(self.rootfs()?, &at.path, at.make)?)
        };
        self.may_cover(target, tree, &at.path)?;
        self.attached = Some(tree);
        attach_at(tree, target)
    }

    /// Attaches a copy of a mount of the host's, in whose mounts this process still is.
    pub(super) fn bind(&mut self, source: &Source, at: &Target) -> Result<()> {
        let mut flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
        if source.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let tree = sys::leak(rustix::mount::open_tree(rustix::fs::CWD, source.path.as_c_str(), flags)?);
        let stat = rustix::fs::fstat(tree)?;
        if (stat.st_dev, stat.st_ino) != source.file {
            return Err(Errno::STALE);
        }
        let change = |changes: &[(MountAttr, bool)]| {
            changes.iter().try_for_each(|(attr, recursive)| sys::mount_setattr(tree, *recursive, attr))
        };
        match change(&source.changes) {
            Err(Errno::PERM) => change(&source.changes_of_locked)?,
            result => result?,
        }
        self.attach(tree, at)
    }

    /// A target, made if it is missing, with no symlink on the way.
    fn target_without_symlinks(&self, path: &CStr, make: Make) -> Result<BorrowedFd<'static>> {
        let rootfs = self.rootfs()?;
        let target = match resolve::open_no_symlinks(rootfs, path, OFlags::empty()) {
            Err(Errno::NOENT) => {
                resolve::open_or_make(rootfs, path, make)?;
                resolve::open_no_symlinks(rootfs, path, OFlags::empty())?
            }
            result => result?,
        };
        Ok(sys::leak(target))
    }

    /// Refuses a target that a symlink of the image has made the root itself or a file of procfs: what masks and read-only
    /// paths name must be the kernel's (CVE-2019-16884). A procfs may cover another one.
    fn may_cover(&self, target: BorrowedFd<'_>, tree: BorrowedFd<'_>, path: &CStr) -> Result<()> {
        if !procfs::contains(target)? {
            let (root, target) = (rustix::fs::fstat(self.rootfs()?)?, rustix::fs::fstat(target)?);
            let is_root = (root.st_dev, root.st_ino) == (target.st_dev, target.st_ino);
            return if is_root { Err(Errno::BUSY) } else { Ok(()) };
        }
        let is_procfs = procfs::is_root(target)? && procfs::contains(tree)?;
        if is_procfs || mounts::may_be_in_proc(path.to_bytes()) { Ok(()) } else { Err(Errno::INVAL) }
    }

    /// Mounts a file system that is like the folder that it hides: with its mode, where `filesystem` has none of its own,
    /// and with a copy of what is in it.
    pub(super) fn mount_like(&mut self, filesystem: &NewFilesystem, at: &Target, copy: bool) -> Result<()> {
        let Some(folder) = self.existing(&at.path)? else {
            return self.attach(sys::leak(make_filesystem(filesystem, None)?), at);
        };
        let has_mode = filesystem.parameters.iter().any(|(key, _)| key.as_c_str() == c"mode");
        let mode = octal(rustix::fs::fstat(folder)?.st_mode & 0o7777);
        let mode = CStr::from_bytes_until_nul(&mode).map_err(|_| Errno::INVAL)?;
        let mount = sys::leak(make_filesystem(filesystem, (!has_mode).then_some((c"mode", mode)))?);
        if copy {
            copy::folder(folder, mount)?;
        }
        self.attach(mount, at)
    }

    /// Changes a mount that is there, and its file system if there are parameters for it.
    pub(super) fn remount(&self, changes: &NewFilesystem, attr: &MountAttr, at: &CStr) -> Result<()> {
        let mount = sys::leak(resolve::open(self.rootfs()?, at, OFlags::empty())?);
        reconfigure(mount, changes)?;
        sys::mount_setattr(mount, false, attr)
    }

    /// Changes the mount at a path inside the rootfs.
    pub(super) fn set_attr(&self, path: &CStr, attr: &MountAttr) -> Result<()> {
        let mount = sys::leak(resolve::open(self.rootfs()?, path, OFlags::empty())?);
        sys::mount_setattr(mount, false, attr)
    }

    pub(super) fn device(&self, path: &CStr, mode: u32, device: u64, uid: u32, gid: u32) -> Result<()> {
        let (directory, name) = self.parent_of(path)?;
        match rustix::fs::mknodat(
            directory,
            name,
            FileType::from_raw_mode(mode),
            Mode::from_raw_mode(mode & 0o7777),
            device,
        ) {
            // The image has it, or it was listed twice.
            Err(Errno::EXIST) => return Ok(()),
            result => result?,
        }
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(directory, name, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
    }

    pub(super) fn symlink(&self, target: &CStr, at: &CStr, replace: bool) -> Result<()> {
        let (directory, name) = self.parent_of(at)?;
        if replace {
            match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
                // What can't be taken away, such as a mount, stays.
                Ok(()) | Err(Errno::NOENT | Errno::BUSY | Errno::ISDIR | Errno::ROFS) => {}
                Err(errno) => return Err(errno),
            }
        }
        match rustix::fs::symlinkat(target, directory, name) {
            Err(Errno::EXIST) => Ok(()),
            result => result,
        }
    }

    /// The folder that `path` is in, made if missing, and the path's last component.
    pub(super) fn parent_of<'p>(&self, path: &'p CStr) -> Result<(BorrowedFd<'static>, &'p CStr)> {
        let bytes = path.to_bytes_with_nul();
        let slash = bytes.iter().rposition(|b| *b == b'/').ok_or(Errno::INVAL)?;
        let name = bytes.get(slash + 1..).and_then(|name| CStr::from_bytes_with_nul(name).ok()).ok_or(Errno::INVAL)?;
        let mut parent = [0u8; libc::PATH_MAX as usize];
        let slot = parent.get_mut(..slash.max(1)).ok_or(Errno::NAMETOOLONG)?;
        slot.copy_from_slice(bytes.get(..slash.max(1)).ok_or(Errno::INVAL)?);
        let parent = CStr::from_bytes_until_nul(&parent).map_err(|_| Errno::NAMETOOLONG)?;
        let directory = resolve::open_or_make(self.rootfs()?, parent, Make::Directory)?;
        Ok((sys::leak(directory), name))
    }

    pub(super) fn mask(&mut self, path: &CStr) -> Result<()> {
        let Some(target) = self.existing(path)? else { return Ok(()) };
        if FileType::from_raw_mode(rustix::fs::fstat(target)?.st_mode) != FileType::Directory {
            // Before pivot_root this is the host's /dev/null, not one that the image made (CVE-2025-31133).
            let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let null = sys::leak(rustix::fs::open(c"/dev/null", flags, Mode::empty())?);
            let (stat, device) = (rustix::fs::fstat(null)?, rustix::fs::makedev(1, 3));
            if (FileType::from_raw_mode(stat.st_mode), stat.st_rdev) != (FileType::CharacterDevice, device) {
                return Err(Errno::NODEV);
            }
            return attach_at(clone_tree(null, false)?, target);
        }
        self.mask_folder(target)
    }

    pub(super) fn mask_folder(&mut self, target: BorrowedFd<'_>) -> Result<()> {
        if let Some(mask) = self.mask {
            return attach_at(clone_tree(mask, false)?, target);
        }
        let mask = sys::leak(make_filesystem(&self.plan.mask, None)?);
        self.mask = Some(mask);
        attach_at(mask, target)
    }

    pub(super) fn readonly(&self, path: &CStr) -> Result<()> {
        let Some(target) = self.existing(path)? else { return Ok(()) };
        let tree = clone_tree(target, true)?;
        sys::mount_setattr(tree, true, &READ_ONLY)?;
        attach_at(tree, target)
    }

    pub(super) fn make_cwd(&self, path: &CStr) -> Result<()> {
        match resolve::open_or_make(self.rootfs()?, path, Make::Directory) {
            Ok(folder) => {
                sys::leak(folder);
                Ok(())
            }
            // What a magic link leads to is there or not, and looked at when it is entered.
            Err(Errno::LOOP) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    pub(super) fn enter_cwd(&mut self, path: &CStr, may_fail: bool) -> Result<()> {
        if self.in_cwd {
            return Ok(());
        }
        match enter_folder(path) {
            Err(Errno::ACCESS | Errno::PERM) if may_fail => return Ok(()),
            result => result?,
        }
        self.in_cwd = true;
        Ok(())
    }

    /// Opens a path inside the rootfs if it is there.
    pub(super) fn existing(&self, path: &CStr) -> Result<Option<BorrowedFd<'static>>> {
        match resolve::open(self.rootfs()?, path, OFlags::empty()) {
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            target => Ok(Some(sys::leak(target?))),
        }
    }

    /// pivot_root(2) with both folders the same: the old root lands on top of the new one and is unmounted from there.
    pub(super) fn pivot_root(&self) -> Result<()> {
        rustix::process::fchdir(self.rootfs()?)?;
        rustix::process::pivot_root(c".", c".")?;
        rustix::mount::unmount(c".", UnmountFlags::DETACH)?;
        rustix::process::chdir(c"/")
    }

    /// For hosts where pivot_root(2) can't be; see `move_root.rs`.
    pub(super) fn move_root(&mut self, others: &[CString]) -> Result<()> {
        let rootfs = self.rootfs()?;
        rustix::process::fchdir(rootfs)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        rustix::mount::move_mount(rootfs, c"", rustix::fs::CWD, c"/", flags)?;
        // This process's root is still the host's, below the mount that has just come.
        for path in others {
            match rustix::mount::unmount(path.as_c_str(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => {}
                // Locked by whoever made this mount namespace (mount_namespaces(7)).
                Err(Errno::INVAL | Errno::PERM) => {
                    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    match rustix::fs::open(path.as_c_str(), flags, Mode::empty()) {
                        Ok(folder) => self.mask_folder(sys::leak(folder))?,
                        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                        Err(errno) => return Err(errno),
                    }
                }
                Err(errno) => return Err(errno),
            }
        }
        rustix::process::chroot(c".")?;
        rustix::process::chdir(c"/")
    }
}

pub(super) fn attach_at(tree: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<()> {
    rustix::mount::move_mount(
        tree,
        c"",
        target,
        c"",
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH,
    )
}

/// A detached copy of the mount at `from`, or of the tree below it too.
pub(super) fn clone_tree(from: BorrowedFd<'_>, recursive: bool) -> Result<BorrowedFd<'static>> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(from, c"", flags).map(sys::leak)
}

/// A file mode as a parameter of a file system has it: four octal digits and a null byte.
fn octal(mode: u32) -> [u8; 5] {
    let digit = |position: u32| b'0' + (mode >> (3 * position) & 7) as u8;
    [digit(3), digit(2), digit(1), digit(0), 0]
}
