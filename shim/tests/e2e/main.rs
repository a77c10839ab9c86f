//! End-to-end tests: real containerd of each release line, driven by its `ctr`, with the shim under test.
//!
//! `cargo test --release -p shim --test e2e -- [FILTER]`, as root. The program restarts itself in namespaces and cgroups
//! of its own (`scripts/isolated`) before it starts anything.
//!
//! - `HYBRID_CONTAINERD`: the release lines to test with, such as `1.6,2.x`; each that can be had when not set.
//! - `HYBRID_RUNTIME`: `io.containerd.runc.v2` runs the tests against runc's shim, which tests the tests.
//! - `HYBRID_SHIM`: another binary than the one cargo has just built.
//! - `HYBRID_SYSTEMD`: anything runs the tests of the systemd cgroup driver, and no others, on the host itself, whose process
//!   1 has to be systemd; without it they are skipped.
//! - `HYBRID_TESTS`: parts of names, separated by spaces: only tests with one of them, for more than one `FILTER`.
//! - `HYBRID_SAVE_PROGRAMS`: a folder into which what the test images take is compiled, and no test is run: for a machine
//!   without compilers, where `HYBRID_PROGRAMS` names it (`scripts/test-node`).
#![forbid(unsafe_code)]

mod apparmor;
mod artifacts;
mod bad_input;
mod checkpoint;
mod churn;
mod crash;
mod cve;
mod events;
mod exec;
mod exec_io;
mod exec_life;
mod exit;
mod failures;
mod filesystem;
mod group;
mod harness;
mod hooks;
mod hooks_life;
mod hostile;
mod hostile_image;
mod info;
mod io;
mod isolation;
mod lifecycle;
mod linux;
mod logger;
mod mounts;
mod namespaces;
mod net_devices;
mod oom;
mod options;
mod precompile;
mod process;
mod protocol;
mod restart;
mod scheduling;
mod seccomp;
mod signals;
mod soak;
mod stdio;
mod systemd;
mod table;
mod telemetry;
mod terminal;
mod user_namespace;
mod wasm;
mod wasm_bad_input;
mod wasm_clients;
mod wasm_compiling;
mod wasm_load;
mod wasm_network;
mod wasm_policy;
mod wasm_programs;
mod wasm_python;
mod wasm_requests;
mod wasm_service;

use anyhow::Result;
use harness::case::Body;
use harness::suite::Suite;
use harness::{Case, Containerd};
use std::path::Path;
use std::process::ExitCode;

const THEMES: &[(&str, &[Case])] = &[
    ("exit", exit::CASES),
    ("stdio", stdio::CASES),
    ("process", process::CASES),
    ("isolation", isolation::CASES),
    ("apparmor", apparmor::CASES),
    ("filesystem", filesystem::CASES),
    ("linux", linux::CASES),
    ("mounts", mounts::CASES),
    ("namespaces", namespaces::CASES),
    ("net_devices", net_devices::CASES),
    ("scheduling", scheduling::CASES),
    ("seccomp", seccomp::CASES),
    ("signals", signals::CASES),
    ("events", events::CASES),
    ("group", group::CASES),
    ("hooks", hooks::CASES),
    ("hooks_life", hooks_life::CASES),
    ("exec", exec::CASES),
    ("exec_life", exec_life::CASES),
    ("exec_io", exec_io::CASES),
    ("terminal", terminal::CASES),
    ("io", io::CASES),
    ("logger", logger::CASES),
    ("lifecycle", lifecycle::CASES),
    ("oom", oom::CASES),
    ("systemd", systemd::CASES),
    ("options", options::CASES),
    ("checkpoint", checkpoint::CASES),
    ("info", info::CASES),
    ("user_namespace", user_namespace::CASES),
    ("telemetry", telemetry::CASES),
    ("wasm", wasm::CASES),
    ("wasm_programs", wasm_programs::CASES),
    ("wasm_bad_input", wasm_bad_input::CASES),
    ("wasm_compiling", wasm_compiling::CASES),
    ("artifacts", artifacts::CASES),
    ("precompile", precompile::CASES),
    ("wasm_network", wasm_network::CASES),
    ("wasm_requests", wasm_requests::CASES),
    ("wasm_policy", wasm_policy::CASES),
    ("wasm_service", wasm_service::CASES),
    ("wasm_clients", wasm_clients::CASES),
    ("wasm_load", wasm_load::CASES),
    ("wasm_python", wasm_python::CASES),
    ("bad_input", bad_input::CASES),
    ("protocol", protocol::CASES),
    ("table", table::CASES),
    ("failures", failures::CASES),
    ("hostile", hostile::CASES),
    ("hostile_image", hostile_image::CASES),
    ("cve", cve::CASES),
    ("restart", restart::CASES),
    ("crash", crash::CASES),
    ("churn", churn::CASES),
    ("soak", soak::CASES),
];

static SUITE: Suite<Body> = Suite { themes: THEMES, start: Containerd::start, run: Case::run, name: "" };

fn main() -> Result<ExitCode> {
    if let Some(folder) = std::env::var_os("HYBRID_SAVE_PROGRAMS") {
        test_images::save_programs(Path::new(&folder))?;
        return Ok(ExitCode::SUCCESS);
    }
    SUITE.main()
}
