//! The one configuration of Wasmtime: precompiler and runner must agree on it, and the cache's key says which it was.

use wasmtime::component::{Component, Linker as ComponentLinker};
use wasmtime::{Config, Engine, Linker, Module};

use crate::facts::Imports;
use crate::{component, core};

/// The name of the file with a module's code, in its folder.
pub const CODE: &str = "code";

/// Wasmtime's version, which code is bound to.
pub const WASMTIME: &str = "48.0.8";

/// Counts changes of the configuration that make older code unusable without a change of Wasmtime's version, and of what
/// [`crate::Facts`] says.
pub const REVISION: u32 = 4;

/// A method of [`Config`] that turns something on or off.
type Switch = fn(&mut Config, bool) -> &mut Config;

/// The proposals that Wasmtime has and leaves off, by the names that its command has for them.
const SWITCHES: [(&str, Switch); 12] = [
    ("component-model-async-stackful", Config::wasm_component_model_async_stackful),
    ("component-model-error-context", Config::wasm_component_model_error_context),
    ("component-model-fixed-length-lists", Config::wasm_component_model_fixed_length_lists),
    ("component-model-gc", Config::wasm_component_model_gc),
    ("component-model-implements", Config::wasm_component_model_implements),
    ("component-model-map", Config::wasm_component_model_map),
    ("component-model-memory64", Config::wasm_component_model_memory64),
    ("component-model-more-async-builtins", Config::wasm_component_model_more_async_builtins),
    ("component-model-threading", Config::wasm_component_model_threading),
    ("custom-page-sizes", Config::wasm_custom_page_sizes),
    ("shared-memory", Config::shared_memory),
    ("wide-arithmetic", Config::wasm_wide_arithmetic),
];

/// The names of proposals that can be turned on. All others that Wasmtime has are on, as in its command.
pub const PROPOSALS: [&str; SWITCHES.len()] = {
    let mut names = [""; SWITCHES.len()];
    let mut n = 0;
    while n < names.len() {
        names[n] = SWITCHES[n].0;
        n += 1;
    }
    names
};

/// The engine that compiles. `shared`: code that shares its threads with other guests' (see [`crate::Facts::serves`]).
pub(crate) fn compiler(proposals: &[String], shared: bool) -> wasmtime::Result<Engine> {
    Engine::new(&config(proposals, shared))
}

/// The engine that runs what [`compiler`] compiled. Without a compiler of its own, as setting one up touches megabytes.
pub(crate) fn runtime(proposals: &[String], shared: bool, adapt: impl FnOnce(&mut Config)) -> wasmtime::Result<Engine> {
    let mut config = config(proposals, shared);
    config.enable_compiler(false);
    adapt(&mut config);
    Engine::new(&config)
}

/// Wasmtime's defaults for the proposals of WebAssembly, and these beside.
fn config(proposals: &[String], shared: bool) -> Config {
    let mut config = Config::new();
    // Of a service: so that a request that computes lets others have its thread. A command has its process for itself, and
    // runs without the checks that this compiles into each loop.
    config.epoch_interruption(shared);
    // Backtraces name functions and, where the module has DWARF, lines. The default would be read from the environment,
    // which in the runner is the guest's.
    config.wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Enable);
    // For unwinders other than Wasmtime's own, of which there are none here; registering it would cost at each start.
    config.native_unwind_info(false);
    for (_, switch) in SWITCHES.iter().filter(|(name, _)| proposals.iter().any(|proposal| proposal == name)) {
        switch(&mut config, true);
    }
    config
}

/// Checks that a module imports only what there is, with the name of the first import that there is not.
pub(crate) fn check_core(engine: &Engine, module: &Module) -> wasmtime::Result<()> {
    // Its host was removed from Wasmtime, and its memory is no module's own: said by name, as the import would say little.
    let threads = |import: &wasmtime::ImportType| import.module() == "wasi" && import.name() == "thread-spawn";
    if module.imports().any(|import| threads(&import)) {
        wasmtime::bail!("it imports wasi::thread-spawn: wasi-threads is not supported; build it for one thread");
    }
    let mut linker = Linker::new(engine);
    core::link(&mut linker)?;
    linker.instantiate_pre(module).map(drop)
}

/// The same for a component.
pub(crate) fn check_component(engine: &Engine, component: &Component, imports: Imports) -> wasmtime::Result<()> {
    let mut linker = ComponentLinker::new(engine);
    component::link(&mut linker, imports)?;
    linker.instantiate_pre(component).map(drop)
}
