//! The checkpoint of a running container.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use oci_spec::runtime::LinuxNamespaceType;

use super::criu::{DUMP, Request, allow_connections, field, make_folder, settings};
use super::{CheckpointOptions, Criu, NETWORK, PIDS, STREAMS, external};
use crate::Kind;
use crate::bundle::Bundle;
use crate::container::Container;
use crate::dispatch::Executor;
use crate::error::{OrKind, Result, bail};

/// `criu_network_lock_method`: without open connections there is nothing to keep away.
const NO_LOCK: u64 = 3;

impl Container {
    /// Writes a checkpoint of the container, whose bundle is the folder `bundle`. It goes on running, or stays frozen, unless
    /// the options say that it is to end; it does so, too, when this fails.
    ///
    /// # Errors
    /// Unimplemented where the host has no criu, and for what is not dumped; else what criu says.
    pub fn checkpoint(&self, bundle: &Path, criu: &Criu, options: &CheckpointOptions) -> Result<()> {
        if self.choice.executor == Executor::Wasm {
            bail!(
                Unimplemented,
                "a WebAssembly container cannot be checkpointed: its runner is executed from a mount that is in no mount \
                 namespace, out of the container's reach, which criu cannot dump"
            );
        }
        if self.joining.mappings.is_some() {
            bail!(Unimplemented, "a container with a user namespace cannot be checkpointed");
        }
        if !self.joining.has_mount_namespace() {
            bail!(Unimplemented, "a container without a mount namespace cannot be checkpointed");
        }
        let program = criu.find()?;
        let bundle = Bundle::open("", bundle)?;
        let pid = self.init.pid();
        make_folder(&options.images)?;
        let mut request = Request::new(DUMP, &options.images, criu, &bundle)?;
        request
            .options
            .number(field::PID, pid.into())
            .flag(field::LEAVE_RUNNING, !options.exit)
            .flag(field::EXT_UNIX_SK, options.external_unix_sockets)
            .flag(field::TCP_ESTABLISHED, options.open_tcp)
            .flag(field::SHELL_JOB, options.terminal)
            .flag(field::FILE_LOCKS, options.file_locks);
        if !options.open_tcp && !settings(&bundle).is_some_and(allow_connections) {
            request.options.number(field::NETWORK_LOCK, NO_LOCK);
        }
        if let Some(folder) = self.cgroup.freezer_folder() {
            request.options.bytes(field::FREEZE_CGROUP, folder.as_os_str().as_encoded_bytes());
        }
        let namespaces = [
            ("net", NETWORK, bundle.namespace(LinuxNamespaceType::Network).is_some()),
            ("pid", PIDS, bundle.namespace(LinuxNamespaceType::Pid).flatten().is_some()),
        ];
        for (kind, name, _) in namespaces.into_iter().filter(|(_, _, is_external)| *is_external) {
            let path = format!("/proc/{pid}/ns/{kind}");
            let number = fs::metadata(&path).or_kind(Kind::Internal, || format!("look at {path}"))?.ino();
            request.options.bytes(field::EXTERNAL, format!("{kind}[{number}]:{name}"));
        }
        for (at, name) in external::mounts(&bundle, pid, std::os::fd::AsFd::as_fd(&self.root()?))? {
            request.external_mount(&at, &name);
        }
        let streams = external::streams(pid)?;
        for stream in streams.iter().flatten().filter(|stream| stream.name.starts_with("file[")) {
            request.options.bytes(field::EXTERNAL, &stream.name);
        }
        let file = options.images.join(STREAMS);
        let text = serde_json::to_vec(&streams).or_kind(Kind::Internal, || STREAMS)?;
        fs::write(&file, text).or_kind(Kind::Internal, || format!("write {}", file.display()))?;
        request.run(&program, |_| ()).map(drop)
    }
}
