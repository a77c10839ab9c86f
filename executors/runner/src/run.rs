//! The runner: this binary, executed inside the finished container, runs the guest to its end.
//!
//! Namespaces, cgroup, user, capabilities and seccomp filter are the container's own by now. The exit code is the guest's;
//! a trap's message and backtrace go to stderr and it ends with 134, as the wasmtime command does (128 + SIGABRT).

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use wasmtime::component::Component;
use wasmtime::{Config, Engine, Module, ProfilingStrategy, Store};

use crate::limits::{Budget, Limits};
use crate::metrics::Metrics;
use crate::settings::Call;
use crate::trap::{self, Traps};
use crate::wasi::{Source, in_folder, open_inside};
use crate::{CODE_FD, CONFIG_FD, Entry, ROOT_FD, RunnerConfig, component, core, engine, pages, service, sys};

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
            return ExitCode::from(trap::FAILED);
        }
    };
    let result = match runtime(&config) {
        Ok(runtime) => runtime.block_on(run(&config, code, root)),
        Err(e) => Err(e.into()),
    };
    ExitCode::from(result.unwrap_or_else(|e| {
        trap::say(&config.name, &e);
        trap::FAILED
    }))
}

/// As little as the guest needs: most need neither threads nor what waits for sockets.
fn runtime(config: &RunnerConfig) -> std::io::Result<tokio::runtime::Runtime> {
    match &config.call {
        Call::Entry(entry) if entry.serves() => service::threads(),
        _ if config.imports.needs_network() => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        _ => tokio::runtime::Builder::new_current_thread().enable_time().build(),
    }
}

/// Takes the descriptors that the shim passed.
fn inherited() -> std::io::Result<(RunnerConfig, OwnedFd, OwnedFd)> {
    let [config, code, root] = sys::take_inherited([CONFIG_FD, CODE_FD, ROOT_FD])?;
    let mut json = Vec::new();
    File::from(config).read_to_end(&mut json)?;
    Ok((serde_json::from_slice(&json)?, code, root))
}

async fn run(config: &RunnerConfig, code: OwnedFd, root: OwnedFd) -> wasmtime::Result<u8> {
    let settings = &config.settings;
    let metrics = Arc::new(Metrics::default());
    if let Some(address) = settings.metrics {
        metrics.serve(address).map_err(|e| wasmtime::format_err!("show metrics on {address}: {e}"))?;
    }
    let dumps = settings.coredump.as_deref().map(|path| open_inside(&root, path)).transpose()?;
    let adapt = |wasmtime: &mut Config| {
        wasmtime.coredump_on_trap(dumps.is_some());
        if settings.perf_map {
            wasmtime.profiler(ProfilingStrategy::PerfMap);
        }
    };
    let engine = engine::runtime(&settings.proposals, config.serves, adapt)?;
    let budget = Budget::new(settings.memory, metrics.clone());
    let folders = if config.needs_folders() { settings.preopens.as_slice() } else { &[] };
    let source = Source::new(&root, folders, settings)?;
    // Nothing of the container stays open but what the guest is given.
    drop(root);
    let function = match &config.call {
        Call::Entry(Entry::Start) => None,
        Call::CoreFunction(function) => Some(function.as_str()),
        Call::Entry(entry) if entry.serves() => {
            // A component that doesn't fit into a pool is served without one.
            let pooled = engine::runtime(&settings.proposals, config.serves, |wasmtime| {
                adapt(wasmtime);
                service::pooling(wasmtime);
            });
            let pooled = pooled.and_then(|engine| Ok((load(&code, |path| load_component(&engine, path))?, engine)));
            let (component, engine) = match pooled {
                Ok(pooled) => pooled,
                Err(_) => (load(&code, |path| load_component(&engine, path))?, engine),
            };
            drop(code);
            let traps = Traps { name: config.name.clone(), dumps, metrics };
            return service::run(&engine, &component, config, *entry, source, budget, traps).await;
        }
        Call::Entry(_) | Call::ComponentFunction(_) => {
            let component = load(&code, |path| load_component(&engine, path))?;
            let state = component::State::new(source.context()?.build(), &source, Limits::new(&budget));
            drop((code, source));
            let mut store = Store::new(&engine, state);
            store.limiter(|state| &mut state.limits);
            if config.serves {
                // One of its other exports, which has the process for itself: nobody counts epochs.
                store.set_epoch_deadline(1);
            }
            let result = component::run(&engine, &mut store, &component, config).await;
            let traps = Traps { name: config.name.clone(), dumps, metrics };
            return Ok(result.unwrap_or_else(|e| traps.tell(&mut store, &e)));
        }
    };
    let module = load(&code, |path| load_module(&engine, path))?;
    let (wasi, preopens) = (source.context()?.build_p1(), source.preopens());
    drop((code, source));
    let mut store = Store::new(&engine, core::State { wasi, preopens, limits: Limits::new(&budget) });
    store.limiter(|state| &mut state.limits);
    let result = core::run(&mut store, &module, function).await;
    let traps = Traps { name: config.name.clone(), dumps, metrics };
    Ok(result.map_or_else(|e| traps.tell(&mut store, &e), |()| 0))
}

/// Loads what is in the folder of precompiled code.
fn load<T>(code: &OwnedFd, load: impl FnOnce(&Path) -> wasmtime::Result<T>) -> wasmtime::Result<T> {
    in_folder(code, |path| load(&path.join(engine::CODE)))
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
