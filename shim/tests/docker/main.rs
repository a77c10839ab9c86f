//! Tests through Docker Engine: its own daemon, on a containerd of the line that Debian 13's packages ask for, runs the
//! test images with the shim under test as `--runtime`.
//!
//! `cargo test --release --workspace --test docker -- [FILTER]`, as root. Like the end-to-end tests it restarts itself in
//! namespaces and cgroups of its own, and understands `HYBRID_RUNTIME` and `HYBRID_SHIM`.
#![forbid(unsafe_code)]

mod case;
mod engine;
mod exec;
#[path = "../e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests through ctr use the rest")]
mod harness;
mod life;
mod options;
mod resources;
mod streams;

use anyhow::{Context, Result};
use case::Case;
use engine::Engine;
use harness::leaks::{self, Snapshot};
use harness::{Containerd, Runtime, isolated};
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};

const THEMES: &[(&str, &[Case])] = &[
    ("life", life::CASES),
    ("streams", streams::CASES),
    ("exec", exec::CASES),
    ("options", options::CASES),
    ("resources", resources::CASES),
];

fn main() -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    // Each test mostly waits for dockerd, docker and the container.
    arguments.test_threads.get_or_insert(4);
    let found = if arguments.list { None } else { isolated::enter_with_docker()? };
    let stand = Arc::new(Stand { runtime: Runtime::from_env()?, found, engine: OnceLock::new() });
    if stand.found.is_none() {
        if !arguments.list {
            eprintln!("Docker Engine cannot be had (scripts/docker says why): nothing is tested with it");
        }
        return Ok(libtest_mimic::run(&arguments, trials(&stand)).exit_code());
    }
    let before = Snapshot::take(&[])?;
    let conclusion = libtest_mimic::run(&arguments, trials(&stand));
    // The trials, and with them their shares, are gone.
    let stand = Arc::into_inner(stand).context("a test still runs")?;
    let engine = stand.engine.into_inner().and_then(Result::ok);
    if conclusion.has_failed() {
        if let Some(engine) = engine {
            eprintln!("the logs: {}, {}", engine.log_path().display(), engine.containerd.log_path().display());
        }
        // In use where a failed test has left a container in it, which that test has reported.
        let _ = leaks::remove_namespace_cgroups();
        return Ok(conclusion.exit_code());
    }
    if let Some(engine) = engine {
        let containerd = engine.stop()?;
        leaks::none_since(&before, &[&containerd]).context("after the last test")?;
        containerd.stop()?;
    }
    leaks::remove_namespace_cgroups()?;
    Ok(conclusion.exit_code())
}

/// What the tests stand on, started by the first that needs it.
struct Stand {
    runtime: Runtime,
    /// The folders with the programs of Docker Engine and containerd.
    found: Option<[PathBuf; 2]>,
    engine: OnceLock<Result<Engine, String>>,
}

impl Stand {
    fn engine(&self) -> Result<&Engine, String> {
        let start = || {
            let [docker, containerd] = self.found.as_ref().context("Docker Engine cannot be had")?;
            // Outlive the run, whose /run is gone with it.
            let logs = Path::new(env!("CARGO_TARGET_TMPDIR"));
            let images = test_images::build()?;
            let log = logs.join("containerd-docker.log");
            let containerd = Containerd::start("docker", containerd, self.runtime, &[], log)?;
            Engine::start(containerd, docker, &images, logs.join("dockerd.log"))
        };
        let engine = self.engine.get_or_init(|| start().map_err(|error: anyhow::Error| format!("{error:#}")));
        engine.as_ref().map_err(String::clone)
    }
}

/// Every test, for each kind it is meant for; ignored where there is no Docker Engine.
fn trials(stand: &Arc<Stand>) -> Vec<Trial> {
    let mut trials = Vec::new();
    for (theme, case) in THEMES.iter().flat_map(|(theme, cases)| cases.iter().map(move |case| (theme, case))) {
        for &kind in case.kinds.iter().filter(|kind| case.suits(**kind, stand.runtime)) {
            let name = format!("docker::{theme}::{}::{}", case.name, kind.name());
            let (share, number) = (stand.clone(), trials.len());
            let trial = Trial::test(name, move || {
                let engine = share.engine()?;
                case.run(engine, kind, number).map_err(|error| Failed::from(format!("{error:#}")))
            });
            trials.push(trial.with_ignored_flag(stand.found.is_none()));
        }
    }
    trials
}
