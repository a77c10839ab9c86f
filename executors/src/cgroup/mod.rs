//! A container's cgroup, v1 or v2: created with its limits, joined, signalled, frozen, measured, watched, removed.
//!
//! cgroups-rs knows the hierarchies and creates the groups; which files get which values is decided in [`limits`] (pure), and
//! the device rules of v2 in [`devices`]. With the [`systemd`] driver it is a unit's, which systemd creates and removes.

mod devices;
mod folders;
mod freeze;
mod limits;
#[cfg(test)]
mod on_the_kernel;
pub(crate) mod oom;
pub mod stats;
pub(crate) mod systemd;
mod update;

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use cgroups_rs::fs::{Cgroup as Groups, Controllers, hierarchies};
use rustix::fs::{Mode, OFlags};

use self::devices::Attached;
use self::folders::{collect_pids, get_mark, make_folder, mark_of, remove_made_parents, remove_tree, set_mark, write};
use self::limits::{Missing, Setting};
use self::systemd::Unit;
use crate::Kind;
use crate::bundle::Bundle;
use crate::error::{OrKind, Result, bail};
use crate::process::Unfinished;

/// A container's cgroup. [`Cgroup::remove`] removes it; dropping it does so too, without saying what went wrong.
pub(crate) struct Cgroup {
    groups: Groups,
    /// The unit of systemd's that it belongs to.
    unit: Option<Unit>,
    removed: bool,
    /// v2's device program, when this process attached it.
    attached: Mutex<Option<Attached>>,
    /// What keeps the unit until init is in it.
    placeholder: Mutex<Option<Unfinished>>,
    /// Whether nothing is born in it beside the placeholder, for its limit of processes.
    single: bool,
}

/// A cgroup as a container sees it under /sys/fs/cgroup.
pub(crate) struct Hierarchy {
    /// The folder's name below /sys/fs/cgroup, such as `cpu,cpuacct`; empty on v2.
    pub name: String,
    /// The container's own cgroup on the host.
    pub path: PathBuf,
}

impl Cgroup {
    /// A handle on the cgroup of a container's path, whether or not it exists. `systemd` is the runtime option SystemdCgroup;
    /// a path of the form `slice:prefix:name` is a unit's without it, too.
    ///
    /// # Errors
    /// InvalidArgument for what is no path, such as one with `..` in it, and no unit.
    pub fn load(id: &str, path: Option<&Path>, systemd: bool) -> Result<Cgroup> {
        Self::new(id, path, Unit::of(id, path, systemd)?)
    }

    /// Handles on all cgroups that a container of that path may have been given, whatever the runtime option was.
    ///
    /// # Errors
    /// As for [`Cgroup::load`].
    pub fn candidates(id: &str, path: Option<&Path>) -> Result<Vec<Cgroup>> {
        let mut candidates = vec![Self::load(id, path, false)?];
        if path.is_none_or(|path| path.as_os_str().is_empty()) && systemd::is_running() {
            candidates.push(Self::load(id, None, true)?);
        }
        Ok(candidates)
    }

    fn new(id: &str, path: Option<&Path>, unit: Option<Unit>) -> Result<Cgroup> {
        let name = match &unit {
            Some(unit) => unit.path().to_owned(),
            None => name(id, path)?,
        };
        let groups = Groups::load(hierarchies::auto(), name);
        Ok(Self {
            groups,
            unit,
            removed: true,
            attached: Mutex::default(),
            placeholder: Mutex::default(),
            single: false,
        })
    }

