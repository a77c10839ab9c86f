//! `precompile --watch`: what containerd has, and what its events say is pulled.
//!
//! ```text
//! begin, and when containerd is back: subscribe ─> each image there is ─> precompile
//! image created or updated ─> precompile ─ not unpacked yet ─> pending ─ its topmost layer was unpacked ─> precompile
//! ```
//! An image is there before its layers are unpacked where clients do that themselves (ctr), and after it elsewhere (the CRI).

use super::{complain, of_image};
use crate::containerd::{Access, Connection, Event, Images, SubscribeRequest, namespaces as all_namespaces};
use executors::wasm::Snapshot;
use executors::{Kind, Result, WasmOptions};
use nix::sys::signal::{SigSet, Signal};
use std::collections::{BTreeSet, VecDeque};
use std::thread;
use std::time::Duration;
use tokio::sync::watch;

/// How long after a connection has ended the next one is tried.
const PAUSE: Duration = Duration::from_secs(1);

/// How many images wait for their layers; of more the oldest are given up.
const MAX_PENDING: usize = 256;

/// The snapshotter whose events don't say which it is: containerd's default (before containerd 2.0 none says so).
const SNAPSHOTTER: &str = "overlayfs";

/// Watches these namespaces, all when there are none, until SIGTERM or SIGINT. A containerd that is away is waited for.
pub fn run(access: &Access, namespaces: &[String], options: &WasmOptions) {
    let stop = Stop::on_signals();
    let mut watch = Watch { access, options, done: BTreeSet::new(), pending: VecDeque::new() };
    let mut reported = false;
    loop {
        let subscribed = Connection::open(access).and_then(|connection| connection.subscribe(&request(namespaces)));
        let ended = subscribed.and_then(|mut events| {
            reported = false;
            // From here on nothing is missed: what is pulled meanwhile is in the list, or its event waits.
            watch.catch_up(namespaces, &stop)?;
            while let Some(event) = events.next(stop.requested())? {
                watch.handle(event)?;
            }
            Ok(())
        });
        match ended {
            Ok(()) => return,
            Err(_) if stop.is_requested() => return,
            // Once, however long containerd is away.
            Err(error) if !std::mem::replace(&mut reported, true) => complain(format!("{error}; it is tried again")),
            Err(_) => {}
        }
        stop.wait(PAUSE);
    }
}

/// One filter for each topic and namespace (containerd: pkg/filters).
fn request(namespaces: &[String]) -> SubscribeRequest {
    let topics = ["/images/create", "/images/update", "/snapshot/commit"];
    let filters = topics.iter().flat_map(|topic| {
        let of = move |namespace: &String| format!("topic=={topic:?},namespace=={namespace:?}");
        let any = namespaces.is_empty().then(|| format!("topic=={topic:?}"));
        namespaces.iter().map(of).chain(any)
    });
    SubscribeRequest { filters: filters.collect() }
}

struct Watch<'a> {
    access: &'a Access,
    options: &'a WasmOptions,
    /// The images that there are, by namespace and digest, of which nothing is left to be done.
    done: BTreeSet<(String, String)>,
    pending: VecDeque<Pending>,
}

/// An image whose layers are not unpacked yet.
struct Pending {
    namespace: String,
    image: String,
    chain: String,
}

impl Watch<'_> {
    /// Precompiles what there is: pulled before this began, or while containerd was away.
    ///
    /// # Errors
    /// Unavailable when containerd ends.
    fn catch_up(&mut self, namespaces: &[String], stop: &Stop) -> Result<()> {
        let namespaces = if namespaces.is_empty() { all_namespaces(self.access)? } else { namespaces.to_vec() };
        // Their events may be among those that were missed.
        self.pending.clear();
        let before = std::mem::take(&mut self.done);
        for namespace in namespaces {
            let access = Access { namespace: namespace.clone(), ..self.access.clone() };
            for image in Images::all(&access)? {
                if stop.is_requested() {
                    return Ok(());
                }
                // One image often has several names.
                let key = (namespace.clone(), image.target);
                let is_done = self.done.contains(&key) || before.contains(&key);
                if is_done || self.precompile(&namespace, &image.name, None)? {
                    self.done.insert(key);
                }
            }
        }
        Ok(())
    }

    fn handle(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Image { namespace, name } => {
                self.precompile(&namespace, &name, None)?;
            }
            Event::Unpacked { namespace, chain, snapshotter } => {
                let is_due = |pending: &Pending| pending.namespace == namespace && pending.chain == chain;
                let (due, rest) = self.pending.drain(..).partition::<VecDeque<_>, _>(is_due);
                self.pending = rest;
                let snapshotter = if snapshotter.is_empty() { SNAPSHOTTER } else { &snapshotter };
                for Pending { namespace, image, .. } in due {
                    self.precompile(&namespace, &image, Some(snapshotter))?;
                }
            }
            Event::Other => {}
        }
        Ok(())
    }

    /// Returns whether nothing is left to be done: it was compiled, or can't be.
    ///
    /// # Errors
    /// Unavailable when containerd ends.
    fn precompile(&mut self, namespace: &str, image: &str, snapshotter: Option<&str>) -> Result<bool> {
        let access = Access { namespace: namespace.to_owned(), ..self.access.clone() };
        let mut missing = None;
        match of_image(&access, image, snapshotter, &mut missing, self.options) {
            Ok(modules) => modules.iter().for_each(|module| {
                println!("{namespace} {image} {} {}", module.name, module.folder.display());
            }),
            Err(_) if missing.is_some() => {
                let chain = missing.map(|snapshot: Snapshot| snapshot.chain).unwrap_or_default();
                self.pending.push_back(Pending { namespace: access.namespace, image: image.to_owned(), chain });
                if self.pending.len() > MAX_PENDING {
                    self.pending.pop_front();
                }
                return Ok(false);
            }
            Err(error) => {
                if error.kind() == Kind::Unavailable {
                    // If it is containerd that is away, this says so.
                    all_namespaces(self.access)?;
                }
                complain(format!("namespace {namespace}: {error}"));
            }
        }
        Ok(true)
    }
}

/// Whether SIGTERM or SIGINT has come: it ends the watch, but not what is being compiled.
struct Stop(watch::Receiver<bool>);

impl Stop {
    /// To be called while there is one thread: those made later inherit that the signals are blocked.
    fn on_signals() -> Stop {
        let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT]);
        let (sender, receiver) = watch::channel(false);
        // A set of signals that exist can be blocked and waited for (sigprocmask(2), sigwait(3)).
        let _ = signals.thread_block();
        thread::spawn(move || {
            let _ = signals.wait();
            sender.send_replace(true);
        });
        Stop(receiver)
    }

    fn is_requested(&self) -> bool {
        *self.0.borrow()
    }

    async fn requested(&self) {
        // The sender lives until it has sent.
        let _ = self.0.clone().wait_for(|stop| *stop).await;
    }

    /// Waits until then, or for so long.
    fn wait(&self, time: Duration) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        let waited =
            runtime.map(|runtime| runtime.block_on(async { tokio::time::timeout(time, self.requested()).await }));
        if waited.is_err() {
            thread::sleep(time);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_containerds() {
        assert_eq!(request(&[]).filters[0], r#"topic=="/images/create""#);
        let filters = request(&["a".into(), "b".into()]).filters;
        assert_eq!(filters.len(), 6);
        assert_eq!(filters[1], r#"topic=="/images/create",namespace=="b""#);
    }
}
