//! Waiting for the end of processes, and announcing it.

use super::Task;
use super::exec::{RunningExec, UNKNOWN_EXIT_STATUS};
use super::process::{State, TaskProcess};
use crate::descriptor::{exited, watch};
use crate::engine::Process;
use crate::events::EventPublisher;
use crate::exit_record;
use crate::status::timestamp;
use anyhow::Context;
use containerd_shim_protos::events::task::TaskExit;
use executors::{Exit, Kind, Result};
use nix::libc::SIGKILL;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::SystemTime;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub(super) type ExitFd = AsyncFd<OwnedFd>;

pub(super) fn watch_exit(process: &dyn Process) -> Result<ExitFd> {
    let fd = process.exit_fd().try_clone_to_owned().context("duplicate the pidfd")?;
    Ok(watch(fd, Interest::READABLE).context("watch the pidfd")?)
}

/// Waits for the end of init and announces it, after those of all exec'd processes.
pub(super) async fn supervise_init(task: Arc<Task>, exit: ExitFd, events: EventPublisher) {
    let exit = await_exit(&task, &task.init, &exit).await;
    // For `delete`, in case this shim dies before it is asked. Without it that can only guess.
    if let Err(error) = exit_record::write(&task.bundle, exit) {
        log::warn!(id = task.id.as_str(); "{error:#}");
    }
    task.end_freeze().await;
    // In a pid namespace of its own the kernel does this.
    if !task.owns_pid_namespace {
        match task.clone().with_container(|container| container.signal_all(SIGKILL)).await {
            Some(Err(error)) if error.kind() != Kind::NotFound => {
                log::error!(id = task.id.as_str(); "kill what init left running: {error}");
            }
            _ => {}
        }
    }
    task.execs.close().await;
    task.end_oom_watch(&events);
    announce(&task, &task.init, exit, &events).await;
}

/// Waits for the end of an exec'd process and announces it.
pub(super) async fn supervise_exec(
    task: Arc<Task>,
    exec: Arc<TaskProcess>,
    exit: ExitFd,
    counted: RunningExec,
    events: EventPublisher,
) {
    let exit = await_exit(&task, &exec, &exit).await;
    announce(&task, &exec, exit, &events).await;
    drop(counted);
}

async fn await_exit(task: &Task, process: &TaskProcess, fd: &ExitFd) -> Exit {
    let reap = || process.process().map(|process| process.reap()).transpose().map(Option::flatten);
    exited(fd, reap).await.unwrap_or_else(|error| {
        log::error!(id = task.id.as_str(); "wait for process {}: {error}", process.pid());
        Exit { code: UNKNOWN_EXIT_STATUS, at: SystemTime::now() }
    })
}

async fn announce(task: &Task, process: &TaskProcess, exit: Exit, events: &EventPublisher) {
    process.output_taken().await;
    let _verbs = process.verbs.lock().await;
    stopped(task, process, exit, events);
}

/// Announces an end, for whoever holds the lock of the process's verbs.
pub(super) fn stopped(task: &Task, process: &TaskProcess, exit: Exit, events: &EventPublisher) {
    process.state.send_replace(State::Stopped(exit));
    process.close_stdin();
    let mut event = TaskExit::new();
    event.container_id = task.id.clone();
    event.id = if process.exec_id.is_empty() { task.id.clone() } else { process.exec_id.clone() };
    event.pid = process.pid();
    event.exit_status = exit.code;
    event.exited_at = timestamp(exit.at);
    events.publish(&event);
}
