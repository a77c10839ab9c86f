//! Every call of the task service in every state of a task and of an exec'd process, and the code it is answered with.
//!
//! containerd and its clients read the codes: NotFound means "gone", Unimplemented "cannot", and what is refused for
//! the state it meets is FailedPrecondition. runc's shim answers the last with Unknown; where it differs otherwise, a
//! comment says how.
use crate::harness::direct::{Direct, Server, code_of, refused};
use crate::harness::exec::{Exec, json_any};
use crate::harness::spec::Spec;
use crate::harness::task::Task;
use crate::harness::{Case, Kind, Runtime, Test};
use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api::{
    Empty, ExecProcessRequest, ShutdownRequest, UpdateTaskRequest, WaitRequest, WaitResponse,
};
use protobuf::MessageField;
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};
use std::time::Duration;
use ttrpc::Code;

/// What a call is answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Okay,
    /// Not yet: the state has to change first.
    Waits,
    /// NotFound.
    Gone,
    /// FailedPrecondition: not in this state.
    Wrong,
    /// AlreadyExists.
    Held,
    /// Unimplemented.
    Cannot,
    /// hybrid's answer, where runc's shim is not asked.
    Only(&'static Answer),
}
use Answer::{Cannot, Gone, Held, Okay, Only, Waits, Wrong};

#[rustfmt::skip]
const INIT: [(&str, [Answer; 6]); 17] = [
    //             unknown  created      running        paused         stopped  deleted
    ("State",      [Gone,   Okay,        Okay,          Okay,          Okay,    Gone]),
    ("Pids",       [Gone,   Okay,        Okay,          Okay,          Okay,    Gone]),
    ("Stats",      [Gone,   Okay,        Okay,          Okay,          Okay,    Gone]),
    ("Connect",    [Okay,   Okay,        Okay,          Okay,          Okay,    Okay]),
    // Another task keeps the shim.
    ("Shutdown",   [Okay,   Okay,        Okay,          Okay,          Okay,    Okay]),
    ("Wait",       [Gone,   Waits,       Waits,         Waits,         Okay,    Gone]),
    // runc's fails on a state folder of its own, with Unknown.
    ("Create",     [Okay,   Only(&Held), Only(&Held),   Only(&Held),   Only(&Held), Okay]),
    ("Start",      [Gone,   Okay,        Wrong,         Wrong,         Wrong,   Gone]),
    ("Kill",       [Gone,   Okay,        Okay,          Okay,          Gone,    Gone]),
    // runc's: an error while the init of a created task has not been reaped.
    ("Delete",     [Gone,   Only(&Okay), Wrong,         Wrong,         Okay,    Gone]),
    ("Pause",      [Gone,   Wrong,       Okay,          Wrong,         Wrong,   Gone]),
    ("Resume",     [Gone,   Wrong,       Wrong,         Okay,          Wrong,   Gone]),
    ("Update",     [Gone,   Okay,        Okay,          Okay,          Wrong,   Gone]),
    // Without criu; runc's: Unknown, with what came of it.
    ("Checkpoint", [Gone,   Wrong,       Only(&Cannot), Only(&Cannot), Wrong,   Gone]),
    ("CloseIO",    [Gone,   Okay,        Okay,          Okay,          Okay,    Gone]),
    // A task without a terminal.
    ("ResizePty",  [Gone,   Okay,        Okay,          Okay,          Okay,    Gone]),
    ("Exec",       [Gone,   Okay,        Okay,          Wrong,         Wrong,   Gone]),
];

#[rustfmt::skip]
const EXEC: [(&str, [Answer; 7]); 8] = [
    //             unknown  added   running       paused        stopped       deleted  init has ended
    ("State",      [Gone,   Okay,   Okay,         Okay,         Okay,         Gone,    Okay]),
    ("Wait",       [Gone,   Waits,  Waits,        Waits,        Okay,         Gone,    Waits]),
    // runc's of containerd 2 ends when one is started twice.
    ("Start",      [Gone,   Okay,   Only(&Wrong), Only(&Wrong), Only(&Wrong), Gone,    Wrong]),
    ("Kill",       [Gone,   Wrong,  Okay,         Okay,         Gone,         Gone,    Wrong]),
    ("Delete",     [Gone,   Okay,   Wrong,        Wrong,        Okay,         Gone,    Okay]),
    // runc's: Unknown for what it does not find.
    ("CloseIO",    [Only(&Gone), Okay, Okay,      Okay,         Okay,         Only(&Gone), Okay]),
    ("ResizePty",  [Gone,   Okay,   Okay,         Okay,         Wrong,        Gone,    Okay]),
    // With the same exec id.
    ("Exec",       [Okay,   Held,   Held,         Held,         Held,         Okay,    Held]),
];

