//! Changing the limits and device rules of a cgroup with processes in it: all of what is asked for, or nothing.
//!
//! ```text
//! limits::changes (pure) ─> old values read ─> limits written ─> device rules ─> limits of memory written
//!                                                    └───── one fails: what was written is set back, from the last
//! ```
//! A limit of memory comes last because the kernel may kill for it at once, which nothing can undo.

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use cgroups_rs::fs::Controllers;
use oci_spec::runtime::{LinuxMemory, LinuxResources};

use super::Cgroup;
use super::devices::v1::{Devices, transition};
use super::devices::{Attached, Rule, rules};
use super::folders::write;
use super::limits::{self, Missing, Setting};
use crate::Kind;
use crate::error::{Error, OrKind, Result, bail};

/// One file to change.
struct Change {
    field: &'static str,
    path: PathBuf,
    value: String,
    /// What sets it back; `None` where its content can't be read.
    old: Option<String>,
}

/// Device rules as they were.
enum Old {
    V1(Devices),
    V2(Vec<Rule>),
}

impl Cgroup {
    /// Changes what `resources` has; what is not set, or zero, stays as it is.
    ///
    /// # Errors
    /// Nothing has changed then. InvalidArgument for what is wrong with the named field; FailedPrecondition for what this
    /// host or the present state does not allow; Unimplemented for what this version of cgroups lacks; NotFound when the
    /// cgroup is gone.
    pub fn update(&self, resources: &LinuxResources) -> Result<()> {
        // One change at a time: what one finds is what it sets back.
        let mut attached = self.changing();
        if !self.exists() {
            return self.gone();
        }
        let now = |file: &str| std::fs::read_to_string(self.controller_folder(&None)?.join(file)).ok();
        let settings = limits::changes(resources, self.v2(), &now)?;
        if let Some(memory) = resources.memory().filter(|memory| memory.check_before_update() == Some(true)) {
            self.check_usage(&memory)?;
        }
        let (mut changes, mut changed) = (Vec::new(), Vec::new());
        for setting in settings {
            if let Some(change) = self.change(&setting)? {
                changes.push(change);
                changed.push(setting);
            }
        }
        let is_memory = |change: &Change| {
            change.path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"memory."))
        };
        let (memory, others): (Vec<_>, Vec<_>) = changes.into_iter().partition(is_memory);
        // An empty list is one that is not set.
        let rules = resources.devices().as_deref().filter(|devices| !devices.is_empty()).map(rules);

        let mut done = Vec::new();
        let result = self.apply(others, &mut done).and_then(|()| {
            let old = rules.clone().map(|rules| self.change_devices(&mut attached, rules)).transpose()?;
            let result = self.apply(memory, &mut done).and_then(|()| self.tell_systemd(&changed, rules.as_deref()));
            result.map_err(|error| match old.flatten().map(|old| self.restore_devices(&mut attached, old)) {
                Some(Err(e)) => error.context(format!("the device rules could not be set back: {e}")),
                _ => error,
            })
        });
        result.map_err(|error| set_back(done, error))
    }

    /// Refuses a limit that is used up already. Without this v1 refuses one that it can't make true, and v2 kills.
    fn check_usage(&self, memory: &LinuxMemory) -> Result<()> {
        let folder = self.controller_folder(&(!self.v2()).then_some(Controllers::Mem)).unwrap_or_default();
        let number = |file| {
            let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
            text.trim().parse::<i64>().unwrap_or_default()
        };
        let (memory_used, both_used) = if self.v2() {
            let used = number("memory.current");
            (used, used.saturating_add(number("memory.swap.current")))
        } else {
            (number("memory.usage_in_bytes"), number("memory.memsw.usage_in_bytes"))
        };
        for (field, limit, used) in [("limit", memory.limit(), memory_used), ("swap", memory.swap(), both_used)] {
            if let Some(limit @ 1..) = limit
                && limit <= used
            {
                bail!(
                    FailedPrecondition,
                    "linux.resources.memory.{field}: {limit} is not above the {used} bytes in use"
                );
            }
        }
        Ok(())
    }

    /// Tells the limits to systemd, if the cgroup is a unit's.
    fn tell_systemd(&self, changed: &[Setting], rules: Option<&[Rule]>) -> Result<()> {
        let Some(unit) = &self.unit else { return Ok(()) };
        let period = || {
            let folder = self.controller_folder(&Some(Controllers::Cpu))?;
            std::fs::read_to_string(folder.join("cpu.cfs_period_us")).ok()?.trim().parse().ok()
        };
        let period = if self.v2() { None } else { period() };
        let Some(rules) = rules.filter(|_| !self.v2()) else { return unit.set(changed, None, self.v2(), period) };
        // systemd denies everything for a moment, and what it has no words for afterwards.
        let _still = self.still();
        unit.set(changed, Some(rules), false, period)?;
        self.change_devices_v1(&Devices::from_rules(rules)).map(drop)
    }

    /// What a setting changes; `None` when it is so already, or when there is nothing to limit.
    fn change(&self, setting: &Setting) -> Result<Option<Change>> {
        let Setting { field, controller, mut file, mut value, missing } = setting.clone();
        let Some(folder) = self.controller_folder(&controller) else {
            bail!(FailedPrecondition, "{field}: this host has no cgroup controller {controller:?}");
        };
        if !folder.join(&file).exists() {
            match missing {
                Missing::Same => return Ok(None),
                Missing::Instead { file: other, value: its } if folder.join(&other).exists() => {
                    (file, value) = (other, its);
                }
                _ => bail!(FailedPrecondition, "{field}: cgroup {} has no {file}", self.groups.path()),
            }
        }
        let path = folder.join(&file);
        let old = std::fs::read_to_string(&path).ok().and_then(|text| previous(&file, &value, &text));
        if old.as_deref() == Some(&value) {
            return Ok(None);
        }
        Ok(Some(Change { field, path, value, old }))
    }

    /// Writes changes. Some depend on others (a limit of memory on that of memory and swap, a quota on its period and
    /// burst, shares on idleness), and which must be first depends on the old and new values: so one that is refused is
    /// tried again when others were taken.
    fn apply(&self, changes: Vec<Change>, done: &mut Vec<Change>) -> Result<()> {
        let mut left = changes;
        loop {
            let (mut refused, mut error) = (Vec::new(), None);
            let before = done.len();
            for change in left {
                match write(&change.path, &change.value) {
                    Ok(()) => done.push(change),
                    Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {
                        error.get_or_insert(e);
                        refused.push(change);
                    }
                    Err(e) => return Err(self.explain(&change, e)),
                }
            }
            match (refused.first(), error) {
                (Some(change), Some(e)) if done.len() == before => return Err(self.explain(change, e)),
                (Some(_), _) => left = refused,
                (None, _) => return Ok(()),
            }
        }
    }

    fn explain(&self, change: &Change, e: io::Error) -> Error {
        let Change { field, path, value, .. } = change;
        let kind = match e.raw_os_error() {
            _ if !self.exists() => Kind::NotFound,
            Some(libc::EBUSY | libc::ENOSPC | libc::EPERM | libc::EACCES) => Kind::FailedPrecondition,
            _ => Kind::InvalidArgument,
        };
        let mut text = format!("{field}: write {value:?} to {}", path.display());
        if e.raw_os_error() == Some(libc::EBUSY)
            && let Some(used) = usage_beside(path)
        {
            text = format!("{text}: {used} bytes are in use");
        }
        Error::new(kind, e).context(text)
    }

    /// Changes the device rules; what they were, if they are others now. They are as they were on failure.
    fn change_devices(&self, attached: &mut Option<Attached>, rules: Vec<Rule>) -> Result<Option<Old>> {
        if self.v2() {
            return Ok(self.change_devices_v2(attached, rules)?.map(Old::V2));
        }
        let wanted = Devices::from_rules(&rules);
        let Some(old) = self.change_devices_v1(&wanted)? else { return Ok(None) };
        let shown = std::fs::read_to_string(self.devices_folder()?.join("devices.list"));
        if shown.is_ok_and(|text| wanted.shows(&text)) {
            return Ok(Some(Old::V1(old)));
        }
        self.change_devices_v1(&old)?;
        bail!(Internal, "linux.resources.devices: the cgroup did not take the rules as they are")
    }

    fn restore_devices(&self, attached: &mut Option<Attached>, old: Old) -> Result<()> {
        match old {
            Old::V1(devices) => self.change_devices_v1(&devices).map(drop),
            Old::V2(rules) => self.change_devices_v2(attached, rules).map(drop),
        }
    }

    fn change_devices_v2(&self, attached: &mut Option<Attached>, rules: Vec<Rule>) -> Result<Option<Vec<Rule>>> {
        let Some(old) = attached else {
            bail!(FailedPrecondition, "linux.resources.devices: this is not the process that made the cgroup")
        };
        if old.rules() == rules {
            return Ok(None);
        }
        let new = old.replace(self.directory()?.as_fd(), rules)?;
        Ok(std::mem::replace(old, new).into_rules().into())
    }

    fn devices_folder(&self) -> Result<PathBuf> {
        match self.controller_folder(&Some(Controllers::Devices)) {
            Some(folder) => Ok(folder),
            None => bail!(FailedPrecondition, "linux.resources.devices: this host has no such cgroup controller"),
        }
    }

    fn change_devices_v1(&self, wanted: &Devices) -> Result<Option<Devices>> {
        let folder = self.devices_folder()?;
        let list = || {
            let text = std::fs::read_to_string(folder.join("devices.list"));
            text.or_kind(Kind::Internal, || format!("read devices.list of {}", folder.display()))
        };
        let now = Devices::parse(&list()?);
        let change = transition(now.as_ref(), wanted);
        // Exceptions to what is allowed are not shown: there only all being allowed is known to be the same.
        if change.rules.is_empty() || now.is_none() && wanted.allows_all() {
            return Ok(None);
        }
        // For a moment too much or too little would be allowed: nobody runs then.
        let _still = change.disrupts.then(|| self.still());
        let old = now.unwrap_or_else(Devices::all);
        match write_rules(&folder, &change.rules) {
            Ok(()) => Ok(Some(old)),
            Err((rule, e)) => {
                let restored = list().and_then(|text| {
                    let back = transition(Devices::parse(&text).as_ref(), &old);
                    write_rules(&folder, &back.rules).map_err(|(_, e)| Error::new(Kind::Internal, e))
                });
                let error = Error::new(Kind::FailedPrecondition, e)
                    .context(format!("linux.resources.devices: write {rule:?} to cgroup {}", folder.display()));
                Err(match restored {
                    Ok(()) => error,
                    Err(e) => error.context(format!("the device rules could not be set back: {e}")),
                })
            }
        }
    }
}

