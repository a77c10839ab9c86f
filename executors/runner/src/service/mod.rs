//! Services (`wasi:http`): requests come in over HTTP/1.1 and HTTP/2, each is answered by an instance of the component.
//!
//! ```text
//! socket ─ connection (HTTP/1.1 or 2) ─ answer ─> pool ─> instance: one request with WASI 0.2, several with 0.3
//! SIGTERM, SIGINT: no new connections; what is being answered is waited for; then 0. A second one ends it at once.
//! ```

mod activity;
mod answer;
mod connection;
mod pool;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::{Semaphore, watch};
use wasmtime::component::{Component, Linker};
use wasmtime::{Config, Engine, PoolingAllocationConfig};

use self::activity::Activity;
use self::answer::Answerer;
use self::pool::Pool;
use crate::limits::Budget;
use crate::settings::Http;
use crate::trap::Traps;
use crate::wasi::Source;
use crate::{Entry, HTTP_ADDRESS, HTTP_DRAIN, HTTP_VARIABLE, RunnerConfig, component, sys};

/// How many requests are answered at once; others wait.
const MAX_REQUESTS: usize = 256;

/// How many connections there may be at once; others wait in the kernel.
const MAX_CONNECTIONS: usize = 1000;

/// How many times guests and connections have their turn on a thread until it looks for what came in. tokio's own number
/// is for tasks that are over at once; here each may take a slice of time.
const TURNS: u32 = 8;

/// The threads of a service: as many as there are processors for the container.
pub(super) fn threads() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().event_interval(TURNS).enable_all().build()
}

/// Makes instances cheap: their memory, tables and stacks are slots of a pool, which are used again.
pub(super) fn pooling(config: &mut Config) {
    // An instance may still have something to do when its answer is out.
    const INSTANCES: u32 = MAX_REQUESTS as u32 * 2;
    let mut pool = PoolingAllocationConfig::new();
    // Address space only, but for what is used. A component is several core modules, of which one or two have memory.
    pool.total_component_instances(INSTANCES)
        .total_core_instances(INSTANCES * 8)
        .total_memories(INSTANCES * 2)
        .total_tables(INSTANCES * 6)
        .total_stacks(INSTANCES)
        .total_gc_heaps(INSTANCES)
        .table_elements(100_000)
        .max_memories_per_module(4)
        .max_tables_per_module(8);
    config.allocation_strategy(pool);
}

/// Serves until it is told to end. The result is the exit code.
pub(super) async fn run(
    engine: &Engine,
    component: &Component,
    config: &RunnerConfig,
    entry: Entry,
    source: Source,
    budget: Arc<Budget>,
    traps: Traps,
) -> wasmtime::Result<u8> {
    let mut linker = Linker::new(engine);
    component::link(&mut linker, config.imports)?;
    let instance = linker.instantiate_pre(component)?;
    let metrics = traps.metrics.clone();
    let activity = Activity::new(engine)?;
    let pool = Pool::new(instance, entry, config, source, budget, traps, activity.clone())?;
    let answerer = Answerer::new(pool, config.name.clone(), metrics, activity.clone());

    let drain = config.settings.http.drain.unwrap_or(HTTP_DRAIN);
    let told = Receiver::from_owned_fd(sys::tell_of_signals(&[libc::SIGTERM, libc::SIGINT], drain)?)?;
    let address = address(&config.settings.http)?;
    let listener = TcpListener::bind(address).await.map_err(|e| wasmtime::format_err!("listen on {address}: {e}"))?;
    eprintln!("Serving HTTP on http://{}/", listener.local_addr()?);

    let (ending, end) = watch::channel(false);
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let next = async {
            let place = room.clone().acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            _ = told.readable() => break,
            accepted = next => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (answerer, end) = (answerer.clone(), end.clone());
                tokio::spawn(async move {
                    connection::serve(stream, answerer, end).await;
                    drop(place);
                });
            }
            // Out of descriptors, for instance, which may pass.
            Err(e) => {
                eprintln!("hybrid: accept a connection: {e}");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    let _ = ending.send(true);
    // All places are free when there is no connection left.
    let _ = room.acquire_many(MAX_CONNECTIONS as u32).await;
    activity.end().await;
    Ok(0)
}

/// Where to listen: what the settings say, or else the environment.
fn address(http: &Http) -> wasmtime::Result<SocketAddr> {
    match (http.address, std::env::var(HTTP_VARIABLE)) {
        (Some(address), _) => Ok(address),
        (None, Ok(text)) => {
            text.parse().map_err(|_| wasmtime::format_err!("{HTTP_VARIABLE}: {text:?} is no ADDRESS:PORT"))
        }
        (None, Err(_)) => Ok(HTTP_ADDRESS),
    }
}
