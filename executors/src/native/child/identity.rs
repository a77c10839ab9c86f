//! Who the process is: ids, capabilities, and what /proc says of it.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::{Errno, Result};
use rustix::process::DumpableBehavior;

use crate::procfs::{Procfs, write_below};
use crate::sys;

pub(super) fn drop_bounding(keep: rustix::thread::CapabilitySet) -> Result<()> {
    for capability in 0..64 {
        let capability = rustix::thread::CapabilitySet::from_bits_retain(1 << capability);
        if keep.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // The kernel knows no higher ones.
            Err(Errno::INVAL) => return Ok(()),
            result => result?,
        }
    }
    Ok(())
}

/// Until execve(2) this process has the shim's memory and descriptors, which nobody in its pid namespace may get by
/// ptrace(2) or /proc, with the same ids and capabilities or in a user namespace (CVE-2016-9962). Who has CAP_SYS_PTRACE
/// over the shim's user namespace may.
pub(super) fn hide_memory() -> Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

pub(super) fn become_user(uid: u32, gid: u32) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// Writes to a file of the host's /proc, by its absolute path: only while this process's root is the host's.
pub(super) fn write_proc(path: &CStr, value: &[u8]) -> Result<()> {
    let below = path.to_bytes_with_nul().strip_prefix(b"/proc/").ok_or(Errno::INVAL)?;
    Procfs::open()?.write(CStr::from_bytes_with_nul(below).map_err(|_| Errno::INVAL)?, value)
}

/// The current folder, which must be in sight of this process's root: not by way of a descriptor that it has of the host's,
/// whose `..` leads out (CVE-2024-21626).
pub(super) fn enter_folder(path: &CStr) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let folder = rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)?;
    rustix::process::fchdir(folder)?;
    let mut name = [0; libc::PATH_MAX as usize];
    // Of what is out of sight the kernel says "(unreachable)" in front (getcwd(3)).
    match sys::getcwd(&mut name)?.first() {
        Some(b'/') => Ok(()),
        _ => Err(Errno::XDEV),
    }
}

/// Writes an attribute that this thread has by a security module (proc_pid_attr(5)), in the host's /proc as above.
pub(super) fn write_attribute(file: &CStr, value: &CStr) -> Result<()> {
    let attributes = Procfs::open()?.folder(c"thread-self/attr")?;
    write_below(attributes.as_fd(), file, value.to_bytes())
}
