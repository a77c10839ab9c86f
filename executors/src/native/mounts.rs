//! A spec's mounts → steps. Whatever the parent can make is made here as a detached tree (binds, tmpfs, devpts, cgroups);
//! the child makes only what shows its own namespaces (proc, sysfs, mqueue), and with a user namespace what has ids (tmpfs,
//! devpts).
//!
//! Source: OCI runtime spec, config.md "Mounts"; mount_setattr(2), open_tree(2).

use std::ffi::CString;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Mount};
use rustix::io::Errno;

use super::filesystem::{NewFilesystem, create, make_filesystem};
use super::idmap::{Idmaps, is_id_mapped};
use super::options::{Options, Parameter, Recursive};
use super::resolve::Make;
use super::selinux;
use super::step::{Source, Step, Target};
use super::user_namespace::IdMappings;
use crate::bundle::Bundle;
use crate::cgroup::Cgroup;
use crate::error::{OrKind, Result, bail};
use crate::procfs;
use crate::rootfs::{changes, clone_tree, set_attributes, split_lower_folders};
use crate::sys::{self, MountAttr};
use crate::{Error, Kind};

/// Adds the steps for all mounts of the spec, in its order.
///
/// Returns the steps that are to be run once all is made that is made in those mounts.
///
/// `base` is the propagation that binds of the host's mounts start with: MS_SLAVE, MS_PRIVATE, or 0 to keep them shared.
pub(super) fn compile(
    bundle: &Bundle,
    mappings: Option<&IdMappings>,
    cgroup: &Cgroup,
    base: u64,
    steps: &mut Vec<Step>,
) -> Result<Vec<Step>> {
    let container = Container { bundle, mappings, cgroup, base };
    let (mut idmaps, mut last) = (Idmaps::default(), Vec::new());
    for mount in bundle.spec().mounts().iter().flatten() {
        one(&container, mount, &mut idmaps, steps, &mut last).map_err(|e: Error| {
            let kind = if e.kind() == Kind::Internal { Kind::InvalidArgument } else { e.kind() };
            Error::new(kind, anyhow::anyhow!("mounts: {}: {e}", mount.destination().display()))
        })?;
    }
    Ok(last)
}

/// What mounts depend on beside themselves.
struct Container<'a> {
    bundle: &'a Bundle,
    /// Where the container's root is another on the host.
    mappings: Option<&'a IdMappings>,
    cgroup: &'a Cgroup,
    base: u64,
}

/// Everything about the mounts that is decided without looking at the host.
#[cfg(any(test, feature = "fuzzing"))]
pub(super) fn decide(bundle: &Bundle) -> Result<()> {
    for mount in bundle.spec().mounts().iter().flatten() {
        let what = || format!("mounts: {}", mount.destination().display());
        let options = Options::parse(mount.options().as_deref().unwrap_or_default());
        let fstype = mount.typ().as_deref().unwrap_or_default();
        NewFilesystem::new(fstype, source(mount, fstype), &options).or_kind(Kind::InvalidArgument, what)?;
        target(mount.destination(), Make::Directory, false)?;
    }
    Ok(())
}

/// Where the spec mounts the kernel's own state so that it can be written to.
pub(super) fn writable_of_the_kernel(bundle: &Bundle) -> impl Iterator<Item = &Path> {
    let writable = |mount: &&Mount| {
        let options = Options::parse(mount.options().as_deref().unwrap_or_default());
        (options.attr.set | options.recursive_attr.set) & libc::MOUNT_ATTR_RDONLY == 0
    };
    let mounts = bundle.spec().mounts().iter().flatten();
    mounts
        .filter(|mount| matches!(mount.typ().as_deref(), Some("proc" | "sysfs" | "cgroup" | "cgroup2")))
        .filter(writable)
        .map(|mount| mount.destination().as_path())
}

