//! End-to-end tests: real containerd of each release line, driven by its `ctr`, with the shim under test.
//!
//! `cargo test --release -p shim --test e2e -- [FILTER]`, as root. The program restarts itself in namespaces and cgroups
//! of its own (`scripts/isolated`) before it starts anything.
//!
//! - `HYBRID_CONTAINERD`: the release lines to test with, such as `1.6,2.x`; each that can be had when not set.
//! - `HYBRID_RUNTIME`: `io.containerd.runc.v2` runs the tests against runc's shim, which tests the tests.
//! - `HYBRID_SHIM`: another binary than the one cargo has just built.
#![forbid(unsafe_code)]

mod bad_input;
mod churn;
mod crash;
mod events;
mod exec;
mod exec_io;
mod exec_life;
mod exit;
mod filesystem;
mod group;
mod harness;
mod hooks;
mod hooks_life;
mod hostile;
mod info;
mod io;
mod isolation;
mod lifecycle;
mod logger;
mod oom;
mod options;
mod process;
mod protocol;
mod restart;
mod signals;
mod soak;
mod stdio;
mod table;
mod telemetry;
mod terminal;
mod user_namespace;
mod wasm;
mod wasm_network;
mod wasm_service;

use anyhow::{Context, Result};
use harness::isolated::{self, LINES};
use harness::leaks::{self, Snapshot};
use harness::{Case, Containerd, Runtime};
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use test_images::Image;

const THEMES: &[(&str, &[Case])] = &[
    ("exit", exit::CASES),
    ("stdio", stdio::CASES),
    ("process", process::CASES),
    ("isolation", isolation::CASES),
    ("filesystem", filesystem::CASES),
    ("signals", signals::CASES),
    ("events", events::CASES),
    ("group", group::CASES),
    ("hooks", hooks::CASES),
    ("hooks_life", hooks_life::CASES),
    ("exec", exec::CASES),
    ("exec_life", exec_life::CASES),
    ("exec_io", exec_io::CASES),
    ("terminal", terminal::CASES),
    ("io", io::CASES),
    ("logger", logger::CASES),
    ("lifecycle", lifecycle::CASES),
    ("oom", oom::CASES),
    ("options", options::CASES),
    ("info", info::CASES),
    ("user_namespace", user_namespace::CASES),
    ("telemetry", telemetry::CASES),
    ("wasm", wasm::CASES),
    ("wasm_network", wasm_network::CASES),
    ("wasm_service", wasm_service::CASES),
    ("bad_input", bad_input::CASES),
    ("protocol", protocol::CASES),
    ("table", table::CASES),
    ("hostile", hostile::CASES),
    ("restart", restart::CASES),
    ("crash", crash::CASES),
    ("churn", churn::CASES),
    ("soak", soak::CASES),
];

fn main() -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    // Each test mostly waits for containerd, ctr and the container.
    arguments.test_threads.get_or_insert(4);
    if arguments.list {
        let lines = Lines::new(LINES.iter().map(|line| ((*line).to_owned(), PathBuf::new())).collect())?;
        return Ok(libtest_mimic::run(&arguments, lines.trials()).exit_code());
    }
    run(&arguments, Lines::new(isolated::enter(&LINES)?)?)
}

/// The containerds, each started by the first test that needs it, and the images they get.
struct Lines {
    runtime: Runtime,
    images: OnceLock<Result<Vec<Image>, String>>,
    entries: Vec<Line>,
}

struct Line {
    name: String,
    /// The folder with `containerd` and `ctr`.
    programs: PathBuf,
    containerd: OnceLock<Result<Containerd, String>>,
}

impl Lines {
    /// From the names of the lines and the folders of their programs.
    fn new(found: Vec<(String, PathBuf)>) -> Result<Arc<Lines>> {
        let entries = found.into_iter().map(|(name, programs)| Line { name, programs, containerd: OnceLock::new() });
        Ok(Arc::new(Lines { runtime: Runtime::from_env()?, images: OnceLock::new(), entries: entries.collect() }))
    }

    fn containerd(&self, line: usize) -> Result<&Containerd, &String> {
        let images = self.images.get_or_init(|| test_images::build().map_err(|error| format!("{error:#}"))).as_ref()?;
        let line = &self.entries[line];
        let start = || {
            // Outlives the run, whose /run is gone with it.
            let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("containerd-{}.log", line.name));
            Containerd::start(&line.name, &line.programs, self.runtime, images, log)
        };
        line.containerd.get_or_init(|| start().map_err(|error| format!("{error:#}"))).as_ref()
    }

    /// Every test on every line, for each kind it is meant for.
    fn trials(self: &Arc<Lines>) -> Vec<Trial> {
        let mut trials = Vec::new();
        for (index, line) in self.entries.iter().enumerate() {
            for (theme, case) in THEMES.iter().flat_map(|(theme, cases)| cases.iter().map(move |case| (theme, case))) {
                for &kind in case.kinds.iter().filter(|kind| case.runs(**kind, self.runtime, &line.name)) {
                    let name = format!("{}::{theme}::{}::{}", line.name, case.name, kind.name());
                    let (lines, number) = (self.clone(), trials.len());
                    let trial = Trial::test(name, move || {
                        let containerd = lines.containerd(index)?;
                        case.run(containerd, kind, number).map_err(|error| Failed::from(format!("{error:#}")))
                    });
                    trials.push(trial.with_ignored_flag(case.ignored));
                }
            }
        }
        trials
    }
}

fn run(arguments: &Arguments, lines: Arc<Lines>) -> Result<ExitCode> {
    let before = Snapshot::take(&[])?;
    let conclusion = libtest_mimic::run(arguments, lines.trials());
    // The trials, and with them their shares of the lines, are gone.
    let lines = Arc::into_inner(lines).context("a test still runs")?;
    let containerds = lines.entries.into_iter().filter_map(|line| line.containerd.into_inner()?.ok());
    let containerds: Vec<Containerd> = containerds.collect();
    if conclusion.has_failed() {
        for containerd in &containerds {
            eprintln!("the log of containerd {}: {}", containerd.line, containerd.log_path().display());
        }
        // In use where a failed test has left a container in it, which that test has reported.
        let _ = leaks::remove_namespace_cgroups();
        return Ok(conclusion.exit_code());
    }
    leaks::none_since(&before, &containerds.iter().collect::<Vec<_>>()).context("after the last test")?;
    containerds.into_iter().try_for_each(Containerd::stop)?;
    leaks::remove_namespace_cgroups()?;
    Ok(conclusion.exit_code())
}
