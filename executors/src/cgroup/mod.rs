//! A container's cgroup, v1 or v2: created with its limits, joined, signalled, removed.
//!
//! cgroups-rs knows the hierarchies, creates the groups and moves processes; which files get which values is decided in
//! [`limits`] (pure), and the device rules of v2 in [`devices`].

mod devices;
mod limits;

use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use cgroups_rs::fs::{Cgroup as Groups, Controllers, hierarchies};

use self::limits::{Missing, Setting};
use crate::Kind;
use crate::bundle::Bundle;
use crate::error::{OrKind, Result, bail};

/// Marks the folders above a container's cgroup that were made for it, so that the last container removes them again.
/// Folders of others, such as the kubelet's pods, have no mark and stay.
const MADE_BY_HYBRID: &str = "trusted.hybrid.made";

/// Marks a container's own cgroup with the bundle it was made for. Another container may name the same cgroup in its spec:
/// what cleans up after that one must not take this one's processes for its.
const CONTAINER: &str = "trusted.hybrid.bundle";

/// How long processes that were killed may take to leave a cgroup.
const PATIENCE: Duration = Duration::from_secs(2);

/// A container's cgroup. [`Cgroup::remove`] removes it; dropping it does so too, without saying what went wrong.
pub(crate) struct Cgroup {
    groups: Groups,
    removed: bool,
}

/// A cgroup as a container sees it under /sys/fs/cgroup.
pub(crate) struct Hierarchy {
    /// The folder's name below /sys/fs/cgroup, such as `cpu,cpuacct`; empty on v2.
    pub name: String,
    /// The container's own cgroup on the host.
    pub path: PathBuf,
}

impl Cgroup {
    /// A handle on the cgroup of that name, whether or not it exists.
    ///
    /// # Errors
    /// Unimplemented for the systemd form `slice:prefix:name`; InvalidArgument for a path with `..` in it.
    pub fn load(id: &str, path: Option<&Path>) -> Result<Cgroup> {
        Ok(Self { groups: Groups::load(hierarchies::auto(), name(id, path)?), removed: true })
    }

    /// Creates the cgroup with its limits, for the container of that bundle.
    pub fn create(bundle: &Bundle) -> Result<Cgroup> {
        let mut cgroup = Self::load(bundle.id(), bundle.linux().cgroups_path().as_deref())?;
        let resources = bundle.linux().resources().as_ref();
        if cgroup.exists() && !cgroup.pids()?.is_empty() {
            bail!(FailedPrecondition, "linux.cgroupsPath: {} has processes in it already", cgroup.groups.path());
        }
        let settings = limits::settings(resources, cgroup.groups.v2())?;
        cgroup.removed = false;
        cgroup.make()?;
        for folder in cgroup.folders() {
            mark(&folder, bundle.path())
                .or_kind(Kind::Internal, || format!("mark cgroup {} as the container's", folder.display()))?;
        }
        for setting in &settings {
            cgroup.write(setting)?;
        }
        if cgroup.groups.v2() {
            devices::attach(cgroup.directory()?.as_fd(), resources)?;
        }
        Ok(cgroup)
    }

    /// Whether it exists in any hierarchy.
    pub fn exists(&self) -> bool {
        self.folders().iter().any(|folder| folder.exists())
    }

    /// Whether it was made for the container of the bundle at `bundle`.
    pub fn is_of(&self, bundle: &Path) -> bool {
        self.folders().iter().any(|folder| is_marked(folder, bundle))
    }

    /// Whether the host has cgroup v2 only.
    pub fn v2(&self) -> bool {
        self.groups.v2()
    }

    /// On v2, the cgroup's folder for clone3(2) with CLONE_INTO_CGROUP: the process is born in it.
    pub fn birth(&self) -> Result<Option<OwnedFd>> {
        if self.groups.v2() { self.directory().map(Some) } else { Ok(None) }
    }

    /// Moves a process into it, in every hierarchy.
    pub fn join(&self, pid: u32) -> Result<()> {
        self.groups
            .add_task_by_tgid(cgroups_rs::CgroupPid::from(u64::from(pid)))
            .or_kind(Kind::Internal, || format!("move process {pid} to cgroup {}", self.groups.path()))
    }

