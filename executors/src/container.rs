//! A container: made from a bundle by either executor, then the same for both.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use crate::bundle::{Bundle, args};
use crate::cgroup::Cgroup;
use crate::dispatch::{self, Choice, Entrypoint};
use crate::error::Result;
use crate::hooks::{Beside, Hooks, Poststop};
use crate::image::{ImageStore, NoImages};
use crate::native::join::Joining;
use crate::native::launch::launch;
use crate::native::plan::{self, Compiled, Payload};
use crate::native::step::Plan;
use crate::process::Process;
use crate::resctrl::Resctrl;
use crate::rootfs::{OnHost, Rootfs, RootfsMount};
use crate::wasm::{self, WasmOptions};

/// What a process has for its standard input, output and error.
#[derive(Debug)]
pub enum Stdio {
    Streams(Streams),
    /// A terminal, made for it; the process's [`Console`](crate::Console) is its other end.
    Terminal,
}

/// The three descriptors a process starts with; `None` is `/dev/null`.
#[derive(Debug, Default)]
pub struct Streams {
    pub stdin: Option<OwnedFd>,
    pub stdout: Option<OwnedFd>,
    pub stderr: Option<OwnedFd>,
}

/// How a container is made, beyond what its spec says: `ctr` and runc have flags of these names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateOptions {
    /// Move the rootfs onto `/` and chroot(2) there instead of pivot_root(2), which the kernel refuses where `/` is the
    /// initramfs (pivot_root(2), "rootfs"). The container's root is then guarded by less: a process with CAP_SYS_ADMIN
    /// in the container can unmount it and see the host's.
    pub no_pivot_root: bool,
    /// Leave the container the session keyring of the shim instead of a new one (keyrings(7)).
    pub no_new_keyring: bool,
    /// Have systemd make the cgroup: `linux.cgroupsPath` is `slice:prefix:name`, or nothing. A path of that form does so by
    /// itself.
    pub systemd_cgroup: bool,
    /// How guests are run.
    pub wasm: WasmOptions,
}

/// Creates the container: afterwards its init process exists and waits to execute its program (OCI runtime spec,
/// runtime.md "create").
///
/// # Errors
/// Every error says what was being tried. Nothing is left behind.
pub fn create(bundle: Bundle, rootfs: &[RootfsMount], stdio: Stdio, options: &CreateOptions) -> Result<Container> {
    create_from(&NoImages, bundle, rootfs, stdio, options)
}

/// The same for a container whose image lies in a store, which is asked for what the bundle doesn't have.
///
/// # Errors
/// As [`create`].
pub fn create_from(
    images: &dyn ImageStore,
    bundle: Bundle,
    rootfs: &[RootfsMount],
    stdio: Stdio,
    options: &CreateOptions,
) -> Result<Container> {
    create_with(images, bundle, rootfs, stdio, options, |_| ())
}

/// The same with a look at the plan before it is run.
pub(crate) fn create_with(
    images: &dyn ImageStore,
    bundle: Bundle,
    rootfs: &[RootfsMount],
    stdio: Stdio,
    options: &CreateOptions,
    look: impl FnOnce(&mut Plan),
) -> Result<Container> {
    // Each of these undoes itself when dropped, so a failure further down leaves nothing.
    let rootfs = Rootfs::mount(rootfs, bundle.root())?;
    let (choice, entrypoint) = dispatch::pick(&bundle, &rootfs, images)?;
    // Of a native container too: what is exec'd in it may be a module.
    let wasm = options.wasm.of(&bundle)?;
    let payload = match entrypoint {
        Entrypoint::Native => Payload::Spec,
        Entrypoint::Wasm { module, path, function } => {
            wasm::prepare(module, &path, function.as_deref(), &wasm)?.payload(args(bundle.process()))?
        }
    };
    let hooks = Hooks::of(&bundle);
    let mut poststop = Poststop::new(hooks.clone());
    let cgroup = Cgroup::create(&bundle, options.systemd_cgroup)?;
    let resctrl = Resctrl::create(&bundle)?;
    let compiled = plan::compile(&bundle, rootfs, &cgroup, stdio, payload, resctrl.as_ref(), options)?;
    let Compiled { namespaces, mut plan, console, filter, mappings, on_host } = compiled;
    look(&mut plan);
    let joining = Joining::new(&bundle, mappings, filter, resctrl, on_host.as_ref(), options)?;
    let init = launch(plan, &namespaces, &cgroup, console, |pid, pidfd| {
        poststop.due();
        let beside = Beside { pid, pidfd, joining: &joining, cgroup: &cgroup };
        hooks.as_ref().map_or(Ok(()), |hooks| hooks.create(&beside))
    })?;
    if let Some(hooks) = &hooks {
        let beside = Beside { pid: init.pid(), pidfd: init.exit_fd(), joining: &joining, cgroup: &cgroup };
        hooks.surround_start(&init, &beside)?;
    }
    let owns_pid_namespace = bundle.owns_pid_namespace();
    Ok(Container {
        choice,
        init: Arc::new(init),
        cgroup,
        owns_pid_namespace,
        joining,
        wasm: Mutex::new(wasm),
        _on_host: on_host,
        _poststop: poststop,
    })
}

/// A created container. [`Container::delete`] removes what it has on the host; dropping it kills it and does so too, but
/// can't say what went wrong.
pub struct Container {
    pub(crate) choice: Choice,
    // Dropped before init, which is waited for: one that is frozen only ends when its cgroup is killed as a whole.
    pub(crate) cgroup: Cgroup,
    pub(crate) init: Arc<Process>,
    pub(crate) owns_pid_namespace: bool,
    pub(crate) joining: Joining,
    /// For what is exec'd.
    pub(crate) wasm: Mutex<WasmOptions>,
    /// Unmounted once init has ended.
    pub(crate) _on_host: Option<OnHost>,
    /// Dropped last.
    pub(crate) _poststop: Poststop,
}

impl Container {
    /// The executor that was picked, and why.
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// The first process.
    pub fn init(&self) -> &Arc<Process> {
        &self.init
    }

    /// Whether init has a pid namespace of its own, so that the kernel kills everything in the container when init dies
    /// (pid_namespaces(7)). A namespace joined by path is shared.
    pub fn owns_pid_namespace(&self) -> bool {
        self.owns_pid_namespace
    }

    /// The pids (in the shim's namespace) of all processes in the container's cgroup and below it.
    pub fn pids(&self) -> Result<Vec<u32>> {
        self.cgroup.pids()
    }

    /// Sends a signal to every process in the container's cgroup. Success when there is none.
    pub fn signal_all(&self, signal: i32) -> Result<()> {
        self.cgroup.signal(signal)
    }

    /// Kills what is left in the container and removes its cgroup. Its mounts went with its last process. Then its poststop
    /// hooks are run.
    pub fn delete(self) -> Result<()> {
        self.cgroup.signal(libc::SIGKILL)?;
        self.cgroup.remove()
    }
}
