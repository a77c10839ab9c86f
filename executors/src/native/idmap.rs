//! Id-mapped mounts: the user namespaces that their ids are mapped by, and the mappings of those that exist already.
//!
//! Source: OCI runtime spec 1.3, config.md "Mounts" (uidMappings, gidMappings, `idmap`, `ridmap`); mount_setattr(2),
//! MOUNT_ATTR_IDMAP; user_namespaces(7).

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::thread::move_into_link_name_space;

use super::options::{Options, Recursive};
use super::user_namespace::IdMappings;
use crate::error::{OrKind, Result, bail};
use crate::process::{self, Unfinished};
use crate::sys::{self, MountAttr};
use crate::{Error, Kind};

/// The user namespaces of a container's id-mapped mounts. Mounts with the same mappings have the same one.
#[derive(Default)]
pub(crate) struct Idmaps(Vec<(IdMappings, OwnedFd)>);

impl Idmaps {
    /// Maps the ids of a mount that was made for `mount`, if that asks for it. `container` is the container's own user
    /// namespace, whose mappings hold where the mount names none.
    pub fn apply(
        &mut self,
        mount: &Mount,
        options: &Options,
        container: Option<&IdMappings>,
        tree: BorrowedFd<'_>,
    ) -> Result<()> {
        let (uids, gids) = (mount.uid_mappings(), mount.gid_mappings());
        let recursive = options.idmap.unwrap_or(Recursive::No);
        let mappings = match (uids.as_deref(), gids.as_deref()) {
            (None | Some([]), None | Some([])) if options.idmap.is_none() => return Ok(()),
            (None | Some([]), None | Some([])) => match container {
                Some(mappings) => mappings.clone(),
                None => bail!(InvalidArgument, "uidMappings: missing, and the container has no user namespace"),
            },
            (Some(uids @ [_, ..]), Some(gids @ [_, ..])) => IdMappings::new(uids.to_vec(), gids.to_vec()),
            (_, None | Some([])) => bail!(InvalidArgument, "gidMappings: missing, and there are uidMappings"),
            (None | Some([]), _) => bail!(InvalidArgument, "uidMappings: missing, and there are gidMappings"),
        };
        self.set(&mappings, recursive, tree)
    }

    /// Maps the ids of a detached mount, and with `recursive` of those below it.
    pub fn set(&mut self, mappings: &IdMappings, recursive: Recursive, tree: BorrowedFd<'_>) -> Result<()> {
        let namespace = self.namespace(mappings)?;
        let attr =
            MountAttr { set: libc::MOUNT_ATTR_IDMAP, userns_fd: namespace.as_raw_fd() as u64, ..MountAttr::default() };
        match sys::mount_setattr(tree, recursive == Recursive::Yes, &attr) {
            Err(Errno::INVAL) => bail!(FailedPrecondition, "uidMappings: the kernel maps no ids of this file system"),
            Err(Errno::PERM) => bail!(FailedPrecondition, "uidMappings: the ids of the source are mapped already"),
            result => result.or_kind(Kind::Internal, || "uidMappings: mount_setattr"),
        }
    }

    fn namespace(&mut self, mappings: &IdMappings) -> Result<BorrowedFd<'_>> {
        if !self.0.iter().any(|(known, _)| known == mappings) {
            let namespace = match mappings.joined() {
                Some(joined) => joined.try_clone_to_owned().or_kind(Kind::Unavailable, || "the user namespace")?,
                None => {
                    let holder = Holder::new(None).or_kind(Kind::Unavailable, || "make a user namespace")?;
                    mappings.write(holder.pid())?;
                    holder.namespace()?
                }
            };
            self.0.push((mappings.clone(), namespace));
        }
        match self.0.iter().find(|(known, _)| known == mappings) {
            Some((_, namespace)) => Ok(namespace.as_fd()),
            None => bail!(Internal, "uidMappings: no user namespace"),
        }
    }
}

/// Whether a mount asks for it.
pub(crate) fn is_id_mapped(mount: &Mount) -> bool {
    let lists = [mount.uid_mappings(), mount.gid_mappings()];
    let is_set = |list: &&Option<Vec<LinuxIdMapping>>| list.as_deref().is_some_and(|list| !list.is_empty());
    let options = Options::parse(mount.options().as_deref().unwrap_or_default());
    lists.iter().any(is_set) || options.idmap.is_some()
}

