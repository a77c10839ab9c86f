//! What is published, in which order, with which fields.
use crate::harness::{Case, Runtime, Test};
use anyhow::{Result, ensure};

pub const CASES: &[Case] = &[
    Case::new("order_of_a_short_life", order).all(),
    Case::new("fields", fields).all(),
    Case::new("order_of_many_short_lives", |test| {
        for round in 0..10 {
            let id = test.other(&round.to_string());
            test.run(&["exit", "0"]).id(&id).done()?;
            life(test, &id)?;
        }
        Ok(())
    })
    .all(),
];

const LIFE: [&str; 4] = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"];

fn order(test: &Test) -> Result<()> {
    test.run(&["exit", "0"]).done()?;
    life(test, &test.id)
}

/// Fails unless the task events of a container that was deleted are those of a whole life, in order.
fn life(test: &Test, id: &str) -> Result<()> {
    // runc's shim of containerd 2 may end before its last event is out.
    let (last, expected) = match test.runtime() {
        Runtime::Hybrid => ("/tasks/delete", &LIFE[..]),
        Runtime::Runc => ("/tasks/exit", &LIFE[..3]),
    };
    test.containerd.events.wait_for(id, last)?;
    let events = test.containerd.events.of(id);
    let tasks = events.iter().map(|event| event.topic.as_str()).filter(|topic| topic.starts_with("/tasks/"));
    let tasks: Vec<&str> = tasks.take(expected.len()).collect();
    ensure!(tasks == expected, "{id}: {events:?}");
    Ok(())
}

fn fields(test: &Test) -> Result<()> {
    let running = test.run(&["spin"]).spawn()?;
    running.wait_for("ready")?;
    let pid = test.pid(&test.id)?;
    test.kill(&test.id, "KILL")?;
    running.finish()?.exits(137)?;
    life(test, &test.id)?;
    for event in test.containerd.events.of(&test.id).iter().filter(|event| event.topic.starts_with("/tasks/")) {
        ensure!(event.fields["pid"] == pid, "init is {pid}: {event:?}");
        let text = |name: &str| event.fields[name].as_str().map(str::to_owned).unwrap_or_default();
        match event.topic.as_str() {
            "/tasks/create" => {
                ensure!(text("bundle").ends_with(&test.id), "{event:?}");
                ensure!(event.fields["rootfs"].as_array().is_some_and(|mounts| mounts.len() == 1), "{event:?}");
            }
            "/tasks/exit" => {
                ensure!(event.fields["exit_status"] == 137 && text("id") == test.id, "{event:?}");
                // A text from 1.6, seconds and nanoseconds since.
                let seconds = event.fields["exited_at"]["seconds"].as_i64().unwrap_or_default();
                ensure!(text("exited_at").starts_with("20") || seconds > 0, "{event:?}");
            }
            "/tasks/delete" => ensure!(event.fields["exit_status"] == 137, "{event:?}"),
            _ => {}
        }
    }
    Ok(())
}
