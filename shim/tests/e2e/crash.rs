//! The shim's server is killed, at any moment: `delete` kills what it left, removes what it made, and tells how init
//! ended, if that can be known.
use crate::harness::direct::Server;
use crate::harness::fifos::Fifos;
use crate::harness::leaks::Process;
use crate::harness::task::Task;
use crate::harness::{Case, Kind, Run, Runtime, Test};
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::time::Duration;

pub const CASES: &[Case] = &[
    Case::new("created", |test| crashed(test.created(test.spec(&["pause"])?, |_| ())?, test, 137)).all(),
    Case::new("running", |test| crashed(test.task(&["pause"])?, test, 137)).all(),
    Case::new("paused", |test| {
        let task = test.task(&["pause"])?;
        task.pause().context("Pause")?;
        crashed(task, test, 137)
    })
    .all(),
    Case::new("without_a_mount_namespace", |test| {
        let spec = crate::namespaces::without_mounts(test.spec(&["pause"])?)?;
        let rootfs = spec.value["root"]["path"].as_str().context("root.path")?.to_owned();
        let task = test.task_of(spec)?;
        let rootfs = task.server.bundle().join(rootfs);
        crashed(task, test, 137)?;
        let mountinfo = std::fs::read_to_string("/proc/self/mountinfo").context("mountinfo")?;
        ensure!(!mountinfo.contains(&*rootfs.to_string_lossy()), "{mountinfo}");
        Ok(())
    })
    .hybrid_only(),
    Case::new("stopped", |test| {
        let task = test.task(&["exit", "7"])?;
        ensure!(task.wait().context("Wait")?.exit_status == test.kind.code(7) as u32, "exit status");
        crashed(task, test, test.kind.code(7) as u32)
    })
    .all()
    .hybrid_only(), // runc's answers 137, whatever it was
    Case::new("stopped_by_a_signal", |test| {
        let task = test.task(&["pause"])?;
        task.kill(9).context("Kill")?;
        task.wait().context("Wait")?;
        crashed(task, test, 137)
    })
    .all(),
    Case::new("with_execs", |test| {
        let task = test.task(&["pause"])?;
        let mut execs = Vec::new();
        for number in 0..3 {
            let mut exec = task.exec(&format!("exec-{number}"), &["pause"])?;
            let pid = exec.spawn()?;
            exec.io()?.stdout.wait_for("ready")?;
            execs.push((pid, exec));
        }
        let added = task.exec("added", &["pause"])?;
        added.add().context("Exec")?;
        let (pids, fifos): (Vec<u32>, Vec<Option<Fifos>>) =
            execs.into_iter().map(|(pid, exec)| (pid, exec.fifos)).unzip();
        drop(added);
        crashed(task, test, 137)?;
        for pid in pids {
            ensure!(Process::of(pid).is_none(), "an exec still runs");
        }
        // Nobody holds what the clients read.
        fifos.iter().flatten().try_for_each(|fifos| fifos.to_end().map(drop))
    })
    .all(),
    Case::new("with_execs_in_a_shared_pid_namespace", |test| {
        let task = test.task_of(crate::exec::shared_pids(test, &["children", "3"])?)?;
        let exec = task.exec("one", &["children", "3"])?;
        let pid = exec.spawn()?;
        drop(exec);
        crashed(task, test, 137)?;
        ensure!(Process::of(pid).is_none(), "an exec still runs");
        Ok(())
    }),
    Case::new("with_a_terminal", |test| {
        let io = Fifos::new(test.containerd)?;
        let spec = test.spec(&["pause"])?.set("/process/terminal", serde_json::json!(true))?;
        let task = test.created(spec, |request| {
            request.terminal = true;
            io.name(request);
        })?;
        task.start().context("Start")?;
        io.stdout.wait_for("ready")?;
        crashed(task, test, 137)?;
        io.stdout.to_end().map(drop)
    })
    .all(),
    Case::new("init_dies_with_it", |test| {
        let task = test.task(&["pause"])?;
        let shim = task.connected().context("Connect")?.shim_pid;
        // Both before anyone could have noticed the other.
        for pid in [shim, task.pid] {
            kill(pid, Signal::STOP)?;
        }
        for pid in [task.pid, shim] {
            kill(pid, Signal::KILL)?;
        }
        cleaned(task, test, 137)
    })
    .all(),
    Case::new("in_the_middle_of_create", middle_of_create).all().hybrid_only(), // runc goes on without its shim
    Case::new("running_under_containerd", |test| under_containerd(test, false)).all(),
    Case::new("paused_under_containerd", |test| under_containerd(test, true)).all(),
    Case::new("group_under_containerd", group),
    Case::new("stopped_under_containerd", |test| {
        test.run(&["exit", "7"]).flags(&["--null-io"]).detach()?;
        let exit = test.containerd.events.wait_for(&test.id, "/tasks/exit")?;
        ensure!(exit.fields["exit_status"] == test.kind.code(7), "{exit:?}");
        Process::mentioning(&test.id, "containerd-shim")?.kill()?;
        gone(test, &test.id)
    })
    .all(),
];

