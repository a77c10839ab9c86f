//! Cleaning up after a shim that is gone.

use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::bundle::Bundle;
use crate::cgroup::Cgroup;
use crate::error::{OrKind, Result};
use crate::hooks::Hooks;
use crate::resctrl::Resctrl;
use crate::{Error, Kind, rootfs};

/// Cleans what a dead shim left of the container `id` with its bundle at `path`: kills what is left of it, removes its
/// cgroup, runs its poststop hooks, unmounts its rootfs. Succeeds when nothing is left, however little was there.
///
/// # Errors
/// The first thing that could not be cleaned; all the rest is tried all the same.
pub fn clean(id: &str, path: &Path) -> Result<()> {
    let cgroup = match Bundle::open(id, path) {
        Ok(bundle) => match own_cgroups(id, &bundle) {
            Ok(cgroups) => remove(cgroups, &bundle).and(rootfs::clean(&bundle)),
            // Its container was refused for it.
            Err(e) if matches!(e.kind(), Kind::InvalidArgument | Kind::Unimplemented) => Ok(()),
            Err(e) => Err(e),
        },
        // A bundle that can't be read never had a container.
        Err(e) if matches!(e.kind(), Kind::NotFound | Kind::InvalidArgument | Kind::Unimplemented) => Ok(()),
        Err(e) => Err(e),
    };
    let rootfs = unmount_all(&path.join("rootfs"));
    cgroup.and(rootfs).map_err(|e: Error| e.context(format!("clean up container {id}")))
}

/// Without those of another container, for whose sake this one was refused.
fn own_cgroups(id: &str, bundle: &Bundle) -> Result<Vec<Cgroup>> {
    let mut own = Vec::new();
    for cgroup in Cgroup::candidates(id, bundle.linux().cgroups_path().as_deref())? {
        if cgroup.is_of(bundle.path())? {
            own.push(cgroup);
        }
    }
    Ok(own)
}

/// A container has its cgroup from its creation to its deletion, but for one of systemd's, which goes with the last process
/// in it. Without it, and without a mark on the bundle, the hooks were not due, or the shim has come to them before it died.
fn remove(cgroups: Vec<Cgroup>, bundle: &Bundle) -> Result<()> {
    let due = |hooks: &Arc<Hooks>| cgroups.iter().any(Cgroup::exists) || hooks.are_due();
    let hooks = Hooks::of(bundle).filter(due);
    for cgroup in cgroups {
        cgroup.signal(libc::SIGKILL).and_then(|()| cgroup.remove())?;
    }
    Resctrl::clean(bundle);
    let failed = hooks.map(|hooks| hooks.poststop()).unwrap_or_default();
    failed.into_iter().next().map_or(Ok(()), Err)
}

/// Unmounts whatever is mounted on a folder, one on top of the other: the rootfs of a container that was to be restored from a
/// checkpoint and was not started. A bundle may come from another shim, too.
fn unmount_all(at: &Path) -> Result<()> {
    loop {
        match unmount(at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not a mount, or not there.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno).or_kind(Kind::Internal, || format!("unmount {}", at.display())),
        }
    }
}