    /// The processes in it and below it, by their pids in the shim's namespace.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let Some(folder) = self.process_folder() else { return Ok(Vec::new()) };
        let mut pids = Vec::new();
        collect_pids(&folder, &mut pids).or_kind(Kind::Internal, || format!("read pids of {}", folder.display()))?;
        Ok(pids)
    }

    /// Sends a signal to every process in it, until no process is left that has not got it.
    ///
    /// With cgroup v2 SIGKILL goes to all at once (cgroup.kill); otherwise by pid, and a process that is forked meanwhile
    /// is found by looking again.
    pub fn signal(&self, signal: i32) -> Result<()> {
        if signal == libc::SIGKILL && self.groups.v2() && self.exists() {
            // Before Linux 5.14 there is no cgroup.kill.
            if self.groups.kill().is_ok() {
                return Ok(());
            }
        }
        let mut signalled = std::collections::HashSet::new();
        loop {
            let new: Vec<u32> = self.pids()?.into_iter().filter(|pid| signalled.insert(*pid)).collect();
            if new.is_empty() {
                return Ok(());
            }
            for pid in new {
                match crate::sys::kill(pid, signal) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(rustix::io::Errno::INVAL) => bail!(InvalidArgument, "{signal} is not a signal"),
                    Err(errno) => {
                        return Err(errno).or_kind(Kind::Internal, || format!("signal {signal} to process {pid}"));
                    }
                }
            }
        }
    }

    /// Whether the kernel has killed a process of it for its memory limit (memory.events; memory.oom_control on v1).
    pub fn oom_killed(&self) -> bool {
        let memory = (!self.v2()).then_some(Controllers::Mem);
        let file = if self.v2() { "memory.events" } else { "memory.oom_control" };
        let text = self.controller_folder(&memory).and_then(|folder| std::fs::read_to_string(folder.join(file)).ok());
        text.is_some_and(|text| text.lines().any(|line| line.strip_prefix("oom_kill ").is_some_and(|n| n != "0")))
    }

    /// What a cgroup mount in the container shows: one folder on v2, one for each hierarchy on v1.
    pub fn hierarchies(&self) -> Vec<Hierarchy> {
        if self.groups.v2() {
            return self.folders().into_iter().take(1).map(|path| Hierarchy { name: String::new(), path }).collect();
        }
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for subsystem in self.groups.subsystems() {
            let controller = subsystem.to_controller();
            let path = controller.path().to_owned();
            if hierarchies.iter().any(|hierarchy| hierarchy.path == path) {
                continue;
            }
            let own = Path::new(self.groups.path());
            let depth = own.components().filter(|component| matches!(component, Component::Normal(_))).count();
            let name = path.ancestors().nth(depth).and_then(Path::file_name).unwrap_or_default();
            hierarchies.push(Hierarchy { name: name.to_string_lossy().into_owned(), path });
        }
        hierarchies
    }

    /// Removes it, with what the container made below it.
    ///
    /// A process that was just killed keeps its cgroup busy for a moment, which is waited for ([`PATIENCE`]).
    pub fn remove(mut self) -> Result<()> {
        self.remove_all()
    }

    fn remove_all(&mut self) -> Result<()> {
        self.removed = true;
        let mut result = Ok(());
        for folder in self.folders() {
            if let Err(e) = remove_tree(&folder) {
                result = Err(e).or_kind(Kind::Internal, || format!("remove cgroup {}", folder.display()));
                continue;
            }
            remove_made_parents(&folder);
        }
        result
    }

    fn make(&self) -> Result<()> {
        let path = self.groups.path().to_owned();
        let describe = || format!("create cgroup {path}");
        for folder in self.folders() {
            make_folder(&folder).or_kind(Kind::Internal, describe)?;
        }
        // It is there, so nobody takes its parents away any more: on v2 they get their controllers, and a v1 cpuset its CPUs.
        self.groups.create().map_err(io::Error::other).or_kind(Kind::Internal, describe)
    }

    fn write(&self, setting: &Setting) -> Result<()> {
        let Setting { field, controller, file, value, .. } = setting;
        let describe = || format!("{field}: write {value:?} to {file} of cgroup {}", self.groups.path());
        let Some(folder) = self.controller_folder(controller) else {
            bail!(FailedPrecondition, "{field}: this host has no cgroup controller {controller:?}");
        };
        match write(&folder.join(file), value) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => match &setting.missing {
                Missing::Error => {
                    bail!(FailedPrecondition, "{field}: cgroup {} has no {file}", self.groups.path())
                }
                Missing::Same => Ok(()),
                Missing::Instead { file, value } => {
                    write(&folder.join(file), value).or_kind(Kind::InvalidArgument, describe)
                }
            },
            result => result.or_kind(Kind::InvalidArgument, describe),
        }
    }

    fn controller_folder(&self, wanted: &Option<Controllers>) -> Option<PathBuf> {
        let mut subsystems = self.groups.subsystems().iter().map(|subsystem| subsystem.to_controller());
        let controller = match wanted {
            Some(wanted) => subsystems.find(|controller| controller.control_type() == *wanted)?,
            None => subsystems.next()?,
        };
        Some(controller.path().to_owned())
    }

    /// Where the processes are listed: any hierarchy will do, preferably one that containers can't escape.
    fn process_folder(&self) -> Option<PathBuf> {
        [Controllers::Pids, Controllers::Mem, Controllers::Freezer]
            .into_iter()
            .find_map(|controller| self.controller_folder(&Some(controller)))
            .or_else(|| self.controller_folder(&None))
    }

    fn folders(&self) -> Vec<PathBuf> {
        let mut folders: Vec<PathBuf> = Vec::new();
        for subsystem in self.groups.subsystems() {
            let path = subsystem.to_controller().path().to_owned();
            if !folders.contains(&path) {
                folders.push(path);
            }
        }
        folders
    }

    fn directory(&self) -> Result<OwnedFd> {
        use rustix::fs::{Mode, OFlags};
        let Some(folder) = self.folders().into_iter().next() else {
            bail!(FailedPrecondition, "this host has no cgroups")
        };
        rustix::fs::open(&folder, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .or_kind(Kind::Internal, || format!("open cgroup {}", folder.display()))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.removed {
            return;
        }
        if let Err(e) = self.signal(libc::SIGKILL).and_then(|()| self.remove_all()) {
            log::warn!("{e}");
        }
    }
}