fn write_rules(folder: &Path, rules: &[Rule]) -> Result<(), (String, io::Error)> {
    for rule in rules {
        let file = if rule.allow { "devices.allow" } else { "devices.deny" };
        write(&folder.join(file), &rule.to_string()).map_err(|e| (format!("{file}: {rule}"), e))?;
    }
    Ok(())
}

/// How much is used of what a v1 limit bounds: of `memory.memsw.limit_in_bytes` it is in `memory.memsw.usage_in_bytes`.
fn usage_beside(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?.strip_suffix("limit_in_bytes")?;
    Some(std::fs::read_to_string(path.with_file_name(format!("{file}usage_in_bytes"))).ok()?.trim().to_owned())
}

/// Undoes changes from the last to the first, so that each step back is one that the kernel has taken before.
fn set_back(done: Vec<Change>, error: Error) -> Error {
    let mut lost = Vec::new();
    for change in done.into_iter().rev() {
        let written = match &change.old {
            Some(old) => write(&change.path, old),
            None => Err(io::Error::other("its old content is not known")),
        };
        if let Err(e) = written {
            lost.push(format!("{}: {e}", change.path.display()));
        }
    }
    if lost.is_empty() { error } else { error.context(format!("could not set back {}", lost.join(", "))) }
}

/// What to write to a file so that it is again as it was when it read `text`, after `value` was written to it.
fn previous(file: &str, value: &str, text: &str) -> Option<String> {
    let line = |key: &str| text.lines().find(|line| line.split_once(' ').is_some_and(|(found, _)| found == key));
    // Files with a line for each device; the value without a device is the default.
    let unset = match file {
        "io.max" => "rbps=max wbps=max riops=max wiops=max",
        "rdma.max" => "hca_handle=max hca_object=max",
        "io.weight" | "io.bfq.weight" | "blkio.bfq.weight" | "blkio.bfq.weight_device" => "default",
        file if file.starts_with("blkio.throttle.") => "0",
        "net_prio.ifpriomap" => "0",
        "memory.oom_control" => return line("oom_kill_disable")?.split_once(' ').map(|(_, value)| value.to_owned()),
        _ => {
            let mut lines = text.lines();
            return match (lines.next(), lines.next()) {
                // A write of nothing at all would not reach the kernel.
                (None, _) | (Some(""), None) => Some("\n".to_owned()),
                (Some(only), None) => Some(only.trim_end().to_owned()),
                // Lines by key, in a file that is not known here.
                (Some(_), Some(_)) => line(value.split_once(' ')?.0).map(str::to_owned),
            };
        }
    };
    match value.split_once(' ').filter(|(key, _)| *key != "default") {
        Some((key, _)) => Some(line(key).map_or_else(|| format!("{key} {unset}"), str::to_owned)),
        None => line("default").or(text.lines().next()).map(str::to_owned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_there_before() {
        let cases = [
            ("pids.max", "5", "max\n", Some("max")),
            ("cpu.max", "1000 100000", "max 100000\n", Some("max 100000")),
            ("cpuset.cpus", "0", "\n", Some("\n")),
            ("memory.oom_control", "1", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n", Some("0")),
            (
                "io.max",
                "8:0 rbps=1",
                "8:0 rbps=5 wbps=max riops=max wiops=max\n",
                Some("8:0 rbps=5 wbps=max riops=max wiops=max"),
            ),
            ("io.max", "8:1 rbps=1", "8:16 rbps=5\n", Some("8:1 rbps=max wbps=max riops=max wiops=max")),
            ("io.weight", "default 5", "default 100\n8:0 7\n", Some("default 100")),
            ("io.bfq.weight", "500", "default 100\n", Some("default 100")),
            ("io.bfq.weight", "8:0 5", "default 100\n", Some("8:0 default")),
            ("blkio.bfq.weight", "500", "100\n", Some("100")),
            ("blkio.throttle.read_bps_device", "8:0 5", "8:0 77\n", Some("8:0 77")),
            ("blkio.throttle.read_bps_device", "8:16 5", "8:0 77\n", Some("8:16 0")),
            ("misc.max", "sev 5", "sev 9\nsev_es max\n", Some("sev 9")),
            ("rdma.max", "mlx5_1 hca_handle=3", "", Some("mlx5_1 hca_handle=max hca_object=max")),
        ];
        for (file, value, text, wanted) in cases {
            assert_eq!(previous(file, value, text).as_deref(), wanted, "{file} {value:?}");
        }
    }

    #[test]
    fn what_is_undone_goes_backwards_and_says_what_it_could_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "9").unwrap();
        let change = |value: &str, old: Option<&str>, path: &Path| Change {
            field: "f",
            path: path.to_owned(),
            value: value.to_owned(),
            old: old.map(str::to_owned),
        };
        let done = vec![change("1", Some("0"), &path), change("2", Some("1"), &path)];
        let error = || Error::new(Kind::InvalidArgument, anyhow::anyhow!("no"));
        assert_eq!(set_back(done, error()).to_string(), "no");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "0");
        let done = vec![change("1", None, &path), change("2", Some("1"), &folder.path().join("none"))];
        let text = set_back(done, error()).to_string();
        assert!(text.contains("/none: ") && text.contains("/a: its old content") && text.ends_with(": no"), "{text}");
    }
}
