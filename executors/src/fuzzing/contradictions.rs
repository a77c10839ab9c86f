//! Specs that contradict themselves, or ask for too much: refused by the name of the field, or done as runc does.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::spec;
use crate::{Kind, Result};

/// What a spec of the largest size may take on a busy machine; by itself it takes some hundred milliseconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// containerd's default spec with values at pointers; those of lists are added to what is there.
fn with(changes: &[(&str, Value)]) -> Result<usize> {
    let mut config: Value = serde_json::from_str(include_str!("../../../fuzz/seeds/spec/containerd.json")).unwrap();
    for (pointer, value) in changes {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let place = &mut config.pointer_mut(parent).unwrap()[key];
        match (place, value) {
            (Value::Array(list), Value::Array(more)) => list.extend(more.iter().cloned()),
            (place, value) => *place = value.clone(),
        }
    }
    let before = Instant::now();
    let result = spec(config.to_string().as_bytes());
    assert!(before.elapsed() < PATIENCE, "{:?} took {:?}", changes[0].0, before.elapsed());
    result
}

#[track_caller]
fn refused(changes: &[(&str, Value)], words: &[&str]) {
    let error = with(changes).expect_err(changes[0].0);
    assert!(matches!(error.kind(), Kind::InvalidArgument | Kind::Unimplemented), "{error:?}");
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{text:?} lacks one of {words:?}");
}

fn mappings(count: u32) -> Value {
    (0..count).map(|n| json!({"containerID": n, "hostID": 1000 + n, "size": 1})).collect()
}

fn mount(destination: &str, kind: &str) -> Value {
    json!({"destination": destination, "type": kind, "source": kind, "options": []})
}

#[test]
fn namespaces_that_contradict_themselves() {
    let user = |path: &str| json!([{"type": "user", "path": path}]);
    let (uids, gids) = ("/linux/uidMappings", "/linux/gidMappings");
    // Whether they are those of the namespace shows on the host.
    with(&[("/linux/namespaces", user("/proc/1/ns/user")), (uids, mappings(1)), (gids, mappings(1))]).unwrap();
    refused(&[(uids, mappings(1)), (gids, mappings(1))], &["linux.uidMappings"]);
    refused(&[("/linux/namespaces", json!([{"type": "pid"}]))], &["linux.namespaces", "twice"]);
    refused(
        &[("/linux/namespaces", json!([{"type": "cgroup", "path": "relative"}]))],
        &["linux.namespaces", "relative"],
    );
    refused(&[("/linux/namespaces", json!([{"type": "no-such"}]))], &["linux.namespaces"]);
    let own = ("/linux/namespaces", json!([{"type": "user"}]));
    refused(&[own.clone(), (uids, mappings(341)), (gids, mappings(1))], &["linux.uidMappings", "340"]);
    refused(&[own.clone(), (uids, mappings(1)), (gids, json!([]))], &["linux.gidMappings"]);
    refused(
        &[own.clone(), (uids, mappings(1)), (gids, mappings(1)), ("/process/user/uid", json!(5))],
        &["process.user.uid"],
    );
    with(&[own, (uids, mappings(340)), (gids, mappings(340))]).unwrap();
}

#[test]
fn names_and_sysctls_of_namespaces_that_are_the_host_s() {
    let namespaces = json!([{"type": "mount"}]);
    let without = |pointer: &str, value: Value| {
        let mut config: Value = serde_json::from_str(include_str!("../../../fuzz/seeds/spec/containerd.json")).unwrap();
        config["linux"]["namespaces"] = namespaces.clone();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[key] = value;
        spec(config.to_string().as_bytes()).expect_err(pointer).to_string()
    };
    assert!(without("/hostname", json!("a")).contains("hostname"));
    assert!(without("/domainname", json!("a")).contains("domainname"));
    for (key, namespace) in [
        ("net.ipv4.ip_forward", "net"),
        ("kernel.shmmax", "ipc"),
        ("fs.mqueue.msg_max", "ipc"),
        ("kernel.hostname", "uts"),
    ] {
        let text = without("/linux/sysctl", json!({key: "1"}));
        assert!(text.contains("linux.sysctl") && text.contains(namespace), "{text}");
    }
    for key in [
        "vm.swappiness",
        "kernel.core_pattern",
        "fs.file-max",
        "",
        ".",
        "net",
        "/proc/sys/net/ipv4/ip_forward",
        "net/../kernel/core_pattern",
    ] {
        refused(&[("/linux/sysctl", json!({key: "1"}))], &["linux.sysctl"]);
    }
    refused(&[("/linux/sysctl", json!({"net.ipv4.ip_forward": "1\u{0}"}))], &["linux.sysctl"]);
}

