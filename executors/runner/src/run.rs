//! The runner: this binary, executed inside the finished container, runs the guest to its end.
//!
//! Namespaces, cgroup, user, capabilities and seccomp filter are the container's own by now. The exit code is the guest's;
//! a trap's message and backtrace go to stderr and it ends with 134, as the wasmtime command does (128 + SIGABRT).

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use rustix::fs::{Mode, OFlags};
use wasmtime::component::Component;
use wasmtime::{Engine, Module, Store, Trap};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p2::bindings::Command;

use crate::{CODE_FD, CONFIG_FD, ROOT_FD, RunnerConfig, World, engine, pages, sys, wasi};

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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let result = match runtime {
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
    let engine = engine::runtime()?;
    let function = config.function.as_deref();
    match config.world {
        World::Core => {
            let module = in_folder(&code, |path| load_module(&engine, &path.join(engine::CODE)))?;
            let state = in_folder(&root, wasi::core_state)?;
            drop((code, root));
            run_core(&engine, &module, state, function).await
        }
        World::Component => {
            let component = in_folder(&code, |path| load_component(&engine, &path.join(engine::CODE)))?;
            let cwd = std::env::current_dir()?;
            let state = in_folder(&root, |path| wasi::component_state(path, &cwd))?;
            drop((code, root));
            run_component(&engine, &component, state, function).await
        }
    }
}

/// Calls `open` while a folder is the current one, with the path by which it is found then: `.`.
///
/// So code is mapped and folders are opened by names that need no /proc in the container and that the container's user may
/// use; afterwards nothing of the folder stays reachable.
fn in_folder<T>(folder: &OwnedFd, open: impl FnOnce(&Path) -> wasmtime::Result<T>) -> wasmtime::Result<T> {
    let here = rustix::fs::open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::process::fchdir(folder.as_fd())?;
    let opened = open(Path::new("."));
    rustix::process::fchdir(here.as_fd())?;
    opened
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

async fn run_core(
    engine: &Engine,
    module: &Module,
    state: wasi::CoreState,
    function: Option<&str>,
) -> wasmtime::Result<u8> {
    let linker = engine::core_linker(engine)?;
    let mut store = Store::new(engine, state);
    let instance = linker.instantiate_async(&mut store, module).await?;
    if function.is_some()
        && let Ok(initialize) = instance.get_typed_func::<(), ()>(&mut store, "_initialize")
    {
        // A reactor's constructors run before its exports are called (WASI 0.1 application ABI).
        initialize.call_async(&mut store, ()).await?;
    }
    let entry = instance.get_typed_func::<(), ()>(&mut store, function.unwrap_or("_start"))?;
    entry.call_async(&mut store, ()).await?;
    Ok(0)
}

async fn run_component(
    engine: &Engine,
    component: &Component,
    state: wasi::ComponentState,
    function: Option<&str>,
) -> wasmtime::Result<u8> {
    let linker = engine::component_linker(engine)?;
    let mut store = Store::new(engine, state);
    if let Some(function) = function {
        let instance = linker.instantiate_async(&mut store, component).await?;
        let entry = instance.get_typed_func::<(), ()>(&mut store, function)?;
        entry.call_async(&mut store, ()).await?;
        return Ok(0);
    }
    let command = Command::instantiate_async(&mut store, component, &linker).await?;
    // The guest's own failure has no number in WASI 0.2.
    let result = command.wasi_cli_run().call_run(&mut store).await?;
    Ok(u8::from(result.is_err()))
}