    /// Creates the cgroup with its limits, for the container of that bundle. `systemd` is as for [`Cgroup::load`].
    pub fn create(bundle: &Bundle, systemd: bool) -> Result<Cgroup> {
        let mut cgroup = Self::load(bundle.id(), bundle.linux().cgroups_path().as_deref(), systemd)?;
        if cgroup.unit.is_some() {
            systemd::require()?;
        }
        let resources = bundle.linux().resources().as_ref();
        if cgroup.exists() && !cgroup.pids()?.is_empty() {
            bail!(FailedPrecondition, "linux.cgroupsPath: {} has processes in it already", cgroup.groups.path());
        }
        // What is born in a frozen cgroup would never get ready. One that is frozen already is not ours to thaw.
        cgroup.refuse_frozen()?;
        let settings = limits::settings(resources, cgroup.groups.v2())?;
        if let Some(unit) = &cgroup.unit {
            let placeholder = unit.start(bundle, &settings, cgroup.v2())?;
            cgroup.single = limits::leave_one_process(&settings);
            cgroup.placeholder = Mutex::new(placeholder);
        }
        cgroup.removed = false;
        cgroup.make()?;
        // A new one is frozen where one above it is.
        cgroup.refuse_frozen()?;
        let mark = mark_of(bundle.path()).or_kind(Kind::Internal, || "find the bundle's path")?;
        for folder in cgroup.folders() {
            set_mark(&folder, &mark)
                .or_kind(Kind::Internal, || format!("mark cgroup {} as the container's", folder.display()))?;
        }
        for setting in &settings {
            cgroup.write(setting)?;
        }
        if cgroup.groups.v2() {
            let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
            let attached = Attached::new(cgroup.directory()?.as_fd(), devices::rules(rules))?;
            *cgroup.changing() = Some(attached);
        }
        Ok(cgroup)
    }

    /// Whether it exists in any hierarchy.
    pub fn exists(&self) -> bool {
        self.folders().iter().any(|folder| folder.exists())
    }

    /// Whether it was made for the container of the bundle at `bundle`. One without a mark was if nothing is in it: a shim
    /// that was killed while it made the cgroup had not come to marking it.
    pub fn is_of(&self, bundle: &Path) -> Result<bool> {
        let Ok(mark) = mark_of(bundle) else { return Ok(false) };
        let marks: Vec<Vec<u8>> = self.folders().iter().filter_map(|folder| get_mark(folder)).collect();
        Ok(marks.contains(&mark) || marks.is_empty() && self.pids()?.is_empty())
    }

    /// Whether the host has cgroup v2 only.
    pub fn v2(&self) -> bool {
        self.groups.v2()
    }

    /// On v2, the cgroup's folder for clone3(2) with CLONE_INTO_CGROUP: the process is born in it. On v1 a unit may have a
    /// folder of v2 as well.
    pub fn birth(&self) -> Result<Option<OwnedFd>> {
        if self.groups.v2() {
            return if self.is_full() { Ok(None) } else { self.directory().map(Some) };
        }
        self.unit.as_ref().and_then(Unit::hybrid_folder).map(|folder| open_folder(&folder)).transpose()
    }

    /// Whether systemd has made it.
    pub fn is_unit(&self) -> bool {
        self.unit.is_some()
    }

    /// Init is in it: nothing else has to be, to keep it.
    pub fn settled(&self) {
        drop(self.placeholder().take());
    }

    fn placeholder(&self) -> MutexGuard<'_, Option<Unfinished>> {
        self.placeholder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether only a process that exists gets into it: the limit of processes is for new ones.
    fn is_full(&self) -> bool {
        self.single && self.placeholder().is_some()
    }

    /// The cgroups that a further process of the container may be born in, best first: on v2 its own and, in case that one
    /// takes no processes because it hands controllers on, the one below it that init has moved to.
    pub fn births_beside(&self, init: u32) -> Result<Vec<OwnedFd>> {
        let Some(own) = self.birth()? else { return Ok(Vec::new()) };
        let mut births = vec![own];
        let entry = std::fs::read_to_string(format!("/proc/{init}/cgroup")).unwrap_or_default();
        let path = entry.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or_default();
        let name = Path::new("/").join(self.groups.path());
        if let (Ok(below), Some(folder)) = (Path::new(path).strip_prefix(&name), self.folders().first())
            && !below.as_os_str().is_empty()
        {
            // Gone again, perhaps: then the first one has to do.
            births.extend(open_folder(&folder.join(below)).ok());
        }
        Ok(births)
    }

    /// The files by which a process of one thread enters it by itself: one for each hierarchy of v1, and mostly none on v2,
    /// where it is born in it.
    pub fn task_files(&self) -> Result<Vec<OwnedFd>> {
        if self.v2() && !self.is_full() {
            return Ok(Vec::new());
        }
        self.open_each(if self.v2() { "cgroup.procs" } else { "tasks" })
    }

