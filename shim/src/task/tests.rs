//! The life cycle with a fake executor and a stand-in for containerd's event service.

mod checkpoint;
mod exec;

use super::*;
use crate::engine::{Bundle, Process, Restorable};
use crate::events::testing::{Sink, publisher, serve};
use executors::{CheckpointOptions, Choice, Console, CreateOptions, ExecSpec, Executor, OomWatch, Stats, Stdio};
use std::io::{PipeReader, PipeWriter, Write, pipe};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, SystemTime};
use tempfile::TempDir;
use tokio::sync::Semaphore;
use ttrpc::asynchronous::Server;

/// How the fakes behave.
#[derive(Default)]
struct Script {
    terminal: bool,
    create_fails: bool,
    /// What Create waits for.
    create_gate: Option<Arc<Semaphore>>,
    start_fails: bool,
    exec_fails: bool,
    /// The first Delete fails, after which nothing is left to delete.
    delete_fails: bool,
    shares_pid_namespace: bool,
    ignores_signals: bool,
    /// What `start` waits for before it answers.
    start_gate: Option<Arc<Semaphore>>,
}

type Made = Arc<Mutex<Option<Arc<FakeProcess>>>>;

struct FakeEngine {
    script: Arc<Script>,
    process: Made,
    exec: Made,
    killed_all: Arc<AtomicI32>,
}

impl Engine for FakeEngine {
    fn open(&self, _: &str, _: &Path) -> Result<Box<dyn Bundle>> {
        let process = Arc::new(FakeProcess::new(self.script.clone(), 42));
        *lock(&self.process) = Some(process.clone());
        Ok(Box::new(Fake {
            script: self.script.clone(),
            process,
            exec: self.exec.clone(),
            killed_all: self.killed_all.clone(),
            choice: Choice { executor: Executor::Native, reason: "a fake".into(), by_annotation: false },
        }))
    }
}

struct Fake {
    script: Arc<Script>,
    process: Arc<FakeProcess>,
    exec: Made,
    killed_all: Arc<AtomicI32>,
    choice: Choice,
}

impl Bundle for Fake {
    fn terminal(&self) -> bool {
        self.script.terminal
    }

    fn restorable(
        self: Box<Self>,
        _: &[RootfsMount],
        _: &Path,
        _: &Criu,
        _: &CreateOptions,
    ) -> Result<Box<dyn Restorable>> {
        Ok(self)
    }

    fn create(self: Box<Self>, _: &[RootfsMount], _: Stdio, _: &CreateOptions) -> Result<Box<dyn Container>> {
        if let Some(gate) = &self.script.create_gate {
            tokio::runtime::Handle::current().block_on(gate.acquire()).unwrap().forget();
        }
        if self.script.create_fails { Err(Error::new(Kind::InvalidArgument, anyhow!("no args"))) } else { Ok(self) }
    }
}

impl Restorable for Fake {
    fn choice(&self) -> &Choice {
        &self.choice
    }
    fn owns_pid_namespace(&self) -> bool {
        !self.script.shares_pid_namespace
    }
    fn restore(self: Box<Self>, _: Stdio) -> Result<Box<dyn Container>> {
        if self.script.start_fails { Err(Error::new(Kind::Internal, anyhow!("criu failed"))) } else { Ok(self) }
    }
}

impl Container for Fake {
    fn choice(&self) -> &Choice {
        &self.choice
    }
    fn init(&self) -> Arc<dyn Process> {
        self.process.clone()
    }
    fn owns_pid_namespace(&self) -> bool {
        !self.script.shares_pid_namespace
    }
    fn exec(&self, spec: &ExecSpec, _: Stdio) -> Result<Arc<dyn Process>> {
        if self.script.exec_fails {
            return Err(Error::new(Kind::InvalidArgument, anyhow!("{spec:?}: not found")));
        }
        let process = Arc::new(FakeProcess::new(self.script.clone(), 43));
        *lock(&self.exec) = Some(process.clone());
        Ok(process)
    }
    fn freeze(&self) -> Result<()> {
        Ok(())
    }
    fn thaw(&self) -> Result<()> {
        Ok(())
    }
    fn update(&self, _: &[u8]) -> Result<()> {
        Ok(())
    }
    fn stats(&self) -> Result<Stats> {
        Err(Error::new(Kind::NotFound, anyhow!("a fake has no cgroup")))
    }
    fn checkpoint(&self, _: &Path, _: &Criu, _: &CheckpointOptions) -> Result<()> {
        Ok(())
    }
    fn watch_oom(&self) -> Result<Option<OomWatch>> {
        Ok(None)
    }
    fn pids(&self) -> Result<Vec<u32>> {
        Ok(vec![self.process.pid()])
    }
    fn signal_all(&self, signal: i32) -> Result<()> {
        self.killed_all.store(signal, Ordering::SeqCst);
        Ok(())
    }
    fn delete(self: Box<Self>) -> Result<()> {
        if self.script.delete_fails { Err(Error::new(Kind::Internal, anyhow!("rmdir: EBUSY"))) } else { Ok(()) }
    }
}

