//! Changes of resources, under processes that run.

use cgroups_rs::fs::Controllers;
use serde_json::json;

use super::{BUSY, LARGE, Rig, eventually};
use crate::Kind;

#[test]
fn resources_change() {
    let mut rig = Rig::new(json!({"pids": {"limit": 10}, "memory": {"limit": 64 << 20}}));
    rig.run(BUSY);
    rig.update(json!({
        "pids": {"limit": 20},
        "memory": {"limit": 48 << 20, "reservation": 32 << 20},
        "cpu": {"shares": 512, "quota": 30000, "period": 50000, "cpus": "0"},
    }))
    .unwrap();
    let v2 = rig.cgroup().v2();
    assert_eq!(rig.read(Controllers::Pids, "pids.max", "pids.max"), "20");
    assert_eq!(rig.read(Controllers::Mem, "memory.limit_in_bytes", "memory.max"), (48 << 20).to_string());
    assert_eq!(rig.read(Controllers::Mem, "memory.soft_limit_in_bytes", "memory.low"), (32 << 20).to_string());
    assert_eq!(rig.read(Controllers::Cpu, "cpu.shares", "cpu.weight"), if v2 { "59" } else { "512" });
    assert_eq!(rig.read(Controllers::CpuSet, "cpuset.cpus", "cpuset.cpus"), "0");
    let quota = |rig: &Rig| match v2 {
        true => rig.read(Controllers::Cpu, "", "cpu.max"),
        false => ["cpu.cfs_quota_us", "cpu.cfs_period_us"].map(|file| rig.read(Controllers::Cpu, file, "")).join(" "),
    };
    assert_eq!(quota(&rig), "30000 50000");
    rig.update(json!({"cpu": {"quota": 20000}})).unwrap();
    assert_eq!(quota(&rig), "20000 50000");
    rig.update(json!({"cpu": {"period": 100000}})).unwrap();
    assert_eq!(quota(&rig), "20000 100000");
    rig.update(json!({"cpu": {"quota": -1}, "pids": {"limit": -1}})).unwrap();
    assert_eq!(quota(&rig), if v2 { "max 100000" } else { "-1 100000" });
    assert_eq!(rig.read(Controllers::Pids, "pids.max", "pids.max"), "max");
}

#[test]
fn what_depends_on_each_other_is_written_in_the_order_that_works() {
    // The parent's limit makes a difference to v1: no child may have a larger part of the CPU.
    let parent = Rig::new(json!({"cpu": {"quota": 50000, "period": 100000}}));
    let rig = Rig::at(&format!("/{}/b", parent.cgroup().groups.path()), json!({}));
    for (quota, period) in [(50_000, 100_000), (500_000, 1_000_000), (50_000, 100_000), (5_000, 10_000)] {
        rig.update(json!({"cpu": {"quota": quota, "period": period}})).unwrap();
    }
    rig.update(json!({"cpu": {"quota": 50_000, "period": 100_000, "burst": 40_000}})).unwrap();
    rig.update(json!({"cpu": {"quota": 5_000, "period": 10_000, "burst": 1_000}})).unwrap();
    rig.update(json!({"cpu": {"quota": 50_000, "period": 100_000, "burst": 40_000}})).unwrap();
    rig.update(json!({"cpu": {"idle": 1}})).unwrap();
    rig.update(json!({"cpu": {"idle": 0, "shares": 300}})).unwrap();
    let limits = |rig: &Rig| {
        let limit = rig.read(Controllers::Mem, "memory.limit_in_bytes", "memory.max");
        (limit, rig.read(Controllers::Mem, "memory.memsw.limit_in_bytes", "memory.swap.max"))
    };
    let mb = |mb: i64| json!(mb << 20);
    for (limit, swap) in [(64, 128), (16, 32), (128, 128), (32, 64)] {
        rig.update(json!({"memory": {"limit": mb(limit), "swap": mb(swap)}})).unwrap();
        let swap = if rig.cgroup().v2() { swap - limit } else { swap };
        assert_eq!(limits(&rig), (mb(limit).to_string(), mb(swap).to_string()));
    }
    let error = rig.update(json!({"memory": {"limit": mb(65)}})).unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
    rig.update(json!({"memory": {"limit": mb(48)}})).unwrap();
    rig.update(json!({"memory": {"limit": -1}})).unwrap();
    let unlimited = if rig.cgroup().v2() { "max" } else { "9223372036854771712" }.to_owned();
    assert_eq!(limits(&rig), (unlimited.clone(), unlimited));
}

