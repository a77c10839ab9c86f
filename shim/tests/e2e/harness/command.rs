//! Runs a program with its output captured, so that a test can wait for what it prints.
use super::stream::{Stream, end_of};
use super::{PATIENCE, limit};
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::fmt;
use std::io::Write;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// What a program printed and how it ended.
pub struct Output {
    what: String,
    /// The exit code; a signal is an error of its own.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
    /// Of something that is no program of the test's own.
    pub fn new(what: String, code: i32, stdout: String, stderr: String) -> Output {
        Output { what, code, stdout, stderr }
    }

    /// Itself, when the exit code is `code`.
    pub fn exits(self, code: i32) -> Result<Output> {
        ensure!(self.code == code, "exit code {} instead of {code} of {self}", self.code);
        Ok(self)
    }

    /// Itself, when the program failed and said all of `words` on stderr.
    pub fn refused(self, words: &[&str]) -> Result<Output> {
        ensure!(self.code != 0, "succeeded, but should have been refused: {self}");
        for word in words {
            ensure!(self.stderr.contains(word), "stderr lacks {word:?}: {self}");
        }
        Ok(self)
    }

    /// The lines of stdout.
    pub fn lines(&self) -> Vec<&str> {
        self.stdout.lines().collect()
    }
}

impl fmt::Display for Output {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (stdout, stderr) = (end_of(&self.stdout), end_of(&self.stderr));
        write!(f, "{} -> {}\n--- stdout\n{stdout}--- stderr\n{stderr}", self.what, self.code)
    }
}

/// A program under way.
pub struct Running {
    what: String,
    pid: u32,
    stdin: Option<ChildStdin>,
    stdout: Stream,
    stderr: Stream,
    ended: mpsc::Receiver<std::io::Result<ExitStatus>>,
}

impl Running {
    pub fn spawn(command: &mut Command) -> Result<Running> {
        let what = format!("{command:?}");
        let mut child: Child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("starting {what}"))?;
        let stdin = child.stdin.take();
        let stdout = Stream::read_from(child.stdout.take().context("stdout is a pipe")?);
        let stderr = Stream::read_from(child.stderr.take().context("stderr is a pipe")?);
        let pid = child.id();
        let (sender, ended) = mpsc::channel();
        thread::spawn(move || {
            // The receiver is gone when the test has already failed.
            let _ = sender.send(child.wait());
        });
        Ok(Running { what, pid, stdin, stdout, stderr, ended })
    }

    /// Writes to the program's stdin, which stays open.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let stdin = self.stdin.as_mut().context("stdin was closed before")?;
        stdin.write_all(bytes).and_then(|()| stdin.flush()).with_context(|| format!("writing to {}", self.what))
    }

    /// Writes all of `input` to the program's stdin and ends it, while the program may already answer.
    pub fn feed(&mut self, input: Vec<u8>) -> Result<()> {
        let mut stdin = self.stdin.take().context("stdin was closed before")?;
        // A thread, because a program that writes while we do would fill both pipes.
        thread::spawn(move || {
            // A program that ends without reading all of it is judged by its exit code.
            let _ = stdin.write_all(&input);
        });
        Ok(())
    }

    /// Ends the program's stdin.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until the program has printed `text` on stdout.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        self.stdout.wait_for(text).with_context(|| format!("{}\n--- stderr\n{}", self.what, self.stderr.text()))
    }

    /// Waits until the program has printed `text` on stderr.
    pub fn wait_for_error(&self, text: &str) -> Result<()> {
        self.stderr.wait_for(text).with_context(|| format!("{}\n--- stdout\n{}", self.what, self.stdout.text()))
    }

    /// What the program has printed on stdout so far.
    pub fn text(&self) -> String {
        self.stdout.text()
    }

    /// Waits until stdout has ended, while stdin stays open.
    pub fn ended(&mut self) -> Result<()> {
        self.stdout.to_end().map(drop).with_context(|| self.what.clone())
    }

    /// Sends the program a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid as i32).context("a pid is positive")?;
        kill_process(pid, signal).with_context(|| self.what.clone())
    }

    /// Ends the program with SIGKILL, and waits for its end.
    pub fn kill(self) -> Result<()> {
        self.signal(Signal::KILL)?;
        self.ended.recv_timeout(PATIENCE).with_context(|| self.what.clone())?.map(drop).context("waiting for it")
    }

    /// Ends stdin and waits for the program to end by itself.
    pub fn finish(self) -> Result<Output> {
        self.finish_within(limit(PATIENCE))
    }

    /// The same for one that may take longer.
    pub fn finish_within(mut self, patience: Duration) -> Result<Output> {
        self.close_stdin();
        let Ok(status) = self.ended.recv_timeout(patience) else {
            let (stdout, stderr) = (self.stdout.text(), self.stderr.text());
            // Not reaped yet, so the pid is still its own; gone in between is as good.
            let _ = self.signal(Signal::KILL);
            bail!("{} did not end\n--- stdout\n{stdout}--- stderr\n{stderr}", self.what);
        };
        let status = status.with_context(|| format!("waiting for {}", self.what))?;
        // A stream can outlive the program when something it started still holds it: that is a fault worth seeing.
        let ended = self.stdout.to_end().and_then(|_| self.stderr.to_end());
        ended.with_context(|| format!("the output of {} stayed open", self.what))?;
        let (stdout, stderr) = (self.stdout.text(), self.stderr.text());
        let code = status.code().with_context(|| format!("{} ended by {status}: {stderr}", self.what))?;
        Ok(Output { what: self.what, code, stdout, stderr })
    }
}

/// Runs a program to its end with `input` on stdin.
pub fn output(command: &mut Command, input: &[u8]) -> Result<Output> {
    let mut running = Running::spawn(command)?;
    running.feed(input.to_vec())?;
    running.finish()
}

/// Runs a program to its end and returns the bytes of its stdout; anything on stderr is an error.
pub fn raw_output(command: &mut Command, input: &[u8]) -> Result<Vec<u8>> {
    let mut running = Running::spawn(command)?;
    running.write(input)?;
    let stdout = running.stdout.clone();
    let output = running.finish()?.exits(0)?;
    ensure!(output.stderr.is_empty(), "{output}");
    Ok(stdout.bytes())
}