/// The cgroup's name relative to each hierarchy's root (config-linux.md, "Cgroups Path").
fn name(id: &str, path: Option<&Path>) -> Result<String> {
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else { return Ok(id.to_owned()) };
    let text = path.to_string_lossy();
    if !text.starts_with('/') && text.matches(':').count() == 2 {
        bail!(Unimplemented, "linux.cgroupsPath: {text}: the systemd cgroup driver is not supported");
    }
    if path.components().any(|component| component == Component::ParentDir) {
        bail!(InvalidArgument, "linux.cgroupsPath: {text} has .. in it");
    }
    let name = text.trim_matches('/');
    if name.is_empty() {
        bail!(InvalidArgument, "linux.cgroupsPath: {text} is the root");
    }
    Ok(name.to_owned())
}

/// Writes to a file of the kernel's, which is never created: it is missing where its controller is.
fn write(file: &Path, value: &str) -> io::Result<()> {
    std::fs::OpenOptions::new().write(true).open(file)?.write_all(value.as_bytes())
}

/// Makes a cgroup's folder and those above it.
fn make_folder(folder: &Path) -> io::Result<()> {
    // Another container's removal may take a parent away again before the folder is in it.
    for _ in 0..1000 {
        match make_parents(folder).and_then(|()| std::fs::create_dir(folder)) {
            Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV) => {}
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            result => return result,
        }
    }
    Err(io::Error::from_raw_os_error(libc::EBUSY))
}

