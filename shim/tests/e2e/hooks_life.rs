//! Hooks that fail, hang, or leave something behind; and hooks of shims that die.
use crate::harness::command::Output;
use crate::harness::direct::refused;
use crate::harness::fifos::Fifos;
use crate::harness::hooks::Hooks;
use crate::harness::leaks::Process;
use crate::harness::{Case, Runtime, Test, leaks};
use crate::hooks::{TURNS, turns};
use anyhow::{Context, Result, ensure};
use containerd_shim_protos::api::Status;
use serde_json::{Value, json};
use std::fs;
use std::thread;
use ttrpc::Code;

pub const CASES: &[Case] = &[
    Case::new("failing_at_create", |test| {
        for turn in &TURNS[..3] {
            let id = test.other(turn);
            let hooks = Hooks::new(test)?;
            let mut list = turns(&hooks);
            list[turn] = json!([hooks.host("fails", &["exit", "3", "the reason"]), hooks.host("never", &[])]);
            let output = run(test, &hooks, &id, list)?;
            let output = output.refused(&["the reason", "exit status 3"])?;
            if test.runtime() == Runtime::Hybrid {
                let path = format!("{:?}", hooks.path("hook"));
                let output = output.refused(&[&format!("hooks.{turn}[0]"), &path])?;
                ensure!(!output.stderr.contains("not the last line"), "{output}");
            }
            let names = hooks.names()?;
            ensure!(!names.iter().any(|name| name == "never" || name.starts_with("start")), "{names:?}");
            // What ran before may have to be undone.
            ensure!(names.ends_with(&["fails", "poststop-0", "poststop-1"].map(str::to_owned)), "{names:?}");
            leaks::none_of(test.containerd, &id)?;
            hooks.remove()?;
        }
        Ok(())
    })
    .all(),
    Case::new("failing_startContainer", |test| failing_start(test, "startContainer")).all(),
    Case::new("failing_poststart", |test| failing_start(test, "poststart")).all().hybrid_only(), // runc's is at Create
    Case::new("failing_poststop", |test| {
        let hooks = Hooks::new(test)?;
        let list = json!({"poststop": [hooks.host("fails", &["exit", "3", "the reason"]), hooks.host("next", &[])]});
        let task = test.task_of(hooks.add(test.spec(&["pause"])?, list)?)?;
        task.end()?;
        hooks.ran(&["fails", "next"])?;
        hooks.remove()
    })
    .all()
    .hybrid_only(), // runc's stops at the first
    Case::new("missing", |test| {
        for (number, turn) in TURNS.into_iter().enumerate() {
            let hooks = Hooks::new(test)?;
            let list = json!({turn: [{"path": "/no/such/hook"}]});
            let output = run(test, &hooks, &test.other(&number.to_string()), list)?;
            if turn == "poststop" {
                output.exits(0)?;
            } else {
                output.refused(&[&format!("hooks.{turn}[0]"), "/no/such/hook", "no such file or directory"])?;
            }
            hooks.remove()?;
        }
        Ok(())
    })
    .all()
    .hybrid_only(), // runc names no field
    Case::new("not_executable", |test| {
        let hooks = Hooks::new(test)?;
        let plain = hooks.path("plain");
        fs::write(&plain, "not a program").context("writing a file")?;
        for turn in ["createRuntime", "createContainer"] {
            let list = json!({turn: [{"path": plain}]});
            run(test, &hooks, &test.other(turn), list)?.refused(&["/plain", "ermission denied"])?;
        }
        hooks.remove()
    }),
    Case::new("wrong_fields", |test| {
        for (number, (field, value)) in
            [("path", json!("bin/true")), ("timeout", json!(0)), ("timeout", json!(-5)), ("args", json!(["a\0b"]))]
                .into_iter()
                .enumerate()
        {
            let hooks = Hooks::new(test)?;
            let mut hook = hooks.host("never", &[]);
            hook[field] = value;
            let list = json!({"createRuntime": [hooks.host("never", &[])], "poststart": [hook]});
            let id = test.other(&number.to_string());
            run(test, &hooks, &id, list)?.refused(&[&format!("hooks.poststart[0].{field}")])?;
            hooks.ran(&[])?;
            hooks.remove()?;
        }
        Ok(())
    })
    .all()
    .hybrid_only(), // runc takes most of them
    Case::new("timeout", |test| {
        for &turn in &TURNS[..5] {
            let hooks = Hooks::new(test)?;
            let hang = if turn == "startContainer" {
                hooks.inside("hangs", &["hang"])
            } else {
                hooks.host("hangs", &["hang"])
            };
            let mut list = json!({turn: [hang]});
            list[turn][0]["timeout"] = json!(1);
            let id = test.other(turn);
            run(test, &hooks, &id, list)?.refused(&[&format!("hooks.{turn}[0]"), "timeout of 1 s"])?;
            nobody_executes(&hooks)?;
            leaks::none_of(test.containerd, &id)?;
            hooks.remove()?;
        }
        Ok(())
    })
    .all()
    .hybrid_only(), // runc's waits for the hook's child
    Case::new("left_in_the_background", |test| {
        let hooks = Hooks::new(test)?;
        let fifo = hooks.path("fifo");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)?;
        let hook = hooks.host("starts", &["behind", &fifo.display().to_string()]);
        let list = json!({"createRuntime": [hook], "poststop": [hooks.host("last", &[])]});
        // Which has its stderr still open.
        let task = test.task_of(hooks.add(test.spec(&["pause"])?, list)?)?;
        let left = executing(&hooks)?;
        ensure!(left.len() == 1, "{} processes are left of the hook", left.len());
        task.end()?;
        // Now somebody has opened it, and it ends.
        fs::OpenOptions::new().write(true).open(&fifo).context("opening the fifo")?;
        left[0].wait_for_end()?;
        hooks.remove()
    })
    .hybrid_only(), // runc waits for the end of its stderr
    Case::new("much_on_stderr", |test| {
        let hooks = Hooks::new(test)?;
        let script = "i=0; while [ $i -lt 20000 ]; do echo line $i >&2; i=$((i+1)); done; exit 5";
        let list = json!({"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", script]}]});
        let output = run(test, &hooks, &test.id, list)?.refused(&["exit status 5", "line 19999"])?;
        ensure!(!output.stderr.contains("line 19998"), "{output}");
        hooks.remove()
    })
    .hybrid_only(), // runc's would wait for ever
    Case::new("killed_while_a_hook_of_start_runs", |test| {
        let hooks = Hooks::new(test)?;
        let (_, fifo) = hooks.fifo("fifo")?;
        let list = json!({"startContainer": [hooks.inside("hangs", &["tell", "/run/hooks/fifo", "hang"])]});
        let task = test.created(hooks.add(test.spec(&["hello"])?, list)?, |_| ())?;
        let server = task.again(2)?;
        thread::scope(|scope| {
            let start = scope.spawn(|| task.start());
            fifo.to_end().context("the hook does not run")?;
            ensure!(server.state().context("State")?.status() == Status::CREATED, "not created any more");
            server.kill(9).context("Kill")?;
            let answer = start.join().expect("Start does not panic");
            ensure!(answer.is_err(), "started");
            Ok::<_, anyhow::Error>(())
        })?;
        ensure!(task.wait().context("Wait")?.exit_status == 137, "exit status");
        ensure!(!task.stdout()?.contains("hello"), "the program has run");
        task.delete().context("Delete")?;
        task.remove()?;
        nobody_executes(&hooks)?;
        hooks.remove()
    })
    .all()
    .hybrid_only(),
    Case::new("others_go_on_while_one_hangs", others).all().hybrid_only(),
    Case::new("shim_dies_after_create", |test| dies(test, false)).all(),
    Case::new("shim_dies_after_start", |test| dies(test, true)).all(),
    Case::new("shim_dies_after_delete", |test| {
        let hooks = Hooks::new(test)?;
        let task = test.task_of(hooks.add(test.spec(&["pause"])?, turns(&hooks))?)?;
        let shim = task.connected().context("Connect")?.shim_pid;
        task.kill(9).context("Kill")?;
        task.wait().context("Wait")?;
        task.delete().context("Delete")?;
        Process::of(shim).context("the shim has ended")?.kill()?;
        // They have run.
        let before = hooks.names()?;
        ensure!(before.ends_with(&["poststop-1".to_owned()]), "{before:?}");
        task.direct.delete()?;
        ensure!(hooks.names()? == before, "{:?}", hooks.names()?);
        task.direct.remove()?;
        hooks.remove()
    })
    .all()
    .hybrid_only(),
    Case::new("shim_dies_while_a_hook_runs", |test| {
        for turn in ["prestart", "createContainer"] {
            let id = test.other(turn);
            let hooks = Hooks::new(test)?;
            let (fifo, told) = hooks.fifo("fifo")?;
            let hang = hooks.host("hangs", &["tell", &fifo, "hang"]);
            let list = json!({turn: [hang], "poststop": [hooks.host("last", &[])]});
            let spec = crate::harness::spec::Spec::default(test.containerd, test.kind, &id, &["hello"])?;
            let direct = crate::harness::direct::Direct::new(test.containerd, test.runtime(), &id)?;
            let direct = direct.config(&hooks.add(spec, list)?)?;
            let server = direct.start()?;
            let shim = server.connected().context("Connect")?.shim_pid;
            let leader = thread::scope(|scope| {
                let create = scope.spawn(|| server.create());
                told.to_end().context("the hook does not run")?;
                let hook = executing(&hooks)?.into_iter().find(|process| process.parent == shim);
                Process::of(shim).context("the shim has ended")?.kill()?;
                ensure!(create.join().expect("Create does not panic").is_err(), "created");
                hook.context("the hook is no child of the shim")
            })?;
            // Its own children are its own affair; those in the container's cgroup go with that.
            leader.wait_for_end().context("the hook goes on without its shim")?;
            direct.delete()?;
            executing(&hooks)?.iter().try_for_each(Process::kill)?;
            ensure!(hooks.names()?.ends_with(&["last".to_owned()]), "{:?}", hooks.names()?);
            leaks::none_of(test.containerd, &id)?;
            direct.remove()?;
            hooks.remove()?;
        }
        Ok(())
    })
    .all()
    .hybrid_only(), // runc goes on without its shim
    Case::new("under_containerd_when_the_shim_dies", |test| {
        let hooks = Hooks::new(test)?;
        hooks.add(test.spec(&["pause"])?, turns(&hooks))?.run()?.flags(&["--null-io"]).detach()?;
        let shim = Process::of(test.pid(&test.id)?).context("init has ended")?.parent;
        Process::of(shim).context("the shim has ended")?.kill()?;
        test.containerd.events.wait_for(&test.id, "/tasks/delete")?;
        let names = hooks.names()?;
        ensure!(names.ends_with(&["poststop-0", "poststop-1"].map(str::to_owned)), "{names:?}");
        test.ctr(["containers", "delete", &test.id]).done()?;
        hooks.remove()
    })
    .all(),
];

