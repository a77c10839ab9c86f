//! Containers from run to removal: exit codes, stop, kill, pause, restart, and a dockerd that goes and comes back.
use crate::case::{Case, Test};
use crate::harness::Kind;
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::time::{Duration, Instant};

pub const CASES: &[Case] = &[
    Case::new("run", |test| {
        let output = test.output(&[], &["hello"])?.exits(0)?;
        ensure!(output.stdout == greeting(test.kind) && output.stderr.is_empty(), "{output}");
        Ok(())
    })
    .all(),
    Case::new("exit_code", |test| test.output(&[], &["exit", "42"])?.exits(test.kind.code(42)).map(drop)).all(),
    // docker tells these by the words of the error.
    Case::new("program_not_found", |test| {
        test.output(&["--entrypoint", "/nothing"], &[])?.exits(127)?.refused(&["/nothing"]).map(drop)
    })
    .all(),
    Case::new("program_not_in_path", |test| {
        test.output(&["--entrypoint", "nothing"], &[])?.exits(127)?.refused(&["nothing"]).map(drop)
    })
    .all(),
    Case::new("program_not_executable", |test| {
        test.output(&["--entrypoint", "/etc/passwd"], &[])?.exits(126)?.refused(&["/etc/passwd"]).map(drop)
    }),
    Case::new("state_after_exit", |test| {
        test.detach(&[], &["exit", "7"])?;
        let code = test.kind.code(7);
        let waited = test.docker(&["wait"])?;
        ensure!(waited.stdout == format!("{code}\n"), "{waited}");
        let state = test.inspect("/State")?;
        ensure!(state["Status"] == "exited" && state["ExitCode"] == code, "{state}");
        ensure!(state["OOMKilled"] == false && state["Error"] == "" && state["Pid"] == 0, "{state}");
        test.remove()
    })
    .all(),
    Case::new("stop_that_the_program_handles", |test| {
        let running = test.ready(&[], &["on-term", "33"])?;
        test.docker(&["stop", "--time", "600"])?;
        let output = running.finish()?.exits(33)?;
        ensure!(output.stdout == "ready\nsignal 15\n", "{output}");
        Ok(())
    }),
    Case::new("stop_by_force", |test| {
        // As process 1 it gets no signal that it does not handle.
        let running = test.ready(&[], &["pause"])?;
        let start = Instant::now();
        test.docker(&["stop", "--time", "1"])?;
        ensure!(start.elapsed() >= Duration::from_secs(1), "killed after {:?}", start.elapsed());
        running.finish()?.exits(137).map(drop)
    }),
    // The runner ends by SIGTERM, so that no force is needed.
    Case::new("stop_of_a_guest", |test| {
        let running = test.ready(&[], &["pause"])?;
        test.docker(&["stop", "--time", "600"])?;
        running.finish()?.exits(143).map(drop)
    })
    .kinds(Kind::WASM),
    Case::new("stop_signal", |test| {
        let running = test.ready(&["--stop-signal", "USR1"], &["on-signal", "10", "5"])?;
        test.docker(&["stop", "--time", "600"])?;
        running.finish()?.exits(5).map(drop)
    }),
    Case::new("kill", |test| {
        let running = test.ready(&[], &["pause"])?;
        test.docker(&["kill"])?;
        running.finish()?.exits(137).map(drop)
    })
    .all(),
    Case::new("kill_with_a_signal", |test| {
        let running = test.ready(&[], &["on-term", "9"])?;
        test.docker(&["kill", "--signal", "TERM"])?;
        running.finish()?.exits(9).map(drop)
    }),
    Case::new("pause_and_unpause", pause).all(),
    Case::new("kill_of_a_paused", |test| {
        let running = test.ready(&[], &["pause"])?;
        test.docker(&["pause"])?;
        test.docker(&["kill"])?;
        running.finish()?.exits(137).map(drop)
    })
    .all(),
    Case::new("remove_by_force", |test| {
        test.detach(&[], &["pause"])?;
        test.remove()
    })
    .all(),
    Case::new("remove_of_a_paused_by_force", |test| {
        test.detach(&[], &["pause"])?;
        test.docker(&["pause"])?;
        test.remove()
    })
    .all(),
    Case::new("restart", |test| {
        test.detach(&[], &["pause"])?;
        let before = test.pid()?;
        test.docker(&["restart", "--time", "0"])?;
        let after = test.pid()?;
        ensure!(before != after, "still the process {before}");
        ensure!(test.inspect("/State/Status")? == "running", "not running");
        test.remove()
    })
    .all(),
    Case::new("start_of_a_stopped", |test| {
        test.detach(&[], &["hello"])?;
        test.docker(&["wait"])?;
        let output = test.docker(&["start", "--attach"])?;
        ensure!(output.stdout == greeting(test.kind), "{output}");
        test.remove()
    })
    .all(),
    Case::new("restart_policy", |test| {
        test.detach(&["--restart", "on-failure:2"], &["exit", "1"])?;
        // docker's wait ends with each of the exits; that after which nothing is restarted is the last.
        while test.inspect("/State/Status")? != "exited" {
            test.docker(&["wait"])?;
        }
        ensure!(test.inspect("/State/ExitCode")? == 1, "{}", test.inspect("/State")?);
        ensure!(test.inspect("/RestartCount")? == 2, "restarted {} times", test.inspect("/RestartCount")?);
        test.remove()
    })
    .all(),
    Case::new("dockerd_comes_back", comes_back).all().exclusive(),
    Case::new("exit_while_dockerd_is_away", exit_while_away).all().exclusive(),
];

