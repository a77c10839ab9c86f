//! A container from a checkpoint.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::{FileType, Mode, OFlags, Uid, fstat};

use super::criu::{RESTORE, Request, field};
use super::message::Message;
use super::{Criu, NETWORK, PIDS, STREAMS, Stream, Streams, external};
use crate::bundle::Bundle;
use crate::cgroup::Cgroup;
use crate::console::Console;
use crate::container::{self, Container, CreateOptions, Stdio};
use crate::dispatch::{self, Choice, Entrypoint};
use crate::error::{OrKind, Result, bail};
use crate::hooks::{Hooks, Poststop};
use crate::image::NoImages;
use crate::native::idmap::is_id_mapped;
use crate::native::join::Joining;
use crate::native::mounts::{cstring, make_like};
use crate::native::namespaces::open_namespace;
use crate::native::net_devices::NetDevices;
use crate::native::resolve::{self, Make};
use crate::native::seccomp::Filter;
use crate::process::Process;
use crate::rootfs::{Attached, Rootfs, RootfsMount};
use crate::{Kind, WasmOptions, sys};

/// A container that is there but for its processes: they come from a checkpoint when it is started. Until then its rootfs is
/// mounted in the bundle, as clients bring its files to the state of the checkpoint there. Dropping it removes all of it.
pub struct Restorable {
    choice: Choice,
    bundle: Bundle,
    cgroup: Cgroup,
    rootfs: Attached,
    joining: Joining,
    wasm: WasmOptions,
    images: PathBuf,
    streams: Streams,
    criu: Criu,
    program: PathBuf,
}

impl Restorable {
    /// Makes all of the container but its processes, which are in the folder `images`.
    ///
    /// # Errors
    /// Unimplemented where the host has no criu, and for what is not restored; every error says what was being tried.
    pub fn new(
        bundle: Bundle,
        rootfs: &[RootfsMount],
        images: &Path,
        criu: &Criu,
        options: &CreateOptions,
    ) -> Result<Restorable> {
        let program = criu.find()?;
        let joins = |kind| bundle.namespace(kind).flatten().is_some();
        for (field, is_asked_for) in [
            ("hooks", Hooks::of(&bundle).is_some()),
            ("linux.namespaces: user", bundle.namespace(LinuxNamespaceType::User).is_some()),
            ("linux.namespaces: mount by path", joins(LinuxNamespaceType::Mount)),
            ("linux.namespaces: no mount", bundle.namespace(LinuxNamespaceType::Mount).is_none()),
            ("linux.namespaces: time by path", joins(LinuxNamespaceType::Time)),
            ("linux.netDevices", NetDevices::of(&bundle)?.is_some()),
            ("linux.intelRdt", bundle.linux().intel_rdt().is_some()),
            ("mounts: uidMappings", bundle.spec().mounts().iter().flatten().any(is_id_mapped)),
            ("NoPivotRoot", options.no_pivot_root),
        ] {
            if is_asked_for {
                bail!(Unimplemented, "{field}: not done for a container that is restored from a checkpoint");
            }
        }
        let streams = streams(images)?;
        let rootfs = Rootfs::mount(rootfs, bundle.root())?;
        // What was dumped was native.
        let (choice, entrypoint) = dispatch::pick(&bundle, &rootfs, &NoImages)?;
        if let Entrypoint::Wasm { .. } = entrypoint {
            bail!(Unimplemented, "a WebAssembly container cannot be restored from a checkpoint");
        }
        make_targets(&bundle, &rootfs)?;
        let cgroup = Cgroup::create(&bundle, options.systemd_cgroup)?;
        if cgroup.is_unit() && !cgroup.v2() {
            bail!(
                Unimplemented,
                "SystemdCgroup: not done on cgroup v1 for a container that is restored from a checkpoint"
            );
        }
        let filter = Filter::of(&bundle)?;
        let joining = Joining::new(&bundle, None, filter, None, None, options)?.of_restored();
        let wasm = options.wasm.of(&bundle)?;
        let rootfs = rootfs.attach(bundle.path().join("rootfs"))?;
        let (images, criu) = (images.to_owned(), criu.clone());
        Ok(Restorable { choice, bundle, cgroup, rootfs, joining, wasm, images, streams, criu, program })
    }

    /// The executor that was picked, and why.
    pub fn choice(&self) -> &Choice {
        &self.choice
    }

    /// See [`Container::owns_pid_namespace`].
    pub fn owns_pid_namespace(&self) -> bool {
        self.bundle.owns_pid_namespace()
    }

