//! Many lives at once, with execs, kills, pauses and restarts of containerd in between: nothing is left, and the shim
//! that serves a group all the while doesn't grow.
use crate::harness::{Case, Kind, Run, Runtime, Test};
use crate::restart::Own;
use anyhow::{Context, Result, anyhow, ensure};
use rustix::process::Signal;
use std::fs;
use std::ops::Range;
use std::thread;

pub const CASES: &[Case] = &[
    Case::new("soak_100", |test| soak(test, 100)),
    // Some minutes: `cargo test … --test e2e -- --ignored soak_2000`.
    Case::new("soak_2000", |test| soak(test, 2000)).exclusive().ignored(),
];

/// Lives between two restarts.
const ROUND: usize = 50;
const AT_ONCE: usize = 8;

/// How much the private memory of a shim differs from one look to the next, in kB: pages of its heap that are in use by chance.
const NOISE: u64 = 256;

fn soak(test: &Test, lives: usize) -> Result<()> {
    let mut own = Own::new(test)?;
    let keeper = own.id(Kind::Linux, "keeper");
    own.run(Kind::Linux, "keeper", &["pause"]).flags(&["--null-io", "--annotation", &group(test)]).detach()?;
    let init = own.listed(&keeper)?.0;
    let shim = crate::harness::leaks::Process::of(init).context("the keeper has ended")?.parent;
    let mut first = None;
    for (number, start) in (0..lives).step_by(ROUND).enumerate() {
        let range = start..lives.min(start + ROUND);
        round(&own, range.clone()).with_context(|| format!("lives {range:?}"))?;
        let how = if number % 2 == 0 { Signal::KILL } else { Signal::TERM };
        survive(&mut own, number, how).with_context(|| format!("restart {number}"))?;
        ensure!(own.listed(&keeper)?.0 == init, "the keeper has another pid");
        // What only the first lives bring along is not counted. By now the shim has had the time to give memory back.
        first.get_or_insert(Memory::of(shim)?);
    }
    let (first, last) = (first.context("no lives")?, Memory::of(shim)?);
    println!("{}: the group's shim after {ROUND} lives: {first}; after {lives}: {last}", test.containerd.line);
    if test.runtime() == Runtime::Hybrid {
        ensure!(last.private <= first.private + NOISE, "the shim grows: {first}, then {last}");
        ensure!(last.descriptors <= first.descriptors, "the shim keeps descriptors: {first}, then {last}");
    }
    own.end(&keeper)?;
    own.stop()
}

fn group(test: &Test) -> String {
    format!("io.containerd.runc.v2.group={}", test.other("group"))
}

/// Lives on several threads, of all kinds.
fn round(own: &Own, numbers: Range<usize>) -> Result<()> {
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE)
            .map(|worker| {
                let numbers = numbers.clone().skip(worker).step_by(AT_ONCE);
                scope.spawn(move || {
                    numbers
                        .into_iter()
                        .try_for_each(|number| life(own, number).with_context(|| format!("life {number}")))
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
    })
}

/// One of six ways to live; every other in the group.
fn life(own: &Own, number: usize) -> Result<()> {
    let kinds = own.test.known_kinds();
    let kind = kinds[number / 6 % kinds.len()];
    let (name, group) = (number.to_string(), group(own.test));
    let id = own.id(kind, &name);
    let flags: &[&str] = if number.is_multiple_of(2) { &["--annotation", &group] } else { &[] };
    let run = |arguments: &[&str]| -> Run<'_> { own.run(kind, &name, arguments).flags(flags) };
    let detached = || run(&["pause"]).flags(&["--null-io"]).detach();
    let ctr = |words: &[&str]| words.iter().fold(own.containerd.ctr(["tasks"]), |ctr, word| ctr.arg(word));
    match number % 6 {
        0 => {
            let output = run(&["reply", "text", "9"]).output()?.exits(kind.code(9))?;
            ensure!(output.stdout == "text\n", "{output}");
            Ok(())
        }
        1 => {
            let mut running = run(&["wait-stdin"]).spawn()?;
            running.wait_for("ready")?;
            running.write(b"a line\n")?;
            running.wait_for("a line")?;
            running.finish()?.exits(0).map(drop)
        }
        2 | 3 => {
            detached()?;
            for exec in ["one", "two"] {
                let command = ctr(&["exec", "--exec-id", exec, &id, kind.program(), "reply", exec, "3"]);
                let output = command.output()?.exits(kind.code(3))?;
                ensure!(output.stdout == format!("{exec}\n"), "{output}");
            }
            ctr(&["kill", "--signal", "KILL", &id]).done()?;
            let exit = own.containerd.events.wait_for(&id, "/tasks/exit")?;
            ensure!(exit.fields["exit_status"] == 137, "{exit:?}");
            ctr(&["delete", &id]).output()?;
            own.containerd.ctr(["containers", "delete", &id]).done().map(drop)
        }
        4 => {
            detached()?;
            ctr(&["pause", &id]).done()?;
            ctr(&["resume", &id]).done()?;
            own.end(&id)
        }
        _ => {
            detached()?;
            ctr(&["pause", &id]).done()?;
            own.end(&id)
        }
    }
}

/// containerd restarts while some containers run; they are what they were.
fn survive(own: &mut Own, number: usize, how: Signal) -> Result<()> {
    let kinds = own.test.known_kinds();
    let name = format!("survivor-{number}");
    for &kind in kinds {
        own.run(kind, &name, &["pause"]).flags(&["--null-io"]).detach()?;
    }
    own.restart(how)?;
    for &kind in kinds {
        let id = own.id(kind, &name);
        ensure!(own.listed(&id)?.1 == "RUNNING", "{id} is {}", own.listed(&id)?.1);
        let exec = own.containerd.ctr(["tasks", "exec", "--exec-id", "one", &id, kind.program(), "exit", "3"]);
        exec.output()?.exits(kind.code(3))?;
        own.end(&id)?;
    }
    Ok(())
}

/// What a shim takes: kB as in proc_pid_smaps(5).
#[derive(Clone, Copy)]
struct Memory {
    pss: u64,
    /// Private and written to: what no other shim's coming and going changes.
    private: u64,
    descriptors: usize,
}

impl Memory {
    fn of(pid: u32) -> Result<Memory> {
        let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("reading the shim's memory")?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no {name}"))?;
            line.trim().trim_end_matches(" kB").parse().with_context(|| line.to_owned())
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).context("reading its descriptors")?.count();
        Ok(Memory { pss: field("Pss:")?, private: field("Private_Dirty:")?, descriptors })
    }
}

impl std::fmt::Display for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} kB PSS, {} kB private, {} descriptors", self.pss, self.private, self.descriptors)
    }
}