pub const CASES: &[Case] = &[
    Case::new("init_unknown", |test| init(test, 0)).kinds(KINDS),
    Case::new("init_created", |test| init(test, 1)).kinds(KINDS),
    Case::new("init_running", |test| init(test, 2)).kinds(KINDS),
    Case::new("init_paused", |test| init(test, 3)).kinds(KINDS),
    Case::new("init_stopped", |test| init(test, 4)).kinds(KINDS),
    Case::new("init_deleted", |test| init(test, 5)).kinds(KINDS),
    Case::new("exec_unknown", |test| exec(test, 0)).kinds(KINDS),
    Case::new("exec_added", |test| exec(test, 1)).kinds(KINDS),
    Case::new("exec_running", |test| exec(test, 2)).kinds(KINDS),
    Case::new("exec_paused", |test| exec(test, 3)).kinds(KINDS),
    Case::new("exec_stopped", |test| exec(test, 4)).kinds(KINDS),
    Case::new("exec_deleted", |test| exec(test, 5)).kinds(KINDS),
    Case::new("exec_init_ended", |test| exec(test, 6)).kinds(KINDS),
    Case::new("bad_requests", bad_requests).kinds(KINDS).hybrid_only(), // runc's answers Unknown to most
];

const KINDS: &[Kind] = &[Kind::Linux, Kind::Core];

/// A shim with a task that keeps it, for tasks that are each brought into a state, asked one thing, and deleted.
struct Shim<'t, 'a> {
    test: &'t Test<'a>,
    keeper: Task<'a>,
}

impl<'t, 'a> Shim<'t, 'a> {
    fn start(test: &'t Test<'a>) -> Result<Shim<'t, 'a>> {
        let direct = test.direct()?.config(&test.spec(&["pause"])?)?;
        let server = direct.started_with(|command| {
            if test.runtime() == Runtime::Hybrid {
                // A host without criu, whatever this one has; runc's finds runc there.
                command.env("PATH", "/nowhere");
            }
        })?;
        let keeper = Task::adopt(test.containerd, test.kind, direct, server, &test.spec(&["pause"])?)?;
        keeper.start().context("Start")?;
        Ok(Shim { test, keeper })
    }

    /// Calls `ask` with a task of its own that is in the state, and with the process to exec in it.
    fn with(&self, name: &str, state: usize, ask: impl FnOnce(&Server, Value) -> Result<()>) -> Result<()> {
        let id = self.test.other(&name.to_lowercase());
        let spec = Spec::default(self.test.containerd, self.test.kind, &id, &["pause"])?;
        let direct = Direct::new(self.test.containerd, self.test.runtime(), &id)?.config(&spec)?;
        let server = self.keeper.server.of(&direct);
        let steps: [fn(&Server) -> ttrpc::Result<()>; 5] = [
            |server| server.create().map(drop),
            |server| server.start().map(drop),
            |server| server.pause().map(drop),
            |server| server.kill(9).and_then(|_| server.wait()).map(drop),
            |server| server.delete().map(drop),
        ];
        // A stopped task needn't have been paused.
        for (number, step) in steps.iter().enumerate().take(state).filter(|(number, _)| *number != 2 || state == 3) {
            step(&server).with_context(|| format!("{name}: step {number} to its state"))?;
        }
        ask(&server, spec.value["process"].clone())?;
        if server.state().is_ok() {
            match server.kill(9) {
                Err(error) if code_of(&error) != Some(Code::NOT_FOUND) => return Err(error).context("Kill"),
                _ => server.wait().and_then(|_| server.delete()).with_context(|| format!("{name}: ending its task"))?,
            };
        }
        direct.remove()
    }
}

/// One column of the table of tasks.
fn init(test: &Test, state: usize) -> Result<()> {
    let shim = Shim::start(test)?;
    for (call, answers) in INIT {
        shim.with(call, state, |server, process| {
            expect(test, answers[state], || called(server, call, process)).with_context(|| call.to_owned())
        })?;
    }
    shim.keeper.end()
}

fn called(server: &Server, call: &str, process: Value) -> ttrpc::Result<()> {
    match call {
        "State" => server.state().map(drop),
        "Pids" => server.pids().map(drop),
        "Stats" => server.stats().map(drop),
        "Connect" => server.connected().map(drop),
        "Shutdown" => server
            .call::<_, Empty>("Shutdown", &ShutdownRequest { id: server.id.clone(), ..Default::default() })
            .map(drop),
        "Wait" => waited(server, ""),
        "Create" => server.create().map(drop),
        "Start" => server.start().map(drop),
        "Kill" => server.kill(9).map(drop),
        "Delete" => server.delete().map(drop),
        "Pause" => server.pause().map(drop),
        "Resume" => server.resume().map(drop),
        "Update" => server.update(json!({"pids": {"limit": 100}})).map(drop),
        "Checkpoint" => server.checkpoint("/nowhere/checkpoint").map(drop),
        "CloseIO" => server.close_io().map(drop),
        "ResizePty" => server.resize(80, 25).map(drop),
        "Exec" => Exec::bare(server, "one", process).add().map(drop),
        other => panic!("no call {other}"),
    }
}

