//! The CPUs that a process runs on.
//!
//! Source: OCI runtime spec 1.3, config.md "Linux Process" (execCPUAffinity); sched_setaffinity(2).

use oci_spec::runtime::Process;

use super::Scheduling;
use super::numbers::{Mask, numbers};
use crate::Kind;
use crate::error::{OrKind, Result};
use crate::native::step::Step;
use crate::sys::scheduling as sys;

/// As many CPUs as the kernel can be built for (CONFIG_NR_CPUS of x86).
pub(super) const ALL_CPUS: [u64; 128] = [u64::MAX; 128];

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

pub(in crate::native) fn all_cpus() -> Step {
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
