//! How the kernel is to run a process: scheduler, I/O priority, CPUs, execution domain, memory policy.
use crate::harness::command::Output;
use crate::harness::{Case, Runtime, Test};
use anyhow::{Context, Result, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::{Value, json};
use std::fs;

pub const CASES: &[Case] = &[
    Case::new("scheduler", |test| {
        for (scheduler, shown) in [
            (json!({"policy": "SCHED_BATCH", "nice": 7}), "scheduler 3 0 7 0"),
            (
                json!({"policy": "SCHED_FIFO", "priority": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}),
                "scheduler 1 1 0 5",
            ),
            (json!({"policy": "SCHED_RR", "priority": 1}), "scheduler 2 0 0 1"),
            (json!({"policy": "SCHED_IDLE"}), "scheduler 5 0 "),
            (
                json!({"policy": "SCHED_DEADLINE", "runtime": 1_000_000, "deadline": 20_000_000, "period": 40_000_000,
                    "flags": ["SCHED_FLAG_RECLAIM", "SCHED_FLAG_DL_OVERRUN"]}),
                "deadline 1000000 20000000 40000000",
            ),
        ] {
            if has_real_time_groups() && ["SCHED_FIFO", "SCHED_RR"].iter().any(|policy| scheduler["policy"] == *policy)
            {
                refused(
                    test,
                    "/process/scheduler",
                    scheduler,
                    "process.scheduler: sched_setattr: operation not permitted",
                )?;
                continue;
            }
            shows(test, "/process/scheduler", scheduler, shown)?;
        }
        Ok(())
    })
    .hybrid_only(), // runc since 1.2
    Case::new("scheduler_refused", |test| {
        for (scheduler, field) in [
            (json!({"policy": "SCHED_OTHER", "nice": -21}), "process.scheduler.nice"),
            (json!({"policy": "SCHED_OTHER", "priority": 1}), "process.scheduler.priority"),
            (json!({"policy": "SCHED_NEW"}), "process.scheduler.policy"),
            (json!({"policy": "SCHED_FIFO", "priority": 100}), "process.scheduler"),
        ] {
            refused(test, "/process/scheduler", scheduler, field)?;
        }
        Ok(())
    })
    .hybrid_only(), // runc since 1.2
    Case::new("io_priority", |test| {
        for (class, priority, shown) in [
            ("IOPRIO_CLASS_BE", 6, "ioPriority 2 6"),
            ("IOPRIO_CLASS_RT", 0, "ioPriority 1 0"),
            ("IOPRIO_CLASS_IDLE", 0, "ioPriority 3 0"),
        ] {
            shows(test, "/process/ioPriority", json!({"class": class, "priority": priority}), shown)?;
        }
        refused(test, "/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 8}), "process.ioPriority")
    })
    .hybrid_only(), // runc since 1.2
    Case::new("personality", |test| {
        shows(test, "/linux/personality", json!({"domain": "LINUX32"}), &format!("machine {}", machine32()))?;
        shows(test, "/linux/personality", json!({"domain": "LINUX"}), &format!("machine {}", std::env::consts::ARCH))
    })
    .hybrid_only(), // runc since 1.2
    Case::new("memory_policy", |test| {
        for (policy, shown) in [
            (json!({"mode": "MPOL_BIND", "nodes": "0"}), "memoryPolicy 0x2 0x1"),
            (
                json!({"mode": "MPOL_INTERLEAVE", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]}),
                "memoryPolicy 0x8003 0x1",
            ),
            (json!({"mode": "MPOL_LOCAL"}), "memoryPolicy 0x4 0"),
            (json!({"mode": "MPOL_DEFAULT"}), "memoryPolicy 0 0"),
        ] {
            shows(test, "/linux/memoryPolicy", policy, shown)?;
        }
        refused(test, "/linux/memoryPolicy", json!({"mode": "MPOL_BIND"}), "linux.memoryPolicy.nodes")?;
        refused(test, "/linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "63"}), "linux.memoryPolicy")
    })
    .hybrid_only(), // runc since 1.4
    Case::new("of_the_container_and_its_processes", processes).hybrid_only(),
    Case::new("seen_from_the_host", seen_from_the_host).all().hybrid_only(),
    Case::new("cpus_of_a_bound_shim", bound_shim).all().hybrid_only(), // runc since 1.3
    Case::new("exec_cpu_affinity", affinity).hybrid_only(),            // runc since 1.3
];

/// What `uname` says of the machine to 32-bit programs.
fn machine32() -> &'static str {
    if cfg!(target_arch = "x86_64") { "i686" } else { "armv8l" }
}

/// Runs `probe scheduling` with a field set and looks for a line. Not through `ctr`, whose spec does not know all fields.
fn shows(test: &Test, field: &str, value: Value, line: &str) -> Result<()> {
    let task = test.task_of(test.spec(&["scheduling"])?.set(field, value.clone())?)?;
    task.wait().context("Wait")?;
    let output = task.stdout()?;
    ensure!(output.lines().any(|shown| shown.starts_with(line)), "{value}: not {line:?}: {output}");
    task.end()
}

/// Whether real-time policies take a budget of the cgroup's, which it has not by default (sched-rt-group.rst).
fn has_real_time_groups() -> bool {
    std::path::Path::new("/sys/fs/cgroup/cpu/cpu.rt_runtime_us").exists()
}

fn refused(test: &Test, pointer: &str, value: Value, field: &str) -> Result<()> {
    let direct = test.direct()?.config(&test.spec(&["scheduling"])?.set(pointer, value.clone())?)?;
    let server = direct.start()?;
    let error = server.create().err().with_context(|| format!("{value} is taken"))?.to_string();
    ensure!(error.contains(field), "{value}: {error}");
    server.shutdown()?;
    direct.remove()
}

/// A field of the spec, and a value.
type Field = (&'static str, fn() -> Value);

/// All of them.
const SET: [Field; 4] = [
    ("/process/scheduler", || json!({"policy": "SCHED_BATCH", "nice": 3})),
    ("/process/ioPriority", || json!({"class": "IOPRIO_CLASS_BE", "priority": 2})),
    ("/linux/personality", || json!({"domain": "LINUX32"})),
    ("/linux/memoryPolicy", || json!({"mode": "MPOL_PREFERRED", "nodes": "0"})),
];

/// A process that joins has the container's, unless its own spec says something else.
fn processes(test: &Test) -> Result<()> {
    let spec = SET.iter().try_fold(test.spec(&["pause"])?, |spec, (field, value)| spec.set(field, value()))?;
    let task = test.task_of(spec)?;
    let bare = |output: Output| -> Vec<String> { output.lines().iter().map(|line| (*line).to_owned()).collect() };
    let mut process = task.exec("like", &["scheduling"])?;
    for field in ["scheduler", "ioPriority"] {
        process.process.as_object_mut().context("an object")?.remove(field);
    }
    let lines = bare(process.run()?.exits(0)?);
    let has = |lines: &[String], line: &str| lines.iter().any(|found| found == line);
    let machine = format!("machine {}", machine32());
    for line in ["scheduler 3 0 3 0", "ioPriority 2 2", &machine, "memoryPolicy 0x1 0x1"] {
        ensure!(has(&lines, line), "not {line:?}: {lines:?}");
    }
    let other = task.exec("other", &["scheduling"])?.set("/scheduler", json!({"policy": "SCHED_OTHER", "nice": 1}))?;
    let lines = bare(other.run()?.exits(0)?);
    ensure!(has(&lines, "scheduler 0 0 1 0") && has(&lines, "ioPriority 2 2"), "{lines:?}");
    task.end()
}

/// The same for programs of every kind, by what the host's /proc says of init and of an exec'd process.
fn seen_from_the_host(test: &Test) -> Result<()> {
    let spec = SET.iter().try_fold(test.spec(&["pause"])?, |spec, (field, value)| spec.set(field, value()))?;
    let task = test.task_of(spec)?;
    let exec = task.exec("one", &["pause"])?.null_io();
    for pid in [task.pid, exec.spawn()?] {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).context("reading stat")?;
        // proc_pid_stat(5); fields are counted from the one after the name, which is the third.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        ensure!(fields[19 - 3] == "3" && fields[41 - 3] == "3", "nice and policy: {stat}");
        let personality = fs::read_to_string(format!("/proc/{pid}/personality")).context("reading personality")?;
        ensure!(u32::from_str_radix(personality.trim(), 16)? & 0xff == 8, "{personality}");
    }
    exec.kill(9).context("Kill")?;
    exec.finish()?;
    task.end()
}

/// A shim that is bound to some CPUs leaves its containers all that the cgroup has.
fn bound_shim(test: &Test) -> Result<()> {
    let own = sched_getaffinity(None).context("reading the own CPUs")?;
    let mut first = CpuSet::new();
    first.set((0..CpuSet::MAX_CPU).find(|cpu| own.is_set(*cpu)).context("a CPU")?);
    let all = allowed(std::process::id())?;
    // What is started from here has it too.
    sched_setaffinity(None, &first).context("binding this thread")?;
    let task = test.task(&["pause"]);
    sched_setaffinity(None, &own).context("freeing this thread")?;
    let task = task?;
    ensure!(allowed(task.pid)? == all, "init has {}", allowed(task.pid)?);
    let exec = task.exec("one", &["pause"])?.null_io();
    let pid = exec.spawn()?;
    ensure!(allowed(pid)? == all, "the exec'd process has {}", allowed(pid)?);
    exec.kill(9).context("Kill")?;
    exec.finish()?;
    task.end()
}

/// Only for processes that join; the one that starts the container has all CPUs.
fn affinity(test: &Test) -> Result<()> {
    let spec = test.spec(&["pause"])?.set("/process/execCPUAffinity", json!({"initial": "0", "final": "1"}))?;
    let task = test.task_of(spec)?;
    let all = allowed(std::process::id())?;
    ensure!(allowed(task.pid)? == all, "init has {}", allowed(task.pid)?);
    let mut cpus = Vec::new();
    for (id, affinity) in [
        ("last", Value::Null),
        ("own", json!({"initial": "1", "final": "0"})),
        ("first", json!({"initial": "0"})),
        ("empty", json!({"initial": "", "final": " 0-1, "})),
    ] {
        let mut exec = task.exec(id, &["scheduling"])?;
        let process = exec.process.as_object_mut().context("an object")?;
        if affinity.is_null() {
            process.remove("execCPUAffinity");
        } else {
            process.insert("execCPUAffinity".to_owned(), affinity);
        }
        let output = exec.run()?.exits(0)?;
        let line =
            output.lines().into_iter().find(|line| line.starts_with("cpus")).context("a line of CPUs")?.to_owned();
        cpus.push(line);
    }
    ensure!(cpus[0] == "cpus 1" && cpus[1] == "cpus 0" && cpus[3] == "cpus 0 1", "{cpus:?}");
    // The shim itself goes on as before.
    let server = fs::read_to_string(format!("/proc/{}/stat", task.pid)).context("reading stat")?;
    let parent =
        server.rsplit(')').next().unwrap_or_default().split_whitespace().nth(1).context("a parent")?.parse()?;
    ensure!(allowed(parent)? == all, "the shim has {}", allowed(parent)?);
    let wrong = task.exec("wrong", &["scheduling"])?.set("/execCPUAffinity", json!({"final": "4000"}))?;
    wrong.add().context("Exec")?;
    let error = wrong.start().err().context("it was started")?.to_string();
    ensure!(test.runtime() == Runtime::Runc || error.contains("process.execCPUAffinity.final"), "{error}");
    wrong.delete().context("Delete")?;
    task.end()
}

fn allowed(pid: u32) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).context("reading status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Ok(line.context("no CPUs")?.trim().to_owned())
}
