//! What is said of a guest that failed: words on stderr, a core dump if one is asked for, and the exit code.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use wasmtime::{AsContextMut, Trap, WasmCoreDump};
use wasmtime_wasi::I32Exit;

use crate::metrics::Metrics;

/// Exit code of a guest that trapped: 128 + SIGABRT, as the wasmtime command has it.
const TRAPPED: u8 = 134;

/// Exit code for everything else that went wrong.
pub(crate) const FAILED: u8 = 1;

/// Tells of failures.
pub(crate) struct Traps {
    /// The module's path in the container.
    pub name: String,
    /// The folder for core dumps.
    pub dumps: Option<OwnedFd>,
    pub metrics: Arc<Metrics>,
}

impl Traps {
    /// Tells of an error that a guest's call came back with. The result is the exit code.
    pub fn tell(&self, store: impl AsContextMut, error: &wasmtime::Error) -> u8 {
        if let Some(I32Exit(code)) = error.downcast_ref() {
            return (*code & 0xff) as u8;
        }
        say(&self.name, error);
        if let (Some(folder), Some(dump)) = (&self.dumps, error.downcast_ref::<WasmCoreDump>()) {
            match self.write(folder, &dump.serialize(store, &self.name)) {
                Ok(name) => eprintln!("\ncore dump: {name}"),
                Err(e) => eprintln!("\nno core dump: {e}"),
            }
        }
        if !error.is::<Trap>() {
            return FAILED;
        }
        self.metrics.traps.fetch_add(1, Relaxed);
        TRAPPED
    }

    /// Writes a core dump to a file that is new, and gives its name.
    fn write(&self, folder: &OwnedFd, dump: &[u8]) -> std::io::Result<String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let module = self.name.rsplit('/').next().unwrap_or_default();
        let name = format!("core.{module}.{seconds}.{}.{}", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        File::from(rustix::fs::openat(folder, &name, flags, Mode::RUSR | Mode::WUSR)?).write_all(dump)?;
        Ok(name)
    }
}

/// The words for an error, on stderr.
pub(crate) fn say(name: &str, error: &wasmtime::Error) {
    eprintln!("Error: failed to run {name}\n\nCaused by:\n    {error:?}");
    let limit = rustix::process::getrlimit(rustix::process::Resource::As);
    if let (false, Some(limit)) = (error.is::<Trap>(), limit.current) {
        eprintln!(
            "\nRLIMIT_AS is {limit} bytes; a memory of WebAssembly takes 4 GiB of addresses, however small it is"
        );
    }
}
