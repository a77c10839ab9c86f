//! Calls on the shim's own process.

use std::collections::BTreeSet;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use cgroups_rs::fs::hierarchies;
use rustix::fs::{
    MemfdFlags, Mode, OFlags, SealFlags, StatVfsMountFlags, fcntl_add_seals, fcntl_get_seals, memfd_create,
};

use crate::error::{OrKind, Result, bail};
use crate::native::options::Recursive;
use crate::rootfs::clone_tree;
use crate::sys::{self, CStringArray, MountAttr};
use crate::{Kind, Process, process};

/// What keeps everybody from changing a file (fcntl(2), "File Sealing").
const SEALS: SealFlags = SealFlags::SEAL.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::WRITE);

/// The two sides of [`fork`].
#[derive(Debug, PartialEq, Eq)]
pub enum Fork {
    /// In the process that called.
    Parent { child: u32 },
    /// In the new one.
    Child,
}

/// fork(2), refused unless this process has a single thread: only then may the child go on using every library
/// (POSIX, fork: "async-signal-safe operations" otherwise).
pub fn fork() -> Result<Fork> {
    let threads =
        std::fs::read_dir("/proc/self/task").or_kind(Kind::Internal, || "list threads: /proc/self/task")?.count();
    if threads != 1 {
        bail!(Internal, "fork with {threads} threads");
    }
    match sys::fork().or_kind(Kind::Unavailable, || "fork")? {
        Some(child) => Ok(Fork::Parent { child }),
        None => Ok(Fork::Child),
    }
}

/// Executes this program anew from a read-only mount of its own, with the same arguments, environment and descriptors;
/// returns when it runs from one. A child of this process is this program until its execve(2), and an image can have it
/// execute `/proc/self/exe`: on the host's own mount it could be opened for writing then (CVE-2019-5736). The mount is
/// attached nowhere, and gone with the last process of it.
pub fn run_read_only() -> Result<()> {
    let binary = own_binary()?;
    if is_read_only(&binary)? {
        // By a descriptor execve(2) names the process after that.
        let name = std::env::args_os().next().map(PathBuf::from);
        let name = name.as_deref().and_then(Path::file_name).and_then(|name| CString::new(name.as_bytes()).ok());
        return rustix::thread::set_name(&name.unwrap_or_default()).or_kind(Kind::Internal, || "name the process");
    }
    let what = || "execute this program from a read-only mount";
    let path = std::fs::read_link("/proc/self/exe").or_kind(Kind::Internal, what)?;
    let tree = clone_tree(&path, Recursive::No).or_kind(Kind::Internal, what)?;
    let attr = MountAttr { set: libc::MOUNT_ATTR_RDONLY, propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    sys::mount_setattr(tree.as_fd(), false, &attr).or_kind(Kind::Internal, what)?;
    let strings = |all: Vec<Vec<u8>>| all.into_iter().map(CString::new).collect::<std::result::Result<Vec<_>, _>>();
    let arguments = strings(std::env::args_os().map(OsString::into_vec).collect()).or_kind(Kind::Internal, what)?;
    let environment = std::env::vars_os().map(|(key, value)| [key.as_bytes(), b"=", value.as_bytes()].concat());
    let environment = strings(environment.collect()).or_kind(Kind::Internal, what)?;
    let errno = sys::fexecve(tree.as_fd(), &CStringArray::new(arguments), &CStringArray::new(environment));
    Err(errno).or_kind(Kind::Internal, what)
}

/// The file that this process executes, as the mount has it that it was executed from; not to be read.
pub(crate) fn own_binary() -> Result<OwnedFd> {
    rustix::fs::open("/proc/self/exe", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .or_kind(Kind::Internal, || "open /proc/self/exe")
}

/// Whether a file's mount is read-only.
pub(crate) fn is_read_only(file: &OwnedFd) -> Result<bool> {
    let mount = rustix::fs::fstatvfs(file).or_kind(Kind::Internal, || "look at the mount of a file")?;
    Ok(mount.f_flag.contains(StatVfsMountFlags::RDONLY))
}

/// Starts a helper program, a child of this process that [`reap_orphans`] leaves alone. It gets each of `pass` as the
/// descriptor of that number.
pub fn spawn(mut command: Command, pass: Vec<(OwnedFd, RawFd)>) -> Result<Process> {
    sys::pass_descriptors(&mut command, pass);
    let child =
        process::spawn_command(&mut command).or_kind(Kind::FailedPrecondition, || format!("execute {command:?}"))?;
    Ok(Process::new(child, None, None))
}

/// A file in memory, to be read from its beginning, that nobody can change any more (memfd_create(2)).
pub(crate) fn sealed_file(name: &str, content: &[u8]) -> Result<OwnedFd> {
    let what = || format!("write the file {name} in memory");
    sealed_file_by(name, |file| file.write_all(content).or_kind(Kind::Unavailable, what))
}

/// The same with what `fill` writes.
pub(crate) fn sealed_file_by(name: &str, fill: impl FnOnce(&mut File) -> Result<()>) -> Result<OwnedFd> {
    let what = || format!("make the file {name} in memory");
    let memory =
        memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).or_kind(Kind::Unavailable, what)?;
    let mut file = File::from(memory);
    fill(&mut file)?;
    file.rewind().or_kind(Kind::Internal, what)?;
    fcntl_add_seals(&file, SEALS).or_kind(Kind::Internal, what)?;
    Ok(file.into())
}

/// Whether a file is such a one.
pub(crate) fn is_sealed(file: &File) -> bool {
    // Files that can't be sealed have no seals to tell (fcntl(2), F_GET_SEALS).
    fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SEALS))
}

