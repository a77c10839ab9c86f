//! Which devices a container may use: rules in the words of v1, and as an eBPF program for v2.
//!
//! Source: config-linux.md "Allowed Device list"; the kernel's cgroup-v1/devices.rst and cgroup-v2.rst "Device controller".

pub(super) mod v1;

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::Kind;
use crate::error::{OrKind, Result, bail};
use crate::sys;

/// One rule; a missing number stands for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rule {
    pub allow: bool,
    /// `b` or `c`; `a` for both.
    pub kind: char,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    /// Some of `r`, `w`, `m`.
    pub access: String,
}

/// As devices.allow and devices.deny want it.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |number: Option<u32>| number.map_or("*".to_owned(), |number| number.to_string());
        write!(f, "{} {}:{} {}", self.kind, number(self.major), number(self.minor), self.access)
    }
}

/// What every container may use, whatever its spec says: making any node, and the devices that the spec supplies by
/// default (config-linux.md, "Default Devices"; the same list as runc's).
const ALWAYS: [(char, Option<u32>, Option<u32>, &str); 11] = [
    ('c', None, None, "m"),
    ('b', None, None, "m"),
    ('c', Some(1), Some(3), "rwm"),
    ('c', Some(1), Some(5), "rwm"),
    ('c', Some(1), Some(7), "rwm"),
    ('c', Some(1), Some(8), "rwm"),
    ('c', Some(1), Some(9), "rwm"),
    ('c', Some(5), Some(0), "rwm"),
    ('c', Some(5), Some(2), "rwm"),
    ('c', Some(136), None, "rwm"),
    ('c', Some(5), Some(1), "rwm"),
];

/// What no rule can say, or none of v1. Read as it stands it might allow more than was meant.
pub(crate) fn check(spec: &[LinuxDeviceCgroup], v2: bool) -> Result<()> {
    for rule in spec {
        if rule.typ() == Some(LinuxDeviceType::P) {
            bail!(InvalidArgument, "linux.resources.devices: {rule}: p is no kind of device");
        }
        if let Some(access) = rule.access().as_deref().filter(|access| access.contains(|c| !"rwm".contains(c))) {
            bail!(InvalidArgument, "linux.resources.devices: {rule}: access {access:?} is more than r, w and m");
        }
        let numbers = [rule.major(), rule.minor()];
        if numbers.iter().flatten().any(|number| *number > i64::from(u32::MAX)) {
            bail!(InvalidArgument, "linux.resources.devices: {rule}: no device has such a number");
        }
    }
    // Behind the first rule, which is ours.
    let rules = rules(spec);
    match rules.get(..=spec.len()).and_then(v1::without_effect).filter(|_| !v2) {
        Some(rule) => bail!(
            InvalidArgument,
            "linux.resources.devices: {rule}: cgroup v1 can't take a part out of an earlier rule for more devices"
        ),
        None => Ok(()),
    }
}

/// All rules in order; a later one wins. The first denies everything.
pub(crate) fn rules(spec: &[LinuxDeviceCgroup]) -> Vec<Rule> {
    let everything = Rule { allow: false, kind: 'a', major: None, minor: None, access: "rwm".to_owned() };
    let spec = spec.iter().map(|rule| Rule {
        allow: rule.allow(),
        kind: letter(rule.typ().unwrap_or_default()),
        // Negative numbers stand for all, too.
        major: rule.major().and_then(|major| u32::try_from(major).ok()),
        minor: rule.minor().and_then(|minor| u32::try_from(minor).ok()),
        access: rule.access().clone().filter(|access| !access.is_empty()).unwrap_or_else(|| "rwm".to_owned()),
    });
    let always = ALWAYS.iter().map(|(kind, major, minor, access)| Rule {
        allow: true,
        kind: *kind,
        major: *major,
        minor: *minor,
        access: (*access).to_owned(),
    });
    std::iter::once(everything).chain(spec).chain(always).collect()
}

/// The kernel's letter for a kind of device (devices.allow).
fn letter(kind: LinuxDeviceType) -> char {
    match kind {
        LinuxDeviceType::A => 'a',
        LinuxDeviceType::B => 'b',
        LinuxDeviceType::C | LinuxDeviceType::U => 'c',
        LinuxDeviceType::P => 'p',
    }
}

