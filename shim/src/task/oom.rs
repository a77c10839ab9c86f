//! Telling containerd that the kernel has killed a process of a container for want of memory.

use super::{Task, lock};
use crate::descriptor;
use crate::events::EventPublisher;
use anyhow::{Context, Result};
use containerd_shim_protos::events::task::TaskOOM;
use executors::{Oom, OomWatch};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// When to look again after the kernel has said that memory ran out, which on cgroup v1 it does before it kills.
const LOOK_AGAIN: [Duration; 3] = [Duration::from_millis(10), Duration::from_millis(100), Duration::from_secs(1)];

/// How long to let pass after the kernel has woken us for nothing.
const CALM: Duration = Duration::from_millis(100);

/// A watch under way.
pub(super) struct Watching {
    watch: Arc<OomWatch>,
    /// Whether the kernel has woken the follower, which has not gone back to waiting since.
    reached: Arc<AtomicBool>,
    follower: JoinHandle<()>,
}

impl Task {
    /// Watches the container from now on.
    pub(super) fn begin_oom_watch(&self, watch: OomWatch, events: &EventPublisher) -> Result<()> {
        let interest = if watch.is_priority() { Interest::PRIORITY } else { Interest::READABLE };
        let fd = watch.as_fd().try_clone_to_owned().context("duplicate a descriptor")?;
        let fd = descriptor::watch(fd, interest).context("watch for processes that run out of memory")?;
        let (watch, reached) = (Arc::new(watch), Arc::default());
        let follower =
            tokio::spawn(follow(self.id.clone(), watch.clone(), fd, interest, Arc::clone(&reached), events.clone()));
        *lock(&self.oom) = Some(Watching { watch, reached, follower });
        Ok(())
    }

    /// Ends the watch with a last look: to be called before the exit that may be the consequence is announced.
    pub(super) fn end_oom_watch(&self, events: &EventPublisher) {
        let Some(Watching { watch, reached, follower }) = lock(&self.oom).take() else { return };
        follower.abort();
        look(&self.id, &watch, reached.load(Ordering::Relaxed), events);
    }
}

async fn follow(
    id: String,
    watch: Arc<OomWatch>,
    fd: AsyncFd<OwnedFd>,
    interest: Interest,
    reached: Arc<AtomicBool>,
    events: EventPublisher,
) {
    while let Ok(mut ready) = fd.ready(interest).await {
        ready.clear_ready();
        reached.store(true, Ordering::Relaxed);
        for pause in LOOK_AGAIN {
            match look(&id, &watch, true, &events) {
                Oom::Gone => return,
                Oom::Killed => break,
                Oom::Pending => sleep(pause).await,
                // On v2 a container that gets on by giving up caches wakes this at every turn; the counter is kept meanwhile.
                Oom::Nothing => {
                    sleep(CALM).await;
                    break;
                }
            }
        }
        if look(&id, &watch, true, &events) == Oom::Gone {
            return;
        }
        reached.store(false, Ordering::Relaxed);
    }
}

fn look(id: &str, watch: &OomWatch, reached: bool, events: &EventPublisher) -> Oom {
    let oom = watch.take(reached).unwrap_or_else(|error| {
        log::warn!(id = id; "{error}");
        Oom::Gone
    });
    if oom == Oom::Killed {
        let mut event = TaskOOM::new();
        event.container_id = id.to_owned();
        events.publish(&event);
    }
    oom
}
