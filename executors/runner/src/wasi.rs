//! A container → the WASI context of its guest: what the guest may see and do.
//!
//! - Arguments and environment are the process's own.
//! - Stdio is the container's.
//! - The folders of [`Settings::preopens`]: by default the container's root, as `/`, with all of the spec's mounts in it.
//!   What is read-only for the container's user is so for the guest: the kernel decides, as for a native process. Its
//!   /proc, /sys and cgroups are always read-only for the guest: through /proc/self/mem it could else write to this process.
//! - Components begin in `process.cwd`; WASI 0.1 has no current folder, so relative paths of core modules begin at `/`.
//! - Sockets and names as the policy has it. WASI 0.1 has none to open.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use wasmtime_wasi::{FsPerms, WasiCtxBuilder};
use wasmtime_wasi_config::WasiConfigVariables;

use crate::network::Policy;
use crate::settings::{Preopen, Settings};

/// What the contexts of all guests of this process are made from.
pub(crate) struct Source {
    folders: Vec<Folder>,
    cwd: PathBuf,
    pub policy: Arc<Policy>,
    pub config: Arc<WasiConfigVariables>,
}

/// A folder to be preopened.
struct Folder {
    folder: OwnedFd,
    name: String,
    permissions: FsPerms,
}

impl Source {
    /// Opens `folders` below `root`, as the container sees it.
    pub fn new(root: &OwnedFd, folders: &[Preopen], settings: &Settings) -> wasmtime::Result<Source> {
        let open = |preopen: &Preopen| -> wasmtime::Result<Folder> {
            let folder = open_inside(root, &preopen.path)?;
            let permissions = if preopen.read_only { FsPerms::ReadOnly } else { FsPerms::ReadWrite };
            Ok(Folder { folder, name: preopen.name.clone(), permissions })
        };
        let folders = folders.iter().map(open).collect::<wasmtime::Result<_>>()?;
        let policy = Arc::new(Policy::new(settings.network.clone()));
        let config = Arc::new(settings.config.clone().into_iter().collect());
        Ok(Source { folders, cwd: std::env::current_dir()?, policy, config })
    }

    /// How many folders a guest gets.
    pub fn preopens(&self) -> u32 {
        self.folders.len() as u32
    }

    /// A new context.
    pub fn context(&self) -> wasmtime::Result<WasiCtxBuilder> {
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
        context.inherit_stdio().allow_blocking_current_thread(true);
        if self.cwd != Path::new("/") {
            // Else there is nothing to say: a guest begins at the root by itself, and some take a folder for a surprise.
            context.initial_cwd(self.cwd.to_string_lossy());
        }
        for Folder { folder, name, permissions } in &self.folders {
            in_folder(folder, |path| context.preopened_dir(path, name, *permissions).map(drop))?;
        }
        self.policy.grant(&mut context);
        Ok(context)
    }
}

/// Opens a folder of the container's. Links are followed inside it only.
pub(crate) fn open_inside(root: &OwnedFd, path: &str) -> wasmtime::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
        .map_err(|e| wasmtime::format_err!("open the folder {path}: {e}"))
}

/// Calls `open` while a folder is the current one, with the path by which it is found then: `.`.
///
/// So code is mapped and folders are opened by names that need no /proc in the container and that the container's user may
/// use; afterwards nothing of the folder stays reachable.
pub(crate) fn in_folder<T>(folder: &OwnedFd, open: impl FnOnce(&Path) -> wasmtime::Result<T>) -> wasmtime::Result<T> {
    // Threads have the current folder in common.
    static CURRENT: Mutex<()> = Mutex::new(());
    let _turn = CURRENT.lock().unwrap_or_else(PoisonError::into_inner);
    let here = rustix::fs::open(".", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::process::fchdir(folder.as_fd())?;
    let opened = open(Path::new("."));
    rustix::process::fchdir(here.as_fd())?;
    opened
}
