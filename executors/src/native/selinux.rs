//! SELinux labels of processes and mounts. Where the host has no SELinux they are refused, as runc does it.
//!
//! Source: OCI runtime spec, config.md "Linux Process" (selinuxLabel), config-linux.md "Mount Label"; proc_pid_attr(5);
//! mount(8), "context=".

use std::sync::OnceLock;

use oci_spec::runtime::{Linux, Process};

use super::options::Parameter;
use super::plan::text;
use super::step::Step;
use crate::error::{Result, bail};

/// SELINUX_MAGIC (uapi/linux/magic.h).
const SELINUXFS: u64 = 0xf97c_ff8c;

/// Whether the host has SELinux: its file system is mounted, and a policy loaded. Without one every label is "kernel".
fn enabled() -> bool {
    static ENABLED: OnceLock<bool> = OnceLock::new();
    *ENABLED.get_or_init(|| {
        let mounted = rustix::fs::statfs("/sys/fs/selinux").is_ok_and(|fs| fs.f_type as u64 == SELINUXFS);
        mounted && std::fs::read("/proc/thread-self/attr/current").is_ok_and(|label| !label.starts_with(b"kernel\0"))
    })
}

/// The label of the program that the process executes. To be run while the host's /proc is in sight.
pub(super) fn of_program(process: &Process) -> Result<Option<Step>> {
    step(process, c"exec")
}

/// The label of the keyring that is made next; execve(2) takes it back.
pub(super) fn of_keyring(process: &Process) -> Result<Option<Step>> {
    step(process, c"keycreate")
}

fn step(process: &Process, file: &'static std::ffi::CStr) -> Result<Option<Step>> {
    match process.selinux_label().as_deref() {
        None | Some("") => Ok(None),
        Some(label) if enabled() => Ok(Some(Step::Label { file, label: text(label, "process.selinuxLabel")? })),
        Some(label) => bail!(FailedPrecondition, "process.selinuxLabel: {label}: this host has no SELinux"),
    }
}

/// The parameter by which a file system that is made for the container gets `linux.mountLabel`, the label of all of its files.
pub(super) fn of_mounts(linux: &Linux) -> Result<Option<Parameter>> {
    match linux.mount_label().as_deref() {
        None | Some("") => Ok(None),
        Some(label) if enabled() => Ok(Some(Parameter::Value("context".to_owned(), label.to_owned()))),
        Some(label) => bail!(FailedPrecondition, "linux.mountLabel: {label}: this host has no SELinux"),
    }
}
