//! What tests and benches of services have in common.
use super::command::{Output, output};
use anyhow::{Context, Result, ensure};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;

/// An address that nobody listens on.
pub fn free() -> Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).context("looking for a free port")
}

/// A load by `wrk` on connections that are kept. A request that fails is an error.
pub fn wrk(url: &str, connections: usize, seconds: u32) -> Result<Output> {
    let mut wrk = Command::new("wrk");
    let (connections, duration) = (format!("-c{connections}"), format!("{seconds}s"));
    let output = output(wrk.args(["-t1", &connections, "--timeout", "60s", "-d", &duration, url]), b"")?.exits(0)?;
    // Said only where there are some.
    for word in ["Socket errors", "Non-2xx"] {
        ensure!(!output.stdout.contains(word), "{output}");
    }
    ensure!(output.stdout.contains("Requests/sec"), "{output}");
    Ok(output)
}

/// The sum of the fields of a process's smaps_rollup that begin so (proc_pid_smaps(5)), in kB: `Private_`, `Pss:`.
pub fn memory(pid: u32, field: &str) -> Result<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).context("reading smaps_rollup")?;
    let lines = text.lines().filter(|line| line.starts_with(field));
    Ok(lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum())
}