    /// Makes the processes, which run when this returns.
    ///
    /// # Errors
    /// What criu says. Nothing is left behind.
    pub fn restore(self, stdio: Stdio) -> Result<Container> {
        let owns_pid_namespace = self.owns_pid_namespace();
        let Restorable { choice, bundle, cgroup, rootfs, joining, wasm, images, streams, criu, program } = self;
        let mut request = Request::new(RESTORE, &images, &criu, &bundle)?;
        request
            .options
            .bytes(field::ROOT, rootfs.path().as_os_str().as_encoded_bytes())
            .flag(field::RST_SIBLING, true)
            .flag(field::EVASIVE_DEVICES, true)
            // What the dump was allowed to have.
            .flag(field::EXT_UNIX_SK, true)
            .flag(field::TCP_ESTABLISHED, true)
            .flag(field::FILE_LOCKS, true);
        for (name, path) in external::sources(&bundle, &cgroup)? {
            request.external_mount(&name, &path.display().to_string());
        }
        namespaces(&bundle, &mut request)?;
        if let Stdio::Streams(new) = stdio {
            inherit_streams(&mut request, new, streams, bundle.process().user().uid())?;
        }
        let cgroup_namespace = match bundle.namespace(LinuxNamespaceType::Cgroup) {
            None => sys::CgroupNamespace::Same,
            Some(None) => sys::CgroupNamespace::New,
            Some(Some(path)) => sys::CgroupNamespace::Join(open_namespace(path, "cgroup")?),
        };
        let files = cgroup.process_files()?;
        let answer = request.run(&program, |command| sys::enter_cgroups(command, files, cgroup_namespace))?;
        let Some(child) = answer.init.and_then(|init| init.finish()) else {
            bail!(Internal, "criu has restored no process");
        };
        cgroup.settled();
        let console = answer.terminal.map(Console::from_master).transpose();
        // From here on dropping it ends the container.
        let init = Process::new(child, None, None);
        let init = match console? {
            Some(console) => init.with_console(console),
            None => init,
        };
        Ok(Container {
            choice,
            init: Arc::new(init),
            cgroup,
            owns_pid_namespace,
            joining,
            wasm: Mutex::new(wasm),
            _on_host: None,
            _poststop: Poststop::new(None),
        })
    }
}

/// The dumped init's streams.
fn streams(images: &Path) -> Result<Streams> {
    let file = images.join(STREAMS);
    let what = || format!("checkpoint: read {}", file.display());
    let text = fs::read(&file).or_kind(Kind::InvalidArgument, what)?;
    serde_json::from_slice(&text).or_kind(Kind::InvalidArgument, what)
}

/// Lets new streams take the place of the dumped ones. One that had several numbers stays one.
fn inherit_streams(request: &mut Request, new: container::Streams, old: Streams, uid: u32) -> Result<()> {
    let mut known = Vec::new();
    for (old, stream) in old.into_iter().zip([new.stdin, new.stdout, new.stderr]) {
        let Some(Stream { name, null }) = old.filter(|old| !known.contains(&old.name)) else { continue };
        let stream = match stream.filter(|_| !null) {
            Some(stream) => stream,
            None => rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                .or_kind(Kind::Internal, || "open /dev/null")?,
        };
        let stat = fstat(&stream).or_kind(Kind::Internal, || "look at a stream")?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
            // As for any init.
            rustix::fs::fchown(&stream, Some(Uid::from_raw(uid)), None)
                .or_kind(Kind::Internal, || "give a stream to the process's user")?;
        }
        request.inherit(&name, stream);
        known.push(name);
    }
    Ok(())
}

/// The namespaces that are not in the checkpoint, and those of the spec that take the place of dumped ones.
fn namespaces(bundle: &Bundle, request: &mut Request) -> Result<()> {
    use LinuxNamespaceType::{Ipc, Network, Pid, Uts};
    match bundle.namespace(Network) {
        None => {}
        Some(Some(path)) => request.inherit(NETWORK, open_namespace(path, "network")?),
        Some(None) => request.inherit(NETWORK, new_network(bundle)?),
    }
    if let Some(Some(path)) = bundle.namespace(Pid) {
        request.inherit(PIDS, open_namespace(path, "pid")?);
    }
    for (kind, name) in [(Ipc, "ipc"), (Uts, "uts")] {
        if let Some(Some(path)) = bundle.namespace(kind) {
            let mut join = Message::default();
            join.bytes(1, name).bytes(2, path.as_os_str().as_encoded_bytes());
            request.options.message(field::JOIN_NS, &join);
        }
    }
    Ok(())
}

/// A network namespace as a new container has it: with its loopback device, and the spec's sysctls.
fn new_network(bundle: &Bundle) -> Result<OwnedFd> {
    let make = || -> Result<OwnedFd> {
        let what = || "linux.namespaces: make a network namespace";
        sys::unshare(libc::CLONE_NEWNET).or_kind(Kind::Unavailable, what)?;
        sys::loopback_up().or_kind(Kind::Internal, what)?;
        for (key, value) in bundle.linux().sysctl().iter().flatten() {
            let path = if key.contains('/') { key.clone() } else { key.replace('.', "/") };
            if path.starts_with("net/") {
                fs::write(Path::new("/proc/sys").join(path), value)
                    .or_kind(Kind::InvalidArgument, || format!("linux.sysctl: {key}"))?;
            }
        }
        open_namespace(Path::new("/proc/thread-self/ns/net"), "network")
    };
    // A thread of its own, which takes its namespace with it when it ends.
    std::thread::scope(|scope| scope.spawn(make).join())
        .unwrap_or_else(|_| bail!(Internal, "linux.namespaces: the thread that makes a network namespace panicked"))
}

/// Makes what is missing in the rootfs to mount on. What other mounts hold comes with them.
fn make_targets(bundle: &Bundle, rootfs: &Rootfs) -> Result<()> {
    let mounts = bundle.spec().mounts().as_deref().unwrap_or_default();
    for (number, mount) in mounts.iter().enumerate() {
        let at = mount.destination();
        if mounts.iter().take(number).any(|below| at.starts_with(below.destination())) {
            continue;
        }
        let make = match (external::bind(mount), mount.source()) {
            (Some(_), Some(source)) => make_like(&bundle.path().join(source))
                .or_kind(Kind::InvalidArgument, || format!("mounts: {}: source", at.display()))?,
            _ => Make::Directory,
        };
        resolve::open_or_make(rootfs.tree().as_fd(), &cstring(at)?, make)
            .or_kind(Kind::InvalidArgument, || format!("mounts: make {} in the rootfs", at.display()))?;
    }
    Ok(())
}
