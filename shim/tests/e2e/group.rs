//! Containers that share a shim.
use crate::harness::leaks::Process;
use crate::harness::{Case, Kind, Run, Test};
use anyhow::{Context, Result, ensure};

pub const CASES: &[Case] = &[
    Case::new("two_in_one_shim", |test| together(test, &[Kind::Linux, Kind::Linux], "io.containerd.runc.v2.group")),
    Case::new("linux_and_wasm_in_one_shim", |test| {
        together(test, &[Kind::Linux, Kind::Core, Kind::Component], "io.containerd.runc.v2.group")
    })
    .hybrid_only(),
    Case::new("of_a_pod", |test| together(test, &[Kind::Linux, Kind::Linux], "io.kubernetes.cri.sandbox-id")),
    Case::new("apart_without_a_group", |test| {
        let shims = shims(test, &[Kind::Linux, Kind::Linux], &[])?;
        ensure!(shims[0] != shims[1], "both have the shim {}", shims[0]);
        Ok(())
    }),
];

fn together(test: &Test, kinds: &[Kind], annotation: &str) -> Result<()> {
    let annotation = format!("{annotation}={}", test.other("group"));
    let shims = shims(test, kinds, &["--annotation", &annotation])?;
    ensure!(shims.iter().all(|shim| *shim == shims[0]), "the shims are {shims:?}");
    Ok(())
}

/// Runs a container of each kind at once and returns the pids of their shims.
fn shims(test: &Test, kinds: &[Kind], flags: &[&str]) -> Result<Vec<u32>> {
    let ids: Vec<String> = (0..kinds.len()).map(|number| test.other(&number.to_string())).collect();
    let mut running = Vec::new();
    for (kind, id) in kinds.iter().zip(&ids) {
        let run = Run::probe(test.containerd, *kind, id, &["spin"]).flags(flags).spawn()?;
        run.wait_for("ready")?;
        running.push(run);
    }
    let mut shims = Vec::new();
    for id in &ids {
        let pid = test.pid(id)?;
        shims.push(Process::of(pid).with_context(|| format!("{id} has ended"))?.parent);
    }
    // The shim outlives each of its containers but the last.
    for (id, run) in ids.iter().zip(running) {
        ensure!(test.status(id)? == "RUNNING", "{id} ended with another container of its group");
        test.kill(id, "KILL")?;
        run.finish()?.exits(137)?;
    }
    Ok(shims)
}
