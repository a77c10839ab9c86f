//! Device nodes of a spec → steps.

use std::os::fd::AsFd;
use std::path::Path;

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::OpenTreeFlags;

use super::mounts::cstring;
use super::plan::text;
use super::resolve::Make;
use super::step::{Step, Target};
use crate::Kind;
use crate::bundle::Bundle;
use crate::error::{OrKind, Result, bail};
use crate::sys::{self, MountAttr};

/// Whether the host's /dev is the container's, so that nothing may be made in it.
pub(super) fn binds_dev(bundle: &Bundle) -> bool {
    bundle.spec().mounts().iter().flatten().any(|mount| {
        let options = mount.options().as_deref().unwrap_or_default();
        mount.destination() == Path::new("/dev") && options.iter().any(|option| option == "bind" || option == "rbind")
    })
}

/// Device nodes: those that the spec supplies by default, then its own; and the usual symlinks (config-linux.md,
/// "Default Devices"; runtime-linux.md "Dev symbolic links").
///
/// In a user namespace device nodes can't be made and would not be ones: the host's are mounted (user_namespaces(7)).
pub(super) fn devices(bundle: &Bundle, mapped: bool, steps: &mut Vec<Step>) -> Result<()> {
    const DEFAULT: [(&str, u32, u32); 6] = [
        ("/dev/null", 1, 3),
        ("/dev/zero", 1, 5),
        ("/dev/full", 1, 7),
        ("/dev/random", 1, 8),
        ("/dev/urandom", 1, 9),
        ("/dev/tty", 5, 0),
    ];
    let own = bundle.linux().devices().as_deref().unwrap_or_default();
    for (path, major, minor) in DEFAULT {
        if own.iter().any(|device| device.path() == Path::new(path)) {
            continue;
        }
        let node = Step::Device {
            path: text(path, "linux.devices")?,
            mode: libc::S_IFCHR | 0o666,
            device: rustix::fs::makedev(major, minor),
            uid: 0,
            gid: 0,
        };
        steps.push(if mapped { of_the_host(node)? } else { node });
    }
    // The link below is in its place.
    for device in own.iter().filter(|device| device.path() != Path::new("/dev/ptmx")) {
        let node = node(device)?;
        steps.push(if mapped { of_the_host(node)? } else { node });
    }
    const LINKS: [(&str, &str); 5] = [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("pts/ptmx", "/dev/ptmx"),
    ];
    let kcore = Path::new("/proc/kcore").exists().then_some(("/proc/kcore", "/dev/core"));
    for (target, at) in LINKS.into_iter().chain(kcore) {
        // An image's ptmx would be that of another devpts.
        let replace = at == "/dev/ptmx";
        steps.push(Step::Symlink { target: text(target, "/dev")?, at: text(at, "/dev")?, replace });
    }
    Ok(())
}

fn node(device: &LinuxDevice) -> Result<Step> {
    let what = || format!("linux.devices: {}", device.path().display());
    let kind = match device.typ() {
        LinuxDeviceType::B => libc::S_IFBLK,
        LinuxDeviceType::C | LinuxDeviceType::U => libc::S_IFCHR,
        LinuxDeviceType::P => libc::S_IFIFO,
        LinuxDeviceType::A => bail!(InvalidArgument, "{}: type \"a\" is not a kind of file", what()),
    };
    let number = |number: i64| u32::try_from(number).or_kind(Kind::InvalidArgument, what);
    Ok(Step::Device {
        path: cstring(device.path())?,
        mode: kind | (device.file_mode().unwrap_or(0o666) & 0o7777),
        device: rustix::fs::makedev(number(device.major())?, number(device.minor())?),
        uid: device.uid().unwrap_or(0),
        gid: device.gid().unwrap_or(0),
    })
}

/// The host's node of the same path in place of one to make, with the host's owner and mode. A fifo is made as ever.
fn of_the_host(node: Step) -> Result<Step> {
    let Step::Device { path, mode, device, .. } = &node else { return Ok(node) };
    let kind = FileType::from_raw_mode(*mode);
    if kind == FileType::Fifo {
        return Ok(node);
    }
    let what = || format!("linux.devices: {}: open the host's", path.to_string_lossy());
    let file =
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).or_kind(Kind::InvalidArgument, what)?;
    let stat = rustix::fs::fstat(&file).or_kind(Kind::Internal, what)?;
    if (FileType::from_raw_mode(stat.st_mode), stat.st_rdev) != (kind, *device) {
        bail!(
            Unimplemented,
            "linux.devices: {}: on the host it is another file, and in a user namespace none can be made",
            path.to_string_lossy()
        );
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(&file, c"", flags).or_kind(Kind::Internal, what)?;
    let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    sys::mount_setattr(tree.as_fd(), false, &private).or_kind(Kind::Internal, what)?;
    Ok(Step::Attach { tree, at: Target { path: path.clone(), make: Make::File, no_symlinks: false } })
}
