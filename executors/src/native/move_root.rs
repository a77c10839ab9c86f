//! The container's root without pivot_root(2), for hosts whose `/` is the initramfs, which the kernel pivots nothing onto.
//!
//! The rootfs is moved onto `/`, as switch_root(8) does it, but in the container's mount namespace, where the host's
//! mounts would stay below it. They are detached: else they could not be unmounted on the host for good, and the kernel
//! would let a process in the container mount a procfs or sysfs without the masks of the one it has, because a whole one is
//! in its namespace already (mount_namespaces(7), "Restrictions on mount namespaces").

use std::collections::HashSet;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::mounts::cstring;
use super::step::Step;
use crate::Kind;
use crate::error::{OrKind, Result};

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// The step that cuts the host's mounts off: later ones must not arrive below the container's root.
pub(super) fn isolate() -> Step {
    Step::RootPropagation(libc::MS_PRIVATE | libc::MS_REC)
}

/// The step that makes the rootfs `/`. The host's mounts are listed now, as the child can't.
pub(super) fn step() -> Result<Step> {
    let text = std::fs::read(MOUNTINFO).or_kind(Kind::Internal, || format!("read {MOUNTINFO}"))?;
    let others = topmost(&text).iter().map(|path| cstring(path)).collect::<Result<Vec<CString>>>()?;
    Ok(Step::MoveRoot { others })
}

/// The mount points directly below the root's mount, as often as something is mounted there: detaching those detaches all.
fn topmost(mountinfo: &[u8]) -> Vec<PathBuf> {
    let mounts: Vec<Mount> = mountinfo.split(|byte| *byte == b'\n').filter_map(Mount::parse).collect();
    let is_root = |mount: &Mount| mount.point == Path::new("/");
    let others: HashSet<&[u8]> = mounts.iter().filter(|mount| !is_root(mount)).map(|mount| mount.id).collect();
    let points: HashSet<&Path> = mounts
        .iter()
        .filter(|mount| !is_root(mount) && !others.contains(mount.parent))
        .map(|mount| mount.point.as_path())
        .collect();
    mounts.iter().map(|mount| &mount.point).filter(|point| points.contains(point.as_path())).cloned().collect()
}

/// A line of mountinfo (proc_pid_mountinfo(5)): id, parent's id, device, root, mount point, …
struct Mount<'a> {
    id: &'a [u8],
    parent: &'a [u8],
    point: PathBuf,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a [u8]) -> Option<Mount<'a>> {
        let mut fields = line.split(|byte| *byte == b' ');
        let (id, parent) = (fields.next()?, fields.next()?);
        Some(Mount { id, parent, point: OsString::from_vec(unescape(fields.nth(2)?)).into() })
    }
}

/// Space, tab, newline and backslash are written as `\` with three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, tail)) = rest.split_first() {
        let octal = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok();
        match tail.split_at_checked(3).and_then(|(digits, tail)| Some((octal(digits)?, tail))) {
            Some((escaped, tail)) if byte == b'\\' => {
                bytes.push(escaped);
                rest = tail;
            }
            _ => {
                bytes.push(byte);
                rest = tail;
            }
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mounts_are_found_also_when_stacked() {
        let text = b"\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
23 22 0:5 / /proc rw shared:1 - proc proc rw
24 23 0:6 / /proc/sys/fs/binfmt_misc rw - binfmt_misc none rw
25 22 0:7 / /run rw - tmpfs none rw
26 25 0:8 / /run/a\\040b\\134c rw - tmpfs none rw
27 22 0:9 / /mnt/a\\040b rw - tmpfs none rw
28 25 0:10 / /run rw - tmpfs none rw
29 28 0:5 / /run/chroot/proc rw - proc proc rw
";
        let paths: Vec<_> =
            topmost(text).into_iter().map(|path| path.into_os_string().into_string().unwrap()).collect();
        assert_eq!(paths, ["/proc", "/run", "/mnt/a b", "/run"]);
    }

    #[test]
    fn a_root_that_is_no_mount_shows_only_what_is_below() {
        let text = b"30 29 0:5 / /proc rw - proc proc rw\n31 30 0:6 / /proc/a rw - tmpfs none rw\n";
        assert_eq!(topmost(text), [Path::new("/proc")]);
    }

    #[test]
    fn escapes_are_undone_and_what_is_none_is_kept() {
        assert_eq!(unescape(b"a\\011b\\134"), b"a\tb\\");
        assert_eq!(unescape(b"\\9a\\04"), b"\\9a\\04");
    }
}
