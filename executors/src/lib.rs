//! Runs OCI bundles: natively in namespaces and cgroups, or as WebAssembly in the same.
//!
//! This page is the whole API. Nothing here knows containerd, ttrpc or async: every call blocks, for milliseconds.
//!
//! ```text
//! Bundle::open ─> create ─> Container ─ init(), exec() ─> Process: start, signal, exit_fd, reap, take_console
//!                              ├─ pids, signal_all, delete
//!                              └─ freeze, thaw, update, stats, watch_oom, checkpoint
//! Bundle::open ─> Restorable::new ─> restore ─> Container, whose processes come from a checkpoint
//! ```
#![deny(unsafe_code)]

mod bundle;
mod cgroup;
mod checkpoint;
mod clean;
mod console;
mod container;
mod dispatch;
mod error;
mod exec;
mod features;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod hooks;
pub mod host;
mod image;
mod native;
mod process;
mod procfs;
mod resctrl;
mod resources;
mod rootfs;
mod sys;
pub mod wasm;

pub use bundle::Bundle;
pub use cgroup::oom::{Oom, OomWatch};
pub use cgroup::stats::{self, Stats};
pub use checkpoint::{CheckpointOptions, Criu, Restorable};
pub use clean::clean;
pub use console::Console;
pub use container::{Container, CreateOptions, Stdio, Streams, create, create_from};
pub use dispatch::{Choice, Executor};
pub use error::{Error, Kind, Result};
pub use exec::ExecSpec;
pub use features::features;
pub use image::{Digest, ImageRecord, ImageStore, NoImages};
pub use process::{Exit, Process};
pub use rootfs::RootfsMount;
pub use wasm::WasmOptions;
