//! Tests of cgroups with real processes in them, on whichever version the host has. They need root.

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
const PATIENCE: Duration = Duration::from_secs(20);

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
    Cgroup::create(&Bundle::open("a", bundle)?)
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
    let before = (ticks(one), ticks(other));
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!((ticks(one), ticks(other)), before);
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
    let throttled = |stats: &Stats| match stats {
        Stats::V1(metrics) => metrics.cpu.as_ref().unwrap().throttling.throttled_periods,
        Stats::V2(metrics) => metrics.cpu.as_ref().unwrap().stat.nr_throttled,
    };
    runs(pid);
    eventually(|| throttled(&rig.cgroup().stats().unwrap()) > 0 && ticks(pid) > 5);
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
fn running_out_of_memory_is_told() {
    let mut rig = Rig::new(json!({"memory": {"limit": 16 << 20, "swap": 16 << 20}}));
    let watch = rig.cgroup().watch_oom().unwrap().unwrap();
    assert_eq!(watch.take().unwrap(), Oom::Nothing);
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
    let mut told = watch.is_priority();
    loop {
        if !told || watch.is_priority() {
            wait();
        }
        match watch.take().unwrap() {
            Oom::Killed => break,
            // v1: it is told first, and killed then. v2: a limit was hit, and nothing killed so far.
            Oom::Pending => told = true,
            Oom::Nothing => assert!(Instant::now() < deadline, "nothing is killed"),
            Oom::Gone => panic!("gone"),
        }
    }
    rig.wait();
    assert!(matches!(watch.take().unwrap(), Oom::Nothing | Oom::Pending), "once is enough");
    assert!(rig.cgroup().oom_killed());
    drop(rig);
    assert_eq!(watch.take().unwrap(), Oom::Gone);
}

#[test]
fn resources_change() {
    let mut rig = Rig::new(json!({"pids": {"limit": 10}, "memory": {"limit": 64 << 20}}));
    rig.run(BUSY);
    rig.update(json!({
        "pids": {"limit": 20},
        "memory": {"limit": 48 << 20, "reservation": 32 << 20},
        "cpu": {"shares": 512, "quota": 30000, "period": 50000, "cpus": "0"},
    }))
    .unwrap();
    let v2 = rig.cgroup().v2();
    assert_eq!(rig.read(Controllers::Pids, "pids.max", "pids.max"), "20");
    assert_eq!(rig.read(Controllers::Mem, "memory.limit_in_bytes", "memory.max"), (48 << 20).to_string());
    assert_eq!(rig.read(Controllers::Mem, "memory.soft_limit_in_bytes", "memory.low"), (32 << 20).to_string());
    assert_eq!(rig.read(Controllers::Cpu, "cpu.shares", "cpu.weight"), if v2 { "59" } else { "512" });
    assert_eq!(rig.read(Controllers::CpuSet, "cpuset.cpus", "cpuset.cpus"), "0");
    let quota = |rig: &Rig| match v2 {
        true => rig.read(Controllers::Cpu, "", "cpu.max"),
        false => ["cpu.cfs_quota_us", "cpu.cfs_period_us"].map(|file| rig.read(Controllers::Cpu, file, "")).join(" "),
    };
    assert_eq!(quota(&rig), "30000 50000");
    rig.update(json!({"cpu": {"quota": 20000}})).unwrap();
    assert_eq!(quota(&rig), "20000 50000");
    rig.update(json!({"cpu": {"period": 100000}})).unwrap();
    assert_eq!(quota(&rig), "20000 100000");
    rig.update(json!({"cpu": {"quota": -1}, "pids": {"limit": -1}})).unwrap();
    assert_eq!(quota(&rig), if v2 { "max 100000" } else { "-1 100000" });
    assert_eq!(rig.read(Controllers::Pids, "pids.max", "pids.max"), "max");
}

#[test]
fn what_depends_on_each_other_is_written_in_the_order_that_works() {
    // The parent's limit makes a difference to v1: no child may have a larger part of the CPU.
    let parent = Rig::new(json!({"cpu": {"quota": 50000, "period": 100000}}));
    let rig = Rig::at(&format!("/{}/b", parent.cgroup().groups.path()), json!({}));
    for (quota, period) in [(50_000, 100_000), (500_000, 1_000_000), (50_000, 100_000), (5_000, 10_000)] {
        rig.update(json!({"cpu": {"quota": quota, "period": period}})).unwrap();
    }
    rig.update(json!({"cpu": {"quota": 50_000, "period": 100_000, "burst": 40_000}})).unwrap();
    rig.update(json!({"cpu": {"quota": 5_000, "period": 10_000, "burst": 1_000}})).unwrap();
    rig.update(json!({"cpu": {"quota": 50_000, "period": 100_000, "burst": 40_000}})).unwrap();
    rig.update(json!({"cpu": {"idle": 1}})).unwrap();
    rig.update(json!({"cpu": {"idle": 0, "shares": 300}})).unwrap();
    let limits = |rig: &Rig| {
        let limit = rig.read(Controllers::Mem, "memory.limit_in_bytes", "memory.max");
        (limit, rig.read(Controllers::Mem, "memory.memsw.limit_in_bytes", "memory.swap.max"))
    };
    let mb = |mb: i64| json!(mb << 20);
    for (limit, swap) in [(64, 128), (16, 32), (128, 128), (32, 64)] {
        rig.update(json!({"memory": {"limit": mb(limit), "swap": mb(swap)}})).unwrap();
        let swap = if rig.cgroup().v2() { swap - limit } else { swap };
        assert_eq!(limits(&rig), (mb(limit).to_string(), mb(swap).to_string()));
    }
    let error = rig.update(json!({"memory": {"limit": mb(65)}})).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    rig.update(json!({"memory": {"limit": mb(48)}})).unwrap();
    rig.update(json!({"memory": {"limit": -1}})).unwrap();
    let unlimited = if rig.cgroup().v2() { "max" } else { "9223372036854771712" }.to_owned();
    assert_eq!(limits(&rig), (unlimited.clone(), unlimited));
}

