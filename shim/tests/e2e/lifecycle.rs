//! Pause, resume, update, stats, checkpoint.
use crate::harness::leaks::Process;
use crate::harness::{Case, NAMESPACE, Test};
use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api::Status;
use containerd_shim_protos::{cgroups, cgroups_v2};
use protobuf::Message;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

pub const CASES: &[Case] = &[
    Case::new("pause_and_resume", pause_and_resume).all(),
    Case::new("pause_and_resume_events", |test| {
        let task = test.task(&["pause"])?;
        task.pause().context("Pause")?;
        task.resume().context("Resume")?;
        let id = test.id.clone();
        task.end()?;
        let events = &test.containerd.events;
        events.wait_until(&id, |events| events.iter().any(|event| event.topic == "/tasks/exit"))?;
        let topics: Vec<String> = events.of(&id).into_iter().map(|event| event.topic).collect();
        let place = |topic: &str| topics.iter().position(|other| other == topic).with_context(|| format!("{topics:?}"));
        let order = ["start", "paused", "resumed", "exit"].map(|name| place(&format!("/tasks/{name}")));
        let order = order.into_iter().collect::<Result<Vec<_>>>()?;
        ensure!(order.is_sorted(), "{topics:?}");
        Ok(())
    })
    .all(),
    Case::new("twice", |test| {
        let task = test.task(&["pause"])?;
        ensure!(task.resume().is_err(), "resumed what was not paused");
        task.pause().context("Pause")?;
        ensure!(task.pause().is_err(), "paused twice");
        task.resume().context("Resume")?;
        ensure!(task.state().context("State")?.status() == Status::RUNNING, "not running");
        task.end()
    })
    .all(),
    Case::new("children_are_paused_too", |test| {
        let task = test.task_of(crate::exec::shared_pids(test, &["pause"])?)?;
        let mut exec = task.exec("one", &["spin"])?;
        let pid = exec.spawn()?;
        exec.io()?.stdout.wait_for("ready")?;
        task.pause().context("Pause")?;
        stands_still(pid)?;
        task.resume().context("Resume")?;
        moves(pid)?;
        task.end()
    }),
    Case::new("paused_is_killed", |test| {
        test.run(&["spin"]).flags(&["--null-io"]).detach()?;
        test.ctr(["tasks", "pause", &test.id]).done()?;
        test.kill(&test.id, "KILL")?;
        let exit = test.containerd.events.wait_for(&test.id, "/tasks/exit")?;
        ensure!(exit.fields["exit_status"] == 137, "{exit:?}");
        ensure!(test.status(&test.id)? == "STOPPED", "{}", test.status(&test.id)?);
        test.delete(&test.id)
    })
    .all(),
    Case::new("paused_is_deleted_by_force", |test| {
        test.run(&["spin"]).flags(&["--null-io"]).detach()?;
        test.ctr(["tasks", "pause", &test.id]).done()?;
        let output = test.ctr(["tasks", "delete", "--force", &test.id]).output()?;
        ensure!(output.stderr.contains("non-zero exit code 137"), "{output}");
        test.ctr(["containers", "delete", &test.id]).done().map(drop)
    })
    .all(),
    Case::new("update", update).all(),
    Case::new("update_before_the_start", |test| {
        let task = test.created(test.spec(&["pause"])?, |_| ())?;
        task.update(json!({"pids": {"limit": 33}})).context("Update")?;
        holds(test, PIDS, &["33"])?;
        task.start().context("Start")?;
        holds(test, PIDS, &["33"])?;
        task.end()
    })
    .all(),
    Case::new("update_leaves_the_rest", |test| {
        let spec = test.spec(&["pause"])?;
        let task =
            test.task_of(spec.set("/linux/resources", json!({"pids": {"limit": 77}, "cpu": {"shares": 512}}))?)?;
        task.update(json!({"memory": {"limit": 134_217_728}})).context("Update")?;
        holds(test, PIDS, &["77"])?;
        holds(test, SHARES, &["512", "20", "59"])?;
        holds(test, MEMORY, &["134217728"])?;
        task.end()
    }),
    Case::new("update_is_refused_as_a_whole", |test| {
        let spec = test.spec(&["pause"])?.set("/linux/resources", json!({"pids": {"limit": 77}}))?;
        let task = test.task_of(spec)?;
        for (wrong, word) in [
            // Below what the kernel takes (1 ms), and no CPU of any machine.
            (json!({"pids": {"limit": 44}, "cpu": {"quota": 10}}), "quota"),
            (json!({"pids": {"limit": 44}, "cpu": {"cpus": "100000"}}), "cpus"),
            (json!({"pids": {"limit": 44}, "cpu": {"cpus": "nonsense"}}), "cpus"),
            (json!({"pids": {"limit": "many"}}), "limit"),
        ] {
            let error = task.update(wrong.clone()).err().with_context(|| format!("updated with {wrong}"))?.to_string();
            ensure!(error.contains(word), "no {word:?} in {error}");
            holds(test, PIDS, &["77"]).with_context(|| format!("refused: {wrong}"))?;
        }
        ensure!(task.state().context("State")?.status() == Status::RUNNING, "no longer running");
        task.end()
    })
    .all()
    .hybrid_only(), // runc writes what comes before the fault, in an order of its own, and names files
    Case::new("metrics", metrics).all(),
    Case::new("metrics_by_ctr", |test| {
        test.run(&["spin"]).flags(&["--null-io"]).detach()?;
        let output = test.ctr(["tasks", "metrics", &test.id]).done()?;
        ensure!(output.stdout.contains(&test.id) && output.stdout.contains("memory"), "{output}");
        let output = test.ctr(["tasks", "metrics", "--format", "json", &test.id]).done()?;
        let value: Value = serde_json::from_str(&output.stdout).with_context(|| output.to_string())?;
        ensure!(value["pids"]["current"].as_u64() >= Some(1), "{output}");
        test.kill(&test.id, "KILL")?;
        test.containerd.events.wait_for(&test.id, "/tasks/exit")?;
        test.delete(&test.id)
    })
    .all(),
    Case::new("checkpoint_without_criu", |test| {
        // A host where there is none, whatever this one has.
        let direct = test.direct()?.config(&test.spec(&["pause"])?)?;
        let server = direct.started_with(|command| {
            command.env("PATH", "/nowhere");
        })?;
        let path = test.containerd.fresh_path("checkpoint").display().to_string();
        let restored = server.create_as(|request| request.checkpoint = path.clone());
        let words = crate::harness::direct::refused(restored, ttrpc::Code::UNIMPLEMENTED)?;
        ensure!(words.contains("criu"), "{words}");
        server.create().context("Create")?;
        server.start().context("Start")?;
        let words = crate::harness::direct::refused(server.checkpoint(&path), ttrpc::Code::UNIMPLEMENTED)?;
        ensure!(words.contains("criu"), "{words}");
        ensure!(server.state().context("State")?.status() == Status::RUNNING, "no longer running");
        server.kill(9).context("Kill")?;
        server.wait().context("Wait")?;
        server.delete().context("Delete")?;
        server.shutdown()?;
        direct.remove()
    })
    .all()
    .hybrid_only(), // runc's needs runc, which is found in PATH
];

