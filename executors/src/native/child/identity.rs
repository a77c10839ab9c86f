//! Who the process is: ids, capabilities, and what /proc says of it.

use std::ffi::CStr;
use std::os::fd::BorrowedFd;

use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::{Errno, Result};
use rustix::process::DumpableBehavior;

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

/// Until execve(2) this process has the shim's memory and descriptors, which nobody in the container may get by ptrace(2)
/// or /proc, though a root with CAP_SYS_PTRACE over the same user namespace (CVE-2016-9962).
pub(super) fn hide_memory() -> Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

pub(super) fn become_user(uid: u32, gid: u32) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
}

/// Opens `path` below `directory`, which is known to be procfs, and writes all of `value` at once.
pub(super) fn write_below(directory: BorrowedFd<'_>, path: &CStr, value: &[u8]) -> Result<()> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let file = rustix::fs::openat2(directory, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    rustix::io::write(sys::leak(file), value).map(drop)
}

/// Writes to a file of the host's /proc: only while that is in sight.
pub(super) fn write_proc(path: &CStr, value: &[u8]) -> Result<()> {
    let file = sys::leak(rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?);
    // Nothing else may get what is meant for the kernel (CVE-2025-52881).
    if rustix::fs::fstatfs(file)?.f_type != rustix::fs::PROC_SUPER_MAGIC {
        return Err(Errno::NODEV);
    }
    rustix::io::write(file, value).map(drop)
}

/// Writes an attribute that this thread has by a security module (proc_pid_attr(5)), in the host's /proc as above.
pub(super) fn write_attribute(file: &CStr, value: &CStr) -> Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let attributes = sys::leak(rustix::fs::open(c"/proc/thread-self/attr", flags, Mode::empty())?);
    if rustix::fs::fstatfs(attributes)?.f_type != rustix::fs::PROC_SUPER_MAGIC {
        return Err(Errno::NODEV);
    }
    write_below(attributes, file, value.to_bytes())
}
