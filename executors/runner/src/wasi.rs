//! A container → the WASI context of its guest: what the guest may see and do.
//!
//! - Arguments and environment are the process's own.
//! - Stdio is the container's.
//! - The container's root is preopened as `/`, with all of the spec's mounts in it. What is read-only for the container's
//!   user is so for the guest: the kernel decides, as for a native process. Its /proc, /sys and cgroups are always
//!   read-only for the guest: through /proc/self/mem it could else write to this process.
//! - Components begin in `process.cwd`; WASI 0.1 has no current folder, so relative paths of core modules begin at `/`.
//! - No sockets: WASI 0.1 has none to open, and Wasmtime denies those of 0.2 unless they are granted.

use std::path::Path;

use wasmtime::component::ResourceTable;
use wasmtime_wasi::p1::WasiP1Ctx;
use wasmtime_wasi::{FsPerms, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView};

/// What the store of a core module holds.
pub(crate) type CoreState = WasiP1Ctx;

/// What the store of a component holds.
pub(crate) struct ComponentState {
    wasi: WasiCtx,
    table: ResourceTable,
}

impl WasiView for ComponentState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// The state of a core module's store, for the guest's root folder.
pub(crate) fn core_state(root: &Path) -> wasmtime::Result<CoreState> {
    Ok(context(root)?.build_p1())
}

/// The state of a component's store.
pub(crate) fn component_state(root: &Path, cwd: &Path) -> wasmtime::Result<ComponentState> {
    let mut context = context(root)?;
    context.initial_cwd(cwd.to_string_lossy());
    Ok(ComponentState { wasi: context.build(), table: ResourceTable::new() })
}

fn context(root: &Path) -> wasmtime::Result<WasiCtxBuilder> {
    let mut context = WasiCtxBuilder::new();
    let text = |text: std::ffi::OsString| text.to_string_lossy().into_owned();
    // The first argument is the runner's own name.
    for arg in std::env::args_os().skip(1) {
        context.arg(text(arg));
    }
    for (key, value) in std::env::vars_os() {
        context.env(text(key), text(value));
    }
    // This process has nothing else to do while a file is read, so no second thread is needed for it.
    context.inherit_stdio().allow_blocking_current_thread(true).preopened_dir(root, "/", FsPerms::ReadWrite)?;
    Ok(context)
}
