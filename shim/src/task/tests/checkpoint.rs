//! Checkpoints, and tasks that come from one.

use super::*;

async fn restorable(stage: &Stage) -> Arc<Task> {
    stage.create_from("a", Some("/images".into())).await.unwrap()
}

#[tokio::test]
async fn a_restored_task_has_its_process_from_the_start_on() {
    let stage = Stage::new(Script::default()).await;
    let task = restorable(&stage).await;
    assert_eq!((task.init.state(), task.init.pid()), (State::Created, 0));
    assert_eq!(task.clone().pids().await.unwrap(), [(0, None)]);
    let pre = Some(Kind::FailedPrecondition);
    assert_eq!(kind(stage.kill(&task, 9, false).await), pre);
    assert_eq!(kind(stage.kill(&task, 9, true).await), pre);
    assert_eq!(kind(task.clone().stats().await), pre);
    assert_eq!(kind(task.clone().update(Vec::new()).await), pre);
    assert_eq!(kind(stage.tasks.clone().pause(task.clone()).await), pre);
    assert_eq!(stage.start(&task).await.unwrap(), 42);
    assert_eq!(task.init.state(), State::Running);
    assert_eq!(std::fs::read_to_string(stage.dir.path().join(INIT_PID_FILE)).unwrap(), "42");
    assert_eq!(kind(stage.start(&task).await), pre);
    stage.die(3);
    assert_eq!(task.init.stopped().await.code, 3);
    stage.delete(&task).await.unwrap();
    assert_eq!(stage.events().await, ["create", "start", "exit", "delete"]);
}

#[tokio::test]
async fn a_failed_restore_ends_the_task() {
    let stage = Stage::new(Script { start_fails: true, ..Default::default() }).await;
    let task = restorable(&stage).await;
    let error = stage.start(&task).await.unwrap_err();
    assert_eq!(error.to_string(), "restore: criu failed");
    assert_eq!(task.init.stopped().await.code, 137);
    assert_eq!(kind(stage.start(&task).await), Some(Kind::FailedPrecondition));
    assert_eq!(kind(stage.kill(&task, 9, false).await), Some(Kind::NotFound));
    stage.delete(&task).await.unwrap();
    assert_eq!(stage.events().await, ["create", "exit", "delete"]);
}

#[tokio::test]
async fn what_was_never_restored_can_be_deleted() {
    let stage = Stage::new(Script::default()).await;
    let task = restorable(&stage).await;
    assert_eq!(stage.delete(&task).await.unwrap().0, 0);
    assert_eq!(kind(stage.tasks.find("a")), Some(Kind::NotFound));
    assert_eq!(stage.events().await, ["create", "exit", "delete"]);
}

#[tokio::test]
async fn a_checkpoint_takes_a_running_task() {
    let stage = Stage::new(Script::default()).await;
    let task = stage.create("a").await.unwrap();
    let checkpoint = || stage.tasks.clone().checkpoint(task.clone(), CheckpointOptions::default(), Criu::default());
    assert_eq!(kind(checkpoint().await), Some(Kind::FailedPrecondition));
    stage.start(&task).await.unwrap();
    checkpoint().await.unwrap();
    stage.tasks.clone().pause(task.clone()).await.unwrap();
    checkpoint().await.unwrap();
    stage.die(0);
    task.init.stopped().await;
    assert_eq!(kind(checkpoint().await), Some(Kind::FailedPrecondition));
    assert_eq!(stage.events().await, ["create", "start", "checkpointed", "paused", "checkpointed", "exit"]);
}
