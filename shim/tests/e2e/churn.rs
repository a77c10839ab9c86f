//! Many lives: nothing accumulates.
use crate::harness::leaks::{self, Snapshot};
use crate::harness::{Case, Kind, PATIENCE, Run, Runtime, Test};
use anyhow::{Result, anyhow, bail};
use std::thread;
use std::time::{Duration, Instant};

pub const CASES: &[Case] = &[Case::new("lives_200", lives).exclusive()];

const LIVES: usize = 200;
const AT_ONCE: usize = 4;

fn lives(test: &Test) -> Result<()> {
    // What only the first life of a containerd leaves behind (caches, connections) is not counted.
    round(test, 0..AT_ONCE)?;
    let (before, descriptors) = (Snapshot::take(&[test.containerd])?, settled(test, None)?);
    round(test, AT_ONCE..AT_ONCE + LIVES)?;
    leaks::none_since(&before, &[test.containerd])?;
    settled(test, Some(descriptors)).map(drop)
}

/// Lives on several threads, the containers taking turns between Linux and Wasm.
fn round(test: &Test, numbers: std::ops::Range<usize>) -> Result<()> {
    thread::scope(|scope| {
        let workers: Vec<_> = (0..AT_ONCE)
            .map(|worker| {
                let numbers = numbers.clone().skip(worker).step_by(AT_ONCE);
                scope.spawn(move || numbers.into_iter().try_for_each(|number| life(test, number)))
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().map_err(|_| anyhow!("a worker panicked"))?)
    })
}

fn life(test: &Test, number: usize) -> Result<()> {
    let kind = match (test.runtime(), number % 4) {
        (Runtime::Hybrid, 1) => Kind::Core,
        (Runtime::Hybrid, 3) => Kind::Component,
        _ => Kind::Linux,
    };
    let id = test.other(&number.to_string());
    let (code, text) = ((number % 3) as i32, format!("life {number}\n"));
    if code == 0 {
        let output = Run::probe(test.containerd, kind, &id, &["echo"]).stdin(text.clone()).done()?;
        anyhow::ensure!(output.stdout == text, "{output}");
        return Ok(());
    }
    Run::probe(test.containerd, kind, &id, &["exit", &code.to_string()]).output()?.exits(kind.code(code)).map(drop)
}

/// The number of descriptors containerd has open. containerd closes a connection some time after its other end did,
/// and tells nobody: so this asks until the number is what it was, or has been the same for a second.
fn settled(test: &Test, expected: Option<usize>) -> Result<usize> {
    let deadline = Instant::now() + PATIENCE;
    let (mut last, mut since) = (test.containerd.descriptors()?, Instant::now());
    loop {
        if expected.map_or(since.elapsed() > Duration::from_secs(1), |expected| last <= expected) {
            return Ok(last);
        }
        if Instant::now() > deadline {
            bail!("containerd has {last} descriptors open and had {expected:?}");
        }
        thread::sleep(Duration::from_millis(20));
        let now = test.containerd.descriptors()?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
}
