//! One filter of several, each for one architecture: in front comes what leads to the right one.
//!
//! Each of libseccomp's filters looks at the architecture itself and refuses others, so what is none of these is the first
//! one's to refuse.

use libseccomp::ScmpArch;

use super::enosys::{ARCHITECTURE, IF_AT_LEAST, IF_EQUAL, JUMP, LOAD, NUMBER, X32, audit_of, instruction};

/// Bytes of one instruction.
const SIZE: usize = 8;

/// Where a call of one architecture of the kernel's leads: the numbers of filters. x32 is in x86_64's.
struct Way {
    audit: u32,
    filter: Option<usize>,
    filter_of_x32: Option<usize>,
}

/// Joins the filters, of which there is one at least.
pub(super) fn combine(filters: &[(ScmpArch, Vec<u8>)]) -> Vec<u8> {
    let all = filters.iter().flat_map(|(_, filter)| filter.iter().copied());
    if let [_] = filters {
        return all.collect();
    }
    let ways = ways(filters);
    let length = |way: &Way| if way.filter_of_x32.is_some() { 5 } else { 2 };
    let mut code = vec![instruction(LOAD, 0, 0, ARCHITECTURE)];
    let begin = code.len() + ways.iter().map(length).sum::<usize>();
    let start = |filter: usize| begin + filters[..filter].iter().map(|(_, filter)| filter.len() / SIZE).sum::<usize>();
    for way in &ways {
        code.push(instruction(IF_EQUAL, 0, length(way) as u8 - 1, way.audit));
        if let Some(filter) = way.filter_of_x32 {
            code.push(instruction(LOAD, 0, 0, NUMBER));
            code.push(instruction(IF_AT_LEAST, 0, 1, X32));
            code.push(instruction(JUMP, 0, 0, (start(filter) - code.len() - 1) as u32));
        }
        let filter = way.filter.or(way.filter_of_x32).unwrap_or(0);
        code.push(instruction(JUMP, 0, 0, (start(filter) - code.len() - 1) as u32));
    }
    code.concat().into_iter().chain(all).collect()
}

fn ways(filters: &[(ScmpArch, Vec<u8>)]) -> Vec<Way> {
    let mut ways: Vec<Way> = Vec::new();
    for (number, (architecture, _)) in filters.iter().enumerate() {
        let audit = audit_of(*architecture);
        let at = ways.iter().position(|way| way.audit == audit).unwrap_or_else(|| {
            ways.push(Way { audit, filter: None, filter_of_x32: None });
            ways.len() - 1
        });
        let is_x32 = *architecture == ScmpArch::X32;
        *(if is_x32 { &mut ways[at].filter_of_x32 } else { &mut ways[at].filter }) = Some(number);
    }
    ways
}

#[cfg(test)]
mod tests {
    use super::super::{action, architectures, of_architectures};
    use super::*;
    use oci_spec::runtime::LinuxSeccomp;
    use serde_json::json;

    /// What a program answers to a call: number, architecture, and `struct seccomp_data`'s rest.
    fn run(program: &[u8], number: u32, audit: u32, args: [u64; 6]) -> u32 {
        let mut data = [number.to_ne_bytes(), audit.to_ne_bytes()].concat();
        data.extend([0; 8]);
        data.extend(args.iter().flat_map(|arg| arg.to_ne_bytes()));
        let word = |offset: u32| u32::from_ne_bytes(data[offset as usize..][..4].try_into().unwrap());
        let (mut at, mut loaded, mut stored) = (0, 0, [0; 16]);
        loop {
            let [a, b, if_true, if_false, value @ ..] = *program[at * SIZE..].first_chunk::<SIZE>().unwrap();
            let (code, value) = (u16::from_ne_bytes([a, b]), u32::from_ne_bytes(value));
            at += 1;
            let mut branch = |holds: bool| at += usize::from(if holds { if_true } else { if_false });
            match code {
                0x20 => loaded = word(value),
                // Scratch memory, BPF_AND | BPF_K.
                0x02 => stored[value as usize] = loaded,
                0x60 => loaded = stored[value as usize],
                0x54 => loaded &= value,
                0x05 => at += value as usize,
                0x15 => branch(loaded == value),
                0x25 => branch(loaded > value),
                0x35 => branch(loaded >= value),
                0x06 => return value,
                _ => panic!("{code:#x}"),
            }
        }
    }

    #[test]
    fn it_answers_as_one_filter_of_them_all() {
        let names = |range: std::ops::Range<i32>| {
            let name = |number| libseccomp::ScmpSyscall::from(number).get_name().ok();
            range.filter_map(name).collect::<Vec<_>>()
        };
        let condition = |value: u64, op: &str| json!([{"index": 0, "value": value, "op": op}]);
        let profile: LinuxSeccomp = serde_json::from_value(json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32", "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"],
            "syscalls": [
                {"names": names(0..40), "action": "SCMP_ACT_ALLOW"},
                {"names": names(50..135), "action": "SCMP_ACT_ALLOW"},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": condition(8, "SCMP_CMP_EQ")},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": condition(0xffff_ffff, "SCMP_CMP_EQ")},
                {"names": ["socket", "clone"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38, "args": condition(40, "SCMP_CMP_GE")},
                {"names": ["unshare", "socketcall", "ipc"], "action": "SCMP_ACT_KILL_PROCESS"},
            ],
        }))
        .unwrap();
        let default = action(profile.default_action(), None).unwrap();
        let all = architectures(&profile, default).unwrap();
        assert!(all.len() >= 5, "{all:?}");
        let at_once = of_architectures(&profile, default, &all).unwrap();
        let filters: Vec<_> =
            all.iter().map(|one| (*one, of_architectures(&profile, default, &[*one]).unwrap())).collect();
        let combined = combine(&filters);
        let strange = [0xdead_beef, audit_of(ScmpArch::S390X)];
        for audit in all.iter().map(|one| audit_of(*one)).chain(strange) {
            for number in (0..500).chain(X32 - 1..X32 + 600).chain([u32::MAX]) {
                for first in [0, 8, 40, 0xffff_ffff, u64::MAX] {
                    let args = [first, 1, 0, 0, 0, 0];
                    let [expected, found] = [&at_once, &combined].map(|program| run(program, number, audit, args));
                    assert_eq!(found, expected, "{audit:#x} {number} {first}");
                }
            }
        }
    }
}
