//! Kill, of init and of everything in the container, and what becomes of the processes left in it.
use crate::harness::leaks::Process;
use crate::harness::{Case, Runtime, Test};
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

pub const CASES: &[Case] = &[
    Case::new("handled_by_the_program", |test| {
        let running = test.run(&["on-term", "33"]).spawn()?;
        running.wait_for("ready")?;
        test.kill(&test.id, "TERM")?;
        let output = running.finish()?.exits(33)?;
        ensure!(output.stdout == "ready\nsignal 15\n", "{output}");
        Ok(())
    }),
    Case::new("by_number", |test| {
        let running = test.run(&["on-term"]).spawn()?;
        running.wait_for("ready")?;
        test.kill(&test.id, "15")?;
        running.finish()?.exits(0).map(drop)
    }),
    Case::new("kill_from_outside", |test| {
        let running = test.run(&["spin"]).spawn()?;
        running.wait_for("ready")?;
        let pid = Pid::from_raw(test.pid(&test.id)? as i32).context("a pid is positive")?;
        kill_process(pid, Signal::KILL).context("killing init")?;
        running.finish()?.exits(137).map(drop)
    })
    .all(),
    Case::new("kill_all", kill_all),
    Case::new("children_end_with_init", |test| test.run(&["abandon", "3"]).done().map(drop)),
    Case::new("children_end_with_init_in_a_shared_pid_namespace", |test| {
        // The kernel ends nothing here: it is the shim's to do.
        test.run(&["abandon", "3"]).flags(&["--with-ns", "pid:/proc/1/ns/pid"]).done().map(drop)
    }),
    Case::new("kill_all_in_a_shared_pid_namespace", |test| {
        let running = test.run(&["children", "3"]).flags(&["--with-ns", "pid:/proc/1/ns/pid"]).spawn()?;
        running.wait_for("ready")?;
        test.ctr(["tasks", "kill", "--all", "--signal", "KILL", &test.id]).done()?;
        running.finish()?.exits(137).map(drop)
    }),
    Case::new("kill_after_exit_is_refused", |test| {
        test.run(&["exit", "0"]).detach()?;
        test.containerd.events.wait_for(&test.id, "/tasks/exit")?;
        let output = test.ctr(["tasks", "kill", &test.id]).output()?;
        output.refused(&["process already finished"])?;
        test.delete(&test.id)
    })
    .all(),
    Case::new("kill_of_unknown", |test| {
        test.ctr(["tasks", "kill", &test.id]).output()?.refused(&["not found"]).map(drop)
    }),
    Case::new("delete_while_running_is_refused", delete_running).all(),
    Case::new("delete_by_force", |test| {
        test.run(&["spin"]).flags(&["--null-io"]).detach()?;
        let output = test.ctr(["tasks", "delete", "--force", &test.id]).output()?;
        ensure!(output.stderr.contains("non-zero exit code 137"), "{output}");
        test.ctr(["containers", "delete", &test.id]).done().map(drop)
    })
    .all(),
    Case::new("pids", pids),
    Case::new("status", status).all(),
];

fn kill_all(test: &Test) -> Result<()> {
    let running = test.run(&["children", "3"]).spawn()?;
    running.wait_for("ready")?;
    test.ctr(["tasks", "kill", "--all", "--signal", "KILL", &test.id]).done()?;
    running.finish()?.exits(137).map(drop)
}

fn delete_running(test: &Test) -> Result<()> {
    let running = test.run(&["spin"]).spawn()?;
    running.wait_for("ready")?;
    let output = test.ctr(["tasks", "delete", &test.id]).output()?;
    ensure!(output.code != 0, "a running task was deleted: {output}");
    ensure!(test.status(&test.id)? == "RUNNING", "the task no longer runs");
    test.kill(&test.id, "KILL")?;
    running.finish()?.exits(137).map(drop)
}

fn pids(test: &Test) -> Result<()> {
    let running = test.run(&["children", "3"]).spawn()?;
    running.wait_for("ready")?;
    let init = test.pid(&test.id)?;
    let output = test.ctr(["tasks", "ps", &test.id]).done()?;
    let rows = output.stdout.lines().skip(1).filter_map(|line| line.split_whitespace().next());
    let pids: Vec<u32> =
        rows.map(str::parse).collect::<Result<_, _>>().with_context(|| format!("no pids in {output}"))?;
    ensure!(pids.len() == 4 && pids.contains(&init), "init is {init}: {output}");
    for pid in pids {
        let process = Process::of(pid).with_context(|| format!("{pid} is no process"))?;
        ensure!(pid == init || process.parent == init, "{pid} is not init's child");
    }
    test.kill(&test.id, "KILL")?;
    running.finish()?.exits(137).map(drop)
}

fn status(test: &Test) -> Result<()> {
    test.run(&["wait-stdin"]).flags(&["--null-io"]).detach()?;
    // stdin is empty, so it ends by itself.
    test.containerd.events.wait_for(&test.id, "/tasks/exit")?;
    let status = test.status(&test.id)?;
    ensure!(status == "STOPPED", "{status}");
    // The pid is kept after the end.
    ensure!(test.pid(&test.id)? > 0 || test.runtime() == Runtime::Runc, "no pid");
    test.delete(&test.id)
}
