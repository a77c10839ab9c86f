//! `-v` and `-info`: what this binary is and what it can do. The one place where features are claimed.

use anyhow::{Context, Result};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use serde_json::{Value, json};
use std::io::{self, IsTerminal, Read, Write};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit, where the build names it.
const REVISION: Option<&str> = option_env!("HYBRID_REVISION");

/// containerd's name for the OCI runtime specification's features structure, encoded as JSON.
const FEATURES_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The most that is read from stdin, in bytes.
const MAX_STDIN: u64 = 10 << 20;

/// Options of `mounts[].options` that are understood (OCI runtime specification, config.md "Linux mount options").
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "iversion",
    "lazytime",
    "loud",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "noiversion",
    "nolazytime",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "rexec",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "rsymfollow",
    "runbindable",
    "rw",
    "shared",
    "silent",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "unbindable",
];

const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

fn features() -> Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "capabilities": CAPABILITIES,
            "cgroup": { "v1": true, "v2": true, "systemd": false, "systemdUser": false },
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ",
                    "SCMP_CMP_NE",
                ],
            },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": false } },
        },
    })
}

/// `-v`: the version, in the lines of containerd's own shim.
pub fn print_version() -> Result<()> {
    let mut stdout = io::stdout().lock();
    let text = format!(
        "{}:\n  Version:  {VERSION}\n  Revision: {}\n\n",
        env!("CARGO_BIN_NAME"),
        REVISION.unwrap_or("unknown")
    );
    stdout.write_all(text.as_bytes()).context("write to stdout")
}

/// `-info`: a `RuntimeInfo` on stdout. Options on stdin are handed back as they came, as containerd's own shim does.
pub fn print_info() -> Result<()> {
    let stdin = io::stdin();
    let mut input = Vec::new();
    if !stdin.is_terminal() {
        stdin.lock().take(MAX_STDIN).read_to_end(&mut input).context("read the options from stdin")?;
    }
    let bytes = info(&input)?.write_to_bytes().context("encode the runtime info")?;
    io::stdout().lock().write_all(&bytes).context("write to stdout")
}

fn info(input: &[u8]) -> Result<RuntimeInfo> {
    let mut version = RuntimeVersion::new();
    version.version = VERSION.to_owned();
    version.revision = REVISION.unwrap_or_default().to_owned();
    let mut any = Any::new();
    any.type_url = FEATURES_TYPE_URL.to_owned();
    any.value = serde_json::to_vec(&features())?;
    let mut info = RuntimeInfo::new();
    info.name = crate::RUNTIME.to_owned();
    info.version = MessageField::some(version);
    info.features = MessageField::some(any);
    if !input.is_empty() {
        info.options = MessageField::some(Any::parse_from_bytes(input).context("decode the options from stdin")?);
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_info_carries_name_version_and_features() {
        let info = info(&[]).unwrap();
        assert_eq!(info.name, "io.containerd.hybrid.v1");
        assert_eq!(info.version.version, VERSION);
        assert!(info.options.is_none());
        assert_eq!(info.features.type_url, FEATURES_TYPE_URL);
        let features: Value = serde_json::from_slice(&info.features.value).unwrap();
        assert!(features["mountOptions"].as_array().unwrap().contains(&json!("rro")));
        assert!(!features["linux"]["namespaces"].as_array().unwrap().contains(&json!("user")));
        assert_eq!(features["linux"]["mountExtensions"]["idmap"]["enabled"], json!(false));
    }

    #[test]
    fn lists_are_sorted_so_that_nothing_is_listed_twice() {
        assert!(MOUNT_OPTIONS.is_sorted_by(|a, b| a < b));
        let capabilities: std::collections::HashSet<_> = CAPABILITIES.iter().collect();
        assert_eq!(capabilities.len(), CAPABILITIES.len());
    }

    #[test]
    fn options_come_back_and_nonsense_is_refused() {
        let mut options = Any::new();
        options.type_url = "runtimeoptions.v1.Options".into();
        assert_eq!(info(&options.write_to_bytes().unwrap()).unwrap().options.unwrap(), options);
        assert!(info(b"\x0a\x7f").is_err());
    }
}
