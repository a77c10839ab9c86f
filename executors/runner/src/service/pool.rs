//! The instances of a service, by Wasmtime's own handler, which says when one is made and used again.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use wasmtime::component::{GuestTaskId, InstancePre};
use wasmtime::{Store, StoreContextMut};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::handler::{
    HandlerState, Instance, ProxyPre, ShouldAccept, WorkerExpiration, WorkerState, WorkerStatus,
};
use wasmtime_wasi_http::{p2, p3};

use crate::Entry;
use crate::component::State;
use crate::limits::{Budget, Limits};
use crate::trap::Traps;
use crate::wasi::Source;

/// How long an instance waits for another request.
const IDLE: Duration = Duration::from_secs(1);

/// What instances are made from.
pub(super) struct Pool {
    instance: ProxyPre<State>,
    /// How many requests one answers in its life, and how many of them at once.
    requests: usize,
    at_once: usize,
    source: Source,
    budget: Arc<Budget>,
    traps: Arc<Traps>,
    quiet: Quiet,
}

impl Pool {
    pub fn new(
        instance: InstancePre<State>,
        entry: Entry,
        requests: Option<u32>,
        source: Source,
        budget: Arc<Budget>,
        traps: Traps,
    ) -> wasmtime::Result<Pool> {
        // Wasmtime's own numbers. With WASI 0.2 instances have always been new for each request, and guests rely on it.
        let (instance, default, at_once) = match entry {
            Entry::Handler03 => (ProxyPre::P3(p3::bindings::ServicePre::new(instance)?), 128, 16),
            _ => (ProxyPre::P2(p2::bindings::ProxyPre::new(instance)?), 1, 1),
        };
        let requests = requests.unwrap_or(default) as usize;
        Ok(Pool { instance, requests, at_once, source, budget, traps: Arc::new(traps), quiet: Quiet::default() })
    }

    /// What knows when no instance has anything to do.
    pub fn quiet(&self) -> Quiet {
        self.quiet.clone()
    }
}

impl HandlerState for Pool {
    type StoreData = State;
    type WorkerExpiration = Expiration;
    type WorkerState = Worker;

    async fn instantiate(&self) -> wasmtime::Result<Instance<State, Expiration, Worker>> {
        let wasi = self.source.context()?.build();
        let state = State::new(wasi, self.source.policy.clone(), Limits::new(&self.budget));
        let mut store = Store::new(self.engine(), state);
        store.limiter(|state| &mut state.limits);
        let proxy = self.instance.instantiate_async(&mut store).await?;
        let clock = Box::pin(tokio::time::sleep(IDLE));
        Ok(Instance {
            store,
            proxy,
            view: WasiHttpView::http,
            expiration: Expiration { clock, busy: None, quiet: self.quiet.clone() },
            state: Worker { requests: self.requests, at_once: self.at_once, traps: self.traps.clone() },
        })
    }
}

impl Pool {
    fn engine(&self) -> &wasmtime::Engine {
        match &self.instance {
            ProxyPre::P2(pre) => pre.engine(),
            ProxyPre::P3(pre) => pre.engine(),
        }
    }
}

/// When an instance goes: after a while without requests. One that computes is not asked.
pub(super) struct Expiration {
    clock: Pin<Box<tokio::time::Sleep>>,
    busy: Option<Busy>,
    quiet: Quiet,
}

impl WorkerExpiration for Expiration {
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>, status: WorkerStatus, start: Instant) -> Poll<()> {
        if status != WorkerStatus::Idle {
            if self.busy.is_none() {
                self.busy = Some(self.quiet.busy());
            }
            return Poll::Pending;
        }
        self.busy = None;
        let deadline = (start + IDLE).into();
        if self.clock.deadline() != deadline {
            self.clock.as_mut().reset(deadline);
        }
        self.clock.as_mut().poll(cx)
    }
}

/// What an instance takes on, and what becomes of it.
pub(super) struct Worker {
    requests: usize,
    at_once: usize,
    traps: Arc<Traps>,
}

impl WorkerState for Worker {
    type StoreData = State;
    type RequestData = ();

    fn should_accept_request(&self, at_once: usize, total: usize) -> ShouldAccept {
        if total >= self.requests {
            ShouldAccept::Never
        } else if at_once >= self.at_once {
            ShouldAccept::No
        } else {
            ShouldAccept::Yes
        }
    }

    fn on_request_start(
        &self,
        _store: StoreContextMut<'_, State>,
        _data: (),
        _task: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + 'static + Send + Sync>> {
        // A request may take as long as its client waits.
        Box::pin(std::future::pending())
    }

    fn drop(&self, mut store: Store<State>, result: Result<(), wasmtime::Error>) {
        if let Err(error) = result {
            self.traps.tell(&mut store, &error);
        }
    }
}

/// Counts the instances that have something to do.
#[derive(Clone, Default)]
pub(super) struct Quiet(Arc<(AtomicUsize, Notify)>);

/// One of them.
struct Busy(Quiet);

impl Quiet {
    fn busy(&self) -> Busy {
        self.0.0.fetch_add(1, Ordering::SeqCst);
        Busy(self.clone())
    }

    /// Waits until there is none.
    pub async fn wait(&self) {
        loop {
            let changed = self.0.1.notified();
            if self.0.0.load(Ordering::SeqCst) == 0 {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let Quiet(shared) = &self.0;
        shared.0.fetch_sub(1, Ordering::SeqCst);
        shared.1.notify_waiters();
    }
}