struct FakeProcess {
    script: Arc<Script>,
    pid: u32,
    exit: Mutex<Option<Exit>>,
    started: AtomicBool,
    reader: PipeReader,
    writer: Mutex<PipeWriter>,
}

impl FakeProcess {
    fn new(script: Arc<Script>, pid: u32) -> Self {
        let (reader, writer) = pipe().unwrap();
        Self { script, pid, exit: Mutex::default(), started: AtomicBool::default(), reader, writer: Mutex::new(writer) }
    }

    fn die(&self, code: u32) {
        lock(&self.exit).get_or_insert(Exit { code, at: SystemTime::UNIX_EPOCH + Duration::from_secs(7) });
        lock(&self.writer).write_all(b"x").unwrap();
    }
}

impl Process for FakeProcess {
    fn pid(&self) -> u32 {
        self.pid
    }
    fn take_console(&self) -> Option<Console> {
        None
    }
    fn start(&self) -> Result<()> {
        if let Some(gate) = &self.script.start_gate {
            tokio::runtime::Handle::current().block_on(gate.acquire()).unwrap().forget();
        }
        if self.script.start_fails {
            return Err(Error::new(Kind::InvalidArgument, anyhow!("execve: ENOENT")));
        }
        self.started.store(true, Ordering::SeqCst);
        Ok(())
    }
    fn signal(&self, signal: i32) -> Result<()> {
        if lock(&self.exit).is_some() {
            return Err(finished());
        }
        if signal == SIGKILL || !self.script.ignores_signals {
            self.die(128 + signal.cast_unsigned());
        }
        Ok(())
    }
    fn exit_fd(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
    fn reap(&self) -> Result<Option<Exit>> {
        Ok(*lock(&self.exit))
    }
}

struct Stage {
    dir: TempDir,
    sink: Arc<Sink>,
    events: EventPublisher,
    engine: Arc<FakeEngine>,
    tasks: Arc<Tasks>,
    _server: Server,
}

impl Stage {
    async fn new(script: Script) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sink = Arc::new(Sink::default());
        let path = dir.path().join("containerd");
        let server = serve(&sink, &path).await;
        let events = publisher(&path);
        let engine = Arc::new(FakeEngine {
            script: Arc::new(script),
            process: Arc::default(),
            exec: Arc::default(),
            killed_all: Arc::default(),
        });
        let tasks = Tasks::new(engine.clone(), events.clone(), "n");
        Self { dir, sink, events, engine, tasks, _server: server }
    }

    async fn create(&self, id: &str) -> Result<Arc<Task>> {
        self.create_from(id, None).await
    }

    async fn create_from(&self, id: &str, checkpoint: Option<PathBuf>) -> Result<Arc<Task>> {
        let creation = Creation {
            id: id.into(),
            bundle: self.dir.path().into(),
            rootfs: Vec::new(),
            names: Names::default(),
            options: Options::default(),
            checkpoint,
            event: TaskCreate::new(),
        };
        self.tasks.clone().create(creation).await?;
        self.tasks.find(id)
    }

    async fn start(&self, task: &Arc<Task>) -> Result<u32> {
        self.tasks.clone().start(task.clone()).await
    }

    async fn delete(&self, task: &Arc<Task>) -> Result<(u32, Exit)> {
        self.tasks.clone().delete(task.clone()).await
    }

    async fn kill(&self, task: &Arc<Task>, signal: i32, all: bool) -> Result<()> {
        task.clone().kill(task.init.clone(), signal, all).await
    }

    fn die(&self, code: u32) {
        lock(&self.engine.process).as_ref().unwrap().die(code);
    }

