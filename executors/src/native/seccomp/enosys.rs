//! System calls that are newer than a profile: ENOSYS in place of the profile's own refusal.
//!
//! A profile is written for the calls of its time. Programs (glibc among them) try newer ones and take ENOSYS, but not EPERM,
//! for "use the old one instead". So before libseccomp's own filter each call is looked at whose number is above all that the
//! profile names for that architecture. runc does the same.
//!
//! Source: seccomp(2), `struct seccomp_data`; the kernel's networking/filter.rst.

use libseccomp::{ScmpAction, ScmpArch, ScmpSyscall};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction};

use super::{architecture, oci_name};
use crate::error::Result;

/// One instruction of classic BPF, as the kernel has it in memory.
pub(super) type Instruction = [u8; 8];

/// Offsets in `struct seccomp_data`.
pub(super) const NUMBER: u32 = 0;
pub(super) const ARCHITECTURE: u32 = 4;

/// BPF_LD | BPF_W | BPF_ABS, and so on.
pub(super) const LOAD: u16 = 0x20;
pub(super) const JUMP: u16 = 0x05;
pub(super) const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
pub(super) const IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

/// SECCOMP_RET_ERRNO | ENOSYS.
const NOT_IMPLEMENTED: u32 = 0x0005_0000 | libc::ENOSYS as u32;

/// What x32 adds to its numbers; its architecture is that of x86_64 (syscall(2)).
pub(super) const X32: u32 = 0x4000_0000;

/// libseccomp's tokens are the kernel's AUDIT_ARCH_*, but for x32.
const X86_64: u32 = Arch::ScmpArchX86_64 as u32;
const S390: [u32; 2] = [Arch::ScmpArchS390 as u32, Arch::ScmpArchS390x as u32];

/// The highest numbers that a profile names for one architecture of the kernel's.
struct Known {
    /// AUDIT_ARCH_*.
    audit: u32,
    highest: Option<u32>,
    highest_of_x32: Option<u32>,
}

/// The instructions to be put before the filter of a profile. They end where it begins.
pub(super) fn prelude(profile: &LinuxSeccomp, default: ScmpAction) -> Result<Vec<Instruction>> {
    let allows = matches!(
        profile.default_action(),
        // A tracer knows by itself what is newer than it.
        LinuxSeccompAction::ScmpActAllow | LinuxSeccompAction::ScmpActLog | LinuxSeccompAction::ScmpActTrace
    );
    if allows || default == ScmpAction::Errno(libc::ENOSYS) {
        return Ok(Vec::new());
    }
    let parts = known(profile)?.iter().map(part).collect::<Vec<_>>();
    if parts.is_empty() {
        return Ok(parts.concat());
    }
    Ok([vec![instruction(LOAD, 0, 0, ARCHITECTURE)], parts.concat()].concat())
}

fn known(profile: &LinuxSeccomp) -> Result<Vec<Known>> {
    let listed = profile.architectures().iter().flatten().map(|arch| architecture(*arch));
    // libseccomp's filter always has the host's own too.
    let listed = listed.chain([Ok(ScmpArch::Native)]);
    let mut all: Vec<Known> = Vec::new();
    for arch in listed {
        let arch = match arch? {
            ScmpArch::Native => ScmpArch::native(),
            arch => arch,
        };
        let names = profile.syscalls().iter().flatten().flat_map(|rule| rule.names());
        // Calls that an architecture has not are negative numbers of libseccomp's.
        let number =
            |name: &String| u32::try_from(ScmpSyscall::from_name_by_arch(name, arch).ok()?.as_raw_syscall()).ok();
        let Some(highest) = names.filter_map(number).max() else { continue };
        let audit = audit_of(arch);
        let at = all.iter().position(|known| known.audit == audit).unwrap_or_else(|| {
            all.push(Known { audit, highest: None, highest_of_x32: None });
            all.len() - 1
        });
        let slot = if arch == ScmpArch::X32 { &mut all[at].highest_of_x32 } else { &mut all[at].highest };
        *slot = Some(highest);
    }
    Ok(all)
}

/// The kernel's number of an architecture (AUDIT_ARCH_*).
pub(super) fn audit_of(architecture: ScmpArch) -> u32 {
    if architecture == ScmpArch::X32 { X86_64 } else { oci_name(architecture) as u32 }
}

