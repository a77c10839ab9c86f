//! Namespaces of a spec → clone flags and steps, and what is set in them: names and sysctls.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::{Mode, OFlags};
use rustix::thread::ThreadNameSpaceType;

use super::mounts::cstring;
use super::plan::text;
use super::step::Step;
use super::user_namespace::{IdMappings, Settle};
use crate::Kind;
use crate::bundle::Bundle;
use crate::error::{OrKind, Result};
use crate::procfs::Procfs;

/// What clone3(2) is to do.
pub(crate) struct Namespaces {
    /// CLONE_NEW* of the namespaces to make.
    pub flags: i32,
    /// The namespaces to be born in, of those that the spec names: the pid namespace, and with a user namespace all, as the
    /// child could not join the host's from in there.
    pub born_in: Vec<(OwnedFd, ThreadNameSpaceType)>,
    /// What is to be done for the child in its new user namespace, if it gets one.
    pub user: Option<Settle>,
}

/// Namespaces to make become clone flags, those to join become steps.
pub(super) fn namespaces(bundle: &Bundle, mappings: Option<&IdMappings>, steps: &mut Vec<Step>) -> Result<Namespaces> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Time, User, Uts};
    use ThreadNameSpaceType as T;
    let mut namespaces = Namespaces { flags: 0, born_in: Vec::new(), user: None };
    if let Some(mappings) = mappings {
        namespaces.flags |= libc::CLONE_NEWUSER;
        namespaces.user = Some(Settle::new(mappings.clone(), bundle.process()));
        steps.push(Step::AwaitMappings);
        // The folders down to it need not be open to the container's ids.
        if let Some(folder) = bundle.root().parent() {
            steps.push(Step::EnterFolder(cstring(folder)?));
        }
        steps.push(Step::BecomeRoot);
    }
    for (kind, name, flag) in [
        (Network, "network", T::NETWORK),
        (Ipc, "ipc", T::INTER_PROCESS_COMMUNICATION),
        (Uts, "uts", T::HOST_NAME_AND_NIS_DOMAIN_NAME),
        (Pid, "pid", T::PROCESS_ID),
        (Cgroup, "cgroup", T::CONTROL_GROUP),
        (Mount, "mount", T::MOUNT),
    ] {
        match (kind, bundle.namespace(kind)) {
            (_, None) => {}
            (_, Some(Some(path))) if kind == Pid || mappings.is_some() => {
                namespaces.born_in.push((open_namespace(path, name)?, flag));
            }
            (_, Some(Some(path))) => steps.push(Step::Join(open_namespace(path, name)?, name)),
            // Made once the process is in its cgroup.
            (Cgroup, Some(None)) => {}
            (Network, Some(None)) => {
                namespaces.flags |= libc::CLONE_NEWNET;
                steps.push(Step::LoopbackUp);
            }
            (Ipc, Some(None)) => namespaces.flags |= libc::CLONE_NEWIPC,
            (Uts, Some(None)) => namespaces.flags |= libc::CLONE_NEWUTS,
            (Pid, Some(None)) => namespaces.flags |= libc::CLONE_NEWPID,
            (Mount, Some(None)) => namespaces.flags |= libc::CLONE_NEWNS,
            // The one is above, the other was refused when the bundle was opened.
            (User | Time, _) => {}
        }
    }
    Ok(namespaces)
}

pub(crate) fn open_namespace(path: &Path, name: &str) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .or_kind(Kind::InvalidArgument, || format!("linux.namespaces: open the {name} namespace {}", path.display()))
}

/// Host name, domain name and sysctls.
pub(super) fn host_names(bundle: &Bundle, steps: &mut Vec<Step>) -> Result<()> {
    if let Some(name) = bundle.spec().hostname().as_deref().filter(|name| !name.is_empty()) {
        steps.push(Step::Hostname(text(name, "hostname")?));
    }
    if let Some(name) = bundle.spec().domainname().as_deref().filter(|name| !name.is_empty()) {
        steps.push(Step::Domainname(text(name, "domainname")?));
    }
    let Some(sysctls) = bundle.linux().sysctl().as_ref().filter(|sysctls| !sysctls.is_empty()) else { return Ok(()) };
    let proc_sys = Procfs::open()
        .and_then(|procfs| procfs.folder(c"sys"))
        .or_kind(Kind::Internal, || "linux.sysctl: open /proc/sys")?;
    let proc_sys = Arc::new(proc_sys);
    for (key, value) in sysctls {
        // In a key with slashes dots are part of names, such as those of VLAN interfaces (sysctl(8)).
        let path = if key.contains('/') { key.clone() } else { key.replace('.', "/") };
        steps.push(Step::Sysctl {
            proc_sys: Arc::clone(&proc_sys),
            path: text(&path, "linux.sysctl")?,
            value: text(value, "linux.sysctl")?,
        });
    }
    Ok(())
}
