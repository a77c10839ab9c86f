//! A process that joins a running container → its [`Plan`].
//!
//! ```text
//! cgroup, OOM score, AppArmor (the host's /proc) ─> init's namespaces, by its pidfd ─> keyring ─> stdio, user … as for init
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxNamespaceType, Process};
use rustix::thread::ThreadNameSpaceType;

use super::mounts::{cstring, writable_of_the_kernel};
use super::plan::{self, Payload};
use super::scheduling::{self, Affinity, OfContainer};
use super::seccomp::Filter;
use super::selinux;
use super::step::{Plan, Step};
use super::user;
use super::user_namespace::{IdMappings, raised};
use crate::bundle::Bundle;
use crate::cgroup::Cgroup;
use crate::error::{OrKind, Result, bail};
use crate::resctrl::Resctrl;
use crate::rootfs::OnHost;
use crate::{CreateOptions, Kind};

/// What a container keeps of its spec for processes that join it later.
pub(crate) struct Joining {
    /// The session keyring that its processes share, unless the container has none of its own.
    keyring: Option<String>,
    /// Every namespace of the spec, whether it was made or joined: init is in it.
    namespaces: ThreadNameSpaceType,
    /// The container's root folder, where init is in the host's mount namespace.
    root: Option<OwnedFd>,
    /// What the container's ids are on the host, where it has a user namespace.
    pub mappings: Option<IdMappings>,
    /// The container's seccomp filter, which holds for every process in it.
    filter: Option<Filter>,
    /// The group of resctrl that all its processes are in.
    resctrl: Option<Resctrl>,
    scheduling: OfContainer,
    /// What holds for a process whose own spec does not say.
    defaults: Process,
    /// Where the kernel's own state can be written to, but by a guest.
    writable_of_the_kernel: Vec<PathBuf>,
}

impl Joining {
    pub fn new(
        bundle: &Bundle,
        mappings: Option<IdMappings>,
        filter: Option<Filter>,
        resctrl: Option<Resctrl>,
        on_host: Option<&OnHost>,
        options: &CreateOptions,
    ) -> Result<Joining> {
        use LinuxNamespaceType as N;
        use ThreadNameSpaceType as T;
        let kinds = [
            (N::Mount, T::MOUNT),
            (N::Pid, T::PROCESS_ID),
            (N::Network, T::NETWORK),
            (N::Ipc, T::INTER_PROCESS_COMMUNICATION),
            (N::Uts, T::HOST_NAME_AND_NIS_DOMAIN_NAME),
            (N::Cgroup, T::CONTROL_GROUP),
            (N::User, T::USER),
            (N::Time, T::TIME),
        ];
        // Where the user namespace is this process's own there is none to enter.
        let is_entered = |kind| if kind == N::User { mappings.is_some() } else { bundle.namespace(kind).is_some() };
        let listed = kinds.into_iter().filter(|(kind, _)| is_entered(*kind));
        let mut defaults = bundle.process().clone();
        defaults.set_args(None).set_env(None);
        Ok(Joining {
            keyring: (!options.no_new_keyring).then(|| bundle.id().to_owned()),
            namespaces: listed.fold(T::empty(), |all, (_, flag)| all | flag),
            root: on_host.map(|on_host| duplicate(on_host.root())).transpose()?,
            mappings,
            filter,
            resctrl,
            scheduling: scheduling::of_container(bundle.linux())?,
            defaults,
            writable_of_the_kernel: writable_of_the_kernel(bundle).map(Path::to_owned).collect(),
        })
    }

    /// Whether init is in a mount namespace that is not the host's.
    pub fn has_mount_namespace(&self) -> bool {
        self.root.is_none()
    }

    /// For a container that was restored: criu has given it a time namespace, in which its clocks go on.
    pub fn of_restored(mut self) -> Joining {
        self.namespaces |= ThreadNameSpaceType::TIME;
        self
    }

    /// Whether the process must be born in init's pid namespace.
    pub fn pid_namespace(&self) -> bool {
        self.namespaces.contains(ThreadNameSpaceType::PROCESS_ID)
    }

