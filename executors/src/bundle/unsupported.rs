//! What is refused by its name.

use oci_spec::runtime::{Linux, LinuxNamespaceType, Spec};

use crate::error::{Result, bail};

/// The first field that is set and not supported, if any.
pub(super) fn refuse(fields: impl IntoIterator<Item = (&'static str, bool)>) -> Result<()> {
    match fields.into_iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => bail!(Unimplemented, "{field}: not supported"),
        None => Ok(()),
    }
}

/// Every field of a spec that hybrid does not do yet, and whether it is set to more than its default.
pub(super) fn unsupported(spec: &Spec, linux: &Linux) -> Vec<(&'static str, bool)> {
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
        ("linux.intelRdt", linux.intel_rdt().is_some()),
        ("mounts[].uidMappings", spec.mounts().iter().flatten().any(|mount| list(mount.uid_mappings()))),
        ("mounts[].gidMappings", spec.mounts().iter().flatten().any(|mount| list(mount.gid_mappings()))),
    ]
}
