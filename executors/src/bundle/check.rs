//! Everything about a spec that can be judged without looking at the host.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxDevice, LinuxNamespace, LinuxNamespaceType, Mount, Process, Root, Spec};

use super::args;
use super::unsupported::{refuse, unsupported};
use crate::error::{Result, bail};
use crate::hooks;
use crate::native::mounts::may_be_in_proc;
use crate::native::net_devices;
use crate::native::scheduling;
use crate::native::user_namespace::{self, on_host};
use crate::resctrl;

/// Checks a whole spec.
pub(super) fn check(spec: &Spec) -> Result<()> {
    check_version(spec.version())?;
    let Some(process) = spec.process() else { bail!(InvalidArgument, "process: missing") };
    let Some(linux) = spec.linux() else { bail!(InvalidArgument, "linux: missing") };
    let Some(root) = spec.root() else { bail!(InvalidArgument, "root: missing") };
    if root.path().as_os_str().is_empty() {
        bail!(InvalidArgument, "root.path: empty");
    }
    check_strings(spec, linux)?;
    check_init(process)?;
    scheduling::check_linux(linux)?;
    check_namespaces(spec, linux)?;
    check_user(process, linux)?;
    check_clocks(linux)?;
    net_devices::check(linux)?;
    resctrl::check(linux)?;
    check_mounts(spec)?;
    check_devices(linux)?;
    spec.hooks().as_ref().map_or(Ok(()), hooks::check)?;
    refuse(unsupported(spec))
}

/// What becomes a C string can't have a null byte in it; arguments, environment and sysctls are looked at with the rest.
fn check_strings(spec: &Spec, linux: &Linux) -> Result<()> {
    no_null("root.path", spec.root().as_ref().map(Root::path))?;
    no_null("hostname", spec.hostname())?;
    no_null("domainname", spec.domainname())?;
    for mount in spec.mounts().iter().flatten() {
        no_null("mounts", [mount.destination()])?;
        no_null("mounts: source", mount.source())?;
        no_null("mounts: type", mount.typ())?;
        no_null("mounts: options", mount.options().iter().flatten())?;
    }
    no_null("linux.cgroupsPath", linux.cgroups_path())?;
    no_null("linux.devices", linux.devices().iter().flatten().map(LinuxDevice::path))?;
    no_null("linux.maskedPaths", linux.masked_paths().iter().flatten())?;
    no_null("linux.namespaces", linux.namespaces().iter().flatten().filter_map(|namespace| namespace.path().as_ref()))?;
    no_null("linux.readonlyPaths", linux.readonly_paths().iter().flatten())
}

