//! Tasks: one per container, with the life cycle of its processes.
//!
//! ```text
//!  create            start                exit
//! ───────→ Created ───────→ Running ─────────────→ Stopped(Exit) ───→ (not in the map)
//!             │   failed start, kill, delete          ↑      delete
//!             └───────────────────────────────────────┘
//! ```
//! - Each process has one supervisor, which waits for its pidfd and then stops it.
//! - Whoever changes a state announces it under the same lock (`verbs`), so that no exit is published before its start.
//! - `State` can be read without that lock: asking for it never waits for a start that takes long.
//! - The map's lock is held for look-ups only, never across a call to an executor.

use crate::engine::{Container, Engine, Process};
use crate::events::EventPublisher;
use crate::options::Options;
use crate::status::timestamp;
use crate::stdio::{self, Holders, Names};
use anyhow::{Context, anyhow};
use containerd_shim_protos::events::task::{TaskCreate, TaskDelete, TaskExit, TaskStart};
use executors::{Error, Exit, Kind, Result, RootfsMount};
use nix::libc::SIGKILL;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, SystemTime};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::timeout;

/// The file in the bundle with the pid of init, for `delete` after the shim has died.
pub const INIT_PID_FILE: &str = "init.pid";

/// How long a process may take to end after SIGKILL before the call that waits for it gives up.
const KILL_TIMEOUT: Duration = Duration::from_secs(10);

/// The exit status of a process of which it cannot be known; containerd uses the same (errdefs: UnknownExitStatus).
const UNKNOWN_EXIT_STATUS: u32 = 255;

/// Where a process is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Created,
    Running,
    Stopped(Exit),
}

/// What a Create request asks for.
pub struct Creation {
    pub id: String,
    pub bundle: PathBuf,
    pub rootfs: Vec<RootfsMount>,
    pub names: Names,
    pub options: Options,
    /// The event that announces the task, but for the pid.
    pub event: TaskCreate,
}

/// One process of a task under supervision.
pub struct TaskProcess {
    process: Arc<dyn Process>,
    pub names: Names,
    state: watch::Sender<State>,
    verbs: tokio::sync::Mutex<()>,
    holders: Mutex<Holders>,
}

impl TaskProcess {
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Waits until the process has stopped.
    pub async fn stopped(&self) -> Exit {
        let mut states = self.state.subscribe();
        loop {
            if let State::Stopped(exit) = *states.borrow_and_update() {
                return exit;
            }
            states.changed().await.expect("the sender lives as long as self");
        }
    }

    /// Sends a signal, also before the start.
    ///
    /// # Errors
    /// NotFound when the process has ended.
    pub fn signal(&self, signal: i32) -> Result<()> {
        match self.state() {
            State::Stopped(_) => Err(finished()),
            State::Created | State::Running => self.process.signal(signal),
        }
    }

    /// Closes the shim's end of stdin; that there is none is fine.
    pub fn close_stdin(&self) {
        lock(&self.holders).close_stdin();
    }

    /// Kills the process and waits until its exit was announced.
    async fn end(&self) -> Result<Exit> {
        if let Err(error) = self.process.signal(SIGKILL)
            && error.kind() != Kind::NotFound
        {
            return Err(error.context("kill init"));
        }
        timeout(KILL_TIMEOUT, self.stopped()).await.map_err(|_| {
            let message = anyhow!("init (pid {}) did not end within {KILL_TIMEOUT:?} of SIGKILL", self.pid());
            Error::new(Kind::Unavailable, message)
        })
    }
}

/// A container and its processes.
pub struct Task {
    pub id: String,
    pub bundle: PathBuf,
    init: Arc<TaskProcess>,
    /// `None` once it was deleted. Locked only where blocking is allowed: an executor's call may take milliseconds.
    container: RwLock<Option<Box<dyn Container>>>,
    /// Held by a Delete, so that a second one finds the task gone instead of half gone.
    deletion: tokio::sync::Mutex<()>,
}

impl Task {
    /// The process with this exec id; the empty one means init.
    ///
    /// # Errors
    /// NotFound.
    pub fn process(&self, exec_id: &str) -> Result<&Arc<TaskProcess>> {
        if exec_id.is_empty() {
            return Ok(&self.init);
        }
        Err(Error::new(Kind::NotFound, anyhow!("process {exec_id} does not exist")))
    }

    /// The pids of everything in the container, as the host sees them.
    pub async fn pids(self: Arc<Self>) -> Result<Vec<u32>> {
        self.with_container(|container| container.pids()).await.unwrap_or(Ok(Vec::new()))
    }

    /// Sends a signal to everything in the container.
    ///
    /// # Errors
    /// NotFound when init has ended: then nothing else is left, or about to be killed.
    pub async fn signal_all(self: Arc<Self>, signal: i32) -> Result<()> {
        if let State::Stopped(_) = self.init.state() {
            return Err(finished());
        }
        self.with_container(move |container| container.signal_all(signal)).await.unwrap_or_else(|| Err(finished()))
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
    map: Mutex<Map>,
}

#[derive(Default)]
struct Map {
    /// `None` reserves the id while its container is being created.
    tasks: HashMap<String, Option<Arc<Task>>>,
    /// The shim is about to end and takes no more.
    closed: bool,
}

impl Tasks {
    pub fn new(engine: Arc<dyn Engine>, events: EventPublisher) -> Arc<Self> {
        Arc::new(Self { engine, events, map: Mutex::default() })
    }

    /// The task with this id.
    ///
    /// # Errors
    /// NotFound, also while it is still being created.
    pub fn find(&self, id: &str) -> Result<Arc<Task>> {
        let task = lock(&self.map).tasks.get(id).cloned().flatten();
        task.ok_or_else(|| Error::new(Kind::NotFound, anyhow!("the container does not exist")))
    }