/// One column of the table of exec'd processes.
fn exec(test: &Test, state: usize) -> Result<()> {
    let shim = Shim::start(test)?;
    for (call, answers) in EXEC {
        shim.with(call, 2, |server, process| {
            let exec = Exec::bare(server, "one", process);
            let steps: [&dyn Fn() -> ttrpc::Result<()>; 5] = [
                &|| exec.add().map(drop),
                &|| exec.start().map(drop),
                &|| server.pause().map(drop),
                &|| exec.kill(9).and_then(|_| exec.wait()).map(drop),
                &|| exec.delete().map(drop),
            ];
            let taken: &[usize] = [&[][..], &[0], &[0, 1], &[0, 1, 2], &[0, 1, 3], &[0, 1, 3, 4], &[0]][state];
            for step in taken {
                steps[*step]().with_context(|| format!("{call}: step {step} to the state"))?;
            }
            if state == 6 {
                server.kill(9).and_then(|_| server.wait()).context("ending init")?;
            }
            let ask = || match call {
                "State" => exec.state().map(drop),
                "Wait" => waited(server, "one"),
                "Start" => exec.start().map(drop),
                "Kill" => exec.kill(9).map(drop),
                "Delete" => exec.delete().map(drop),
                "CloseIO" => exec.close_io().map(drop),
                "ResizePty" => exec.resize(80, 25).map(drop),
                "Exec" => exec.add().map(drop),
                other => panic!("no call {other}"),
            };
            expect(test, answers[state], ask).with_context(|| call.to_owned())
        })?;
    }
    shim.keeper.end()
}

/// Wait, given up after a moment that is long for an answer.
fn waited(server: &Server, exec_id: &str) -> ttrpc::Result<()> {
    let request = WaitRequest { id: server.id.clone(), exec_id: exec_id.to_owned(), ..Default::default() };
    server.call_within::<_, WaitResponse>(Duration::from_millis(200), "Wait", &request).map(drop)
}

fn expect(test: &Test, expected: Answer, ask: impl FnOnce() -> ttrpc::Result<()>) -> Result<()> {
    let runc = test.runtime() == Runtime::Runc;
    let expected = match expected {
        Only(_) if runc => return Ok(()),
        Only(answer) => *answer,
        other => other,
    };
    let result = ask();
    let code = result.as_ref().err().and_then(code_of);
    let as_expected = match expected {
        Okay => result.is_ok(),
        // The server's word for it, or the client's.
        Waits => code == Some(Code::DEADLINE_EXCEEDED) || format!("{result:?}").contains("timeout"),
        Gone => code == Some(Code::NOT_FOUND),
        Held => code == Some(Code::ALREADY_EXISTS),
        Cannot => code == Some(Code::UNIMPLEMENTED),
        Wrong => code == Some(Code::FAILED_PRECONDITION) || runc && code == Some(Code::UNKNOWN),
        Only(_) => bail!("an answer within an answer"),
    };
    ensure!(as_expected, "{expected:?} was expected: {result:?}");
    Ok(())
}

/// What is wrong in itself is InvalidArgument, in whatever state.
fn bad_requests(test: &Test) -> Result<()> {
    let task = test.task(&["pause"])?;
    let id = || test.id.clone();
    let any = |type_url: &str, value: &str| {
        let (type_url, value) = (type_url.to_owned(), value.as_bytes().to_vec());
        MessageField::some(Any { type_url, value, ..Default::default() })
    };
    let refuse = |what: &str, result: ttrpc::Result<()>| {
        refused(result, Code::INVALID_ARGUMENT).map(drop).with_context(|| what.to_owned())
    };
    refuse("no id", task.create_as(|request| request.id.clear()).map(drop))?;
    refuse(
        "no bundle",
        task.create_as(|request| {
            request.id = test.other("new");
            request.bundle.clear();
        })
        .map(drop),
    )?;
    for signal in [65, 1000, u32::MAX] {
        refuse("no such signal", task.kill(signal).map(drop))?;
    }
    let process = json_any("Process", &json!({"args": ["/bin/probe"], "cwd": "/"}));
    let url = process.type_url.clone();
    for (what, exec_id, spec) in [
        ("no exec id", "", MessageField::some(process.clone())),
        ("no process", "one", MessageField::none()),
        ("an empty process", "one", any(&url, "")),
        ("half a process", "one", any(&url, "{\"args\": [")),
        ("no JSON", "one", any(&url, "\u{1}\u{2}")),
        ("another type", "one", any("types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", "{}")),
    ] {
        let request = ExecProcessRequest { id: id(), exec_id: exec_id.to_owned(), spec, ..Default::default() };
        refuse(what, task.call::<_, Empty>("Exec", &request).map(drop))?;
    }
    for (what, resources) in [
        ("no resources", MessageField::none()),
        ("no JSON", any("types.containerd.io/opencontainers/runtime-spec/1/LinuxResources", "nonsense")),
        ("another type", MessageField::some(process)),
    ] {
        let request = UpdateTaskRequest { id: id(), resources, ..Default::default() };
        refuse(what, task.call::<_, Empty>("Update", &request).map(drop))?;
    }
    // None of it has an effect.
    task.exec("one", &["hello"])?.run()?.exits(0)?;
    task.end()
}
