//! What the tests stand on: a private containerd of each release line, `ctr`, and the search for what was left behind.
pub mod case;
pub mod collector;
pub mod command;
pub mod containerd;
pub mod direct;
pub mod events;
pub mod exec;
pub mod fifos;
pub mod hooks;
pub mod host;
pub mod isolated;
pub mod leaks;
pub mod pty;
pub mod run;
pub mod seccomp;
pub mod spec;
pub mod stream;
pub mod suite;
pub mod task;

pub use case::{Case, Kind, Test};
pub use containerd::{Containerd, Runtime};
pub use run::Run;

/// How long any single wait may take before the test fails; far more than a slow machine needs.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(120);

/// The containerd namespace of all tests.
pub const NAMESPACE: &str = "test";