    /// A process's spec with what it doesn't say taken from the container's, as runc does.
    pub fn complete(&self, spec: &Process) -> Process {
        let mut process = spec.clone();
        if process.capabilities().is_none() {
            process.set_capabilities(self.defaults.capabilities().clone());
        }
        if process.rlimits().as_deref().unwrap_or_default().is_empty() {
            process.set_rlimits(self.defaults.rlimits().clone());
        }
        if process.apparmor_profile().as_deref().unwrap_or_default().is_empty() {
            process.set_apparmor_profile(self.defaults.apparmor_profile().clone());
        }
        if process.oom_score_adj().is_none() {
            process.set_oom_score_adj(self.defaults.oom_score_adj());
        }
        if process.selinux_label().as_deref().unwrap_or_default().is_empty() {
            process.set_selinux_label(self.defaults.selinux_label().clone());
        }
        if process.scheduler().is_none() {
            process.set_scheduler(self.defaults.scheduler().clone());
        }
        if process.io_priority().is_none() {
            process.set_io_priority(*self.defaults.io_priority());
        }
        if process.exec_cpu_affinity().is_none() {
            process.set_exec_cpu_affinity(self.defaults.exec_cpu_affinity().clone());
        }
        if process.user().umask().is_none() {
            process.user_mut().set_umask(self.defaults.user().umask());
        }
        process
    }

    /// The process of the container's own spec, without arguments and environment.
    pub fn process(&self) -> &Process {
        &self.defaults
    }

    /// Compiles the plan of a process. `init` is the pidfd of the container's init, and `stdio` the step that sets up its
    /// standard streams.
    pub fn compile(
        &self,
        process: &Process,
        environment: &[String],
        init: BorrowedFd<'_>,
        cgroup: &Cgroup,
        stdio: Step,
        payload: Payload,
    ) -> Result<Plan> {
        let mut steps = Vec::new();
        steps.extend(plan::join_cgroup(cgroup, self.resctrl.as_ref())?);
        steps.extend(Affinity::of(process)?.step());
        steps.extend(plan::oom_score(process)?);
        plan::apparmor(process, &mut steps)?;
        steps.extend(selinux::of_program(process)?);
        if self.keyring.is_some() {
            steps.extend(selinux::of_keyring(process)?);
        }
        if self.mappings.is_some() {
            // Only the host's root may.
            steps.extend(raised(process).into_iter().map(|(resource, limit)| Step::Rlimit(resource, limit)));
        }
        self.enter(init, &mut steps)?;
        if let Some(root) = &self.root {
            steps.push(Step::ChangeRoot(Some(duplicate(root.as_fd())?)));
        }
        if matches!(payload, Payload::Runner { .. }) {
            if self.root.is_some() {
                bail!(Unimplemented, "linux.namespaces: a WebAssembly program needs a mount namespace");
            }
            let readonly = self.writable_of_the_kernel.iter().map(|path| cstring(path)).collect::<Result<_>>()?;
            steps.push(Step::GuestRootOfContainer { readonly, init: duplicate(init)? });
        }
        steps.extend(scheduling::of_process(process)?);
        steps.extend(self.scheduling.steps());
        let filter = self.filter.as_ref();
        let filtered = user::compile(process, self.mappings.is_some(), filter, stdio, &mut steps)?;
        plan::program(process, payload, environment, filter.map(|filter| (filter, filtered)), None, steps)
    }

    /// A session of its own in the container's namespaces, but for that of pids, which takes a clone.
    pub fn enter(&self, init: BorrowedFd<'_>, steps: &mut Vec<Step>) -> Result<()> {
        steps.push(Step::Session);
        let namespaces = self.namespaces - ThreadNameSpaceType::PROCESS_ID;
        if !namespaces.is_empty() {
            steps.push(Step::JoinContainer(duplicate(init)?, namespaces));
        }
        if self.mappings.is_some() {
            steps.push(Step::BecomeRoot);
        }
        if let Some(id) = &self.keyring {
            steps.push(plan::keyring(id)?);
        }
        Ok(())
    }
}

fn duplicate(fd: BorrowedFd<'_>) -> Result<OwnedFd> {
    fd.try_clone_to_owned().or_kind(Kind::Unavailable, || "duplicate a descriptor of the container's")
}
