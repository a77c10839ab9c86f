//! A spec's resources → the cgroup files to write: pure.
//!
//! Source: OCI runtime spec, config-linux.md "Control groups"; the kernel's cgroup-v1 and cgroup-v2 documents.

use cgroups_rs::fs::Controllers;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxDeviceCgroup, LinuxDeviceType, LinuxMemory, LinuxResources};

use crate::error::{Result, bail};

/// One file to write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// The field of the spec, for errors.
    pub field: &'static str,
    /// Whose file it is; `None` on v2, where all are in one folder.
    pub controller: Option<Controllers>,
    pub file: String,
    pub value: String,
    pub missing: Missing,
}

/// What it means that a cgroup lacks the file of a [`Setting`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The kernel can't do what the spec asks for.
    Error,
    /// There is nothing to limit.
    Same,
    /// Another file has the same effect.
    Instead { file: String, value: String },
}

/// Every file to write, in order.
///
/// # Errors
/// The field that can't be done on this version of cgroups.
pub(crate) fn settings(resources: Option<&LinuxResources>, v2: bool) -> Result<Vec<Setting>> {
    let mut list = List { v2, settings: Vec::new() };
    if !v2 {
        list.devices(resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default());
    }
    let Some(resources) = resources else { return Ok(list.settings) };
    if let Some(memory) = resources.memory() {
        list.memory(memory)?;
    }
    if let Some(cpu) = resources.cpu() {
        list.cpu(cpu)?;
    }
    if let Some(pids) = resources.pids() {
        // Zero is what clients send that mean no limit (runc reads it so too).
        let limit = if pids.limit() > 0 { pids.limit().to_string() } else { "max".to_owned() };
        list.add("linux.resources.pids.limit", Controllers::Pids, "pids.max", limit);
    }
    if let Some(block_io) = resources.block_io() {
        list.block_io(block_io)?;
    }
    for limit in resources.hugepage_limits().iter().flatten() {
        let size = limit.page_size();
        let (v1, v2) = (format!("hugetlb.{size}.limit_in_bytes"), format!("hugetlb.{size}.max"));
        let file = if list.v2 { v2 } else { v1 };
        list.add("linux.resources.hugepageLimits", Controllers::HugeTlb, &file, limit.limit());
    }
    if let Some(network) = resources.network() {
        if v2 {
            bail!(Unimplemented, "linux.resources.network: cgroup v2 has no network controllers");
        }
        if let Some(class) = network.class_id() {
            list.add("linux.resources.network.classID", Controllers::NetCls, "net_cls.classid", class);
        }
        for priority in network.priorities().iter().flatten() {
            let value = format!("{} {}", priority.name(), priority.priority());
            list.add("linux.resources.network.priorities", Controllers::NetPrio, "net_prio.ifpriomap", value);
        }
    }
    for (device, limit) in resources.rdma().iter().flatten() {
        let max = |value: Option<u32>| value.map_or("max".to_owned(), |value| value.to_string());
        let value = format!("{device} hca_handle={} hca_object={}", max(limit.hca_handles()), max(limit.hca_objects()));
        list.add("linux.resources.rdma", Controllers::Rdma, "rdma.max", value);
    }
    for (file, value) in resources.unified().iter().flatten() {
        if !v2 {
            bail!(InvalidArgument, "linux.resources.unified: {file}: this host has cgroup v1");
        }
        if file.contains('/') || !file.contains('.') {
            bail!(InvalidArgument, "linux.resources.unified: {file} is not a cgroup file");
        }
        list.settings.push(Setting {
            field: "linux.resources.unified",
            controller: None,
            file: file.clone(),
            value: value.clone(),
            missing: Missing::Error,
        });
    }
    Ok(list.settings)
}

struct List {
    v2: bool,
    settings: Vec<Setting>,
}

impl List {
    fn add(&mut self, field: &'static str, controller: Controllers, file: &str, value: impl ToString) {
        self.add_or(field, controller, file, value, Missing::Error);
    }

    fn add_or(
        &mut self,
        field: &'static str,
        controller: Controllers,
        file: &str,
        value: impl ToString,
        missing: Missing,
    ) {
        let controller = (!self.v2).then_some(controller);
        self.settings.push(Setting { field, controller, file: file.to_owned(), value: value.to_string(), missing });
    }

