//! A spec's resources → the cgroup files to write: pure.
//!
//! Source: OCI runtime spec, config-linux.md "Control groups"; the kernel's cgroup-v1 and cgroup-v2 documents.

mod cpu;
mod io;
mod memory;

use cgroups_rs::fs::Controllers;
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};

use super::devices;
use crate::error::Result;

/// One file to write.
#[derive(Clone, Debug, PartialEq, Eq)]
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The kernel can't do what the spec asks for.
    Error,
    /// There is nothing to limit.
    Same,
    /// Another file has the same effect.
    Instead { file: String, value: String },
}

/// Every file to write to a new cgroup, in order.
///
/// # Errors
/// The field that is wrong, or that can't be done on this version of cgroups.
pub(crate) fn settings(resources: Option<&LinuxResources>, v2: bool) -> Result<Vec<Setting>> {
    let mut list = List { v2, now: None, settings: Vec::new() };
    let rules = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
    devices::check(rules, v2)?;
    if !v2 {
        list.devices(rules);
    }
    if let Some(resources) = resources {
        list.resources(resources)?;
    }
    Ok(list.settings)
}

/// Whether at most one process may be made in the cgroup.
pub(crate) fn leave_one_process(settings: &[Setting]) -> bool {
    let limit = settings.iter().rev().find(|setting| setting.file == "pids.max");
    limit.is_some_and(|setting| matches!(setting.value.trim(), "0" | "1"))
}

/// Every file to write to change a cgroup, but for its device rules; what is not set, or zero, stays as it is. `now` reads a
/// file of v2's as it is at present: some hold what the spec has in two fields.
///
/// Limits of memory come last: a process may be killed for them, which nothing can undo.
///
/// # Errors
/// As for [`settings`].
pub(crate) fn changes(resources: &LinuxResources, v2: bool, now: &Now<'_>) -> Result<Vec<Setting>> {
    let mut list = List { v2, now: Some(now), settings: Vec::new() };
    devices::check(resources.devices().as_deref().unwrap_or_default(), v2)?;
    list.resources(resources)?;
    list.settings.sort_by_key(|setting| setting.file.starts_with("memory."));
    Ok(list.settings)
}

/// Reads a file of a cgroup as it is at present.
pub(crate) type Now<'a> = dyn Fn(&str) -> Option<String> + 'a;

struct List<'a> {
    v2: bool,
    /// Set for a change.
    now: Option<&'a Now<'a>>,
    settings: Vec<Setting>,
}

