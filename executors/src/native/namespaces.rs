//! Namespaces of a spec → clone flags and steps, and what is set in them: clocks, names and sysctls.

use std::ffi::CString;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use oci_spec::runtime::LinuxNamespaceType;
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, ThreadNameSpaceType};

use super::mounts::cstring;
use super::net_devices::NetDevices;
use super::plan::text;
use super::step::Step;
use super::user_namespace::{IdMappings, Settle};
use crate::Kind;
use crate::bundle::Bundle;
use crate::error::{OrKind, Result, bail};
use crate::procfs::Procfs;

/// What clone3(2) is to do.
pub(crate) struct Namespaces {
    /// CLONE_NEW* of the namespaces to make.
    pub flags: i32,
    /// The namespaces to be born in, of those that the spec names: the pid namespace, and with a user namespace all, as the
    /// child could not join the host's from in there.
    pub born_in: Vec<(OwnedFd, ThreadNameSpaceType)>,
    /// Steps of a process in between, whose child the container's first process is: it enters what that one must be born
    /// in and what a thread of this process could not enter and leave again (setns(2)). Usually there are none.
    pub before: Vec<Step>,
    /// What is to be done for the child in its user namespace, if it gets one.
    pub user: Option<Settle>,
    /// The network devices that are moved to it.
    pub net_devices: Option<NetDevices>,
}

impl Namespaces {
    /// Whether the child waits for [`Namespaces::settle`].
    pub fn waits_for_parent(&self) -> bool {
        self.user.is_some() || self.net_devices.is_some()
    }

    /// What only this process may do for the child, while that waits.
    pub fn settle(&self, pid: u32) -> Result<()> {
        self.user.as_ref().map_or(Ok(()), |user| user.settle(pid))?;
        self.net_devices.as_ref().map_or(Ok(()), |devices| devices.move_to(pid))
    }
}

/// Namespaces to make become clone flags, those to join become steps.
pub(super) fn namespaces(bundle: &Bundle, mappings: Option<&IdMappings>, steps: &mut Vec<Step>) -> Result<Namespaces> {
    use LinkNameSpaceType as L;
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, Time, User, Uts};
    use ThreadNameSpaceType as T;
    refuse_mounts_of_the_host(bundle)?;
    let net_devices = NetDevices::of(bundle)?;
    let mut namespaces = Namespaces { flags: 0, born_in: Vec::new(), before: Vec::new(), user: None, net_devices };
    let joined = mappings.and_then(IdMappings::joined);
    let mapped = mappings.is_some();
    let joins = |kind| bundle.namespace(kind).flatten().is_some();
    let is_new = |kind| bundle.namespace(kind) == Some(None);
    let in_between = joined.is_some() || is_new(Time) || mapped && (joins(Time) || joins(Mount));
    if mapped || namespaces.waits_for_parent() {
        steps.push(Step::AwaitParent);
    }
    if let Some(mappings) = mappings {
        if joined.is_none() {
            namespaces.flags |= libc::CLONE_NEWUSER;
        }
        namespaces.user = Some(Settle::new(mappings.clone(), bundle.process()));
        // The folders down to it need not be open to the container's ids.
        if let Some(folder) = bundle.root().parent() {
            steps.push(Step::EnterFolder(cstring(folder)?));
        }
        steps.push(Step::BecomeRoot);
    }
    for (kind, name, flag, link) in [
        (Network, "network", T::NETWORK, L::Network),
        (Ipc, "ipc", T::INTER_PROCESS_COMMUNICATION, L::InterProcessCommunication),
        (Uts, "uts", T::HOST_NAME_AND_NIS_DOMAIN_NAME, L::HostNameAndNISDomainName),
        (Pid, "pid", T::PROCESS_ID, L::ProcessID),
        (Cgroup, "cgroup", T::CONTROL_GROUP, L::ControlGroup),
        (Time, "time", T::TIME, L::Time),
        // Behind it paths lead elsewhere.
        (Mount, "mount", T::MOUNT, L::Mount),
    ] {
        match (kind, bundle.namespace(kind)) {
            (_, None) => {}
            (_, Some(Some(path))) if in_between && (kind == Pid || mapped) => {
                namespaces.before.push(Step::Join(open_namespace(path, name)?, link, name));
            }
            (_, Some(Some(path))) if kind == Pid || mapped => {
                namespaces.born_in.push((open_namespace(path, name)?, flag));
            }
            (_, Some(Some(path))) => steps.push(Step::Join(open_namespace(path, name)?, link, name)),
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
            // Who makes it is not in it, and its clocks can be set until its first process comes (time_namespaces(7)).
            (Time, Some(None)) => {
                namespaces.before.push(Step::Unshare(libc::CLONE_NEWTIME, name));
                namespaces.before.extend(time_offsets(bundle)?.map(Step::TimeOffsets));
            }
            (User, _) => {}
        }
    }
    if let Some(joined) = joined {
        // Last, as from in there the others could not be entered.
        let joined = joined.try_clone_to_owned().or_kind(Kind::Unavailable, || "duplicate the user namespace")?;
        namespaces.before.push(Step::Join(joined, L::User, "user"));
    }
    Ok(namespaces)
}

/// The clocks as /proc/self/timens_offsets takes them, sorted: name, seconds, nanoseconds.
fn time_offsets(bundle: &Bundle) -> Result<Option<CString>> {
    let offsets =
        bundle.linux().time_offsets().iter().flatten().map(|(clock, offset)| {
            format!("{clock} {} {}\n", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0))
        });
    let mut offsets: Vec<_> = offsets.collect();
    offsets.sort_unstable();
    if offsets.is_empty() { Ok(None) } else { text(&offsets.concat(), "linux.timeOffsets").map(Some) }
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
    refuse_of_the_host(bundle)?;
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

/// A network namespace by path may be the host's, whose settings are not the container's.
fn refuse_of_the_host(bundle: &Bundle) -> Result<()> {
    let is_of_network = |key: &&String| key.starts_with("net.") || key.starts_with("net/");
    let Some(path) = bundle.namespace(LinuxNamespaceType::Network).flatten() else { return Ok(()) };
    let Some(key) = bundle.linux().sysctl().iter().flatten().map(|(key, _)| key).find(is_of_network) else {
        return Ok(());
    };
    if is_of_the_host(path, "net") {
        bail!(InvalidArgument, "linux.sysctl: {key}: {} is the network namespace of the host", path.display());
    }
    Ok(())
}

/// pivot_root(2) there would take the host's root away.
fn refuse_mounts_of_the_host(bundle: &Bundle) -> Result<()> {
    match bundle.namespace(LinuxNamespaceType::Mount).flatten() {
        Some(path) if is_of_the_host(path, "mnt") => {
            bail!(InvalidArgument, "linux.namespaces: {} is the mount namespace of the host", path.display())
        }
        _ => Ok(()),
    }
}

/// Whether a path leads to this process's own namespace of a kind, by its name in /proc.
fn is_of_the_host(path: &Path, kind: &str) -> bool {
    let inode = |path: &Path| rustix::fs::stat(path).map(|stat| (stat.st_dev, stat.st_ino)).ok();
    inode(path).is_some_and(|found| Some(found) == inode(&Path::new("/proc/thread-self/ns").join(kind)))
}
