//! One process of a task: init, or an exec'd one.

use super::{blocking, finished, lock, precondition};
use crate::engine::Process;
use crate::stdio::{Carried, Names, Output};
use anyhow::anyhow;
use executors::{Console, Error, ExecSpec, Exit, Kind, Result};
use nix::libc::SIGKILL;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// How long a process may take to end after SIGKILL before the call that waits for it gives up.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a Delete waits for output that is still on its way, as long as containerd's Go shim does.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// How long an exit may wait for a client to read the output.
const READ_LIMIT: Duration = Duration::from_secs(2);

/// Where a process is in its life. That a container is paused is the task's affair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Stopped(Exit),
}

/// One process of a task under supervision.
pub struct TaskProcess {
    /// Empty for init.
    pub exec_id: String,
    pub names: Names,
    /// What to execute; `None` for init, whose spec is the bundle's.
    pub(super) spec: Option<ExecSpec>,
    /// Init has one from the beginning, an exec'd process from its start.
    process: OnceLock<Arc<dyn Process>>,
    pub(super) state: watch::Sender<State>,
    /// Whoever changes the state announces that under this lock.
    pub(super) verbs: tokio::sync::Mutex<()>,
    stdin: Mutex<Option<OwnedFd>>,
    output: tokio::sync::Mutex<Output>,
    console: OnceLock<Weak<Console>>,
}

impl TaskProcess {
    pub(super) fn new(exec_id: &str, names: Names, spec: Option<ExecSpec>) -> Self {
        Self {
            exec_id: exec_id.to_owned(),
            names,
            spec,
            process: OnceLock::new(),
            state: watch::Sender::new(State::Created),
            verbs: tokio::sync::Mutex::default(),
            stdin: Mutex::default(),
            output: tokio::sync::Mutex::default(),
            console: OnceLock::new(),
        }
    }

    /// Takes over the process that was made, and its streams.
    pub(super) async fn made(&self, process: Arc<dyn Process>, streams: Carried) {
        // Made once: the caller holds the lock of the verbs, or nobody else knows the process yet.
        let _ = self.process.set(process);
        if let Some(console) = streams.console {
            let _ = self.console.set(console);
        }
        *lock(&self.stdin) = streams.stdin;
        *self.output.lock().await = streams.output;
    }

    pub(super) fn process(&self) -> Option<&Arc<dyn Process>> {
        self.process.get()
    }

    /// 0 for an exec'd process that was not started yet.
    pub fn pid(&self) -> u32 {
        self.process.get().map_or(0, |process| process.pid())
    }

    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Waits until the process has stopped.
    pub async fn stopped(&self) -> Exit {
        let mut states = self.state.subscribe();
        stopped(&mut states).await.expect("the sender lives as long as self")
    }

    /// Sends a signal; to init also before its start.
    ///
    /// # Errors
    /// NotFound when the process has ended, FailedPrecondition when there is none yet.
    pub fn signal(&self, signal: i32) -> Result<()> {
        match (self.state(), self.process.get()) {
            (State::Stopped(_), _) => Err(finished()),
            (_, None) => Err(precondition("the process was not started yet")),
            (_, Some(process)) => process.signal(signal),
        }
    }

    /// Closes the shim's end of stdin; that there is none is fine.
    pub fn close_stdin(&self) {
        *lock(&self.stdin) = None;
    }

    /// Sets the size of the terminal's window; that there is no terminal is fine.
    ///
    /// # Errors
    /// FailedPrecondition when the process has ended; as with runc's shim, not for an init that had no terminal.
    pub fn resize(&self, rows: u32, columns: u32) -> Result<()> {
        let may_have_one = self.names.terminal || !self.exec_id.is_empty();
        if may_have_one && matches!(self.state(), State::Stopped(_)) {
            return Err(precondition("the process has ended: its terminal cannot be resized"));
        }
        let number = |size: u32| {
            u16::try_from(size)
                .map_err(|_| Error::new(Kind::InvalidArgument, anyhow!("{size} is no size of a terminal")))
        };
        let (rows, columns) = (number(rows)?, number(columns)?);
        // A terminal that was hung up is gone.
        match self.console.get().and_then(Weak::upgrade) {
            Some(console) => console.resize(rows, columns),
            None => Ok(()),
        }
    }

    /// Kills the process and waits until its exit was announced.
    pub(super) async fn end(&self) -> Result<Exit> {
        if let Err(error) = self.signal(SIGKILL)
            && error.kind() != Kind::NotFound
        {
            return Err(error.context("kill it"));
        }
        timeout(KILL_TIMEOUT, self.stopped()).await.map_err(|_| {
            let message = anyhow!("process {} did not end within {KILL_TIMEOUT:?} of SIGKILL", self.pid());
            Error::new(Kind::Unavailable, message)
        })
    }

    /// Waits until the client has read the output of a process that has ended, within a limit.
    pub(super) async fn output_taken(&self) {
        self.output.lock().await.taken(READ_LIMIT).await;
    }

    /// Waits for output that is on its way, within a limit, and closes the streams.
    pub(super) async fn finish_io(&self) {
        self.close_stdin();
        let output = std::mem::take(&mut *self.output.lock().await);
        output.finish(DRAIN_LIMIT).await;
    }

    /// Lets init execute its program.
    pub(super) async fn start_program(&self) -> Result<()> {
        match self.process.get().cloned() {
            Some(process) => blocking(move || process.start()).await,
            None => Err(precondition("the process was not made yet")),
        }
    }
}

/// Waits for the stopped state; `None` when the process was deleted before.
async fn stopped(states: &mut watch::Receiver<State>) -> Option<Exit> {
    loop {
        if let State::Stopped(exit) = *states.borrow_and_update() {
            return Some(exit);
        }
        states.changed().await.ok()?;
    }
}
