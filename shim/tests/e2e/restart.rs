//! containerd is stopped, killed and upgraded while tasks run: they go on, and are found again.
//!
//! Each test has a containerd of its own, as it is no good to the others meanwhile.
use crate::harness::command::Running;
use crate::harness::host::Volume;
use crate::harness::leaks::{self, Process};
use crate::harness::{Case, Containerd, Kind, Run, Runtime, Test, isolated};
use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use std::path::Path;

pub const CASES: &[Case] = &[
    Case::new("stopped_and_started", |test| restarted(test, Signal::TERM, None)),
    Case::new("killed_and_started", |test| restarted(test, Signal::KILL, None)),
    Case::new("upgraded", |test| restarted(test, Signal::TERM, Some(&isolated::newest()?))).before_newest(),
    Case::new("output_goes_on", output_goes_on),
    Case::new("group_goes_on", group_goes_on),
    Case::new("shim_dies_meanwhile", shim_dies).hybrid_only(), // runc's leaves its socket
];

/// A containerd of the test's own, which restarts.
pub struct Own<'t> {
    pub test: &'t Test<'t>,
    pub containerd: Containerd,
}

impl<'t> Own<'t> {
    pub fn new(test: &'t Test) -> Result<Own<'t>> {
        let name = test.id.rsplit_once('-').map_or(test.id.as_str(), |(name, _)| name);
        Ok(Own { test, containerd: test.containerd.another(name)? })
    }

    pub fn id(&self, kind: Kind, name: &str) -> String {
        self.test.other(&format!("{}-{name}", kind.name()))
    }

    pub fn run(&self, kind: Kind, name: &str, arguments: &[&str]) -> Run<'_> {
        Run::probe(&self.containerd, kind, &self.id(kind, name), arguments)
    }

    fn tasks(&self) -> Result<Vec<Vec<String>>> {
        let list = self.containerd.ctr(["tasks", "list"]).done()?;
        Ok(list.stdout.lines().map(|line| line.split_whitespace().map(str::to_owned).collect()).collect())
    }

    /// The pid and the status that `ctr tasks list` shows.
    pub fn listed(&self, id: &str) -> Result<(u32, String)> {
        let tasks = self.tasks()?;
        let row = tasks.iter().find(|row| row.first().is_some_and(|first| first == id));
        let row = row.with_context(|| format!("{id} is not in {tasks:?}"))?;
        Ok((row[1].parse().with_context(|| format!("the pid in {row:?}"))?, row[2].clone()))
    }

    /// Ends a running task with SIGKILL and deletes it.
    pub fn end(&self, id: &str) -> Result<()> {
        let output = self.containerd.ctr(["tasks", "delete", "--force", id]).output()?;
        ensure!(output.stderr.contains("non-zero exit code 137"), "{output}");
        self.containerd.ctr(["containers", "delete", id]).done().map(drop)
    }

    /// Ends it with a signal, and starts it again.
    pub fn restart(&mut self, how: Signal) -> Result<()> {
        let programs = self.containerd.programs().to_owned();
        self.containerd.halt(how)?;
        self.containerd.again(&programs)
    }

    pub fn stop(self) -> Result<()> {
        leaks::none_of(&self.containerd, &self.test.id)?;
        self.containerd.stop()
    }
}

/// Sends a signal past containerd.
fn signal(pid: u32, signal: Signal) -> Result<()> {
    kill_process(Pid::from_raw(pid as i32).context("a pid is positive")?, signal).context("sending a signal")
}

/// Some tasks go on, some end while nobody is there to be told.
fn restarted(test: &Test, how: Signal, newer: Option<&Path>) -> Result<()> {
    let mut own = Own::new(test)?;
    let mut ending = Vec::new();
    let logs = test.containerd.fresh_path("logs");
    for &kind in test.known_kinds() {
        own.run(kind, "stays", &["pause"]).flags(&["--null-io"]).detach()?;
        let log = logs.join(kind.name());
        let uri = format!("file://{}", log.display());
        // A guest has no handlers: the signal ends it.
        let (program, code) = if kind == Kind::Linux { (["on-term", "33"], 33) } else { (["pause", ""], 143) };
        own.run(kind, "ends", &program).flags(&["--log-uri", &uri]).detach()?;
        ready(&log)?;
        let pid = own.listed(&own.id(kind, "ends"))?.0;
        ending.push((kind, pid, code, log));
    }
    let stays = |own: &Own| -> Result<Vec<u32>> {
        test.known_kinds().iter().map(|&kind| Ok(own.listed(&own.id(kind, "stays"))?.0)).collect()
    };
    let before = stays(&own)?;
    let programs = newer.unwrap_or(own.containerd.programs()).to_owned();
    own.containerd.halt(how)?;
    for (_, pid, _, _) in &ending {
        signal(*pid, Signal::TERM)?;
        Process::of(*pid).map_or(Ok(()), |process| process.wait_for_end())?;
    }
    own.containerd.again(&programs)?;

    ensure!(stays(&own)? == before, "the pids were {before:?}: {:?}", own.tasks()?);
    // containerd 2 takes a shim that names no pid for one whose task was never made, and removes it. runc's names none
    // for a task that has ended.
    let lost = test.runtime() == Runtime::Runc && (newer.is_some() || test.containerd.line != "1.6");
    for (kind, _, code, log) in ending {
        let id = own.id(kind, "ends");
        if lost {
            own.containerd.ctr(["containers", "delete", &id]).done()?;
            continue;
        }
        ensure!(own.listed(&id)?.1 == "STOPPED", "{:?}", own.tasks()?);
        let output = own.containerd.ctr(["tasks", "delete", &id]).output()?;
        ensure!(output.stderr.contains(&format!("non-zero exit code {code}")), "{output}");
        own.containerd.ctr(["containers", "delete", &id]).done()?;
        let text = std::fs::read_to_string(&log).context("reading the log")?;
        ensure!(kind != Kind::Linux || text == "ready\nsignal 15\n", "the log holds {text:?}");
    }
    for &kind in test.known_kinds() {
        let id = own.id(kind, "stays");
        ensure!(own.listed(&id)?.1 == "RUNNING", "{:?}", own.tasks()?);
        let exec = own.containerd.ctr(["tasks", "exec", "--exec-id", "one", &id, kind.program(), "reply", "text", "3"]);
        let output = exec.output()?.exits(kind.code(3))?;
        ensure!(output.stdout == "text\n", "{output}");
        own.end(&id)?;
        // Events go to the containerd of now.
        let exit = own.containerd.events.wait_for(&id, "/tasks/exit")?;
        ensure!(exit.fields["exit_status"] == 137, "{exit:?}");
    }
    own.run(Kind::Linux, "new", &["exit", "4"]).output()?.exits(4)?;
    std::fs::remove_dir_all(&logs).context("removing the logs")?;
    own.stop()
}