    fn memory(&mut self, memory: &LinuxMemory) -> Result<()> {
        let v2 = self.v2;
        // -1 is no limit, and 0 the same as not set.
        let set = |value: Option<i64>| value.filter(|value| *value != 0);
        let text = |value: i64| if value < 0 && v2 { "max".to_owned() } else { value.to_string() };
        let (limit, swap) = (set(memory.limit()), set(memory.swap()));
        if let (Some(limit @ 1..), Some(swap @ 1..)) = (limit, swap)
            && swap < limit
        {
            bail!(InvalidArgument, "linux.resources.memory.swap: {swap} is below the memory limit {limit}");
        }
        if let Some(limit) = limit {
            let file = if v2 { "memory.max" } else { "memory.limit_in_bytes" };
            self.add("linux.resources.memory.limit", Controllers::Mem, file, text(limit));
        }
        if let Some(swap) = swap {
            // The spec's number is memory and swap together, that of v2 swap alone.
            if v2 {
                let value = match limit {
                    _ if swap < 0 => "max".to_owned(),
                    Some(limit) if limit > 0 => (swap - limit).to_string(),
                    _ => bail!(InvalidArgument, "linux.resources.memory.swap: set without a memory limit"),
                };
                // A kernel without swap accounting has no swap either to allow or to deny.
                let missing = if value == "0" || value == "max" { Missing::Same } else { Missing::Error };
                self.add_or("linux.resources.memory.swap", Controllers::Mem, "memory.swap.max", value, missing);
            } else {
                self.add("linux.resources.memory.swap", Controllers::Mem, "memory.memsw.limit_in_bytes", swap);
            }
        }
        if let Some(reservation) = set(memory.reservation()) {
            let file = if v2 { "memory.low" } else { "memory.soft_limit_in_bytes" };
            self.add("linux.resources.memory.reservation", Controllers::Mem, file, text(reservation));
        }
        if memory.disable_oom_killer() == Some(true) {
            if v2 {
                bail!(Unimplemented, "linux.resources.memory.disableOOMKiller: cgroup v2 has no such switch");
            }
            self.add("linux.resources.memory.disableOOMKiller", Controllers::Mem, "memory.oom_control", 1);
        }
        if let Some(swappiness) = memory.swappiness() {
            if swappiness > 100 {
                bail!(InvalidArgument, "linux.resources.memory.swappiness: {swappiness} is above 100");
            }
            if v2 {
                bail!(Unimplemented, "linux.resources.memory.swappiness: cgroup v2 has no such switch");
            }
            self.add("linux.resources.memory.swappiness", Controllers::Mem, "memory.swappiness", swappiness);
        }
        // Kernel memory limits are gone from the kernel; the spec says they may be ignored (config-linux.md, "Memory"), and
        // clients still send them.
        Ok(())
    }

    fn cpu(&mut self, cpu: &LinuxCpu) -> Result<()> {
        if let Some(shares) = cpu.shares().filter(|shares| *shares != 0) {
            if self.v2 {
                self.add("linux.resources.cpu.shares", Controllers::Cpu, "cpu.weight", weight_of_shares(shares));
            } else {
                self.add("linux.resources.cpu.shares", Controllers::Cpu, "cpu.shares", shares);
            }
        }
        let (quota, period) = (cpu.quota().filter(|quota| *quota != 0), cpu.period().filter(|period| *period != 0));
        if self.v2 {
            if quota.is_some() || period.is_some() {
                let quota = quota.filter(|quota| *quota > 0).map_or("max".to_owned(), |quota| quota.to_string());
                let value = format!("{quota} {}", period.unwrap_or(100_000));
                self.add("linux.resources.cpu.quota", Controllers::Cpu, "cpu.max", value);
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
            self.add("linux.resources.cpu.burst", Controllers::Cpu, file, burst);
        }
        if let Some(idle) = cpu.idle() {
            self.add("linux.resources.cpu.idle", Controllers::Cpu, "cpu.idle", idle);
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
            if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
                self.add(field, Controllers::CpuSet, file, value);
            }
        }
        Ok(())
    }

    fn block_io(&mut self, block_io: &LinuxBlockIo) -> Result<()> {
        if block_io.leaf_weight().is_some_and(|weight| weight != 0) {
            bail!(Unimplemented, "linux.resources.blockIO.leafWeight: gone from the kernel");
        }
        if let Some(weight) = block_io.weight().filter(|weight| *weight != 0) {
            // BFQ's file has the same range in both versions; without BFQ v2 has a weight of its own.
            let (file, missing) = if self.v2 {
                let value = format!("default {}", weight_of_block_io(weight));
                ("io.bfq.weight", Missing::Instead { file: "io.weight".to_owned(), value })
            } else {
                ("blkio.bfq.weight", Missing::Error)
            };
            self.add_or("linux.resources.blockIO.weight", Controllers::BlkIo, file, weight, missing);
        }
        for device in block_io.weight_device().iter().flatten() {
            let Some(weight) = device.weight() else { continue };
            let file = if self.v2 { "io.bfq.weight" } else { "blkio.bfq.weight_device" };
            let value = format!("{}:{} {weight}", device.major(), device.minor());
            self.add("linux.resources.blockIO.weightDevice", Controllers::BlkIo, file, value);
        }
        let throttles = [
            (
                "linux.resources.blockIO.throttleReadBpsDevice",
                "blkio.throttle.read_bps_device",
                "rbps",
                block_io.throttle_read_bps_device(),
            ),
            (
                "linux.resources.blockIO.throttleWriteBpsDevice",
                "blkio.throttle.write_bps_device",
                "wbps",
                block_io.throttle_write_bps_device(),
            ),
            (
                "linux.resources.blockIO.throttleReadIOPSDevice",
                "blkio.throttle.read_iops_device",
                "riops",
                block_io.throttle_read_iops_device(),
            ),
            (
                "linux.resources.blockIO.throttleWriteIOPSDevice",
                "blkio.throttle.write_iops_device",
                "wiops",
                block_io.throttle_write_iops_device(),
            ),
        ];
        for (field, v1, v2, devices) in throttles {
            for device in devices.iter().flatten() {
                let (major, minor, rate) = (device.major(), device.minor(), device.rate());
                let (file, value) = if self.v2 {
                    ("io.max", format!("{major}:{minor} {v2}={rate}"))
                } else {
                    (v1, format!("{major}:{minor} {rate}"))
                };
                self.add(field, Controllers::BlkIo, file, value);
            }
        }
        Ok(())
    }

