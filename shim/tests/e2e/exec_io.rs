//! The standard streams of exec'd processes.
use crate::harness::{Case, Test, limit};
use anyhow::{Context, Result, ensure};
use std::time::{Duration, Instant};

pub const CASES: &[Case] = &[
    Case::new("stdout_and_stderr_apart", |test| {
        let task = test.task(&["pause"])?;
        let output = task.exec("one", &["say", "to stdout", "to stderr"])?.run()?.exits(0)?;
        ensure!(output.stdout == "to stdout" && output.stderr == "to stderr", "{output}");
        task.end()
    })
    .all(),
    Case::new("stdin_until_close_io", |test| {
        let task = test.task(&["pause"])?;
        let mut exec = task.exec("one", &["wait-stdin"])?;
        exec.spawn()?;
        exec.io()?.stdout.wait_for("ready")?;
        exec.io()?.write(b"first line\n")?;
        exec.io()?.stdout.wait_for("first line")?;
        exec.io()?.write(b"second line\n")?;
        exec.end_stdin()?;
        let output = exec.finish()?.exits(0)?;
        ensure!(output.stdout == "ready\nfirst line\nsecond line\n", "{output}");
        task.end()
    })
    .all(),
    // Only CloseIO ends it: the client may be a containerd that restarts.
    Case::new("stdin_outlives_its_writer", |test| {
        let task = test.task(&["pause"])?;
        let mut exec = task.exec("one", &["wait-stdin"])?;
        exec.spawn()?;
        let stdin = exec.io()?.path("stdin");
        exec.io()?.stdout.wait_for("ready")?;
        exec.io()?.close_stdin();
        let mut again = std::fs::OpenOptions::new().write(true).open(stdin).context("opening stdin again")?;
        std::io::Write::write_all(&mut again, b"from another writer\n").context("writing")?;
        exec.io()?.stdout.wait_for("from another writer")?;
        drop(again);
        exec.close_io().context("CloseIO")?;
        exec.finish()?.exits(0)?;
        task.end()
    })
    .all(),
    Case::new("stdin_larger_than_a_pipe", |test| {
        let text = "0123456789abcde\n".repeat(65536);
        let task = test.task(&["pause"])?;
        let mut exec = task.exec("one", &["echo"])?;
        exec.spawn()?;
        exec.io()?.feed(text.clone().into_bytes())?;
        exec.close_io().context("CloseIO")?;
        let output = exec.finish()?.exits(0)?;
        ensure!(output.stdout == text, "{} of {} bytes came back", output.stdout.len(), text.len());
        task.end()
    })
    .all(),
    Case::new("close_io_twice", |test| {
        let task = test.task(&["pause"])?;
        let mut exec = task.exec("one", &["wait-stdin"])?;
        exec.spawn()?;
        exec.end_stdin()?;
        exec.wait().context("Wait")?;
        exec.close_io().context("CloseIO of one that has ended")?;
        exec.finish()?.exits(0)?;
        task.end()
    })
    .all()
    .hybrid_only(), // runc's: file already closed
    Case::new("much_output", |test| {
        let task = test.task(&["pause"])?;
        let output = task.exec("one", &["lines", "100000"])?.run()?.exits(0)?;
        let lines = output.lines();
        ensure!(lines.len() == 100_000 && lines.last() == Some(&"100000"), "{} lines", lines.len());
        task.end()
    })
    .all(),
    Case::new("null_io", |test| {
        let task = test.task(&["pause"])?;
        // It reads the end of stdin, and may write.
        task.exec("reads", &["echo"])?.null_io().run()?.exits(0)?;
        task.exec("writes", &["say", "text", "text"])?.null_io().run()?.exits(0)?;
        task.end()
    })
    .all(),
    Case::new("background_child_holds_stdout", background),
];

/// What is left in the container holds stdout open. Delete gives it some time (10 s in runc's shim), then the client's
/// streams end all the same, and the child lives on.
fn background(test: &Test) -> Result<()> {
    let task = test.task(&["pause"])?;
    let exec = task.exec("one", &["abandon", "1"])?;
    exec.spawn()?;
    ensure!(exec.wait().context("Wait")?.exit_status == 0, "exit status");
    let before = Instant::now();
    exec.delete().context("Delete")?;
    ensure!(before.elapsed() < limit(Duration::from_secs(15)), "Delete took {:?}", before.elapsed());
    let fifos = exec.fifos.as_ref().context("it has streams")?;
    fifos.to_end().context("the client still waits")?;
    ensure!(task.pids().context("Pids")?.processes.len() == 2, "the child is gone");
    task.end()
}
