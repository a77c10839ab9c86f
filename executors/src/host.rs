//! Calls on the shim's own process.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Seek, Write};
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use cgroups_rs::fs::hierarchies;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};

use crate::error::{OrKind, Result, bail};
use crate::{Kind, Process, process, sys};

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
    let what = || format!("make the file {name} in memory");
    let memory =
        memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).or_kind(Kind::Unavailable, what)?;
    let mut file = File::from(memory);
    file.write_all(content).or_kind(Kind::Unavailable, what)?;
    file.rewind().or_kind(Kind::Internal, what)?;
    let seals = SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE;
    fcntl_add_seals(&file, seals).or_kind(Kind::Internal, what)?;
    Ok(file.into())
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
