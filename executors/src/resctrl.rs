//! Shares of the processor's cache and memory bandwidth (Intel RDT, `linux.intelRdt`): a group of the host's resctrl file
//! system that the container's processes are in.
//!
//! Source: OCI runtime spec 1.3, config-linux.md "IntelRdt"; the kernel's filesystems/resctrl.rst.

use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxIntelRdt};

use crate::Kind;
use crate::bundle::Bundle;
use crate::error::{OrKind, Result, bail};

/// A container's group. Dropping it removes what was made for the container; its processes are in the parent's group then.
pub(crate) struct Resctrl {
    group: PathBuf,
    /// The container's own group for counting, inside of that.
    monitoring: Option<PathBuf>,
    /// What to remove, in this order.
    made: Vec<PathBuf>,
}

/// Judges the spec's part without looking at the host.
pub(crate) fn check(linux: &Linux) -> Result<()> {
    let Some(rdt) = linux.intel_rdt() else { return Ok(()) };
    let closid = rdt.clos_id().as_deref().unwrap_or_default();
    if closid == "." || closid == ".." || closid.contains('\0') || closid.len() > 1 && closid.contains('/') {
        bail!(InvalidArgument, "linux.intelRdt.closID: {closid:?} is not a name");
    }
    if lines(rdt).iter().any(|line| line.contains(['\n', '\0'])) {
        bail!(InvalidArgument, "linux.intelRdt.schemata: a schema is one line");
    }
    Ok(())
}

/// What is written to `schemata`, line by line. Later lines win, so the whole list does.
fn lines(rdt: &LinuxIntelRdt) -> Vec<&str> {
    let schemata = rdt.schemata().iter().flatten();
    let all = rdt.l3_cache_schema().iter().chain(rdt.mem_bw_schema()).chain(schemata);
    all.map(String::as_str).filter(|line| !line.is_empty()).collect()
}

#[allow(deprecated, reason = "what specs before 1.3 had in place of enableMonitoring")]
fn is_monitored(rdt: &LinuxIntelRdt) -> bool {
    [rdt.enable_monitoring(), rdt.enable_cmt(), rdt.enable_mbm()].into_iter().any(|word| *word == Some(true))
}

impl Resctrl {
    /// Makes the bundle's group, or finds the one that it names.
    ///
    /// # Errors
    /// FailedPrecondition when the host has no resctrl, or lacks what the spec assumes; InvalidArgument for what the kernel
    /// does not take.
    pub fn create(bundle: &Bundle) -> Result<Option<Resctrl>> {
        let Some(rdt) = bundle.linux().intel_rdt() else { return Ok(None) };
        let Some(root) = root()? else {
            bail!(FailedPrecondition, "linux.intelRdt: this host has no resctrl file system mounted");
        };
        Self::make(&root, bundle.id(), rdt).map(Some)
    }

    fn make(root: &Path, id: &str, rdt: &LinuxIntelRdt) -> Result<Resctrl> {
        for (field, wanted, resource) in [
            ("linux.intelRdt.l3CacheSchema", rdt.l3_cache_schema(), "info/L3"),
            ("linux.intelRdt.memBwSchema", rdt.mem_bw_schema(), "info/MB"),
        ] {
            let is_wanted = wanted.as_deref().is_some_and(|schema| !schema.is_empty());
            if is_wanted && !root.join(resource).exists() {
                bail!(FailedPrecondition, "{field}: {} is not there", root.join(resource).display());
            }
        }
        let closid = rdt.clos_id().as_deref().filter(|closid| !closid.is_empty());
        let schemata = lines(rdt);
        // "/" is the group that all are in at first.
        let group = root.join(closid.unwrap_or(id).trim_start_matches('/'));
        let what = || format!("linux.intelRdt.closID: group {}", group.display());
        let mut resctrl = Resctrl { group: group.clone(), monitoring: None, made: Vec::new() };
        if closid.is_some() && schemata.is_empty() {
            if !group.exists() {
                bail!(FailedPrecondition, "{}: not there, and there are no schemata to make it of", what());
            }
        } else {
            let is_new = make_folder(&group).or_kind(Kind::FailedPrecondition, what)?;
            if is_new && closid.is_none() {
                // One with a name is others' too.
                resctrl.made.push(group.clone());
            }
        }
        if !schemata.is_empty() {
            let text: String = schemata.iter().flat_map(|line| [*line, "\n"]).collect();
            let file = group.join("schemata");
            std::fs::write(&file, &text).or_kind(Kind::InvalidArgument, || {
                let said = std::fs::read_to_string(root.join("info/last_cmd_status")).unwrap_or_default();
                format!("linux.intelRdt.schemata: write {text:?} to {}: {}", file.display(), said.trim())
            })?;
        }
        if is_monitored(rdt) {
            let monitoring = group.join("mon_groups").join(id);
            let what = || format!("linux.intelRdt.enableMonitoring: {}", monitoring.display());
            if make_folder(&monitoring).or_kind(Kind::FailedPrecondition, what)? {
                resctrl.made.insert(0, monitoring.clone());
            }
            resctrl.monitoring = Some(monitoring);
        }
        Ok(resctrl)
    }

