//! The container's root file system as a detached mount: made from what containerd asks for, attached nowhere on the host.
//!
//! The tree lives by its descriptor until the container's own mount namespace takes it. So the host's mount table does not
//! change with each container (systemd and others read it whole at every change), and whatever way a create ends, closing
//! the descriptor is all the cleaning there is.

mod idmapped;
mod on_host;

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change, move_mount,
    open_tree, unmount,
};

pub(crate) use self::on_host::{OnHost, clean};
use crate::Kind;
use crate::error::{OrKind, Result, bail};
use crate::native::filesystem::{NewFilesystem, make_filesystem};
use crate::native::idmap::Idmaps;
use crate::native::options::{Options, Parameter, Recursive};
use crate::native::resolve;
use crate::sys::{self, MountAttr};

/// One file system that containerd asks to be mounted as the container's root (containerd, `types.Mount`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RootfsMount {
    pub fstype: String,
    pub source: String,
    /// Path below the bundle's root folder, usually empty.
    pub target: String,
    pub options: Vec<String>,
}

/// A detached mount tree with the container's root file system.
pub(crate) struct Rootfs {
    tree: OwnedFd,
    /// The folder on the host that the tree is attached at in the container's mount namespace, before pivot_root.
    at: PathBuf,
}

impl Rootfs {
    /// Mounts `mounts` for the bundle root folder `at`; with none, the folder itself is the root file system.
    pub fn mount(mounts: &[RootfsMount], at: PathBuf) -> Result<Rootfs> {
        if !at.is_dir() {
            bail!(InvalidArgument, "root.path: {} is not a folder", at.display());
        }
        let tree = match mounts {
            [] => clone_tree(&at, Recursive::Yes)
                .or_kind(Kind::InvalidArgument, || format!("root.path: {}", at.display())),
            [only] if only.target.is_empty() => detached(only, &at),
            several => stacked(several, &at),
        }?;
        Ok(Rootfs { tree, at })
    }

    /// The descriptor of the tree's root.
    pub fn tree(&self) -> BorrowedFd<'_> {
        self.tree.as_fd()
    }

    /// The tree and the folder to attach it at.
    pub fn into_parts(self) -> (OwnedFd, PathBuf) {
        (self.tree, self.at)
    }

    /// Mounts the tree at a folder on the host, which is made if missing.
    pub fn attach(self, at: PathBuf) -> Result<Attached> {
        let what = || format!("mount the rootfs at {}", at.display());
        let made = match std::fs::create_dir(&at) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => false,
            made => made.or_kind(Kind::Internal, what).map(|()| true)?,
        };
        let attached = move_mount(&self.tree, c"", CWD, &at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
        attached.or_kind(Kind::Internal, what)?;
        Ok(Attached { at, made })
    }

    /// Opens a file inside the tree for reading, with every symlink resolved inside it. Never a device or a fifo, whose
    /// opening alone can have effects.
    pub fn open(&self, path: &Path) -> std::result::Result<std::fs::File, Errno> {
        open_inside(self.tree(), path)
    }
}

/// A root file system that is mounted on the host; dropping it unmounts it.
pub(crate) struct Attached {
    at: PathBuf,
    /// Whether the folder was made for it.
    made: bool,
}

impl Attached {
    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let at = self.at.display();
        if let Err(errno) = unmount(&self.at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            log::warn!("unmount {at}: {errno}");
        } else if self.made
            && let Err(e) = std::fs::remove_dir(&self.at)
        {
            log::warn!("remove {at}: {e}");
        }
    }
}

/// Opens a regular file inside the folder `root` for reading; see [`Rootfs::open`].
pub(crate) fn open_inside(root: BorrowedFd<'_>, path: &Path) -> std::result::Result<std::fs::File, Errno> {
    let path = CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    open_found(resolve::open(root, &path, OFlags::empty())?)
}