#[test]
fn a_change_that_is_wrong_in_one_part_changes_nothing() {
    let mut rig = Rig::new(json!({
        "pids": {"limit": 10},
        "cpu": {"shares": 300, "quota": 20000, "period": 50000},
        "memory": {"limit": 64 << 20, "swap": 64 << 20},
    }));
    rig.run(LARGE);
    let used = |rig: &Rig| rig.read(Controllers::Mem, "memory.usage_in_bytes", "memory.current").parse().unwrap();
    eventually(|| 1 << 20 < used(&rig));
    let all = |rig: &Rig| {
        let v1 = [
            (Controllers::Pids, "pids.max"),
            (Controllers::Cpu, "cpu.shares"),
            (Controllers::Cpu, "cpu.cfs_quota_us"),
            (Controllers::Cpu, "cpu.cfs_period_us"),
            (Controllers::CpuSet, "cpuset.cpus"),
            (Controllers::Mem, "memory.limit_in_bytes"),
            (Controllers::Mem, "memory.memsw.limit_in_bytes"),
            (Controllers::Devices, "devices.list"),
        ];
        let v2 = ["pids.max", "cpu.weight", "cpu.max", "cpuset.cpus", "memory.max", "memory.swap.max"];
        let read = |(controller, file): (Controllers, &str)| {
            let text = rig.read(controller, file, file);
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            // The order in which exceptions are listed means nothing.
            lines.sort();
            lines
        };
        if rig.cgroup().v2() { v2.map(|file| read((Controllers::Cpu, file))).to_vec() } else { v1.map(read).to_vec() }
    };
    let before = all(&rig);
    let change = json!({
        "pids": {"limit": 20},
        "cpu": {"shares": 600, "quota": 30000, "period": 60000},
        "memory": {"limit": 48 << 20, "swap": 96 << 20},
        "devices": [{"allow": true, "access": "rwm"}],
    });
    // No such CPU; found out when others are written already.
    let mut wrong = change.clone();
    wrong["cpu"]["cpus"] = json!("4000");
    let error = rig.update(wrong).unwrap_err();
    assert!(error.to_string().contains("linux.resources.cpu.cpus"), "{error}");
    assert_eq!(all(&rig), before);
    // Found out when all but the memory is changed: v1 can't take away what is in use, v2 asks for that to be checked.
    let mut wrong = change.clone();
    wrong["memory"] = json!({"limit": 4096});
    if rig.cgroup().v2() {
        wrong["memory"]["checkBeforeUpdate"] = json!(true);
    }
    let error = rig.update(wrong).unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    assert!(error.to_string().contains("linux.resources.memory.limit"), "{error}");
    assert_eq!(all(&rig), before);
    rig.update(change).unwrap();
    assert_ne!(all(&rig), before);
}

#[test]
fn device_rules_change() {
    // 1:3 is /dev/null, which every container may use; 1:11 is /dev/kmsg.
    let deny = json!({"allow": false, "access": "rwm"});
    let kmsg = json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"});
    let mut rig = Rig::new(json!({"devices": [deny]}));
    let folder = tempfile::tempdir().unwrap();
    let script =
        "cd DIR; while :; do true < /dev/null || echo >> null; true < /dev/kmsg && touch yes || touch no; done";
    rig.run(&script.replace("DIR", folder.path().to_str().unwrap()));
    let is = |name: &str| {
        let _ = std::fs::remove_file(folder.path().join(name));
        eventually(|| folder.path().join(name).exists());
    };
    is("no");
    rig.update(json!({"devices": [deny, kmsg]})).unwrap();
    is("yes");
    rig.update(json!({"devices": [deny, kmsg]})).unwrap();
    rig.update(json!({"devices": []})).unwrap();
    is("yes");
    rig.update(json!({"devices": [deny]})).unwrap();
    is("no");
    rig.update(json!({"devices": [{"allow": true, "access": "rwm"}]})).unwrap();
    is("yes");
    rig.update(json!({"devices": [deny, kmsg]})).unwrap();
    is("yes");
    rig.update(json!({"devices": [deny]})).unwrap();
    is("no");
    assert!(!rig.cgroup().is_frozen().unwrap());
    assert!(!folder.path().join("null").exists(), "/dev/null was never denied");
}

#[test]
fn limits_below_what_is_in_use_are_refused_when_asked_to() {
    let mut rig = Rig::new(json!({"memory": {"limit": 64 << 20}}));
    rig.run(LARGE);
    let used = || rig.read(Controllers::Mem, "memory.usage_in_bytes", "memory.current").parse::<u64>().unwrap();
    eventually(|| used() > 1 << 20);
    for memory in [json!({"limit": 4096}), json!({"limit": 4096, "swap": 4096})] {
        let mut memory = memory;
        memory["checkBeforeUpdate"] = json!(true);
        let error = rig.update(json!({ "memory": memory })).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.to_string().contains("bytes in use"), "{error}");
    }
    rig.update(json!({"memory": {"limit": 63 << 20, "checkBeforeUpdate": true}})).unwrap();
}
