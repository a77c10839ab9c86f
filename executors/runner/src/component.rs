//! Components: WASI 0.2 and 0.3, as much of them as a component imports.

use std::sync::Arc;

use wasmtime::component::{Component, Linker, ResourceTable};
use wasmtime::{Engine, Store};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView, p2, p3};
use wasmtime_wasi_config::{WasiConfig, WasiConfigVariables};
use wasmtime_wasi_http::{WasiHttpCtx, WasiHttpCtxView, WasiHttpView};

use crate::facts::Imports;
use crate::limits::Limits;
use crate::network::{Policy, lookup};
use crate::outgoing::Outgoing;
use crate::settings::Call;
use crate::wasi::Source;
use crate::{Entry, RunnerConfig};

/// What the store of a component holds.
pub(crate) struct State {
    wasi: WasiCtx,
    http: WasiHttpCtx,
    outgoing: Outgoing,
    pub table: ResourceTable,
    pub policy: Arc<Policy>,
    config: Arc<WasiConfigVariables>,
    pub limits: Limits,
}

impl State {
    pub fn new(wasi: WasiCtx, source: &Source, limits: Limits) -> State {
        let (policy, config) = (source.policy.clone(), source.config.clone());
        let outgoing = Outgoing::new(policy.clone());
        State { wasi, http: WasiHttpCtx::new(), outgoing, table: ResourceTable::new(), policy, config, limits }
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

impl WasiHttpView for State {
    fn http(&mut self) -> WasiHttpCtxView<'_> {
        WasiHttpCtxView { hooks: &mut self.outgoing, table: &mut self.table, ctx: &mut self.http }
    }
}

/// What is imported, and no more: each function that is linked costs at every start.
pub(crate) fn link(linker: &mut Linker<State>, imports: Imports) -> wasmtime::Result<()> {
    if imports.wasi02 {
        p2::add_to_linker_async(linker)?;
    }
    if imports.wasi03 {
        p3::add_to_linker(linker)?;
    }
    if imports.http02 {
        wasmtime_wasi_http::p2::add_only_http_to_linker_async(linker)?;
    }
    if imports.http03 {
        wasmtime_wasi_http::p3::add_to_linker(linker)?;
    }
    if imports.config {
        wasmtime_wasi_config::add_to_linker(linker, |state: &mut State| WasiConfig::from(&*state.config))?;
    }
    if imports.sockets {
        linker.allow_shadowing(true);
        lookup::link(linker, imports)?;
    }
    Ok(())
}

/// Runs a component that is no service. The result is the exit code.
pub(crate) async fn run(
    engine: &Engine,
    store: &mut Store<State>,
    component: &Component,
    config: &RunnerConfig,
) -> wasmtime::Result<u8> {
    let mut linker = Linker::new(engine);
    link(&mut linker, config.imports)?;
    let result = match &config.call {
        Call::Entry(Entry::Run03) => {
            let command = p3::bindings::Command::instantiate_async(&mut *store, component, &linker).await?;
            store.run_concurrent(async |store| command.wasi_cli_run().call_run(store).await).await??
        }
        Call::Entry(_) => {
            let command = p2::bindings::Command::instantiate_async(&mut *store, component, &linker).await?;
            command.wasi_cli_run().call_run(&mut *store).await?
        }
        Call::CoreFunction(function) | Call::ComponentFunction(function) => {
            let instance = linker.instantiate_async(&mut *store, component).await?;
            let entry = instance.get_typed_func::<(), ()>(&mut *store, function)?;
            entry.call_async(&mut *store, ()).await?;
            Ok(())
        }
    };
    // The guest's own failure has no number in WASI 0.2 and 0.3.
    Ok(u8::from(result.is_err()))
}
