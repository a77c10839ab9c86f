//! How the kernel is to run a process: its scheduler, I/O priority, CPUs, NUMA nodes and execution domain, as steps.
//!
//! Source: OCI runtime spec 1.3, config.md "Linux Process" (scheduler, ioPriority, execCPUAffinity), config-linux.md
//! "Personality" and "Memory policy"; sched_setattr(2), ioprio_set(2), sched_setaffinity(2), personality(2),
//! set_mempolicy(2).

use std::fmt;

use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxMemoryPolicy, LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy,
    MemoryPolicyFlagType, MemoryPolicyModeType, Process, Scheduler,
};
use rustix::io::Result as SysResult;

use super::step::Step;
use crate::Kind;
use crate::error::{OrKind, Result, bail};
use crate::sys::scheduling::{self as sys, SchedAttr};

/// The highest number of a CPU or a NUMA node that is understood; runc has the same.
const MAX_NUMBER: usize = 64 * 1024;

/// As many CPUs as the kernel can be built for (CONFIG_NR_CPUS of x86).
const ALL_CPUS: [u64; 128] = [u64::MAX; 128];

/// Numbers as a bit mask, as wide as the highest needs.
pub(crate) type Mask = Box<[u64]>;

/// One such property.
pub(crate) enum Scheduling {
    /// The CPUs to run on.
    Cpus(Mask),
    /// Every CPU that the cgroup allows, whichever the shim itself is bound to.
    AllCpus,
    Scheduler(SchedAttr),
    /// IOPRIO_PRIO_VALUE of ioprio_set(2).
    IoPriority(i32),
    /// PER_*.
    Personality(u32),
    MemoryPolicy {
        /// MPOL_* with MPOL_F_*.
        mode: i32,
        nodes: Mask,
    },
}

impl Scheduling {
    /// Makes it so for this thread. System calls only.
    pub fn apply(&self) -> SysResult<()> {
        match self {
            Scheduling::Cpus(cpus) => sys::sched_setaffinity(cpus),
            // Where it may not be changed it stays the shim's, as with runc.
            Scheduling::AllCpus => sys::sched_setaffinity(&ALL_CPUS).or(Ok(())),
            Scheduling::Scheduler(attr) => sys::sched_setattr(attr),
            Scheduling::IoPriority(priority) => sys::ioprio_set(*priority),
            Scheduling::Personality(domain) => sys::personality((*domain).into()),
            Scheduling::MemoryPolicy { mode, nodes } => sys::set_mempolicy(*mode, nodes),
        }
    }
}

impl fmt::Display for Scheduling {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Scheduling::Cpus(_) => write!(f, "process.execCPUAffinity.final: sched_setaffinity"),
            Scheduling::AllCpus => write!(f, "sched_setaffinity"),
            Scheduling::Scheduler(_) => write!(f, "process.scheduler: sched_setattr"),
            Scheduling::IoPriority(_) => write!(f, "process.ioPriority: ioprio_set"),
            Scheduling::Personality(_) => write!(f, "linux.personality: personality"),
            Scheduling::MemoryPolicy { .. } => write!(f, "linux.memoryPolicy: set_mempolicy"),
        }
    }
}

/// Checks what can be judged without looking at the host.
pub(crate) fn check(process: &Process) -> Result<()> {
    of_process(process).map(drop)?;
    Affinity::of(process).map(drop)
}

/// The same for what holds for every process of a container.
pub(crate) fn check_linux(linux: &Linux) -> Result<()> {
    of_container(linux).map(drop)
}

/// What a process's own spec says, as steps.
pub(super) fn of_process(process: &Process) -> Result<impl Iterator<Item = Step> + use<>> {
    let scheduler = process.scheduler().as_ref().map(attr).transpose()?.map(Scheduling::Scheduler);
    let priority = process.io_priority().map(|io| priority(io.class(), io.priority())).transpose()?;
    Ok([scheduler, priority.map(Scheduling::IoPriority)].into_iter().flatten().map(Step::Scheduling))
}

/// What the container's spec says for all of its processes. It is not inherited by those that join it later.
#[derive(Clone, Default)]
pub(super) struct OfContainer {
    personality: Option<u32>,
    memory_policy: Option<(i32, Mask)>,
}