/// The mappings of a user namespace, as this process's own sees them.
pub(super) fn mappings_of(namespace: BorrowedFd<'_>) -> Result<(Vec<LinuxIdMapping>, Vec<LinuxIdMapping>)> {
    let what = || "linux.namespaces: join the user namespace";
    let holder = Holder::new(Some(namespace)).or_kind(Kind::InvalidArgument, what)?;
    let read = |file: &str| {
        let path = format!("/proc/{}/{file}", holder.pid());
        let text = std::fs::read_to_string(&path).or_kind(Kind::Internal, || format!("read {path}"))?;
        text.lines()
            .map(parse_line)
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| Error::new(Kind::Internal, anyhow::anyhow!("{path}: {text:?} are no mappings")))
    };
    Ok((read("uid_map")?, read("gid_map")?))
}

/// A line of uid_map or gid_map: first id inside, first id outside, how many.
fn parse_line(line: &str) -> Option<LinuxIdMapping> {
    let mut numbers = line.split_ascii_whitespace().map(|word| word.parse::<u32>().ok());
    let mut next = || numbers.next().flatten();
    let mapping = LinuxIdMappingBuilder::default().container_id(next()?).host_id(next()?).size(next()?);
    mapping.build().ok()
}

/// Mappings as containerd's snapshotters write them in mount options: `0:1000:10,10:5000:5`.
pub(crate) fn parse_list(text: &str) -> Option<Vec<LinuxIdMapping>> {
    text.split(',').map(|range| parse_line(&range.replace(':', " "))).collect()
}

/// A process that does nothing but be in a user namespace; it ends when this is dropped. A user namespace has no name and
/// no mappings but through a process in it.
struct Holder {
    process: Unfinished,
    _socket: OwnedFd,
}

impl Holder {
    /// In a new one, or in that one.
    fn new(joined: Option<BorrowedFd<'_>>) -> rustix::io::Result<Holder> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let run = || {
            sys::close(ours.as_raw_fd());
            hold(joined, theirs.as_fd())
        };
        let flags = if joined.is_some() { 0 } else { libc::CLONE_NEWUSER };
        let process = process::spawn(|| sys::clone3(flags, None, &run))?;
        drop(theirs);
        // What it has to say is an error, or 0.
        let mut errno = [0; 4];
        let length = loop {
            match rustix::io::read(&ours, &mut errno) {
                Err(Errno::INTR) => {}
                read => break read?,
            }
        };
        match (length, i32::from_ne_bytes(errno)) {
            (4, 0) => Ok(Holder { process, _socket: ours }),
            (4, errno) => Err(Errno::from_raw_os_error(errno)),
            _ => Err(Errno::SRCH),
        }
    }

    fn pid(&self) -> u32 {
        self.process.get().map_or(0, |child| child.pid)
    }

    fn namespace(&self) -> Result<OwnedFd> {
        let path = format!("/proc/{}/ns/user", self.pid());
        File::open(&path).map(OwnedFd::from).or_kind(Kind::Internal, || format!("open {path}"))
    }
}

/// What the holder does: system calls only, as it is a copy of a process with threads.
fn hold(joined: Option<BorrowedFd<'_>>, parent: BorrowedFd<'_>) -> i32 {
    let entered = joined.map_or(Ok(()), |namespace| move_into_link_name_space(namespace, None));
    let errno = entered.err().map_or(0, Errno::raw_os_error);
    let _ = rustix::io::write(parent, &errno.to_ne_bytes());
    // To the end of file, which comes with the parent's.
    let _ = rustix::io::read(parent, &mut [0; 1]);
    0
}

#[cfg(test)]
mod tests {
    use super::super::user_namespace::lines;
    use super::*;

    #[test]
    fn lists_of_mappings_are_read() {
        let list = parse_list("0:1000:10,10:5000:5").unwrap();
        assert_eq!(lines(&list), "0 1000 10\n10 5000 5\n");
        for text in ["", "0:1000", "0:1000:x", "0:1000:10,"] {
            assert_eq!(parse_list(text), None, "{text:?}");
        }
    }

    #[test]
    fn a_user_namespace_has_the_mappings_that_were_written() {
        let list = parse_list("0:1000:10,10:5000:5").unwrap();
        let mappings = IdMappings::new(list.clone(), list.clone());
        let mut maps = Idmaps::default();
        let namespace = maps.namespace(&mappings).unwrap().try_clone_to_owned().unwrap();
        assert_eq!(mappings_of(namespace.as_fd()).unwrap(), (list.clone(), list));
        maps.namespace(&mappings).unwrap();
        assert_eq!(maps.0.len(), 1);
    }
}
