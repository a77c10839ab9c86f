//! Tasks: one per container, with the life cycle of its processes.
//!
//! ```text
//!  create            start                exit
//! ───────→ Created ───────→ Running ─────────────→ Stopped(Exit) ───→ (not in the map)
//!             │   failed start, kill, delete          ↑      delete
//!             └───────────────────────────────────────┘
//! ```
//! - Exec'd processes have the same life, see [`exec`]; a running container may be paused, see [`freezer`].
//! - Each process has one supervisor, which waits for its pidfd and then stops it.
//! - Whoever changes a state announces it under the same lock (`verbs`), so that no exit is published before its start.
//! - `State` can be read without that lock: asking for it never waits for a start that takes long.
//! - The map's lock is held for look-ups only, never across a call to an executor.

mod checkpoint;
mod exec;
mod freezer;
mod oom;
mod process;
mod supervise;

pub use exec::ExecRequest;
pub use freezer::Freezer;
pub use process::{State, TaskProcess};

use crate::engine::{Bundle, Container, Engine};
use crate::events::EventPublisher;
use crate::options::Options;
use crate::status::timestamp;
use crate::stdio::{self, Names, Owner};
use anyhow::{Context, anyhow};
use checkpoint::Restoration;
use containerd_shim_protos::events::task::{TaskCreate, TaskDelete, TaskStart};
use exec::Execs;
use executors::{Criu, Error, Exit, Kind, OomWatch, Result, RootfsMount, Stats};
use freezer::FreezerState;
use nix::libc::SIGKILL;
use oom::Watching;
use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use supervise::{ExitFd, supervise_init, watch_exit};
use tokio::sync::Notify;

/// The file in the bundle with the pid of init, for `delete` after the shim has died.
pub const INIT_PID_FILE: &str = "init.pid";

/// What a Create request asks for.
pub struct Creation {
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: Vec<RootfsMount>,
    pub names: Names,
    pub options: Options,
    /// The folder of the checkpoint that its processes come from.
    pub checkpoint: Option<PathBuf>,
    /// The event that announces the task, but for the pid.
    pub event: TaskCreate,
}

/// A container and its processes.
pub struct Task {
    pub id: String,
    pub bundle: PathBuf,
    pub init: Arc<TaskProcess>,
    execs: Arc<Execs>,
    /// Whom the streams of its processes belong to.
    owner: Option<Owner>,
    owns_pid_namespace: bool,
    freezer: FreezerState,
    oom: Mutex<Option<Watching>>,
    criu: Criu,
    /// Where its processes will come from; `None` when they are there.
    restoration: Mutex<Option<Restoration>>,
    /// `None` once it was deleted. Locked only where blocking is allowed: an executor's call may take milliseconds.
    container: RwLock<Option<Box<dyn Container>>>,
    /// Held by a Delete, so that a second one finds the task gone instead of half gone.
    deletion: tokio::sync::Mutex<()>,
}

impl Task {
    fn new(id: String, bundle: PathBuf, init: Arc<TaskProcess>, options: &Options, owns_pid_namespace: bool) -> Task {
        Task {
            id,
            bundle,
            init,
            execs: Arc::default(),
            owner: options.io_owner,
            owns_pid_namespace,
            freezer: FreezerState::default(),
            oom: Mutex::default(),
            criu: options.criu.clone(),
            restoration: Mutex::default(),
            container: RwLock::default(),
            deletion: tokio::sync::Mutex::default(),
        }
    }