impl OfContainer {
    pub fn steps(&self) -> impl Iterator<Item = Step> + use<> {
        let personality = self.personality.map(Scheduling::Personality);
        let policy = self.memory_policy.clone().map(|(mode, nodes)| Scheduling::MemoryPolicy { mode, nodes });
        [personality, policy].into_iter().flatten().map(Step::Scheduling)
    }
}

pub(super) fn of_container(linux: &Linux) -> Result<OfContainer> {
    let personality = match linux.personality() {
        None => None,
        Some(personality) => {
            if let Some(flag) = personality.flags().iter().flatten().next() {
                bail!(Unimplemented, "linux.personality.flags: {flag:?}: the spec knows no flags");
            }
            // sys/personality.h.
            Some(match personality.domain() {
                LinuxPersonalityDomain::PerLinux => 0,
                LinuxPersonalityDomain::PerLinux32 => 8,
            })
        }
    };
    let memory_policy = linux.memory_policy().as_ref().map(memory_policy).transpose()?;
    Ok(OfContainer { personality, memory_policy })
}

/// The CPUs of a process that joins a container (`process.execCPUAffinity`).
#[derive(Debug, Default)]
pub(crate) struct Affinity {
    /// While it is made, before it is in the container's cgroup.
    pub initial: Option<Mask>,
    /// Once it is.
    last: Option<Mask>,
}

impl Affinity {
    pub fn of(process: &Process) -> Result<Affinity> {
        let Some(affinity) = process.exec_cpu_affinity() else { return Ok(Affinity::default()) };
        let mask = |list: Option<&String>, field| list.map_or(Ok(None), |list| numbers(list, field));
        Ok(Affinity {
            initial: mask(affinity.initial().as_ref(), "process.execCPUAffinity.initial")?,
            last: mask(affinity.cpu_affinity_final().as_ref(), "process.execCPUAffinity.final")?,
        })
    }

    /// What is to be done once the process is in its cgroup. Without any word of the spec it does not stay bound to the
    /// shim's CPUs; with an initial set only the kernel decides.
    pub fn step(self) -> Option<Step> {
        match (self.initial, self.last) {
            (_, Some(cpus)) => Some(Step::Scheduling(Scheduling::Cpus(cpus))),
            (Some(_), None) => None,
            (None, None) => Some(all_cpus()),
        }
    }
}

pub(super) fn all_cpus() -> Step {
    Step::Scheduling(Scheduling::AllCpus)
}

/// While it lives this thread, and so what it clones, runs on other CPUs.
pub(crate) struct BoundThread(Mask);

impl BoundThread {
    pub fn to(cpus: &Mask) -> Result<BoundThread> {
        let what = || "process.execCPUAffinity.initial: sched_setaffinity";
        let mut own = Box::new([0; ALL_CPUS.len()]);
        sys::sched_getaffinity(&mut own[..]).or_kind(Kind::Internal, what)?;
        sys::sched_setaffinity(cpus).or_kind(Kind::InvalidArgument, what)?;
        Ok(BoundThread(own))
    }
}

impl Drop for BoundThread {
    fn drop(&mut self) {
        if let Err(errno) = sys::sched_setaffinity(&self.0) {
            log::warn!("return to the own CPUs: {errno}");
        }
    }
}

