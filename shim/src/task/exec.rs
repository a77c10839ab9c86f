//! Exec'd processes: reserved, started, counted, deleted.
//!
//! ```text
//!  exec             start               exit
//! ──────→ Created ────────→ Running ──────────→ Stopped ───→ (not in the map)
//!            │ start fails                        ↑    delete
//!            └────────────────────────────────────┘
//! ```
//! Init's exit is the last one: once it is seen no exec may start any more, and it is announced when none runs.

use super::process::{State, TaskProcess};
use super::supervise::{supervise_exec, watch_exit};
use super::{Task, Tasks, gone, lock, precondition};
use crate::stdio::{self, Names};
use anyhow::anyhow;
use containerd_shim_protos::events::task::{TaskExecAdded, TaskExecStarted};
use executors::{Error, ExecSpec, Exit, Kind, Result};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;
use tokio::sync::watch;

/// The exit status of a process that could not be started, or of which it cannot be known; containerd uses the same
/// (errdefs: UnknownExitStatus).
pub(super) const UNKNOWN_EXIT_STATUS: u32 = 255;

/// The exec'd processes of a task.
#[derive(Default)]
pub(super) struct Execs {
    map: Mutex<HashMap<String, Arc<TaskProcess>>>,
    running: watch::Sender<Running>,
}

/// How many exec'd processes run, and whether more may.
#[derive(Default)]
struct Running {
    count: usize,
    closed: bool,
}

impl Execs {
    pub fn get(&self, exec_id: &str) -> Option<Arc<TaskProcess>> {
        lock(&self.map).get(exec_id).cloned()
    }

    /// The pids of those that were started, with their ids.
    pub fn pids(&self) -> HashMap<u32, String> {
        lock(&self.map).values().map(|process| (process.pid(), process.exec_id.clone())).collect()
    }

    /// Lets no more start, and waits until none runs.
    pub async fn close(&self) {
        self.running.send_modify(|running| running.closed = true);
        // The sender lives as long as self.
        let _ = self.running.subscribe().wait_for(|running| running.count == 0).await;
    }

    /// Waits until no more may start.
    #[cfg(test)]
    pub async fn closed(&self) {
        let _ = self.running.subscribe().wait_for(|running| running.closed).await;
    }

    /// Counts one more, unless init has ended.
    fn enter(self: &Arc<Self>) -> Result<RunningExec> {
        let mut entered = false;
        self.running.send_modify(|running| {
            entered = !running.closed;
            running.count += usize::from(entered);
        });
        if entered { Ok(RunningExec(self.clone())) } else { Err(precondition("the container's init has ended")) }
    }
}

/// An exec'd process that is being started or runs: counted until this is dropped.
pub(super) struct RunningExec(Arc<Execs>);

impl Drop for RunningExec {
    fn drop(&mut self) {
        self.0.running.send_modify(|running| running.count -= 1);
    }
}

/// What an Exec request asks for.
pub struct ExecRequest {
    pub exec_id: String,
    pub spec: ExecSpec,
    pub names: Names,
}

impl Tasks {
    /// Adds a process to a task, to be started later.
    ///
    /// # Errors
    /// AlreadyExists for an id that is taken; FailedPrecondition when the container is paused or has ended.
    pub fn add_exec(&self, task: &Task, request: ExecRequest) -> Result<()> {
        let ExecRequest { exec_id, spec, names } = request;
        match lock(&task.execs.map).entry(exec_id.clone()) {
            Entry::Occupied(_) => {
                return Err(Error::new(Kind::AlreadyExists, anyhow!("the process {exec_id} exists already")));
            }
            Entry::Vacant(vacant) => {
                task.takes_execs()?;
                vacant.insert(Arc::new(TaskProcess::new(&exec_id, names, Some(spec))));
            }
        }
        let mut event = TaskExecAdded::new();
        event.container_id = task.id.clone();
        event.exec_id = exec_id;
        self.events.publish(&event);
        Ok(())
    }

    /// Executes an added process, and returns its pid. If that fails it counts as stopped, and can be deleted.
    ///
    /// # Errors
    /// FailedPrecondition when it was started before, or when the container is paused or has ended; else why it cannot be
    /// executed.
    pub async fn start_exec(self: Arc<Self>, task: Arc<Task>, exec: Arc<TaskProcess>) -> Result<u32> {
        let _verbs = exec.verbs.lock().await;
        match exec.state() {
            State::Created => {}
            State::Running => return Err(precondition("the process was started before")),
            State::Stopped(_) => return Err(precondition("the process has ended")),
        }
        let counted = task.takes_execs().and_then(|()| task.execs.enter())?;
        let made = self.execute(&task, &exec).await.and_then(|pid| {
            let process = exec.process().ok_or_else(gone)?;
            Ok((pid, watch_exit(&**process)?))
        });
        let (pid, exit) = match made {
            Ok(made) => made,
            Err(error) => {
                // Whoever waits for it must not wait for ever.
                exec.state.send_replace(State::Stopped(Exit { code: UNKNOWN_EXIT_STATUS, at: SystemTime::now() }));
                return Err(error.context(format!("exec {}", exec.exec_id)));
            }
        };
        exec.state.send_replace(State::Running);
        let mut event = TaskExecStarted::new();
        event.container_id = task.id.clone();
        event.exec_id = exec.exec_id.clone();
        event.pid = pid;
        self.events.publish(&event);
        tokio::spawn(supervise_exec(task, exec.clone(), exit, counted, self.events.clone()));
        self.activity.notify_one();
        Ok(pid)
    }

    async fn execute(&self, task: &Arc<Task>, exec: &Arc<TaskProcess>) -> Result<u32> {
        let logger = stdio::Identity { id: exec.exec_id.clone(), namespace: self.namespace.clone() };
        let (process, owner) = (exec.clone(), task.owner);
        let made = task.clone().with_container(move |container| {
            let spec = process.spec.as_ref().ok_or_else(gone)?;
            let (streams, prepared) = stdio::open(&process.names, owner, stdio::For::Exec, &logger)?;
            Ok((container.exec(spec, streams)?, prepared))
        });
        let (process, prepared) = made.await.unwrap_or_else(|| Err(gone()))?;
        let pid = process.pid();
        let streams = prepared.run(process.take_console())?;
        exec.made(process, streams).await;
        Ok(pid)
    }

    /// Deletes an exec'd process that has stopped or was never started, and returns its pid and exit. No event says so.
    ///
    /// # Errors
    /// FailedPrecondition while it runs; NotFound when another Delete was quicker.
    pub async fn delete_exec(self: Arc<Self>, task: Arc<Task>, exec: Arc<TaskProcess>) -> Result<(u32, Exit)> {
        let _verbs = exec.verbs.lock().await;
        let exit = match exec.state() {
            State::Running => return Err(precondition("the process is running: it cannot be deleted")),
            State::Created => {
                let exit = Exit { code: 0, at: SystemTime::now() };
                exec.state.send_replace(State::Stopped(exit));
                exit
            }
            State::Stopped(exit) => exit,
        };
        exec.finish_io().await;
        let mut map = lock(&task.execs.map);
        match map.get(&exec.exec_id) {
            Some(found) if Arc::ptr_eq(found, &exec) => map.remove(&exec.exec_id),
            _ => return Err(gone()),
        };
        Ok((exec.pid(), exit))
    }
}
