//! Cleaning up after a shim that is gone.

use std::path::Path;

use rustix::io::Errno;
use rustix::mount::{UnmountFlags, unmount};

use crate::bundle::Bundle;
use crate::cgroup::Cgroup;
use crate::error::{OrKind, Result};
use crate::hooks::Hooks;
use crate::{Error, Kind};

/// Cleans what a dead shim left of the container `id` with its bundle at `path`: kills what is left of it, removes its
/// cgroup, runs its poststop hooks, unmounts its rootfs. Succeeds when nothing is left, however little was there.
///
/// # Errors
/// The first thing that could not be cleaned; all the rest is tried all the same.
pub fn clean(id: &str, path: &Path) -> Result<()> {
    let cgroup = match Bundle::open(id, path) {
        Ok(bundle) => match Cgroup::candidates(id, bundle.linux().cgroups_path().as_deref()) {
            Ok(cgroups) => cgroups.into_iter().try_for_each(|cgroup| match cgroup.is_of(path)? {
                true => remove(cgroup, &bundle),
                // Another container's, for whose sake this one was refused.
                false => Ok(()),
            }),
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

/// A container has its cgroup from its creation to its deletion: without it the hooks were not due, or the shim has come to
/// them before it died.
fn remove(cgroup: Cgroup, bundle: &Bundle) -> Result<()> {
    let hooks = Hooks::of(bundle).filter(|_| cgroup.exists());
    cgroup.signal(libc::SIGKILL).and_then(|()| cgroup.remove())?;
    let failed = hooks.map(|hooks| hooks.poststop()).unwrap_or_default();
    failed.into_iter().next().map_or(Ok(()), Err)
}

/// Unmounts whatever is mounted on a folder, one on top of the other. Nothing of ours ever is, but a bundle may come from
/// another shim.
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
