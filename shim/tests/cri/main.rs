//! Tests through the Container Runtime Interface: containerd of each release line runs pods as the kubelet asks for them,
//! with the shim under test as their runtime handler.
//!
//! `cargo test --release --workspace --test cri -- [FILTER]`, as root. Like the end-to-end tests it restarts itself in
//! namespaces and cgroups of its own, and understands `HYBRID_CONTAINERD`, `HYBRID_RUNTIME` and `HYBRID_SHIM`.
#![forbid(unsafe_code)]

mod api;
mod client;
#[path = "../e2e/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests through ctr use the rest")]
mod harness;
mod life;
mod pod;
mod resources;

use anyhow::{Context, Result, ensure};
use client::Client;
use harness::suite::Suite;
use harness::{Containerd, PATIENCE, Runtime};
use pod::{Body, Case, HANDLER};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use test_images::Image;

const THEMES: &[(&str, &[Case])] = &[("life", life::CASES), ("resources", resources::CASES)];

static SUITE: Suite<Body> = Suite { themes: THEMES, start, run: Case::run, name: "cri-" };

fn main() -> Result<ExitCode> {
    SUITE.main()
}

/// Starts containerd and waits until it knows the images as the kubelet's: it learns of them by its own events.
fn start(line: &str, programs: &Path, runtime: Runtime, images: &[Image], log: PathBuf) -> Result<Containerd> {
    let containerd = Containerd::start_for_pods(line, programs, runtime, images, log, HANDLER)?;
    let client = Client::new(containerd.address());
    let end = Instant::now() + PATIENCE;
    for image in images {
        while !client.has_image(&image.reference()).context("ask for an image")? {
            ensure!(Instant::now() < end, "containerd does not know {}", image.reference());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    Ok(containerd)
}