fn no_null<'a, S: AsRef<OsStr> + ?Sized + 'a>(field: &str, strings: impl IntoIterator<Item = &'a S>) -> Result<()> {
    match strings.into_iter().map(S::as_ref).find(|string| string.as_encoded_bytes().contains(&0)) {
        Some(string) => bail!(InvalidArgument, "{field}: {string:?} has a null byte in it"),
        None => Ok(()),
    }
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

/// Checks the process of an exec.
pub(crate) fn check_process(process: &Process) -> Result<()> {
    if args(process).is_empty() {
        bail!(InvalidArgument, "process.args: empty");
    }
    check_init(process)
}

/// Checks a process that may be without arguments: a module in the image itself takes none.
fn check_init(process: &Process) -> Result<()> {
    if args(process).first().is_some_and(String::is_empty) {
        bail!(InvalidArgument, "process.args[0]: empty");
    }
    no_null("process.cwd", [process.cwd()])?;
    no_null("process.apparmorProfile", process.apparmor_profile())?;
    if !process.cwd().is_absolute() {
        bail!(InvalidArgument, "process.cwd: {:?} is not an absolute path", process.cwd());
    }
    let strings = process.args().iter().flatten().chain(process.env().iter().flatten());
    if let Some(string) = strings.into_iter().find(|s| s.contains('\0')) {
        bail!(InvalidArgument, "process: {string:?} has a null byte in it");
    }
    let groups = process.user().additional_gids().as_deref().unwrap_or_default().len();
    if groups > MAX_GROUPS {
        bail!(InvalidArgument, "process.user.additionalGids: {groups} groups, and the kernel takes {MAX_GROUPS}");
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
    scheduling::check(process)
}

/// As many ranges as the kernel maps in a user namespace (user_namespaces(7)).
const MAX_MAPPINGS: usize = 340;

/// As many groups as a process can be in (NGROUPS_MAX, setgroups(2)).
const MAX_GROUPS: usize = 65536;

/// A user namespace needs its mappings, with a root in it; the process's ids must be among those that are mapped.
fn check_user(process: &Process, linux: &Linux) -> Result<()> {
    let uids = linux.uid_mappings().as_deref().unwrap_or_default();
    let gids = linux.gid_mappings().as_deref().unwrap_or_default();
    // One that is joined has mappings already.
    let is_new = |n: &LinuxNamespace| n.path().as_deref().is_none_or(|path| path.as_os_str().is_empty());
    let mut namespaces = linux.namespaces().iter().flatten();
    let has_namespace = namespaces.any(|n| n.typ() == LinuxNamespaceType::User && is_new(n));
    for (field, mappings) in [("linux.uidMappings", uids), ("linux.gidMappings", gids)] {
        if mappings.len() > MAX_MAPPINGS {
            bail!(InvalidArgument, "{field}: {} ranges, and the kernel takes {MAX_MAPPINGS}", mappings.len());
        }
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
            (_, Some(path)) if !path.as_os_str().is_empty() && !path.is_absolute() => {
                bail!(InvalidArgument, "linux.namespaces: {path:?} is not an absolute path")
            }
            _ => {}
        }
    }
    if !seen.contains(&Mount) {
        check_without_mount_namespace(linux, seen.contains(&User))?;
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
    no_null("linux.sysctl", linux.sysctl().iter().flatten().flat_map(|(key, value)| [key, value]))?;
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
            key if key.starts_with("user.") => User,
            _ => bail!(InvalidArgument, "linux.sysctl: {key} belongs to the host, not to a namespace"),
        };
        if !seen.contains(&needed) || key.contains("..") {
            bail!(InvalidArgument, "linux.sysctl: {key} needs a {needed} namespace of the container");
        }
    }
    Ok(())
}

/// What a container can't have whose mounts are the host's: as with runc what hides or changes the host's own, and what only
/// the root of a mount namespace's user namespace may do.
fn check_without_mount_namespace(linux: &Linux, has_user_namespace: bool) -> Result<()> {
    let is_set = |paths: &Option<Vec<String>>| paths.as_ref().is_some_and(|paths| !paths.is_empty());
    let propagation = linux.rootfs_propagation().as_deref().unwrap_or_default();
    for (field, is_set) in [
        ("linux.maskedPaths", is_set(linux.masked_paths())),
        ("linux.readonlyPaths", is_set(linux.readonly_paths())),
        ("linux.rootfsPropagation", !propagation.is_empty()),
        ("linux.namespaces: user", has_user_namespace),
    ] {
        if is_set {
            bail!(InvalidArgument, "{field}: needs a mount namespace of the container");
        }
    }
    Ok(())
}

/// The clocks of a new time namespace (time_namespaces(7)).
fn check_clocks(linux: &Linux) -> Result<()> {
    const FIELD: &str = "linux.timeOffsets";
    let Some(offsets) = linux.time_offsets().as_ref().filter(|offsets| !offsets.is_empty()) else { return Ok(()) };
    let mut namespaces = linux.namespaces().iter().flatten();
    match namespaces.find(|namespace| namespace.typ() == LinuxNamespaceType::Time).map(LinuxNamespace::path) {
        None => bail!(InvalidArgument, "{FIELD}: there is no time namespace to set the clocks of"),
        Some(Some(path)) if !path.as_os_str().is_empty() => {
            bail!(InvalidArgument, "{FIELD}: the clocks of the time namespace {} are set", path.display())
        }
        Some(_) => {}
    }
    for (clock, offset) in offsets {
        if clock != "monotonic" && clock != "boottime" {
            bail!(InvalidArgument, "{FIELD}: {clock:?} is neither monotonic nor boottime");
        }
        if offset.nanosecs().is_some_and(|nanoseconds| nanoseconds >= 1_000_000_000) {
            bail!(InvalidArgument, "{FIELD}: {clock}: nanosecs make more than a second");
        }
    }
    Ok(())
}

