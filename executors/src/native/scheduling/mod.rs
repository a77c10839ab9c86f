//! How the kernel is to run a process: its scheduler, I/O priority, CPUs, NUMA nodes and execution domain, as steps.
//!
//! Source: OCI runtime spec 1.3, config.md "Linux Process" (scheduler, ioPriority), config-linux.md "Personality";
//! sched_setattr(2), ioprio_set(2), personality(2).

mod affinity;
mod memory;
mod numbers;

use std::fmt;

use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxPersonalityDomain, LinuxSchedulerFlag, LinuxSchedulerPolicy, Process, Scheduler,
};
use rustix::io::Result as SysResult;

use self::affinity::ALL_CPUS;
pub(super) use self::affinity::all_cpus;
pub(crate) use self::affinity::{Affinity, BoundThread};
pub(crate) use self::memory::features;
use self::memory::memory_policy;
use self::numbers::Mask;
use super::step::Step;
use crate::error::{Result, bail};
use crate::sys::scheduling::{self as sys, SchedAttr};

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
                // As with runc.
                log::warn!("linux.personality.flags: {flag:?} is ignored: the spec knows no flags");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;
    use serde_json::{Value, json};

    fn process(field: &str, value: Value) -> Process {
        let mut process = json!({"args": ["/bin/true"], "cwd": "/", "user": {"uid": 0, "gid": 0}});
        process[field] = value;
        serde_json::from_value(process).unwrap()
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
}
