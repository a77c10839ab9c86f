//! The server: one process, one thread (and a few short-lived ones for calls that block) per group of containers.

use crate::containerd::Access;
use crate::engine::Host;
use crate::events::EventPublisher;
use crate::logging;
use crate::service::Service;
use crate::socket;
use crate::task::Tasks;
use crate::telemetry::Telemetry;
use anyhow::{Context, Result};
use executors::host;
use log::LevelFilter;
use nix::sys::prctl;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, setsid};
use std::fs::OpenOptions;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout};
use ttrpc::asynchronous::Server as TtrpcServer;
use ttrpc::asynchronous::transport::Listener;

/// Threads for calls that block: as many as containers are created, started or deleted, and processes executed, at once.
/// They are made when they are needed; many slow creates must not hold up another task's calls.
const BLOCKING_THREADS: usize = 64;
/// How long such a thread waits for the next call before it ends, and gives its memory back.
const THREAD_KEEP_ALIVE: Duration = Duration::from_millis(500);
/// How long after the last activity the server gives memory back.
const SETTLED: Duration = Duration::from_secs(1);
/// How long the end of the shim waits for events that are not delivered yet.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// How long it waits for spans that are not exported yet, at the same time.
const EXPORT_LIMIT: Duration = Duration::from_secs(2);
/// How long it then waits for answers that are not written yet.
const DISCONNECT_LIMIT: Duration = Duration::from_secs(1);

/// What the server takes over from `start`.
pub struct Server {
    pub listener: UnixListener,
    pub socket: PathBuf,
    /// The container that the shim was started for.
    pub id: String,
    pub namespace: String,
    /// containerd's socket for its API, and that for events.
    pub grpc_address: String,
    pub ttrpc_address: String,
    pub level: LevelFilter,
    /// What `start` could not say.
    pub warning: Option<String>,
}

/// Asks the server to end.
pub struct Stop {
    socket: Mutex<Option<PathBuf>>,
    notify: Notify,
}

impl Stop {
    fn new(socket: PathBuf) -> Self {
        Self { socket: Mutex::new(Some(socket)), notify: Notify::new() }
    }

    /// Removes the socket, so that the next `start` of the group makes a new shim, and wakes the main loop.
    /// Only the first call does: the same path may be another shim's afterwards.
    pub fn request(&self) {
        let socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(error) = socket.and_then(|path| socket::remove(&path).err()) {
            log::error!("{error:#}");
        }
        self.notify.notify_one();
    }
}

/// Serves until all containers are gone and containerd says so, or a signal says so. Call it in a process with one
/// thread, right after the fork: until then containerd waits for the end of our stdout.
pub fn run(server: Server) -> Result<()> {
    detach()?;
    host::share_malloc_arena();
    let bundle = std::env::current_dir().context("find the bundle (the current folder)")?;
    logging::init(&bundle, &server.id, &server.namespace, server.level);
    let served = prepare_and_serve(server);
    match &served {
        Ok(()) => log::debug!("the shim ends"),
        Err(error) => log::error!("the shim ends: {error:#}"),
    }
    served?;
    // Containers that are left (after SIGTERM) are not dropped, which would kill them: they are for `delete`.
    std::process::exit(0)
}

/// Cuts the ties to containerd's process: session, terminal and pipes.
fn detach() -> Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null").context("open /dev/null")?;
    dup2_stdin(&null).and_then(|()| dup2_stdout(&null)).and_then(|()| dup2_stderr(&null)).context("replace stdio")?;
    setsid().context("make a session")?;
    Ok(())
}

fn prepare_and_serve(server: Server) -> Result<()> {
    // The bundle is removed before the last container of the group may be.
    std::env::set_current_dir("/").context("leave the bundle")?;
    prctl::set_child_subreaper(true).context("become a subreaper")?;
    if let Some(warning) = &server.warning {
        log::warn!("{warning}");
    }
    let runtime = Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(THREAD_KEEP_ALIVE)
        .build()
        .context("make the runtime")?;
    let served = runtime.block_on(serve(server));
    // Its drop would wait for blocking calls, and drop containers.
    std::mem::forget(runtime);
    served
}

async fn serve(server: Server) -> Result<()> {
    let mut child = signal(SignalKind::child()).context("handle SIGCHLD")?;
    let mut terminate = signal(SignalKind::terminate()).context("handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("handle SIGINT")?;

    let events = EventPublisher::new(&server.ttrpc_address, &server.namespace);
    let stop = Arc::new(Stop::new(server.socket));
    let access = Access { address: server.grpc_address, namespace: server.namespace.clone() };
    let tasks = Tasks::new(Arc::new(Host { access }), events.clone(), &server.namespace);
    let service = Service::new(tasks.clone(), stop.clone());
    let listener = Listener::try_from(server.listener).context("listen on the socket")?;
    let telemetry = Telemetry::from_env(&server.id, &server.namespace);
    let methods = match &telemetry {
        Some(telemetry) => telemetry.trace(service.methods()),
        None => service.methods(),
    };
    let mut ttrpc = TtrpcServer::new().add_listener(listener).register_service(methods);
    ttrpc.start().await.context("start the ttrpc server")?;
    log::debug!("serving with pid {}", std::process::id());

    let mut settled = pin!(sleep(SETTLED));
    loop {
        tokio::select! {
            () = tasks.active() => settled.as_mut().reset(Instant::now() + SETTLED),
            () = &mut settled, if !settled.is_elapsed() => host::release_memory(),
            _ = child.recv() => host::reap_orphans(),
            _ = terminate.recv() => break log::info!("ends on SIGTERM"),
            _ = interrupt.recv() => break log::info!("ends on SIGINT"),
            () = stop.notify.notified() => break,
        }
    }

    stop.request();
    ttrpc.stop_listen().await;
    let export = async {
        if let Some(telemetry) = &telemetry {
            telemetry.shutdown(EXPORT_LIMIT).await;
        }
    };
    let (drained, ()) = tokio::join!(events.drain(DRAIN_LIMIT), export);
    if !drained {
        log::error!("not all events were delivered within {DRAIN_LIMIT:?}");
    }
    // Also lets the answer to Shutdown be written. After a signal, calls may wait for exits that will not come.
    if timeout(DISCONNECT_LIMIT, ttrpc.disconnect()).await.is_err() {
        log::debug!("ended with calls unanswered");
    }
    Ok(())
}