fn kill(pid: u32, signal: Signal) -> Result<()> {
    kill_process(Pid::from_raw(pid as i32).context("a pid is positive")?, signal).context("sending a signal")
}

/// Kills the task's server, then does as containerd does.
fn crashed(task: Task, test: &Test, code: u32) -> Result<()> {
    let shim = task.connected().context("Connect")?.shim_pid;
    Process::of(shim).context("the shim has ended")?.kill()?;
    cleaned(task, test, code)
}

/// `delete` answers with the code, and nothing is left; twice, as after a crash of containerd.
fn cleaned(task: Task, test: &Test, code: u32) -> Result<()> {
    let response = task.direct.delete()?;
    ensure!(response.exit_status == code && response.pid == task.pid, "{response:?}, init was {}", task.pid);
    ensure!(response.exited_at.seconds > 0, "{response:?}");
    Process::of(task.pid).map_or(Ok(()), |init| init.wait_for_end()).context("init still runs")?;
    task.direct.delete().context("the second delete")?;
    let socket = task.server.socket();
    ensure!(test.runtime() == Runtime::Runc || !socket.exists(), "left behind: {}", socket.display());
    task.direct.remove()
}

/// At a dozen moments of it.
fn middle_of_create(test: &Test) -> Result<()> {
    for round in 0..12 {
        let id = test.other(&round.to_string());
        let direct = crate::harness::direct::Direct::new(test.containerd, test.runtime(), &id)?;
        let spec = crate::harness::spec::Spec::default(test.containerd, test.kind, &id, &["pause"])?;
        let direct = direct.config(&spec)?;
        let server: Server = direct.start()?;
        let shim = server.connected().context("Connect")?.shim_pid;
        std::thread::scope(|scope| {
            let create = scope.spawn(|| server.create());
            // Not awaited: the moment is what differs.
            std::thread::sleep(Duration::from_micros(700 * round));
            let killed = Process::of(shim).context("the shim has ended").and_then(|shim| shim.kill());
            // Answered, or broken off.
            let _ = create.join().expect("Create does not panic");
            killed
        })?;
        let response = direct.delete().with_context(|| format!("round {round}"))?;
        ensure!(response.exit_status == 137, "{response:?}");
        crate::harness::leaks::none_of(test.containerd, &id).with_context(|| format!("round {round}"))?;
        direct.remove()?;
    }
    Ok(())
}

/// containerd notices, runs `delete`, and tells its clients.
fn under_containerd(test: &Test, paused: bool) -> Result<()> {
    test.run(&["pause"]).flags(&["--null-io"]).detach()?;
    let pid = test.pid(&test.id)?;
    if paused {
        test.ctr(["tasks", "pause", &test.id]).done()?;
    }
    let shim = Process::of(pid).context("init has ended")?.parent;
    Process::of(shim).context("the shim has ended")?.kill()?;
    let exit = test.containerd.events.wait_for(&test.id, "/tasks/exit")?;
    ensure!(exit.fields["exit_status"] == 137 && exit.fields["pid"] == pid, "init was {pid}: {exit:?}");
    Process::of(pid).map_or(Ok(()), |init| init.wait_for_end()).context("init still runs")?;
    gone(test, &test.id)
}

/// The task is no longer listed, once containerd has cleaned up; its container can be deleted.
fn gone(test: &Test, id: &str) -> Result<()> {
    test.containerd.events.wait_for(id, "/tasks/delete")?;
    ensure!(test.status(id).is_err(), "the task is still listed: {}", test.status(id)?);
    test.ctr(["containers", "delete", id]).done().map(drop)
}

/// All of the group's tasks end with the one shim, each cleaned up by a `delete` of its own.
fn group(test: &Test) -> Result<()> {
    let annotation = format!("io.containerd.runc.v2.group={}", test.other("group"));
    let kinds = test.known_kinds().iter().chain([&Kind::Linux]);
    let ids: Vec<(String, Kind)> =
        kinds.enumerate().map(|(number, kind)| (test.other(&number.to_string()), *kind)).collect();
    let mut pids = Vec::new();
    for (id, kind) in &ids {
        let run = Run::probe(test.containerd, *kind, id, &["pause"]);
        run.flags(&["--null-io", "--annotation", &annotation]).detach()?;
        pids.push(test.pid(id)?);
    }
    let shim = Process::of(pids[0]).context("init has ended")?.parent;
    Process::of(shim).context("the shim has ended")?.kill()?;
    for ((id, _), pid) in ids.iter().zip(pids) {
        let exit = test.containerd.events.wait_for(id, "/tasks/exit")?;
        ensure!(exit.fields["exit_status"] == 137, "{exit:?}");
        Process::of(pid).map_or(Ok(()), |init| init.wait_for_end()).context("init still runs")?;
        gone(test, id)?;
    }
    Ok(())
}
