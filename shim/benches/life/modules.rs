//! Modules of several sizes: how long they take to start when they have been compiled before, and when they have not.
use crate::harness::spec::Spec;
use crate::harness::{Containerd, Kind, Runtime};
use crate::turns::take_turns;
use crate::{life_of, shim};
use anyhow::{Context, Result};
use serde_json::json;
use std::time::Duration;

/// A module, by the name that its rows have.
struct Module {
    name: &'static str,
    bytes: Vec<u8>,
    arguments: &'static [&'static str],
}

/// Prints the rows.
pub fn measure(containerd: &Containerd, rounds: usize) -> Result<()> {
    let mut modules = vec![
        Module { name: "empty", bytes: test_images::module(0)?, arguments: &[] },
        Module { name: "1 MB", bytes: test_images::module(1 << 20)?, arguments: &[] },
    ];
    if let Some(path) = std::env::var_os("HYBRID_BENCH_MODULE") {
        let bytes = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        modules.push(Module { name: "given", bytes, arguments: &["--version"] });
    }
    let names: Vec<String> =
        modules.iter().flat_map(|module| ["warm", "cold"].map(|state| format!("{}, {state}", module.name))).collect();
    let contenders: Vec<&str> = ["runc, Linux"].into_iter().chain(names.iter().map(String::as_str)).collect();
    take_turns(rounds, &contenders, |index, round| {
        let id = format!("m{round}-{index}");
        let Some(row) = index.checked_sub(1) else {
            return shim(containerd, Runtime::Runc, Kind::Linux, &id);
        };
        // Another module each time is one that has never been compiled.
        life(containerd, &modules[row / 2], (row % 2 == 1).then_some(round as u32), &id)
    })
}

/// One life of a module, made another one by a number if there is one.
fn life(containerd: &Containerd, module: &Module, number: Option<u32>, id: &str) -> Result<Duration> {
    let rootfs = containerd.fresh_path("modules");
    std::fs::create_dir_all(&rootfs).with_context(|| format!("creating {}", rootfs.display()))?;
    let mut bytes = module.bytes.clone();
    if let Some(number) = number {
        // A custom section: its id, its length, the length of its name, which is empty, and what is in it.
        bytes.extend([0, 5, 0]);
        bytes.extend(number.to_le_bytes());
    }
    std::fs::write(rootfs.join("module.wasm"), bytes).context("writing the module")?;
    let spec = Spec::default(containerd, Kind::Core, id, &[])?;
    let spec = spec.set("/process/args", json!([&["/module.wasm"], module.arguments].concat()))?;
    let time = life_of(containerd, Runtime::Hybrid, &spec.set("/root/path", json!(rootfs))?, id)?;
    std::fs::remove_dir_all(&rootfs).context("removing the module")?;
    Ok(time)
}
