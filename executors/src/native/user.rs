//! Who the process is: stdio, user, groups, capabilities, limits, and the seccomp filter, as steps.
//!
//! Source: OCI runtime spec, config.md "POSIX process" and "Linux Process"; capabilities(7).

use std::os::fd::{AsFd, OwnedFd};

use oci_spec::runtime::{Capability, LinuxCapabilities, PosixRlimitType, Process};
use rustix::fs::{Gid, Mode, OFlags};
use rustix::io::fcntl_dupfd_cloexec;
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::mounts::cstring;
use super::seccomp::Filter;
use super::step::Step;
use super::user_namespace::IdMappings;
use crate::error::{OrKind, Result};
use crate::{Kind, Streams};

/// Descriptors that the child duplicates onto low numbers are kept above this one, so that none is in another's way.
const ABOVE: i32 = 16;

/// The spec's resource limits in the kernel's terms (getrlimit(2)).
pub(super) fn limits(process: &Process) -> impl Iterator<Item = (Resource, Rlimit)> {
    process
        .rlimits()
        .iter()
        .flatten()
        .map(|limit| (resource(limit.typ()), Rlimit { current: number(limit.soft()), maximum: number(limit.hard()) }))
}

/// Stdio, cwd, umask, limits, user, groups, capabilities and no_new_privs, in the order in which each still may.
///
/// `mapped` says that the process is in a user namespace of its container's.
///
/// Returns what is left to do once a filter is loaded. Without no_new_privs loading it takes CAP_SYS_ADMIN (seccomp(2)), so
/// the process keeps that until then.
pub(super) fn compile(
    process: &Process,
    mapped: bool,
    filter: Option<&Filter>,
    stdio: Step,
    steps: &mut Vec<Step>,
) -> Result<Option<Step>> {
    let user = process.user();
    let (uid, gid) = (user.uid(), user.gid());
    let cwd = |may_fail| cstring(process.cwd()).map(|path| Step::Cwd { path, may_fail });
    steps.push(stdio);
    steps.push(cwd(true)?);
    steps.push(Step::Umask(user.umask().unwrap_or(0o022)));
    // After what opens files: there may be few.
    steps.extend(limits(process).map(|(resource, limit)| Step::Rlimit(resource, limit)));
    let no_new_privileges = process.no_new_privileges() == Some(true);
    if no_new_privileges {
        steps.push(Step::NoNewPrivileges);
    }
    let held = if mapped { known() } else { held() };
    let capabilities = Capabilities::new(process.capabilities().as_ref(), held);
    steps.push(Step::BoundingSet { keep: capabilities.bounding });
    steps.push(Step::KeepCapabilities);
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    steps.push(Step::Groups(groups.iter().map(|gid| Gid::from_raw(*gid)).collect()));
    steps.push(Step::Ids { uid, gid });
    let mut sets = capabilities.sets;
    if filter.is_some() && !no_new_privileges {
        let loading = CapabilitySet::SYS_ADMIN & held;
        sets.effective |= loading;
        sets.permitted |= loading;
    }
    steps.push(Step::Capabilities { sets, ambient: capabilities.ambient });
    steps.push(cwd(false)?);
    Ok((sets != capabilities.sets).then_some(Step::CapabilitySets(capabilities.sets)))
}

/// The step that makes these the process's standard streams.
pub(crate) fn streams(process: &Process, mappings: Option<&IdMappings>, streams: Streams) -> Result<Step> {
    let fds = standard(streams)?;
    if let Some(mappings) = mappings {
        fds.iter().try_for_each(|fd| mappings.give_stream(fd, process))?;
    }
    Ok(Step::Stdio { fds, uid: process.user().uid() })
}

/// The same for a process of root.
pub(super) fn streams_of_root(streams: Streams) -> Result<Step> {
    Ok(Step::Stdio { fds: standard(streams)?, uid: 0 })
}