/// Files of v1 and v2 that hold the same limit.
type Names = [&'static str; 2];
const PIDS: Names = ["pids.max", "pids.max"];
const MEMORY: Names = ["memory.limit_in_bytes", "memory.max"];
const SHARES: Names = ["cpu.shares", "cpu.weight"];
const QUOTA: Names = ["cpu.cfs_quota_us", "cpu.max"];

/// Fails unless the container's cgroup has one of the values in one of the files.
fn holds(test: &Test, names: Names, values: &[&str]) -> Result<()> {
    let value = limit(test, names)?;
    ensure!(values.contains(&value.as_str()), "{names:?} hold {value:?} instead of {values:?}");
    Ok(())
}

fn limit(test: &Test, names: Names) -> Result<String> {
    let below = format!("{NAMESPACE}/{}", test.id);
    let hierarchies = fs::read_dir("/sys/fs/cgroup").context("listing the hierarchies")?.flatten();
    let folders =
        hierarchies.map(|entry| entry.path().join(&below)).chain([PathBuf::from("/sys/fs/cgroup").join(&below)]);
    let file = folders.flat_map(|folder| names.map(|name| folder.join(name))).find(|file| file.exists());
    let file = file.with_context(|| format!("no {names:?} of {}", test.id))?;
    let value = fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    Ok(value.trim().to_owned())
}

/// A process that computes gets no processor time for as long as this looks.
fn stands_still(pid: u32) -> Result<()> {
    let before = Process::cpu_time(pid)?;
    // Nothing announces that nothing happens; ten times the unit of the measure.
    sleep(Duration::from_millis(100));
    ensure!(Process::cpu_time(pid)? == before, "it goes on while paused");
    Ok(())
}

/// Waits until it gets some.
fn moves(pid: u32) -> Result<()> {
    let before = Process::cpu_time(pid)?;
    for _ in 0..1000 {
        if Process::cpu_time(pid)? > before {
            return Ok(());
        }
        sleep(Duration::from_millis(10));
    }
    bail!("it stands still after it was resumed")
}

fn pause_and_resume(test: &Test) -> Result<()> {
    test.run(&["spin"]).flags(&["--null-io"]).detach()?;
    let pid = test.pid(&test.id)?;
    moves(pid)?;
    test.ctr(["tasks", "pause", &test.id]).done()?;
    ensure!(test.status(&test.id)? == "PAUSED", "{}", test.status(&test.id)?);
    stands_still(pid)?;
    let output = test.ctr(["tasks", "exec", "--exec-id", "one", &test.id, test.kind.program(), "hello"]).output()?;
    output.refused(&["paused"])?;
    test.ctr(["tasks", "resume", &test.id]).done()?;
    ensure!(test.status(&test.id)? == "RUNNING", "{}", test.status(&test.id)?);
    moves(pid)?;
    test.kill(&test.id, "KILL")?;
    test.containerd.events.wait_for(&test.id, "/tasks/exit")?;
    test.delete(&test.id)
}

fn update(test: &Test) -> Result<()> {
    let task = test.task(&["pause"])?;
    let resources = json!({
        "memory": {"limit": 134_217_728},
        "pids": {"limit": 55},
        "cpu": {"shares": 512, "quota": 50_000, "period": 100_000},
    });
    task.update(resources).context("Update")?;
    holds(test, MEMORY, &["134217728"])?;
    holds(test, PIDS, &["55"])?;
    holds(test, SHARES, &["512", "20", "59"])?;
    holds(test, QUOTA, &["50000", "50000 100000"])?;
    // And back up; each alone.
    task.update(json!({"memory": {"limit": 268_435_456}})).context("Update of memory")?;
    holds(test, MEMORY, &["268435456"])?;
    task.update(json!({"cpu": {"quota": 70_000}})).context("Update of the quota")?;
    holds(test, QUOTA, &["70000", "70000 100000"])?;
    task.update(json!({"pids": {"limit": 66}})).context("Update of pids")?;
    holds(test, PIDS, &["66"])?;
    task.end()
}

/// Stats, in the form of the host's cgroups, with what a running task must show.
fn metrics(test: &Test) -> Result<()> {
    let spec = test.spec(&["spin"])?.set("/linux/resources", json!({"memory": {"limit": 134_217_728}}))?;
    let task = test.task_of(spec)?;
    moves(task.pid)?;
    let stats = task.stats().context("Stats")?.stats.into_option().context("an answer without stats")?;
    let (memory, limit, pids, cpu) = match stats.type_url.as_str() {
        "io.containerd.cgroups.v1.Metrics" => {
            let metrics = cgroups::metrics::Metrics::parse_from_bytes(&stats.value).context("decoding")?;
            let memory = metrics.memory.usage.clone().unwrap_or_default();
            (memory.usage, memory.limit, metrics.pids.current, metrics.cpu.usage.total)
        }
        "io.containerd.cgroups.v2.Metrics" => {
            let metrics = cgroups_v2::metrics::Metrics::parse_from_bytes(&stats.value).context("decoding")?;
            (metrics.memory.usage, metrics.memory.usage_limit, metrics.pids.current, metrics.cpu.usage_usec)
        }
        other => bail!("stats of the type {other}"),
    };
    ensure!(memory > 0 && limit == 134_217_728, "memory: {memory} of {limit}");
    ensure!(pids >= 1 && cpu > 0, "{pids} pids, {cpu} of processor time");
    task.kill(9).context("Kill")?;
    task.wait().context("Wait")?;
    // Whoever watches it must not be told of a fault: the cgroup stays until Delete, or it is not found.
    match task.stats() {
        Err(error) if crate::harness::direct::code_of(&error) != Some(ttrpc::Code::NOT_FOUND) => {
            bail!("Stats after the end: {error}")
        }
        _ => task.end(),
    }
}