impl List<'_> {
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

    /// The present content of a v2 file, for a change.
    fn now(&self, file: &str) -> Option<String> {
        Some(self.now?(file)?.trim().to_owned())
    }

    fn resources(&mut self, resources: &LinuxResources) -> Result<()> {
        if let Some(memory) = resources.memory() {
            self.memory(memory)?;
        }
        if let Some(cpu) = resources.cpu() {
            self.cpu(cpu)?;
        }
        if let Some(pids) = resources.pids() {
            match pids.limit() {
                limit @ 1.. => self.add("linux.resources.pids.limit", Controllers::Pids, "pids.max", limit),
                0 if self.now.is_some() => {}
                // Zero is what clients send that mean no limit (runc used to read it so too).
                _ => self.add("linux.resources.pids.limit", Controllers::Pids, "pids.max", "max"),
            }
        }
        if let Some(block_io) = resources.block_io() {
            self.block_io(block_io)?;
        }
        for limit in resources.hugepage_limits().iter().flatten() {
            self.huge_pages(limit)?;
        }
        if let Some(network) = resources.network() {
            self.network(network)?;
        }
        for (device, limit) in resources.rdma().iter().flatten() {
            let limits = [("hca_handle", limit.hca_handles()), ("hca_object", limit.hca_objects())];
            let limits: String =
                limits.iter().filter_map(|(key, limit)| limit.map(|limit| format!(" {key}={limit}"))).collect();
            if !limits.is_empty() {
                self.add("linux.resources.rdma", Controllers::Rdma, "rdma.max", format!("{device}{limits}"));
            }
        }
        self.unified(resources)
    }

    /// Device rules of v1: everything denied first, then the spec's in their order, then what every container may use.
    fn devices(&mut self, rules: &[LinuxDeviceCgroup]) {
        for rule in devices::rules(rules) {
            let file = if rule.allow { "devices.allow" } else { "devices.deny" };
            self.add("linux.resources.devices", Controllers::Devices, file, rule);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn parse(resources: Value) -> LinuxResources {
        serde_json::from_value(resources).unwrap()
    }

    fn pairs(settings: Vec<Setting>) -> Vec<(String, String)> {
        let limits = settings.into_iter().filter(|setting| !setting.file.starts_with("devices."));
        limits.map(|setting| (setting.file, setting.value)).collect()
    }

    /// What a new cgroup gets.
    fn new(resources: Value, v2: bool) -> Vec<(String, String)> {
        pairs(settings(Some(&parse(resources)), v2).unwrap())
    }

    /// What is written to one whose files are as in `now`.
    fn change(resources: Value, v2: bool, now: &[(&str, &str)]) -> Result<Vec<(String, String)>> {
        let read = |file: &str| now.iter().find(|(name, _)| *name == file).map(|(_, text)| format!("{text}\n"));
        changes(&parse(resources), v2, &read).map(pairs)
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
        let memory = [
            pair("memory.limit_in_bytes", "1048576"),
            pair("memory.memsw.limit_in_bytes", "2097152"),
            pair("memory.soft_limit_in_bytes", "4096"),
        ];
        let others = [
            pair("cpu.shares", "512"),
            pair("cpu.cfs_period_us", "100000"),
            pair("cpu.cfs_quota_us", "20000"),
            pair("cpuset.cpus", "0-1"),
            pair("pids.max", "10"),
        ];
        assert_eq!(new(resources.clone(), false), [&memory[..], &others].concat());
        let changed = change(resources, false, &[]).unwrap();
        assert_eq!(changed, [&others[..], &memory].concat(), "memory comes last");
    }

    #[test]
    fn networks_of_v1() {
        let network = json!({"network": {"classID": 7, "priorities": [{"name": "lo", "priority": 3}]}});
        assert_eq!(new(network, false), [pair("net_cls.classid", "7"), pair("net_prio.ifpriomap", "lo 3")]);
        for v2 in [false, true] {
            assert_eq!(new(json!({"network": {"classID": 0, "priorities": []}}), v2), []);
        }
    }

    #[test]
    fn limits_on_v2() {
        let resources = json!({
            "memory": {"limit": 1048576, "swap": 2097152},
            "cpu": {"shares": 1024, "quota": -1, "period": 50000},
            "pids": {"limit": 0},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}],
            "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 0}]},
            "rdma": {"mlx5_1": {"hcaHandles": 3}},
            "unified": {"memory.high": "1000", "io.max": "8:0 rbps=1\n8:16 rbps=2"},
        });
        assert_eq!(
            new(resources, true),
            [
                pair("memory.swap.max", "1048576"),
                pair("memory.max", "1048576"),
                pair("cpu.weight", "100"),
                pair("cpu.max", "max 50000"),
                pair("pids.max", "max"),
                pair("io.max", "8:0 rbps=max"),
                pair("hugetlb.2MB.max", "4194304"),
                pair("hugetlb.2MB.rsvd.max", "4194304"),
                pair("rdma.max", "mlx5_1 hca_handle=3"),
                pair("io.max", "8:0 rbps=1"),
                pair("io.max", "8:16 rbps=2"),
                pair("memory.high", "1000"),
            ]
        );
    }

    #[test]
    fn a_change_leaves_alone_what_it_does_not_name() {
        for v2 in [false, true] {
            let nothing = json!({
                "memory": {"limit": 0, "swap": 0, "reservation": 0},
                "cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": "", "mems": ""},
                "pids": {"limit": 0},
                "blockIO": {"weight": 0},
            });
            assert_eq!(change(nothing, v2, &[]).unwrap(), []);
            assert_eq!(change(json!({"pids": {"limit": -1}}), v2, &[]).unwrap(), [pair("pids.max", "max")]);
        }
        let cpu_max = [("cpu.max", "20000 50000")];
        let quota = change(json!({"cpu": {"quota": 10000}}), true, &cpu_max).unwrap();
        assert_eq!(quota, [pair("cpu.max", "10000 50000")]);
        let quota = change(json!({"cpu": {"quota": -1}}), true, &cpu_max).unwrap();
        assert_eq!(quota, [pair("cpu.max", "max 50000")]);
        let period = change(json!({"cpu": {"period": 100000}}), true, &cpu_max).unwrap();
        assert_eq!(period, [pair("cpu.max", "20000 100000")]);
    }

    #[test]
    fn memory_and_swap_together_are_one_sum() {
        let swap = |resources, now: &[(&str, &str)]| {
            let files = change(json!({ "memory": resources }), true, now)?;
            Ok::<_, crate::Error>(files.into_iter().find(|(file, _)| file == "memory.swap.max").map(|(_, value)| value))
        };
        let value = |value: &str| Some(value.to_owned());
        let limited = [("memory.max", "100"), ("memory.swap.max", "50")];
        let unlimited = [("memory.max", "max"), ("memory.swap.max", "max")];
        assert_eq!(swap(json!({"swap": 120}), &limited).unwrap(), value("20"));
        assert_eq!(swap(json!({"swap": 120}), &unlimited).unwrap(), value("120"));
        assert_eq!(swap(json!({"limit": 60}), &limited).unwrap(), value("90"), "the sum stays");
        assert_eq!(swap(json!({"limit": 60}), &unlimited).unwrap(), None);
        assert_eq!(swap(json!({"limit": -1}), &limited).unwrap(), value("max"));
        assert_eq!(swap(json!({"limit": -1, "swap": 70}), &limited).unwrap(), value("70"));
        assert_eq!(swap(json!({"limit": 60, "swap": -1}), &limited).unwrap(), value("max"));
        let error = swap(json!({"limit": 151}), &limited).unwrap_err();
        assert!(error.to_string().contains("memory and swap, 150"), "{error}");
        assert!(swap(json!({"swap": 99}), &limited).is_err());

        let v1 = change(json!({"memory": {"limit": -1}}), false, &[]).unwrap();
        assert_eq!(v1, [pair("memory.limit_in_bytes", "-1"), pair("memory.memsw.limit_in_bytes", "-1")]);
        assert_eq!(new(json!({"memory": {"limit": -1}}), false), [pair("memory.limit_in_bytes", "-1")]);
    }

    #[test]
    fn what_v2_has_not_is_left_out() {
        assert_eq!(new(json!({"memory": {"swappiness": 10, "disableOOMKiller": true}}), true), []);
        assert_eq!(new(json!({"memory": {"swappiness": 10}}), false), [pair("memory.swappiness", "10")]);
    }

    #[test]
    fn what_a_cgroup_may_lack() {
        let missing = |resources| settings(Some(&parse(resources)), true).unwrap().remove(0).missing;
        assert_eq!(missing(json!({"memory": {"limit": 4096, "swap": 4096}})), Missing::Same);
        assert_eq!(missing(json!({"memory": {"limit": 4096, "swap": 8192}})), Missing::Error);
        let instead = Missing::Instead { file: "io.weight".to_owned(), value: "default 4950".to_owned() };
        assert_eq!(missing(json!({"blockIO": {"weight": 500}})), instead);
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (resources, v2, word) in [
            (json!({"memory": {"limit": 2, "swap": 1}}), false, "memory.swap"),
            (json!({"memory": {"limit": -2}}), false, "memory.limit"),
            (json!({"memory": {"swap": 1}}), true, "memory.swap"),
            (json!({"memory": {"swappiness": 101}}), false, "swappiness"),
            (json!({"cpu": {"shares": 1}}), false, "cpu.shares"),
            (json!({"cpu": {"quota": -2}}), true, "cpu.quota"),
            (json!({"cpu": {"idle": 2}}), true, "cpu.idle"),
            (json!({"cpu": {"realtimeRuntime": 1}}), true, "realtimeRuntime"),
            (json!({"cpu": {"cpus": "0\n1"}}), true, "cpu.cpus"),
            (json!({"blockIO": {"weightDevice": [{"major": 8, "minor": 0, "leafWeight": 9}]}}), true, "leafWeight"),
            (json!({"hugepageLimits": [{"pageSize": "../x", "limit": 1}]}), true, "hugepageLimits"),
            (json!({"unified": {"memory.high": "1"}}), false, "unified"),
            (json!({"unified": {"../x": "1"}}), true, "unified"),
            (json!({"network": {"classID": 1}}), true, "network"),
            (json!({"devices": [{"allow": true, "type": "p"}]}), true, "devices"),
        ] {
            let error = settings(Some(&parse(resources)), v2).unwrap_err();
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}
