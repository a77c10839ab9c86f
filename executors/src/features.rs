//! What the executors can do, as the OCI runtime spec's features document (features.md, features-linux.md).
//!
//! Lists come from the tables that the work is done with; what is said besides is held against the checks of a bundle by
//! the tests below.

use serde_json::{Value, json};

use crate::cgroup::systemd::annotations;
use crate::checkpoint;
use crate::dispatch;
use crate::hooks::Turn;
use crate::native::{options, scheduling, seccomp, user};

/// The oldest and the newest version of the OCI runtime spec.
pub(crate) const OCI_VERSIONS: [&str; 2] = ["1.0.0", "1.3.0"];
const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"];

/// The features document. Keys that the spec has and that are missing are unknown to hybrid.
pub fn features() -> Value {
    let (major, minor, patch) = match libseccomp::ScmpVersion::current() {
        Ok(version) => (version.major, version.minor, version.micro),
        Err(_) => (0, 0, 0),
    };
    let [oldest, newest] = OCI_VERSIONS;
    json!({
        "ociVersionMin": oldest,
        "ociVersionMax": newest,
        "hooks": Turn::ALL.map(Turn::name),
        "mountOptions": options::known(),
        "linux": {
            "namespaces": NAMESPACES,
            "capabilities": user::capabilities(),
            "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": false, "rdma": true },
            "seccomp": seccomp::features(),
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "memoryPolicy": scheduling::features(),
            "intelRdt": { "enabled": true, "schemata": true, "monitoring": true },
            "mountExtensions": { "idmap": { "enabled": true } },
            "netDevices": { "enabled": true },
        },
        "annotations": {
            "io.containerd.hybrid.executors": "native,wasm",
            "io.github.seccomp.libseccomp.version": format!("{major}.{minor}.{patch}"),
        },
        "potentiallyUnsafeConfigAnnotations": dispatch::annotations().chain([annotations::PREFIX, checkpoint::SETTINGS]).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::Bundle;
    use crate::cgroup::Cgroup;
    use crate::{Kind, Result};
    use std::path::Path;

    /// Opens a bundle whose config.json is usual but for the value at a pointer.
    fn open(pointer: &str, value: &Value) -> Result<Bundle> {
        let mut config = json!({
            "ociVersion": "1.1.0",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "network"}]},
        });
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[key] = value.clone();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        Bundle::open("box", folder.path())
    }

    /// Fails unless a bundle that needs the feature is taken if it is claimed, and refused if not.
    fn holds(claimed: bool, pointer: &str, value: Value) {
        match open(pointer, &value) {
            Ok(_) => assert!(claimed, "{pointer} = {value} is done and not claimed"),
            Err(error) => {
                assert!(!claimed, "{pointer} = {value} is claimed and refused: {error}");
                assert_eq!(error.kind(), Kind::Unimplemented, "{pointer} = {value}: {error}");
            }
        }
    }

    #[test]
    fn namespaces_and_hooks_are_as_claimed() {
        for name in ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"] {
            let mut linux = json!({"namespaces": [{"type": "mount"}, {"type": name}]});
            if name == "mount" {
                linux["namespaces"] = json!([{"type": "mount"}]);
            }
            if name == "user" {
                let mapping = json!([{"containerID": 0, "hostID": 1000, "size": 10}]);
                linux["uidMappings"] = mapping.clone();
                linux["gidMappings"] = mapping;
            }
            holds(NAMESPACES.contains(&name), "/linux", linux);
        }
        let hooks = features()["hooks"].clone();
        for name in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
            let claimed = hooks.as_array().unwrap().contains(&json!(name));
            holds(claimed, "/hooks", json!({name: [{"path": "/bin/true"}]}));
        }
    }

    #[test]
    fn what_is_enabled_is_as_claimed() {
        let features = features();
        let enabled = |name: &str| features["linux"].pointer(name).and_then(Value::as_bool).unwrap();
        let idmapped = json!([{"destination": "/m", "type": "bind", "source": "/", "options": ["bind"],
            "uidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}],
            "gidMappings": [{"containerID": 0, "hostID": 1000, "size": 10}]}]);
        holds(enabled("/mountExtensions/idmap/enabled"), "/mounts", idmapped);
        holds(enabled("/selinux/enabled"), "/process/selinuxLabel", json!("a:b:c:d"));
        holds(enabled("/intelRdt/enabled"), "/linux/intelRdt", json!({"closID": "a"}));
        holds(enabled("/netDevices/enabled"), "/linux/netDevices", json!({"eth0": {"name": "eth1"}}));
        holds(enabled("/apparmor/enabled"), "/process/apparmorProfile", json!("profile"));
        let systemd = Cgroup::load("a", Some(Path::new("system.slice:hybrid:a")), false);
        assert_eq!(enabled("/cgroup/systemd"), systemd.is_ok());
    }

    #[test]
    fn versions_are_as_claimed() {
        for version in OCI_VERSIONS {
            open("/ociVersion", &json!(version)).unwrap();
        }
    }

    #[test]
    fn lists_hold_what_they_must_and_nothing_twice() {
        let features = features();
        let list =
            |name: &str| -> Vec<String> { serde_json::from_value(features.pointer(name).unwrap().clone()).unwrap() };
        for (name, length, member) in [
            ("/mountOptions", 50, "rro"),
            ("/linux/capabilities", 41, "CAP_SYS_ADMIN"),
            ("/linux/seccomp/actions", 9, "SCMP_ACT_NOTIFY"),
            ("/linux/seccomp/operators", 7, "SCMP_CMP_MASKED_EQ"),
            ("/linux/seccomp/archs", 20, "SCMP_ARCH_X86_64"),
            ("/linux/seccomp/knownFlags", 4, "SECCOMP_FILTER_FLAG_LOG"),
            ("/linux/seccomp/supportedFlags", 3, "SECCOMP_FILTER_FLAG_SPEC_ALLOW"),
            ("/linux/memoryPolicy/modes", 7, "MPOL_WEIGHTED_INTERLEAVE"),
            ("/linux/memoryPolicy/flags", 3, "MPOL_F_STATIC_NODES"),
            ("/potentiallyUnsafeConfigAnnotations", 3, "run.oci.handler"),
        ] {
            let list = list(name);
            assert!(list.len() >= length && list.iter().any(|entry| entry == member), "{name}: {list:?}");
            let distinct: std::collections::HashSet<_> = list.iter().collect();
            assert_eq!(distinct.len(), list.len(), "{name}: {list:?}");
        }
        assert_ne!(features["annotations"]["io.github.seccomp.libseccomp.version"], json!("0.0.0"));
    }
}