fn make_parents(folder: &Path) -> io::Result<()> {
    let missing: Vec<&Path> = folder.ancestors().skip(1).take_while(|parent| !parent.exists()).collect();
    for parent in missing.into_iter().rev() {
        match std::fs::create_dir(parent) {
            Ok(()) => {
                // Where the kernel has no such attributes on cgroups the folder only stays behind, empty.
                let _ = rustix::fs::setxattr(parent, MADE_BY_HYBRID, b"1", rustix::fs::XattrFlags::empty());
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn remove_made_parents(folder: &Path) {
    for parent in folder.ancestors().skip(1) {
        let mut value = [0u8; 8];
        let made = rustix::fs::getxattr(parent, MADE_BY_HYBRID, &mut value[..]).is_ok();
        // Not empty: another container is in it, and will remove it.
        if !made || std::fs::remove_dir(parent).is_err() {
            return;
        }
    }
}

/// Writes the mark of the container whose bundle is at `bundle`.
fn mark(folder: &Path, bundle: &Path) -> io::Result<()> {
    let bundle = bundle.canonicalize()?;
    rustix::fs::setxattr(folder, CONTAINER, bundle.as_os_str().as_bytes(), rustix::fs::XattrFlags::empty())?;
    Ok(())
}

/// Whether the mark is that of the container whose bundle is at `bundle`.
fn is_marked(folder: &Path, bundle: &Path) -> bool {
    let mut value = [0u8; libc::PATH_MAX as usize];
    let Ok(length) = rustix::fs::getxattr(folder, CONTAINER, &mut value[..]) else { return false };
    let bundle = bundle.canonicalize();
    bundle.is_ok_and(|bundle| value.get(..length) == Some(bundle.as_os_str().as_bytes()))
}

fn collect_pids(folder: &Path, pids: &mut Vec<u32>) -> io::Result<()> {
    let text = match std::fs::read_to_string(folder.join("cgroup.procs")) {
        Ok(text) => text,
        // Gone, or going: nothing is in it.
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV) => return Ok(()),
        Err(e) => return Err(e),
    };
    pids.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
    for child in subfolders(folder)? {
        collect_pids(&child, pids)?;
    }
    Ok(())
}

fn subfolders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(folder) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let folders =
        entries.filter_map(|entry| entry.ok()).filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    Ok(folders.map(|entry| entry.path()).collect())
}

fn remove_tree(folder: &Path) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    loop {
        match std::fs::remove_dir(folder) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) if e.raw_os_error() != Some(libc::EBUSY) || Instant::now() > deadline => return Err(e),
            Err(_) => {}
        }
        let children = subfolders(folder)?;
        for child in &children {
            remove_tree(child)?;
        }
        if children.is_empty() && !await_empty(folder, deadline)? {
            std::thread::sleep(pause);
            pause *= 2;
        }
    }
}

/// Waits until the kernel says that no process is left in a v2 cgroup, or until the deadline. False on v1, which has no
/// such event for a cgroup whose last process is gone but not yet forgotten.
fn await_empty(folder: &Path, deadline: Instant) -> io::Result<bool> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut events = match std::fs::File::open(folder.join("cgroup.events")) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(!folder.exists()),
        events => events?,
    };
    loop {
        let mut text = String::new();
        match events.rewind().and_then(|()| events.read_to_string(&mut text)) {
            // Removed meanwhile.
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => return Ok(true),
            result => result?,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if text.lines().any(|line| line == "populated 0") || left.is_zero() {
            return Ok(true);
        }
        let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
        match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&left)) {
            Err(rustix::io::Errno::INTR) | Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_tells_containers_apart() {
        // Any file system with trusted attributes will do.
        let folder = tempfile::tempdir().unwrap();
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        assert!(!is_marked(folder.path(), one.path()), "not marked yet");
        mark(folder.path(), one.path()).unwrap();
        assert!(is_marked(folder.path(), one.path()));
        assert!(is_marked(folder.path(), &one.path().join(".")), "however the path is written");
        assert!(!is_marked(folder.path(), other.path()));
    }

    #[test]
    fn names_are_relative_and_stay_below_the_root() {
        assert_eq!(name("a", None).unwrap(), "a");
        assert_eq!(name("a", Some(Path::new("/default/a"))).unwrap(), "default/a");
        assert_eq!(name("a", Some(Path::new("pod/a"))).unwrap(), "pod/a");
        assert!(name("a", Some(Path::new("/x/../../y"))).is_err());
        assert!(name("a", Some(Path::new("/"))).is_err());
        let systemd = name("a", Some(Path::new("system.slice:hybrid:a"))).unwrap_err();
        assert_eq!(systemd.kind(), Kind::Unimplemented);
    }
}
