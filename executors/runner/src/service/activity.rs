//! What goes on in a service: how many things have something to do, and the clock by which they share the threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::thread::Thread;
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use wasmtime::Engine;

/// How long a guest may compute until others have the thread.
const SLICE: Duration = Duration::from_millis(10);

/// How long there has to be nothing to do for the clock to stop: starting it again takes a system call.
const STOP: Duration = Duration::from_secs(1);

/// Counts what has something to do: requests, and instances.
#[derive(Clone)]
pub(super) struct Activity(Arc<Inner>);

struct Inner {
    active: AtomicUsize,
    changed: Notify,
    clock: Thread,
    stopped: AtomicBool,
}

/// One of them, until it is dropped.
pub(super) struct Active(Activity);

impl Activity {
    /// With a clock that counts the engine's epochs while there is something to do: at each of them a guest lets others have
    /// its thread.
    pub fn new(engine: &Engine) -> std::io::Result<Activity> {
        let engine = engine.clone();
        let (give, take) = std::sync::mpsc::sync_channel::<Activity>(1);
        let clock = std::thread::Builder::new().name("clock".to_owned()).stack_size(64 << 10).spawn(move || {
            if let Ok(activity) = take.recv() {
                activity.0.count_epochs(&engine);
            }
        })?;
        let clock = clock.thread().clone();
        let inner =
            Inner { active: AtomicUsize::new(0), changed: Notify::new(), clock, stopped: AtomicBool::new(false) };
        let activity = Activity(Arc::new(inner));
        let _ = give.send(activity.clone());
        Ok(activity)
    }

    pub fn begin(&self) -> Active {
        self.0.active.fetch_add(1, SeqCst);
        if self.0.stopped.load(SeqCst) {
            self.0.clock.unpark();
        }
        Active(self.clone())
    }

    /// Waits until there is nothing to do.
    pub async fn end(&self) {
        loop {
            let changed = self.0.changed.notified();
            if self.0.active.load(SeqCst) == 0 {
                return;
            }
            changed.await;
        }
    }
}

impl Inner {
    fn count_epochs(&self, engine: &Engine) {
        let mut last = Instant::now();
        loop {
            std::thread::sleep(SLICE);
            engine.increment_epoch();
            if self.active.load(SeqCst) > 0 {
                last = Instant::now();
            } else if last.elapsed() >= STOP {
                self.stopped.store(true, SeqCst);
                // Whoever begins now either is counted here or sees that the clock has to be woken.
                while self.active.load(SeqCst) == 0 {
                    std::thread::park();
                }
                self.stopped.store(false, SeqCst);
                last = Instant::now();
            }
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let Activity(inner) = &self.0;
        if inner.active.fetch_sub(1, SeqCst) == 1 {
            inner.changed.notify_waiters();
        }
    }
}
