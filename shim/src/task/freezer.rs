//! Pausing a task and letting it go on.

use super::process::State;
use super::{Task, Tasks, gone, precondition};
use containerd_shim_protos::events::task::{TaskPaused, TaskResumed};
use executors::Result;
use std::sync::Arc;
use tokio::sync::watch;

/// Whether the processes of a container are held by its freezer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Freezer {
    #[default]
    Thawed,
    /// On the way; it can take the kernel a while.
    Freezing,
    Frozen,
}

/// The freezer's state, and a lock on changing it.
#[derive(Default)]
pub(super) struct FreezerState {
    state: watch::Sender<Freezer>,
    verbs: tokio::sync::Mutex<()>,
}

impl FreezerState {
    /// Keeps the container as it is, frozen or not.
    pub(super) async fn verbs(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.verbs.lock().await
    }
}

impl Task {
    /// Whether the container is paused, or about to be.
    pub fn freezer(&self) -> Freezer {
        *self.freezer.state.borrow()
    }

    /// Pauses everything in the container, and returns once nothing runs any more.
    ///
    /// # Errors
    /// FailedPrecondition unless init runs.
    async fn freeze(self: &Arc<Self>) -> Result<()> {
        let _verbs = self.freezer.verbs.lock().await;
        match (self.init.state(), self.freezer()) {
            (State::Created, _) => return Err(precondition("the task was not started yet: it cannot be paused")),
            (State::Stopped(_), _) => return Err(precondition("the task has ended: it cannot be paused")),
            (State::Running, Freezer::Thawed) => {}
            (State::Running, _) => return Err(precondition("the task is paused already")),
        }
        self.freezer.state.send_replace(Freezer::Freezing);
        let frozen = self.clone().with_container(|container| container.freeze()).await.unwrap_or_else(|| Err(gone()));
        self.freezer.state.send_replace(if frozen.is_ok() { Freezer::Frozen } else { Freezer::Thawed });
        frozen
    }

    /// Lets a paused container go on.
    ///
    /// # Errors
    /// FailedPrecondition unless it is paused.
    async fn thaw(self: &Arc<Self>) -> Result<()> {
        let _verbs = self.freezer.verbs.lock().await;
        if let State::Stopped(_) = self.init.state() {
            return Err(precondition("the task has ended: it cannot be resumed"));
        }
        if self.freezer() != Freezer::Frozen {
            return Err(precondition("the task is not paused"));
        }
        self.thaw_now().await
    }

    async fn thaw_now(self: &Arc<Self>) -> Result<()> {
        self.clone().with_container(|container| container.thaw()).await.unwrap_or_else(|| Err(gone()))?;
        self.freezer.state.send_replace(Freezer::Thawed);
        Ok(())
    }

    /// Lets a paused container go on to its end: after SIGKILL was sent, which on cgroup v1 waits for that, or after init has
    /// ended in spite of the pause.
    pub(super) async fn end_freeze(self: &Arc<Self>) {
        let _verbs = self.freezer.verbs.lock().await;
        if self.freezer() == Freezer::Frozen
            && let Err(error) = self.thaw_now().await
        {
            log::warn!(id = self.id.as_str(); "resume a container that is to end: {error}");
        }
    }
}

impl Tasks {
    /// Pauses a task; see [`Task::freezer`].
    pub async fn pause(self: Arc<Self>, task: Arc<Task>) -> Result<()> {
        task.freeze().await?;
        let mut event = TaskPaused::new();
        event.container_id = task.id.clone();
        self.events.publish(&event);
        Ok(())
    }

    /// Lets a paused task go on.
    pub async fn resume(self: Arc<Self>, task: Arc<Task>) -> Result<()> {
        task.thaw().await?;
        let mut event = TaskResumed::new();
        event.container_id = task.id.clone();
        self.events.publish(&event);
        Ok(())
    }
}
