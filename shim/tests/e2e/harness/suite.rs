//! A program of tests: every case on every release line of containerd, for each kind it is meant for.
use super::case::{CaseOf, Kind};
use super::isolated::{self, LINES};
use super::leaks::{self, Snapshot};
use super::{Containerd, Runtime};
use anyhow::{Context, Result};
use libtest_mimic::{Arguments, Failed, Trial};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, OnceLock};
use test_images::Image;

/// The cases by theme, and what they stand on.
pub struct Suite<B: 'static> {
    pub themes: &'static [(&'static str, &'static [CaseOf<B>])],
    /// Starts the containerd of a release line, whose programs are in this folder, with these images; its log is kept.
    pub start: fn(&str, &Path, Runtime, &[Image], PathBuf) -> Result<Containerd>,
    /// Runs a case and looks for what it left behind.
    pub run: fn(&CaseOf<B>, &Containerd, Kind, usize) -> Result<()>,
    /// Of the logs, beside the line.
    pub name: &'static str,
}

impl<B: Copy + Send + Sync> Suite<B> {
    /// The `main` of the program: as `cargo test` calls it, it restarts itself in namespaces and cgroups of its own, but for
    /// the cases that take systemd.
    pub fn main(&'static self) -> Result<ExitCode> {
        let mut arguments = Arguments::from_args();
        // Each test mostly waits for containerd, its client and the container.
        arguments.test_threads.get_or_insert(4);
        if arguments.list {
            let lines = self.lines(LINES.iter().map(|line| ((*line).to_owned(), PathBuf::new())).collect())?;
            return Ok(libtest_mimic::run(&arguments, lines.trials()).exit_code());
        }
        let found = if isolated::on_systemd() { isolated::on_the_host(&LINES)? } else { isolated::enter(&LINES)? };
        run(&arguments, self.lines(found)?)
    }

    /// From the names of the lines and the folders of their programs.
    fn lines(&'static self, found: Vec<(String, PathBuf)>) -> Result<Arc<Lines<B>>> {
        let entries = found.into_iter().map(|(name, programs)| Line { name, programs, containerd: OnceLock::new() });
        let (runtime, images) = (Runtime::from_env()?, OnceLock::new());
        Ok(Arc::new(Lines { suite: self, runtime, images, entries: entries.collect() }))
    }
}

/// The containerds, each started by the first test that needs it, and the images they get.
struct Lines<B: 'static> {
    suite: &'static Suite<B>,
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

impl<B: Copy + Send + Sync> Lines<B> {
    fn containerd(&self, line: usize) -> Result<&Containerd, &String> {
        let images = self.images.get_or_init(|| test_images::build().map_err(|error| format!("{error:#}"))).as_ref()?;
        let line = &self.entries[line];
        let start = || {
            // Outlives the run, whose /run is gone with it.
            let log = format!("containerd-{}{}.log", self.suite.name, line.name);
            let log = Path::new(env!("CARGO_TARGET_TMPDIR")).join(log);
            (self.suite.start)(&line.name, &line.programs, self.runtime, images, log)
        };
        line.containerd.get_or_init(|| start().map_err(|error| format!("{error:#}"))).as_ref()
    }

    fn trials(self: &Arc<Self>) -> Vec<Trial> {
        let (mut trials, on_systemd) = (Vec::new(), isolated::on_systemd());
        let wanted = std::env::var("HYBRID_TESTS").unwrap_or_default();
        let wanted: Vec<&str> = wanted.split_whitespace().collect();
        let cases = || self.suite.themes.iter().flat_map(|(theme, cases)| cases.iter().map(move |case| (theme, case)));
        for (index, line) in self.entries.iter().enumerate() {
            for (theme, case) in cases().filter(|(_, case)| case.on_systemd || !on_systemd) {
                for &kind in case.kinds.iter().filter(|kind| case.runs(**kind, self.runtime, &line.name)) {
                    let name = format!("{}::{theme}::{}::{}", line.name, case.name, kind.name());
                    if !wanted.is_empty() && !wanted.iter().any(|part| name.contains(part)) {
                        continue;
                    }
                    let (lines, number) = (self.clone(), trials.len());
                    let trial = Trial::test(name, move || {
                        let containerd = lines.containerd(index)?;
                        let run = lines.suite.run;
                        run(case, containerd, kind, number).map_err(|error| Failed::from(format!("{error:#}")))
                    });
                    trials.push(trial.with_ignored_flag(case.is_ignored()));
                }
            }
        }
        trials
    }
}

fn run<B: Copy + Send + Sync>(arguments: &Arguments, lines: Arc<Lines<B>>) -> Result<ExitCode> {
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
