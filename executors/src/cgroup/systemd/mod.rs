//! The systemd cgroup driver: a container's cgroup belongs to a transient unit of systemd's, a scope in a slice.
//!
//! ```text
//! create   placeholder cloned ─> StartTransientUnit with its pid and the limits ─> systemd makes the cgroup
//!          ─> what systemd knows nothing of is written to its files, as always ─> init is born in it ─> placeholder killed
//! update   files written ─> SetUnitProperties, so that systemd writes the same when it writes again (daemon-reload)
//! delete   everything in it killed ─> StopUnit
//! ```
//! All the rest (statistics, freezer, signals, exec, notice of OOM) is the same for any cgroup.
//!
//! A scope takes only processes that exist, so something has to be in it before init is: a placeholder that does nothing.
//! Thus init finds its limits and device rules in force, as with cgroups of our own, and its plan can name the cgroup's files.
//!
//! Source: config-linux.md "Cgroups Path"; org.freedesktop.systemd1(5), systemd.scope(5), systemd.slice(5) and systemd's
//! CGROUP_DELEGATION.md; `slice:prefix:name` is runc's (docs/systemd.md).

pub(crate) mod annotations;
mod bus;
mod message;
mod name;
mod placeholder;
mod properties;

use std::collections::HashMap;
use std::path::Path;

use zbus::zvariant::Value;

use self::annotations::Named;
use self::bus::{Failure, Manager};
pub(super) use self::name::Unit;
use self::properties::{Host, Property};
use super::limits::Setting;
use crate::Kind;
use crate::bundle::Bundle;
use crate::error::{Error, Result, bail};
use crate::process::Unfinished;

/// Whether process 1 is systemd (sd_booted(3)). Where /run is another host's or container's it is not, and pids would mean
/// other processes to that systemd.
pub(super) fn is_running() -> bool {
    Path::new("/run/systemd/system").is_dir()
        && std::fs::read_to_string("/proc/1/comm").is_ok_and(|name| name.trim_end() == "systemd")
}

/// Fails where it is not.
pub(super) fn require() -> Result<()> {
    if !is_running() {
        bail!(
            FailedPrecondition,
            "the systemd cgroup driver (linux.cgroupsPath of the form slice:prefix:name, or the runtime option \
             SystemdCgroup): process 1 of this host is not systemd"
        );
    }
    Ok(())
}

impl Unit {
    /// Starts it with these limits. What is returned has to live until something else is in its cgroup; a slice needs
    /// nothing in it.
    ///
    /// # Errors
    /// There is no unit then that was not there before: FailedPrecondition when there is one of that name already.
    pub fn start(&self, bundle: &Bundle, settings: &[Setting], v2: bool) -> Result<Option<Unfinished>> {
        let none = HashMap::new();
        let further = annotations::properties(bundle.spec().annotations().as_ref().unwrap_or(&none))?;
        let placeholder = if self.is_slice() { None } else { Some(placeholder::make()?) };
        let mut manager = Manager::connect()?;
        let host = Host { v2, version: self.version(&mut manager, settings)?, period: None };
        let mut all = self.properties(bundle.id(), v2);
        if let Some(pid) = placeholder.as_ref().and_then(Unfinished::get).map(|child| child.pid) {
            all.push(("PIDs", Value::from(vec![pid])));
        }
        all.extend(properties::of_new(settings, &host));
        if !v2 {
            let resources = bundle.linux().resources().as_ref();
            let devices = resources.and_then(|resources| resources.devices().as_deref()).unwrap_or_default();
            all.extend(properties::of_devices(&super::devices::rules(devices)));
        }
        let all = all.into_iter().map(|(name, value)| (name.to_owned(), value)).chain(further).collect::<Vec<_>>();
        self.start_with(&mut manager, &all)?;
        Ok(placeholder)
    }