/// Reaps processes that this one inherited as subreaper: orphans of containers that share a pid namespace.
/// Never a container's own process or a helper, whose status somebody waits for. Call it on SIGCHLD.
pub fn reap_orphans() {
    process::reap_orphans();
}

/// Moves this process into a cgroup that exists, in every hierarchy that has it. The path counts from the hierarchy's root.
///
/// # Errors
/// InvalidArgument for a path with `..` in it; NotFound when no hierarchy has the cgroup.
pub fn join_cgroup(path: &str) -> Result<()> {
    if path.contains('\0') || Path::new(path).components().any(|component| component == Component::ParentDir) {
        bail!(InvalidArgument, "cgroup {path:?}: not a path, or with .. in it");
    }
    let groups = cgroups_rs::fs::Cgroup::load(hierarchies::auto(), path.trim_matches('/'));
    let folders = groups.subsystems().iter().map(|subsystem| subsystem.to_controller().path().to_owned());
    // Controllers that share a hierarchy share the folder.
    let folders: BTreeSet<PathBuf> = folders.filter(|folder| folder.is_dir()).collect();
    if folders.is_empty() {
        bail!(NotFound, "cgroup {path}: no such cgroup on this host");
    }
    for folder in folders {
        // 0 is the process that writes (cgroups(7)).
        let procs = folder.join("cgroup.procs");
        std::fs::write(&procs, "0").or_kind(Kind::FailedPrecondition, || format!("join {}", procs.display()))?;
    }
    Ok(())
}

/// Lets all threads share one malloc arena, as each further one would cost memory for nothing. To be called before there
/// are threads.
pub fn share_malloc_arena() {
    sys::one_malloc_arena();
}

/// Gives back the memory that activity has left: free memory of malloc's, and the pages of code. To be called some time after
/// what is done rarely and takes much of both, such as making a container.
pub fn release_memory() {
    sys::trim_malloc();
    runner::pages::drop_code_pages();
}

/// Puts this process into a core scheduling group of its own (prctl(2), PR_SCHED_CORE_CREATE), so that its children share
/// a core with nobody else. containerd asks for it by `SCHED_CORE` in the environment.
pub fn new_core_scheduling_group() -> Result<()> {
    sys::new_core_scheduling_cookie().or_kind(Kind::FailedPrecondition, || "create a core scheduling group")
}
