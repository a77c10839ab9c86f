//! The one configuration of Wasmtime: precompiler and runner must agree on it, and the cache's key says which it was.

use wasmtime::component::{Component, Linker as ComponentLinker};
use wasmtime::{Config, Engine, Linker, Module};
use wasmtime_wasi::I32Exit;

use crate::wasi::{ComponentState, CoreState};

/// The name of the file with a module's code, in its folder.
pub const CODE: &str = "code";

/// Wasmtime's version, which code is bound to.
pub const WASMTIME: &str = "48.0.8";

/// Counts changes of the configuration that make older code unusable without a change of Wasmtime's version.
pub const REVISION: u32 = 2;

/// The engine that compiles.
pub(crate) fn compiler() -> wasmtime::Result<Engine> {
    Engine::new(&config())
}

/// The engine that runs what [`compiler`] compiled. Without a compiler of its own, as setting one up touches megabytes.
pub(crate) fn runtime() -> wasmtime::Result<Engine> {
    let mut config = config();
    config.enable_compiler(false);
    Engine::new(&config)
}

/// Wasmtime's defaults for the proposals of WebAssembly.
fn config() -> Config {
    let mut config = Config::new();
    // Backtraces name functions and, where the module has DWARF, lines. The default would be read from the environment,
    // which in the runner is the guest's.
    config.wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Enable);
    // For unwinders other than Wasmtime's own, of which there are none here; registering it would cost at each start.
    config.native_unwind_info(false);
    config
}

/// WASI 0.1 for core modules.
pub(crate) fn core_linker(engine: &Engine) -> wasmtime::Result<Linker<CoreState>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p1::add_to_linker_async(&mut linker, |state: &mut CoreState| state)?;
    // Wasmtime refuses codes from 126 up; a process may end with any of 0 to 255.
    linker.allow_shadowing(true);
    linker.func_wrap("wasi_snapshot_preview1", "proc_exit", |code: i32| -> wasmtime::Result<()> {
        Err(I32Exit(code & 0xff).into())
    })?;
    Ok(linker)
}

/// WASI 0.2 for components.
pub(crate) fn component_linker(engine: &Engine) -> wasmtime::Result<ComponentLinker<ComponentState>> {
    let mut linker = ComponentLinker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    Ok(linker)
}

/// Checks that a module imports only what there is, with the name of the first import that there is not.
pub(crate) fn check_core(engine: &Engine, module: &Module) -> wasmtime::Result<()> {
    core_linker(engine)?.instantiate_pre(module).map(drop)
}

/// The same for a component.
pub(crate) fn check_component(engine: &Engine, component: &Component) -> wasmtime::Result<()> {
    component_linker(engine)?.instantiate_pre(component).map(drop)
}
