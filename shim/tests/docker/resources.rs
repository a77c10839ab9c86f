//! Limits, their changes, what they do, and what is used.
use crate::case::{Case, Test};
use crate::harness::Kind;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

pub const CASES: &[Case] = &[
    Case::new("limits", |test| {
        let options = ["--memory", "64m", "--memory-swap", "64m", "--cpu-shares", "512", "--pids-limit", "33"];
        test.detach(&options, &["pause"])?;
        ensure!(memory(test)? == "67108864", "{}", memory(test)?);
        ensure!(pids(test)? == "33", "{}", pids(test)?);
        test.remove()
    })
    .all(),
    Case::new("update", |test| {
        test.detach(&["--memory", "64m", "--memory-swap", "64m", "--pids-limit", "33"], &["pause"])?;
        // More, which takes the limit of memory and swap first, then less, which takes it last.
        for (limit, bytes) in [("128m", "134217728"), ("48m", "50331648")] {
            test.docker(&["update", "--memory", limit, "--memory-swap", limit])?;
            ensure!(memory(test)? == bytes, "{}", memory(test)?);
            ensure!(
                test.inspect("/HostConfig/Memory")?.as_u64() == bytes.parse().ok(),
                "{}",
                test.inspect("/HostConfig")?
            );
        }
        test.docker(&["update", "--pids-limit", "44", "--cpus", "0.5"])?;
        ensure!(pids(test)? == "44", "{}", pids(test)?);
        let quota = test.cgroup("cpu", "cpu.cfs_quota_us", "cpu.max")?;
        ensure!(quota.split_whitespace().next() == Some("50000"), "{quota}");
        // What was not named stays.
        ensure!(memory(test)? == "50331648", "{}", memory(test)?);
        test.remove()
    })
    .all(),
    Case::new("stats", stats).all(),
    Case::new("out_of_memory", |test| out_of_memory(test, "137\n", true)),
    // A guest's memory can't grow so far that the kernel had to end it.
    Case::new("out_of_memory_in_a_guest", |test| out_of_memory(test, "1\n", false)).kinds(Kind::WASM),
];

/// A program takes more than its container may: how it ends, and whether the kernel has ended it.
fn out_of_memory(test: &Test, code: &str, killed: bool) -> Result<()> {
    test.detach(&["--memory", "32m", "--memory-swap", "32m"], &["eat", "256"])?;
    let waited = test.docker(&["wait"])?;
    ensure!(waited.stdout == code, "{waited}");
    let state = test.inspect("/State")?;
    ensure!(state["OOMKilled"] == killed, "{state}");
    test.remove()
}

fn memory(test: &Test) -> Result<String> {
    Ok(test.cgroup("memory", "memory.limit_in_bytes", "memory.max")?.trim().to_owned())
}

fn pids(test: &Test) -> Result<String> {
    Ok(test.cgroup("pids", "pids.max", "pids.max")?.trim().to_owned())
}

fn stats(test: &Test) -> Result<()> {
    test.detach(&["--memory", "64m"], &["pause"])?;
    let output = test.docker(&["stats", "--no-stream", "--format", "{{json .}}"])?;
    let stats: Value = serde_json::from_str(&output.stdout).with_context(|| format!("decoding {output}"))?;
    let text = |name: &str| stats[name].as_str().with_context(|| format!("no {name} in {stats}"));
    let (used, limit) = text("MemUsage")?.split_once(" / ").with_context(|| format!("no limit in {stats}"))?;
    ensure!(!used.starts_with("0B") && limit == "64MiB", "{stats}");
    ensure!(text("PIDs")?.parse::<u32>().is_ok_and(|pids| pids >= 1), "{stats}");
    ensure!(text("CPUPerc")?.ends_with('%'), "{stats}");
    test.remove()
}