pub fn greeting(kind: Kind) -> &'static str {
    if kind == Kind::Linux { "hello from Linux\n" } else { "hello from WebAssembly\n" }
}

fn pause(test: &Test) -> Result<()> {
    let mut running = test.ready(&["--interactive"], &["wait-stdin"])?;
    test.docker(&["pause"])?;
    ensure!(test.inspect("/State/Status")? == "paused", "not paused");
    ensure!(frozen(test)?, "not frozen");
    running.write(b"while paused\n")?;
    test.docker(&["unpause"])?;
    ensure!(test.inspect("/State/Status")? == "running", "not running");
    ensure!(!frozen(test)?, "still frozen");
    running.wait_for("while paused\n")?;
    running.finish()?.exits(0).map(drop)
}

fn frozen(test: &Test) -> Result<bool> {
    let state = test.cgroup("freezer", "freezer.state", "cgroup.events")?;
    Ok(state.lines().any(|line| matches!(line, "FROZEN" | "frozen 1")))
}

/// What runs goes on, with its output, and can be asked for everything again.
fn comes_back(test: &Test) -> Result<()> {
    test.detach(&["--interactive"], &["wait-stdin"])?;
    let pid = test.pid()?;
    test.engine.stop_daemon()?;
    test.engine.start_daemon()?;
    ensure!(test.pid()? == pid, "{} is not the process {pid}", test.pid()?);
    let output = crate::harness::command::output(&mut test.exec(&[], &["hello"]), b"")?.exits(0)?;
    ensure!(output.stdout == greeting(test.kind), "{output}");
    let mut attached = crate::harness::command::Running::spawn(test.engine.docker(&["attach"]).arg(&test.name))?;
    attached.write(b"after the restart\n")?;
    attached.wait_for("after the restart\n")?;
    test.docker(&["kill"])?;
    attached.finish()?.exits(137)?;
    ensure!(test.inspect("/State/ExitCode")? == 137, "{}", test.inspect("/State")?);
    test.remove()
}

fn exit_while_away(test: &Test) -> Result<()> {
    test.detach(&[], &["pause"])?;
    let pid = Pid::from_raw(test.pid()? as i32).context("a pid is positive")?;
    test.engine.stop_daemon()?;
    kill_process(pid, Signal::KILL).context("killing init")?;
    test.engine.start_daemon()?;
    let waited = test.docker(&["wait"])?;
    ensure!(waited.stdout == "137\n", "{waited}");
    ensure!(test.inspect("/State/Status")? == "exited", "{}", test.inspect("/State")?);
    test.remove()
}
