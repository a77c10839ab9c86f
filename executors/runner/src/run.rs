//! The runner: this binary, executed inside the finished container, runs the guest to its end.
//!
//! Namespaces, cgroup, user, capabilities and seccomp filter are the container's own by now. The exit code is the guest's;
//! a trap's message and backtrace go to stderr and it ends with 134, as the wasmtime command does (128 + SIGABRT).

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;

use wasmtime::component::Component;
use wasmtime::{Engine, Module, Store, Trap};
use wasmtime_wasi::I32Exit;

use crate::settings::Call;
use crate::wasi::{Source, in_folder};
use crate::{CODE_FD, CONFIG_FD, Entry, ROOT_FD, RunnerConfig, component, core, engine, pages, sys};

/// Exit code of a guest that trapped.
const TRAPPED: u8 = 134;

/// Exit code for everything else that went wrong.
const FAILED: u8 = 1;

/// Signals that end a process by default and that people and programs send for it. A guest can't handle signals, and the
/// first process of a pid namespace gets none that it has no handler for (pid_namespaces(7)): so the runner takes them.
const ENDING: [i32; 6] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGUSR1, libc::SIGUSR2];

/// How long a guest runs until the code that only starting needed is unmapped, in seconds. Sooner would make the guest wait
/// for the same pages again, and a short guest for nothing.
const SETTLED: u32 = 1;

/// Runs the guest.
pub(crate) fn main() -> ExitCode {
    sys::exit_on_signals(&ENDING);
    pages::drop_code_pages_after(SETTLED);
    let (config, code, root) = match inherited() {
        Ok(inherited) => inherited,
        Err(e) => {
            eprintln!("hybrid: the WebAssembly runner is not meant to be executed by hand: {e}");
            return ExitCode::from(FAILED);
        }
    };
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    runtime.enable_time();
    if config.imports.needs_network() {
        // What only such guests pay for.
        runtime.enable_io();
    }
    let result = match runtime.build() {
        Ok(runtime) => runtime.block_on(run(&config, code, root)),
        Err(e) => Err(e.into()),
    };
    ExitCode::from(match result {
        Ok(code) => code,
        Err(e) => report(&config, &e),
    })
}

/// Takes the descriptors that the shim passed.
fn inherited() -> std::io::Result<(RunnerConfig, OwnedFd, OwnedFd)> {
    let [config, code, root] = sys::take_inherited([CONFIG_FD, CODE_FD, ROOT_FD])?;
    let mut json = Vec::new();
    File::from(config).read_to_end(&mut json)?;
    Ok((serde_json::from_slice(&json)?, code, root))
}

/// The exit code for an error that is not one of ours, and the words for it on stderr.
fn report(config: &RunnerConfig, error: &wasmtime::Error) -> u8 {
    if let Some(I32Exit(code)) = error.downcast_ref() {
        return (*code & 0xff) as u8;
    }
    eprintln!("Error: failed to run {}\n\nCaused by:\n    {error:?}", config.name);
    let limit = rustix::process::getrlimit(rustix::process::Resource::As);
    if let (false, Some(limit)) = (error.is::<Trap>(), limit.current) {
        eprintln!(
            "\nRLIMIT_AS is {limit} bytes; a memory of WebAssembly takes 4 GiB of addresses, however small it is"
        );
    }
    if error.is::<Trap>() { TRAPPED } else { FAILED }
}

async fn run(config: &RunnerConfig, code: OwnedFd, root: OwnedFd) -> wasmtime::Result<u8> {
    let engine = engine::runtime(&config.settings.proposals, |_| ())?;
    match &config.call {
        Call::Entry(Entry::Start) => run_core(&engine, code, root, config, None).await,
        Call::CoreFunction(function) => run_core(&engine, code, root, config, Some(function)).await,
        Call::Entry(_) | Call::ComponentFunction(_) => run_component(&engine, code, root, config).await,
    }
}

async fn run_core(
    engine: &Engine,
    code: OwnedFd,
    root: OwnedFd,
    config: &RunnerConfig,
    function: Option<&str>,
) -> wasmtime::Result<u8> {
    let module = in_folder(&code, |path| load_module(engine, &path.join(engine::CODE)))?;
    let source = Source::new(&root, &config.settings)?;
    let state = core::State { wasi: source.context()?.build_p1(), preopens: source.preopens() };
    // Nothing of the container stays open but what the guest was given.
    drop((code, root, source));
    let mut store = Store::new(engine, state);
    core::run(&mut store, &module, function).await?;
    Ok(0)
}

async fn run_component(engine: &Engine, code: OwnedFd, root: OwnedFd, config: &RunnerConfig) -> wasmtime::Result<u8> {
    let component = in_folder(&code, |path| load_component(engine, &path.join(engine::CODE)))?;
    let source = Source::new(&root, &config.settings)?;
    let state = component::State::new(source.context()?.build(), source.policy.clone());
    drop((code, root, source));
    let mut store = Store::new(engine, state);
    component::run(engine, &mut store, &component, config).await
}

#[allow(unsafe_code, reason = "precompiled code can only be loaded so")]
fn load_module(engine: &Engine, path: &Path) -> wasmtime::Result<Module> {
    // SAFETY: the file is of the root-only cache, was written by our precompiler, and is on a read-only mount. Never are
    // bytes of an image loaded so.
    unsafe { Module::deserialize_file(engine, path) }
}

#[allow(unsafe_code, reason = "precompiled code can only be loaded so")]
fn load_component(engine: &Engine, path: &Path) -> wasmtime::Result<Component> {
    // SAFETY: as in load_module.
    unsafe { Component::deserialize_file(engine, path) }
}