/// Runs a container with these hooks in the foreground.
fn run(test: &Test, hooks: &Hooks, id: &str, list: Value) -> Result<Output> {
    let spec = crate::harness::spec::Spec::default(test.containerd, test.kind, id, &["hello"])?;
    hooks.add(spec, list)?.run()?.output()
}

/// The processes that execute the hook.
fn executing(hooks: &Hooks) -> Result<Vec<Process>> {
    // Each test has its own link to the program, which is what the kernel tells.
    let program = hooks.path("hook");
    let executes = |process: &Process| {
        fs::read_link(format!("/proc/{}/exe", process.pid))
            .is_ok_and(|path| path.ends_with(program.strip_prefix("/").unwrap_or(&program)))
    };
    Ok(Process::all()?.into_iter().filter(executes).collect())
}

fn nobody_executes(hooks: &Hooks) -> Result<()> {
    // Killed, but perhaps not yet gone.
    executing(hooks)?.iter().try_for_each(|process| process.wait_for_end().context("a process of the hook is left"))
}

fn failing_start(test: &Test, turn: &str) -> Result<()> {
    let hooks = Hooks::new(test)?;
    let mut list = turns(&hooks);
    let operations = ["exit", "3", "the reason"];
    let inside = turn == "startContainer";
    let fails = if inside { hooks.inside("fails", &operations) } else { hooks.host("fails", &operations) };
    list[turn] = json!([fails, hooks.host("never", &[])]);
    let task = test.created(hooks.add(test.spec(&["pause"])?, list)?, |_| ())?;
    if test.runtime() == Runtime::Hybrid {
        let words = refused(task.start(), Code::FAILED_PRECONDITION)?;
        for word in [&format!("hooks.{turn}[0]"), "the reason", "exit status 3"] {
            ensure!(words.contains(word), "{words}");
        }
    } else {
        // Its init has been let go by then; only its end tells.
        let _ = task.start();
    }
    let exit = task.wait().context("Wait")?;
    ensure!(exit.exit_status != 0, "{exit:?}");
    ensure!(!inside || !task.stdout()?.contains("ready"), "the program has run");
    ensure!(task.state().context("State")?.status() == Status::STOPPED, "not stopped");
    task.delete().context("Delete")?;
    task.remove()?;
    let names = hooks.names()?;
    ensure!(!names.contains(&"never".to_owned()), "{names:?}");
    ensure!(names.ends_with(&["poststop-0", "poststop-1"].map(str::to_owned)), "{names:?}");
    // The program has not run. runc's start has succeeded by the time that init runs its own hooks.
    let after = names.contains(&"poststart-0".to_owned());
    ensure!(!after || inside && test.runtime() == Runtime::Runc, "{names:?}");
    hooks.remove()
}