/// The program that decides for a v2 cgroup. It goes with the cgroup when that is removed.
pub(crate) struct Attached {
    rules: Vec<Rule>,
    program: OwnedFd,
}

impl Attached {
    /// Attaches rules to a cgroup that has none of ours.
    pub fn new(cgroup: BorrowedFd<'_>, rules: Vec<Rule>) -> Result<Attached> {
        Self::load(cgroup, rules, None)
    }

    /// Puts other rules in place of these, at one stroke: every access is decided by the ones or the others.
    pub fn replace(&self, cgroup: BorrowedFd<'_>, rules: Vec<Rule>) -> Result<Attached> {
        Self::load(cgroup, rules, Some(&self.program))
    }

    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    pub fn into_rules(self) -> Vec<Rule> {
        self.rules
    }

    fn load(cgroup: BorrowedFd<'_>, rules: Vec<Rule>, old: Option<&OwnedFd>) -> Result<Attached> {
        let what = || "linux.resources.devices: attach the device program to the cgroup";
        let program = sys::load_cgroup_device_program(&compile(&rules)).or_kind(Kind::Internal, what)?;
        sys::attach_cgroup_device_program(cgroup, program.as_fd(), old.map(AsFd::as_fd))
            .or_kind(Kind::Internal, what)?;
        Ok(Attached { rules, program })
    }
}

// Instructions of the eBPF machine (bpf_common.h, bpf.h).
const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE_REGISTER: u8 = 0xbf; // BPF_ALU64 | BPF_MOV | BPF_X
const MOVE_NUMBER: u8 = 0xb7; // BPF_ALU64 | BPF_MOV | BPF_K
const AND_NUMBER: u8 = 0x57; // BPF_ALU64 | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x77; // BPF_ALU64 | BPF_RSH | BPF_K
const JUMP_IF_NOT_NUMBER: u8 = 0x55; // BPF_JMP | BPF_JNE | BPF_K
const JUMP_IF_NOT_REGISTER: u8 = 0x5d; // BPF_JMP | BPF_JNE | BPF_X
const JUMP_IF_NUMBER: u8 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

// Registers: the result, the context, and what is read from it (struct bpf_cgroup_dev_ctx).
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// One instruction, as the kernel wants it.
fn instruction(code: u8, destination: u8, source: u8, offset: i16, number: i32) -> u64 {
    u64::from(code)
        | u64::from(destination) << 8
        | u64::from(source) << 12
        | u64::from(offset as u16) << 16
        | u64::from(number as u32) << 32
}