    /// The files by which a process enters it by itself, as those of a cgroup of v1: zero is who writes.
    pub fn task_files(&self) -> Result<Vec<OwnedFd>> {
        let folders = [Some(&self.group), self.monitoring.as_ref()].into_iter().flatten();
        let open = |folder: &PathBuf| {
            let path = folder.join("tasks");
            let file = std::fs::File::options().write(true).open(&path);
            file.map(OwnedFd::from).or_kind(Kind::Internal, || format!("linux.intelRdt: open {}", path.display()))
        };
        folders.map(open).collect()
    }

    /// Removes what a dead shim has left of a container's group.
    pub fn clean(bundle: &Bundle) {
        let Some(rdt) = bundle.linux().intel_rdt() else { return };
        if let Ok(Some(root)) = root() {
            remove(&of_the_container(&root, bundle.id(), rdt));
        }
    }
}

impl Drop for Resctrl {
    fn drop(&mut self) {
        remove(&self.made);
    }
}

/// The folders that bear the container's id.
fn of_the_container(root: &Path, id: &str, rdt: &LinuxIntelRdt) -> Vec<PathBuf> {
    let closid = rdt.clos_id().as_deref().filter(|closid| !closid.is_empty());
    let group = root.join(closid.unwrap_or(id).trim_start_matches('/'));
    let monitoring = is_monitored(rdt).then(|| group.join("mon_groups").join(id));
    monitoring.into_iter().chain(closid.is_none().then_some(group)).collect()
}

fn remove(folders: &[PathBuf]) {
    for folder in folders {
        match std::fs::remove_dir(folder) {
            Err(e) if e.kind() != ErrorKind::NotFound => log::warn!("remove {}: {e}", folder.display()),
            _ => {}
        }
    }
}

/// Whether the folder is new.
fn make_folder(folder: &Path) -> io::Result<bool> {
    match std::fs::create_dir(folder) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    }
}

/// Where resctrl is mounted, if it is (proc_pid_mountinfo(5)).
fn root() -> Result<Option<PathBuf>> {
    const MOUNTINFO: &str = "/proc/self/mountinfo";
    let text = std::fs::read_to_string(MOUNTINFO).or_kind(Kind::Internal, || format!("read {MOUNTINFO}"))?;
    let line = text.lines().find(|line| line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("resctrl ")));
    Ok(line.and_then(|line| line.split(' ').nth(4)).map(PathBuf::from))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};
    use std::fs;

    fn make(root: &Path, rdt: Value) -> Result<Resctrl> {
        Resctrl::make(root, "box", &serde_json::from_value(rdt).unwrap())
    }

    fn root_with(names: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| fs::create_dir_all(root.path().join(name)).unwrap());
        root
    }

    #[test]
    fn a_group_of_its_own_is_made_and_removed() {
        let root = root_with(&["info/L3", "info/MB"]);
        let rdt = json!({"l3CacheSchema": "L3:0=f", "memBwSchema": "MB:0=20", "schemata": ["L3:0=ff"]});
        let mut resctrl = make(root.path(), rdt).unwrap();
        let schemata = root.path().join("box/schemata");
        assert_eq!(fs::read_to_string(&schemata).unwrap(), "L3:0=f\nMB:0=20\nL3:0=ff\n", "the list wins");
        assert_eq!(resctrl.made, [root.path().join("box")]);
        // The kernel's own files are no hindrance to removing a group.
        fs::remove_file(schemata).unwrap();
        fs::write(root.path().join("box/tasks"), "").unwrap();
        assert_eq!(resctrl.task_files().unwrap().len(), 1);
        fs::remove_file(root.path().join("box/tasks")).unwrap();
        resctrl.made.push(root.path().join("gone"));
        drop(resctrl);
        assert!(!root.path().join("box").exists());
    }

    #[test]
    fn a_group_with_a_name_stays_and_its_monitoring_goes() {
        let root = root_with(&["shared/mon_groups"]);
        let rdt = json!({"closID": "shared", "enableMonitoring": true});
        drop(make(root.path(), rdt.clone()).unwrap());
        assert!(root.path().join("shared").exists() && !root.path().join("shared/mon_groups/box").exists());
        let folders = of_the_container(root.path(), "box", &serde_json::from_value(rdt).unwrap());
        assert_eq!(folders, [root.path().join("shared/mon_groups/box")]);
        // The group that everything is in at first.
        assert_eq!(make(root.path(), json!({"closID": "/"})).unwrap().group, root.path());
    }

    #[test]
    fn what_the_host_lacks_is_named() {
        let root = root_with(&[]);
        for (rdt, word) in [
            (json!({"l3CacheSchema": "L3:0=f"}), "linux.intelRdt.l3CacheSchema"),
            (json!({"memBwSchema": "MB:0=20"}), "linux.intelRdt.memBwSchema"),
            (json!({"closID": "missing"}), "linux.intelRdt.closID"),
        ] {
            let error = make(root.path(), rdt).err().unwrap();
            assert_eq!(error.kind(), Kind::FailedPrecondition, "{error}");
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for rdt in [json!({"closID": "a/b"}), json!({"closID": ".."}), json!({"schemata": ["L3:0=f\nMB:0=1"]})] {
            let linux = serde_json::from_value(json!({ "intelRdt": rdt })).unwrap();
            assert_eq!(check(&linux).unwrap_err().kind(), Kind::InvalidArgument, "{rdt}");
        }
    }
}
