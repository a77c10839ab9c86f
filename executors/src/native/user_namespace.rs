//! User namespaces: which ids of the host a container's are, and what the host's root does for a child that is born in
//! one, where it is nobody to the host.
//!
//! Source: OCI runtime spec, config-linux.md "User namespace mappings"; user_namespaces(7).

use std::ffi::CString;
use std::fmt::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Process};
use rustix::fs::{FileType, Gid, Uid, fchown};
use rustix::io::Errno;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use super::namespaces::open_namespace;
use super::{idmap, user};
use crate::Kind;
use crate::bundle::Bundle;
use crate::error::{OrKind, Result, bail};
use crate::procfs::Procfs;

/// The ids that a container has, and the host's for them.
#[derive(Clone, PartialEq)]
pub(crate) struct IdMappings {
    uids: Vec<LinuxIdMapping>,
    gids: Vec<LinuxIdMapping>,
    /// The user namespace that has them, where it is not a new one.
    joined: Option<Joined>,
}

#[derive(Clone)]
struct Joined(Arc<OwnedFd>);

impl PartialEq for Joined {
    fn eq(&self, other: &Joined) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl IdMappings {
    /// Those of a new user namespace.
    pub fn new(uids: Vec<LinuxIdMapping>, gids: Vec<LinuxIdMapping>) -> IdMappings {
        IdMappings { uids, gids, joined: None }
    }

    /// Those of the container's user namespace, if it has another than this process.
    pub fn of(bundle: &Bundle) -> Result<Option<IdMappings>> {
        let list = |mappings: &Option<Vec<LinuxIdMapping>>| mappings.clone().unwrap_or_default();
        let (uids, gids) = (list(bundle.linux().uid_mappings()), list(bundle.linux().gid_mappings()));
        match bundle.namespace(LinuxNamespaceType::User) {
            None => Ok(None),
            Some(None) => Ok(Some(IdMappings::new(uids, gids))),
            Some(Some(path)) => Self::of_path(path, uids, gids, bundle.process()),
        }
    }

    /// Those of an existing user namespace. containerd and others give the mappings as well; as with runc they must be the
    /// namespace's own then.
    fn of_path(
        path: &Path,
        uids: Vec<LinuxIdMapping>,
        gids: Vec<LinuxIdMapping>,
        process: &Process,
    ) -> Result<Option<IdMappings>> {
        let namespace = open_namespace(path, "user")?;
        let own = open_namespace(Path::new("/proc/self/ns/user"), "user")?;
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|stat| (stat.st_dev, stat.st_ino)).ok();
        if inode(&namespace) == inode(&own) {
            // The kernel lets nobody enter the one that it is in.
            return Ok(None);
        }
        let (own_uids, own_gids) = idmap::mappings_of(namespace.as_fd())?;
        for (field, given, own) in [("linux.uidMappings", &uids, &own_uids), ("linux.gidMappings", &gids, &own_gids)] {
            if !given.is_empty() && sorted(given) != sorted(own) {
                bail!(InvalidArgument, "{field}: not those of the user namespace {}", path.display());
            }
            if on_host(own, 0).is_none() {
                bail!(InvalidArgument, "{field}: 0 is not mapped in the user namespace {}", path.display());
            }
        }
        let joined = Some(Joined(Arc::new(namespace)));
        let mappings = IdMappings { uids: own_uids, gids: own_gids, joined };
        mappings.check(process)?;
        Ok(Some(mappings))
    }

    /// The existing user namespace, where it is not a new one.
    pub fn joined(&self) -> Option<BorrowedFd<'_>> {
        self.joined.as_ref().map(|joined| joined.0.as_fd())
    }

    /// Writes them to the new user namespace of a process.
    pub fn write(&self, pid: u32) -> Result<()> {
        for (field, file, mappings) in
            [("linux.gidMappings", "gid_map", &self.gids), ("linux.uidMappings", "uid_map", &self.uids)]
        {
            // The kernel takes them all at once or not at all.
            let text = lines(mappings);
            write(pid, file, &text)
                .or_kind(Kind::InvalidArgument, || format!("{field}: write {:?}", text.trim_end()))?;
        }
        Ok(())
    }

    /// Fails unless all ids of the process are mapped.
    pub fn check(&self, process: &Process) -> Result<()> {
        check(process, &self.uids, &self.gids)
    }

    /// The host's id for a user of the container.
    fn uid(&self, id: u32) -> Result<Uid> {
        match on_host(&self.uids, id) {
            Some(uid) => Ok(Uid::from_raw(uid)),
            None => bail!(InvalidArgument, "process.user.uid: {id} is not in linux.uidMappings"),
        }
    }

    /// Makes a stream's file the process's, for the container's root may not: it is not a file of its ids. Only fifos and
    /// sockets, which are this container's own.
    pub fn give_stream(&self, stream: impl std::os::fd::AsFd, process: &Process) -> Result<()> {
        let stat = rustix::fs::fstat(&stream).or_kind(Kind::Internal, || "set up stdio")?;
        if matches!(FileType::from_raw_mode(stat.st_mode), FileType::Fifo | FileType::Socket) {
            let uid = self.uid(process.user().uid())?;
            // As for others, some can't be changed.
            let _ = fchown(stream, Some(uid), None);
        }
        Ok(())
    }

    /// Makes a terminal that was opened for the process its own.
    pub fn give_terminal(&self, slave: impl std::os::fd::AsFd, process: &Process) -> Result<()> {
        let what = || "process.terminal: make the terminal the process's own";
        let group = rustix::fs::fstat(&slave).or_kind(Kind::Internal, what)?.st_gid;
        // A group of the host's is none in the container.
        let is_mapped = self.gids.iter().any(|m| group.checked_sub(m.host_id()).is_some_and(|n| n < m.size()));
        let gid = if is_mapped { None } else { on_host(&self.gids, 0).map(Gid::from_raw) };
        fchown(slave, Some(self.uid(process.user().uid())?), gid).or_kind(Kind::Internal, what)
    }
}

