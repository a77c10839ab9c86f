//! Services of `wasi:http` beside the wasmtime command: requests per second, taking turns in one run, and the memory of those
//! that wait.
//!
//! `make bench-service`, as root. The figure that counts is the ratio of the medians. `HYBRID_BENCH_ROUNDS` (default 5) is
//! the number of loads of each kind, `HYBRID_CONTAINERD` (default 2.x) the release line, `HYBRID_WASMTIME` the folder with
//! the command (`scripts/wasmtime`).
#![forbid(unsafe_code)]

mod load;

#[path = "../../tests/e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests use the rest")]
mod harness;

use anyhow::{Context, Result, ensure};
use harness::command::Running;
use harness::service::{free, memory};
use harness::{Containerd, Run, Runtime, isolated, leaks};
use load::LOADS;
use std::net::SocketAddr;
use std::path::Path;

/// The test image with what is served.
const IMAGE: &str = "wasm-cases";

/// What is served: both answer `hello`.
const SERVICES: [(&str, &str); 2] = [("WASI 0.2", "service.wasm"), ("WASI 0.3", "handler.wasm")];

/// How many services of a kind wait at once: what they share is shared by several.
const IDLE: usize = 5;

fn main() -> Result<()> {
    let wasmtime = std::env::var_os("HYBRID_WASMTIME").context("HYBRID_WASMTIME is not set: see scripts/wasmtime")?;
    let found = isolated::enter(&["2.x"])?;
    let rounds = std::env::var("HYBRID_BENCH_ROUNDS").map_or(Ok(5), |text| text.parse::<usize>());
    let rounds = rounds.context("HYBRID_BENCH_ROUNDS is a number")?;
    ensure!(rounds > 0, "HYBRID_BENCH_ROUNDS is 0");
    let images = test_images::build()?;
    for (line, programs) in &found {
        let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join("containerd-bench-service.log");
        let containerd = Containerd::start(line, programs, Runtime::Hybrid, &images, log)?;
        for (world, module) in SERVICES {
            println!("containerd {line}, {world}: median of {rounds} loads, taking turns with `wasmtime serve`");
            requests(&containerd, Path::new(&wasmtime), module, rounds).context(world)?;
            idle(&containerd, module).context(world)?;
        }
        containerd.stop()?;
    }
    leaks::remove_namespace_cgroups()
}

/// Prints the requests per second of each load.
fn requests(containerd: &Containerd, wasmtime: &Path, module: &str, rounds: usize) -> Result<()> {
    let ours = Service::start(containerd, module, "loaded")?;
    let theirs = Service::start_wasmtime(containerd, wasmtime, module)?;
    for (name, load) in LOADS {
        let mut rates = [Vec::new(), Vec::new()];
        // The first round warms both, and is not counted.
        for round in 0..=rounds {
            for (index, address) in [ours.address, theirs.address].into_iter().enumerate() {
                let rate = load(address).with_context(|| format!("{name}, of {}", ["hybrid", "wasmtime"][index]))?;
                if round > 0 {
                    rates[index].push(rate);
                }
            }
        }
        let [ours, theirs] = rates.map(median);
        println!("  {name:<32} {ours:7.0}/s   wasmtime {theirs:7.0}/s   {:.3} of its", ours / theirs);
    }
    ours.end("TERM")?;
    theirs.end("INT")
}

/// Prints the memory of services that wait for their first request.
fn idle(containerd: &Containerd, module: &str) -> Result<()> {
    let services = (0..IDLE).map(|number| Service::start(containerd, module, &format!("idle{number}")));
    let services = services.collect::<Result<Vec<_>>>()?;
    let of = |field| -> Result<f64> {
        let of = |service: &Service| memory(containerd.pid(&service.id)?, field);
        Ok(median(services.iter().map(|service| of(service).map(|kb| kb as f64)).collect::<Result<Vec<_>>>()?))
    };
    println!(
        "  {IDLE} idle: private {:.0} kB each, PSS {:.0} kB, RSS {:.0} kB",
        of("Private_")?,
        of("Pss:")?,
        of("Rss:")?
    );
    services.into_iter().try_for_each(|service| service.end("TERM"))
}

/// A service in a container, on the network of the benches.
struct Service<'a> {
    containerd: &'a Containerd,
    id: String,
    address: SocketAddr,
    running: Running,
}

impl<'a> Service<'a> {
    fn start(containerd: &'a Containerd, module: &str, id: &str) -> Result<Service<'a>> {
        let address = free()?;
        let annotation = format!("io.containerd.hybrid.wasm.http-address={address}");
        let running = Run::image(containerd, &format!("localhost/hybrid/{IMAGE}:latest"), id)
            .flags(&["--net-host", "--annotation", &annotation])
            .arguments(&[&format!("/{module}")])
            .spawn()?;
        Service { containerd, id: id.to_owned(), address, running }.ready()
    }

    /// The wasmtime command in a container of the host's files: so the kernel shares its time out in the same way.
    fn start_wasmtime(containerd: &'a Containerd, wasmtime: &Path, module: &str) -> Result<Service<'a>> {
        let (id, address) = ("wasmtime", free()?);
        let modules = containerd.rootfs(IMAGE);
        let mount = format!("type=bind,src={},dst=/mnt,options=bind:ro", modules.display());
        let program = wasmtime.join("bin/wasmtime").display().to_string();
        let running = Run::image(containerd, "/", id)
            .flags(&["--net-host", "--rootfs", "--mount", &mount])
            .arguments(&[&program, "serve", "-Scli", "--addr", &address.to_string(), &format!("/mnt/{module}")])
            .spawn()?;
        Service { containerd, id: id.to_owned(), address, running }.ready()
    }

    /// Itself, when it listens.
    fn ready(self) -> Result<Service<'a>> {
        self.running.wait_for_error("Serving HTTP on")?;
        Ok(self)
    }

    /// Sends the signal that asks for its end.
    fn end(self, signal: &str) -> Result<()> {
        self.containerd.ctr(["tasks", "kill", "--signal", signal, &self.id]).done()?;
        self.running.finish()?.exits(0).map(drop)
    }
}

/// The upper median of at least one.
fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}