fn check_mounts(spec: &Spec) -> Result<()> {
    for mount in spec.mounts().iter().flatten() {
        let at = mount.destination();
        if !at.components().any(|component| matches!(component, Component::Normal(_))) {
            bail!(InvalidArgument, "mounts: destination {at:?} is the root itself");
        }
        check_proc(mount)?;
    }
    Ok(())
}

/// The kernel's /proc is masked and made read-only by its paths: so it must be there, and whole (as with runc).
fn check_proc(mount: &Mount) -> Result<()> {
    let mut at = PathBuf::new();
    for component in mount.destination().components() {
        if component == Component::ParentDir {
            at.pop()
        } else {
            at.push(component);
            true
        };
    }
    if at == Path::new("/proc") {
        let options = mount.options().as_deref().unwrap_or_default();
        let is_bind = options.iter().any(|option| option == "bind" || option == "rbind");
        match mount.typ().as_deref() {
            Some("proc" | "bind") => {}
            // Whether its source is a procfs is looked at when it is opened.
            _ if is_bind => {}
            _ => bail!(InvalidArgument, "mounts: destination {at:?}: only a procfs may be mounted on /proc"),
        }
    } else if at.starts_with("/proc") && !may_be_in_proc(at.as_os_str().as_encoded_bytes()) {
        bail!(InvalidArgument, "mounts: destination {at:?} is inside /proc");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Kind;
    use crate::bundle::from_json;
    use crate::error::OrKind;
    use serde_json::{Value, json};

    fn config() -> Value {
        json!({
            "ociVersion": "1.1.0",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/true"], "cwd": "/"},
            "root": {"path": "rootfs"},
            "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]},
        })
    }

    fn time(path: &str, clock: &str, nanosecs: u32) -> Value {
        let namespaces = json!([{"type": "mount"}, {"type": "time", "path": path}]);
        json!({"namespaces": namespaces, "timeOffsets": {clock: {"secs": 1, "nanosecs": nanosecs}}})
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
            ("/process/args", json!([""]), "process.args[0]"),
            ("/process/args", json!(["a\0b"]), "null byte"),
            ("/process/cwd", json!("relative"), "process.cwd"),
            ("/process/rlimits", json!([{"type": "RLIMIT_CORE", "soft": 2, "hard": 1}]), "RLIMIT_CORE"),
            ("/root/path", json!(""), "root.path"),
            ("/linux", json!({"namespaces": [], "maskedPaths": ["/proc/keys"]}), "linux.maskedPaths"),
            ("/linux", json!({"namespaces": [], "readonlyPaths": ["/proc"]}), "linux.readonlyPaths"),
            ("/linux", json!({"namespaces": [], "rootfsPropagation": "private"}), "linux.rootfsPropagation"),
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
            ("/linux/sysctl", json!({"user.max_user_namespaces": "1"}), "user namespace"),
            ("/linux/timeOffsets", json!({"boottime": {"secs": 1}}), "time namespace"),
            ("/linux", time("/proc/1/ns/time", "boottime", 0), "linux.timeOffsets"),
            ("/linux", time("", "realtime", 0), "linux.timeOffsets"),
            ("/linux", time("", "monotonic", 1_000_000_000), "linux.timeOffsets: monotonic"),
            ("/linux/netDevices", json!({"eth0": {}}), "linux.netDevices"),
            ("/hostname", json!("a"), "hostname"),
            ("/hooks", json!({"poststop": [{"path": "a"}]}), "hooks.poststop[0].path"),
            ("/mounts", json!([{"destination": ""}]), "mounts"),
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
    fn what_is_ignored_as_with_runc() {
        check_with("/linux/personality", json!({"domain": "LINUX32", "flags": ["ADDR_NO_RANDOMIZE"]})).unwrap();
    }
}