    /// Device rules of v1: everything denied first, then the spec's in their order, then what every container may use.
    fn devices(&mut self, rules: &[LinuxDeviceCgroup]) {
        for rule in super::devices::rules(rules) {
            let file = if rule.allow { "devices.allow" } else { "devices.deny" };
            self.add("linux.resources.devices", Controllers::Devices, file, rule);
        }
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

/// A weight of block I/O (10 to 1000) as one of v2 (1 to 10000), in proportion: the conversion of runc and
/// crun.
fn weight_of_block_io(weight: u16) -> u32 {
    1 + u32::from(weight.clamp(10, 1000) - 10) * 9999 / 990
}

/// The kernel's letter for a kind of device (devices.allow).
pub(super) fn letter(kind: LinuxDeviceType) -> char {
    match kind {
        LinuxDeviceType::A => 'a',
        LinuxDeviceType::B => 'b',
        LinuxDeviceType::C | LinuxDeviceType::U => 'c',
        LinuxDeviceType::P => 'p',
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn files(resources: serde_json::Value, v2: bool) -> Vec<(String, String)> {
        let resources: LinuxResources = serde_json::from_value(resources).unwrap();
        let settings = settings(Some(&resources), v2).unwrap();
        let limits = settings.into_iter().filter(|setting| !setting.file.starts_with("devices."));
        limits.map(|setting| (setting.file, setting.value)).collect()
    }

    fn pair(file: &str, value: &str) -> (String, String) {
        (file.to_owned(), value.to_owned())
    }

    #[test]
    fn limits_on_v1() {
        let resources = json!({
            "memory": {"limit": 1048576, "swap": 2097152, "reservation": 4096},
            "cpu": {"shares": 512, "quota": 20000, "period": 100000, "cpus": "0-1"},
            "pids": {"limit": 10},
        });
        assert_eq!(
            files(resources, false),
            [
                pair("memory.limit_in_bytes", "1048576"),
                pair("memory.memsw.limit_in_bytes", "2097152"),
                pair("memory.soft_limit_in_bytes", "4096"),
                pair("cpu.shares", "512"),
                pair("cpu.cfs_period_us", "100000"),
                pair("cpu.cfs_quota_us", "20000"),
                pair("cpuset.cpus", "0-1"),
                pair("pids.max", "10"),
            ]
        );
    }

    #[test]
    fn limits_on_v2() {
        let resources = json!({
            "memory": {"limit": 1048576, "swap": 2097152},
            "cpu": {"shares": 1024, "quota": -1, "period": 50000},
            "pids": {"limit": 0},
            "unified": {"memory.high": "1000"},
        });
        assert_eq!(
            files(resources, true),
            [
                pair("memory.max", "1048576"),
                pair("memory.swap.max", "1048576"),
                pair("cpu.weight", "100"),
                pair("cpu.max", "max 50000"),
                pair("pids.max", "max"),
                pair("memory.high", "1000"),
            ]
        );
    }

    #[test]
    fn shares_and_weights_meet_at_their_defaults_and_ends() {
        assert_eq!([2, 1024, 262_144].map(weight_of_shares), [1, 100, 10_000]);
    }

    #[test]
    fn what_a_cgroup_may_lack() {
        let missing = |resources| {
            let resources: LinuxResources = serde_json::from_value(resources).unwrap();
            settings(Some(&resources), true).unwrap().pop().unwrap().missing
        };
        assert_eq!(missing(json!({"memory": {"limit": 4096, "swap": 4096}})), Missing::Same);
        assert_eq!(missing(json!({"memory": {"limit": 4096, "swap": 8192}})), Missing::Error);
        let instead = Missing::Instead { file: "io.weight".to_owned(), value: "default 4950".to_owned() };
        assert_eq!(missing(json!({"blockIO": {"weight": 500}})), instead);
        assert_eq!([10, 1000].map(weight_of_block_io), [1, 10_000]);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (resources, v2, word) in [
            (json!({"memory": {"limit": 2, "swap": 1}}), false, "memory.swap"),
            (json!({"memory": {"swappiness": 101}}), false, "swappiness"),
            (json!({"unified": {"memory.high": "1"}}), false, "unified"),
            (json!({"unified": {"../x": "1"}}), true, "unified"),
            (json!({"network": {"classID": 1}}), true, "network"),
        ] {
            let resources: LinuxResources = serde_json::from_value(resources).unwrap();
            assert!(settings(Some(&resources), v2).unwrap_err().to_string().contains(word));
        }
    }
}
