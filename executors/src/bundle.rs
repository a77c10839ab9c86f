//! A bundle: config.json read once and checked once. What comes out of [`Bundle::open`] is trusted after.
//!
//! Source: OCI runtime spec 1.3, bundle.md, config.md and config-linux.md.

use std::collections::HashSet;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespaceType, Process, Spec};
use serde::de::DeserializeOwned;

use crate::Kind;
use crate::error::{Error, OrKind, Result, bail};
use crate::hooks;
use crate::native::user_namespace::{self, on_host};

/// The largest config.json that is read, in bytes. Real ones have some tens of kilobytes.
const MAX_CONFIG: u64 = 16 << 20;

/// A bundle folder with its checked config.json.
pub struct Bundle {
    id: String,
    path: PathBuf,
    spec: Spec,
}

impl Bundle {
    /// Reads and checks `path/config.json` for the container `id`.
    ///
    /// # Errors
    /// InvalidArgument when bundle or config.json is missing or for what is wrong in it, Unimplemented for what hybrid
    /// doesn't do; both with the name of the field.
    pub fn open(id: &str, path: &Path) -> Result<Bundle> {
        let config = path.join("config.json");
        let text = read(&config)?;
        let spec: Spec = from_json(&text, "").map_err(|e| e.context(format!("parse {}", config.display())))?;
        check(&spec).map_err(|e| e.context(config.display().to_string()))?;
        Ok(Bundle { id: id.to_owned(), path: path.to_owned(), spec })
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The bundle's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the process wants a terminal (`process.terminal`).
    pub fn terminal(&self) -> bool {
        self.process().terminal().unwrap_or(false)
    }

    /// The spec's value for an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.spec.annotations().as_ref()?.get(key).map(String::as_str)
    }

    pub(crate) fn spec(&self) -> &Spec {
        &self.spec
    }

    pub(crate) fn process(&self) -> &Process {
        self.spec.process().as_ref().expect("checked in open: process")
    }

    pub(crate) fn linux(&self) -> &Linux {
        self.spec.linux().as_ref().expect("checked in open: linux")
    }

    /// The folder on the host that becomes the container's root.
    pub(crate) fn root(&self) -> PathBuf {
        // A relative path is below the bundle (config.md, Root).
        self.path.join(self.spec.root().as_ref().expect("checked in open: root").path())
    }

    /// A namespace of the spec: `None` if it is not listed, `Some(None)` for a new one, or the path of the one to join.
    pub(crate) fn namespace(&self, kind: LinuxNamespaceType) -> Option<Option<&Path>> {
        let namespaces = self.linux().namespaces().as_deref().unwrap_or_default();
        let namespace = namespaces.iter().find(|namespace| namespace.typ() == kind)?;
        Some(namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty()))
    }
}

/// A process's arguments; there is at least one, not empty.
pub(crate) fn args(process: &Process) -> &[String] {
    process.args().as_deref().unwrap_or_default()
}

/// A variable of a process's environment.
pub(crate) fn variable<'a>(process: &'a Process, name: &str) -> Option<&'a str> {
    let env = process.env().as_deref().unwrap_or_default();
    env.iter().rev().find_map(|entry| entry.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
}

/// Parses `part` of a spec, empty for the whole.
///
/// # Errors
/// InvalidArgument, with the name of the field that is wrong.
pub(crate) fn from_json<T: DeserializeOwned>(text: &[u8], part: &str) -> Result<T> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let path = e.path().to_string();
        let field = match (part, path.as_str()) {
            ("", ".") => "not an object of the spec".to_owned(),
            ("", path) => path.to_owned(),
            (part, ".") => part.to_owned(),
            (part, path) => format!("{part}.{path}"),
        };
        Error::new(Kind::InvalidArgument, e.into_inner()).context(field)
    })?;
    json.end().or_kind(Kind::InvalidArgument, || format!("{part}: more than one document"))?;
    Ok(parsed)
}

fn read(config: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let file = std::fs::File::open(config).or_kind(Kind::InvalidArgument, || format!("open {}", config.display()))?;
    let mut text = Vec::new();
    file.take(MAX_CONFIG + 1)
        .read_to_end(&mut text)
        .or_kind(Kind::Internal, || format!("read {}", config.display()))?;
    if text.len() as u64 > MAX_CONFIG {
        bail!(InvalidArgument, "{} is larger than {MAX_CONFIG} bytes", config.display());
    }
    Ok(text)
}