/// Opens for reading what an O_PATH descriptor is of, if it is a regular file.
pub(crate) fn open_found(found: OwnedFd) -> std::result::Result<std::fs::File, Errno> {
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
    match kind {
        rustix::fs::FileType::RegularFile => {}
        rustix::fs::FileType::Directory => return Err(Errno::ISDIR),
        _ => return Err(Errno::ACCESS),
    }
    // Opened by its descriptor, so it is the file that was looked at.
    let link = format!("/proc/self/fd/{}", found.as_raw_fd());
    rustix::fs::open(link, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(std::fs::File::from)
}

/// One mount, made without ever being attached.
fn detached(request: &RootfsMount, at: &Path) -> Result<OwnedFd> {
    let (mappings, options) = idmapped::take(request)?;
    let options = Options::parse(&options);
    let describe = || format!("mount {} {:?} as rootfs", request.fstype, request.source);
    let map = |tree: OwnedFd, recursive| {
        let mapped = mappings.as_ref().map_or(Ok(()), |m| Idmaps::default().set(m, recursive, tree.as_fd()));
        mapped.map(|()| tree).map_err(|e| e.context(describe()))
    };
    if request.fstype == "bind" || options.bind.is_some() {
        let recursive = options.bind.unwrap_or(Recursive::No);
        let tree = clone_tree(Path::new(&request.source), recursive).or_kind(Kind::InvalidArgument, describe)?;
        set_attributes(tree.as_fd(), &options).or_kind(Kind::InvalidArgument, describe)?;
        return map(tree, recursive);
    }
    let mut filesystem =
        NewFilesystem::new(&request.fstype, &request.source, &options).or_kind(Kind::InvalidArgument, describe)?;
    if request.fstype == "overlay" {
        split_lower_folders(&mut filesystem.parameters);
        if let Some(mappings) = &mappings {
            return idmapped::overlay(&filesystem, mappings, at);
        }
    }
    match make_filesystem(&filesystem, None) {
        Ok(tree) => map(tree, Recursive::No),
        // Before Linux 6.8 overlayfs has no lowerdir+, and fsconfig takes no value of more than 255 bytes; mount(2) does.
        Err(Errno::INVAL | Errno::NOSYS | Errno::PERM) => {
            map(stacked(std::slice::from_ref(request), at)?, Recursive::No)
        }
        Err(errno) => Err(errno).or_kind(Kind::InvalidArgument, describe),
    }
}

/// Overlayfs's `lowerdir=a:b` as one `lowerdir+` for each folder: fsconfig(2) limits the length of a value, not their number.
pub(crate) fn split_lower_folders(parameters: &mut Vec<(CString, Option<CString>)>) {
    let Some(position) = parameters.iter().position(|(key, _)| key.as_c_str() == c"lowerdir") else { return };
    let Some(value) = parameters[position].1.take() else { return };
    // "\:" is a colon in a name, and "::" begins data-only layers (filesystems/overlayfs.rst): left to mount(2).
    if value.to_bytes().contains(&b'\\') || value.to_bytes().windows(2).any(|pair| pair == b"::") {
        parameters[position].1 = Some(value);
        return;
    }
    let folders = value.to_bytes().split(|byte| *byte == b':');
    let folders: Vec<_> =
        folders.filter_map(|folder| Some((c"lowerdir+".to_owned(), Some(CString::new(folder).ok()?)))).collect();
    parameters.splice(position..=position, folders);
}

/// Mounts on top of each other at `at` as mount(8) would, then takes the tree off the host again.
fn stacked(requests: &[RootfsMount], at: &Path) -> Result<OwnedFd> {
    let mut mounted = Stack { at, count: 0 };
    for request in requests {
        let options = match idmapped::take(request)? {
            // One alone, which is mapped when it is detached.
            (mappings, options) if mappings.is_none() || requests.len() == 1 => Options::parse(&options),
            _ => bail!(Unimplemented, "rootfs mount {:?}: ids of several mounts can't be mapped", request.source),
        };
        let describe =
            || format!("mount {} {:?} at {}{}", request.fstype, request.source, at.display(), request.target);
        let folder = inside(at, &request.target)?;
        let target = format!("/proc/self/fd/{}", folder.as_raw_fd());
        if request.fstype == "bind" || options.bind.is_some() {
            let recursive = if options.bind == Some(Recursive::Yes) { MountFlags::REC } else { MountFlags::empty() };
            mount(&request.source, &target, "", MountFlags::BIND | recursive, None)
                .or_kind(Kind::InvalidArgument, describe)?;
        } else {
            let data = options.data.iter().map(|parameter| match parameter {
                Parameter::Flag(key) => key.clone(),
                Parameter::Value(key, value) => format!("{key}={value}"),
            });
            let data = CString::new(data.collect::<Vec<_>>().join(",")).or_kind(Kind::InvalidArgument, describe)?;
            mount(&request.source, &target, request.fstype.as_str(), MountFlags::empty(), data.as_c_str())
                .or_kind(Kind::InvalidArgument, describe)?;
        }
        if request.target.is_empty() {
            mounted.count += 1;
        }
        let attached = inside(at, &request.target)?;
        set_attributes(attached.as_fd(), &options).or_kind(Kind::InvalidArgument, describe)?;
    }
    let tree = clone_tree(at, Recursive::Yes).or_kind(Kind::Internal, || format!("open_tree {}", at.display()))?;
    drop(mounted);
    Ok(tree)
}

/// Mounts on one folder; dropping it unmounts them.
struct Stack<'a> {
    at: &'a Path,
    count: usize,
}