#[test]
fn device_rules_and_nodes_that_cannot_be() {
    let rules = "/linux/resources/devices";
    refused(&[(rules, json!([{"allow": true, "type": "p", "access": "r"}]))], &["linux.resources.devices"]);
    refused(&[(rules, json!([{"allow": true, "type": "x", "access": "r"}]))], &["linux.resources.devices"]);
    refused(&[(rules, json!([{"allow": true, "type": "c", "access": "rwx"}]))], &["linux.resources.devices", "rwx"]);
    refused(
        &[(rules, json!([{"allow": true, "type": "c", "major": 1_u64 << 40, "access": "r"}]))],
        &["linux.resources.devices"],
    );
    let node = |path: &str, kind: &str, major: i64| json!([{"path": path, "type": kind, "major": major, "minor": 0}]);
    for (path, kind, major) in [
        ("/", "c", 1),
        ("relative", "c", 1),
        ("/dev/a", "a", 1),
        ("/dev/a", "c", -5),
        ("/dev/a", "c", 1 << 40),
        ("/dev/..", "c", 1),
        ("/a\0b", "c", 1),
    ] {
        refused(&[("/linux/devices", node(path, kind, major))], &["linux.devices"]);
    }
}

#[test]
fn mounts_that_lead_out_or_into_each_other() {
    for at in ["", "/", "//", "/..", "/../..", "/./"] {
        refused(&[("/mounts", json!([mount(at, "tmpfs")]))], &["mounts"]);
    }
    for at in ["/proc/self", "/proc//sys/", "/x/../proc/sys", "/proc"] {
        refused(&[("/mounts", json!([mount(at, "tmpfs")]))], &["mounts", "/proc"]);
    }
    refused(&[("/mounts", json!([mount("/a\0b", "tmpfs")]))], &["mounts"]);
    refused(&[("/mounts", json!([{"destination": "/a", "type": "tmp\0fs", "source": "x"}]))], &["mounts: type"]);
    refused(
        &[("/mounts", json!([{"destination": "/a", "type": "tmpfs", "options": ["mode=\0"]}]))],
        &["mounts: options"],
    );
    // Done in their order, each inside or over the last: `..` stays inside, as with runc.
    for at in [["/a/../b", "/b"], ["/a/b", "/a"], ["/a", "/a"], ["/a", "/a/../../a/b"]] {
        with(&[("/mounts", json!([mount(at[0], "tmpfs"), mount(at[1], "tmpfs")]))]).unwrap();
    }
    with(&[("/mounts", json!([mount("relative", "tmpfs")]))]).unwrap();
    with(&[("/mounts", json!([mount("/proc/meminfo", "bind"), mount("/proc/./uptime", "bind")]))]).unwrap();
}

#[test]
fn very_many_of_everything() {
    const MANY: usize = 10_000;
    let list = |one: &dyn Fn(usize) -> Value| (0..MANY).map(one).collect::<Value>();
    with(&[("/mounts", list(&|n| mount(&format!("/m/{n}"), "tmpfs")))]).unwrap();
    let steps = with(&[(
        "/linux/devices",
        list(&|n| json!({"path": format!("/dev/d{n}"), "type": "c", "major": 1, "minor": n})),
    )]);
    assert!(steps.unwrap() > MANY);
    with(&[("/process/env", list(&|n| json!(format!("A{n}=b"))))]).unwrap();
    with(&[("/process/args", list(&|n| json!(n.to_string())))]).unwrap();
    with(&[("/linux/maskedPaths", list(&|n| json!(format!("/m{n}"))))]).unwrap();
    with(&[(
        "/linux/resources/devices",
        list(&|n| json!({"allow": n % 2 == 0, "type": "c", "major": n, "access": "rw"})),
    )])
    .unwrap();
    with(&[(
        "/linux/sysctl",
        (0..MANY).map(|n| (format!("net.a.b{n}"), json!("1"))).collect::<serde_json::Map<_, _>>().into(),
    )])
    .unwrap();
    with(&[("/annotations", (0..MANY).map(|n| (n.to_string(), json!("v"))).collect::<serde_json::Map<_, _>>().into())])
        .unwrap();
    refused(
        &[("/process/rlimits", list(&|_| json!({"type": "RLIMIT_CORE", "soft": 1, "hard": 1})))],
        &["process.rlimits", "twice"],
    );
    refused(&[("/linux/namespaces", list(&|_| json!({"type": "ipc"})))], &["linux.namespaces", "twice"]);
    refused(
        &[("/process/user/additionalGids", (0..65_537).collect::<Value>())],
        &["process.user.additionalGids", "65536"],
    );
}

