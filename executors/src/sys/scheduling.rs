//! How the kernel is to run this process: raw calls on memory prepared before.

use std::ffi::c_int;

use rustix::io::Result;

use super::check;

/// `struct sched_attr` of sched_setattr(2), with the clamps of Linux 5.3 (SCHED_ATTR_SIZE_VER1).
#[repr(C)]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SchedAttr {
    pub size: u32,
    /// SCHED_*.
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    pub nice: i32,
    pub priority: u32,
    /// Nanoseconds, as the two below.
    pub runtime: u64,
    pub deadline: u64,
    pub period: u64,
    pub util_min: u32,
    pub util_max: u32,
}

/// sched_setattr(2) on this thread.
pub(crate) fn sched_setattr(attr: &SchedAttr) -> Result<()> {
    // SAFETY: attr is a sched_attr of the size that it says, which the kernel reads (and writes back on E2BIG, hence a copy).
    let mut attr = attr.clone();
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw mut attr, 0) })?;
    Ok(())
}

/// sched_setaffinity(2) on this thread: the CPUs whose bits are set.
pub(crate) fn sched_setaffinity(cpus: &[u64]) -> Result<()> {
    // SAFETY: the kernel reads as many bytes as it is told there are.
    check(unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size_of_val(cpus), cpus.as_ptr()) })?;
    Ok(())
}

/// sched_getaffinity(2) of this thread into `cpus`, as many of them as the kernel has.
pub(crate) fn sched_getaffinity(cpus: &mut [u64]) -> Result<()> {
    // SAFETY: the kernel writes no more bytes than it is told there are.
    check(unsafe { libc::syscall(libc::SYS_sched_getaffinity, 0, size_of_val(cpus), cpus.as_mut_ptr()) })?;
    Ok(())
}

/// ioprio_set(2) of this thread: IOPRIO_PRIO_VALUE(class, data).
pub(crate) fn ioprio_set(priority: c_int) -> Result<()> {
    const IOPRIO_WHO_PROCESS: c_int = 1;
    // SAFETY: ioprio_set takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) })?;
    Ok(())
}

/// personality(2).
pub(crate) fn personality(persona: libc::c_ulong) -> Result<()> {
    // SAFETY: personality takes no pointers.
    check(unsafe { libc::syscall(libc::SYS_personality, persona) })?;
    Ok(())
}

/// set_mempolicy(2): MPOL_* with MPOL_F_*, and the nodes whose bits are set.
pub(crate) fn set_mempolicy(mode: c_int, nodes: &[u64]) -> Result<()> {
    // The kernel takes one bit less than it is told.
    let bits = if nodes.is_empty() { 0 } else { nodes.len() * 64 + 1 };
    let mask = if nodes.is_empty() { std::ptr::null() } else { nodes.as_ptr() };
    // SAFETY: the kernel reads `bits` - 1 bits at the mask, all of which are there, and none where there is no mask.
    check(unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, mask, bits) })?;
    Ok(())
}