    /// The process with this exec id; the empty one means init.
    ///
    /// # Errors
    /// NotFound.
    pub fn process(&self, exec_id: &str) -> Result<Arc<TaskProcess>> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        let process = self.execs.get(exec_id);
        process.ok_or_else(|| Error::new(Kind::NotFound, anyhow!("the process {exec_id} does not exist")))
    }

    /// Whether a process may be added or started.
    fn takes_execs(&self) -> Result<()> {
        match (self.init.state(), self.freezer()) {
            (State::Stopped(_), _) => Err(precondition("the container's init has ended")),
            (_, Freezer::Freezing | Freezer::Frozen) => Err(precondition("the container is paused")),
            _ => self.has_processes(),
        }
    }

    /// The pids of everything in the container, as the host sees them, with the ids of exec'd processes. When all have ended
    /// it is that of init: containerd takes a shim without pids for one that leaked, and deletes it when it starts again,
    /// with an exit that nobody has read yet.
    pub async fn pids(self: Arc<Self>) -> Result<Vec<(u32, Option<String>)>> {
        let pids = self.clone().with_container(|container| container.pids()).await.unwrap_or(Ok(Vec::new()))?;
        if pids.is_empty() {
            return Ok(vec![(self.init.pid(), None)]);
        }
        let mut execs = self.execs.pids();
        Ok(pids.into_iter().map(|pid| (pid, execs.remove(&pid))).collect())
    }

    /// Changes the container's resources, which are the JSON of the spec's `linux.resources`.
    ///
    /// # Errors
    /// FailedPrecondition when the task has ended; nothing has changed then.
    pub async fn update(self: Arc<Self>, resources: Vec<u8>) -> Result<()> {
        if let State::Stopped(_) = self.init.state() {
            return Err(precondition("the task has ended: its resources cannot be updated"));
        }
        self.has_processes()?;
        self.with_container(move |container| container.update(&resources)).await.unwrap_or_else(|| Err(gone()))
    }

    /// What the container has used.
    ///
    /// # Errors
    /// NotFound when its cgroup is gone.
    pub async fn stats(self: Arc<Self>) -> Result<Stats> {
        self.has_processes()?;
        self.with_container(|container| container.stats()).await.unwrap_or_else(|| Err(gone()))
    }

    /// Sends a signal to one process, or with `all` to everything in the container. SIGKILL ends a pause.
    ///
    /// # Errors
    /// NotFound when the process has ended, with `all` when init has: then nothing else is left, or about to be killed.
    pub async fn kill(self: Arc<Self>, process: Arc<TaskProcess>, signal: i32, all: bool) -> Result<()> {
        self.has_processes()?;
        if all && process.exec_id.is_empty() {
            if let State::Stopped(_) = self.init.state() {
                return Err(finished());
            }
            let sent = self.clone().with_container(move |container| container.signal_all(signal));
            sent.await.unwrap_or_else(|| Err(finished()))?;
        } else {
            process.signal(signal)?;
        }
        if signal == SIGKILL && process.exec_id.is_empty() {
            self.end_freeze().await;
        }
        Ok(())
    }

    /// Runs a call of the executor where it may block; `None` when the container was deleted.
    async fn with_container<T: Send + 'static>(
        self: Arc<Self>,
        call: impl FnOnce(&dyn Container) -> Result<T> + Send + 'static,
    ) -> Option<Result<T>> {
        let answer = blocking(move || {
            let container = self.container.read().unwrap_or_else(PoisonError::into_inner);
            Ok(container.as_deref().map(call))
        });
        answer.await.unwrap_or_else(|error| Some(Err(error)))
    }
}

/// All tasks of this shim.
pub struct Tasks {
    engine: Arc<dyn Engine>,
    events: EventPublisher,
    /// containerd's namespace, which loggers are told.
    namespace: String,
    map: Mutex<Map>,
    /// Told of what takes much memory for a moment.
    activity: Notify,
    /// Told when a creation has come to nothing.
    given_back: Notify,
}

#[derive(Default)]
struct Map {
    /// `None` reserves the id while its container is being created.
    tasks: HashMap<String, Option<Arc<Task>>>,
    /// Those that were deleted meanwhile.
    abandoned: HashSet<String>,
    /// The shim is about to end and takes no more.
    closed: bool,
}

impl Tasks {
    pub fn new(engine: Arc<dyn Engine>, events: EventPublisher, namespace: &str) -> Arc<Self> {
        Arc::new(Self {
            engine,
            events,
            namespace: namespace.to_owned(),
            map: Mutex::default(),
            activity: Notify::new(),
            given_back: Notify::new(),
        })
    }

    /// Waits until a process has been made or a task deleted: what takes much memory for a moment.
    pub async fn active(&self) {
        self.activity.notified().await;
    }

    /// The task with this id.
    ///
    /// # Errors
    /// NotFound, also while it is still being created.
    pub fn find(&self, id: &str) -> Result<Arc<Task>> {
        let task = lock(&self.map).tasks.get(id).cloned().flatten();
        task.ok_or_else(|| Error::new(Kind::NotFound, anyhow!("the container does not exist")))
    }

    /// If no task is left, lets no more in and returns true. One that is abandoned counts no more: see [`Tasks::emptied`].
    pub fn close_if_empty(&self) -> bool {
        let mut map = lock(&self.map);
        map.closed |= map.tasks.keys().all(|id| map.abandoned.contains(id));
        map.closed
    }

    /// Whether nothing is left, not even what was abandoned.
    pub fn is_empty(&self) -> bool {
        lock(&self.map).tasks.is_empty()
    }

    /// Waits until what was abandoned has come to its end.
    pub async fn emptied(&self) {
        loop {
            let given_back = self.given_back.notified();
            if self.is_empty() {
                return;
            }
            given_back.await;
        }
    }

    /// Has a container that is being created deleted as soon as it exists: containerd's client has hung up, and containerd
    /// deletes what it did not see created. Creating goes on till then, so that what took long (compiling a module) is done
    /// when the client tries again.
    pub fn abandon(&self, id: &str) {
        let mut map = lock(&self.map);
        if let Some(None) = map.tasks.get(id) {
            map.abandoned.insert(id.to_owned());
        }
    }

