//! The life of an exec'd process: states, events, signals, and what cannot be executed.
use crate::exec::shared_pids;
use crate::harness::direct::{code_of, refused};
use crate::harness::exec::Exec;
use crate::harness::task::Task;
use crate::harness::{Case, Runtime, Test};
use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api::Status;
use containerd_shim_protos::shim::oci::ProcessDetails;
use protobuf::Message;
use serde_json::json;
use std::collections::BTreeMap;
use ttrpc::Code;

pub const CASES: &[Case] = &[
    Case::new("states", states).all(),
    Case::new("wait_before_start", |test| {
        let task = test.task(&["pause"])?;
        let exec = task.exec("one", &["reply", "text", "5"])?;
        exec.add().context("Exec")?;
        let waited = std::thread::scope(|scope| {
            let waited = scope.spawn(|| exec.wait());
            exec.start().context("Start")?;
            waited.join().expect("Wait does not panic").context("Wait")
        })?;
        ensure!(waited.exit_status == test.kind.code(5) as u32 && waited.exited_at.seconds > 0, "{waited:?}");
        exec.delete().context("Delete")?;
        task.end()
    })
    .all(),
    Case::new("events", events).all(),
    Case::new("no_event_of_its_deletion", |test| {
        let task = test.task(&["pause"])?;
        task.exec("one", &["exit", "0"])?.run()?.exits(0)?;
        // The events of init come after whatever the exec's deletion could have caused.
        let id = test.id.clone();
        task.end()?;
        test.containerd
            .events
            .wait_for(&id, if test.runtime() == Runtime::Runc { "/tasks/exit" } else { "/tasks/delete" })?;
        let deletes = test.containerd.events.of(&id).into_iter().filter(|event| event.topic == "/tasks/delete");
        let deletes: Vec<_> = deletes.filter(|event| event.fields["id"] == "one").collect();
        ensure!(deletes.is_empty(), "{deletes:?}");
        Ok(())
    }),
    Case::new("exit_of_init_is_last", |test| last(test, test.task(&["pause"])?, &["pause"])).all(),
    Case::new("exit_of_init_is_last_in_a_shared_pid_namespace", |test| {
        last(test, test.task_of(shared_pids(test, &["pause"])?)?, &["pause"])
    }),
    Case::new("second_of_the_same_id", |test| {
        let task = test.task(&["pause"])?;
        let exec = task.exec("one", &["wait-stdin"])?;
        exec.spawn()?;
        let words = refused(task.exec("one", &["hello"])?.add(), Code::ALREADY_EXISTS)?;
        ensure!(words.contains("one"), "{words}");
        ensure!(exec.state().context("State")?.status() == Status::RUNNING, "the first no longer runs");
        exec.kill(9).context("Kill")?;
        exec.finish()?.exits(137)?;
        // Once deleted, the id is free.
        task.exec("one", &["hello"])?.run()?.exits(0)?;
        task.end()
    })
    .all(),
    Case::new("signals", |test| {
        let task = test.task(&["pause"])?;
        for (name, signal) in [("TERM", 15), ("INT", 2), ("KILL", 9)] {
            let mut exec = task.exec(name, &["wait-stdin"])?;
            exec.spawn()?;
            exec.io()?.stdout.wait_for("ready")?;
            exec.kill(signal).context("Kill")?;
            exec.finish()?.exits(128 + signal as i32)?;
        }
        // Init is none of it.
        ensure!(task.state().context("State")?.status() == Status::RUNNING, "init no longer runs");
        task.end()
    })
    .all(),
    Case::new("signal_handled_by_the_program", |test| {
        let task = test.task(&["pause"])?;
        let mut exec = task.exec("one", &["on-signal", "10", "33"])?;
        exec.spawn()?;
        exec.io()?.stdout.wait_for("ready")?;
        exec.kill(10).context("Kill")?;
        let output = exec.finish()?.exits(33)?;
        ensure!(output.stdout == "ready\nsignal 10\n", "{output}");
        task.end()
    }),
    Case::new("killed_from_outside", |test| {
        let task = test.task(&["pause"])?;
        let exec = task.exec("one", &["wait-stdin"])?;
        let pid = exec.spawn()? as i32;
        let pid = rustix::process::Pid::from_raw(pid).context("a pid is positive")?;
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).context("killing it")?;
        exec.finish()?.exits(137)?;
        task.end()
    })
    .all(),
    Case::new("pids_name_it", pids).all(),
    Case::new("program_missing", |test| {
        for program in ["/no/such/program", "no-such-program", "./no-such-program"] {
            not_executed(test, |exec| exec.set("/args", json!([program])), &[program])?;
        }
        Ok(())
    })
    .all(),
    Case::new("program_not_executable", |test| {
        not_executed(test, |exec| exec.set("/args", json!(["/bin/not-executable"])), &["/bin/not-executable"])
    })
    .all(),
    Case::new("program_of_no_format", |test| {
        not_executed(test, |exec| exec.set("/args", json!(["/bin/no-format"])), &["/bin/no-format", "ormat"])
    })
    .all()
    .hybrid_only(), // runc starts it, and tells by its exit code only
    Case::new("cwd_missing", |test| {
        not_executed(test, |exec| exec.set("/cwd", json!("/no/such/folder")), &["/no/such/folder"])
    })
    .all(),
    Case::new("cwd_relative", |test| not_executed(test, |exec| exec.set("/cwd", json!("tmp")), &["wd"])).all(),
    Case::new("arguments_empty", |test| not_executed(test, |exec| exec.set("/args", json!([])), &["args"])).all(),
    Case::new("rlimit_wrong", |test| {
        let wrong = json!([{"type": "RLIMIT_NOFILE", "soft": 500, "hard": 400}]);
        not_executed(test, |exec| exec.set("/rlimits", wrong), &["NOFILE"])
    })
    .all()
    .hybrid_only(), // runc names no limit
    Case::new("many_failures_leave_nothing", |test| {
        let task = test.task(&["pause"])?;
        let shim = task.connected().context("Connect")?.shim_pid;
        let descriptors = || Ok::<_, anyhow::Error>(std::fs::read_dir(format!("/proc/{shim}/fd"))?.count());
        let failure = || {
            let exec = task.exec("one", &[])?.set("/args", json!(["/no/such/program"]))?;
            exec.add().context("Exec")?;
            ensure!(exec.start().is_err(), "started");
            exec.delete().context("Delete").map(drop)
        };
        failure()?;
        let before = descriptors()?;
        (0..20).try_for_each(|_| failure())?;
        ensure!(descriptors()? <= before, "{before} descriptors became {}", descriptors()?);
        task.end()
    })
    .all()
    .hybrid_only(), // Go's closes files with its garbage collection
    Case::new("after_init_has_ended", |test| {
        let task = test.task(&["pause"])?;
        let exec = task.exec("one", &["hello"])?;
        exec.add().context("Exec")?;
        task.kill(9).context("Kill")?;
        task.wait().context("Wait")?;
        let error = exec.start().err().context("started without an init")?;
        let known = test.runtime() == Runtime::Runc && code_of(&error) == Some(Code::UNKNOWN);
        ensure!(known || code_of(&error) == Some(Code::FAILED_PRECONDITION), "{error:?}");
        exec.delete().context("Delete")?;
        task.end()
    })
    .all(),
    Case::new("in_a_created_task", |test| {
        let task = test.created(test.spec(&["pause"])?, |_| ())?;
        task.exec("one", &["reply", "text", "0"])?.run()?.exits(0)?;
        ensure!(task.state().context("State")?.status() == Status::CREATED, "no longer created");
        task.start().context("Start")?;
        task.end()
    })
    .all(),
    Case::new("in_a_paused_task_is_refused", |test| {
        let task = test.task(&["pause"])?;
        let added = task.exec("added-before", &["hello"])?;
        added.add().context("Exec")?;
        task.pause().context("Pause")?;
        let refuse = |error: Option<ttrpc::Error>| {
            let error = error.context("an exec in a paused task")?;
            let known = [Some(Code::FAILED_PRECONDITION), Some(Code::UNKNOWN)].contains(&code_of(&error));
            ensure!(known && error.to_string().contains("paused"), "{error}");
            Ok(())
        };
        refuse(task.exec("one", &["hello"])?.add().err())?;
        if test.runtime() == Runtime::Hybrid {
            // runc's shim starts it and waits for the end of the pause.
            refuse(added.start().err())?;
        }
        task.resume().context("Resume")?;
        added.start().context("Start")?;
        added.finish()?.exits(0)?;
        task.end()
    })
    .all(),
    Case::new("running_when_paused", |test| {
        let task = test.task(&["pause"])?;
        let mut exec = task.exec("one", &["wait-stdin"])?;
        exec.spawn()?;
        exec.io()?.stdout.wait_for("ready")?;
        task.pause().context("Pause")?;
        ensure!(exec.state().context("State")?.status() == Status::PAUSED, "not paused with its container");
        exec.io()?.write(b"a line\n")?;
        task.resume().context("Resume")?;
        ensure!(exec.state().context("State")?.status() == Status::RUNNING, "not resumed with its container");
        exec.io()?.stdout.wait_for("a line")?;
        exec.end_stdin()?;
        exec.finish()?.exits(0)?;
        task.end()
    })
    .all(),
];