    /// If no task is left, lets no more in and returns true.
    pub fn close_if_empty(&self) -> bool {
        let mut map = lock(&self.map);
        map.closed |= map.tasks.is_empty();
        map.closed
    }

    /// Creates a container whose init waits for [`Tasks::start`], and returns init's pid.
    pub async fn create(self: Arc<Self>, creation: Creation) -> Result<u32> {
        let Creation { id, bundle, rootfs, names, options, mut event } = creation;
        let reservation = Reservation::new(&self, &id)?;
        let (container, holders) = {
            let (engine, id, bundle, names) = (self.engine.clone(), id.clone(), bundle.clone(), names.clone());
            blocking(move || create_container(&*engine, &id, &bundle, &rootfs, &names, &options)).await?
        };
        let process = container.init();
        let exit = match watch_exit(&*process) {
            Ok(exit) => exit,
            Err(error) => {
                blocking(move || container.delete()).await?;
                return Err(error);
            }
        };
        let pid = process.pid();
        let choice = container.choice();
        log::info!(id = id.as_str(); "created with the executor {:?}: {}; pid {pid}", choice.executor, choice.reason);

        let init = Arc::new(TaskProcess {
            process,
            names,
            state: watch::Sender::new(State::Created),
            verbs: tokio::sync::Mutex::default(),
            holders: Mutex::new(holders),
        });
        let container = RwLock::new(Some(container));
        let task = Arc::new(Task { id, bundle, init, container, deletion: tokio::sync::Mutex::default() });
        reservation.fill(&task);
        event.pid = pid;
        self.events.publish(&event);
        tokio::spawn(supervise(task, exit, self.events.clone()));
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
        let process = init.process.clone();
        if let Err(error) = blocking(move || process.start()).await {
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
            State::Created => task.init.end().await?,
            State::Stopped(exit) => exit,
        };
        let owner = task.clone();
        blocking(move || {
            let container = owner.container.write().unwrap_or_else(PoisonError::into_inner).take();
            container.map_or(Ok(()), |container| container.delete())
        })
        .await
        .map_err(|error| error.context("delete"))?;
        *lock(&task.init.holders) = Holders::default();
        lock(&self.map).tasks.remove(&task.id);

        let pid = task.init.pid();
        let mut event = TaskDelete::new();
        event.container_id = task.id.clone();
        event.pid = pid;
        event.exit_status = exit.code;
        event.exited_at = timestamp(exit.at);
        self.events.publish(&event);
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

    fn fill(mut self, task: &Arc<Task>) {
        lock(&self.tasks.map).tasks.insert(self.id.clone(), Some(task.clone()));
        self.filled = true;
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.filled {
            lock(&self.tasks.map).tasks.remove(&self.id);
        }
    }
}

fn create_container(
    engine: &dyn Engine,
    id: &str,
    path: &Path,
    rootfs: &[RootfsMount],
    names: &Names,
    options: &Options,
) -> Result<(Box<dyn Container>, Holders)> {
    let bundle = engine.open(id, path)?;
    if bundle.terminal() {
        let message = anyhow!("config.json sets process.terminal, but the request asks for no terminal");
        return Err(Error::new(Kind::InvalidArgument, message));
    }
    let (stdio, holders) = stdio::open(names, options.io_owner)?;
    let container = bundle.create(rootfs, stdio, &options.create)?;
    let file = path.join(INIT_PID_FILE);
    // On an error the container is dropped, and with it everything of it.
    std::fs::write(&file, container.init().pid().to_string()).with_context(|| format!("write {}", file.display()))?;
    Ok((container, holders))
}

type ExitFd = AsyncFd<OwnedFd>;

#[expect(deprecated, reason = "its successor is unsafe, for types whose descriptor may change; OwnedFd's never does")]
fn watch_exit(process: &dyn Process) -> Result<ExitFd> {
    let fd = process.exit_fd().try_clone_to_owned().context("duplicate the pidfd of init")?;
    Ok(AsyncFd::with_interest(fd, Interest::READABLE).context("watch the pidfd of init")?)
}

/// Waits for the end of init and announces it.
async fn supervise(task: Arc<Task>, exit: ExitFd, events: EventPublisher) {
    let init = &task.init;
    let exit = exited(&*init.process, &exit).await.unwrap_or_else(|error| {
        log::error!(id = task.id.as_str(); "wait for init (pid {}): {error}", init.pid());
        Exit { code: UNKNOWN_EXIT_STATUS, at: SystemTime::now() }
    });
    // In a pid namespace of its own the kernel does this.
    let killed = task.clone().with_container(|container| {
        if container.owns_pid_namespace() { Ok(()) } else { container.signal_all(SIGKILL) }
    });
    match killed.await {
        Some(Err(error)) if error.kind() != Kind::NotFound => {
            log::error!(id = task.id.as_str(); "kill what init left running: {error}");
        }
        _ => {}
    }
    let _verbs = init.verbs.lock().await;
    init.state.send_replace(State::Stopped(exit));
    init.close_stdin();
    let mut event = TaskExit::new();
    event.container_id = task.id.clone();
    event.id = task.id.clone();
    event.pid = init.pid();
    event.exit_status = exit.code;
    event.exited_at = timestamp(exit.at);
    events.publish(&event);
}

async fn exited(process: &dyn Process, fd: &ExitFd) -> Result<Exit> {
    loop {
        let mut ready = fd.readable().await.context("wait for the pidfd")?;
        if let Some(exit) = process.reap()? {
            return Ok(exit);
        }
        ready.clear_ready();
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

fn precondition(message: &'static str) -> Error {
    Error::new(Kind::FailedPrecondition, anyhow!(message))
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
