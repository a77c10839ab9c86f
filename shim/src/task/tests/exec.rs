//! Exec'd processes, and pausing, with a fake executor.

use super::*;
use containerd_shim_protos::events::task::TaskExit;

impl Stage {
    fn add(&self, task: &Arc<Task>, exec_id: &str) -> Result<Arc<TaskProcess>> {
        let spec = ExecSpec::parse(br#"{"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}}"#)?;
        self.tasks.add_exec(task, ExecRequest { exec_id: exec_id.into(), spec, names: Names::default() })?;
        task.process(exec_id)
    }

    async fn start_exec(&self, task: &Arc<Task>, exec: &Arc<TaskProcess>) -> Result<u32> {
        self.tasks.clone().start_exec(task.clone(), exec.clone()).await
    }

    async fn delete_exec(&self, task: &Arc<Task>, exec: &Arc<TaskProcess>) -> Result<(u32, Exit)> {
        self.tasks.clone().delete_exec(task.clone(), exec.clone()).await
    }

    fn exec_dies(&self, code: u32) {
        lock(&self.engine.exec).as_ref().unwrap().die(code);
    }

    async fn running(script: Script) -> (Stage, Arc<Task>) {
        let stage = Stage::new(script).await;
        let task = stage.create("a").await.unwrap();
        stage.start(&task).await.unwrap();
        (stage, task)
    }
}

#[tokio::test]
async fn a_life_from_exec_to_delete() {
    let (stage, task) = Stage::running(Script::default()).await;
    let exec = stage.add(&task, "x").unwrap();
    assert_eq!((exec.state(), exec.pid()), (State::Created, 0));
    assert_eq!(kind(exec.signal(15)), Some(Kind::FailedPrecondition));
    assert_eq!(kind(stage.add(&task, "x")), Some(Kind::AlreadyExists));
    assert_eq!(stage.start_exec(&task, &exec).await.unwrap(), 43);
    assert_eq!(kind(stage.start_exec(&task, &exec).await), Some(Kind::FailedPrecondition));
    assert_eq!(kind(stage.delete_exec(&task, &exec).await), Some(Kind::FailedPrecondition));
    stage.exec_dies(3);
    let exit = exec.stopped().await;
    assert_eq!(exit.code, 3);
    assert_eq!(kind(exec.signal(15)), Some(Kind::NotFound));
    assert_eq!(stage.delete_exec(&task, &exec).await.unwrap(), (43, exit));
    assert_eq!(kind(stage.delete_exec(&task, &exec).await), Some(Kind::NotFound));
    assert_eq!(kind(task.process("x")), Some(Kind::NotFound));
    assert_eq!(stage.events().await, ["create", "start", "exec-added", "exec-started", "exit"]);
}

#[tokio::test]
async fn a_failed_start_can_be_waited_for_and_deleted() {
    let (stage, task) = Stage::running(Script { exec_fails: true, ..Default::default() }).await;
    let exec = stage.add(&task, "x").unwrap();
    let error = stage.start_exec(&task, &exec).await.unwrap_err();
    assert!(error.to_string().contains("not found"), "{error}");
    assert_eq!(exec.stopped().await.code, 255);
    stage.delete_exec(&task, &exec).await.unwrap();
    stage.add(&task, "x").unwrap();
    // The exit of init does not wait for what never ran.
    stage.die(0);
    task.init.stopped().await;
    assert_eq!(stage.events().await, ["create", "start", "exec-added", "exec-added", "exit"]);
}

#[tokio::test]
async fn one_that_was_never_started_can_be_deleted_and_then_not_started() {
    let (stage, task) = Stage::running(Script::default()).await;
    let exec = stage.add(&task, "x").unwrap();
    stage.delete_exec(&task, &exec).await.unwrap();
    assert_eq!(kind(stage.start_exec(&task, &exec).await), Some(Kind::FailedPrecondition));
}

#[tokio::test]
async fn the_exit_of_init_is_the_last_one() {
    let (stage, task) = Stage::running(Script::default()).await;
    let exec = stage.add(&task, "x").unwrap();
    let late = stage.add(&task, "late").unwrap();
    stage.start_exec(&task, &exec).await.unwrap();
    stage.die(0);
    // Init's end closes the door, and is announced only when the other process has ended too.
    task.execs.closed().await;
    assert_eq!(kind(stage.start_exec(&task, &late).await), Some(Kind::FailedPrecondition));
    assert_eq!(task.init.state(), State::Running);
    stage.exec_dies(137);
    task.init.stopped().await;
    assert_eq!(exec.state(), State::Stopped(exec.stopped().await));
    assert_eq!(stage.events().await, ["create", "start", "exec-added", "exec-added", "exec-started", "exit", "exit"]);
    let envelopes = stage.sink.envelopes.lock().unwrap();
    let last = <TaskExit as protobuf::Message>::parse_from_bytes(&envelopes.last().unwrap().event.value).unwrap();
    assert_eq!(last.id, "a");
}

#[tokio::test]
async fn a_paused_container_takes_no_execs_and_says_so() {
    let (stage, task) = Stage::running(Script::default()).await;
    let exec = stage.add(&task, "x").unwrap();
    stage.tasks.clone().pause(task.clone()).await.unwrap();
    assert_eq!(task.freezer(), Freezer::Frozen);
    assert_eq!(kind(stage.start_exec(&task, &exec).await), Some(Kind::FailedPrecondition));
    assert_eq!(kind(stage.add(&task, "y")), Some(Kind::FailedPrecondition));
    stage.tasks.clone().resume(task.clone()).await.unwrap();
    assert_eq!(task.freezer(), Freezer::Thawed);
    stage.start_exec(&task, &exec).await.unwrap();
    assert_eq!(stage.events().await, ["create", "start", "exec-added", "paused", "resumed", "exec-started"]);
}

#[tokio::test]
async fn sigkill_ends_a_pause() {
    let (stage, task) = Stage::running(Script::default()).await;
    stage.tasks.clone().pause(task.clone()).await.unwrap();
    stage.kill(&task, SIGKILL, false).await.unwrap();
    assert_eq!(task.init.stopped().await.code, 137);
    assert_eq!(task.freezer(), Freezer::Thawed);
    assert_eq!(stage.events().await, ["create", "start", "paused", "exit"]);
}