/// The process's ids must be among those that its user namespace maps; without mappings all are.
pub(crate) fn check(process: &Process, uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<()> {
    let user = process.user();
    let groups = std::iter::once(user.gid()).chain(user.additional_gids().iter().flatten().copied());
    let uids = [user.uid()].into_iter().map(|uid| ("process.user.uid", "linux.uidMappings", uids, uid));
    let gids = groups.map(|gid| ("process.user.gid", "linux.gidMappings", gids, gid));
    for (field, list, mappings, id) in uids.chain(gids) {
        if !mappings.is_empty() && on_host(mappings, id).is_none() {
            bail!(InvalidArgument, "{field}: {id} is not in {list}");
        }
    }
    Ok(())
}

/// The host's id for one of the container's.
pub(crate) fn on_host(mappings: &[LinuxIdMapping], id: u32) -> Option<u32> {
    mappings.iter().find_map(|m| {
        let offset = id.checked_sub(m.container_id()).filter(|offset| *offset < m.size())?;
        m.host_id().checked_add(offset)
    })
}

/// Mappings in an order that does not depend on that of their lines.
fn sorted(mappings: &[LinuxIdMapping]) -> Vec<(u32, u32, u32)> {
    let mut mappings: Vec<_> = mappings.iter().map(|m| (m.container_id(), m.host_id(), m.size())).collect();
    mappings.sort_unstable();
    mappings
}

/// What the parent does to a child that waits in its user namespace.
pub(crate) struct Settle {
    mappings: IdMappings,
    oom_score: Option<i32>,
    /// Limits above this process's own, which the child could only lower from in there.
    rlimits: Vec<(Resource, Rlimit)>,
}

impl Settle {
    pub fn new(mappings: IdMappings, process: &Process) -> Settle {
        Settle { mappings, oom_score: process.oom_score_adj(), rlimits: raised(process) }
    }

    /// Writes the mappings of the child's namespace if that is new, and what only the host's root may set.
    pub fn settle(&self, pid: u32) -> Result<()> {
        for (resource, limit) in &self.rlimits {
            let pid = Pid::from_raw(pid as i32);
            let what = || format!("process.rlimits: raise {}", super::step::Step::rlimit_name(*resource));
            prlimit(pid, *resource, *limit).or_kind(Kind::Internal, what)?;
        }
        if let Some(score) = self.oom_score {
            write(pid, "oom_score_adj", &score.to_string())
                .or_kind(Kind::Internal, || format!("process.oomScoreAdj: set {score}"))?;
        }
        if self.mappings.joined.is_none() { self.mappings.write(pid) } else { Ok(()) }
    }
}

/// Writes to a file of the process in /proc.
fn write(pid: u32, file: &str, text: &str) -> rustix::io::Result<()> {
    let path = CString::new(format!("{pid}/{file}")).map_err(|_| Errno::INVAL)?;
    Procfs::open()?.write(&path, text.as_bytes())
}

/// The limits of a process whose hard one is above this process's own: with that hard limit, and the soft one as it is.
pub(super) fn raised(process: &Process) -> Vec<(Resource, Rlimit)> {
    let above = |(resource, wanted): (Resource, Rlimit)| {
        let held = getrlimit(resource);
        let raises = held.maximum.is_some_and(|held| wanted.maximum.is_none_or(|wanted| wanted > held));
        raises.then_some((resource, Rlimit { current: held.current, maximum: wanted.maximum }))
    };
    user::limits(process).filter_map(above).collect()
}

/// Mappings as uid_map and gid_map have them: first id inside, first id outside, how many.
pub(super) fn lines(mappings: &[LinuxIdMapping]) -> String {
    mappings.iter().fold(String::new(), |mut text, m| {
        let _ = writeln!(text, "{} {} {}", m.container_id(), m.host_id(), m.size());
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_ranges() -> Vec<LinuxIdMapping> {
        serde_json::from_value(serde_json::json!([
            {"containerID": 0, "hostID": 1000, "size": 10},
            {"containerID": 10, "hostID": 5000, "size": 5},
        ]))
        .unwrap()
    }

    #[test]
    fn ids_are_found_in_every_range() {
        let host = |id| on_host(&two_ranges(), id);
        assert_eq!(
            [host(0), host(9), host(10), host(14), host(15)],
            [Some(1000), Some(1009), Some(5000), Some(5004), None]
        );
    }

    #[test]
    fn the_kernel_gets_a_line_for_each_range() {
        assert_eq!(lines(&two_ranges()), "0 1000 10\n10 5000 5\n");
    }
}
