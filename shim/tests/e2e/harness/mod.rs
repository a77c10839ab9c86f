//! What the tests stand on: a private containerd of each release line, `ctr`, and the search for what was left behind.
pub mod artifacts;
pub mod case;
pub mod collector;
pub mod command;
pub mod containerd;
pub mod direct;
pub mod events;
pub mod exec;
pub mod fifos;
pub mod grpc;
pub mod hooks;
pub mod host;
pub mod isolated;
pub mod leaks;
pub mod pty;
pub mod run;
pub mod seccomp;
#[allow(dead_code, reason = "the tests of services and their bench ask for it")]
pub mod service;
pub mod spec;
pub mod stream;
pub mod suite;
pub mod task;

use anyhow::{Result, ensure};
pub use case::{Case, Kind, Test};
pub use containerd::{Containerd, Runtime};
pub use run::Run;
use std::time::{Duration, Instant};

/// How long any single wait may take before the test fails; far more than a slow machine needs.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A limit on what is expected to be over sooner: ten times as much where the processor is emulated (`scripts/node`).
pub fn limit(duration: Duration) -> Duration {
    let emulated = std::env::var_os("HYBRID_NODE").is_some_and(|accelerator| accelerator == "tcg");
    if emulated { duration * 10 } else { duration }
}

/// What `look` finds, as soon as it does: for what nothing announces.
#[allow(dead_code, reason = "only the tests through ctr ask for it")]
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        ensure!(Instant::now() < deadline, "{what}: not after {} s", PATIENCE.as_secs());
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The containerd namespace of all tests.
pub const NAMESPACE: &str = "test";
