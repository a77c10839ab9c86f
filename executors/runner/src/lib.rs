//! Wasmtime's part: the two other lives of the shim's binary, in processes of their own.
//!
//! ```text
//! compile   the precompiler: one module in, its code and Facts out; confined
//! run       the runner: inside a finished container, runs the guest to its end
//! ```
//! Both use the one configuration of `engine.rs`. The shim itself never initialises Wasmtime.
#![deny(unsafe_code)]

pub mod compile;
mod component;
mod core;
mod engine;
mod facts;
mod limits;
mod metrics;
pub mod network;
mod outgoing;
pub mod pages;
mod run;
mod service;
mod settings;
mod sys;
mod text;
mod trap;
mod wasi;

use std::process::ExitCode;

pub use engine::{CODE, PROPOSALS, REVISION, WASMTIME};
pub use facts::{Entry, Facts, Imports, World};
pub use settings::{Call, Destination, Host, Http, Network, Preopen, RunnerConfig, Settings};
pub use text::{TEXT_HEAD, is_text, may_be_text};

/// `argv[0]` of this binary as the runner. The guest's own arguments follow it.
pub const RUNNER: &str = "hybrid-wasm";

/// `argv[0]` of this binary as the precompiler. Names of [`PROPOSALS`] may follow it.
pub const PRECOMPILER: &str = "hybrid-precompile";

/// The numbers of the descriptors that the runner gets: its [`RunnerConfig`], the folder with its code, the guest's root.
pub const CONFIG_FD: i32 = 3;
pub const CODE_FD: i32 = 4;
pub const ROOT_FD: i32 = 5;

/// Where requests are served when nothing is said, as runwasi and `wasmtime serve` have it.
pub const HTTP_ADDRESS: std::net::SocketAddr =
    std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED), 8080);

/// The variable of the container's that names another address, as with runwasi.
pub const HTTP_VARIABLE: &str = "WASMTIME_HTTP_PROXY_SOCKET_ADDR";

/// How long requests are waited for after SIGTERM when nothing is said, in seconds.
pub const HTTP_DRAIN: u32 = 10;

/// The binary's other lives: if `argv[0]` says that it was executed as the runner or the precompiler, does that and
/// returns the exit code. To be called first thing in `main`.
pub fn entry() -> Option<ExitCode> {
    match std::env::args().next().as_deref() {
        Some(RUNNER) => Some(run::main()),
        Some(PRECOMPILER) => Some(compile::main()),
        _ => None,
    }
}
