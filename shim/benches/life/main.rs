//! The time of a task's life, hybrid beside runc's shim, taking turns in one run.
//!
//! `cargo bench --workspace --bench life`, as root. Absolute times depend on the machine and the hour: the figure that
//! counts is the ratio of the medians. `HYBRID_BENCH_ROUNDS` (default 30) is the number of lives of each kind,
//! `HYBRID_CONTAINERD` (default 1.6) the release line.
//!
//! - `shim`: the shim alone, called as containerd calls it: start, Create, Start, Wait, Delete, Shutdown.
//! - `ctr run`: the whole of `ctr run --rm --null-io`, with the time ctr and containerd take themselves in it.
//! - `exec`: a further process in a running container: Exec, Start, Wait, Delete, with fifos for its streams.
//! - `seccomp`: a further container in a pod, without and with containerd's default seccomp profile: Create, Start, Wait,
//!   Delete.
//! - `modules`: the shim's part of a life for modules of several sizes, compiled before (`warm`) or not yet (`cold`).
//!   `HYBRID_BENCH_MODULE` adds one more, which is run with `--version`.
#![forbid(unsafe_code)]

mod modules;
mod turns;

#[path = "../../tests/e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
mod harness;

use anyhow::{Context, Result, ensure};
use harness::direct::{Direct, Server};
use harness::spec::Spec;
use harness::task::Task;
use harness::{Containerd, Kind, Run, Runtime, isolated, leaks};
use std::path::Path;
use std::time::{Duration, Instant};
use turns::{median, take_turns};

/// What takes turns; the first is what the others are compared with.
const CONTENDERS: [(&str, Runtime, Kind); 4] = [
    ("runc, Linux", Runtime::Runc, Kind::Linux),
    ("hybrid, Linux", Runtime::Hybrid, Kind::Linux),
    ("hybrid, core module", Runtime::Hybrid, Kind::Core),
    ("hybrid, component", Runtime::Hybrid, Kind::Component),
];

/// One life, and how long it took.
type Life = fn(&Containerd, Runtime, Kind, &str) -> Result<Duration>;

fn main() -> Result<()> {
    let found = isolated::enter(&["1.6"])?;
    let rounds = std::env::var("HYBRID_BENCH_ROUNDS").map_or(Ok(30), |text| text.parse::<usize>());
    let rounds = rounds.context("HYBRID_BENCH_ROUNDS is a number")?;
    ensure!(rounds > 0, "HYBRID_BENCH_ROUNDS is 0");
    let images = test_images::build()?;
    for (line, programs) in &found {
        let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join("containerd-bench.log");
        let containerd = Containerd::start(line, programs, Runtime::Hybrid, &images, log)?;
        for (name, life) in [("shim", shim as Life), ("ctr run", ctr_run as Life)] {
            println!("containerd {line}, {name}: median of {rounds} lives, taking turns");
            measure(rounds, |index, round| {
                let (_, runtime, kind) = CONTENDERS[index];
                life(&containerd, runtime, kind, &format!("b{round}-{index}-{}", name.replace(' ', "-")))
            })?;
        }
        println!("containerd {line}, exec: median of {rounds} processes, taking turns");
        let tasks = CONTENDERS.map(|(name, runtime, kind)| running(&containerd, runtime, kind).context(name));
        let tasks = tasks.into_iter().collect::<Result<Vec<_>>>()?;
        measure(rounds, |index, round| exec(&tasks[index], &format!("e{round}")))?;
        tasks.into_iter().try_for_each(Task::end)?;
        println!("containerd {line}, seccomp: median of {rounds} containers in a pod, taking turns");
        seccomp(&containerd, rounds)?;
        println!("containerd {line}, modules: median of {rounds} lives, taking turns");
        modules::measure(&containerd, rounds)?;
        containerd.stop()?;
    }
    leaks::remove_namespace_cgroups()
}

/// Times `life` for each of [`CONTENDERS`]; it is told whose turn it is and which round.
fn measure(rounds: usize, life: impl Fn(usize, usize) -> Result<Duration>) -> Result<()> {
    take_turns(rounds, &CONTENDERS.map(|(name, ..)| name), life)
}