/// The shim dies; `delete` runs what it has not come to, once.
fn dies(test: &Test, started: bool) -> Result<()> {
    let hooks = Hooks::new(test)?;
    let task = test.created(hooks.add(test.spec(&["pause"])?, turns(&hooks))?, |_| ())?;
    if started {
        task.start().context("Start")?;
    }
    let shim = task.connected().context("Connect")?.shim_pid;
    Process::of(shim).context("the shim has ended")?.kill()?;
    for _ in 0..2 {
        task.direct.delete()?;
        let names = hooks.names()?;
        let stops = names.iter().filter(|name| name.starts_with("poststop")).count();
        ensure!(stops == 2 && names.ends_with(&["poststop-0", "poststop-1"].map(str::to_owned)), "{names:?}");
    }
    let records = hooks.records()?;
    let state = records.last().context("a record")?.state()?;
    ensure!(state["status"] == "stopped" && state["id"] == test.id, "{state}");
    Process::of(task.pid).map_or(Ok(()), |init| init.wait_for_end()).context("init still runs")?;
    task.direct.remove()?;
    hooks.remove()
}

/// A container of the same shim is created while another's hook hangs: nothing of one is held by the other.
fn others(test: &Test) -> Result<()> {
    let mut io = Fifos::new(test.containerd)?;
    let first = test.created(test.spec(&["wait-stdin"])?, |request| io.name(request))?;
    first.start().context("Start")?;
    let id = test.other("hangs");
    let hooks = Hooks::new(test)?;
    let (fifo, told) = hooks.fifo("fifo")?;
    let list = json!({"prestart": [hooks.host("hangs", &["tell", &fifo, "hang"])]});
    let spec = crate::harness::spec::Spec::default(test.containerd, test.kind, &id, &["hello"])?;
    let direct = crate::harness::direct::Direct::new(test.containerd, test.runtime(), &id)?;
    let direct = direct.config(&hooks.add(spec, list)?)?;
    let server = first.server.of(&direct);
    thread::scope(|scope| {
        let create = scope.spawn(|| server.create());
        told.to_end().context("the hook does not run")?;
        // Its stdin ends, of which the other's init has a copy from its birth.
        io.close_stdin();
        first.close_io().context("CloseIO")?;
        ensure!(first.wait().context("Wait")?.exit_status == 0, "exit status");
        first.delete().context("Delete")?;
        executing(&hooks)?.iter().try_for_each(Process::kill)?;
        let words = refused(create.join().expect("Create does not panic"), Code::FAILED_PRECONDITION)?;
        ensure!(words.contains("exit status 137"), "{words}");
        Ok::<_, anyhow::Error>(())
    })?;
    direct.remove()?;
    hooks.remove()?;
    first.remove()
}
