//! Core modules: WASI 0.1.

use wasmtime::{Caller, Engine, Linker, Module, Store};
use wasmtime_wasi::I32Exit;
use wasmtime_wasi::p1::WasiP1Ctx;

use crate::limits::Limits;

/// What the store of a core module holds.
pub(crate) struct State {
    pub wasi: WasiP1Ctx,
    /// How many folders the guest was given: they are its descriptors from 3 on.
    pub preopens: u32,
    pub limits: Limits,
}

/// The module of WASI 0.1.
const WASI: &str = "wasi_snapshot_preview1";

/// WASI 0.1's number for "bad file descriptor".
const EBADF: i32 = 8;

/// WASI 0.1's number for "not a socket".
const ENOTSOCK: i32 = 57;

/// The first descriptor behind the standard streams.
const FIRST: u32 = 3;

/// WASI 0.1 for core modules.
pub(crate) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    wasmtime_wasi::p1::add_to_linker_async(linker, |state: &mut State| &mut state.wasi)?;
    linker.allow_shadowing(true);
    // Wasmtime refuses codes from 126 up; a process may end with any of 0 to 255.
    linker.func_wrap(WASI, "proc_exit", |code: i32| -> wasmtime::Result<()> { Err(I32Exit(code & 0xff).into()) })?;
    // Nothing that a guest has here is a socket. A folder that it was given it has not opened itself: a program that was
    // given none expects descriptor 3 to be free, and the root is preopened for those as well. Where there is no folder
    // nothing can be opened.
    linker.func_wrap(WASI, "sock_shutdown", |caller: Caller<'_, State>, fd: i32, _how: i32| -> i32 {
        let (fd, folders) = (fd as u32, caller.data().preopens);
        let closed = fd >= FIRST && (folders == 0 || fd < FIRST + folders);
        if closed { EBADF } else { ENOTSOCK }
    })?;
    Ok(())
}

/// Runs a module: its `_start`, or another function.
pub(crate) async fn run(store: &mut Store<State>, module: &Module, function: Option<&str>) -> wasmtime::Result<()> {
    let engine: &Engine = module.engine();
    let mut linker = Linker::new(engine);
    link(&mut linker)?;
    let instance = linker.instantiate_async(&mut *store, module).await?;
    if function.is_some()
        && let Ok(initialize) = instance.get_typed_func::<(), ()>(&mut *store, "_initialize")
    {
        // A reactor's constructors run before its exports are called (WASI 0.1 application ABI).
        initialize.call_async(&mut *store, ()).await?;
    }
    let entry = instance.get_typed_func::<(), ()>(&mut *store, function.unwrap_or("_start"))?;
    entry.call_async(&mut *store, ()).await
}
