//! Tests of cgroups with real processes in them, on whichever version the host has. They need root.

mod update;

use std::io::Write;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cgroups_rs::fs::Controllers;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use super::Cgroup;
use super::folders::subfolders;
use super::oom::Oom;
use super::stats::Stats;
use crate::bundle::Bundle;
use crate::{Kind, Result};

/// What takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

const BUSY: &str = "while :; do :; done";

/// Busy, and holds a megabyte: what a process has in memory when it is moved is not counted here.
const LARGE: &str = "exec /bin/sh -c 'x=$(head -c 1M /dev/zero | tr \\\\0 x); while :; do :; done'";

/// A cgroup as a container has it, and processes in it.
struct Rig {
    // Dropped first: it kills the processes.
    cgroup: Option<Cgroup>,
    processes: Vec<Child>,
    bundle: tempfile::TempDir,
}

fn bundle(path: &str, resources: Value) -> tempfile::TempDir {
    let config = json!({
        "ociVersion": "1.1.0",
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/"},
        "root": {"path": "rootfs"},
        "linux": {"namespaces": [{"type": "mount"}], "cgroupsPath": path, "resources": resources},
    });
    let bundle = tempfile::tempdir().unwrap();
    std::fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
    bundle
}

fn create(bundle: &Path) -> Result<Cgroup> {
    Cgroup::create(&Bundle::open("a", bundle)?, false)
}