/// The step that makes this terminal the process's own, and all three of its standard streams.
pub(crate) fn terminal(process: &Process, mappings: Option<&IdMappings>, slave: impl AsFd) -> Result<Step> {
    if let Some(mappings) = mappings {
        mappings.give_terminal(&slave, process)?;
    }
    Ok(Step::Terminal { slave: Some(above(slave)?), uid: process.user().uid() })
}

struct Capabilities {
    bounding: CapabilitySet,
    sets: CapabilitySets,
    ambient: CapabilitySet,
}

impl Capabilities {
    /// The five sets; what is not in `held` is left out, as runc does.
    fn new(spec: Option<&LinuxCapabilities>, held: CapabilitySet) -> Self {
        let set = |list: Option<&Option<std::collections::HashSet<Capability>>>| {
            let list = list.and_then(Option::as_ref).into_iter().flatten();
            list.fold(CapabilitySet::empty(), |set, capability| set | capability_bit(*capability)) & held
        };
        let permitted = set(spec.map(LinuxCapabilities::permitted));
        let inheritable = set(spec.map(LinuxCapabilities::inheritable));
        Self {
            bounding: set(spec.map(LinuxCapabilities::bounding)),
            // The kernel refuses an effective or ambient set beyond the permitted one (capabilities(7)).
            sets: CapabilitySets {
                effective: set(spec.map(LinuxCapabilities::effective)) & permitted,
                permitted,
                inheritable,
            },
            ambient: set(spec.map(LinuxCapabilities::ambient)) & permitted & inheritable,
        }
    }
}

/// The capabilities that this shim itself has, and so can leave to others.
fn held() -> CapabilitySet {
    rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.permitted)
}

/// The capabilities that the host's kernel knows: in a new user namespace a process begins with all of them
/// (user_namespaces(7)).
fn known() -> CapabilitySet {
    let known = |capability: &CapabilitySet| rustix::thread::capability_is_in_bounding_set(*capability).is_ok();
    CapabilitySet::all().iter().filter(known).collect()
}

/// The names of all capabilities that a spec can give, in the order of their numbers.
pub(crate) fn capabilities() -> Vec<String> {
    let names = CapabilitySet::all().iter_names();
    let names = names.map(|(name, bit)| (format!("CAP_{name}"), bit));
    let known = |name: &str| serde_json::from_value::<Capability>(name.into()).map(capability_bit);
    names.filter(|(name, bit)| known(name).is_ok_and(|known| known == *bit)).map(|(name, _)| name).collect()
}