    fn start_with(&self, manager: &mut Manager, properties: &[Named]) -> Result<()> {
        const NO_OTHERS: [(&str, Vec<Property>); 0] = [];
        let name = self.name();
        let body = (name, "replace", properties, &NO_OTHERS[..]);
        let mut result = manager.job(name, "StartTransientUnit", &body);
        if result.as_ref().is_err_and(|failure| failure.is("UnitExists")) {
            // Perhaps what is left of one that failed, which systemd keeps until it is told to forget it.
            let _ = manager.call("ResetFailedUnit", &(name,));
            result = manager.job(name, "StartTransientUnit", &body);
        }
        let what = || format!("linux.cgroupsPath: start unit {name}");
        let error = match result {
            Ok(result) if result == "done" => return Ok(()),
            Ok(result) => {
                // So it ends where the slice is (systemctl freeze).
                let kind = if result == "frozen" { Kind::FailedPrecondition } else { Kind::Internal };
                Error::new(kind, anyhow::anyhow!("systemd's job ended as {result:?}")).context(what())
            }
            // Nothing was made.
            Err(failure @ Failure::Refused { .. }) => return Err(failure.explain(what())),
            Err(failure) => failure.explain(what()),
        };
        let undone = self.stop();
        Err(match undone {
            Ok(()) => error,
            Err(e) => error.context(format!("nor could it be stopped again ({e})")),
        })
    }

    /// What it is, whatever its limits.
    fn properties(&self, id: &str, v2: bool) -> Vec<Property> {
        let mut all: Vec<Property> = vec![
            ("Description", Value::from(format!("hybrid container {id}"))),
            // Else it would be stopped, with the container, in the middle of a shutdown by its own rules.
            ("DefaultDependencies", Value::from(false)),
            // Else systemd keeps one whose process was killed for want of memory, as failed.
            ("CollectMode", Value::from("inactive-or-failed")),
            ("CPUAccounting", Value::from(true)),
            ("MemoryAccounting", Value::from(true)),
            ("TasksAccounting", Value::from(true)),
            (if v2 { "IOAccounting" } else { "BlockIOAccounting" }, Value::from(true)),
        ];
        if self.is_slice() {
            // A slice is in the slice that its name says.
            all.push(("Wants", Value::from(vec![self.slice().to_owned()])));
        } else {
            all.push(("Slice", Value::from(self.slice().to_owned())));
            // What is below it is the container's affair.
            all.push(("Delegate", Value::from(true)));
        }
        all
    }

    /// Asked for only where something depends on it.
    fn version(&self, manager: &mut Manager, settings: &[Setting]) -> Result<u32> {
        if !properties::depend_on_version(settings) {
            return Ok(0);
        }
        manager.version().map_err(|failure| failure.explain("ask systemd for its version".to_owned()))
    }

    /// Has systemd know limits that were written to the cgroup's files, which it would else write over some time.
    /// `period` is v1's cpu.cfs_period_us. All of them are taken, or none.
    ///
    /// # Errors
    /// NotFound when the unit is gone.
    pub fn set(
        &self,
        settings: &[Setting],
        devices: Option<&[super::devices::Rule]>,
        v2: bool,
        period: Option<u64>,
    ) -> Result<()> {
        if settings.is_empty() && devices.is_none() {
            return Ok(());
        }
        let mut manager = Manager::connect()?;
        let host = Host { v2, version: self.version(&mut manager, settings)?, period };
        let mut all = properties::of_changed(settings, &host);
        if let Some(rules) = devices.filter(|_| !v2) {
            all.extend(properties::of_devices(rules));
        }
        if all.is_empty() {
            return Ok(());
        }
        // True: not for longer than until the next boot.
        let answer = manager.call("SetUnitProperties", &(self.name(), true, all.as_slice()));
        answer.map_err(|failure| failure.explain(format!("linux.resources: change unit {}", self.name())))
    }

    /// Stops it, if it is there, and returns once it is gone. What is still in it gets SIGTERM, and SIGKILL later.
    pub fn stop(&self) -> Result<()> {
        let name = self.name();
        let mut manager = Manager::connect()?;
        match manager.job(name, "StopUnit", &(name, "replace")) {
            Ok(result) => {
                if result != "done" {
                    log::warn!("stop unit {name}: systemd's job ended as {result:?}");
                    let _ = manager.call("ResetFailedUnit", &(name,));
                }
                Ok(())
            }
            // It goes by itself once nothing is in it.
            Err(failure) if failure.is("NoSuchUnit") => Ok(()),
            Err(failure) => Err(failure.explain(format!("stop unit {name}"))),
        }
    }
}
