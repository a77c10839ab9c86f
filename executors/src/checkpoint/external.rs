//! What a container has of the host's: mounts and streams, by the names that checkpoint and restore know them by.
//!
//! | mount | its name | what takes its place |
//! | --- | --- | --- |
//! | a bind of the spec | its destination | its source in the new spec |
//! | a mount below that bind | its path | what is mounted below that source |
//! | the host's /dev/null in front of a masked file | the masked path | /dev/null |
//! | a cgroup hierarchy | its path | the new container's cgroup |
//!
//! All others are the container's own: its root, and file systems that were made for it.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Mount};
use rustix::fs::{AtFlags, CWD, FileType, OFlags, Statx, StatxFlags, statx};

use super::{Stream, Streams};
use crate::Kind;
use crate::bundle::Bundle;
use crate::cgroup::Cgroup;
use crate::error::{OrKind, Result};
use crate::native::mounts::cstring;
use crate::native::options::{Options, Recursive};
use crate::native::resolve;

/// A line of mountinfo (proc_pid_mountinfo(5)).
struct Mounted {
    id: u64,
    parent: u64,
    at: String,
    fstype: String,
}

/// The external mounts of a running container: where each is, and its name.
pub(super) fn mounts(bundle: &Bundle, pid: u32, root: BorrowedFd<'_>) -> Result<Vec<(String, String)>> {
    let mounted = mountinfo(&format!("/proc/{pid}/mountinfo"))?;
    let mut named: Vec<(u64, String)> = Vec::new();
    let mut own = Vec::new();
    for mount in bundle.spec().mounts().iter().flatten() {
        let Some(stat) = look(root, mount.destination())? else { continue };
        match bind(mount) {
            Some(_) => named.push((stat.stx_mnt_id, mount.destination().display().to_string())),
            None => own.push(stat.stx_mnt_id),
        }
    }
    for path in bundle.linux().masked_paths().iter().flatten() {
        if let Some(stat) = look(root, Path::new(path))?
            && FileType::from_raw_mode(stat.stx_mode.into()) == FileType::CharacterDevice
        {
            named.push((stat.stx_mnt_id, path.clone()));
        }
    }
    let cgroups = mounted.iter().filter(|mount| matches!(mount.fstype.as_str(), "cgroup" | "cgroup2"));
    named.extend(cgroups.map(|mount| (mount.id, mount.at.clone())));
    let name = |mount: &Mounted| named.iter().find(|(id, _)| *id == mount.id).map(|(_, name)| name.clone());
    let mut external = Vec::new();
    for mount in &mounted {
        if let Some(name) = name(mount) {
            external.push((mount.at.clone(), name));
            continue;
        }
        // Below a bind, and not of the spec: the host's.
        let mut above = mount;
        while !own.contains(&above.id)
            && let Some(parent) = mounted.iter().find(|parent| parent.id == above.parent && parent.id != above.id)
        {
            if let (Some(name), Some(below)) = (name(parent), mount.at.strip_prefix(&parent.at)) {
                external.push((mount.at.clone(), format!("{name}{below}")));
                break;
            }
            above = parent;
        }
    }
    Ok(external)
}

/// What takes the place of a container's external mounts: the name of each, and the path on the host.
pub(super) fn sources(bundle: &Bundle, cgroup: &Cgroup) -> Result<Vec<(String, PathBuf)>> {
    let mut sources = Vec::new();
    for mount in bundle.spec().mounts().iter().flatten() {
        let at = mount.destination();
        let name = at.display().to_string();
        if let Some(recursive) = bind(mount) {
            let source = bundle.path().join(mount.source().as_deref().unwrap_or(Path::new("")));
            if recursive == Recursive::Yes {
                for below in mountinfo("/proc/self/mountinfo")? {
                    let below = PathBuf::from(below.at);
                    if let Ok(rest) = below.strip_prefix(&source)
                        && !rest.as_os_str().is_empty()
                    {
                        sources.push((at.join(rest).display().to_string(), below));
                    }
                }
            }
            sources.push((name, source));
        } else if matches!(mount.typ().as_deref(), Some("cgroup" | "cgroup2")) {
            if cgroup.v2() && bundle.namespace(LinuxNamespaceType::Cgroup).is_none() {
                sources.push((name, PathBuf::from("/sys/fs/cgroup")));
                continue;
            }
            for hierarchy in cgroup.hierarchies() {
                let at = if hierarchy.name.is_empty() { at.clone() } else { at.join(hierarchy.name) };
                sources.push((at.display().to_string(), hierarchy.path));
            }
        }
    }
    let masked = bundle.linux().masked_paths().iter().flatten();
    sources.extend(masked.map(|path| (path.clone(), PathBuf::from("/dev/null"))));
    Ok(sources)
}