/// The part for one architecture. Each begins with the call's architecture loaded, and goes on behind its end if it is
/// another.
fn part(known: &Known) -> Vec<Instruction> {
    let refuse_above =
        |highest: u32| vec![instruction(IF_GREATER, 0, 1, highest), instruction(RETURN, 0, 0, NOT_IMPLEMENTED)];
    let highest = known.highest.map(refuse_above).unwrap_or_default();
    let mut body = vec![instruction(LOAD, 0, 0, NUMBER)];
    // A number that such a kernel doesn't know stays that of setup(2), by which large ones are passed.
    if S390.contains(&known.audit) {
        body.extend([instruction(IF_EQUAL, 0, 1, 0), instruction(RETURN, 0, 0, NOT_IMPLEMENTED)]);
    }
    if known.audit == X86_64 {
        let of_x32 = known.highest_of_x32.map(refuse_above).unwrap_or_default();
        // Numbers of x32 are above those of x86_64; where the profile has no x32 its filter refuses them.
        body.push(instruction(IF_AT_LEAST, 0, of_x32.len() as u8 + 1, X32));
        body.extend(of_x32);
        body.push(instruction(JUMP, 0, 0, highest.len() as u32));
    }
    body.extend(highest);
    // Further parts find the architecture loaded again.
    body.push(instruction(LOAD, 0, 0, ARCHITECTURE));
    let mut part = vec![instruction(IF_EQUAL, 0, body.len() as u8, known.audit)];
    part.extend(body);
    part
}

pub(super) fn instruction(code: u16, if_true: u8, if_false: u8, value: u32) -> Instruction {
    let ([a, b], [c, d, e, f]) = (code.to_ne_bytes(), value.to_ne_bytes());
    [a, b, if_true, if_false, c, d, e, f]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Runs a program on a call; `None` where it ends without a verdict.
    fn run(program: &[Instruction], audit: u32, number: u32) -> Option<u32> {
        let (mut at, mut loaded) = (0, 0);
        while let Some([a, b, if_true, if_false, c, d, e, f]) = program.get(at).copied() {
            let (code, value) = (u16::from_ne_bytes([a, b]), u32::from_ne_bytes([c, d, e, f]));
            at += 1;
            let mut branch = |holds: bool| at += usize::from(if holds { if_true } else { if_false });
            match code {
                LOAD if value == NUMBER => loaded = number,
                LOAD => loaded = audit,
                JUMP => at += value as usize,
                IF_EQUAL => branch(loaded == value),
                IF_GREATER => branch(loaded > value),
                IF_AT_LEAST => branch(loaded >= value),
                RETURN => return Some(value),
                _ => panic!("{code:#x}"),
            }
        }
        assert_eq!(at, program.len(), "a jump behind the end");
        None
    }

    fn prelude_of(architectures: &[&str], default: &str) -> Vec<Instruction> {
        let profile: LinuxSeccomp = serde_json::from_value(json!({
            "defaultAction": default,
            "architectures": architectures,
            "syscalls": [{"names": ["read", "clone3", "no_such_call"], "action": "SCMP_ACT_ALLOW"}],
        }))
        .unwrap();
        prelude(&profile, super::super::action(profile.default_action(), None).unwrap()).unwrap()
    }

    #[test]
    fn calls_above_the_profiles_are_not_implemented() {
        const X86: u32 = Arch::ScmpArchX86 as u32;
        const AARCH64: u32 = Arch::ScmpArchAarch64 as u32;
        const CLONE3: u32 = 435;
        let refused = Some(NOT_IMPLEMENTED);
        let program =
            prelude_of(&["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_S390X"], "SCMP_ACT_ERRNO");
        for (audit, number, expected) in [
            (X86_64, 0, None),
            (X86_64, CLONE3, None),
            (X86_64, CLONE3 + 1, refused),
            (X86_64, X32 - 1, refused),
            (X86_64, X32 | CLONE3, None),
            (X86_64, X32 | (CLONE3 + 1), refused),
            (X86, CLONE3, None),
            (X86, CLONE3 + 1, refused),
            (S390[1], 0, refused),
            (S390[1], 3, None),
            (S390[1], 9999, refused),
        ] {
            assert_eq!(run(&program, audit, number), expected, "{audit:#x} {number}");
        }
        // One that the profile does not have is its filter's to refuse.
        if ScmpArch::native() != ScmpArch::Aarch64 {
            assert_eq!(run(&program, AARCH64, 9999), None);
        }
        let without_x32 = prelude_of(&["SCMP_ARCH_X86_64"], "SCMP_ACT_KILL_PROCESS");
        assert_eq!(run(&without_x32, X86_64, X32 | 9999), None);
        assert_eq!(run(&without_x32, X86_64, 9999), refused);
    }

    #[test]
    fn what_allows_by_default_needs_none() {
        for default in ["SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_TRACE"] {
            assert!(prelude_of(&["SCMP_ARCH_X86_64"], default).is_empty());
        }
    }
}
