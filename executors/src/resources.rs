//! A container's resources: held, changed, measured and watched through its cgroup, the same for both executors.

use oci_spec::runtime::LinuxResources;

use crate::Kind;
use crate::cgroup::oom::OomWatch;
use crate::cgroup::stats::Stats;
use crate::container::Container;
use crate::error::{Error, OrKind, Result};

impl Container {
    /// Freezes the container and returns once nothing in it runs any more. Success when it is frozen already.
    ///
    /// A frozen container can be killed as a whole ([`Container::signal_all`] with SIGKILL, [`Container::delete`], dropping
    /// it). A process of it that gets SIGKILL alone ends at once on cgroup v2, on v1 after [`Container::thaw`].
    ///
    /// # Errors
    /// FailedPrecondition when this host can't freeze; Unavailable when a process did not stop in time (the container is
    /// thawed again); NotFound when its cgroup is gone.
    pub fn freeze(&self) -> Result<()> {
        self.cgroup.freeze()
    }

    /// Lets a frozen container run again. Success when it is not frozen, and when nothing is left of it.
    pub fn thaw(&self) -> Result<()> {
        self.cgroup.thaw()
    }

    /// Changes the container's resources. `resources` is the JSON of LinuxResources (config-linux.md, "Control groups"):
    /// what it does not set, or sets to zero, stays as it is; device rules are replaced as a whole. An unset `memory.swap`
    /// leaves memory and swap together as they are.
    ///
    /// # Errors
    /// Nothing has changed then, and the error names the field: InvalidArgument for what is wrong, Unimplemented for what
    /// the host's version of cgroups lacks, FailedPrecondition for what the host or the present state does not allow
    /// (with `memory.checkBeforeUpdate` also a limit below what is in use), NotFound when the cgroup is gone.
    pub fn update(&self, resources: &[u8]) -> Result<()> {
        self.cgroup.update(&parse(resources)?)
    }

    /// What the container has used, as its cgroup counts it.
    ///
    /// # Errors
    /// NotFound when the cgroup is gone. What the host does not count is left out.
    pub fn stats(&self) -> Result<Stats> {
        self.cgroup.stats()
    }

    /// Watches for processes of the container that the kernel kills for want of memory. `None` where nothing counts its
    /// memory.
    ///
    /// # Errors
    /// NotFound when the cgroup is gone.
    pub fn watch_oom(&self) -> Result<Option<OomWatch>> {
        self.cgroup.watch_oom()
    }
}

fn parse(resources: &[u8]) -> Result<LinuxResources> {
    let mut json = serde_json::Deserializer::from_slice(resources);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let field = e.path().to_string();
        let field = if field == "." { "linux.resources".to_owned() } else { format!("linux.resources.{field}") };
        Error::new(Kind::InvalidArgument, e.into_inner()).context(field)
    })?;
    json.end().or_kind(Kind::InvalidArgument, || "linux.resources: more than one document")?;
    Ok(parsed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_read_is_named() {
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
    }
}