fn states(test: &Test) -> Result<()> {
    let task = test.task(&["pause"])?;
    let mut exec = task.exec("one", &["wait-stdin"])?;
    refused(exec.state(), Code::NOT_FOUND)?;
    exec.add().context("Exec")?;
    let state = exec.state().context("State")?;
    ensure!(state.status() == Status::CREATED && state.pid == 0, "{state:?}");
    let stdout = exec.io()?.path("stdout");
    ensure!(state.stdout == stdout, "{state:?}");
    refused(exec.kill(9), Code::FAILED_PRECONDITION)?;

    let pid = exec.start().context("Start")?.pid;
    let state = exec.state().context("State")?;
    ensure!(pid > 0 && state.status() == Status::RUNNING && state.pid == pid, "pid {pid}: {state:?}");
    if test.runtime() == Runtime::Hybrid || test.containerd.line == "1.6" {
        // runc's shim of containerd 2 ends over it.
        ensure!(exec.start().is_err(), "started twice");
    }
    ensure!(exec.delete().is_err(), "a running process was deleted");

    exec.end_stdin()?;
    let exit = exec.wait().context("Wait")?;
    let state = exec.state().context("State")?;
    ensure!(state.status() == Status::STOPPED && state.exited_at == exit.exited_at, "{state:?}");
    refused(exec.kill(9), Code::NOT_FOUND)?;
    ensure!(exec.wait().context("Wait after the end")?.exited_at == exit.exited_at, "another time");

    let deleted = exec.delete().context("Delete")?;
    ensure!(deleted.pid == pid && deleted.exit_status == 0 && deleted.exited_at == exit.exited_at, "{deleted:?}");
    refused(exec.delete(), Code::NOT_FOUND)?;
    refused(exec.state(), Code::NOT_FOUND)?;
    task.end()
}

