//! The search for what a test left behind.
//!
//! Tests run beside each other, so after each the search is for what bears its container's id; what bears no id
//! (sockets, a process that left its cgroup) is found by comparing two [`Snapshot`]s when nothing else runs.
use super::{Containerd, NAMESPACE, PATIENCE, Runtime, limit};
use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Fails, naming them, when anything is left of the containers whose ids begin with `id`.
///
/// A shim ends on its own after its last container was deleted, so its processes get the time to.
pub fn none_of(containerd: &Containerd, id: &str) -> Result<()> {
    for process in Process::all()? {
        if process.mentions(id) {
            process.wait_for_end().with_context(|| format!("left behind: process {}", process.text))?;
        }
    }
    let left: Vec<String> = Snapshot::take(&[containerd])?.0.into_iter().filter(|item| item.contains(id)).collect();
    ensure!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    Ok(())
}

/// Folders that are made once and belong to no container.
const SHARED: [&str; 7] = [
    "containerd/s",
    "containerd/fifo",
    "containerd/runc",
    "containerd/runc/test",
    "containerd/runc/k8s.io",
    "io.containerd.runtime.v2.task/test",
    "io.containerd.runtime.v2.task/k8s.io",
];

/// Removes the cgroup that is named after the tests' namespace from every hierarchy; fails when one is in use.
pub fn remove_namespace_cgroups() -> Result<()> {
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), &mut |path, folder| {
        if folder && path.ends_with(NAMESPACE) {
            found.push(path.to_owned());
        }
    })?;
    found.iter().try_for_each(|path| fs::remove_dir(path).with_context(|| format!("removing {}", path.display())))
}

/// Thaws the cgroups whose paths contain `id`: what is frozen outlives its SIGKILL.
pub fn thaw(id: &str) -> Result<()> {
    let mut found = Vec::new();
    walk(Path::new("/sys/fs/cgroup"), &mut |path, _| {
        let switch =
            [("freezer.state", "THAWED"), ("cgroup.freeze", "0")].into_iter().find(|(name, _)| path.ends_with(name));
        if let Some((_, value)) = switch.filter(|_| path.to_string_lossy().contains(id)) {
            found.push((path.to_owned(), value));
        }
    })?;
    found
        .iter()
        .try_for_each(|(path, value)| fs::write(path, value).with_context(|| format!("writing {}", path.display())))
}

/// Everything a container or a shim could leave, as text: processes, mounts, cgroups, sockets, fifos and files.
pub struct Snapshot(BTreeSet<String>);