/// Everything about a spec that can be judged without looking at the host.
fn check(spec: &Spec) -> Result<()> {
    check_version(spec.version())?;
    let Some(process) = spec.process() else { bail!(InvalidArgument, "process: missing") };
    let Some(linux) = spec.linux() else { bail!(InvalidArgument, "linux: missing") };
    let Some(root) = spec.root() else { bail!(InvalidArgument, "root: missing") };
    if root.path().as_os_str().is_empty() {
        bail!(InvalidArgument, "root.path: empty");
    }
    check_process(process)?;
    check_namespaces(spec, linux)?;
    check_user(process, linux)?;
    check_mounts(spec)?;
    check_devices(linux)?;
    spec.hooks().as_ref().map_or(Ok(()), hooks::check)?;
    refuse(unsupported_of_process(process))?;
    refuse(unsupported(spec, linux))
}

/// Patch and minor versions of 1 are compatible (spec.md, "Versioning").
fn check_version(version: &str) -> Result<()> {
    let numbers = version.split(['-', '+']).next().unwrap_or_default();
    let parts: Vec<Option<u32>> = numbers.split('.').map(|part| part.parse().ok()).collect();
    match parts[..] {
        [Some(1), Some(_), Some(_)] => Ok(()),
        _ => bail!(InvalidArgument, "ociVersion: {version:?} is not a version that hybrid knows (1.x.y)"),
    }
}

pub(crate) fn check_process(process: &Process) -> Result<()> {
    match process.args().as_deref() {
        None | Some([]) => bail!(InvalidArgument, "process.args: empty"),
        Some([first, ..]) if first.is_empty() => bail!(InvalidArgument, "process.args[0]: empty"),
        Some(_) => {}
    }
    if !process.cwd().is_absolute() {
        bail!(InvalidArgument, "process.cwd: {:?} is not an absolute path", process.cwd());
    }
    let strings = process.args().iter().flatten().chain(process.env().iter().flatten());
    if let Some(string) = strings.into_iter().find(|s| s.contains('\0')) {
        bail!(InvalidArgument, "process: {string:?} has a null byte in it");
    }
    let limits = process.rlimits().as_deref().unwrap_or_default();
    for (i, limit) in limits.iter().enumerate() {
        if limits[..i].iter().any(|other| other.typ() == limit.typ()) {
            bail!(InvalidArgument, "process.rlimits: {} is there twice", limit.typ());
        }
        if limit.soft() > limit.hard() {
            bail!(InvalidArgument, "process.rlimits: {}: the soft limit is above the hard one", limit.typ());
        }
    }
    Ok(())
}

/// A user namespace needs its mappings, with a root in it; the process's ids must be among those that are mapped.
fn check_user(process: &Process, linux: &Linux) -> Result<()> {
    let uids = linux.uid_mappings().as_deref().unwrap_or_default();
    let gids = linux.gid_mappings().as_deref().unwrap_or_default();
    let has_namespace = linux.namespaces().iter().flatten().any(|n| n.typ() == LinuxNamespaceType::User);
    for (field, mappings) in [("linux.uidMappings", uids), ("linux.gidMappings", gids)] {
        match mappings {
            [] if has_namespace => bail!(InvalidArgument, "{field}: missing, and there is a user namespace to map"),
            [] => {}
            // It mounts and makes the container's files.
            _ if on_host(mappings, 0).is_none() => bail!(InvalidArgument, "{field}: 0 is not mapped"),
            _ => {}
        }
    }
    user_namespace::check(process, uids, gids)
}

