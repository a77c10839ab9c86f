//! Rootfs mounts whose ids are mapped: what containerd's snapshotters with "remap-ids" ask for by the options `uidmap` and
//! `gidmap`, instead of a copy of each layer with other owners. Of an overlay the layers below are mapped, as overlayfs
//! itself can't be; the upper one belongs to the container already.
//!
//! Source: containerd, core/mount (mount_idmapped_linux.go); mount_setattr(2); the kernel's filesystems/overlayfs.rst.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::CWD;
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, UnmountFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, unmount,
};

use super::{RootfsMount, clone_tree};
use crate::Kind;
use crate::error::{OrKind, Result, bail};
use crate::native::filesystem::NewFilesystem;
use crate::native::idmap::{Idmaps, parse_list};
use crate::native::options::Recursive;
use crate::native::user_namespace::IdMappings;
use crate::sys::{self, MountAttr};

/// Takes the mappings out of a request's options, if they are there.
pub(super) fn take(request: &RootfsMount) -> Result<(Option<IdMappings>, Vec<&str>)> {
    let (mut uids, mut gids, mut others) = (None, None, Vec::new());
    for option in &request.options {
        let (slot, text) = match option.split_once('=') {
            Some(("uidmap", text)) => (&mut uids, text),
            Some(("gidmap", text)) => (&mut gids, text),
            _ => {
                others.push(option.as_str());
                continue;
            }
        };
        match parse_list(text) {
            Some(list) => *slot = Some(list),
            None => bail!(InvalidArgument, "rootfs mount {:?}: option {option} is no mapping", request.source),
        }
    }
    match (uids, gids) {
        (None, None) => Ok((None, others)),
        (Some(uids), Some(gids)) => Ok((Some(IdMappings::new(uids, gids)), others)),
        _ => bail!(InvalidArgument, "rootfs mount {:?}: of uidmap and gidmap one is missing", request.source),
    }
}

/// An overlay over id-mapped copies of its lower folders, detached. `at` is the bundle's folder for the rootfs.
pub(super) fn overlay(filesystem: &NewFilesystem, mappings: &IdMappings, at: &Path) -> Result<OwnedFd> {
    let mut idmaps = Idmaps::default();
    let mut layers = Vec::new();
    for (key, value) in &filesystem.parameters {
        let Some(folder) = value.as_ref().filter(|_| key.to_bytes().starts_with(b"lowerdir")) else { continue };
        if key.as_c_str() != c"lowerdir+" {
            bail!(Unimplemented, "rootfs mount: {folder:?}: ids of such lower folders can't be mapped");
        }
        let what = || format!("rootfs mount: lower folder {}", folder.to_string_lossy());
        let path = Path::new(std::ffi::OsStr::from_bytes(folder.to_bytes()));
        let tree = clone_tree(path, Recursive::No).or_kind(Kind::InvalidArgument, what)?;
        let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, propagation: libc::MS_PRIVATE, ..MountAttr::default() };
        sys::mount_setattr(tree.as_fd(), false, &attr).or_kind(Kind::Internal, what)?;
        idmaps.set(mappings, Recursive::No, tree.as_fd()).map_err(|e| e.context(what()))?;
        layers.push(tree);
    }
    let what = || "mount an overlay with mapped ids as rootfs";
    match make(filesystem, &layers.iter().map(Layer::Detached).collect::<Vec<_>>()) {
        // Before Linux 6.15 a lower folder must be in the mount namespace.
        Err(Errno::INVAL) => {
            let attached = Attached::new(&layers, at).or_kind(Kind::Internal, what)?;
            let layers: Vec<_> = attached.0.iter().map(Layer::Path).collect();
            make(filesystem, &layers).or_kind(Kind::InvalidArgument, what)
        }
        made => made.or_kind(Kind::InvalidArgument, what),
    }
}

enum Layer<'a> {
    Detached(&'a OwnedFd),
    Path(&'a PathBuf),
}

/// The file system with these in place of its lower folders.
fn make(filesystem: &NewFilesystem, layers: &[Layer<'_>]) -> std::result::Result<OwnedFd, Errno> {
    let context = fsopen(filesystem.fstype.as_c_str(), FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(context.as_fd(), c"source", filesystem.source.as_c_str())?;
    for layer in layers {
        match layer {
            Layer::Detached(tree) => fsconfig_set_fd(context.as_fd(), c"lowerdir+", tree)?,
            Layer::Path(path) => fsconfig_set_string(context.as_fd(), c"lowerdir+", path.as_path())?,
        }
    }
    for (key, value) in filesystem.parameters.iter().filter(|(key, _)| key.as_c_str() != c"lowerdir+") {
        match value {
            Some(value) => fsconfig_set_string(context.as_fd(), key.as_c_str(), value.as_c_str())?,
            None => fsconfig_set_flag(context.as_fd(), key.as_c_str())?,
        }
    }
    fsconfig_create(context.as_fd())?;
    fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::from_bits_retain(filesystem.attr as u32))
}

/// Layers for the moment in folders beside the rootfs; the overlay keeps copies of its own.
struct Attached(Vec<PathBuf>);

impl Attached {
    fn new(layers: &[OwnedFd], at: &Path) -> std::io::Result<Attached> {
        let mut attached = Attached(Vec::new());
        for (index, layer) in layers.iter().enumerate() {
            let folder = at.with_file_name(format!(".lower{index}"));
            std::fs::create_dir(&folder)?;
            attached.0.push(folder.clone());
            let name = CString::new(folder.as_os_str().as_bytes())?;
            move_mount(layer, c"", CWD, name.as_c_str(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
        }
        Ok(attached)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        for folder in &self.0 {
            let unmounted = unmount(folder, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            if let Err(e) = unmounted.map_err(std::io::Error::from).and_then(|()| std::fs::remove_dir(folder)) {
                log::warn!("remove {}: {e}", folder.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(options: &[&str]) -> Result<(bool, usize)> {
        let options = options.iter().map(|option| (*option).to_owned()).collect();
        let request = RootfsMount { fstype: "overlay".into(), source: "overlay".into(), options, ..Default::default() };
        take(&request).map(|(mappings, others)| (mappings.is_some(), others.len()))
    }

    #[test]
    fn mappings_are_taken_out_of_the_options() {
        assert_eq!(taken(&["ro", "lowerdir=/a"]).unwrap(), (false, 2));
        assert_eq!(taken(&["uidmap=0:1000:10,10:5000:5", "lowerdir=/a", "gidmap=0:1000:10"]).unwrap(), (true, 1));
        for options in [&["uidmap=0:1000:10"][..], &["uidmap=0:1000", "gidmap=0:1000:10"]] {
            assert_eq!(taken(options).unwrap_err().kind(), Kind::InvalidArgument, "{options:?}");
        }
    }
}