impl Drop for Stack<'_> {
    fn drop(&mut self) {
        for _ in 0..self.count {
            // Private first, so that the unmount stays ours where the host's mounts are shared.
            let _ = mount_change(self.at, MountPropagationFlags::PRIVATE | MountPropagationFlags::REC);
            if let Err(errno) = unmount(self.at, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
                log::warn!("unmount {}: {errno}", self.at.display());
            }
        }
    }
}

/// Opens a target below `at` as it is by now: symlinks of the image do not lead out of it.
fn inside(at: &Path, target: &str) -> Result<OwnedFd> {
    let target = Path::new(target.trim_start_matches('/'));
    if target.components().any(|c| !matches!(c, std::path::Component::Normal(_))) {
        bail!(InvalidArgument, "rootfs mount: target {target:?} leads out of the rootfs");
    }
    let what = || format!("rootfs mount: open {} in {}", target.display(), at.display());
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(at, flags | OFlags::DIRECTORY, Mode::empty()).or_kind(Kind::InvalidArgument, what)?;
    if target.as_os_str().is_empty() {
        return Ok(root);
    }
    let target = CString::new(target.as_os_str().as_bytes()).or_kind(Kind::InvalidArgument, what)?;
    resolve::open(root.as_fd(), &target, OFlags::empty()).or_kind(Kind::InvalidArgument, what)
}

/// A detached copy of the mount at `path`, or of the whole tree below it.
pub(crate) fn clone_tree(path: &Path, recursive: Recursive) -> std::result::Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive == Recursive::Yes {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, path.as_os_str().as_bytes(), flags)
}

/// Applies the options' attributes and propagation to a mount that is there.
pub(crate) fn set_attributes(tree: BorrowedFd<'_>, options: &Options) -> std::result::Result<(), Errno> {
    changes(options).try_for_each(|(attr, recursive)| sys::mount_setattr(tree, recursive, &attr))
}

/// The same, one by one, each with whether it is recursive.
pub(crate) fn changes(options: &Options) -> impl Iterator<Item = (MountAttr, bool)> {
    let attributes = [(options.attr, false), (options.recursive_attr, true)];
    let propagations = options.propagation.iter().map(|(propagation, recursive)| {
        (MountAttr { propagation: *propagation, ..MountAttr::default() }, *recursive == Recursive::Yes)
    });
    attributes.into_iter().filter(|(attr, _)| !attr.is_empty()).chain(propagations)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parameters(lower: &str) -> Vec<(CString, Option<CString>)> {
        let mut parameters = vec![
            (c"upperdir".to_owned(), Some(c"/u".to_owned())),
            (c"lowerdir".to_owned(), Some(CString::new(lower).unwrap())),
        ];
        split_lower_folders(&mut parameters);
        parameters
    }

    #[test]
    fn lower_folders_are_given_one_by_one() {
        let split = parameters("/a:/b:/c");
        let keys: Vec<_> = split.iter().map(|(key, _)| key.to_str().unwrap()).collect();
        assert_eq!(keys, ["upperdir", "lowerdir+", "lowerdir+", "lowerdir+"]);
        assert_eq!(split[3].1.as_deref(), Some(c"/c"));
        assert_eq!(parameters("/a\\:b:/c").len(), 2);
        assert_eq!(parameters("/a::/data").len(), 2);
    }

    #[test]
    fn targets_stay_inside() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        std::os::unix::fs::symlink("/a", root.join("absolute")).unwrap();
        std::os::unix::fs::symlink("../../../a", root.join("climbing")).unwrap();
        std::os::unix::fs::symlink("/proc/self/root", root.join("magic")).unwrap();
        let path = |target| {
            inside(&root, target).map(|fd| std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap())
        };
        assert_eq!(path("").unwrap(), root);
        for target in ["/a/b", "absolute/b", "climbing/b"] {
            assert_eq!(path(target).unwrap(), root.join("a/b"), "{target}");
        }
        for target in ["../x", "magic/a", "missing"] {
            assert!(path(target).is_err(), "{target}");
        }
    }
}