/// The program: 1 allows an access, 0 denies it. Rules are tried from the last, as the last that matches wins.
pub(crate) fn compile(rules: &[Rule]) -> Vec<u64> {
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE_REGISTER, ACCESS, KIND, 0, 0),
        instruction(AND_NUMBER, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules.iter().rev() {
        let mut block = Vec::new();
        match rule.kind {
            'b' => block.push((JUMP_IF_NOT_NUMBER, KIND, 0, 1)), // BPF_DEVCG_DEV_BLOCK
            'c' => block.push((JUMP_IF_NOT_NUMBER, KIND, 0, 2)), // BPF_DEVCG_DEV_CHAR
            _ => {}
        }
        let access = rule.access.chars().map(|c| match c {
            'm' => 1, // BPF_DEVCG_ACC_MKNOD
            'r' => 2,
            'w' => 4,
            _ => 0,
        });
        let access = access.fold(0, |all, bit| all | bit);
        if access != 7 {
            block.push((MOVE_REGISTER, RESULT, ACCESS, 0));
            block.push((AND_NUMBER, RESULT, 0, access));
            // To be allowed, all of what is asked for must be in the rule; to be denied, any of it.
            block.push(if rule.allow {
                (JUMP_IF_NOT_REGISTER, RESULT, ACCESS, 0)
            } else {
                (JUMP_IF_NUMBER, RESULT, 0, 0)
            });
        }
        for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
            if let Some(number) = number {
                block.push((JUMP_IF_NOT_NUMBER, register, 0, number as i32));
            }
        }
        let matches_all = block.is_empty();
        block.push((MOVE_NUMBER, RESULT, 0, i32::from(rule.allow)));
        block.push((EXIT, 0, 0, 0));
        let length = block.len();
        for (i, (code, destination, source, number)) in block.into_iter().enumerate() {
            let is_jump = [JUMP_IF_NOT_NUMBER, JUMP_IF_NOT_REGISTER, JUMP_IF_NUMBER].contains(&code);
            let offset = if is_jump { (length - i - 1) as i16 } else { 0 };
            program.push(instruction(code, destination, source, offset, number));
        }
        if matches_all {
            // The verifier refuses code that can't be reached.
            return program;
        }
    }
    program.push(instruction(MOVE_NUMBER, RESULT, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec(value: serde_json::Value) -> Vec<LinuxDeviceCgroup> {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn rules_read_as_v1_wants_them() {
        let rules = rules(&spec(json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            {"allow": true, "type": "b", "major": 8, "access": "r"},
        ])));
        let text: Vec<_> = rules.iter().take(4).map(ToString::to_string).collect();
        assert_eq!(text, ["a *:* rwm", "a *:* rwm", "c 10:229 rw", "b 8:* r"]);
    }

    /// Runs a program as the kernel would.
    fn run(program: &[u64], kind: u64, access: u64, major: u64, minor: u64) -> u64 {
        let mut registers = [0u64; 16];
        let mut at = 0;
        loop {
            let word = program[at];
            let (code, destination, source) = (word as u8, (word >> 8 & 0xf) as usize, (word >> 12 & 0xf) as usize);
            let (offset, number) = ((word >> 16) as u16 as usize, word >> 32);
            at += 1;
            match code {
                LOAD_WORD => registers[destination] = [access << 16 | kind, major, minor][offset / 4],
                MOVE_REGISTER => registers[destination] = registers[source],
                MOVE_NUMBER => registers[destination] = number,
                AND_NUMBER => registers[destination] &= number,
                SHIFT_RIGHT => registers[destination] >>= number,
                JUMP_IF_NOT_NUMBER if registers[destination] != number => at += offset,
                JUMP_IF_NOT_REGISTER if registers[destination] != registers[source] => at += offset,
                JUMP_IF_NUMBER if registers[destination] == number => at += offset,
                JUMP_IF_NOT_NUMBER | JUMP_IF_NOT_REGISTER | JUMP_IF_NUMBER => {}
                EXIT => return registers[0],
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn the_program_decides_as_the_rules_say() {
        let program = compile(&rules(&spec(json!([
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "b", "major": 8, "access": "r"},
            {"allow": true, "type": "c", "major": 10, "minor": 200, "access": "rwm"},
            {"allow": false, "type": "c", "major": 10, "minor": 200, "access": "w"},
        ]))));
        let (mknod, read, write, block, character) = (1, 2, 4, 1, 2);
        assert_eq!(run(&program, character, read | write, 1, 3), 1, "/dev/null");
        assert_eq!(run(&program, character, mknod, 99, 99), 1, "any node may be made");
        assert_eq!(run(&program, character, read, 99, 99), 0, "but not used");
        assert_eq!(run(&program, block, read, 8, 5), 1);
        assert_eq!(run(&program, block, read | write, 8, 5), 0);
        assert_eq!(run(&program, character, read, 10, 200), 1);
        assert_eq!(run(&program, character, read | write, 10, 200), 0);
        assert_eq!(run(&program, character, read, 136, 7), 1, "a terminal");
    }

    #[test]
    fn a_container_that_may_use_everything() {
        let program = compile(&rules(&spec(json!([{"allow": true, "access": "rwm"}]))));
        assert_eq!(run(&program, 1, 7, 8, 0), 1);
    }

    #[test]
    fn the_kernel_takes_the_program() {
        for rules in [rules(&[]), rules(&spec(json!([{"allow": true, "access": "rwm"}])))] {
            sys::load_cgroup_device_program(&compile(&rules)).unwrap();
        }
    }
}
