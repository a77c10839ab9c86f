//! Runs OCI bundles: natively in namespaces and cgroups, or as WebAssembly in the same.
//!
//! This page is the whole API. Nothing here knows containerd, ttrpc or async: every call blocks, for milliseconds.
//!
//! ```text
//! Bundle::open ─> create ─> Container ─ init() ─> Process: start, signal, exit_fd, reap
//!                              └─ pids, signal_all, delete
//! ```
#![deny(unsafe_code)]

mod bundle;
mod cgroup;
mod clean;
mod container;
mod dispatch;
mod error;
mod features;
pub mod host;
mod native;
mod process;
mod rootfs;
mod sys;
pub mod wasm;

pub use bundle::Bundle;
pub use clean::clean;
pub use container::{Container, CreateOptions, Stdio, create};
pub use dispatch::{Choice, Executor};
pub use error::{Error, Kind, Result};
pub use features::features;
pub use process::{Exit, Process};
pub use rootfs::RootfsMount;
