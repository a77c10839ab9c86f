//! Modules while they are compiled, and what happens to those who wait for it.
use crate::bad_input::clear;
use crate::harness::command::Running;
use crate::harness::leaks::Process;
use crate::harness::{Case, Kind, NAMESPACE, Test, eventually};
use crate::wasm_bad_input::module;
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::fs;
use test_images::assemble;

pub const CASES: &[Case] = &[
    Case::new("a_precompiler_that_is_killed", |test| {
        let compiling = Compiling::begin(test, &[])?;
        // As the kernel does it where memory is short.
        compiling.precompiler.kill()?;
        clear(test, compiling.running.finish()?, &["/m.wasm", "the precompiler was killed"])
    })
    .kinds(CORE),
    Case::new("compiling_holds_up_nothing_else", |test| {
        let group = format!("io.containerd.runc.v2.group={}", test.other("group"));
        let flags = ["--annotation", group.as_str()];
        let first = test.other("first");
        let other = test.run(&["spin"]).id(&first).flags(&flags).spawn()?;
        other.wait_for("ready")?;
        let compiling = Compiling::begin(test, &[("io.containerd.runc.v2.group", &test.other("group"))])?;
        ensure!(test.status(&first)? == "RUNNING", "{first} is not running");
        let pids = test.ctr(["tasks", "ps", &first]).done()?;
        ensure!(pids.stdout.contains(&test.pid(&first)?.to_string()), "{pids}");
        test.kill(&first, "KILL")?;
        other.finish()?.exits(137)?;
        signal(&compiling.precompiler, Signal::CONT)?;
        compiling.running.finish()?.exits(0).map(drop)
    })
    .kinds(CORE),
    Case::new("two_starts_compile_once", |test| {
        let compiling = Compiling::begin(test, &[])?;
        let bytes = slow(test)?;
        let second = test.other("second");
        let spec = module(test, &bytes)?.set("/linux/cgroupsPath", json!(format!("/{NAMESPACE}/{second}")))?;
        let other = spec.run()?.id(&second).spawn()?;
        // It waits for the lock that the first one has.
        eventually("a shim that waits", || {
            Ok(Process::mentioning(&second, "containerd-shim").ok().filter(waits_for_lock))
        })?;
        signal(&compiling.precompiler, Signal::CONT)?;
        compiling.running.finish()?.exits(0)?;
        other.finish()?.exits(0)?;
        Ok(())
    })
    .kinds(CORE),
    Case::new("a_client_that_hangs_up_meanwhile", |test| {
        let compiling = Compiling::begin(test, &[])?;
        let shim = Process::mentioning(&test.id, "containerd-shim")?;
        compiling.running.kill()?;
        // The container record is the client's, which is gone.
        eventually("the end of the client's call", || {
            let removed = test.ctr(["containers", "delete", &test.id]).output()?;
            Ok((removed.code == 0).then_some(()))
        })?;
        signal(&compiling.precompiler, Signal::CONT)?;
        shim.wait_for_end().context("the shim")?;
        // The fifos are the client's, too.
        for folder in fs::read_dir("/run/containerd/fifo").context("reading the folders of fifos")? {
            let folder = folder?.path();
            if folder.join(format!("{}-stdin", test.id)).exists() {
                fs::remove_dir_all(&folder).with_context(|| format!("removing {}", folder.display()))?;
            }
        }
        Ok(())
    })
    .kinds(CORE),
];

const CORE: &[Kind] = &[Kind::Core];

/// A module that takes a while to compile, of the test's own.
fn slow(test: &Test) -> Result<Vec<u8>> {
    let add = "(local.set 0 (i32.add (local.get 0) (i32.load (local.get 0))))".repeat(20_000);
    assemble(&format!(
        r#"(module (memory 1) (func (export "_start")) (func (export "{}") (local i32) {add}))"#,
        test.id
    ))
}

/// A container whose module is being compiled, for as long as its precompiler is stopped.
struct Compiling {
    running: Running,
    precompiler: Process,
}

impl Compiling {
    fn begin(test: &Test, annotations: &[(&str, &str)]) -> Result<Compiling> {
        let annotations: serde_json::Map<_, _> =
            annotations.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        let running = module(test, &slow(test)?)?.set("/annotations", json!(annotations))?.run()?.spawn()?;
        let precompiler = eventually("a precompiler", || {
            let all = Process::all()?;
            let is_shim = |pid| all.iter().any(|p| p.pid == pid && p.mentions(&test.id));
            let mut children = Process::all()?.into_iter().filter(|process| process.mentions("hybrid-precompile"));
            Ok(children.find(|process| is_shim(process.parent)))
        })?;
        signal(&precompiler, Signal::STOP)?;
        ensure!(Process::of(precompiler.pid).is_some(), "the precompiler was too quick");
        Ok(Compiling { running, precompiler })
    }
}

fn signal(process: &Process, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(process.pid as i32).context("a pid is positive")?;
    kill_process(pid, signal).with_context(|| format!("sending {signal:?}"))
}

/// Whether a thread of it waits in flock(2).
fn waits_for_lock(process: &Process) -> bool {
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    // "1: -> FLOCK  ADVISORY  WRITE 123 …" is somebody who waits (proc_locks(5)).
    locks
        .lines()
        .any(|line| line.contains("-> FLOCK") && line.split_whitespace().any(|word| word == process.pid.to_string()))
}
