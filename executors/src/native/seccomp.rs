//! A spec's seccomp profile → BPF, by libseccomp. Compiled once per profile and kept: it is the slowest part of a plan.
//!
//! Source: OCI runtime spec, config-linux.md "Seccomp"; seccomp(2); seccomp_rule_add(3).

use std::collections::HashMap;
use std::io::{Read, Seek};
use std::sync::{Arc, Mutex, PoisonError};

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag, LinuxSeccompOperator,
};
use sha2::{Digest, Sha256};

use super::step::Step;
use crate::Kind;
use crate::error::{OrKind, Result, bail};
use crate::sys::BpfProgram;

/// Compiled profiles by the digest of their JSON. Pods rarely have more than one or two.
static COMPILED: Mutex<Option<HashMap<[u8; 32], Arc<BpfProgram>>>> = Mutex::new(None);

/// The largest number of profiles kept.
const KEEP: usize = 16;

/// A compiled profile, as it is loaded.
#[derive(Clone)]
pub(crate) struct Filter {
    program: Arc<BpfProgram>,
    /// SECCOMP_FILTER_FLAG_*.
    flags: u32,
}

impl Filter {
    /// Compiles the profile, unless that was done before; `None` when it allows everything anyway.
    pub fn new(profile: &LinuxSeccomp) -> Result<Option<Filter>> {
        let no_rules = profile.syscalls().as_deref().unwrap_or_default().is_empty();
        if profile.default_action() == LinuxSeccompAction::ScmpActAllow && no_rules {
            return Ok(None);
        }
        if profile.listener_path().is_some() || profile.listener_metadata().is_some() {
            bail!(Unimplemented, "linux.seccomp.listenerPath: not supported");
        }
        let flags = flags(profile.flags().as_deref().unwrap_or_default());
        Ok(Some(Filter { program: program(profile)?, flags }))
    }

