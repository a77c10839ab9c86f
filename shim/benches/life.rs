//! The time of a task's life, hybrid beside runc's shim, taking turns in one run.
//!
//! `cargo bench --workspace --bench life`, as root. Absolute times depend on the machine and the hour: the figure that
//! counts is the ratio of the medians. `HYBRID_BENCH_ROUNDS` (default 30) is the number of lives of each kind,
//! `HYBRID_CONTAINERD` (default 1.6) the release line.
//!
//! - `shim`: the shim alone, called as containerd calls it: start, Create, Start, Wait, Delete, Shutdown.
//! - `ctr run`: the whole of `ctr run --rm --null-io`, with the time ctr and containerd take themselves in it.
#![forbid(unsafe_code)]

#[path = "../tests/e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
mod harness;

use anyhow::{Context, Result, ensure};
use harness::direct::Direct;
use harness::spec::Spec;
use harness::{Containerd, Kind, Run, Runtime, isolated, leaks};
use std::path::Path;
use std::time::{Duration, Instant};

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
            measure(&containerd, name, life, rounds)?;
        }
        containerd.stop()?;
    }
    leaks::remove_namespace_cgroups()
}

fn measure(containerd: &Containerd, name: &str, life: Life, rounds: usize) -> Result<()> {
    let mut times: [Vec<Duration>; CONTENDERS.len()] = Default::default();
    // The first round warms caches, precompiled code among them, and is not counted.
    for round in 0..=rounds {
        for (index, (contender, runtime, kind)) in CONTENDERS.into_iter().enumerate() {
            let id = format!("b{round}-{index}-{}", name.replace(' ', "-"));
            let time = life(containerd, runtime, kind, &id).with_context(|| format!("{contender}, round {round}"))?;
            if round > 0 {
                times[index].push(time);
            }
        }
    }
    let medians = times.map(|mut times| {
        times.sort();
        (times[times.len() / 2], times[times.len() * 9 / 10])
    });
    let base = medians[0].0.as_secs_f64();
    for ((contender, ..), (median, ninth)) in CONTENDERS.iter().zip(medians) {
        println!(
            "  {contender:<20} {:8.2} ms   p90 {:8.2} ms   {:.3} of runc's",
            median.as_secs_f64() * 1e3,
            ninth.as_secs_f64() * 1e3,
            median.as_secs_f64() / base
        );
    }
    Ok(())
}

fn shim(containerd: &Containerd, runtime: Runtime, kind: Kind, id: &str) -> Result<Duration> {
    let spec = Spec::default(containerd, kind, id, &["exit", "0"])?;
    let direct = Direct::new(containerd, runtime, id)?.config(&spec)?;
    let start = Instant::now();
    let server = direct.start()?;
    server.create().context("Create")?;
    server.start().context("Start")?;
    let exit = server.wait().context("Wait")?;
    ensure!(exit.exit_status == 0, "exit status {}", exit.exit_status);
    server.delete().context("Delete")?;
    server.shutdown()?;
    let time = start.elapsed();
    direct.remove()?;
    Ok(time)
}

fn ctr_run(containerd: &Containerd, runtime: Runtime, kind: Kind, id: &str) -> Result<Duration> {
    let start = Instant::now();
    Run::probe(containerd, kind, id, &["exit", "0"]).runtime(runtime).flags(&["--null-io"]).done()?;
    Ok(start.elapsed())
}