fn check_namespaces(spec: &Spec, linux: &Linux) -> Result<()> {
    use LinuxNamespaceType::{Ipc, Mount, Network, User, Uts};
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let mut seen = HashSet::new();
    for namespace in namespaces {
        if !seen.insert(namespace.typ()) {
            bail!(InvalidArgument, "linux.namespaces: {} is there twice", namespace.typ());
        }
        match (namespace.typ(), namespace.path()) {
            (Mount, Some(path)) if !path.as_os_str().is_empty() => {
                bail!(Unimplemented, "linux.namespaces: joining a mount namespace by path is not supported")
            }
            (User, Some(path)) if !path.as_os_str().is_empty() => {
                bail!(Unimplemented, "linux.namespaces: joining a user namespace by path is not supported")
            }
            (_, Some(path)) if !path.as_os_str().is_empty() && !path.is_absolute() => {
                bail!(InvalidArgument, "linux.namespaces: {path:?} is not an absolute path")
            }
            _ => {}
        }
    }
    if !seen.contains(&Mount) {
        bail!(InvalidArgument, "linux.namespaces: a mount namespace is required");
    }
    let has_mappings = !linux.uid_mappings().as_deref().unwrap_or_default().is_empty()
        || !linux.gid_mappings().as_deref().unwrap_or_default().is_empty();
    if has_mappings && !seen.contains(&LinuxNamespaceType::User) {
        bail!(InvalidArgument, "linux.uidMappings, linux.gidMappings: there is no user namespace to map");
    }
    for (field, value) in [("hostname", spec.hostname()), ("domainname", spec.domainname())] {
        if value.as_deref().is_some_and(|value| !value.is_empty()) && !seen.contains(&Uts) {
            bail!(InvalidArgument, "{field}: there is no UTS namespace to set it in");
        }
    }
    for key in linux.sysctl().iter().flatten().map(|(key, _)| key.as_str()) {
        let needed = match key.replace('/', ".").as_str() {
            key if key.starts_with("net.") => Network,
            key if key.starts_with("fs.mqueue.") => Ipc,
            "kernel.msgmax"
            | "kernel.msgmnb"
            | "kernel.msgmni"
            | "kernel.sem"
            | "kernel.shmall"
            | "kernel.shmmax"
            | "kernel.shmmni"
            | "kernel.shm_rmid_forced" => Ipc,
            "kernel.domainname" | "kernel.hostname" => Uts,
            _ => bail!(InvalidArgument, "linux.sysctl: {key} belongs to the host, not to a namespace"),
        };
        if !seen.contains(&needed) || key.contains("..") || key.contains('\0') {
            bail!(InvalidArgument, "linux.sysctl: {key} needs a {needed} namespace of the container");
        }
    }
    Ok(())
}

fn check_mounts(spec: &Spec) -> Result<()> {
    for mount in spec.mounts().iter().flatten() {
        let at = mount.destination();
        if !at.is_absolute() {
            bail!(InvalidArgument, "mounts: destination {at:?} is not an absolute path");
        }
        if !at.components().any(|component| matches!(component, Component::Normal(_))) {
            bail!(InvalidArgument, "mounts: destination {at:?} is the root itself");
        }
    }
    Ok(())
}

fn check_devices(linux: &Linux) -> Result<()> {
    for device in linux.devices().iter().flatten() {
        if !device.path().is_absolute() || device.path().file_name().is_none() {
            bail!(InvalidArgument, "linux.devices: {:?} is not an absolute path of a file", device.path());
        }
    }
    Ok(())
}

/// The first field that is set and not supported, if any.
pub(crate) fn refuse(fields: impl IntoIterator<Item = (&'static str, bool)>) -> Result<()> {
    match fields.into_iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => bail!(Unimplemented, "{field}: not supported"),
        None => Ok(()),
    }
}

fn is_set(value: &Option<String>) -> bool {
    value.as_deref().is_some_and(|value| !value.is_empty())
}

