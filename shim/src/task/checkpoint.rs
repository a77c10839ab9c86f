//! Checkpoints of tasks, and tasks that are restored from one.
//!
//! ```text
//!  create with a checkpoint        start
//! ─────────────────────────→ Created ───→ Running (as if it had never stopped)
//!                    without a process │  failed restore, delete
//!                                      └───→ Stopped
//! ```

use super::process::State;
use super::{Creation, Reservation, Task, TaskProcess, Tasks, attend, blocking, finish, gone, lock};
use super::{precondition, supervise_init};
use crate::engine::Restorable;
use crate::stdio::{self, Prepared};
use containerd_shim_protos::events::task::TaskCheckpointed;
use executors::{CheckpointOptions, Criu, Exit, Result, Stdio};
use nix::libc::SIGKILL;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::SystemTime;

/// What a created task has in place of a process until its start.
pub(super) struct Restoration {
    restorable: Box<dyn Restorable>,
    stdio: Stdio,
    prepared: Prepared,
}

impl Task {
    /// What criu is used with, by the container's runtime options.
    pub fn criu(&self) -> &Criu {
        &self.criu
    }

    /// Fails while the processes of a task to be restored are not there yet.
    pub(super) fn has_processes(&self) -> Result<()> {
        match *lock(&self.restoration) {
            Some(_) => Err(precondition("the task was not started yet: its processes come from a checkpoint")),
            None => Ok(()),
        }
    }

    async fn dump(self: &Arc<Self>, options: CheckpointOptions, criu: Criu) -> Result<()> {
        // It is not paused or resumed meanwhile: criu freezes it, too.
        let _verbs = self.freezer.verbs().await;
        match self.init.state() {
            State::Running => {}
            State::Created => return Err(precondition("the task was not started yet: it cannot be checkpointed")),
            State::Stopped(_) => return Err(precondition("the task has ended: it cannot be checkpointed")),
        }
        let bundle = self.bundle.clone();
        let dumped = self.clone().with_container(move |container| container.checkpoint(&bundle, &criu, &options));
        dumped.await.unwrap_or_else(|| Err(gone()))
    }
}

impl Tasks {
    /// Writes a checkpoint of a running or paused task, which goes on unless the options say that it is to end.
    ///
    /// # Errors
    /// FailedPrecondition when it was not started or has ended; Unimplemented where the host can't.
    pub async fn checkpoint(self: Arc<Self>, task: Arc<Task>, options: CheckpointOptions, criu: Criu) -> Result<()> {
        let mut event = TaskCheckpointed::new();
        event.container_id = task.id.clone();
        event.checkpoint = options.images.to_string_lossy().into_owned();
        task.dump(options, criu).await.map_err(|error| error.context("checkpoint"))?;
        self.events.publish(&event);
        self.activity.notify_one();
        Ok(())
    }

    /// Creates a container whose processes come from the checkpoint in `images` when it is started: until then it has no pid.
    pub(super) async fn create_restorable(self: Arc<Self>, creation: Creation, images: PathBuf) -> Result<u32> {
        let Creation { id, bundle, rootfs, names, options, event, .. } = creation;
        let mut reservation = Reservation::new(&self, &id)?;
        let restoration = {
            let (engine, bundle, names, options) =
                (self.engine.clone(), bundle.clone(), names.clone(), options.clone());
            let logger = stdio::Identity { id: id.clone(), namespace: self.namespace.clone() };
            blocking(move || {
                let bundle = super::open_bundle(&*engine, &logger.id, &bundle, &names)?;
                let restorable = bundle.restorable(&rootfs, &images, &options.criu, &options.create)?;
                let (stdio, prepared) = stdio::open(&names, options.io_owner, stdio::For::Init, &logger)?;
                Ok(Restoration { restorable, stdio, prepared })
            })
        };
        let restoration = restoration.await.map_err(|error| error.context("checkpoint"))?;
        let choice = restoration.restorable.choice();
        log::info!(id = id.as_str(); "created from a checkpoint with the executor {:?}: {}", choice.executor, choice.reason);
        let init = Arc::new(TaskProcess::new("", names, None));
        let owns_pid_namespace = restoration.restorable.owns_pid_namespace();
        let task = Arc::new(Task::new(id, bundle, init, &options, owns_pid_namespace));
        *lock(&task.restoration) = Some(restoration);
        if !reservation.fill(&task) {
            return Err(super::abandoned());
        }
        self.events.publish(&event);
        Ok(0)
    }

    /// Makes the processes of a task that has none yet. If that fails, the task ends.
    pub(super) async fn restore(&self, task: &Arc<Task>, restoration: Restoration) -> Result<()> {
        let Restoration { restorable, stdio, prepared } = restoration;
        let (id, bundle) = (task.id.clone(), task.bundle.clone());
        let made = blocking(move || finish(restorable.restore(stdio)?, &id, &bundle)).await;
        let attended = match made {
            Ok((container, oom)) => attend(container, prepared, &task.init).await.map(|attended| (attended, oom)),
            Err(error) => Err(error),
        };
        let ((container, exit), oom) = match attended {
            Ok(attended) => attended,
            Err(error) => {
                self.end_unstarted(task).await;
                return Err(error.context("restore"));
            }
        };
        *task.container.write().unwrap_or_else(PoisonError::into_inner) = Some(container);
        if let Some(Err(error)) = oom.map(|watch| task.begin_oom_watch(watch, &self.events)) {
            log::warn!(id = task.id.as_str(); "{error:#}");
        }
        tokio::spawn(supervise_init(task.clone(), exit, self.events.clone()));
        self.activity.notify_one();
        Ok(())
    }

    /// Ends a task that was created and not started.
    pub(super) async fn end_created(&self, task: &Arc<Task>) -> Result<Exit> {
        {
            let _verbs = task.init.verbs.lock().await;
            if task.has_processes().is_err() {
                return Ok(self.end_unstarted(task).await);
            }
        }
        task.init.end().await
    }

    /// Ends a task without a process, as if that had been killed. The caller holds the lock of its verbs.
    pub(super) async fn end_unstarted(&self, task: &Arc<Task>) -> Exit {
        // Dropped where it may block: it removes a cgroup.
        let restoration = lock(&task.restoration).take();
        let dropped = blocking(move || {
            drop(restoration);
            Ok(())
        });
        if let Err(error) = dropped.await {
            log::error!(id = task.id.as_str(); "{error}");
        }
        let exit = Exit { code: 128 + SIGKILL as u32, at: SystemTime::now() };
        super::supervise::stopped(task, &task.init, exit, &self.events);
        exit
    }
}