#[test]
fn filters_with_too_many_conditions() {
    let profile = |conditions: u32| {
        let rules: Value = (0..conditions)
            .map(|n| json!({"names": ["ioctl"], "action": "SCMP_ACT_ALLOW", "args": [{"index": 1, "value": n, "op": "SCMP_CMP_EQ"}]}))
            .collect();
        json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": rules})
    };
    with(&[("/linux/seccomp", profile(1000))]).unwrap();
    // More than the kernel takes, as it shows after the compilation, or at once.
    refused(&[("/linux/seccomp", profile(4096))], &["linux.seccomp"]);
    refused(&[("/linux/seccomp", profile(70_000))], &["linux.seccomp"]);
    let names = json!([{"names": vec!["read"; 70_000], "action": "SCMP_ACT_ALLOW"}]);
    refused(&[("/linux/seccomp", json!({"defaultAction": "SCMP_ACT_ERRNO", "syscalls": names}))], &["linux.seccomp"]);
}

#[test]
fn strings_of_any_length_and_kind() {
    let huge = "x".repeat(8 << 20);
    refused(&[("/ociVersion", json!(huge))], &["ociVersion"]);
    refused(&[("/process/cwd", json!(huge))], &["process.cwd"]);
    refused(&[("/linux/rootfsPropagation", json!(huge))], &["linux.rootfsPropagation"]);
    with(&[("/process/args", json!([huge]))]).unwrap();
    with(&[("/process/env", json!([format!("A={huge}")]))]).unwrap();
    for (pointer, value, field) in [
        ("/process/args", json!(["a\0"]), "process"),
        ("/process/env", json!(["A=\0"]), "process"),
        ("/process/cwd", json!("/a\0b"), "process.cwd"),
        ("/process/apparmorProfile", json!("a\0b"), "process.apparmorProfile"),
        ("/hostname", json!("a\0b"), "hostname"),
        ("/domainname", json!("a\0b"), "domainname"),
        ("/linux/maskedPaths", json!(["/a\0b"]), "linux.maskedPaths"),
        ("/linux/readonlyPaths", json!(["/a\0b"]), "linux.readonlyPaths"),
        ("/linux/cgroupsPath", json!("/a\0b"), "linux.cgroupsPath"),
        ("/linux/cgroupsPath", json!("/a/../../b"), "linux.cgroupsPath"),
        ("/root/path", json!("root\0fs"), "root.path"),
    ] {
        refused(&[(pointer, value)], &[field]);
    }
}

#[test]
fn deep_and_endless_json() {
    let deep = |open: &str, close: &str, levels: usize| format!("{}1{}", open.repeat(levels), close.repeat(levels));
    for text in [deep("[", "]", 100_000), deep("{\"a\":", "}", 100_000), "[".repeat(1 << 20), "{\"a\":".repeat(1 << 18)]
    {
        assert_eq!(spec(text.as_bytes()).unwrap_err().kind(), Kind::InvalidArgument);
        let inside = format!("{{\"ociVersion\": \"1.0.0\", \"process\": {text}}}");
        assert_eq!(spec(inside.as_bytes()).unwrap_err().kind(), Kind::InvalidArgument);
        let unknown = format!("{{\"ociVersion\": \"1.0.0\", \"unknown\": {text}}}");
        assert_eq!(spec(unknown.as_bytes()).unwrap_err().kind(), Kind::InvalidArgument);
    }
}
