//! SELinux labels of processes and mounts, where the host has SELinux; elsewhere they are ignored, as with runc.
//!
//! Source: OCI runtime spec, config.md "Linux Process" (selinuxLabel), config-linux.md "Mount Label"; proc_pid_attr(5);
//! mount(8), "context=".

use std::sync::OnceLock;

use oci_spec::runtime::{Linux, Process};

use super::options::Parameter;
use super::plan::text;
use super::step::Step;
use crate::error::Result;

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
        Some(label) if !label.is_empty() && enabled() => {
            Ok(Some(Step::Label { file, label: text(label, "process.selinuxLabel")? }))
        }
        _ => Ok(None),
    }
}

/// `linux.mountLabel`, the label of every file in the file systems that are made for the container.
pub(super) fn of_mounts(linux: &Linux) -> Option<&str> {
    linux.mount_label().as_deref().filter(|label| !label.is_empty() && enabled())
}

/// The parameter by which a file system gets that label.
pub(super) fn context(label: &str) -> Parameter {
    Parameter::Value("context".to_owned(), label.to_owned())
}
