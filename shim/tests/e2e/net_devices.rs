//! Network devices of the host that are moved to a container.
use crate::harness::direct::refused;
use crate::harness::{Case, Kind, Test};
use crate::user_namespace::mapped;
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::process::Command;
use ttrpc::Code;

pub const CASES: &[Case] = &[
    Case::new("device_moved", |test| {
        let pair = Pair::new(test, 0)?;
        let spec = test.spec(&["pause"])?.set("/linux/netDevices", json!({&pair.one: {}}))?;
        moved(test, &pair, spec, &pair.one)
    })
    .hybrid_only(), // runc knows them from 1.4 on
    Case::new("device_renamed", |test| {
        let pair = Pair::new(test, 1)?;
        let spec = test.spec(&["pause"])?.set("/linux/netDevices", json!({&pair.one: {"name": "inside7"}}))?;
        // Set before the start, on a device that must be there by then.
        let spec = spec.set("/linux/sysctl", json!({"net/ipv4/conf/inside7/forwarding": "1"}))?;
        moved(test, &pair, spec, "inside7")
    })
    .hybrid_only(),
    Case::new("device_in_a_user_namespace", |test| {
        let pair = Pair::new(test, 2)?;
        let spec = mapped(test, &["pause"])?.set("/linux/netDevices", json!({&pair.one: {"name": "eth0"}}))?;
        moved(test, &pair, spec, "eth0")
    })
    .hybrid_only(),
    Case::new("device_of_a_guest", |test| {
        let pair = Pair::new(test, 3)?;
        let spec = test.spec(&["pause"])?.set("/linux/netDevices", json!({&pair.one: {"name": "eth0"}}))?;
        let task = test.task_of(spec)?;
        let devices = task.exec("devices", &["cat", "/proc/net/dev"])?.run()?.exits(0)?;
        ensure!(devices.stdout.contains("eth0:"), "{devices}");
        task.end()
    })
    .kinds(Kind::WASM),
    Case::new("devices_that_cannot_be_moved", |test| {
        let pair = Pair::new(test, 4)?;
        let mut direct = test.direct()?.config(&test.spec(&["hello"])?)?;
        let server = direct.start()?;
        let mut spec = test.spec(&["hello"])?;
        for (devices, words) in [
            (json!({"no-such-dev": {}}), ["linux.netDevices: move no-such-dev", "no such device"]),
            (json!({&pair.one: {"name": "lo"}}), ["linux.netDevices: move", "as lo"]),
            (json!({&pair.one: {"name": "a/b"}}), ["linux.netDevices", "not a name"]),
        ] {
            spec = spec.set("/linux/netDevices", devices)?;
            direct = direct.config(&spec)?;
            let error = refused(server.create(), Code::INVALID_ARGUMENT)?;
            ensure!(words.iter().all(|word| error.to_lowercase().contains(&word.to_lowercase())), "{words:?}: {error}");
        }
        ensure!(pair.is_on_the_host(), "the device is gone");
        spec = spec.set("/linux/netDevices", json!({&pair.one: {}}))?;
        let namespaces = spec.value["linux"]["namespaces"].as_array_mut().context("namespaces")?;
        namespaces.retain(|namespace| namespace["type"] != "network");
        direct = direct.config(&spec)?;
        let error = refused(server.create(), Code::INVALID_ARGUMENT)?;
        ensure!(error.contains("linux.netDevices: there is no network namespace"), "{error}");
        server.shutdown()?;
        direct.remove()
    })
    .hybrid_only(),
];

/// Two virtual devices, of which the first has addresses. Removed with the test.
struct Pair {
    one: String,
    other: String,
}

impl Pair {
    fn new(test: &Test, number: u32) -> Result<Pair> {
        let suffix = format!("{number}{}", test.kind.name().len());
        let pair = Pair { one: format!("hya{suffix}"), other: format!("hyb{suffix}") };
        ip(&["link", "add", &pair.one, "type", "veth", "peer", "name", &pair.other])?;
        ip(&["addr", "add", "10.9.8.7/24", "dev", &pair.one])?;
        ip(&["addr", "add", "fd00::7/64", "dev", &pair.one, "nodad"])?;
        ip(&["link", "set", &pair.one, "up"])?;
        ip(&["link", "set", &pair.other, "up"])?;
        Ok(pair)
    }

    fn is_on_the_host(&self) -> bool {
        // The sysfs in sight may be that of another network namespace.
        ip(&["link", "show", "dev", &self.one]).is_ok()
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // Gone with the container, usually.
        let _ = Command::new("ip").args(["link", "delete", &self.other]).output();
    }
}

fn ip(arguments: &[&str]) -> Result<()> {
    let output = Command::new("ip").args(arguments).output().context("ip")?;
    ensure!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Runs a container that gets the device under that name, with its addresses, set up.
fn moved(test: &Test, pair: &Pair, spec: crate::harness::spec::Spec<'_>, name: &str) -> Result<()> {
    let task = test.task_of(spec)?;
    ensure!(!pair.is_on_the_host(), "the device is still the host's");
    let read = |id: &str, path: &str| task.exec(id, &["cat", path])?.run()?.exits(0);
    let devices = read("devices", "/proc/net/dev")?;
    ensure!(devices.stdout.contains(&format!("{name}:")), "{devices}");
    let addresses = read("four", "/proc/net/fib_trie")?;
    ensure!(addresses.stdout.contains("10.9.8.7"), "{addresses}");
    let addresses = read("six", "/proc/net/if_inet6")?;
    let is_there = |line: &&str| line.starts_with("fd000000000000000000000000000007") && line.ends_with(name);
    ensure!(addresses.lines().iter().any(is_there), "{addresses}");
    let routes = read("routes", "/proc/net/route")?;
    ensure!(routes.stdout.contains(name), "it is not up: {routes}");
    task.end()
}