fn one(
    container: &Container<'_>,
    mount: &Mount,
    idmaps: &mut Idmaps,
    steps: &mut Vec<Step>,
    last: &mut Vec<Step>,
) -> Result<()> {
    let mut options = Options::parse(mount.options().as_deref().unwrap_or_default());
    let fstype = mount.typ().as_deref().unwrap_or_default();
    if fstype == "bind" || options.bind.is_some() {
        return bind(container, mount, &options, idmaps, steps);
    }
    if is_id_mapped(mount) {
        bail!(InvalidArgument, "uidMappings: only ids of a bind mount can be mapped");
    }
    if options.copy_up && (fstype != "tmpfs" || options.remount) {
        bail!(InvalidArgument, "option tmpcopyup: only a new tmpfs begins with a copy");
    }
    if options.remount {
        return remount(mount, &options, steps);
    }
    if !matches!(fstype, "proc" | "sysfs" | "mqueue" | "cgroup" | "cgroup2") {
        options.data.extend(selinux::of_mounts(container.bundle.linux())?);
    }
    let has_mode = options.data.iter().any(|parameter| matches!(parameter, Parameter::Value(key, _) if key == "mode"));
    match fstype {
        "" | "none" => bail!(InvalidArgument, "type is missing"),
        "proc" | "sysfs" | "mqueue" => in_the_child(mount, fstype, &options, steps),
        "tmpfs" if options.copy_up || !has_mode => like_the_target(mount, &options, steps, last),
        // Whose ids are those of the user namespace that it is made in.
        "tmpfs" | "ramfs" | "devpts" if container.mappings.is_some() => {
            in_the_child(mount, fstype, &writable(mount, fstype, &options, last)?, steps)
        }
        // Which is beside v1's hierarchies; what it shows depends on the process's cgroup namespace.
        "cgroup2" if !container.cgroup.v2() => in_the_child(mount, fstype, &options, steps),
        "cgroup" | "cgroup2" => cgroup(container, mount, &options, steps, last),
        _ => filesystem(container, mount, fstype, &options, steps, last),
    }
}

/// A bind mount; its source is found on the host, from the bundle if it is relative.
fn bind(
    container: &Container<'_>,
    mount: &Mount,
    options: &Options,
    idmaps: &mut Idmaps,
    steps: &mut Vec<Step>,
) -> Result<()> {
    if let Some(option) = options.only_of_a_file_system() {
        // As with runc up to 1.1, and the spec's validation suite has it so; runc 1.2 refuses.
        let at = mount.destination().display();
        log::warn!("mounts: {at}: option {option} is ignored: a bind mount has none of a file system");
    }
    if options.copy_up {
        bail!(InvalidArgument, "option tmpcopyup: only a new tmpfs begins with a copy");
    }
    let Some(source) = mount.source().as_deref().filter(|source| !source.as_os_str().is_empty()) else {
        bail!(InvalidArgument, "a bind mount needs a source");
    };
    let source = container.bundle.path().join(source);
    let what = || format!("source {}", source.display());
    let make = make_like(&source).or_kind(Kind::InvalidArgument, what)?;
    if let Some(source) = in_the_childs_copy(container, mount, options, &source)? {
        steps.push(Step::Bind { source, at: target(mount.destination(), make, false)? });
        return Ok(());
    }
    let tree = clone_tree(&source, options.bind.unwrap_or(Recursive::No)).or_kind(Kind::InvalidArgument, what)?;
    // Else masks and read-only paths would name what is no file of the kernel's (CVE-2019-16884).
    if mount.destination() == Path::new("/proc") && !procfs::contains(tree.as_fd()).or_kind(Kind::Internal, what)? {
        bail!(InvalidArgument, "source {}: only a procfs may be mounted on /proc", source.display());
    }
    if container.base != 0 {
        let attr = MountAttr { propagation: container.base, ..MountAttr::default() };
        sys::mount_setattr(tree.as_fd(), true, &attr).or_kind(Kind::Internal, what)?;
    }
    let exact = Options { attr: options.of_existing(), ..options.clone() };
    match set_attributes(tree.as_fd(), &exact) {
        // Some of what it has is locked by whoever made this mount namespace (mount_namespaces(7)).
        Err(Errno::PERM) => set_attributes(tree.as_fd(), options),
        result => result,
    }
    .or_kind(Kind::InvalidArgument, what)?;
    idmaps.apply(mount, options, container.mappings, tree.as_fd())?;
    steps.push(Step::Attach { tree, at: target(mount.destination(), make, false)? });
    Ok(())
}

/// A bind that the child can make: in a new mount namespace the host's mounts are copied, and without a user namespace it may
/// go where the shim may. So mountinfo, which is sorted by when a mount was made (since Linux 6.8), shows the spec's order.
///
/// `None` where that is not so, and for what has no path, such as a namespace or a deleted file.
fn in_the_childs_copy(
    container: &Container<'_>,
    mount: &Mount,
    options: &Options,
    source: &Path,
) -> Result<Option<Source>> {
    let is_new = container.bundle.namespace(LinuxNamespaceType::Mount) == Some(None);
    // Whose kind of file system is looked at on what is then mounted.
    let is_proc = mount.destination() == Path::new("/proc");
    if !is_new || is_proc || container.mappings.is_some() || is_id_mapped(mount) {
        return Ok(None);
    }
    let Ok(path) = source.canonicalize() else { return Ok(None) };
    let (Ok(file), Ok(found)) = (rustix::fs::stat(source), rustix::fs::lstat(&path)) else { return Ok(None) };
    let file = (file.st_dev, file.st_ino);
    if file != (found.st_dev, found.st_ino) {
        return Ok(None);
    }
    let base = MountAttr { propagation: container.base, ..MountAttr::default() };
    let base = (container.base != 0).then_some((base, true));
    let exact = Options { attr: options.of_existing(), ..options.clone() };
    Ok(Some(Source {
        path: cstring(&path)?,
        file,
        recursive: options.bind == Some(Recursive::Yes),
        changes: base.into_iter().chain(changes(&exact)).collect(),
        changes_of_locked: base.into_iter().chain(changes(options)).collect(),
    }))
}

