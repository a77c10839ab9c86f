//! Loggers: programs that get a process's output (`binary://` and `binary-v2://`).
//!
//! The program is the URI's path, with the query's keys and values as its arguments; `CONTAINER_ID` and
//! `CONTAINER_NAMESPACE` are in its environment. Descriptors 3 and 4 are the output's and the error's pipes, and by
//! descriptor 5 it says that it is ready: with `binary-v2` by a byte, with `binary` also by closing it.
//!
//! Source: containerd, core/runtime/v2/README.md "Logging", and pkg/shim's counterpart for loggers, core/runtime/v2/logging.

use super::copy::{discard, watch};
use super::{Identity, invalid, path_of_uri};
use crate::descriptor::{self, exited};
use anyhow::{Context, Result as AnyResult, anyhow};
use executors::{Error, Kind, Process, Result, host};
use nix::fcntl::OFlag;
use nix::libc::{SIGKILL, SIGTERM};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::pipe2;
use percent_encoding::percent_decode_str;
use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::process::Command;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long a logger may take until it is ready.
const READY_LIMIT: Duration = Duration::from_secs(10);

/// How long a logger may take to write what is left, once its pipes have ended.
const END_LIMIT: Duration = Duration::from_secs(2);

/// How long a logger may take to end after SIGTERM, as long as with containerd's Go shim.
const TERM_LIMIT: Duration = Duration::from_secs(12);

/// A running logger. Dropping it kills it.
pub(super) struct Logger {
    /// Its URI, for messages.
    name: String,
    process: Process,
    /// The read ends of its pipes: should it die, what writes to them must not be killed.
    pipes: [OwnedFd; 2],
}

impl Logger {
    /// Starts a logger and waits until it is ready. Returns it with the write ends of its pipes.
    pub fn start(uri: &str, identity: &Identity) -> Result<(Logger, OwnedFd, OwnedFd)> {
        let pipe = || pipe2(OFlag::O_CLOEXEC).with_context(|| format!("{uri}: make a pipe")).map_err(invalid);
        let ((out, out_write), (err, err_write), (ready, ready_write)) = (pipe()?, pipe()?, pipe()?);
        let command = command(uri, identity)?;
        let copy = |fd: &OwnedFd| fd.try_clone().with_context(|| format!("{uri}: duplicate a pipe")).map_err(invalid);
        let pass = vec![(copy(&out)?, 3), (copy(&err)?, 4), (ready_write, 5)];
        let process = host::spawn(command, pass).map_err(|error| error.context(format!("{uri}: start the logger")))?;
        await_ready(uri, &ready, &process)?;
        Ok((Logger { name: uri.to_owned(), process, pipes: [out, err] }, out_write, err_write))
    }

    /// Looks after the logger from now on.
    pub fn attend(self) -> Result<Attended> {
        let watched = |fd| descriptor::watch(fd, Interest::READABLE);
        let exit = self.process.exit_fd().try_clone_to_owned().and_then(watched).context("watch the logger")?;
        let (sender, end) = oneshot::channel();
        let task = tokio::spawn(attend(self, exit, end));
        Ok(Attended { end: sender, task })
    }
}