impl Snapshot {
    pub fn take(containerds: &[&Containerd]) -> Result<Snapshot> {
        let mut items = BTreeSet::new();
        // The tests' own programs come and go (ctr, containerd), their threads wait for them.
        let own = std::process::id();
        for process in Process::all()? {
            // The kernel's come and go too, where they are in sight.
            let counts = !process.is_kernel_thread && process.parent != own && process.pid != own && process.pid != 1;
            if counts {
                items.insert(format!("process {}", process.text));
            }
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
        for mount in mounts.lines() {
            let fields: Vec<&str> = mount.split(' ').collect();
            items.insert(format!("mount {}", fields.get(4).unwrap_or(&mount)));
        }
        walk(Path::new("/sys/fs/cgroup"), &mut |path, folder| {
            // runc, like others, leaves the cgroup above those of its containers in place.
            if folder && !path.ends_with(NAMESPACE) {
                items.insert(format!("cgroup {}", path.display()));
            }
        })?;
        let mut folders = vec![PathBuf::from("/run/containerd")];
        folders.extend(containerds.iter().flat_map(|containerd| containerd.task_folders()));
        for folder in folders {
            walk(&folder, &mut |path, _| {
                if SHARED.iter().any(|shared| path.ends_with(shared)) {
                    return;
                }
                items.insert(format!("file {}", path.display()));
            })?;
        }
        Ok(Snapshot(items))
    }

    /// What is there now and was not before.
    pub fn since(&self, before: &Snapshot) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// Waits until nothing is there that was not there `before`, or fails with the list of it.
pub fn none_since(before: &Snapshot, containerds: &[&Containerd]) -> Result<()> {
    for process in Process::all()? {
        process.wait_for_shim().with_context(|| format!("left behind: process {}", process.text))?;
    }
    let mut left = Snapshot::take(containerds)?.since(before);
    if containerds.iter().all(|containerd| containerd.runtime == Runtime::Runc) {
        // runc's shim leaves the socket of a group, and of a bundle that containerd does not know, to nobody.
        left.retain(|item| !item.starts_with("file /run/containerd/s/"));
    }
    ensure!(left.is_empty(), "left behind:\n  {}", left.join("\n  "));
    Ok(())
}

/// A process of this pid namespace that has not ended.
pub struct Process {
    pub pid: u32,
    pub parent: u32,
    name: String,
    is_kernel_thread: bool,
    /// Its pid, command line and cgroups, for a search and for the reader.
    text: String,
}

impl Process {
    pub fn all() -> Result<Vec<Process>> {
        let mut all = Vec::new();
        for entry in fs::read_dir("/proc").context("reading /proc")? {
            let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            // Gone between the listing and the look: nothing to see.
            all.extend(Process::of(pid));
        }
        Ok(all)
    }

    /// The process `pid`, unless it has ended.
    pub fn of(pid: u32) -> Option<Process> {
        let folder = PathBuf::from(format!("/proc/{pid}"));
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        // "pid (name) state parent …": the name can hold spaces and parentheses.
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        let mut rest = rest.split_whitespace();
        let (state, parent) = (rest.next()?, rest.next()?.parse().ok()?);
        if matches!(state, "Z" | "X") {
            return None;
        }
        let cmdline = fs::read(folder.join("cmdline")).ok()?;
        let is_kernel_thread = cmdline.is_empty();
        let cmdline = String::from_utf8_lossy(&cmdline).replace('\0', " ");
        let cgroup = fs::read_to_string(folder.join("cgroup")).ok()?;
        let last = cgroup.lines().filter_map(|line| line.rsplit(':').next()).max_by_key(|path| path.len());
        let text = format!("{pid} ({name}) {cmdline}in cgroup {}", last.unwrap_or_default());
        Some(Process { pid, parent, name: name.to_owned(), is_kernel_thread, text })
    }

    /// The one process of this name whose command line or cgroup contains `id`.
    pub fn mentioning(id: &str, name: &str) -> Result<Process> {
        let found = Process::all()?.into_iter().find(|process| process.mentions(id) && process.name.starts_with(name));
        found.with_context(|| format!("no {name} with {id}"))
    }

    /// The processor time the process has used (proc_pid_stat(5): utime and stime, in 1/100 s).
    pub fn cpu_time(pid: u32) -> Result<Duration> {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let (_, rest) = stat.rsplit_once(')').context("a name in parentheses")?;
        let ticks: Vec<u64> = rest.split_whitespace().skip(11).take(2).map_while(|ticks| ticks.parse().ok()).collect();
        ensure!(ticks.len() == 2, "no times in {stat}");
        Ok(Duration::from_millis(ticks.iter().sum::<u64>() * 10))
    }

    /// Waits for the process to end, if it is a shim: one that was asked to shut down.
    pub fn wait_for_shim(&self) -> Result<()> {
        // By its name, because a server that was forked and not executed keeps the command line of its start.
        if self.name.starts_with("containerd-shim") { self.wait_for_end() } else { Ok(()) }
    }

    /// Whether its command line or a cgroup of it contains `id`.
    pub fn mentions(&self, id: &str) -> bool {
        self.text.contains(id)
    }

    /// Kills the process and waits for its end.
    pub fn kill(&self) -> Result<()> {
        let pid = Pid::from_raw(self.pid as i32).context("a pid is positive")?;
        kill_process(pid, Signal::KILL).with_context(|| format!("killing {}", self.text))?;
        self.wait_for_end()
    }

    /// Waits for the process to end by itself.
    pub fn wait_for_end(&self) -> Result<()> {
        let pid = Pid::from_raw(self.pid as i32).context("a pid is positive")?;
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            // EINVAL: it is being reaped at this moment.
            Err(Errno::SRCH | Errno::INVAL) => return Ok(()),
            other => other.context("pidfd_open")?,
        };
        let patience = Timespec { tv_sec: limit(PATIENCE / 6).as_secs() as i64, tv_nsec: 0 };
        let ended = poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&patience)).context("poll")?;
        ensure!(ended == 1, "still there after {} s", patience.tv_sec);
        Ok(())
    }
}

/// Calls `see` with every path below `folder` and whether it is a folder; what vanishes meanwhile is passed over.
fn walk(folder: &Path, see: &mut impl FnMut(&Path, bool)) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if matches!(error.raw_os_error(), Some(2 | 19)) => return Ok(()), // ENOENT, ENODEV of a cgroup
        other => other.with_context(|| format!("reading {}", folder.display()))?,
    };
    for entry in entries {
        let Ok(entry) = entry else { continue };
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        see(&entry.path(), is_folder);
        // A container's root file system is the snapshotter's and not the shim's; its mount would be seen as one.
        if is_folder && entry.file_name() != "rootfs" {
            walk(&entry.path(), see)?;
        }
    }
    Ok(())
}
