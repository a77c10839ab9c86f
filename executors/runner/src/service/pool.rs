//! The instances of a service, by Wasmtime's own handler, which says when one is made and used again.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use wasmtime::component::{GuestTaskId, InstancePre};
use wasmtime::{Store, StoreContextMut};
use wasmtime_wasi_http::WasiHttpView;
use wasmtime_wasi_http::handler::{
    HandlerState, Instance, ProxyPre, ShouldAccept, WorkerExpiration, WorkerState, WorkerStatus,
};
use wasmtime_wasi_http::{p2, p3};

use super::activity::{Active, Activity};
use super::answer::Waiting;
use crate::component::State;
use crate::limits::{Budget, Limits};
use crate::trap::Traps;
use crate::wasi::Source;
use crate::{Entry, HTTP_DRAIN, RunnerConfig};

/// How long an instance waits for another request.
const IDLE: Duration = Duration::from_secs(1);

/// What instances are made from.
pub(super) struct Pool {
    instance: ProxyPre<State>,
    /// How many requests one answers in its life, and how many of them at once.
    requests: usize,
    at_once: usize,
    /// How long it may go on with requests that nobody waits for.
    unwanted: Duration,
    source: Source,
    budget: Arc<Budget>,
    traps: Arc<Traps>,
    activity: Activity,
}

impl Pool {
    pub fn new(
        instance: InstancePre<State>,
        entry: Entry,
        config: &RunnerConfig,
        source: Source,
        budget: Arc<Budget>,
        traps: Traps,
        activity: Activity,
    ) -> wasmtime::Result<Pool> {
        // Wasmtime's own numbers. With WASI 0.2 instances have always been new for each request, and guests rely on it.
        let (instance, default, at_once) = match entry {
            Entry::Handler03 => (ProxyPre::P3(p3::bindings::ServicePre::new(instance)?), 128, 16),
            _ => (ProxyPre::P2(p2::bindings::ProxyPre::new(instance)?), 1, 1),
        };
        let http = &config.settings.http;
        let requests = http.requests.unwrap_or(default) as usize;
        let unwanted = Duration::from_secs(http.drain.unwrap_or(HTTP_DRAIN).max(1).into());
        Ok(Pool { instance, requests, at_once, unwanted, source, budget, traps: Arc::new(traps), activity })
    }
}

impl HandlerState for Pool {
    type StoreData = State;
    type WorkerExpiration = Expiration;
    type WorkerState = Worker;

    async fn instantiate(&self) -> wasmtime::Result<Instance<State, Expiration, Worker>> {
        let wasi = self.source.context()?.build();
        let state = State::new(wasi, &self.source, Limits::new(&self.budget));
        let mut store = Store::new(self.engine(), state);
        store.limiter(|state| &mut state.limits);
        // At each tick of the clock others have the thread.
        store.epoch_deadline_async_yield_and_update(1);
        store.set_epoch_deadline(1);
        let proxy = self.instance.instantiate_async(&mut store).await?;
        let taken = Arc::new(Taken::default());
        let expiration = Expiration {
            clock: Box::pin(tokio::time::sleep(IDLE)),
            unwanted_since: None,
            active: None,
            activity: self.activity.clone(),
            unwanted: self.unwanted,
            taken: taken.clone(),
        };
        let state = Worker { requests: self.requests, at_once: self.at_once, taken, traps: self.traps.clone() };
        Ok(Instance { store, proxy, view: WasiHttpView::http, expiration, state })
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

/// The requests that an instance has taken on.
#[derive(Default)]
struct Taken {
    requests: Mutex<Vec<Waiting>>,
    /// Whether it is ended because nobody waits for any of them.
    given_up: AtomicBool,
}

impl Taken {
    fn requests(&self) -> MutexGuard<'_, Vec<Waiting>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, request: Waiting) {
        let mut requests = self.requests();
        requests.retain(Waiting::is_wanted);
        requests.push(request);
    }

    /// Whether anybody waits for one of them.
    fn any_wanted(&self) -> bool {
        self.requests().iter().any(Waiting::is_wanted)
    }
}

/// When an instance goes: after a while without requests, or when it doesn't come to an end with those that nobody waits
/// for any more.
pub(super) struct Expiration {
    clock: Pin<Box<tokio::time::Sleep>>,
    /// Since when nobody has been seen to wait for its answers.
    unwanted_since: Option<Instant>,
    active: Option<Active>,
    activity: Activity,
    unwanted: Duration,
    taken: Arc<Taken>,
}

impl WorkerExpiration for Expiration {
    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>, status: WorkerStatus, start: Instant) -> Poll<()> {
        if status == WorkerStatus::Idle {
            self.active = None;
            let deadline = (start + IDLE).into();
            if self.clock.deadline() != deadline {
                self.clock.as_mut().reset(deadline);
            }
            return self.clock.as_mut().poll(cx);
        }
        if self.active.is_none() {
            self.active = Some(self.activity.begin());
        }
        // A response that is out may leave work behind, which is the guest's own affair.
        if status == WorkerStatus::PostReturn {
            return Poll::Pending;
        }
        loop {
            let now = Instant::now();
            if self.taken.any_wanted() {
                self.unwanted_since = None;
            } else if *self.unwanted_since.get_or_insert(now) + self.unwanted <= now {
                self.taken.given_up.store(true, Relaxed);
                return Poll::Ready(());
            }
            // Nobody tells when a client is gone: so this looks again from time to time.
            ready!(self.clock.as_mut().poll(cx));
            let again = self.unwanted_since.unwrap_or(now) + self.unwanted;
            self.clock.as_mut().reset(again.into());
        }
    }
}

/// What an instance takes on, and what becomes of it.
pub(super) struct Worker {
    requests: usize,
    at_once: usize,
    taken: Arc<Taken>,
    traps: Arc<Traps>,
}

impl WorkerState for Worker {
    type StoreData = State;
    type RequestData = Waiting;

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
        request: Waiting,
        _task: GuestTaskId,
    ) -> Pin<Box<dyn Future<Output = ()> + 'static + Send + Sync>> {
        self.taken.add(request);
        // A request may take as long as its client waits.
        Box::pin(std::future::pending())
    }

    fn drop(&self, mut store: Store<State>, result: Result<(), wasmtime::Error>) {
        match result {
            Err(_) if self.taken.given_up.load(Relaxed) => {
                eprintln!(
                    "hybrid: {}: an instance is ended that went on with requests of clients that are gone",
                    self.traps.name
                );
            }
            Err(error) => drop(self.traps.tell(&mut store, &error)),
            Ok(()) => {}
        }
    }
}
