//! Limits of memory and swap.

use cgroups_rs::fs::Controllers;
use oci_spec::runtime::LinuxMemory;

use super::{List, Missing};
use crate::error::{Result, bail};

impl List<'_> {
    pub(super) fn memory(&mut self, memory: &LinuxMemory) -> Result<()> {
        // -1 is no limit, and 0 the same as not set.
        let set = |field: &str, value: Option<i64>| match value {
            Some(value) if value < -1 => bail!(InvalidArgument, "linux.resources.memory.{field}: {value} is negative"),
            value => Ok(value.filter(|value| *value != 0)),
        };
        let (limit, swap) = (set("limit", memory.limit())?, set("swap", memory.swap())?);
        let reservation = set("reservation", memory.reservation())?;
        if let (Some(limit @ 1..), Some(swap @ 1..)) = (limit, swap)
            && swap < limit
        {
            bail!(InvalidArgument, "linux.resources.memory.swap: {swap} is below the memory limit {limit}");
        }
        if self.v2 {
            let text = |value: i64| if value < 0 { "max".to_owned() } else { value.to_string() };
            if let Some(value) = self.swap_alone(limit, swap)? {
                // A kernel without swap accounting has no swap either to allow or to deny.
                let missing = if value == "0" || value == "max" { Missing::Same } else { Missing::Error };
                self.add_or("linux.resources.memory.swap", Controllers::Mem, "memory.swap.max", value, missing);
            }
            if let Some(limit) = limit {
                self.add("linux.resources.memory.limit", Controllers::Mem, "memory.max", text(limit));
            }
            if let Some(reservation) = reservation {
                self.add("linux.resources.memory.reservation", Controllers::Mem, "memory.low", text(reservation));
            }
        } else {
            if let Some(limit) = limit {
                self.add("linux.resources.memory.limit", Controllers::Mem, "memory.limit_in_bytes", limit);
            }
            if let Some(swap) = swap {
                self.add("linux.resources.memory.swap", Controllers::Mem, "memory.memsw.limit_in_bytes", swap);
            } else if limit == Some(-1) && self.now.is_some() {
                // Memory without a limit takes away that of memory and swap together.
                let file = "memory.memsw.limit_in_bytes";
                self.add_or("linux.resources.memory.limit", Controllers::Mem, file, -1, Missing::Same);
            }
            if let Some(reservation) = reservation {
                let file = "memory.soft_limit_in_bytes";
                self.add("linux.resources.memory.reservation", Controllers::Mem, file, reservation);
            }
        }
        match memory.disable_oom_killer() {
            Some(true) if self.v2 => not_on_v2("disableOOMKiller"),
            // A new cgroup has it on.
            Some(disable) if !self.v2 && (disable || self.now.is_some()) => {
                let field = "linux.resources.memory.disableOOMKiller";
                self.add(field, Controllers::Mem, "memory.oom_control", u8::from(disable));
            }
            _ => {}
        }
        if let Some(swappiness) = memory.swappiness() {
            if swappiness > 100 {
                bail!(InvalidArgument, "linux.resources.memory.swappiness: {swappiness} is above 100");
            }
            if self.v2 {
                not_on_v2("swappiness");
            } else {
                self.add("linux.resources.memory.swappiness", Controllers::Mem, "memory.swappiness", swappiness);
            }
        }
        // Kernel memory limits are gone from the kernel; the spec says they may be ignored (config-linux.md, "Memory"), and
        // clients still send them.
        Ok(())
    }

    /// v2's limit of swap alone: the spec's number is memory and swap together. A change of the memory limit leaves the
    /// sum as it is, as v1 does.
    fn swap_alone(&self, limit: Option<i64>, swap: Option<i64>) -> Result<Option<String>> {
        let now = |file| self.now(file).and_then(|text| text.parse::<i64>().ok());
        let max = || Some("max".to_owned());
        Ok(match (limit, swap) {
            (_, Some(-1)) => max(),
            (Some(-1), None) if self.now.is_some() => max(),
            (Some(-1), swap) => swap.map(|swap| swap.to_string()),
            (Some(limit), Some(swap)) => Some((swap - limit).to_string()),
            (None, Some(swap)) => match now("memory.max") {
                Some(limit) if swap < limit => {
                    bail!(InvalidArgument, "linux.resources.memory.swap: {swap} is below the memory limit {limit}")
                }
                Some(limit) => Some((swap - limit).to_string()),
                None if self.now.is_some() => Some(swap.to_string()),
                None => bail!(InvalidArgument, "linux.resources.memory.swap: set without a memory limit"),
            },
            (Some(limit), None) => match (now("memory.max"), now("memory.swap.max")) {
                (Some(old), Some(swap)) if old.saturating_add(swap) < limit => bail!(
                    InvalidArgument,
                    "linux.resources.memory.limit: {limit} is above that of memory and swap, {}; set it too",
                    old.saturating_add(swap)
                ),
                (Some(old), Some(swap)) => Some((old.saturating_add(swap) - limit).to_string()),
                _ => None,
            },
            (None, None) => None,
        })
    }
}

/// As with runc, whose users have it in specs that are for both versions.
fn not_on_v2(field: &str) {
    log::warn!("linux.resources.memory.{field} is ignored: cgroup v2 has no such switch");
}
