//! Limits of CPU time, and which CPUs and memory nodes to use.

use cgroups_rs::fs::Controllers;
use oci_spec::runtime::LinuxCpu;

use super::{List, Missing};
use crate::error::{Result, bail};

/// What v1 can do as cpu.shares.
const SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

impl List<'_> {
    pub(super) fn cpu(&mut self, cpu: &LinuxCpu) -> Result<()> {
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
            if self.v2 {
                self.add("linux.resources.cpu.shares", Controllers::Cpu, "cpu.weight", weight_of_shares(shares));
            } else {
                // The kernel would take the nearest number that it can do.
                if !SHARES.contains(&shares) {
                    let (least, most) = SHARES.into_inner();
                    bail!(InvalidArgument, "linux.resources.cpu.shares: {shares} is not from {least} to {most}");
                }
                self.add("linux.resources.cpu.shares", Controllers::Cpu, "cpu.shares", shares);
            }
        }
        self.quota(cpu)?;
        if let Some(idle) = cpu.idle() {
            if !(0..=1).contains(&idle) {
                bail!(InvalidArgument, "linux.resources.cpu.idle: {idle} is neither 0 nor 1");
            }
            let missing = if idle == 0 { Missing::Same } else { Missing::Error };
            self.add_or("linux.resources.cpu.idle", Controllers::Cpu, "cpu.idle", idle, missing);
        }
        for (field, file, value) in [
            (
                "linux.resources.cpu.realtimePeriod",
                "cpu.rt_period_us",
                cpu.realtime_period().map(|value| value.to_string()),
            ),
            (
                "linux.resources.cpu.realtimeRuntime",
                "cpu.rt_runtime_us",
                cpu.realtime_runtime().map(|value| value.to_string()),
            ),
        ] {
            let Some(value) = value.filter(|value| value != "0") else { continue };
            if self.v2 {
                bail!(Unimplemented, "{field}: cgroup v2 has no realtime limits");
            }
            self.add(field, Controllers::Cpu, file, value);
        }
        for (field, file, value) in [
            ("linux.resources.cpu.cpus", "cpuset.cpus", cpu.cpus()),
            ("linux.resources.cpu.mems", "cpuset.mems", cpu.mems()),
        ] {
            let Some(value) = value.as_deref().filter(|value| !value.is_empty()) else { continue };
            if !value.bytes().all(|byte| byte.is_ascii_digit() || b",-".contains(&byte)) {
                bail!(InvalidArgument, "{field}: {value:?} is no list of numbers, such as 0-2,7");
            }
            self.add(field, Controllers::CpuSet, file, value);
        }
        Ok(())
    }

    fn quota(&mut self, cpu: &LinuxCpu) -> Result<()> {
        let (quota, period) = (cpu.quota().filter(|quota| *quota != 0), cpu.period().filter(|period| *period != 0));
        if let Some(quota) = quota.filter(|quota| *quota < -1) {
            bail!(InvalidArgument, "linux.resources.cpu.quota: {quota} is negative");
        }
        if self.v2 {
            if quota.is_some() || period.is_some() {
                // Both are in one file: one that is not given keeps its value.
                let now = self.now("cpu.max").unwrap_or_default();
                let mut now = now.split_ascii_whitespace();
                let (old_quota, old_period) = (now.next().unwrap_or("max"), now.next().unwrap_or("100000"));
                let quota = match quota {
                    Some(-1) => "max".to_owned(),
                    Some(quota) => quota.to_string(),
                    None => old_quota.to_owned(),
                };
                let period = period.map_or(old_period.to_owned(), |period| period.to_string());
                let field = "linux.resources.cpu.quota, linux.resources.cpu.period";
                self.add(field, Controllers::Cpu, "cpu.max", format!("{quota} {period}"));
            }
        } else {
            if let Some(period) = period {
                self.add("linux.resources.cpu.period", Controllers::Cpu, "cpu.cfs_period_us", period);
            }
            if let Some(quota) = quota {
                self.add("linux.resources.cpu.quota", Controllers::Cpu, "cpu.cfs_quota_us", quota);
            }
        }
        if let Some(burst) = cpu.burst() {
            let file = if self.v2 { "cpu.max.burst" } else { "cpu.cfs_burst_us" };
            let missing = if burst == 0 { Missing::Same } else { Missing::Error };
            self.add_or("linux.resources.cpu.burst", Controllers::Cpu, file, burst, missing);
        }
        Ok(())
    }
}

/// CPU shares (2 to 262144, 1024 by default) as a v2 weight (1 to 10000, 100 by default), through the three points
/// (2, 1), (1024, 100) and (262144, 10000): what runc, crun and the kubelet agreed on in 2025.
fn weight_of_shares(shares: u64) -> u64 {
    if shares <= 2 {
        return 1;
    }
    if shares >= 262_144 {
        return 10_000;
    }
    let l = (shares as f64).log2();
    let exponent = (l * l + 125.0 * l) / 612.0 - 7.0 / 34.0;
    10f64.powf(exponent).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_and_weights_meet_at_their_defaults_and_ends() {
        assert_eq!([2, 1024, 262_144].map(weight_of_shares), [1, 100, 10_000]);
    }
}
