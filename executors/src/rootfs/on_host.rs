//! The rootfs of a container without a mount namespace of its own: mounted on the host, where its folder is, until the container
//! is deleted.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Statx, StatxFlags, XattrFlags, statx};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use super::Rootfs;
use crate::Kind;
use crate::bundle::Bundle;
use crate::error::{OrKind, Result};

/// An extended attribute of the bundle: the number of the mount (`mnt_id`, proc_pid_mountinfo(5)), for who cleans up after a
/// shim that died.
const MOUNT: &str = "trusted.hybrid.rootfs";

/// Dropping it unmounts the rootfs and all below it, if it is still there: never what others have mounted.
pub(crate) struct OnHost {
    tree: OwnedFd,
    id: u64,
    at: PathBuf,
    bundle: PathBuf,
}

impl OnHost {
    /// To be made before the container's first process, which attaches the tree.
    pub fn new(rootfs: &Rootfs, bundle: &Bundle) -> Result<OnHost> {
        let what = || "linux.namespaces: a rootfs without a mount namespace";
        let tree = rootfs.tree().try_clone_to_owned().or_kind(Kind::Unavailable, what)?;
        let found = statx(&tree, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).or_kind(Kind::Internal, what)?;
        let (at, bundle) = (rootfs.at.clone(), bundle.path().to_owned());
        let id = found.stx_mnt_id;
        rustix::fs::setxattr(&bundle, MOUNT, id.to_string().as_bytes(), XattrFlags::empty())
            .or_kind(Kind::Internal, || format!("{}: mark {}", what(), bundle.display()))?;
        Ok(OnHost { tree, id, at, bundle })
    }

    /// The container's root folder.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.tree.as_fd()
    }
}

impl Drop for OnHost {
    fn drop(&mut self) {
        if let Err(errno) = unmount_that(&self.at, self.id) {
            log::warn!("unmount {}: {errno}", self.at.display());
        }
        let _ = rustix::fs::removexattr(&self.bundle, MOUNT);
    }
}

/// Unmounts what a dead shim's container has had on the host.
pub(crate) fn clean(bundle: &Bundle) -> Result<()> {
    let mut text = [0; 20];
    let Ok(length) = rustix::fs::getxattr(bundle.path(), MOUNT, &mut text[..]) else { return Ok(()) };
    let id = std::str::from_utf8(&text[..length]).ok().and_then(|text| text.parse().ok());
    let Some(id) = id else { return Ok(()) };
    let at = bundle.root();
    unmount_that(&at, id).or_kind(Kind::Internal, || format!("unmount {}", at.display()))?;
    let _ = rustix::fs::removexattr(bundle.path(), MOUNT);
    Ok(())
}

/// Unmounts what is on top at a folder if it is this mount.
fn unmount_that(at: &Path, id: u64) -> std::result::Result<(), Errno> {
    match statx(CWD, at, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID) {
        Ok(Statx { stx_mnt_id, .. }) if stx_mnt_id == id => unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW),
        // It was never there, or somebody else has unmounted it.
        Ok(_) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(errno) => Err(errno),
    }
}
