//! Exit codes: the program's own, and 128 + n when a signal ended it.
use crate::harness::{Case, Runtime, Test};
use anyhow::{Result, ensure};

pub const CASES: &[Case] = &[
    Case::new("code_0", |test| test.run(&["exit", "0"]).done().map(drop)).all(),
    Case::new("code_42", |test| test.run(&["exit", "42"]).output()?.exits(test.kind.code(42)).map(drop)).all(),
    Case::new("code_255", |test| test.run(&["exit", "255"]).output()?.exits(test.kind.code(255)).map(drop)).all(),
    // A program that ends the way a shell reports SIGTERM, without any signal.
    Case::new("code_143", |test| test.run(&["exit", "143"]).output()?.exits(test.kind.code(143)).map(drop)).all(),
    Case::new("killed_is_137", killed).all(),
    Case::new("terminated_is_143", terminated),
    Case::new("own_signal_is_132", own_signal),
    Case::new("events_and_delete_agree", agree).all(),
];

fn killed(test: &Test) -> Result<()> {
    let running = test.run(&["spin"]).spawn()?;
    running.wait_for("ready")?;
    test.kill(&test.id, "KILL")?;
    running.finish()?.exits(137).map(drop)
}

/// In a pid namespace of its own, init is not ended by a signal it has no handler for (pid_namespaces(7)), so this one
/// runs in the host's.
fn terminated(test: &Test) -> Result<()> {
    let running = test.run(&["pause"]).flags(&["--with-ns", "pid:/proc/1/ns/pid"]).spawn()?;
    running.wait_for("ready")?;
    test.kill(&test.id, "TERM")?;
    running.finish()?.exits(143).map(drop)
}

/// The kernel's SIGILL for `__builtin_trap` reaches even the init of a pid namespace.
fn own_signal(test: &Test) -> Result<()> {
    test.run(&["trap"]).output()?.exits(132).map(drop)
}

fn agree(test: &Test) -> Result<()> {
    test.run(&["exit", "7"]).detach()?;
    let code = test.kind.code(7);
    let exit = test.containerd.events.wait_for(&test.id, "/tasks/exit")?;
    ensure!(exit.fields["exit_status"] == code, "exit event: {exit:?}");
    let output = test.ctr(["tasks", "delete", &test.id]).output()?;
    ensure!(output.stderr.contains(&format!("non-zero exit code {code}")), "{output}");
    if test.runtime() == Runtime::Hybrid {
        let delete = test.containerd.events.wait_for(&test.id, "/tasks/delete")?;
        ensure!(delete.fields["exit_status"] == code, "delete event: {delete:?}");
    }
    test.ctr(["containers", "delete", &test.id]).done().map(drop)
}