/// The standard streams of a process.
pub(super) fn streams(pid: u32) -> Result<Streams> {
    let mounted = mountinfo(&format!("/proc/{pid}/mountinfo"))?;
    let stream = |number: usize| -> Result<Option<Stream>> {
        let path = format!("/proc/{pid}/fd/{number}");
        let link = match fs::read_link(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            link => link.or_kind(Kind::Internal, || format!("read {path}"))?.to_string_lossy().into_owned(),
        };
        if link.starts_with("pipe:[") {
            return Ok(Some(Stream { name: link, null: false }));
        }
        let stat = statx(CWD, &path, AtFlags::empty(), StatxFlags::TYPE | StatxFlags::INO | StatxFlags::MNT_ID)
            .or_kind(Kind::Internal, || format!("look at {path}"))?;
        let own = !link.starts_with('/') || mounted.iter().any(|mount| mount.id == stat.stx_mnt_id);
        let null = FileType::from_raw_mode(stat.stx_mode.into()) == FileType::CharacterDevice;
        let name = format!("file[{:x}:{:x}]", stat.stx_mnt_id, stat.stx_ino);
        Ok((!own).then_some(Stream { name, null }))
    };
    Ok([stream(0)?, stream(1)?, stream(2)?])
}

/// Whether a mount of the spec is a bind, and of a whole tree.
pub(super) fn bind(mount: &Mount) -> Option<Recursive> {
    let options = Options::parse(mount.options().as_deref().unwrap_or_default());
    options.bind.or((mount.typ().as_deref() == Some("bind")).then_some(Recursive::No))
}

/// A file or folder below a root folder, if it is there.
fn look(root: BorrowedFd<'_>, path: &Path) -> Result<Option<Statx>> {
    let what = || format!("look at {} in the container", path.display());
    let found = match resolve::open(root, &cstring(path)?, OFlags::empty()) {
        Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => return Ok(None),
        found => found.or_kind(Kind::Internal, what)?,
    };
    let flags = StatxFlags::TYPE | StatxFlags::MNT_ID;
    statx(found.as_fd(), c"", AtFlags::EMPTY_PATH, flags).or_kind(Kind::Internal, what).map(Some)
}

fn mountinfo(path: &str) -> Result<Vec<Mounted>> {
    let text = fs::read_to_string(path).or_kind(Kind::Internal, || format!("read {path}"))?;
    Ok(text.lines().filter_map(parse).collect())
}

fn parse(line: &str) -> Option<Mounted> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut fields = mount.split(' ');
    let (id, parent) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    let at = fields.nth(2)?;
    Some(Mounted { id, parent, at: unescape(at), fstype: filesystem.split(' ').next()?.to_owned() })
}

/// Space, tab, newline and backslash stand as `\` and three octal digits.
fn unescape(path: &str) -> String {
    let mut plain = path.to_owned();
    for (escape, character) in [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")] {
        plain = plain.replace(escape, character);
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_read() {
        let line = "36 35 98:0 /mnt1 /mnt\\040two rw,noatime master:1 - cgroup2 /dev/root rw,errors=continue";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, mount.parent), (36, 35));
        assert_eq!((mount.at.as_str(), mount.fstype.as_str()), ("/mnt two", "cgroup2"));
        assert!(parse("36 35 98:0").is_none());
    }

    #[test]
    fn a_path_leads_to_its_mount() {
        let mounted = mountinfo("/proc/self/mountinfo").unwrap();
        let proc = mounted.iter().rfind(|mount| mount.at == "/proc").unwrap();
        let root = fs::File::open("/").unwrap();
        assert_eq!(look(root.as_fd(), Path::new("/proc/self")).unwrap().unwrap().stx_mnt_id, proc.id);
        assert!(look(root.as_fd(), Path::new("/proc/none")).unwrap().is_none());
    }

    #[test]
    fn binds_are_told_from_other_mounts() {
        let mount = |text: &str| serde_json::from_str::<Mount>(text).unwrap();
        assert_eq!(bind(&mount(r#"{"destination": "/a", "type": "bind"}"#)), Some(Recursive::No));
        assert_eq!(bind(&mount(r#"{"destination": "/a", "options": ["ro", "rbind"]}"#)), Some(Recursive::Yes));
        assert_eq!(bind(&mount(r#"{"destination": "/a", "type": "tmpfs"}"#)), None);
    }
}
