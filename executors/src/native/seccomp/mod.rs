//! A spec's seccomp profile → BPF, by libseccomp. Compiled once per profile and kept: it is the slowest part of a plan.
//!
//! Source: OCI runtime spec, config-linux.md "Seccomp"; seccomp(2); seccomp_rule_add(3).

mod agent;
mod combine;
mod enosys;
mod features;

use std::collections::HashMap;
use std::io::{Read, Seek};
use std::sync::{Arc, Mutex, PoisonError};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};
use sha2::{Digest, Sha256};

pub(crate) use self::agent::Agent;
pub(crate) use self::features::features;
use super::step::Step;
use crate::Kind;
use crate::bundle::Bundle;
use crate::error::{OrKind, Result, bail};
use crate::sys::BpfProgram;

/// Compiled profiles by the digest of their JSON.
static COMPILED: Mutex<Option<HashMap<[u8; 32], Arc<BpfProgram>>>> = Mutex::new(None);

/// The largest number of profiles kept: pods rarely have more than one or two, and each takes some kilobytes.
const KEEP: usize = 8;

/// From how many names on a filter is a binary tree of system calls instead of a chain of comparisons: each call of the
/// container pays for the way. libseccomp up to 2.5.4 makes a wrong tree of none.
const TREE: usize = 32;

/// A compiled profile, as it is loaded.
#[derive(Clone)]
pub(crate) struct Filter {
    program: Arc<BpfProgram>,
    /// SECCOMP_FILTER_FLAG_*.
    flags: u32,
    /// Who gets the notifications of a filter that has them.
    agent: Option<Arc<Agent>>,
}

impl Filter {
    /// Compiles the bundle's profile, unless that was done before; `None` when it allows everything anyway.
    pub fn of(bundle: &Bundle) -> Result<Option<Filter>> {
        let Some(profile) = bundle.linux().seccomp() else { return Ok(None) };
        let no_rules = profile.syscalls().as_deref().unwrap_or_default().is_empty();
        if profile.default_action() == LinuxSeccompAction::ScmpActAllow && no_rules {
            return Ok(None);
        }
        let agent = if notifies(profile)? { Some(Arc::new(Agent::new(profile, bundle)?)) } else { None };
        let flags = match profile.flags() {
            Some(flags) => self::flags(flags, agent.is_some()),
            // As with runc, where the spec has not even an empty list.
            None => self::flags(&[LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow], agent.is_some()),
        };
        Ok(Some(Filter { program: program(profile)?, flags, agent }))
    }

    /// Compiles a profile without looking for who gets its notifications.
    #[cfg(any(test, feature = "fuzzing"))]
    pub fn without_agent(profile: &LinuxSeccomp) -> Result<Filter> {
        let flags = flags(profile.flags().as_deref().unwrap_or_default(), notifies(profile)?);
        Ok(Filter { program: program(profile)?, flags, agent: None })
    }

    /// The step that loads it.
    pub fn step(&self) -> Step {
        Step::Seccomp { program: Arc::clone(&self.program), flags: self.flags, agent: self.agent.clone() }
    }

    /// Whether it has notifications.
    pub fn notifies(&self) -> bool {
        self.agent.is_some()
    }
}

/// Whether a profile has notifications. What the child needs before anybody can answer one can't have them, as with runc.
fn notifies(profile: &LinuxSeccomp) -> Result<bool> {
    let notify = LinuxSeccompAction::ScmpActNotify;
    if profile.default_action() == notify {
        bail!(InvalidArgument, "linux.seccomp.defaultAction: {notify} can't be the default");
    }
    let mut rules = profile.syscalls().iter().flatten().filter(|rule| rule.action() == notify).peekable();
    let notifies = rules.peek().is_some();
    if rules.any(|rule| rule.names().iter().any(|name| name == "write")) {
        bail!(InvalidArgument, "linux.seccomp.syscalls: {notify} can't be the action for write");
    }
    Ok(notifies)
}

