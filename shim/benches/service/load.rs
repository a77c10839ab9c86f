//! Loads by the field's own programs; each says how many requests were answered in a second. One that fails is an error.
use crate::harness::command::{Output, output};
use crate::harness::service::wrk;
use anyhow::{Context, Result, ensure};
use std::net::SocketAddr;
use std::process::Command;

/// How long each lasts.
const SECONDS: u32 = 2;

/// A load on an address.
type Load = fn(SocketAddr) -> Result<f64>;

pub const LOADS: [(&str, Load); 3] = [
    ("1 kept connection", |address| kept(address, 1)),
    ("16 kept connections", |address| kept(address, 16)),
    ("16 at once, a connection each", hey),
];

fn kept(address: SocketAddr, connections: usize) -> Result<f64> {
    rate(&wrk(&format!("http://{address}/"), connections, SECONDS)?)
}

fn hey(address: SocketAddr) -> Result<f64> {
    let mut hey = Command::new("hey");
    let (url, duration) = (format!("http://{address}/"), format!("{SECONDS}s"));
    let output =
        output(hey.args(["-c", "16", "-t", "30", "-disable-keepalive", "-z", &duration, &url]), b"")?.exits(0)?;
    let codes = output.stdout.lines().filter(|line| line.trim_start().starts_with('['));
    ensure!(codes.clone().count() == 1 && codes.clone().all(|line| line.contains("[200]")), "{output}");
    rate(&output)
}

/// What both print.
fn rate(output: &Output) -> Result<f64> {
    let line = output.stdout.lines().find_map(|line| line.trim_start().strip_prefix("Requests/sec:"));
    line.and_then(|text| text.trim().parse().ok()).with_context(|| format!("no rate: {output}"))
}
