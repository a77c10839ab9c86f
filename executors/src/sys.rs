//! The crate's `unsafe`: system calls that the libraries lack or that they would wrap too thickly.
//!
//! Everything that [`crate::native::child`] calls here makes one system call on memory prepared before: no allocation, no
//! lock, and no glibc wrapper that talks to other threads (its setuid and setgroups do; see nptl(7)).
#![allow(unsafe_code)]

pub(crate) mod scheduling;

use std::ffi::{CStr, CString, c_char, c_int, c_long};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, Result};

/// Turns a system call's return value into a result.
fn check(value: c_long) -> Result<c_long> {
    if value < 0 {
        // SAFETY: errno is this thread's own.
        return Err(Errno::from_raw_os_error(unsafe { *libc::__errno_location() }));
    }
    Ok(value)
}

/// `struct clone_args` of clone3(2), up to and including `cgroup` (CLONE_ARGS_SIZE_VER2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// libc's constant is too narrow for its value.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A process made by [`clone3`], as its parent sees it.
pub(crate) struct Cloned {
    pub pid: u32,
    pub pidfd: OwnedFd,
}

/// clone3(2) without a new stack: `child` runs in a copy of this process and never comes back.
///
/// `flags` are CLONE_NEW* flags; CLONE_PIDFD is added, and CLONE_INTO_CGROUP when `cgroup` is given.
///
/// The copy has this thread only, and locks (malloc's too) may be held in it for ever by threads it doesn't have: `child`
/// may only make system calls on memory that exists already.
pub(crate) fn clone3(flags: c_int, cgroup: Option<BorrowedFd<'_>>, child: &dyn Fn() -> c_int) -> Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let args = CloneArgs {
        flags: flags as u64 | libc::CLONE_PIDFD as u64,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    let pid = clone_with(args, cgroup, child)?;
    // SAFETY: with CLONE_PIDFD the kernel stored a new descriptor, which nobody else owns.
    Ok(Cloned { pid, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } })
}

/// The same for a process that becomes a child of this one's parent (CLONE_PARENT), with this one's exit signal. Its pid.
pub(crate) fn clone3_sibling(flags: c_int, cgroup: Option<BorrowedFd<'_>>, child: &dyn Fn() -> c_int) -> Result<u32> {
    clone_with(CloneArgs { flags: flags as u64 | libc::CLONE_PARENT as u64, ..CloneArgs::default() }, cgroup, child)
}

fn clone_with(mut args: CloneArgs, cgroup: Option<BorrowedFd<'_>>, child: &dyn Fn() -> c_int) -> Result<u32> {
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: args is a valid clone_args of the size given, and outlives the call. Without CLONE_VM the child has its own
    // copy of all memory, so nothing is aliased; it leaves by _exit below and never returns into the caller's frames.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) })?;
    if pid == 0 {
        exit(child());
    }
    Ok(pid as u32)
}

/// fork(2): `None` in the child, its pid in the parent. The caller has seen to it that there is one thread only.
pub(crate) fn fork() -> Result<Option<u32>> {
    // SAFETY: the process has one thread, so the child may go on using every library.
    let pid = check(c_long::from(unsafe { libc::fork() }))?;
    Ok((pid != 0).then_some(pid as u32))
}

/// Ends this process at once, without running destructors or exit handlers.
pub(crate) fn exit(code: c_int) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(code) }
}

/// A null-terminated array of C strings, as execve(2) wants it; built before a clone and read after it.
#[derive(Debug)]
pub(crate) struct CStringArray {
    /// What the pointers point to.
    _strings: Vec<CString>,
    pointers: Vec<*const c_char>,
}

// SAFETY: the pointers point into `_strings`, which is owned beside them and never changed.
unsafe impl Send for CStringArray {}
// SAFETY: as above; there is no interior mutability.
unsafe impl Sync for CStringArray {}