fn capability_bit(capability: Capability) -> CapabilitySet {
    use Capability as C;
    match capability {
        C::AuditControl => CapabilitySet::AUDIT_CONTROL,
        C::AuditRead => CapabilitySet::AUDIT_READ,
        C::AuditWrite => CapabilitySet::AUDIT_WRITE,
        C::BlockSuspend => CapabilitySet::BLOCK_SUSPEND,
        C::Bpf => CapabilitySet::BPF,
        C::CheckpointRestore => CapabilitySet::CHECKPOINT_RESTORE,
        C::Chown => CapabilitySet::CHOWN,
        C::DacOverride => CapabilitySet::DAC_OVERRIDE,
        C::DacReadSearch => CapabilitySet::DAC_READ_SEARCH,
        C::Fowner => CapabilitySet::FOWNER,
        C::Fsetid => CapabilitySet::FSETID,
        C::IpcLock => CapabilitySet::IPC_LOCK,
        C::IpcOwner => CapabilitySet::IPC_OWNER,
        C::Kill => CapabilitySet::KILL,
        C::Lease => CapabilitySet::LEASE,
        C::LinuxImmutable => CapabilitySet::LINUX_IMMUTABLE,
        C::MacAdmin => CapabilitySet::MAC_ADMIN,
        C::MacOverride => CapabilitySet::MAC_OVERRIDE,
        C::Mknod => CapabilitySet::MKNOD,
        C::NetAdmin => CapabilitySet::NET_ADMIN,
        C::NetBindService => CapabilitySet::NET_BIND_SERVICE,
        C::NetBroadcast => CapabilitySet::NET_BROADCAST,
        C::NetRaw => CapabilitySet::NET_RAW,
        C::Perfmon => CapabilitySet::PERFMON,
        C::Setgid => CapabilitySet::SETGID,
        C::Setfcap => CapabilitySet::SETFCAP,
        C::Setpcap => CapabilitySet::SETPCAP,
        C::Setuid => CapabilitySet::SETUID,
        C::SysAdmin => CapabilitySet::SYS_ADMIN,
        C::SysBoot => CapabilitySet::SYS_BOOT,
        C::SysChroot => CapabilitySet::SYS_CHROOT,
        C::SysModule => CapabilitySet::SYS_MODULE,
        C::SysNice => CapabilitySet::SYS_NICE,
        C::SysPacct => CapabilitySet::SYS_PACCT,
        C::SysPtrace => CapabilitySet::SYS_PTRACE,
        C::SysRawio => CapabilitySet::SYS_RAWIO,
        C::SysResource => CapabilitySet::SYS_RESOURCE,
        C::SysTime => CapabilitySet::SYS_TIME,
        C::SysTtyConfig => CapabilitySet::SYS_TTY_CONFIG,
        C::Syslog => CapabilitySet::SYSLOG,
        C::WakeAlarm => CapabilitySet::WAKE_ALARM,
    }
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::Cpu,
        PosixRlimitType::RlimitFsize => Resource::Fsize,
        PosixRlimitType::RlimitData => Resource::Data,
        PosixRlimitType::RlimitStack => Resource::Stack,
        PosixRlimitType::RlimitCore => Resource::Core,
        PosixRlimitType::RlimitRss => Resource::Rss,
        PosixRlimitType::RlimitNproc => Resource::Nproc,
        PosixRlimitType::RlimitNofile => Resource::Nofile,
        PosixRlimitType::RlimitMemlock => Resource::Memlock,
        PosixRlimitType::RlimitAs => Resource::As,
        PosixRlimitType::RlimitLocks => Resource::Locks,
        PosixRlimitType::RlimitSigpending => Resource::Sigpending,
        PosixRlimitType::RlimitMsgqueue => Resource::Msgqueue,
        PosixRlimitType::RlimitNice => Resource::Nice,
        PosixRlimitType::RlimitRtprio => Resource::Rtprio,
        PosixRlimitType::RlimitRttime => Resource::Rttime,
    }
}

/// All ones is no limit (getrlimit(2), RLIM_INFINITY).
fn number(limit: u64) -> Option<u64> {
    (limit != u64::MAX).then_some(limit)
}

/// The three standard descriptors, each or /dev/null; above the numbers that they end on.
fn standard(streams: Streams) -> Result<[OwnedFd; 3]> {
    let one = |fd: Option<OwnedFd>| match fd {
        Some(fd) => above(&fd),
        None => {
            let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                .or_kind(Kind::Internal, || "open /dev/null")?;
            above(&null)
        }
    };
    Ok([one(streams.stdin)?, one(streams.stdout)?, one(streams.stderr)?])
}

pub(super) fn above(fd: impl AsFd) -> Result<OwnedFd> {
    fcntl_dupfd_cloexec(fd, ABOVE).or_kind(Kind::Unavailable, || "duplicate a descriptor")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_is_its_kernel_number() {
        assert_eq!(capability_bit(Capability::Chown).bits(), 1);
        assert_eq!(capability_bit(Capability::SysAdmin).bits(), 1 << 21);
        assert_eq!(capability_bit(Capability::CheckpointRestore).bits(), 1 << 40);
    }

    #[test]
    fn no_limit_is_all_ones() {
        assert_eq!((number(u64::MAX), number(0)), (None, Some(0)));
    }
}