/// Every field of a process that hybrid does not do yet, and whether it is set to more than its default.
pub(crate) fn unsupported_of_process(process: &Process) -> [(&'static str, bool); 6] {
    [
        ("process.commandLine", is_set(process.command_line())),
        ("process.selinuxLabel", is_set(process.selinux_label())),
        ("process.ioPriority", process.io_priority().is_some()),
        ("process.scheduler", process.scheduler().is_some()),
        ("process.execCPUAffinity", process.exec_cpu_affinity().is_some()),
        ("process.user.username", is_set(process.user().username())),
    ]
}

/// Every other field of a spec that hybrid does not do yet, and whether it is set to more than its default.
fn unsupported(spec: &Spec, linux: &Linux) -> Vec<(&'static str, bool)> {
    fn list<T>(value: &Option<Vec<T>>) -> bool {
        value.as_deref().is_some_and(|value| !value.is_empty())
    }
    let namespace = |kind| linux.namespaces().iter().flatten().any(|namespace| namespace.typ() == kind);
    vec![
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
        ("linux.namespaces: time", namespace(LinuxNamespaceType::Time)),
        ("linux.timeOffsets", linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty())),
        ("linux.netDevices", linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty())),
        ("linux.mountLabel", is_set(linux.mount_label())),
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.personality", linux.personality().is_some()),
        ("mounts[].uidMappings", spec.mounts().iter().flatten().any(|mount| list(mount.uid_mappings()))),
        ("mounts[].gidMappings", spec.mounts().iter().flatten().any(|mount| list(mount.gid_mappings()))),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn config() -> Value {
        json!({
            "ociVersion": "1.1.0",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
        })
    }

    fn check_with(pointer: &str, value: Value) -> Result<()> {
        let mut config = config();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        config.pointer_mut(parent).unwrap()[key] = value;
        let spec = serde_json::from_value(config).or_kind(Kind::InvalidArgument, || "parse")?;
        check(&spec)
    }

    #[test]
    fn the_base_is_accepted() {
        check_with("/ociVersion", json!("1.3.0")).unwrap();
        check_with("/ociVersion", json!("1.0.2-dev")).unwrap();
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let parse = |json: &[u8]| from_json::<oci_spec::runtime::LinuxResources>(json, "linux.resources");
        assert_eq!(parse(br#"{"pids": {"limit": 5}}"#).unwrap().pids().unwrap().limit(), 5);
        for (json, start) in [
            (&br#"{"pids": {"limit": "many"}}"#[..], "linux.resources.pids.limit: "),
            (br#"{"devices": [{"allow": true}, {"allow": 1}]}"#, "linux.resources.devices[1].allow: "),
            (b"{} {}", "linux.resources: "),
            (b"", "linux.resources: "),
        ] {
            let error = parse(json).unwrap_err();
            assert_eq!(error.kind(), Kind::InvalidArgument);
            assert!(error.to_string().starts_with(start), "{error}");
        }
        let error = from_json::<Spec>(br#"{"ociVersion": "1.0.0", "process": {"cwd": 1}}"#, "").unwrap_err();
        assert!(error.to_string().starts_with("process.cwd: "), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            ("/ociVersion", json!("2.0.0"), "ociVersion"),
            ("/ociVersion", json!(""), "ociVersion"),
            ("/process/args", json!([]), "process.args"),
            ("/process/args", json!([""]), "process.args[0]"),
            ("/process/args", json!(["a\0b"]), "null byte"),
            ("/process/cwd", json!("relative"), "process.cwd"),
            ("/process/rlimits", json!([{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}]), "RLIMIT_CORE"),
            ("/root/path", json!(""), "root.path"),
            ("/linux/namespaces", json!([{"type": "pid"}]), "mount namespace"),
            ("/linux/namespaces", json!([{"type": "mount"}, {"type": "mount"}]), "twice"),
            ("/linux/uidMappings", json!([{"containerID": 0, "hostID": 0, "size": 1}]), "linux.uidMappings"),
            (
                "/linux",
                json!({
                    "namespaces": [{"type": "mount"}, {"type": "user"}],
                    "uidMappings": [{"containerID": 1, "hostID": 0, "size": 9}],
                    "gidMappings": [{"containerID": 0, "hostID": 0, "size": 9}],
                }),
                "linux.uidMappings: 0",
            ),
            (
                "/linux",
                json!({
                    "namespaces": [{"type": "mount"}, {"type": "user"}],
                    "uidMappings": [{"containerID": 0, "hostID": 5, "size": 1}],
                }),
                "linux.gidMappings: missing",
            ),
            ("/linux/sysctl", json!({"kernel.panic": "1"}), "kernel.panic"),
            ("/linux/sysctl", json!({"net.ipv4.ip_forward": "1"}), "net namespace"),
            ("/hostname", json!("a"), "hostname"),
            ("/hooks", json!({"poststop": [{"path": "a"}]}), "hooks.poststop[0].path"),
            ("/mounts", json!([{"destination": "a"}]), "mounts"),
            ("/mounts", json!([{"destination": "/"}]), "mounts"),
            ("/linux/devices", json!([{"path": "/", "type": "c", "major": 1, "minor": 3}]), "linux.devices"),
        ];
        for (pointer, value, word) in cases {
            let error = check_with(pointer, value.clone()).expect_err(&format!("{pointer} = {value}"));
            assert_eq!(error.kind(), Kind::InvalidArgument, "{pointer} = {value}: {error}");
            assert!(error.to_string().contains(word), "{pointer} = {value}: {error}");
        }
    }

    #[test]
    fn what_is_not_supported_is_refused_by_its_name() {
        let cases = [
            (
                "/linux/namespaces",
                json!([{"type": "mount"}, {"type": "user", "path": "/proc/1/ns/user"}]),
                "linux.namespaces: joining a user",
            ),
            ("/linux/namespaces", json!([{"type": "mount", "path": "/proc/1/ns/mnt"}]), "linux.namespaces: joining"),
            ("/linux/personality", json!({"domain": "LINUX32"}), "linux.personality"),
            ("/process/selinuxLabel", json!("a:b:c"), "process.selinuxLabel"),
            ("/linux/timeOffsets", json!({"boottime": {"secs": 1}}), "linux.timeOffsets"),
        ];
        for (pointer, value, field) in cases {
            let error = check_with(pointer, value).expect_err(pointer);
            assert_eq!(error.kind(), Kind::Unimplemented);
            assert!(error.to_string().starts_with(field), "{error}");
        }
    }
}