/// Waits for "ready" in a log file: nobody announces a line in it.
fn ready(log: &Path) -> Result<()> {
    let deadline = std::time::Instant::now() + crate::harness::PATIENCE;
    while !std::fs::read_to_string(log).is_ok_and(|text| text.contains("ready\n")) {
        ensure!(std::time::Instant::now() < deadline, "not ready: {}", log.display());
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    Ok(())
}

/// A client that attaches after the restart reads on; the program has not noticed.
fn output_goes_on(test: &Test) -> Result<()> {
    let mut own = Own::new(test)?;
    let volume = Volume::new(&own.containerd)?;
    let mut clients = Vec::new();
    for &kind in test.known_kinds() {
        // Kept by the run of ctr, whose sudden end leaves its fifos.
        let run = own.run(kind, "ticks", &["ticks", "/volume/end"]);
        let client = run.flags(&["--mount", &volume.mount("/volume", "rbind:ro")]).spawn()?;
        client.wait_for("\n20\n")?;
        clients.push(client);
    }
    for client in clients {
        client.kill()?;
    }
    own.restart(Signal::KILL)?;
    let mut attached = Vec::new();
    for &kind in test.known_kinds() {
        let id = own.id(kind, "ticks");
        let client = Running::spawn(&mut own.containerd.ctr(["tasks", "attach", &id]).command())?;
        client.wait_for("\n")?;
        attached.push((id, client));
    }
    volume.file("end", "")?;
    for (id, client) in attached {
        let output = client.finish()?.exits(0)?;
        let lines = output.lines();
        ensure!(lines.last() == Some(&"end"), "{output}");
        // The first may be the rest of one.
        let numbers: Vec<u32> = lines[1..lines.len() - 1].iter().map(|line| line.parse()).collect::<Result<_, _>>()?;
        ensure!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "lines are missing: {output}");
        // attach has deleted the task.
        own.containerd.ctr(["containers", "delete", &id]).done()?;
    }
    own.stop()
}

/// A container that comes after the restart joins the shim from before.
fn group_goes_on(test: &Test) -> Result<()> {
    let mut own = Own::new(test)?;
    let group = format!("io.containerd.runc.v2.group={}", test.other("group"));
    let flags = ["--null-io", "--annotation", &group];
    own.run(Kind::Linux, "first", &["pause"]).flags(&flags).detach()?;
    let shim =
        |own: &Own, id: &str| Ok::<_, anyhow::Error>(Process::of(own.listed(id)?.0).context("it has ended")?.parent);
    let first = own.id(Kind::Linux, "first");
    let before = shim(&own, &first)?;
    own.restart(Signal::KILL)?;
    for (number, &kind) in test.known_kinds().iter().enumerate() {
        let name = format!("later-{number}");
        own.run(kind, &name, &["pause"]).flags(&flags).detach()?;
        let id = own.id(kind, &name);
        ensure!(shim(&own, &id)? == before && shim(&own, &first)? == before, "not one shim");
        own.end(&id)?;
    }
    own.end(&first)?;
    own.stop()
}

/// Shim and container are gone when containerd comes back: it cleans up with `delete`.
fn shim_dies(test: &Test) -> Result<()> {
    let mut own = Own::new(test)?;
    for &kind in test.known_kinds() {
        own.run(kind, "one", &["pause"]).flags(&["--null-io"]).detach()?;
    }
    let ids: Vec<String> = test.known_kinds().iter().map(|&kind| own.id(kind, "one")).collect();
    let pids = ids.iter().map(|id| Ok(own.listed(id)?.0)).collect::<Result<Vec<_>>>()?;
    let programs = own.containerd.programs().to_owned();
    own.containerd.halt(Signal::KILL)?;
    for pid in &pids {
        let shim = Process::of(*pid).context("it has ended")?.parent;
        Process::of(shim).context("the shim has ended")?.kill()?;
    }
    own.containerd.again(&programs)?;
    for (id, pid) in ids.iter().zip(pids) {
        Process::of(pid).map_or(Ok(()), |process| process.wait_for_end()).context("init still runs")?;
        ensure!(own.listed(id).is_err(), "still listed: {:?}", own.tasks()?);
        own.containerd.ctr(["containers", "delete", id]).done()?;
    }
    own.stop()
}
