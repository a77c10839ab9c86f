//! What is refused by its name.

use oci_spec::runtime::Spec;

use crate::error::{Result, bail};

/// The first field that is set and not supported, if any.
pub(super) fn refuse(fields: impl IntoIterator<Item = (&'static str, bool)>) -> Result<()> {
    match fields.into_iter().find(|(_, is_set)| *is_set) {
        Some((field, _)) => bail!(Unimplemented, "{field}: not supported"),
        None => Ok(()),
    }
}

/// Every field of a spec that hybrid does not do yet, and whether it is set to more than its default.
pub(super) fn unsupported(spec: &Spec) -> [(&'static str, bool); 4] {
    [
        ("solaris", spec.solaris().is_some()),
        ("windows", spec.windows().is_some()),
        ("vm", spec.vm().is_some()),
        ("zos", spec.zos().is_some()),
    ]
}