impl CStringArray {
    pub fn new(strings: Vec<CString>) -> Self {
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
        Self { _strings: strings, pointers }
    }
}

/// execve(2). Returns only when it failed.
pub(crate) fn execve(path: &CStr, argv: &CStringArray, envp: &CStringArray) -> Errno {
    // SAFETY: path is a C string, and both arrays end with a null pointer and point to C strings that they own.
    let result =
        unsafe { libc::syscall(libc::SYS_execve, path.as_ptr(), argv.pointers.as_ptr(), envp.pointers.as_ptr()) };
    check(result).err().unwrap_or(Errno::INVAL)
}

/// execveat(2) of an open file. Returns only when it failed.
pub(crate) fn fexecve(file: BorrowedFd<'_>, argv: &CStringArray, envp: &CStringArray) -> Errno {
    // SAFETY: as for execve; the empty path with AT_EMPTY_PATH names the descriptor itself.
    let result = unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.pointers.as_ptr(),
            envp.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    check(result).err().unwrap_or(Errno::INVAL)
}

/// `struct mount_attr` of mount_setattr(2).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MountAttr {
    /// MOUNT_ATTR_* to set.
    pub set: u64,
    /// MOUNT_ATTR_* to clear.
    pub clear: u64,
    /// MS_SHARED, MS_SLAVE, MS_PRIVATE, MS_UNBINDABLE, or 0 to leave it.
    pub propagation: u64,
    /// A user namespace for an id-mapped mount.
    pub userns_fd: u64,
}

impl MountAttr {
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// mount_setattr(2) on the mount that `mount` refers to, and on all below it if `recursive`.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attr: &MountAttr) -> Result<()> {
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: attr is a valid mount_attr of the size given.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            attr as *const MountAttr,
            size_of::<MountAttr>(),
        )
    })?;
    Ok(())
}

/// unshare(2) of namespaces. With CLONE_FILES descriptors would be at stake; namespaces never are.
pub(crate) fn unshare(namespaces: c_int) -> Result<()> {
    // SAFETY: unshare takes no pointers.
    check(c_long::from(unsafe { libc::unshare(namespaces) }))?;
    Ok(())
}

/// Sets every signal to its default action and unblocks all: what execve(2) would keep of the shim's own choice.
pub(crate) fn reset_signals() -> Result<()> {
    // The kernel's struct sigaction with the default handler is all zeroes, whatever the architecture's layout.
    let default = [0u64; 4];
    const SIGSET_SIZE: usize = 8;
    for signal in 1..=64 {
        if signal == libc::SIGKILL || signal == libc::SIGSTOP {
            continue;
        }
        // SAFETY: `default` is at least as large as the kernel's struct sigaction; no old action is asked for.
        check(unsafe {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u64>(), SIGSET_SIZE)
        })?;
    }
    let none = 0u64;
    // SAFETY: `none` is a kernel sigset_t of SIGSET_SIZE bytes.
    check(unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            &raw const none,
            std::ptr::null::<u64>(),
            SIGSET_SIZE,
        )
    })?;
    Ok(())
}

/// keyctl(2) KEYCTL_JOIN_SESSION_KEYRING: a new session keyring of that name.
pub(crate) fn join_session_keyring(name: &CStr) -> Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: c_int = 1;
    // SAFETY: name is a C string.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    Ok(())
}

/// A compiled seccomp filter: classic BPF, eight bytes an instruction.
pub(crate) struct BpfProgram(Vec<libc::sock_filter>);

impl BpfProgram {
    /// From the bytes that libseccomp's `seccomp_export_bpf` wrote.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let instruction = |b: &[u8]| libc::sock_filter {
            code: u16::from_ne_bytes([b[0], b[1]]),
            jt: b[2],
            jf: b[3],
            k: u32::from_ne_bytes([b[4], b[5], b[6], b[7]]),
        };
        Self(bytes.chunks_exact(8).map(instruction).collect())
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }
}