/// sched_setattr(2)'s argument; what the kernel would ignore or misunderstand is refused, as runc does.
fn attr(scheduler: &Scheduler) -> Result<SchedAttr> {
    use LinuxSchedulerFlag as F;
    use LinuxSchedulerPolicy as P;
    let policy = scheduler.policy();
    let (nice, priority) = (scheduler.nice().unwrap_or(0), scheduler.priority().unwrap_or(0));
    let times = [*scheduler.runtime(), *scheduler.deadline(), *scheduler.period()].map(Option::unwrap_or_default);
    if matches!(policy, P::SchedOther | P::SchedBatch) && !(-20..=19).contains(&nice) {
        bail!(InvalidArgument, "process.scheduler.nice: {nice} is not in -20 to 19");
    }
    if priority != 0 && !matches!(policy, P::SchedFifo | P::SchedRr) {
        bail!(InvalidArgument, "process.scheduler.priority: {priority}: only SCHED_FIFO and SCHED_RR have one");
    }
    let Ok(priority) = u32::try_from(priority) else {
        bail!(InvalidArgument, "process.scheduler.priority: {priority} is negative")
    };
    if times != [0; 3] && !matches!(policy, P::SchedDeadline) {
        bail!(InvalidArgument, "process.scheduler: only SCHED_DEADLINE has runtime, deadline and period");
    }
    // uapi/linux/sched.h.
    let flag = |flag: &LinuxSchedulerFlag| match flag {
        F::SchedResetOnFork => 0x01,
        F::SchedFlagReclaim => 0x02,
        F::SchedFlagDLOverrun => 0x04,
        F::SchedFlagKeepPolicy => 0x08,
        F::SchedFlagKeepParams => 0x10,
        F::SchedFlagUtilClampMin => 0x20,
        F::SchedFlagUtilClampMax => 0x40,
    };
    let [runtime, deadline, period] = times;
    Ok(SchedAttr {
        size: size_of::<SchedAttr>() as u32,
        policy: match policy {
            P::SchedOther => 0,
            P::SchedFifo => 1,
            P::SchedRr => 2,
            P::SchedBatch => 3,
            P::SchedIso => 4,
            P::SchedIdle => 5,
            P::SchedDeadline => 6,
        },
        flags: scheduler.flags().iter().flatten().map(flag).fold(0, |all, flag| all | flag),
        nice,
        priority,
        runtime,
        deadline,
        period,
        ..SchedAttr::default()
    })
}

/// IOPRIO_PRIO_VALUE (uapi/linux/ioprio.h).
fn priority(class: IOPriorityClass, level: i64) -> Result<i32> {
    if !(0..=7).contains(&level) {
        bail!(InvalidArgument, "process.ioPriority.priority: {level} is not in 0 to 7");
    }
    let class = match class {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    };
    Ok(class << 13 | level as i32)
}

/// The modes of a memory policy, by their names in the spec and by the kernel's numbers (uapi/linux/mempolicy.h).
const MODES: [(MemoryPolicyModeType, i32); 7] = [
    (MemoryPolicyModeType::MpolBind, 2),
    (MemoryPolicyModeType::MpolDefault, 0),
    (MemoryPolicyModeType::MpolInterleave, 3),
    (MemoryPolicyModeType::MpolLocal, 4),
    (MemoryPolicyModeType::MpolPreferred, 1),
    (MemoryPolicyModeType::MpolPreferredMany, 5),
    (MemoryPolicyModeType::MpolWeightedInterleave, 6),
];

const MODE_FLAGS: [(MemoryPolicyFlagType, i32); 3] = [
    (MemoryPolicyFlagType::MpolFNumaBalancing, 1 << 13),
    (MemoryPolicyFlagType::MpolFRelativeNodes, 1 << 14),
    (MemoryPolicyFlagType::MpolFStaticNodes, 1 << 15),
];

/// What a memory policy may say, for the features document (features-linux.md, "MemoryPolicy").
pub(crate) fn features() -> serde_json::Value {
    serde_json::json!({
        "modes": MODES.map(|(mode, _)| mode.to_string()),
        "flags": MODE_FLAGS.map(|(flag, _)| flag.to_string()),
    })
}

/// set_mempolicy(2)'s mode and nodes.
fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<(i32, Mask)> {
    use MemoryPolicyModeType as M;
    const FIELD: &str = "linux.memoryPolicy.nodes";
    let nodes = policy.nodes().as_ref().map_or(Ok(None), |list| numbers(list, FIELD))?;
    let mode = policy.mode();
    match (mode, &nodes) {
        (M::MpolDefault | M::MpolLocal, Some(_)) => bail!(InvalidArgument, "{FIELD}: {mode} takes none"),
        // Without nodes it means those of the CPU that the process runs on.
        (M::MpolDefault | M::MpolLocal | M::MpolPreferred, _) | (_, Some(_)) => {}
        (_, None) => bail!(InvalidArgument, "{FIELD}: {mode} needs at least one"),
    }
    let number = MODES.iter().find(|(known, _)| *known == mode).map_or(0, |(_, number)| *number);
    let flags = policy.flags().iter().flatten();
    let flags = flags.filter_map(|flag| MODE_FLAGS.iter().find(|(known, _)| known == flag)).map(|(_, bit)| bit);
    Ok((flags.fold(number, |all, bit| all | bit), nodes.unwrap_or_default()))
}