    /// The events so far, by the last part of their topics.
    async fn events(&self) -> Vec<String> {
        assert!(self.events.drain(Duration::from_secs(10)).await);
        self.sink.topics().iter().map(|topic| topic.trim_start_matches("/tasks/").to_owned()).collect()
    }
}

fn kind<T>(result: Result<T>) -> Option<Kind> {
    result.err().map(|error| error.kind())
}

#[tokio::test]
async fn a_life_from_create_to_delete() {
    let stage = Stage::new(Script::default()).await;
    let task = stage.create("a").await.unwrap();
    assert_eq!(task.init.state(), State::Created);
    assert_eq!(std::fs::read_to_string(stage.dir.path().join(INIT_PID_FILE)).unwrap(), "42");
    assert_eq!(stage.start(&task).await.unwrap(), 42);
    assert_eq!(task.init.state(), State::Running);
    assert_eq!(task.clone().pids().await.unwrap(), [(42, None)]);
    assert!(!stage.tasks.close_if_empty());
    stage.die(3);
    let exit = task.init.stopped().await;
    assert_eq!(exit.code, 3);
    assert_eq!(task.init.state(), State::Stopped(exit));
    assert_eq!(stage.delete(&task).await.unwrap(), (42, exit));
    assert_eq!(kind(stage.tasks.find("a")), Some(Kind::NotFound));
    assert_eq!(stage.events().await, ["create", "start", "exit", "delete"]);
    assert_eq!(stage.engine.killed_all.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn every_verb_in_every_state() {
    #[derive(Clone, Copy, PartialEq)]
    enum At {
        Created,
        Running,
        Paused,
        Stopped,
        Deleted,
    }
    use Kind::{FailedPrecondition as Precondition, NotFound};
    let (pre, gone) = (Some(Precondition), Some(NotFound));
    // State:          start  kill  kill all  delete  pause  resume  resize
    let table = [
        (At::Created, [None, None, None, None, pre, pre, None]),
        (At::Running, [pre, None, None, pre, None, pre, None]),
        (At::Paused, [pre, None, None, pre, pre, None, None]),
        (At::Stopped, [pre, gone, gone, None, pre, pre, None]),
        (At::Deleted, [pre, gone, gone, gone, pre, pre, None]),
    ];
    for (at, expected) in table {
        for (verb, expected) in expected.into_iter().enumerate() {
            let stage = Stage::new(Script { ignores_signals: true, ..Default::default() }).await;
            let task = stage.create("a").await.unwrap();
            if at != At::Created {
                stage.start(&task).await.unwrap();
            }
            if at == At::Paused {
                stage.tasks.clone().pause(task.clone()).await.unwrap();
            }
            if matches!(at, At::Stopped | At::Deleted) {
                stage.die(0);
                task.init.stopped().await;
            }
            if at == At::Deleted {
                stage.delete(&task).await.unwrap();
            }
            let answer = match verb {
                0 => kind(stage.start(&task).await),
                1 => kind(stage.kill(&task, 15, false).await),
                2 => kind(stage.kill(&task, 15, true).await),
                3 => kind(stage.delete(&task).await),
                4 => kind(stage.tasks.clone().pause(task.clone()).await),
                5 => kind(stage.tasks.clone().resume(task.clone()).await),
                _ => kind(task.init.resize(24, 80)),
            };
            assert_eq!(answer, expected, "verb {verb} in state {}", at as u8);
        }
    }
}

#[tokio::test]
async fn an_id_is_taken_from_create_to_delete() {
    let stage = Stage::new(Script::default()).await;
    let task = stage.create("a").await.unwrap();
    assert_eq!(kind(stage.create("a").await), Some(Kind::AlreadyExists));
    stage.delete(&task).await.unwrap();
    stage.create("a").await.unwrap();
}

#[tokio::test]
async fn a_failed_create_gives_the_id_back() {
    for script in [Script { create_fails: true, ..Default::default() }, Script { terminal: true, ..Default::default() }]
    {
        let stage = Stage::new(script).await;
        for _ in 0..2 {
            assert_eq!(kind(stage.create("a").await), Some(Kind::InvalidArgument));
        }
        assert_eq!(kind(stage.tasks.find("a")), Some(Kind::NotFound));
        assert!(stage.tasks.close_if_empty());
        assert_eq!(stage.events().await, [""; 0]);
    }
}

#[tokio::test]
async fn a_container_deleted_while_it_is_created_does_not_come_to_be() {
    let gate = Arc::new(Semaphore::new(0));
    let stage = Stage::new(Script { create_gate: Some(gate.clone()), ..Default::default() }).await;
    let (created, ()) = tokio::join!(stage.create("a"), async {
        // Not made yet: nothing to close, nothing to find.
        assert!(!stage.tasks.close_if_empty());
        stage.tasks.abandon("a");
        assert!(stage.tasks.close_if_empty() && !stage.tasks.is_empty());
        gate.add_permits(1);
        stage.tasks.emptied().await;
    });
    assert_eq!(kind(created), Some(Kind::NotFound));
    assert_eq!(stage.events().await, [""; 0]);
    // What is there is not abandoned.
    let stage = Stage::new(Script::default()).await;
    let task = stage.create("a").await.unwrap();
    stage.tasks.abandon("a");
    assert!(!stage.tasks.close_if_empty());
    stage.delete(&task).await.unwrap();
    stage.create("a").await.unwrap();
}

#[tokio::test]
async fn a_created_task_can_be_deleted() {
    let stage = Stage::new(Script::default()).await;
    let task = stage.create("a").await.unwrap();
    assert_eq!(stage.delete(&task).await.unwrap().1.code, 137);
    assert_eq!(stage.events().await, ["create", "exit", "delete"]);
}

#[tokio::test]
async fn a_failed_start_ends_the_task_and_lets_it_be_deleted() {
    let stage = Stage::new(Script { start_fails: true, ..Default::default() }).await;
    let task = stage.create("a").await.unwrap();
    let error = stage.start(&task).await.unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.to_string().contains("execve: ENOENT"), "{error}");
    assert!(matches!(task.init.state(), State::Stopped(_)));
    stage.delete(&task).await.unwrap();
    assert_eq!(stage.events().await, ["create", "exit", "delete"]);
}

#[tokio::test]
async fn an_exit_during_start_is_announced_after_the_start() {
    let gate = Arc::new(Semaphore::new(0));
    let stage = Stage::new(Script { start_gate: Some(gate.clone()), ..Default::default() }).await;
    let task = stage.create("a").await.unwrap();
    let starting = tokio::spawn(stage.tasks.clone().start(task.clone()));
    tokio::task::yield_now().await;
    stage.die(0);
    // Asking for the state does not wait for the start.
    assert_eq!(task.init.state(), State::Created);
    gate.add_permits(1);
    starting.await.unwrap().unwrap();
    task.init.stopped().await;
    assert_eq!(stage.events().await, ["create", "start", "exit"]);
}

#[tokio::test]
async fn what_shares_a_pid_namespace_is_killed_with_init() {
    let stage = Stage::new(Script { shares_pid_namespace: true, ..Default::default() }).await;
    let task = stage.create("a").await.unwrap();
    stage.start(&task).await.unwrap();
    stage.die(0);
    task.init.stopped().await;
    assert_eq!(stage.engine.killed_all.load(Ordering::SeqCst), SIGKILL);
}

#[tokio::test]
async fn of_two_deletes_one_wins() {
    let stage = Stage::new(Script::default()).await;
    let task = stage.create("a").await.unwrap();
    let (one, two) = tokio::join!(stage.delete(&task), stage.delete(&task));
    let kinds = [kind(one), kind(two)];
    assert!(kinds.contains(&None) && kinds.contains(&Some(Kind::NotFound)), "{kinds:?}");
    assert_eq!(stage.events().await, ["create", "exit", "delete"]);
}

#[tokio::test]
async fn a_failed_delete_can_be_repeated() {
    let stage = Stage::new(Script { delete_fails: true, ..Default::default() }).await;
    let task = stage.create("a").await.unwrap();
    assert_eq!(kind(stage.delete(&task).await), Some(Kind::Internal));
    assert!(!stage.tasks.close_if_empty());
    assert_eq!(task.clone().pids().await.unwrap(), [(42, None)]);
    stage.delete(&task).await.unwrap();
    assert_eq!(stage.events().await, ["create", "exit", "delete"]);
}

#[tokio::test]
async fn a_closed_shim_takes_no_more() {
    let stage = Stage::new(Script::default()).await;
    assert!(stage.tasks.close_if_empty());
    assert_eq!(kind(stage.create("a").await), Some(Kind::Unavailable));
}