/// Added, started, ended: in this order, with the pid that Start answered.
fn events(test: &Test) -> Result<()> {
    let task = test.task(&["pause"])?;
    let exec = task.exec("one", &["reply", "text", "3"])?;
    let pid = exec.spawn()?;
    exec.finish()?.exits(test.kind.code(3))?;
    let id = test.id.clone();
    task.end()?;
    let exit =
        |event: &crate::harness::events::Event| event.topic == "/tasks/exit" && event.fields["id"] == id.as_str();
    test.containerd.events.wait_until(&id, |events| events.iter().any(exit))?;
    let events = test.containerd.events.of(&id);
    let of_exec = events.iter().filter(|event| event.fields["exec_id"] == "one" || event.fields["id"] == "one");
    let of_exec: Vec<_> = of_exec.collect();
    let topics: Vec<&str> = of_exec.iter().map(|event| event.topic.as_str()).collect();
    ensure!(topics == ["/tasks/exec-added", "/tasks/exec-started", "/tasks/exit"], "{events:?}");
    ensure!(of_exec[1].fields["pid"] == pid && of_exec[2].fields["pid"] == pid, "it was {pid}: {of_exec:?}");
    ensure!(of_exec[2].fields["exit_status"] == test.kind.code(3), "{of_exec:?}");
    ensure!(of_exec.iter().all(|event| event.fields["container_id"] == id.as_str()), "{of_exec:?}");
    Ok(())
}