/// What lxcfs and others mount over files of procfs, as with runc; nothing else may be mounted in there.
const MAY_BE_IN_PROC: [&str; 10] = [
    "cpuinfo",
    "diskstats",
    "loadavg",
    "meminfo",
    "slabinfo",
    "stat",
    "swaps",
    "sys/crypto/fips_enabled",
    "sys/kernel/ns_last_pid",
    "uptime",
];

/// Whether a mount may have this path, which is below /proc.
pub(crate) fn may_be_in_proc(path: &[u8]) -> bool {
    let below = path.strip_prefix(b"/proc/").unwrap_or_default();
    MAY_BE_IN_PROC.iter().any(|name| name.as_bytes() == below)
}

/// Whether the target of a bind must be a folder or a file.
pub(crate) fn make_like(source: &Path) -> std::io::Result<Make> {
    Ok(if std::fs::metadata(source)?.is_dir() { Make::Directory } else { Make::File })
}

/// A file system that belongs to the child's namespaces.
fn in_the_child(mount: &Mount, fstype: &str, options: &Options, steps: &mut Vec<Step>) -> Result<()> {
    let filesystem =
        NewFilesystem::new(fstype, source(mount, fstype), options).or_kind(Kind::InvalidArgument, || "options")?;
    // proc and sysfs where an image put a symlink would be somewhere else than the paths to be masked.
    let no_symlinks = matches!(fstype, "proc" | "sysfs");
    steps.push(Step::MountNew { filesystem, at: target(mount.destination(), Make::Directory, no_symlinks)? });
    propagations(options, steps);
    Ok(())
}

/// A tmpfs that the child makes, as its mode, or all that is in it, is that of the folder that it hides.
fn like_the_target(mount: &Mount, options: &Options, steps: &mut Vec<Step>, last: &mut Vec<Step>) -> Result<()> {
    let options = writable(mount, "tmpfs", options, last)?;
    let filesystem =
        NewFilesystem::new("tmpfs", source(mount, "tmpfs"), &options).or_kind(Kind::InvalidArgument, || "options")?;
    let at = target(mount.destination(), Make::Directory, false)?;
    steps.push(Step::MountLike { filesystem, at, copy: options.copy_up });
    propagations(&options, steps);
    Ok(())
}

/// A mount that is there gets other attributes and parameters.
fn remount(mount: &Mount, options: &Options, steps: &mut Vec<Step>) -> Result<()> {
    let changes = NewFilesystem::new("", "", options).or_kind(Kind::InvalidArgument, || "options")?;
    steps.push(Step::Remount { changes, attr: options.of_existing(), at: cstring(mount.destination())? });
    Ok(())
}

/// The changes of propagation for the mount that was made by the step before.
fn propagations(options: &Options, steps: &mut Vec<Step>) {
    for (propagation, recursive) in &options.propagation {
        let attr = MountAttr { propagation: *propagation, ..MountAttr::default() };
        steps.push(Step::SetAttr { attr, recursive: *recursive == Recursive::Yes });
    }
}