    fn open_each(&self, file: &str) -> Result<Vec<OwnedFd>> {
        let open = |folder: &PathBuf| {
            let path = folder.join(file);
            rustix::fs::open(&path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                .or_kind(Kind::Internal, || format!("open {}", path.display()))
        };
        self.folders().iter().map(open).collect()
    }

    /// The files by which a process with one thread enters it by itself, one for each hierarchy.
    pub fn process_files(&self) -> Result<Vec<OwnedFd>> {
        self.open_each("cgroup.procs")
    }

    /// The processes in it and below it, by their pids in the shim's namespace.
    pub fn pids(&self) -> Result<Vec<u32>> {
        let Some(folder) = self.process_folder() else { return Ok(Vec::new()) };
        let mut pids = Vec::new();
        collect_pids(&folder, &mut pids).or_kind(Kind::Internal, || format!("read pids of {}", folder.display()))?;
        Ok(pids)
    }

    /// Sends a signal to every process in it, until no process is left that has not got it. SIGKILL ends frozen ones too.
    ///
    /// With cgroup v2 SIGKILL goes to all at once (cgroup.kill); otherwise by pid, and a process that is forked meanwhile
    /// is found by looking again.
    pub fn signal(&self, signal: i32) -> Result<()> {
        if signal != libc::SIGKILL {
            return self.signal_each(signal, || {});
        }
        // Before Linux 5.14 there is no cgroup.kill.
        if self.groups.v2() && self.exists() && self.groups.kill().is_ok() {
            return Ok(());
        }
        let killed = self.signal_each(signal, || self.hold());
        self.thaw_to_die();
        killed
    }

    /// `hold` is called when processes appear while others are signalled.
    fn signal_each(&self, signal: i32, hold: impl Fn()) -> Result<()> {
        let mut signalled = HashSet::new();
        loop {
            let first = signalled.is_empty();
            let new: Vec<u32> = self.pids()?.into_iter().filter(|pid| signalled.insert(*pid)).collect();
            if new.is_empty() {
                return Ok(());
            }
            if !first {
                hold();
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
        if let Some(unit) = self.unit.as_ref().filter(|_| systemd::is_running()) {
            result = unit.stop();
        }
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

    /// Held by whoever freezes, thaws or changes it.
    fn changing(&self) -> MutexGuard<'_, Option<Attached>> {
        // The value is replaced whole, so a panic elsewhere leaves nothing half done.
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
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
        let Some(folder) = self.folders().into_iter().next() else {
            bail!(FailedPrecondition, "this host has no cgroups")
        };
        open_folder(&folder)
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

fn open_folder(folder: &Path) -> Result<OwnedFd> {
    rustix::fs::open(folder, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .or_kind(Kind::Internal, || format!("open cgroup {}", folder.display()))
}

/// Everything about a container's cgroup that is decided without looking at the host, for both versions.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn decide(id: &str, linux: &oci_spec::runtime::Linux) -> Result<()> {
    name(id, linux.cgroups_path().as_deref())?;
    let resources = linux.resources().as_ref();
    for v2 in [false, true] {
        limits::settings(resources, v2)?;
    }
    let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    devices::compile(&devices::rules(rules));
    Ok(())
}

/// The cgroup's name relative to each hierarchy's root (config-linux.md, "Cgroups Path").
fn name(id: &str, path: Option<&Path>) -> Result<String> {
    let Some(path) = path.filter(|path| !path.as_os_str().is_empty()) else { return Ok(id.to_owned()) };
    let text = path.to_string_lossy();
    if path.components().any(|component| component == Component::ParentDir) {
        bail!(InvalidArgument, "linux.cgroupsPath: {text} has .. in it");
    }
    let name = text.trim_matches('/');
    if name.is_empty() {
        bail!(InvalidArgument, "linux.cgroupsPath: {text} is the root");
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_relative_and_stay_below_the_root() {
        assert_eq!(name("a", None).unwrap(), "a");
        assert_eq!(name("a", Some(Path::new("/default/a"))).unwrap(), "default/a");
        assert_eq!(name("a", Some(Path::new("pod/a"))).unwrap(), "pod/a");
        assert!(name("a", Some(Path::new("/x/../../y"))).is_err());
        assert!(name("a", Some(Path::new("/"))).is_err());
    }
}