/// seccomp(2) SECCOMP_SET_MODE_FILTER with SECCOMP_FILTER_FLAG_* `flags`. Returns the number of the listener's descriptor, if
/// SECCOMP_FILTER_FLAG_NEW_LISTENER is one of them.
pub(crate) fn seccomp_filter(program: &BpfProgram, flags: u32) -> Result<RawFd> {
    let fprog = libc::sock_fprog { len: program.0.len() as u16, filter: program.0.as_ptr().cast_mut() };
    // SAFETY: fprog describes the program's own memory, which the kernel only reads.
    let number =
        check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const fprog) })?;
    Ok(number as RawFd)
}

/// Whether the kernel knows these SECCOMP_FILTER_FLAG_*: it looks at them before the filter, which is not there.
pub(crate) fn takes_seccomp_flags(flags: u32) -> bool {
    let none = std::ptr::null::<libc::sock_fprog>();
    // SAFETY: the kernel fails to read a filter at address 0, so none is loaded.
    let result = check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, none) });
    result == Err(Errno::FAULT)
}

/// A core scheduling cookie of its own for this process: prctl(2) PR_SCHED_CORE_CREATE.
pub(crate) fn new_core_scheduling_cookie() -> Result<()> {
    const PR_SCHED_CORE: c_int = 62;
    const PR_SCHED_CORE_CREATE: usize = 1;
    const PIDTYPE_TGID: usize = 1;
    // SAFETY: the operation takes no pointers.
    check(c_long::from(unsafe { libc::prctl(PR_SCHED_CORE, PR_SCHED_CORE_CREATE, 0usize, PIDTYPE_TGID, 0usize) }))?;
    Ok(())
}

/// A child that ended, from waitid(2).
pub(crate) struct Waited {
    pub pid: u32,
    /// Its exit code, or 128 + n when signal n ended it.
    pub code: u32,
}

/// Which child to wait for.
pub(crate) enum WaitFor<'a> {
    Any,
    Pid(u32),
    PidFd(BorrowedFd<'a>),
}

/// waitid(2) for ended children; `None` when WNOHANG is in `options` and there is none.
pub(crate) fn waitid(which: WaitFor<'_>, options: c_int) -> Result<Option<Waited>> {
    let (kind, id) = match which {
        WaitFor::Any => (libc::P_ALL, 0),
        WaitFor::Pid(pid) => (libc::P_PID, pid),
        WaitFor::PidFd(fd) => (libc::P_PIDFD, fd.as_raw_fd() as u32),
    };
    // SAFETY: all zeroes is a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: info is valid for writes.
    check(c_long::from(unsafe { libc::waitid(kind, id, &raw mut info, libc::WEXITED | options) }))?;
    // SAFETY: waitid filled in these fields, or left the zeroes.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    let code = if info.si_code == libc::CLD_EXITED { status } else { 128 + status };
    Ok((pid != 0).then_some(Waited { pid: pid as u32, code: code as u32 }))
}

/// pidfd_send_signal(2), for any signal number the kernel knows.
pub(crate) fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: c_int) -> Result<()> {
    // SAFETY: no siginfo is given, and flags must be 0.
    check(unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    })?;
    Ok(())
}

/// kill(2) of one process by pid, for processes that are nobody's children here.
pub(crate) fn kill(pid: u32, signal: c_int) -> Result<()> {
    // SAFETY: kill takes no pointers.
    check(c_long::from(unsafe { libc::kill(pid as libc::pid_t, signal) }))?;
    Ok(())
}

/// kill(2) of a process group, by the pid of its leader.
pub(crate) fn kill_group(leader: u32, signal: c_int) -> Result<()> {
    // SAFETY: kill takes no pointers.
    check(c_long::from(unsafe { libc::kill(-(leader as libc::pid_t), signal) }))?;
    Ok(())
}