/// Init is killed while others run: they end with it, and are announced before it.
fn last(test: &Test, task: Task, program: &[&str]) -> Result<()> {
    let mut execs =
        (0..5).map(|number| task.exec(&format!("exec-{number}"), program)).collect::<Result<Vec<Exec>>>()?;
    for exec in &mut execs {
        exec.spawn()?;
        exec.io()?.stdout.wait_for("ready")?;
    }
    task.kill(9).context("Kill")?;
    task.wait().context("Wait")?;
    for exec in execs {
        exec.finish()?.exits(137)?;
    }
    let id = test.id.clone();
    task.end()?;
    let exits = |events: &[crate::harness::events::Event]| -> Vec<String> {
        let exits = events.iter().filter(|event| event.topic == "/tasks/exit");
        exits.map(|event| event.fields["id"].as_str().unwrap_or_default().to_owned()).collect()
    };
    test.containerd.events.wait_until(&id, |events| exits(events).len() == 6)?;
    let exits = exits(&test.containerd.events.of(&id));
    // The shim of containerd 1.6 waits for no exec.
    let known = test.runtime() == Runtime::Runc && test.containerd.line == "1.6";
    ensure!(known || exits.last() == Some(&id), "init's exit is not the last: {exits:?}");
    Ok(())
}

/// Pids, with the exec's id at its pid and at no other.
fn pids(test: &Test) -> Result<()> {
    let task = test.task(&["pause"])?;
    let mut exec = task.exec("one", &["wait-stdin"])?;
    let pid = exec.spawn()?;
    let pids = task.pids().context("Pids")?;
    let mut names = BTreeMap::new();
    for process in &pids.processes {
        let name = match process.info.as_ref() {
            None => String::new(),
            Some(info) if info.type_url == "containerd.runc.v1.ProcessDetails" => {
                ProcessDetails::parse_from_bytes(&info.value).context("decoding its details")?.exec_id
            }
            Some(info) => bail!("details of the type {}", info.type_url),
        };
        names.insert(process.pid, name);
    }
    let expected = BTreeMap::from([(task.pid, String::new()), (pid, "one".to_owned())]);
    ensure!(names == expected, "{names:?} instead of {expected:?}");
    exec.end_stdin()?;
    exec.finish()?.exits(0)?;
    task.end()
}

/// Start is refused with the reason; the exec is as good as never started: it can be deleted, and the id used again.
fn not_executed<'t>(
    test: &Test,
    change: impl for<'s> FnOnce(Exec<'s>) -> Result<Exec<'s>>,
    words: &[&'t str],
) -> Result<()> {
    let task = test.task(&["pause"])?;
    let events = &test.containerd.events;
    let started = || events.of(&test.id).into_iter().filter(|event| event.topic == "/tasks/exec-started");
    let before = started().count();
    let exec = change(task.exec("one", &["hello"])?)?;
    // What can be told from the process alone may be refused before.
    let error = match exec.add() {
        Err(error) => error,
        Ok(_) => {
            let error = exec.start().err().context("it was started")?;
            let state = exec.state().context("State")?;
            ensure!([Status::CREATED, Status::STOPPED].contains(&state.status()) && state.pid == 0, "{state:?}");
            exec.wait().context("Wait for what never ran")?;
            exec.delete().context("Delete")?;
            error
        }
    };
    let cause = error.to_string().replace(&test.id, "");
    ensure!(words.iter().all(|word| cause.contains(word)), "the cause lacks one of {words:?}: {error}");
    let again = task.exec("one", &["hello"])?;
    let pid = again.spawn()?;
    again.finish()?.exits(0)?;
    ensure!(task.state().context("State")?.status() == Status::RUNNING, "init no longer runs");
    task.end()?;
    // Events keep their order: one of the failure would have come before.
    events.wait_until(&test.id, |events| {
        events.iter().any(|event| event.topic == "/tasks/exec-started" && event.fields["pid"] == pid)
    })?;
    ensure!(started().count() == before + 1, "an event says it was started: {:?}", events.of(&test.id));
    Ok(())
}