#[test]
fn a_change_that_is_wrong_in_one_part_changes_nothing() {
    let mut rig = Rig::new(json!({
        "pids": {"limit": 10},
        "cpu": {"shares": 300, "quota": 20000, "period": 50000},
        "memory": {"limit": 64 << 20, "swap": 64 << 20},
    }));
    rig.run(LARGE);
    eventually(|| rig.used() > 1 << 20);
    let all = |rig: &Rig| {
        let v1 = [
            (Controllers::Pids, "pids.max"),
            (Controllers::Cpu, "cpu.shares"),
            (Controllers::Cpu, "cpu.cfs_quota_us"),
            (Controllers::Cpu, "cpu.cfs_period_us"),
            (Controllers::CpuSet, "cpuset.cpus"),
            (Controllers::Mem, "memory.limit_in_bytes"),
            (Controllers::Mem, "memory.memsw.limit_in_bytes"),
            (Controllers::Devices, "devices.list"),
        ];
        let v2 = ["pids.max", "cpu.weight", "cpu.max", "cpuset.cpus", "memory.max", "memory.swap.max"];
        let read = |(controller, file): (Controllers, &str)| {
            let text = rig.read(controller, file, file);
            let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
            // The order in which exceptions are listed means nothing.
            lines.sort();
            lines
        };
        if rig.cgroup().v2() { v2.map(|file| read((Controllers::Cpu, file))).to_vec() } else { v1.map(read).to_vec() }
    };
    let before = all(&rig);
    let change = json!({
        "pids": {"limit": 20},
        "cpu": {"shares": 600, "quota": 30000, "period": 60000},
        "memory": {"limit": 48 << 20, "swap": 96 << 20},
        "devices": [{"allow": true, "access": "rwm"}],
    });
    // No such CPU; found out when others are written already.
    let mut wrong = change.clone();
    wrong["cpu"]["cpus"] = json!("4000");
    let error = rig.update(wrong).unwrap_err();
    assert!(error.to_string().contains("linux.resources.cpu.cpus"), "{error}");
    assert_eq!(all(&rig), before);
    // Found out when all but the memory is changed: v1 can't take away what is in use, v2 asks for that to be checked.
    let mut wrong = change.clone();
    wrong["memory"] = json!({"limit": 4096});
    if rig.cgroup().v2() {
        wrong["memory"]["checkBeforeUpdate"] = json!(true);
    }
    let error = rig.update(wrong).unwrap_err();
    assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
    assert!(error.to_string().contains("linux.resources.memory.limit"), "{error}");
    assert_eq!(all(&rig), before);
    rig.update(change).unwrap();
    assert_ne!(all(&rig), before);
}

#[test]
fn device_rules_change() {
    // 1:3 is /dev/null, which every container may use; 1:11 is /dev/kmsg.
    let deny = json!({"allow": false, "access": "rwm"});
    let kmsg = json!({"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"});
    let mut rig = Rig::new(json!({"devices": [deny]}));
    let folder = tempfile::tempdir().unwrap();
    let script =
        "cd DIR; while :; do true < /dev/null || echo >> null; true < /dev/kmsg && touch yes || touch no; done";
    rig.run(&script.replace("DIR", folder.path().to_str().unwrap()));
    let is = |name: &str| {
        let _ = std::fs::remove_file(folder.path().join(name));
        eventually(|| folder.path().join(name).exists());
    };
    is("no");
    rig.update(json!({"devices": [deny, kmsg]})).unwrap();
    is("yes");
    rig.update(json!({"devices": [deny, kmsg]})).unwrap();
    rig.update(json!({"devices": []})).unwrap();
    is("yes");
    rig.update(json!({"devices": [deny]})).unwrap();
    is("no");
    rig.update(json!({"devices": [{"allow": true, "access": "rwm"}]})).unwrap();
    is("yes");
    rig.update(json!({"devices": [deny, kmsg]})).unwrap();
    is("yes");
    rig.update(json!({"devices": [deny]})).unwrap();
    is("no");
    assert!(!rig.cgroup().is_frozen().unwrap());
    // Going through a moment without rules neither ends a pause nor is seen after it.
    rig.cgroup().freeze().unwrap();
    rig.update(json!({"devices": [{"allow": true, "access": "rwm"}]})).unwrap();
    assert!(rig.cgroup().is_frozen().unwrap());
    rig.cgroup().thaw().unwrap();
    is("yes");
    assert!(!folder.path().join("null").exists(), "/dev/null was never denied");
}

#[test]
fn limits_below_what_is_in_use_are_refused_when_asked_to() {
    let mut rig = Rig::new(json!({"memory": {"limit": 64 << 20}}));
    rig.run(LARGE);
    eventually(|| rig.used() > 1 << 20);
    for memory in [json!({"limit": 4096}), json!({"limit": 4096, "swap": 4096})] {
        let mut memory = memory;
        memory["checkBeforeUpdate"] = json!(true);
        let error = rig.update(json!({ "memory": memory })).unwrap_err();
        assert_eq!(error.kind(), Kind::FailedPrecondition);
        assert!(error.to_string().contains("bytes in use"), "{error}");
    }
    rig.update(json!({"memory": {"limit": 63 << 20, "checkBeforeUpdate": true}})).unwrap();
}
