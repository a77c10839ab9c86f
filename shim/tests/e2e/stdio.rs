//! stdin, stdout and stderr by fifo and by file.
use crate::harness::{Case, Runtime, Test};
use anyhow::{Context, Result, ensure};

pub const CASES: &[Case] = &[
    Case::new("stdout_and_stderr_apart", apart).all(),
    Case::new("stdin_until_end", |test| {
        let output = test.run(&["echo"]).stdin("one\ntwo\n").done()?;
        ensure!(output.stdout == "one\ntwo\n", "{output}");
        Ok(())
    })
    .all(),
    Case::new("stdin_stays_open", stays_open).all(),
    Case::new("stdin_empty", |test| {
        let output = test.run(&["echo"]).stdin("").done()?;
        ensure!(output.stdout.is_empty(), "{output}");
        Ok(())
    })
    .all(),
    Case::new("much_output", much).all(),
    Case::new("much_input", |test| {
        let text = "0123456789abcde\n".repeat(65536);
        let output = test.run(&["echo"]).stdin(text.clone()).done()?;
        ensure!(output.stdout == text, "{} of {} bytes came back", output.stdout.len(), text.len());
        Ok(())
    })
    .all(),
    Case::new("null_io", |test| {
        let output = test.run(&["say", "out", "err"]).flags(&["--null-io"]).done()?;
        ensure!(output.stdout.is_empty() && output.stderr.is_empty(), "{output}");
        Ok(())
    })
    .all(),
    Case::new("log_to_file", log_to_file).all(),
    Case::new("only_three_descriptors", descriptors),
];

fn apart(test: &Test) -> Result<()> {
    let output = test.run(&["say", "to stdout", "to stderr"]).done()?;
    ensure!(output.stdout == "to stdout" && output.stderr == "to stderr", "{output}");
    Ok(())
}

/// Each line comes back before the next is sent: nothing waits for the end of stdin or for a full buffer.
fn stays_open(test: &Test) -> Result<()> {
    let mut running = test.run(&["wait-stdin"]).spawn()?;
    running.wait_for("ready")?;
    for line in ["first line", "second line"] {
        running.write(format!("{line}\n").as_bytes())?;
        running.wait_for(line)?;
    }
    running.finish()?.exits(0).map(drop)
}

/// More than a pipe holds.
fn much(test: &Test) -> Result<()> {
    let output = test.run(&["lines", "100000"]).done()?;
    let lines = output.lines();
    ensure!(lines.len() == 100_000, "{} lines", lines.len());
    ensure!(lines.last() == Some(&"100000"), "the last line is {:?}", lines.last());
    Ok(())
}

/// stdout and stderr share the file, and its folder is made.
fn log_to_file(test: &Test) -> Result<()> {
    let folder = test.containerd.fresh_path("logs");
    let file = folder.join("deeper/task.log");
    let uri = format!("file://{}", file.display());
    test.run(&["say", "one ", "two "]).flags(&["--log-uri", &uri]).detach()?;
    test.containerd.events.wait_for(&test.id, "/tasks/exit")?;
    test.delete(&test.id)?;
    let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    // The probe's stdout is not a terminal: it is written when it ends, after stderr. runc's shim of containerd 2 may
    // lose one of both that way.
    let expected = ["two one ", "one two "].contains(&text.as_str());
    ensure!(expected || test.runtime() == Runtime::Runc, "the log holds {text:?}");
    std::fs::remove_dir_all(&folder).context("removing the log")
}

/// Nothing of the shim's is open in the container.
fn descriptors(test: &Test) -> Result<()> {
    let output = test.run(&["fds"]).done()?;
    ensure!(output.lines().len() == 3, "{output}");
    Ok(())
}