fn shim(containerd: &Containerd, runtime: Runtime, kind: Kind, id: &str) -> Result<Duration> {
    life_of(containerd, runtime, &Spec::default(containerd, kind, id, &["exit", "0"])?, id)
}

/// The shim's part of a container's life.
fn life_of(containerd: &Containerd, runtime: Runtime, spec: &Spec, id: &str) -> Result<Duration> {
    let direct = Direct::new(containerd, runtime, id)?.config(spec)?;
    let start = Instant::now();
    let server = direct.start()?;
    create_to_delete(&server)?;
    server.shutdown()?;
    let time = start.elapsed();
    direct.remove()?;
    Ok(time)
}

/// What containerd calls for a container that ends by itself with 0.
fn create_to_delete(server: &Server) -> Result<()> {
    server.create().context("Create")?;
    server.start().context("Start")?;
    let exit = server.wait().context("Wait")?;
    ensure!(exit.exit_status == 0, "exit status {}", exit.exit_status);
    server.delete().context("Delete").map(drop)
}

fn ctr_run(containerd: &Containerd, runtime: Runtime, kind: Kind, id: &str) -> Result<Duration> {
    let start = Instant::now();
    Run::probe(containerd, kind, id, &["exit", "0"]).runtime(runtime).flags(&["--null-io"]).done()?;
    Ok(start.elapsed())
}

/// A container that waits, for processes to be executed in it.
fn running(containerd: &Containerd, runtime: Runtime, kind: Kind) -> Result<Task<'_>> {
    let id = format!("exec-{runtime:?}-{}", kind.name()).to_lowercase();
    let spec = Spec::default(containerd, kind, &id, &["pause"])?;
    let direct = Direct::new(containerd, runtime, &id)?;
    let task = Task::create(containerd, kind, direct, spec, |_| ())?;
    task.start().context("Start")?;
    Ok(task)
}

fn exec(task: &Task, id: &str) -> Result<Duration> {
    let exec = task.exec(id, &["exit", "0"])?;
    let start = Instant::now();
    exec.add().context("Exec")?;
    exec.start().context("Start")?;
    let exit = exec.wait().context("Wait")?;
    ensure!(exit.exit_status == 0, "exit status {}", exit.exit_status);
    exec.delete().context("Delete")?;
    Ok(start.elapsed())
}

/// Prints the time of a container in a pod without and with the default profile, by hybrid's shim.
fn seccomp(containerd: &Containerd, rounds: usize) -> Result<()> {
    let (runtime, kind) = (Runtime::Hybrid, Kind::Linux);
    let image = kind.image();
    containerd.ctr(["containers", "create", "--seccomp", &image, "profile"]).done()?;
    let text = containerd.ctr(["containers", "info", "--spec", "profile"]).done()?.stdout;
    containerd.ctr(["containers", "delete", "profile"]).done()?;
    let spec: serde_json::Value = serde_json::from_str(&text).context("parsing the spec of a container")?;
    let profile = &spec["linux"]["seccomp"];
    ensure!(profile["syscalls"].is_array(), "no profile in {text}");
    let pod = running(containerd, runtime, kind)?;
    let life = |id: &str, with: bool| -> Result<Duration> {
        let mut spec = Spec::default(containerd, kind, id, &["exit", "0"])?;
        if with {
            spec = spec.set("/linux/seccomp", profile.clone())?;
        }
        let direct = Direct::new(containerd, runtime, id)?.config(&spec)?;
        let server = pod.server.of(&direct);
        let start = Instant::now();
        create_to_delete(&server)?;
        let time = start.elapsed();
        direct.remove()?;
        Ok(time)
    };
    let mut times = [Vec::new(), Vec::new()];
    let mut first = Duration::ZERO;
    for round in 0..=rounds {
        for with in [false, true] {
            let time = life(&format!("s{round}-{with}"), with)?;
            match (round, with) {
                (0, true) => first = time,
                (0, false) => {}
                _ => times[usize::from(with)].push(time),
            }
        }
    }
    pod.end()?;
    let [without, with] = times.map(|times| median(times).as_secs_f64() * 1e3);
    let first = first.as_secs_f64() * 1e3;
    println!(
        "  without {without:.2} ms   with {with:.2} ms, {:.2} ms more   its first use {first:.2} ms",
        with - without
    );
    Ok(())
}