impl Rig {
    fn new(resources: Value) -> Rig {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("hybrid-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Rig::at(&format!("/{name}/a"), resources)
    }

    fn at(path: &str, resources: Value) -> Rig {
        let bundle = bundle(path, resources);
        let cgroup = create(bundle.path()).unwrap();
        Rig { cgroup: Some(cgroup), processes: Vec::new(), bundle }
    }

    fn cgroup(&self) -> &Cgroup {
        self.cgroup.as_ref().unwrap()
    }

    /// Runs a shell script in the cgroup, or in a folder below it; its pid.
    fn run_in(&mut self, below: &str, script: &str) -> u32 {
        let mut child = Command::new("/bin/sh")
            .args(["-c", &format!("read go; {script}")])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for folder in self.cgroup().folders() {
            let folder = folder.join(below);
            std::fs::create_dir_all(&folder).unwrap();
            for file in ["cpuset.cpus", "cpuset.mems"] {
                // A new v1 cpuset has none.
                if let Ok(text) = std::fs::read_to_string(folder.parent().unwrap().join(file)) {
                    let _ = std::fs::write(folder.join(file), text);
                }
            }
            std::fs::write(folder.join("cgroup.procs"), child.id().to_string()).unwrap();
        }
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        let pid = child.id();
        self.processes.push(child);
        pid
    }

    fn run(&mut self, script: &str) -> u32 {
        self.run_in("", script)
    }

    fn folder(&self, controller: Controllers) -> PathBuf {
        self.cgroup().controller_folder(&(!self.cgroup().v2()).then_some(controller)).unwrap()
    }

    fn read(&self, controller: Controllers, v1: &str, v2: &str) -> String {
        let file = self.folder(controller).join(if self.cgroup().v2() { v2 } else { v1 });
        std::fs::read_to_string(&file).unwrap_or_else(|e| panic!("{}: {e}", file.display())).trim().to_owned()
    }

    fn update(&self, resources: Value) -> Result<()> {
        self.cgroup().update(&serde_json::from_value(resources).unwrap())
    }

    /// The memory in use, in bytes.
    fn used(&self) -> u64 {
        self.read(Controllers::Mem, "memory.usage_in_bytes", "memory.current").parse().unwrap()
    }

    /// Waits until all processes have ended.
    fn wait(&mut self) {
        for process in &mut self.processes {
            eventually(|| process.try_wait().unwrap().is_some());
        }
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        drop(self.cgroup.take());
        for process in &mut self.processes {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn eventually(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The ticks of CPU time that a process has used (proc_pid_stat(5)).
fn ticks(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let words: Vec<&str> = text.rsplit(')').next().unwrap().split_ascii_whitespace().collect();
    words[11].parse::<u64>().unwrap() + words[12].parse::<u64>().unwrap()
}

fn runs(pid: u32) {
    let before = ticks(pid);
    eventually(|| ticks(pid) > before);
}

#[test]
fn a_frozen_cgroup_stands_still_and_goes_on() {
    let mut rig = Rig::new(json!({}));
    let (one, other) = (rig.run(BUSY), rig.run_in("below", BUSY));
    runs(one);
    runs(other);
    rig.cgroup().freeze().unwrap();
    assert!(rig.cgroup().is_frozen().unwrap());
    // A tick may still be counted for the way into the freezer.
    let before = ticks(one) + ticks(other);
    std::thread::sleep(Duration::from_millis(300));
    assert!(ticks(one) + ticks(other) <= before + 2);
    rig.cgroup().freeze().unwrap();
    rig.cgroup().thaw().unwrap();
    rig.cgroup().thaw().unwrap();
    runs(one);
    runs(other);
}

#[test]
fn frozen_processes_are_killed() {
    let mut rig = Rig::new(json!({}));
    let pid = rig.run(BUSY);
    rig.run_in("below", BUSY);
    runs(pid);
    // One below is frozen for itself, too.
    super::freeze::set(&rig.folder(Controllers::Freezer).join("below"), rig.cgroup().v2(), true).unwrap();
    rig.cgroup().freeze().unwrap();
    rig.cgroup().signal(libc::SIGKILL).unwrap();
    rig.wait();
}

#[test]
fn a_dropped_or_cleaned_cgroup_takes_its_frozen_processes_along() {
    for clean in [false, true] {
        let mut rig = Rig::new(json!({}));
        rig.run_in("below", BUSY);
        super::freeze::set(&rig.folder(Controllers::Freezer).join("below"), rig.cgroup().v2(), true).unwrap();
        rig.cgroup().freeze().unwrap();
        let folders = rig.cgroup().folders();
        let cgroup = rig.cgroup.take().unwrap();
        if clean {
            // As a shim that was killed leaves it.
            std::mem::forget(cgroup);
            crate::clean("a", rig.bundle.path()).unwrap();
        } else {
            drop(cgroup);
        }
        rig.wait();
        assert!(folders.iter().all(|folder| !folder.exists()));
    }
}

#[test]
fn what_forks_while_it_is_killed_is_killed_too() {
    let mut rig = Rig::new(json!({"pids": {"limit": 300}}));
    rig.run("while :; do (while :; do :& done) & done");
    eventually(|| rig.cgroup().pids().unwrap().len() > 50);
    rig.cgroup().signal(libc::SIGKILL).unwrap();
    rig.wait();
    eventually(|| rig.cgroup().pids().unwrap().is_empty());
}

#[test]
fn a_frozen_cgroup_is_no_place_for_a_new_container() {
    let rig = Rig::new(json!({}));
    let path = format!("/{}", rig.cgroup().groups.path());
    rig.cgroup().freeze().unwrap();
    for path in [path.clone(), format!("{path}/below")] {
        let other = bundle(&path, json!({}));
        let error = create(other.path()).map(drop).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
        assert!(error.to_string().contains("frozen"), "{error}");
    }
    assert!(rig.cgroup().is_frozen().unwrap(), "it is left as it was");
    assert!(subfolders(&rig.folder(Controllers::Freezer)).unwrap().is_empty(), "nothing is left in it");
}

#[test]
fn what_is_gone_is_not_found() {
    let rig = Rig::new(json!({}));
    for folder in rig.cgroup().folders() {
        std::fs::remove_dir(folder).unwrap();
    }
    let cgroup = rig.cgroup();
    assert_eq!(cgroup.freeze().unwrap_err().kind(), Kind::NotFound);
    cgroup.thaw().unwrap();
    assert_eq!(cgroup.stats().unwrap_err().kind(), Kind::NotFound);
    assert_eq!(rig.update(json!({"pids": {"limit": 5}})).unwrap_err().kind(), Kind::NotFound);
    assert_eq!(cgroup.watch_oom().map(drop).unwrap_err().kind(), Kind::NotFound);
}

#[test]
fn a_busy_process_is_counted() {
    let mut rig = Rig::new(json!({
        "pids": {"limit": 10},
        "memory": {"limit": 64 << 20},
        "cpu": {"quota": 20000, "period": 100000},
    }));
    let pid = rig.run(LARGE);
    // The time of a period is counted when it is over.
    let throttled = |stats: &Stats| match stats {
        Stats::V1(metrics) => metrics.cpu.as_ref().unwrap().throttling.throttled_time,
        Stats::V2(metrics) => metrics.cpu.as_ref().unwrap().stat.throttled_usec,
    };
    runs(pid);
    // Until it is alone, and has all its memory.
    eventually(|| throttled(&rig.cgroup().stats().unwrap()) > 0 && ticks(pid) > 5);
    eventually(|| rig.used() > 1 << 20 && rig.read(Controllers::Pids, "pids.current", "pids.current") == "1");
    match rig.cgroup().stats().unwrap() {
        Stats::V1(metrics) => {
            let (pids, cpu, memory) = (metrics.pids.unwrap(), metrics.cpu.unwrap(), metrics.memory.unwrap());
            assert_eq!((pids.current, pids.limit), (1, 10));
            assert!(
                cpu.usage.total > 10_000_000 && cpu.usage.total == cpu.usage.per_cpu.iter().sum::<u64>(),
                "{cpu:?}"
            );
            assert!(cpu.usage.user + cpu.usage.kernel > 0 && cpu.throttling.throttled_time > 0, "{cpu:?}");
            assert_eq!((memory.usage.limit, memory.stat.hierarchical_memory_limit), (64 << 20, 64 << 20));
            assert!(memory.usage.usage > 0 && memory.usage.max >= memory.usage.usage, "{memory:?}");
            assert!(memory.stat.total_rss > 0 && memory.stat.pg_fault > 0, "{memory:?}");
            assert_eq!(metrics.memory_oom_control.unwrap().oom_kill, 0);
            assert!(metrics.blkio.is_some());
        }
        Stats::V2(metrics) => {
            let (pids, cpu, memory) = (metrics.pids.unwrap(), metrics.cpu.unwrap(), metrics.memory.unwrap());
            assert_eq!((pids.current, pids.limit), (1, 10));
            assert!(cpu.stat.usage_usec > 10_000 && cpu.stat.user_usec + cpu.stat.system_usec > 0, "{cpu:?}");
            assert!(cpu.stat.throttled_usec > 0 && cpu.psi.unwrap().some.is_some(), "{cpu:?}");
            assert_eq!((memory.usage_limit, memory.swap_max_usage), (64 << 20, 0));
            assert!(memory.usage > 0 && memory.stat.anon > 0 && memory.stat.pgfault > 0, "{memory:?}");
            assert_eq!(metrics.memory_events.unwrap().oom_kill, 0);
            assert!(metrics.io.unwrap().psi.is_some() && !metrics.hugetlb.is_empty());
        }
    }
}

#[test]
fn running_out_of_memory_is_known_above_when_the_cgroup_is_gone() {
    let limits = json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}});
    let name = format!("hybrid-test-{}-above", std::process::id());
    let [mut rig, other] = ["a", "b"].map(|child| Rig::at(&format!("/{name}/{child}"), limits.clone()));
    let [watch, others] = [&rig, &other].map(|rig| rig.cgroup().watch_oom().unwrap().unwrap());
    rig.run("head -c 64M /dev/zero | tail");
    rig.wait();
    drop(rig);
    assert_eq!(watch.take(false).unwrap(), Oom::Gone, "nothing says that it was this one");
    // v1 counts each cgroup's own.
    let known = if watch.is_priority() { Oom::Killed } else { Oom::Gone };
    assert_eq!(watch.take(true).unwrap(), known);
    assert_eq!(watch.take(true).unwrap(), Oom::Gone, "once is enough");
    assert_eq!(others.take(true).unwrap(), Oom::Nothing);
}

#[test]
fn running_out_of_memory_is_told() {
    let mut rig = Rig::new(json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}}));
    let watch = rig.cgroup().watch_oom().unwrap().unwrap();
    assert_eq!(watch.take(false).unwrap(), Oom::Nothing);
    // tail keeps what has no end of line.
    rig.run("head -c 64M /dev/zero | tail");
    let flags = if watch.is_priority() { PollFlags::PRI } else { PollFlags::IN };
    let wait = || {
        let mut fds = [PollFd::from_borrowed_fd(watch.as_fd(), flags)];
        let timeout = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
        assert_eq!(poll(&mut fds, Some(&timeout)).unwrap(), 1, "nothing is told");
        assert!(fds[0].revents().contains(flags));
    };
    let deadline = Instant::now() + PATIENCE;
    let mut told = false;
    loop {
        if !told {
            wait();
        }
        match watch.take(false).unwrap() {
            Oom::Killed => break,
            // v1: it is told once, and killed then.
            Oom::Pending => told = true,
            // v2: a limit was hit.
            Oom::Nothing => assert!(watch.is_priority(), "what is pending stays so"),
            Oom::Gone => panic!("gone"),
        }
        assert!(Instant::now() < deadline, "nothing is killed");
    }
    rig.wait();
    assert!(matches!(watch.take(false).unwrap(), Oom::Nothing | Oom::Pending), "once is enough");
    assert!(rig.cgroup().oom_killed());
    drop(rig);
    assert_eq!(watch.take(false).unwrap(), Oom::Gone);
}
