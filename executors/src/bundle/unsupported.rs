//! What is refused by its name.

use oci_spec::runtime::{Linux, Process, Spec};

use crate::error::{Result, bail};

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
pub(super) fn unsupported(spec: &Spec, linux: &Linux) -> Vec<(&'static str, bool)> {
    vec![
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
        ("linux.mountLabel", is_set(linux.mount_label())),
        ("linux.memoryPolicy", linux.memory_policy().is_some()),
        ("linux.personality", linux.personality().is_some()),
    ]
}