    /// The step that loads it.
    pub fn step(&self) -> Step {
        Step::Seccomp { program: Arc::clone(&self.program), flags: self.flags }
    }
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
fn flags(flags: &[LinuxSeccompFilterFlag]) -> u32 {
    let bit = |flag: &LinuxSeccompFilterFlag| match flag {
        LinuxSeccompFilterFlag::SeccompFilterFlagLog => libc::SECCOMP_FILTER_FLAG_LOG as u32,
        // One thread at that point: in sync by birth.
        LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
        LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW as u32,
        // Only says something about notifications, which are refused.
        LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => 0,
    };
    flags.iter().map(bit).fold(0, |all, flag| all | flag)
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
    let field = || "linux.seccomp";
    check_size(profile)?;
    let default = action(profile.default_action(), profile.default_errno_ret())?;
    let mut filter = ScmpFilterContext::new(default).or_kind(Kind::InvalidArgument, field)?;
    // The shim decides about no_new_privs by the spec's own field.
    filter.set_ctl_nnp(false).or_kind(Kind::Internal, field)?;
    // A binary tree of syscalls instead of a chain of comparisons: each call of the container pays for the filter's length.
    filter.set_ctl_optimize(2).or_kind(Kind::Internal, field)?;
    for architecture in profile.architectures().iter().flatten() {
        let architecture = self::architecture(*architecture)?;
        filter
            .add_arch(architecture)
            .or_kind(Kind::InvalidArgument, || format!("linux.seccomp.architectures: {architecture:?}"))?;
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
    let mut file = std::fs::File::from(memory);
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).or_kind(Kind::Internal, field)?;
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
        LinuxSeccompAction::ScmpActNotify => bail!(Unimplemented, "linux.seccomp: SCMP_ACT_NOTIFY is not supported"),
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

fn architecture(architecture: Arch) -> Result<ScmpArch> {
    Ok(match architecture {
        Arch::ScmpArchNative => ScmpArch::Native,
        Arch::ScmpArchX86 => ScmpArch::X86,
        Arch::ScmpArchX86_64 => ScmpArch::X8664,
        Arch::ScmpArchX32 => ScmpArch::X32,
        Arch::ScmpArchArm => ScmpArch::Arm,
        Arch::ScmpArchAarch64 => ScmpArch::Aarch64,
        Arch::ScmpArchMips => ScmpArch::Mips,
        Arch::ScmpArchMips64 => ScmpArch::Mips64,
        Arch::ScmpArchMips64n32 => ScmpArch::Mips64N32,
        Arch::ScmpArchMipsel => ScmpArch::Mipsel,
        Arch::ScmpArchMipsel64 => ScmpArch::Mipsel64,
        Arch::ScmpArchMipsel64n32 => ScmpArch::Mipsel64N32,
        Arch::ScmpArchPpc => ScmpArch::Ppc,
        Arch::ScmpArchPpc64 => ScmpArch::Ppc64,
        Arch::ScmpArchPpc64le => ScmpArch::Ppc64Le,
        Arch::ScmpArchS390 => ScmpArch::S390,
        Arch::ScmpArchS390x => ScmpArch::S390X,
        Arch::ScmpArchParisc => ScmpArch::Parisc,
        Arch::ScmpArchParisc64 => ScmpArch::Parisc64,
        Arch::ScmpArchRiscv64 => ScmpArch::Riscv64,
        other => bail!(Unimplemented, "linux.seccomp.architectures: {other} is not supported"),
    })
}

/// What a profile may say, for the features document (OCI runtime spec, features-linux.md "Seccomp"): of the names that the
/// spec has, those that are compiled.
pub(crate) fn features() -> serde_json::Value {
    const ACTIONS: [&str; 9] = [
        "SCMP_ACT_ALLOW",
        "SCMP_ACT_ERRNO",
        "SCMP_ACT_KILL",
        "SCMP_ACT_KILL_PROCESS",
        "SCMP_ACT_KILL_THREAD",
        "SCMP_ACT_LOG",
        "SCMP_ACT_NOTIFY",
        "SCMP_ACT_TRACE",
        "SCMP_ACT_TRAP",
    ];
    const OPERATORS: [&str; 7] = [
        "SCMP_CMP_EQ",
        "SCMP_CMP_GE",
        "SCMP_CMP_GT",
        "SCMP_CMP_LE",
        "SCMP_CMP_LT",
        "SCMP_CMP_MASKED_EQ",
        "SCMP_CMP_NE",
    ];
    const ARCHITECTURES: [&str; 24] = [
        "SCMP_ARCH_AARCH64",
        "SCMP_ARCH_ARM",
        "SCMP_ARCH_LOONGARCH64",
        "SCMP_ARCH_M68K",
        "SCMP_ARCH_MIPS",
        "SCMP_ARCH_MIPS64",
        "SCMP_ARCH_MIPS64N32",
        "SCMP_ARCH_MIPSEL",
        "SCMP_ARCH_MIPSEL64",
        "SCMP_ARCH_MIPSEL64N32",
        "SCMP_ARCH_PARISC",
        "SCMP_ARCH_PARISC64",
        "SCMP_ARCH_PPC",
        "SCMP_ARCH_PPC64",
        "SCMP_ARCH_PPC64LE",
        "SCMP_ARCH_RISCV64",
        "SCMP_ARCH_S390",
        "SCMP_ARCH_S390X",
        "SCMP_ARCH_SH",
        "SCMP_ARCH_SHEB",
        "SCMP_ARCH_X32",
        "SCMP_ARCH_X86",
        "SCMP_ARCH_X86_64",
        "SCMP_ARCH_NATIVE",
    ];
    const FLAGS: [&str; 4] = [
        "SECCOMP_FILTER_FLAG_LOG",
        "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
        "SECCOMP_FILTER_FLAG_TSYNC",
        "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
    ];
    fn parse<T: serde::de::DeserializeOwned>(name: &str) -> Option<T> {
        serde_json::from_value(name.into()).ok()
    }
    let compiles = |name: &str| {
        let arg = serde_json::json!({ "index": 0, "value": 1, "op": name });
        serde_json::from_value(arg).is_ok_and(|arg: LinuxSeccompArg| condition(&arg).is_ok())
    };
    let known_actions = ACTIONS.map(|name| (name, parse(name).is_some_and(|known| action(known, None).is_ok())));
    let operators: Vec<&str> = OPERATORS.into_iter().filter(|name| compiles(name)).collect();
    let known_architectures =
        ARCHITECTURES.map(|name| (name, parse(name).is_some_and(|known| architecture(known).is_ok())));
    let flags: Vec<&str> = FLAGS.into_iter().filter(|name| parse::<LinuxSeccompFilterFlag>(name).is_some()).collect();
    fn names(known: &[(&'static str, bool)]) -> Vec<&'static str> {
        known.iter().filter(|(_, known)| *known).map(|(name, _)| *name).collect()
    }
    serde_json::json!({
        "enabled": true,
        "actions": names(&known_actions),
        "operators": operators,
        "archs": names(&known_architectures),
        "knownFlags": flags,
        "supportedFlags": flags,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn profile(value: serde_json::Value) -> LinuxSeccomp {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_profile_is_compiled_once() {
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
    }

    #[test]
    fn what_is_not_done_is_named() {
        let notify = profile(json!({"defaultAction": "SCMP_ACT_NOTIFY"}));
        assert!(program(&notify).err().unwrap().to_string().contains("SCMP_ACT_NOTIFY"));
        let listener = profile(json!({"defaultAction": "SCMP_ACT_ERRNO", "listenerPath": "/a"}));
        assert!(Filter::new(&listener).err().unwrap().to_string().contains("listenerPath"));
        assert!(Filter::new(&profile(json!({"defaultAction": "SCMP_ACT_ALLOW"}))).unwrap().is_none());
    }
}
