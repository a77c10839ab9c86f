//! `containerd-shim-hybrid-v1`: the containerd shim of the runtime `io.containerd.hybrid.v1`.
//!
//! containerd runs this binary as `start`, `delete`, `-info` or `-v`, people run it as `precompile`; `start` leaves a copy of itself behind that
//! serves the task API (no other process is executed for it, see [`start`]).
#![forbid(unsafe_code)]

mod bootstrap;
mod containerd;
mod delete;
mod descriptor;
mod engine;
mod events;
mod exit_record;
mod info;
mod logging;
mod options;
mod precompile;
mod serve;
mod service;
mod socket;
mod start;
mod stats;
mod status;
mod stdio;
mod task;
mod telemetry;

use anyhow::{Context, Result, bail};
use containerd_shim::Flags;
use std::ffi::OsString;
use std::process::ExitCode;

/// The name that containerd's users give this runtime.
pub const RUNTIME: &str = "io.containerd.hybrid.v1";

fn main() -> ExitCode {
    if let Some(code) = executors::wasm::entry() {
        return code;
    }
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some((command, args)) = args.split_first()
        && command == "precompile"
    {
        return precompile::run(args);
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd shows this text to whoever asked for the task.
            eprintln!("{RUNTIME}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[OsString]) -> Result<()> {
    let flags = containerd_shim::parse(args).context("parse the command line")?;
    if flags.version {
        return info::print_version();
    }
    if flags.info {
        return info::print_info();
    }
    check(&flags)?;
    match flags.action.as_str() {
        "start" => start::run(&flags),
        "delete" => delete::run(&flags),
        "" => bail!("no action given: containerd runs this shim with \"start\" or \"delete\""),
        other => bail!("unknown action {other:?}: expected \"start\" or \"delete\""),
    }
}

/// What every action needs. The id becomes a path component, so it must be one.
fn check(flags: &Flags) -> Result<()> {
    if flags.namespace.is_empty() {
        bail!("the flag -namespace must not be empty");
    }
    if flags.id.is_empty() || flags.id.contains('/') || flags.id == "." || flags.id == ".." {
        bail!("the flag -id must be a container's id, not {:?}", flags.id);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(args: &[&str]) -> String {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        format!("{:#}", run(&args).unwrap_err())
    }

    #[test]
    fn a_wrong_command_line_is_refused_by_name() {
        assert!(error(&["-id", "a", "start"]).contains("-namespace"));
        assert!(error(&["-namespace", "n", "start"]).contains("-id"));
        assert!(error(&["-namespace", "n", "-id", "../a", "delete"]).contains("../a"));
        assert!(error(&["-namespace", "n", "-id", "a"]).contains("no action"));
        assert!(error(&["-namespace", "n", "-id", "a", "stop"]).contains("stop"));
    }
}