    /// Creates a container whose init waits for [`Tasks::start`], and returns init's pid.
    pub async fn create(self: Arc<Self>, creation: Creation) -> Result<u32> {
        let mut creation = creation;
        if let Some(images) = creation.checkpoint.take() {
            return self.create_restorable(creation, images).await;
        }
        let Creation { id, bundle, rootfs, names, options, mut event, .. } = creation;
        let mut reservation = Reservation::new(&self, &id)?;
        let Created { container, prepared, oom } = {
            let (engine, bundle, names, options) =
                (self.engine.clone(), bundle.clone(), names.clone(), options.clone());
            let logger = stdio::Identity { id: id.clone(), namespace: self.namespace.clone() };
            blocking(move || create_container(&*engine, &logger, &bundle, &rootfs, &names, &options)).await?
        };
        let init = Arc::new(TaskProcess::new("", names, None));
        let (container, exit) = attend(container, prepared, &init).await?;
        let pid = init.pid();
        let choice = container.choice();
        log::info!(id = id.as_str(); "created with the executor {:?}: {}; pid {pid}", choice.executor, choice.reason);
        let mut task = Task::new(id, bundle, init, &options, container.owns_pid_namespace());
        task.container = RwLock::new(Some(container));
        let task = Arc::new(task);
        if !reservation.fill(&task) {
            let container = task.container.write().unwrap_or_else(PoisonError::into_inner).take();
            blocking(move || container.map_or(Ok(()), |container| container.delete())).await?;
            return Err(abandoned());
        }
        event.pid = pid;
        self.events.publish(&event);
        if let Some(Err(error)) = oom.map(|watch| task.begin_oom_watch(watch, &self.events)) {
            log::warn!(id = task.id.as_str(); "{error:#}");
        }
        tokio::spawn(supervise_init(task, exit, self.events.clone()));
        self.activity.notify_one();
        Ok(pid)
    }

    /// Lets init execute its program, and returns its pid. If that fails, the task ends with an exit event.
    ///
    /// # Errors
    /// FailedPrecondition when it was started before or has ended, else why the program cannot be executed.
    pub async fn start(self: Arc<Self>, task: Arc<Task>) -> Result<u32> {
        let init = &task.init;
        let verbs = init.verbs.lock().await;
        match init.state() {
            State::Created => {}
            State::Running => return Err(precondition("init was started before")),
            State::Stopped(_) => return Err(precondition("init has ended")),
        }
        let restoration = lock(&task.restoration).take();
        if let Some(restoration) = restoration {
            self.restore(&task, restoration).await?;
        } else if let Err(error) = init.start_program().await {
            // The supervisor needs the lock to announce the exit.
            drop(verbs);
            if let Err(error) = init.end().await {
                log::error!(id = task.id.as_str(); "after a failed start: {error}");
            }
            return Err(error.context("start init"));
        }
        init.state.send_replace(State::Running);
        let mut event = TaskStart::new();
        event.container_id = task.id.clone();
        event.pid = init.pid();
        self.events.publish(&event);
        Ok(init.pid())
    }

    /// Deletes a container that has stopped, or was never started, and returns init's pid and exit.
    ///
    /// # Errors
    /// FailedPrecondition while it runs; NotFound when another Delete was quicker. After any other error the task is
    /// still there, and may be deleted again.
    pub async fn delete(self: Arc<Self>, task: Arc<Task>) -> Result<(u32, Exit)> {
        let _deletion = task.deletion.lock().await;
        // A Delete that was waited for here has removed the task.
        self.find(&task.id).and_then(|found| if Arc::ptr_eq(&found, &task) { Ok(()) } else { Err(gone()) })?;
        let exit = match task.init.state() {
            State::Running => return Err(precondition("init is running: a running container cannot be deleted")),
            State::Created => self.end_created(&task).await?,
            State::Stopped(exit) => exit,
        };
        task.init.finish_io().await;
        let owner = task.clone();
        blocking(move || {
            let container = owner.container.write().unwrap_or_else(PoisonError::into_inner).take();
            container.map_or(Ok(()), |container| container.delete())
        })
        .await
        .map_err(|error| error.context("delete"))?;
        lock(&self.map).tasks.remove(&task.id);

        let pid = task.init.pid();
        let mut event = TaskDelete::new();
        event.container_id = task.id.clone();
        event.pid = pid;
        event.exit_status = exit.code;
        event.exited_at = timestamp(exit.at);
        self.events.publish(&event);
        self.activity.notify_one();
        Ok((pid, exit))
    }
}

/// An id that is taken while its container is being created; given back when dropped unfilled.
struct Reservation<'a> {
    tasks: &'a Tasks,
    id: String,
    filled: bool,
}

