//! Runs a program with its output captured, so that a test can wait for what it prints.
use super::PATIENCE;
use anyhow::{Context, Result, bail, ensure};
use std::fmt;
use std::io::{Read, Write};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread;
use std::time::Instant;

/// What a program printed and how it ended.
pub struct Output {
    what: String,
    /// The exit code; a signal is an error of its own.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Output {
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

/// The last part of a text, as much as a reader wants to see.
fn end_of(text: &str) -> &str {
    let start = text.len().saturating_sub(4000);
    let start = (start..text.len()).find(|index| text.is_char_boundary(*index)).unwrap_or(0);
    &text[start..]
}

#[derive(Default)]
struct Captured {
    bytes: Vec<u8>,
    ended: bool,
}

/// A stream of the program, filled by a thread.
#[derive(Clone, Default)]
struct Stream(Arc<(Mutex<Captured>, Condvar)>);

impl Stream {
    fn read_from(mut source: impl Read + Send + 'static) -> Stream {
        let stream = Stream::default();
        let filled = stream.clone();
        thread::spawn(move || {
            let mut buffer = [0; 16384];
            loop {
                // An error of a pipe's read end means the same as its end: nothing more will come.
                let n = source.read(&mut buffer).unwrap_or(0);
                let (captured, changed) = &*filled.0;
                let mut captured = captured.lock().expect("no reader panics");
                captured.bytes.extend_from_slice(&buffer[..n]);
                captured.ended = n == 0;
                changed.notify_all();
                if n == 0 {
                    return;
                }
            }
        });
        stream
    }

    /// Waits until `done` says so, the stream ends, or patience does; returns the text and whether `done` did.
    fn wait(&self, done: impl Fn(&Captured) -> bool) -> (String, bool) {
        let (captured, changed) = &*self.0;
        let guard = captured.lock().expect("no reader panics");
        let (guard, _) = changed
            .wait_timeout_while(guard, PATIENCE, |captured| !done(captured) && !captured.ended)
            .expect("no reader panics");
        (String::from_utf8_lossy(&guard.bytes).into_owned(), done(&guard))
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
        let (stdout, found) = self.stdout.wait(|captured| contains(&captured.bytes, text.as_bytes()));
        if !found {
            let (stderr, _) = self.stderr.wait(|_| true);
            bail!("{} did not print {text:?}\n--- stdout\n{stdout}--- stderr\n{stderr}", self.what);
        }
        Ok(())
    }

    /// Waits until stdout has ended, while stdin stays open.
    pub fn ended(&mut self) -> Result<()> {
        let (stdout, ended) = self.stdout.wait(|captured| captured.ended);
        ensure!(ended, "{} did not end\n--- stdout\n{stdout}", self.what);
        Ok(())
    }

    /// Ends stdin and waits for the program to end by itself.
    pub fn finish(mut self) -> Result<Output> {
        self.close_stdin();
        let deadline = Instant::now() + PATIENCE;
        let Ok(status) = self.ended.recv_timeout(PATIENCE) else {
            let (stdout, _) = self.stdout.wait(|_| true);
            let (stderr, _) = self.stderr.wait(|_| true);
            if let Some(pid) = rustix::process::Pid::from_raw(self.pid as i32) {
                // Not reaped yet, so the pid is still its own; gone in between is as good.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            bail!("{} did not end\n--- stdout\n{stdout}--- stderr\n{stderr}", self.what);
        };
        let status = status.with_context(|| format!("waiting for {}", self.what))?;
        // A stream can outlive the program when something it started still holds it: that is a fault worth seeing.
        let ((stdout, _), (stderr, _)) = (self.stdout.wait(|c| c.ended), self.stderr.wait(|c| c.ended));
        ensure!(Instant::now() < deadline, "the output of {} stayed open", self.what);
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
    let captured = stdout.0.0.lock().expect("no reader panics");
    Ok(captured.bytes.clone())
}

fn contains(haystack: &[u8], needle: &[u8]) -> bool {
    haystack.windows(needle.len()).any(|window| window == needle)
}