/// Any other file system, made here.
fn filesystem(
    container: &Container<'_>,
    mount: &Mount,
    fstype: &str,
    options: &Options,
    steps: &mut Vec<Step>,
    last: &mut Vec<Step>,
) -> Result<()> {
    let options = writable(mount, fstype, options, last)?;
    let source = source(mount, fstype);
    let mut filesystem = NewFilesystem::new(fstype, source, &options).or_kind(Kind::InvalidArgument, || "options")?;
    if fstype == "overlay" {
        split_lower_folders(&mut filesystem.parameters);
    }
    let what = || format!("mount {fstype} {source:?}");
    if container.mappings.is_none() {
        // The child mounts it, so that mountinfo shows the spec's order (see `in_the_childs_copy`).
        let context = create(&filesystem, None).or_kind(Kind::InvalidArgument, what)?;
        let at = target(mount.destination(), Make::Directory, false)?;
        steps.push(Step::AttachNew { context, attr: filesystem.attr, at });
        propagations(&options, steps);
        return Ok(());
    }
    let tree = make_filesystem(&filesystem, None).or_kind(Kind::InvalidArgument, what)?;
    for (propagation, recursive) in &options.propagation {
        let attr = MountAttr { propagation: *propagation, ..MountAttr::default() };
        sys::mount_setattr(tree.as_fd(), *recursive == Recursive::Yes, &attr)
            .or_kind(Kind::InvalidArgument, || "propagation")?;
    }
    steps.push(Step::Attach { tree, at: target(mount.destination(), Make::Directory, false)? });
    Ok(())
}

/// The options without `ro` for a tmpfs and for /dev, which then is a last step: mounts and devices may have to be made in it
/// first.
fn writable(mount: &Mount, fstype: &str, options: &Options, last: &mut Vec<Step>) -> Result<Options> {
    let mut options = options.clone();
    let is_filled = fstype == "tmpfs" || mount.destination() == Path::new("/dev");
    if is_filled && options.attr.set & libc::MOUNT_ATTR_RDONLY != 0 {
        options.attr.set &= !libc::MOUNT_ATTR_RDONLY;
        last.push(Step::ReadonlyMount(cstring(mount.destination())?));
    }
    Ok(options)
}

/// The container's own cgroups: on v2 one folder, on v1 a tmpfs with one for each hierarchy.
fn cgroup(
    container: &Container<'_>,
    mount: &Mount,
    options: &Options,
    steps: &mut Vec<Step>,
    last: &mut Vec<Step>,
) -> Result<()> {
    let (at, cgroup) = (mount.destination(), container.cgroup);
    let bind = |path: &Path, recursive| -> Result<_> {
        let tree = clone_tree(path, recursive).or_kind(Kind::Internal, || format!("cgroup {}", path.display()))?;
        let private = MountAttr { propagation: libc::MS_PRIVATE, ..options.attr };
        sys::mount_setattr(tree.as_fd(), true, &private).or_kind(Kind::Internal, || "attributes")?;
        Ok(tree)
    };
    if cgroup.v2() {
        // Without a cgroup namespace the container sees the host's hierarchy.
        let own = container.bundle.namespace(LinuxNamespaceType::Cgroup).is_some();
        let path = if own { cgroup.hierarchies().into_iter().next().map(|h| h.path) } else { None };
        let tree = bind(&path.unwrap_or_else(|| PathBuf::from("/sys/fs/cgroup")), Recursive::No)?;
        steps.push(Step::Attach { tree, at: target(at, Make::Directory, false)? });
        return Ok(());
    }
    let mut tmpfs = Options::parse(&["nosuid", "nodev", "noexec", "mode=755"]);
    tmpfs.data.extend(selinux::of_mounts(container.bundle.linux())?);
    let filesystem = NewFilesystem::new("tmpfs", "tmpfs", &tmpfs).or_kind(Kind::Internal, || "options")?;
    let at_root = target(at, Make::Directory, false)?;
    steps.push(Step::MountNew { filesystem, at: at_root });
    for hierarchy in cgroup.hierarchies() {
        let tree = bind(&hierarchy.path, Recursive::No)?;
        steps.push(Step::Attach { tree, at: target(&at.join(&hierarchy.name), Make::Directory, false)? });
        // Programs look for each controller by its own name, also where several share a hierarchy.
        for name in hierarchy.name.split(',').filter(|name| *name != hierarchy.name) {
            steps.push(Step::Symlink {
                target: CString::new(hierarchy.name.as_str()).or_kind(Kind::Internal, || "name")?,
                at: cstring(&at.join(name))?,
                replace: false,
            });
        }
    }
    if options.attr.set & libc::MOUNT_ATTR_RDONLY != 0 {
        last.push(Step::ReadonlyMount(cstring(at)?));
    }
    Ok(())
}

fn source<'a>(mount: &'a Mount, fstype: &'a str) -> &'a str {
    mount.source().as_deref().and_then(Path::to_str).filter(|source| !source.is_empty()).unwrap_or(fstype)
}

fn target(path: &Path, make: Make, no_symlinks: bool) -> Result<Target> {
    Ok(Target { path: cstring(path)?, make, no_symlinks })
}

pub(crate) fn cstring(path: &Path) -> Result<CString> {
    CString::new(path.as_os_str().as_bytes()).or_kind(Kind::InvalidArgument, || format!("{path:?}"))
}