fn program(profile: &LinuxSeccomp) -> Result<Arc<BpfProgram>> {
    let json = serde_json::to_vec(profile).or_kind(Kind::Internal, || "linux.seccomp")?;
    let digest: [u8; 32] = Sha256::digest(&json).into();
    let mut compiled = COMPILED.lock().unwrap_or_else(PoisonError::into_inner);
    let compiled = compiled.get_or_insert_default();
    if let Some(program) = compiled.get(&digest) {
        return Ok(Arc::clone(program));
    }
    let program = Arc::new(compile(profile)?);
    if compiled.len() >= KEEP {
        compiled.clear();
    }
    compiled.insert(digest, Arc::clone(&program));
    Ok(program)
}

/// SECCOMP_FILTER_FLAG_* of the spec's flags.
fn flags(flags: &[LinuxSeccompFilterFlag], notifies: bool) -> u32 {
    let listener = libc::SECCOMP_FILTER_FLAG_NEW_LISTENER as u32;
    let bit = |flag: &LinuxSeccompFilterFlag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG as u32,
        // One thread at that point: in sync by birth.
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32,
        // Only says something about notifications: the kernel refuses it without.
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv if !notifies => 0,
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
            libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV as u32
        }
    };
    flags.iter().map(bit).fold(if notifies { listener } else { 0 }, |all, flag| all | flag)
}

/// As many instructions as the kernel takes (BPF_MAXINSNS), and so no more conditions, each of which is one at least.
const MAX_INSTRUCTIONS: usize = 4096;

/// As many names of calls as are looked up. There are some 500, and real profiles name most of them once.
const MAX_NAMES: usize = 16384;

/// libseccomp takes minutes for what the kernel would refuse in the end.
fn check_size(profile: &LinuxSeccomp) -> Result<()> {
    let sizes =
        profile.syscalls().iter().flatten().map(|rule| (rule.names().len(), rule.args().iter().flatten().count()));
    let (names, conditions) = sizes.fold((0, 0), |(names, conditions), (n, c)| (names + n, conditions + n * c));
    if conditions > MAX_INSTRUCTIONS {
        bail!(InvalidArgument, "linux.seccomp: {conditions} conditions are more than the kernel takes");
    }
    if names > MAX_NAMES {
        bail!(InvalidArgument, "linux.seccomp: {names} names of calls are more than {MAX_NAMES}");
    }
    Ok(())
}

fn compile(profile: &LinuxSeccomp) -> Result<BpfProgram> {
    check_size(profile)?;
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let parts = architectures(profile, default)?
        .into_iter()
        .map(|architecture| Ok((architecture, of_architectures(profile, default, &[architecture])?)))
        .collect::<Result<Vec<_>>>()?;
    let mut bytes = enosys::prelude(profile, default)?.concat();
    bytes.extend(combine::combine(&parts));
    let program = BpfProgram::from_bytes(&bytes);
    if program.len() > MAX_INSTRUCTIONS {
        bail!(
            InvalidArgument,
            "linux.seccomp: the filter has {} instructions, more than the kernel takes",
            program.len()
        );
    }
    Ok(program)
}

/// The host's own architecture, which a filter always has, and those of the profile.
fn architectures(profile: &LinuxSeccomp, default: ScmpAction) -> Result<Vec<ScmpArch>> {
    let mut all = vec![ScmpArch::native()];
    // Only one filter of them all finds out whether they go together, as those of another byte order don't.
    let mut filter = ScmpFilterContext::new(default).or_kind(Kind::InvalidArgument, || "linux.seccomp")?;
    for name in profile.architectures().iter().flatten() {
        let architecture = match self::architecture(*name)? {
            ScmpArch::Native => continue,
            architecture => architecture,
        };
        filter
            .add_arch(architecture)
            .or_kind(Kind::InvalidArgument, || format!("linux.seccomp.architectures: {architecture:?}"))?;
        if !all.contains(&architecture) {
            all.push(architecture);
        }
    }
    Ok(all)
}

