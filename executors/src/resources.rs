//! A container's resources: held, changed, measured and watched through its cgroup, the same for both executors.

use std::sync::PoisonError;

use oci_spec::runtime::LinuxResources;

use crate::bundle::from_json;
use crate::cgroup::oom::OomWatch;
use crate::cgroup::stats::Stats;
use crate::container::Container;
use crate::error::Result;

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
        let resources: LinuxResources = from_json(resources, "linux.resources")?;
        self.cgroup.update(&resources)?;
        self.wasm.lock().unwrap_or_else(PoisonError::into_inner).limit(Some(&resources));
        Ok(())
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
