//! The kernel ends what takes more memory than its limit: TaskOOM says so, before the exit it caused.
use crate::harness::events::Event;
use crate::harness::fifos::Fifos;
use crate::harness::spec::Spec;
use crate::harness::{Case, Kind, Runtime, Test};
use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::Status;
use serde_json::json;

pub const CASES: &[Case] = &[
    Case::new("of_init", |test| {
        let task = test.task_of(limited(test, &["eat", "400"])?)?;
        ensure!(task.wait().context("Wait")?.exit_status == 137, "exit status");
        let id = test.id.clone();
        task.end()?;
        announced(test, &id)
    }),
    Case::new("by_ctr", |test| {
        let output = test.run(&["eat", "400"]).flags(&["--memory-limit", LIMIT_TEXT]).output()?.exits(137)?;
        ensure!(!output.stdout.contains("eaten"), "{output}");
        announced(test, &test.id)
    }),
    Case::new("of_a_child", |test| {
        let io = Fifos::new(test.containerd)?;
        let task = test.created(limited(test, &["eat-in-child", "400"])?, |request| io.name(request))?;
        task.start().context("Start")?;
        io.stdout.wait_for("child ended by signal 9\nready\n")?;
        test.containerd.events.wait_for(&test.id, "/tasks/oom")?;
        ensure!(task.state().context("State")?.status() == Status::RUNNING, "init no longer runs");
        task.end()
    }),
    Case::new("of_an_exec", |test| {
        let task = test.task_of(limited(test, &["pause"])?)?;
        let output = task.exec("one", &["eat", "400"])?.run()?.exits(137)?;
        ensure!(!output.stdout.contains("eaten"), "{output}");
        test.containerd.events.wait_for(&test.id, "/tasks/oom")?;
        // The kernel chooses: init is smaller.
        ensure!(task.state().context("State")?.status() == Status::RUNNING, "init no longer runs");
        task.end()
    }),
    // Its memory can't grow so far that the kernel had to.
    Case::new("not_of_a_guest", |test| {
        let task = test.task_of(limited(test, &["pause"])?)?;
        let output = task.exec("one", &["eat", "400"])?.run()?.exits(1)?;
        ensure!(output.stderr.contains("Out of memory") && !output.stdout.contains("eaten"), "{output}");
        task.end()?;
        let id = test.other("by-ctr");
        let output = test.run(&["eat", "400"]).flags(&["--memory-limit", LIMIT_TEXT]).id(&id).output()?.exits(1)?;
        ensure!(output.stderr.contains("Out of memory"), "{output}");
        none(test, &test.id)?;
        none(test, &id)
    })
    .kinds(Kind::WASM),
    // One that was made with another limit.
    Case::new("of_a_guest", |test| {
        let spec = test.spec(&["eat", "400"])?.set("/linux/resources", json!({"memory": {"limit": LIMIT * 8}}))?;
        let task = test.created(spec, |_| ())?;
        task.update(json!({"memory": {"limit": LIMIT}})).context("Update")?;
        task.start().context("Start")?;
        ensure!(task.wait().context("Wait")?.exit_status == 137, "exit status");
        let id = test.id.clone();
        task.end()?;
        announced(test, &id)
    })
    .kinds(Kind::WASM),
    Case::new("not_without_cause", |test| {
        let task = test.task_of(limited(test, &["eat", "8"])?)?;
        ensure!(task.wait().context("Wait")?.exit_status == 0, "exit status");
        let id = test.id.clone();
        task.end()?;
        test.containerd.events.wait_for(&id, "/tasks/exit")?;
        none(test, &id)
    })
    .all(),
    // Another's kill is no OOM.
    Case::new("not_when_killed", |test| {
        let task = test.task_of(limited(test, &["pause"])?)?;
        let id = test.id.clone();
        task.end()?;
        test.containerd.events.wait_for(&id, "/tasks/exit")?;
        none(test, &id)
    }),
    Case::new("after_an_update", |test| {
        let task = test.task_of(limited(test, &["pause"])?)?;
        task.update(json!({"memory": {"limit": LIMIT * 8}})).context("Update")?;
        let output = task.exec("one", &["eat", "200"])?.run()?.exits(0)?;
        ensure!(output.stdout == "eaten\n", "{output}");
        none(test, &test.id)?;
        task.end()
    })
    .kinds(&[Kind::Linux, Kind::Core]),
];

const LIMIT: u64 = 96 << 20;
const LIMIT_TEXT: &str = "100663296";

fn limited<'a>(test: &Test<'a>, arguments: &[&str]) -> Result<Spec<'a>> {
    test.spec(arguments)?.set("/linux/resources", json!({"memory": {"limit": LIMIT}}))
}

/// TaskOOM, and then the exit it caused.
fn announced(test: &Test, id: &str) -> Result<()> {
    test.containerd.events.wait_for(id, "/tasks/exit")?;
    // runc's shim reads a counter beside its supervision, and may be late with it.
    test.containerd.events.wait_for(id, "/tasks/oom")?;
    let events = test.containerd.events.of(id);
    let place = |topic: &str| events.iter().position(|event: &Event| event.topic == topic);
    let ordered = place("/tasks/oom") < place("/tasks/exit");
    ensure!(ordered || test.runtime() == Runtime::Runc, "the exit came first: {events:?}");
    Ok(())
}

fn none(test: &Test, id: &str) -> Result<()> {
    let events = test.containerd.events.of(id);
    ensure!(!events.iter().any(|event| event.topic == "/tasks/oom"), "{events:?}");
    Ok(())
}