/// libseccomp's filter for these architectures. Its time grows with the square of what is in one filter and more: so each
/// architecture has one of its own.
fn of_architectures(profile: &LinuxSeccomp, default: ScmpAction, architectures: &[ScmpArch]) -> Result<Vec<u8>> {
    let field = || "linux.seccomp";
    let mut filter = ScmpFilterContext::new(default).or_kind(Kind::InvalidArgument, field)?;
    // The shim decides about no_new_privs by the spec's own field.
    filter.set_ctl_nnp(false).or_kind(Kind::Internal, field)?;
    if profile.syscalls().iter().flatten().map(|rule| rule.names().len()).sum::<usize>() > TREE {
        filter.set_ctl_optimize(2).or_kind(Kind::Internal, field)?;
    }
    for architecture in architectures {
        filter.add_arch(*architecture).or_kind(Kind::Internal, field)?;
    }
    if !architectures.contains(&ScmpArch::native()) {
        filter.remove_arch(ScmpArch::native()).or_kind(Kind::Internal, field)?;
    }
    for rule in profile.syscalls().iter().flatten() {
        let action = action(rule.action(), rule.errno_ret())?;
        // A rule that says the default again is refused by libseccomp, and needless.
        if action == default {
            continue;
        }
        let conditions = rule.args().iter().flatten().map(condition).collect::<Result<Vec<_>>>()?;
        for name in rule.names() {
            // Names that this libseccomp doesn't know are skipped, as profiles are written for all kernels (so does runc).
            let Ok(syscall) = ScmpSyscall::from_name(name) else { continue };
            add(&mut filter, action, syscall, rule.args().as_deref().unwrap_or_default(), &conditions)
                .or_kind(Kind::InvalidArgument, || format!("linux.seccomp.syscalls: {name}"))?;
        }
    }
    let memory = rustix::fs::memfd_create("seccomp", rustix::fs::MemfdFlags::CLOEXEC).or_kind(Kind::Internal, field)?;
    filter.export_bpf(&memory).or_kind(Kind::Internal, field)?;
    let (mut file, mut bytes) = (std::fs::File::from(memory), Vec::new());
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).or_kind(Kind::Internal, field)?;
    Ok(bytes)
}

/// Adds one rule. Several conditions on the same argument can't be one rule for libseccomp, so they become rules of their own.
fn add(
    filter: &mut ScmpFilterContext,
    action: ScmpAction,
    syscall: ScmpSyscall,
    args: &[LinuxSeccompArg],
    conditions: &[ScmpArgCompare],
) -> std::result::Result<(), libseccomp::error::SeccompError> {
    let repeated = args.iter().enumerate().any(|(i, arg)| args[..i].iter().any(|other| other.index() == arg.index()));
    if !repeated {
        return filter.add_rule_conditional(action, syscall, conditions).map(drop);
    }
    for condition in conditions {
        filter.add_rule_conditional(action, syscall, std::slice::from_ref(condition))?;
    }
    Ok(())
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction> {
    if let Some(errno) = errno
        && !matches!(action, LinuxSeccompAction::ScmpActErrno | LinuxSeccompAction::ScmpActTrace)
    {
        bail!(InvalidArgument, "linux.seccomp: errnoRet {errno}: {action} returns none");
    }
    // What a spec doesn't say is EPERM.
    let errno = errno.unwrap_or(libc::EPERM as u32);
    Ok(match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => ScmpAction::KillThread,
        LinuxSeccompAction::ScmpActKillProcess => ScmpAction::KillProcess,
        LinuxSeccompAction::ScmpActTrap => ScmpAction::Trap,
        LinuxSeccompAction::ScmpActErrno => ScmpAction::Errno(errno as i32),
        LinuxSeccompAction::ScmpActTrace => {
            let value =
                u16::try_from(errno).or_kind(Kind::InvalidArgument, || format!("linux.seccomp: errnoRet {errno}"))?;
            ScmpAction::Trace(value)
        }
        LinuxSeccompAction::ScmpActLog => ScmpAction::Log,
        LinuxSeccompAction::ScmpActAllow => ScmpAction::Allow,
        LinuxSeccompAction::ScmpActNotify => ScmpAction::Notify,
    })
}

fn condition(arg: &LinuxSeccompArg) -> Result<ScmpArgCompare> {
    let Ok(index) = u32::try_from(arg.index()) else {
        bail!(InvalidArgument, "linux.seccomp: argument {}", arg.index())
    };
    if index > 5 {
        bail!(InvalidArgument, "linux.seccomp: there is no argument {index}");
    }
    // A masked comparison has the mask first: (argument & value) == valueTwo.
    let (operator, value) = match arg.op() {
        LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, arg.value()),
        LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, arg.value()),
        LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, arg.value()),
        LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, arg.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            (ScmpCompareOp::MaskedEqual(arg.value()), arg.value_two().unwrap_or(0))
        }
    };
    Ok(ScmpArgCompare::new(index, operator, value))
}