/// A list of numbers and ranges, such as `0-3,7`; `None` if it is empty. Spaces and surplus commas are allowed as with runc.
fn numbers(list: &str, field: &'static str) -> Result<Option<Mask>> {
    let mut mask = Vec::new();
    for part in list.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let number = |text: &str| {
            let number = text.parse::<usize>().or_kind(Kind::InvalidArgument, || format!("{field}: {text:?}"))?;
            if number > MAX_NUMBER {
                bail!(InvalidArgument, "{field}: {number} is more than {MAX_NUMBER}");
            }
            Ok(number)
        };
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            bail!(InvalidArgument, "{field}: {part:?} ends before it begins");
        }
        mask.resize(mask.len().max(last / 64 + 1), 0u64);
        (first..=last).for_each(|number| mask[number / 64] |= 1 << (number % 64));
    }
    if mask.is_empty() && !list.trim().is_empty() {
        bail!(InvalidArgument, "{field}: {list:?} names none");
    }
    Ok(Some(mask.into_boxed_slice()).filter(|mask| !mask.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn process(field: &str, value: Value) -> Process {
        let mut process = json!({"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}});
        process[field] = value;
        serde_json::from_value(process).unwrap()
    }

    fn policy(value: Value) -> Result<(i32, Mask)> {
        memory_policy(&serde_json::from_value(value).unwrap())
    }

    #[test]
    fn numbers_are_bits() {
        let mask = |list| numbers(list, "field").unwrap();
        assert_eq!(mask("0-3,7").as_deref(), Some(&[0x8f][..]));
        assert_eq!(mask(" 64, ,1-2").as_deref(), Some(&[6, 1][..]));
        assert_eq!(mask(""), None);
        assert_eq!(mask("65536").unwrap().len(), 1025);
        for wrong in ["a", "1-", "-1", "3-1", "65537", ",", "99999999999999999999"] {
            let error = numbers(wrong, "field").expect_err(wrong);
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().starts_with("field: "), "{error}");
        }
    }

    #[test]
    fn a_scheduler_is_the_kernels_argument() {
        let scheduler = json!({"policy": "SCHED_DEADLINE", "flags": ["SCHED_FLAG_RECLAIM"],
            "runtime": 1, "deadline": 2, "period": 3});
        let attr = attr(process("scheduler", scheduler).scheduler().as_ref().unwrap()).unwrap();
        let expected =
            SchedAttr { size: 56, policy: 6, flags: 2, runtime: 1, deadline: 2, period: 3, ..SchedAttr::default() };
        assert_eq!(attr, expected);
        assert_eq!(priority(IOPriorityClass::IoprioClassIdle, 7).unwrap(), 3 << 13 | 7);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (field, value, word) in [
            ("scheduler", json!({"policy": "SCHED_OTHER", "nice": 20}), "process.scheduler.nice"),
            ("scheduler", json!({"policy": "SCHED_OTHER", "priority": 1}), "process.scheduler.priority"),
            ("scheduler", json!({"policy": "SCHED_FIFO", "priority": -1}), "process.scheduler.priority"),
            ("scheduler", json!({"policy": "SCHED_RR", "period": 1}), "process.scheduler: "),
            ("ioPriority", json!({"class": "IOPRIO_CLASS_RT", "priority": 8}), "process.ioPriority"),
            ("execCPUAffinity", json!({"final": "3-1"}), "process.execCPUAffinity.final"),
        ] {
            let error = check(&process(field, value.clone())).err().unwrap_or_else(|| panic!("{value} is taken"));
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().starts_with(word), "{error}");
        }
    }

    #[test]
    fn a_memory_policy_has_the_nodes_that_its_mode_takes() {
        let flags = json!({"mode": "MPOL_BIND", "nodes": "0,2", "flags": ["MPOL_F_STATIC_NODES"]});
        assert_eq!(policy(flags).unwrap(), (0x8002, vec![5].into()));
        assert_eq!(policy(json!({"mode": "MPOL_PREFERRED"})).unwrap(), (1, vec![].into()));
        for wrong in [json!({"mode": "MPOL_BIND"}), json!({"mode": "MPOL_LOCAL", "nodes": "0"})] {
            let error = policy(wrong).unwrap_err();
            assert!(error.to_string().starts_with("linux.memoryPolicy.nodes"), "{error}");
        }
        assert_eq!(MODES.len(), features()["modes"].as_array().unwrap().len());
    }
}