/// A logger that is looked after.
pub(super) struct Attended {
    end: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Attended {
    /// Waits for the end of the logger, which comes by itself when its pipes have ended, and else is brought about.
    pub async fn end(self) {
        // Either fails only when the task has ended.
        let _ = self.end.send(());
        let _ = self.task.await;
    }
}

async fn attend(logger: Logger, exit: AsyncFd<OwnedFd>, end: oneshot::Receiver<()>) {
    let Logger { name, process, pipes } = logger;
    let ended = tokio::select! {
        ended = exited(&exit, || process.reap()) => ended,
        _ = end => return bring_to_an_end(&name, &exit, &process, pipes).await,
    };
    let status = ended.ok().map_or_else(|| "unknown".to_owned(), |exit| exit.code.to_string());
    log::error!("the logger {name} has ended (exit status {status}): output is lost from here on");
    // A full pipe would stop the container for ever.
    let [out, err] = pipes;
    let (out, err) = (drain(out), drain(err));
    tokio::join!(out, err);
}

/// Reads what is written for a logger that is gone. Its own description of the pipe is gone with it.
async fn drain(pipe: OwnedFd) {
    let drained = match watch(pipe, Interest::READABLE) {
        Ok(pipe) => discard(&pipe).await.map_err(anyhow::Error::from),
        Err(error) => Err(error),
    };
    if let Err(error) = drained {
        log::warn!("read the output for a logger that has ended: {error:#}");
    }
}

async fn bring_to_an_end(name: &str, exit: &AsyncFd<OwnedFd>, process: &Process, pipes: [OwnedFd; 2]) {
    drop(pipes);
    if timeout(END_LIMIT, exited(exit, || process.reap())).await.is_ok() {
        return;
    }
    for (signal, limit) in [(SIGTERM, TERM_LIMIT), (SIGKILL, TERM_LIMIT)] {
        match process.signal(signal) {
            Err(error) if error.kind() != Kind::NotFound => log::warn!("end the logger {name}: {error}"),
            _ => {}
        }
        if timeout(limit, exited(exit, || process.reap())).await.is_ok() {
            return;
        }
        log::warn!("the logger {name} did not end within {limit:?} of signal {signal}");
    }
}

/// The program with its arguments and environment.
fn command(uri: &str, identity: &Identity) -> Result<Command> {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let path = path_of_uri(rest).ok_or_else(|| invalid(anyhow!("{uri}: the URI has no absolute path")))?;
    let mut command = Command::new(path);
    let query = rest.split_once('#').map_or(rest, |(rest, _)| rest).split_once('?').map_or("", |(_, query)| query);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').map_or((pair, None), |(key, value)| (key, Some(value)));
        command.arg(decode(key)).args(value.filter(|value| !value.is_empty()).map(decode));
    }
    command.env("CONTAINER_ID", &identity.id).env("CONTAINER_NAMESPACE", &identity.namespace);
    Ok(command)
}

/// A key or value of a query (application/x-www-form-urlencoded).
fn decode(text: &str) -> OsString {
    OsString::from_vec(percent_decode_str(&text.replace('+', " ")).collect())
}

fn await_ready(uri: &str, ready: &OwnedFd, process: &Process) -> Result<()> {
    let strict = uri.starts_with("binary-v2:");
    let not_ready = |reason: &str| Error::new(Kind::FailedPrecondition, anyhow!("{uri}: the logger {reason}"));
    let limit = PollTimeout::try_from(READY_LIMIT).unwrap_or(PollTimeout::MAX);
    let waited = wait(ready, limit).with_context(|| format!("{uri}: wait for the logger")).map_err(invalid)?;
    if !waited {
        return Err(not_ready(&format!("was not ready within {READY_LIMIT:?}")));
    }
    let mut byte = [0];
    let read = nix::unistd::read(ready, &mut byte).with_context(|| format!("{uri}: read")).map_err(invalid)?;
    match read {
        0 if strict => Err(not_ready("ended, or closed descriptor 5, before it was ready")),
        0 if is_exiting(process.pid()) => {
            let fd = process.exit_fd().try_clone_to_owned().context("duplicate the pidfd").map_err(invalid)?;
            wait(&fd, limit).context("wait for the logger's end").map_err(invalid)?;
            let code = process.reap()?.map_or_else(|| "unknown".to_owned(), |exit| exit.code.to_string());
            Err(not_ready(&format!("ended with exit status {code} before it was ready")))
        }
        _ => Ok(()),
    }
}

/// Whether a process is on its way out: that closes descriptors first, and can be seen by others last. Its flags say so from
/// the beginning (proc_pid_stat(5), field 9; the kernel's PF_EXITING).
fn is_exiting(pid: u32) -> bool {
    const PF_EXITING: u32 = 4;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold anything.
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6)?.parse::<u32>().ok());
    flags.is_none_or(|flags| flags & PF_EXITING != 0)
}

/// Waits until a descriptor can be read; false when the limit has passed.
fn wait(fd: &OwnedFd, limit: PollTimeout) -> AnyResult<bool> {
    loop {
        match poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], limit) {
            Err(nix::errno::Errno::EINTR) => {}
            result => return Ok(result? > 0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_becomes_a_command() {
        let identity = Identity { id: "box".into(), namespace: "n".into() };
        let command = command("binary:///bin/my%20logger?a=1&b&c=x+y%26z#f", &identity).unwrap();
        assert_eq!(command.get_program(), "/bin/my logger");
        assert_eq!(command.get_args().collect::<Vec<_>>(), ["a", "1", "b", "c", "x y&z"]);
        let env: Vec<_> = command.get_envs().filter_map(|(key, value)| Some((key, value?))).collect();
        assert!(env.contains(&("CONTAINER_ID".as_ref(), "box".as_ref())));
        assert!(env.contains(&("CONTAINER_NAMESPACE".as_ref(), "n".as_ref())));
        assert!(super::command("binary://", &identity).is_err());
    }
}