/// The architectures, as the spec and as libseccomp call them.
const ARCHITECTURES: [(Arch, ScmpArch); 24] = [
    (Arch::ScmpArchAarch64, ScmpArch::Aarch64),
    (Arch::ScmpArchArm, ScmpArch::Arm),
    (Arch::ScmpArchLoongarch64, ScmpArch::Loongarch64),
    (Arch::ScmpArchM68k, ScmpArch::M68k),
    (Arch::ScmpArchMips, ScmpArch::Mips),
    (Arch::ScmpArchMips64, ScmpArch::Mips64),
    (Arch::ScmpArchMips64n32, ScmpArch::Mips64N32),
    (Arch::ScmpArchMipsel, ScmpArch::Mipsel),
    (Arch::ScmpArchMipsel64, ScmpArch::Mipsel64),
    (Arch::ScmpArchMipsel64n32, ScmpArch::Mipsel64N32),
    (Arch::ScmpArchNative, ScmpArch::Native),
    (Arch::ScmpArchParisc, ScmpArch::Parisc),
    (Arch::ScmpArchParisc64, ScmpArch::Parisc64),
    (Arch::ScmpArchPpc, ScmpArch::Ppc),
    (Arch::ScmpArchPpc64, ScmpArch::Ppc64),
    (Arch::ScmpArchPpc64le, ScmpArch::Ppc64Le),
    (Arch::ScmpArchRiscv64, ScmpArch::Riscv64),
    (Arch::ScmpArchS390, ScmpArch::S390),
    (Arch::ScmpArchS390x, ScmpArch::S390X),
    (Arch::ScmpArchSh, ScmpArch::Sh),
    (Arch::ScmpArchSheb, ScmpArch::Sheb),
    (Arch::ScmpArchX32, ScmpArch::X32),
    (Arch::ScmpArchX86, ScmpArch::X86),
    (Arch::ScmpArchX86_64, ScmpArch::X8664),
];

fn architecture(name: Arch) -> Result<ScmpArch> {
    match ARCHITECTURES.iter().find(|(known, _)| *known == name) {
        Some((_, architecture)) => Ok(*architecture),
        None => bail!(Unimplemented, "linux.seccomp.architectures: {name} is not supported"),
    }
}

/// The spec's name for an architecture; the table has all.
fn oci_name(architecture: ScmpArch) -> Arch {
    let found = ARCHITECTURES.iter().find(|(_, known)| *known == architecture);
    found.map_or(Arch::ScmpArchNative, |(name, _)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn profile(value: serde_json::Value) -> LinuxSeccomp {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_profile_is_compiled_once_and_a_few_are_kept() {
        let profile = profile(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [
                {"names": ["read", "write", "not_a_syscall"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}]},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
            ],
        }));
        let first = program(&profile).unwrap();
        assert!(first.len() > 10);
        assert!(Arc::ptr_eq(&first, &program(&profile).unwrap()));
        for errno in 1..=2 * KEEP {
            let other = json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": errno});
            program(&serde_json::from_value(other).unwrap()).unwrap();
        }
        assert!(COMPILED.lock().unwrap().as_ref().unwrap().len() <= KEEP);
    }

    #[test]
    fn what_is_wrong_is_named() {
        let compiled = |value| {
            let profile = profile(value);
            notifies(&profile)?;
            program(&profile)
        };
        for (value, word) in [
            (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "defaultAction"),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW",
                    "syscalls": [{"names": ["read", "write"], "action": "SCMP_ACT_NOTIFY"}]}),
                "write",
            ),
            (json!({"defaultAction": "SCMP_ACT_KILL", "defaultErrnoRet": 1}), "errnoRet 1"),
            (
                json!({"defaultAction": "SCMP_ACT_ERRNO",
                    "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW", "args":
                        [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]}]}),
                "no argument 6",
            ),
        ] {
            let error = compiled(value.clone()).err().unwrap_or_else(|| panic!("{value} is taken"));
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
