//! Wasmtime's part: the two other lives of the shim's binary, in processes of their own.
//!
//! ```text
//! compile   the precompiler: one module in, its code and Facts out; confined
//! run       the runner: inside a finished container, runs the guest to its end
//! ```
//! Both use the one configuration of [`engine`]. The shim itself never initialises Wasmtime.
#![deny(unsafe_code)]

pub mod compile;
mod engine;
pub mod pages;
mod run;
mod sys;
mod wasi;

use std::process::ExitCode;

use serde::{Deserialize, Serialize};

pub use engine::{CODE, REVISION, WASMTIME};

/// `argv[0]` of this binary as the runner. The guest's own arguments follow it.
pub const RUNNER: &str = "hybrid-wasm";

/// `argv[0]` of this binary as the precompiler.
pub const PRECOMPILER: &str = "hybrid-precompile";

/// The numbers of the descriptors that the runner gets: its [`RunnerConfig`], the folder with its code, the guest's root.
pub const CONFIG_FD: i32 = 3;
pub const CODE_FD: i32 = 4;
pub const ROOT_FD: i32 = 5;

/// The kinds of program that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum World {
    /// A core module that imports WASI 0.1.
    Core,
    /// A component that imports WASI 0.2.
    Component,
}

/// What is known of a module after it was compiled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    pub world: World,
    /// Its usual entry point: exports `_start`, or `wasi:cli/run` of WASI 0.2.
    pub command: bool,
    /// Exported functions that take and return nothing, and so can be called by `#function`.
    pub functions: Vec<String>,
}

/// What the runner is told, as JSON in a sealed memfd.
#[derive(Debug, Serialize, Deserialize)]
pub struct RunnerConfig {
    /// The module's path in the container, for messages.
    pub name: String,
    pub world: World,
    /// The export to call instead of the usual entry point.
    pub function: Option<String>,
}

/// The binary's other lives: if `argv[0]` says that it was executed as the runner or the precompiler, does that and
/// returns the exit code. To be called first thing in `main`.
pub fn entry() -> Option<ExitCode> {
    match std::env::args().next().as_deref() {
        Some(RUNNER) => Some(run::main()),
        Some(PRECOMPILER) => Some(compile::main()),
        _ => None,
    }
}