/// dup2(2), with `number` kept over execve even where both are the same.
pub(crate) fn dup2(fd: BorrowedFd<'_>, number: RawFd) -> Result<()> {
    let fd = fd.as_raw_fd();
    if fd == number {
        // SAFETY: F_SETFD takes an int and touches no memory.
        check(c_long::from(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }))?;
        return Ok(());
    }
    // SAFETY: called in a cloned child just before execve, where every descriptor is the plan's to replace.
    check(unsafe { libc::syscall(libc::SYS_dup3, fd, number, 0) })?;
    Ok(())
}

/// Lets the program that the command executes have descriptors, each under the number given.
pub(crate) fn pass_descriptors(command: &mut std::process::Command, pass: Vec<(OwnedFd, RawFd)>) {
    use std::os::unix::process::CommandExt;
    // A descriptor that has the number of another one that comes before it would be overwritten.
    const ABOVE: RawFd = 64;
    let place = move || {
        let mut moved = [-1; 8];
        for ((fd, _), moved) in pass.iter().zip(&mut moved) {
            // SAFETY: F_DUPFD_CLOEXEC takes an int and touches no memory.
            *moved =
                check(c_long::from(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, ABOVE) }))? as RawFd;
        }
        for ((_, number), moved) in pass.iter().zip(moved) {
            // SAFETY: in the child, where the numbers are the new program's; dup3 touches no memory.
            check(unsafe { libc::syscall(libc::SYS_dup3, moved, *number, 0) })?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec it makes two kinds of system calls on memory prepared before.
    unsafe { command.pre_exec(place) };
}

/// Which cgroup namespace a helper program runs in.
pub(crate) enum CgroupNamespace {
    /// That of this process.
    Same,
    /// One whose root are the cgroups that it enters.
    New,
    Join(OwnedFd),
}

/// Lets the command's process enter cgroups, by their `cgroup.procs`, before it executes its program.
pub(crate) fn enter_cgroups(command: &mut std::process::Command, files: Vec<OwnedFd>, namespace: CgroupNamespace) {
    use std::os::unix::process::CommandExt;
    let enter = move || {
        for file in &files {
            // Zero is the process that writes (cgroups(7)).
            rustix::io::write(file, b"0")?;
        }
        match &namespace {
            CgroupNamespace::Same => {}
            CgroupNamespace::New => unshare(libc::CLONE_NEWCGROUP)?,
            CgroupNamespace::Join(namespace) => rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(namespace),
                Some(rustix::thread::LinkNameSpaceType::ControlGroup),
            )?,
        }
        Ok(())
    };
    // SAFETY: between fork and exec it only makes system calls, on memory and descriptors prepared before.
    unsafe { command.pre_exec(enter) };
}

/// getcwd(2) itself: what the kernel says of the current folder, without the null byte.
pub(crate) fn getcwd(buffer: &mut [u8]) -> Result<&[u8]> {
    // SAFETY: the buffer is valid for writes of its length.
    let length = check(unsafe { libc::syscall(libc::SYS_getcwd, buffer.as_mut_ptr(), buffer.len()) })? as usize;
    Ok(buffer.get(..length.saturating_sub(1)).unwrap_or_default())
}

/// close_range(2) from `first` to `last`, both included.
pub(crate) fn close_range(first: RawFd, last: RawFd) -> Result<()> {
    // SAFETY: called in a cloned child that is about to execute a program, where nobody uses the descriptors any more.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) })?;
    Ok(())
}

/// close_range(2) with CLOSE_RANGE_CLOEXEC from `first` to the end.
pub(crate) fn close_range_on_exec(first: RawFd) -> Result<()> {
    // SAFETY: only flags of descriptors change.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// Leaves a descriptor open until execve or the end of the process, where closing it would only cost a system call.
pub(crate) fn leak(fd: OwnedFd) -> BorrowedFd<'static> {
    // SAFETY: into_raw_fd gives up ownership, and nobody closes the descriptor from here on.
    unsafe { BorrowedFd::borrow_raw(fd.into_raw_fd()) }
}