impl<'a> Reservation<'a> {
    fn new(tasks: &'a Tasks, id: &str) -> Result<Self> {
        let mut map = lock(&tasks.map);
        if map.closed {
            return Err(Error::new(Kind::Unavailable, anyhow!("the shim is shutting down")));
        }
        match map.tasks.entry(id.to_owned()) {
            Entry::Occupied(_) => Err(Error::new(Kind::AlreadyExists, anyhow!("the container exists already"))),
            Entry::Vacant(vacant) => {
                vacant.insert(None);
                Ok(Self { tasks, id: id.to_owned(), filled: false })
            }
        }
    }

    /// Puts the task in, unless it was abandoned.
    fn fill(&mut self, task: &Arc<Task>) -> bool {
        let mut map = lock(&self.tasks.map);
        if map.abandoned.contains(&self.id) {
            return false;
        }
        map.tasks.insert(self.id.clone(), Some(task.clone()));
        self.filled = true;
        true
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.filled {
            let mut map = lock(&self.tasks.map);
            map.tasks.remove(&self.id);
            map.abandoned.remove(&self.id);
            self.tasks.given_back.notify_waiters();
        }
    }
}

/// What the blocking part of a creation makes.
struct Created {
    container: Box<dyn Container>,
    prepared: stdio::Prepared,
    oom: Option<OomWatch>,
}

fn create_container(
    engine: &dyn Engine,
    identity: &stdio::Identity,
    path: &Path,
    rootfs: &[RootfsMount],
    names: &Names,
    options: &Options,
) -> Result<Created> {
    let bundle = open_bundle(engine, &identity.id, path, names)?;
    let (stdio, prepared) = stdio::open(names, options.io_owner, stdio::For::Init, identity)?;
    let (container, oom) = finish(bundle.create(rootfs, stdio, &options.create)?, &identity.id, path)?;
    Ok(Created { container, prepared, oom })
}

/// Opens a bundle for a request that says, as the bundle does, whether there is a terminal.
fn open_bundle(engine: &dyn Engine, id: &str, path: &Path, names: &Names) -> Result<Box<dyn Bundle>> {
    let bundle = engine.open(id, path)?;
    if bundle.terminal() != names.terminal {
        let says = |terminal| if terminal { "a terminal" } else { "no terminal" };
        let (spec, request) = (says(bundle.terminal()), says(names.terminal));
        let message = anyhow!("process.terminal of config.json says {spec}, but the request {request}");
        return Err(Error::new(Kind::InvalidArgument, message));
    }
    Ok(bundle)
}

/// What is due once a container's init is there. On an error the container is dropped, and with it everything of it.
fn finish(container: Box<dyn Container>, id: &str, bundle: &Path) -> Result<(Box<dyn Container>, Option<OomWatch>)> {
    let file = bundle.join(INIT_PID_FILE);
    std::fs::write(&file, container.init().pid().to_string()).with_context(|| format!("write {}", file.display()))?;
    // Without it the container runs all the same.
    let oom = container.watch_oom().unwrap_or_else(|error| {
        log::warn!(id = id; "watch for processes that run out of memory: {error}");
        None
    });
    Ok((container, oom))
}

/// Watches a new init and begins to carry its streams. On an error the container is gone.
async fn attend(
    container: Box<dyn Container>,
    prepared: stdio::Prepared,
    init: &TaskProcess,
) -> Result<(Box<dyn Container>, ExitFd)> {
    let process = container.init();
    let watched = watch_exit(&*process).and_then(|exit| Ok((exit, prepared.run(process.take_console())?)));
    match watched {
        Ok((exit, streams)) => {
            init.made(process, streams).await;
            Ok((container, exit))
        }
        Err(error) => {
            blocking(move || container.delete()).await?;
            Err(error)
        }
    }
}

/// Runs an executor's call on a thread that may block.
async fn blocking<T: Send + 'static>(call: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    tokio::task::spawn_blocking(call)
        .await
        .unwrap_or_else(|error| Err(Error::new(Kind::Internal, anyhow!("a call to the executor failed: {error}"))))
}

/// Locks in spite of a panic under the lock: each of them guards a value that is whole at any time.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a request in the wrong state is answered with.
pub fn precondition(message: &'static str) -> Error {
    Error::new(Kind::FailedPrecondition, anyhow!(message))
}

/// What a Create is answered with whose container was deleted meanwhile.
fn abandoned() -> Error {
    Error::new(Kind::NotFound, anyhow!("it was deleted while it was being created"))
}

/// Clients look for these words, too.
fn finished() -> Error {
    Error::new(Kind::NotFound, anyhow!("process already finished"))
}

fn gone() -> Error {
    Error::new(Kind::NotFound, anyhow!("the container does not exist"))
}

#[cfg(test)]
mod tests;
