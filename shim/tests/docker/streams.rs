//! stdin, stdout, stderr, terminals and logs.
use crate::case::{Case, Test};
use crate::harness::command::{Running, output};
use crate::harness::pty::OnTerminal;
use anyhow::{Result, bail, ensure};
use std::time::Duration;

pub const CASES: &[Case] = &[
    Case::new("stdin", |test| {
        let text = "0123456789abcde\n".repeat(65536);
        let mut run = test.run(&["--rm", "--interactive"], &["echo"]);
        let output = output(&mut run, text.as_bytes())?.exits(0)?;
        ensure!(output.stdout == text, "{} of {} bytes came back", output.stdout.len(), text.len());
        Ok(())
    })
    .all(),
    Case::new("no_stdin", |test| {
        let output = test.output(&[], &["echo"])?.exits(0)?;
        ensure!(output.stdout.is_empty(), "{output}");
        Ok(())
    })
    .all(),
    Case::new("stdout_and_stderr_apart", |test| {
        let output = test.output(&[], &["say", "to stdout", "to stderr"])?.exits(0)?;
        ensure!(output.stdout == "to stdout" && output.stderr == "to stderr", "{output}");
        Ok(())
    })
    .all(),
    Case::new("much_output", |test| {
        let output = test.output(&[], &["lines", "100000"])?.exits(0)?;
        let lines = output.lines();
        ensure!(lines.len() == 100_000, "{} lines", lines.len());
        ensure!(lines.last() == Some(&"100000"), "the last line is {:?}", lines.last());
        Ok(())
    })
    .all(),
    Case::new("terminal", |test| {
        let output = test.output(&["--tty"], &["isatty"])?.exits(0)?;
        ensure!(output.stdout == "1 1 1\r\n", "{output}");
        Ok(())
    })
    .all(),
    Case::new("terminal_with_input", terminal_with_input).all(),
    Case::new("terminal_size", terminal_size),
    Case::new("logs", |test| {
        test.detach(&[], &["say", "to stdout\n", "to stderr\n"])?;
        test.docker(&["wait"])?;
        let output = test.docker(&["logs"])?;
        ensure!(output.stdout == "to stdout\n" && output.stderr == "to stderr\n", "{output}");
        test.remove()
    })
    .all(),
    Case::new("logs_of_a_running", |test| {
        test.detach(&[], &["pause"])?;
        let logs = Running::spawn(test.engine.docker(&["logs", "--follow"]).arg(&test.name))?;
        logs.wait_for("ready\n")?;
        test.docker(&["kill"])?;
        logs.finish()?.exits(0)?;
        test.remove()
    })
    .all(),
    Case::new("attach", |test| {
        test.detach(&["--interactive"], &["wait-stdin"])?;
        let mut attached = Running::spawn(test.engine.docker(&["attach"]).arg(&test.name))?;
        attached.write(b"a line\n")?;
        attached.wait_for("a line\n")?;
        test.docker(&["kill"])?;
        attached.finish()?.exits(137)?;
        test.remove()
    })
    .all(),
];

/// Echoed by the terminal, then by the program; ended by ^D on a line of its own.
fn terminal_with_input(test: &Test) -> Result<()> {
    let mut terminal = OnTerminal::spawn(test.run(&["--rm", "--interactive", "--tty"], &["wait-stdin"]))?;
    terminal.wait_for("ready\r\n")?;
    terminal.write(b"a line\n")?;
    terminal.wait_for("a line\r\na line\r\n")?;
    terminal.write(b"\x04")?;
    terminal.finish()?.exits(0).map(drop)
}

fn terminal_size(test: &Test) -> Result<()> {
    let terminal = OnTerminal::spawn(test.run(&["--rm", "--interactive", "--tty"], &["sizes", "1000"]))?;
    follows_the_size(&terminal)?;
    test.docker(&["kill"])?;
    terminal.finish()?.exits(137).map(drop)
}

/// The probe (`sizes`) is shown the size of docker's own terminal, and every change of it.
pub fn follows_the_size(terminal: &OnTerminal) -> Result<()> {
    terminal.wait_for("size 24 80\r\n")?;
    terminal.wait_for("ready\r\n")?;
    // docker begins to listen for changes some time after the start, and nothing says when.
    for columns in 81..140 {
        terminal.resize(33, columns)?;
        if terminal.shows(&format!("size 33 {columns}\r\n"), Duration::from_secs(1)) {
            return Ok(());
        }
    }
    bail!("no change of the size has come")
}