/// Sets IFF_UP on the loopback interface of this process's network namespace (netdevice(7)).
pub(crate) fn loopback_up() -> Result<()> {
    // SAFETY: socket takes no pointers.
    let socket = check(c_long::from(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) }))?;
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as c_char;
    request.ifr_name[1] = b'o' as c_char;
    // SAFETY: SIOCGIFFLAGS fills in the ifreq whose name is set.
    check(c_long::from(unsafe { libc::ioctl(socket as c_int, libc::SIOCGIFFLAGS, &raw mut request) }))?;
    // SAFETY: the kernel filled in this member of the union.
    unsafe { request.ifr_ifru.ifru_flags |= libc::IFF_UP as i16 };
    // SAFETY: SIOCSIFFLAGS reads the ifreq.
    check(c_long::from(unsafe { libc::ioctl(socket as c_int, libc::SIOCSIFFLAGS, &raw mut request) }))?;
    // SAFETY: the descriptor was opened above.
    check(c_long::from(unsafe { libc::close(socket as c_int) }))?;
    Ok(())
}

/// bpf(2) BPF_PROG_LOAD of a BPF_PROG_TYPE_CGROUP_DEVICE program.
pub(crate) fn load_cgroup_device_program(instructions: &[u64]) -> Result<OwnedFd> {
    /// The part of `union bpf_attr` that BPF_PROG_LOAD needs.
    #[repr(C)]
    #[derive(Default)]
    struct ProgLoad {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
    }
    const BPF_PROG_LOAD: c_int = 5;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    let attr = ProgLoad {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..ProgLoad::default()
    };
    // SAFETY: attr is as long as said, and points to instructions and a C string that outlive the call.
    let fd = check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<ProgLoad>()) })?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// bpf(2) BPF_PROG_ATTACH of a device program to a cgroup, beside those of cgroups above it; with `replace` in place of
/// that program, which is attached to the same cgroup, at one stroke.
pub(crate) fn attach_cgroup_device_program(
    cgroup: BorrowedFd<'_>,
    program: BorrowedFd<'_>,
    replace: Option<BorrowedFd<'_>>,
) -> Result<()> {
    const BPF_PROG_ATTACH: c_int = 8;
    const BPF_CGROUP_DEVICE: u32 = 6;
    const BPF_F_ALLOW_MULTI: u32 = 2;
    const BPF_F_REPLACE: u32 = 4;
    let flags = BPF_F_ALLOW_MULTI | if replace.is_some() { BPF_F_REPLACE } else { 0 };
    let replaced = replace.map_or(0, |program| program.as_raw_fd() as u32);
    // target_fd, attach_bpf_fd, attach_type, attach_flags, replace_bpf_fd of `union bpf_attr`.
    let attr = [cgroup.as_raw_fd() as u32, program.as_raw_fd() as u32, BPF_CGROUP_DEVICE, flags, replaced];
    // SAFETY: attr is as long as said; only numbers are in it.
    check(unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, attr.as_ptr(), size_of_val(&attr)) })?;
    Ok(())
}

/// close(2) by number, in a cloned child whose copy of the owner never drops.
pub(crate) fn close(fd: RawFd) {
    // SAFETY: the child runs nothing that uses or closes this descriptor again: it leaves by execve or _exit.
    unsafe { libc::close(fd) };
}

/// One malloc arena for all threads (mallopt(3)): each further one would cost memory for nothing.
pub(crate) fn one_malloc_arena() {
    // SAFETY: mallopt changes a parameter of the allocator, under its own lock.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
}

/// Gives free memory of malloc's back to the kernel (malloc_trim(3)).
pub(crate) fn trim_malloc() {
    // SAFETY: it only changes what is free, under the allocator's own lock.
    unsafe { libc::malloc_trim(0) };
}
