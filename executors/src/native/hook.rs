//! A hook → the [`Plan`] of the process that it is.
//!
//! Source: OCI runtime spec 1.3, config.md "POSIX-platform Hooks".

use std::ffi::CString;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use oci_spec::runtime::Hook;

use super::join::Joining;
use super::mounts::cstring;
use super::plan::{Payload, executing, join_cgroup, oom_score, text};
use super::step::{Called, Plan, Program, Step};
use super::user::{self, above};
use crate::cgroup::Cgroup;
use crate::error::{Error, OrKind, Result, bail};
use crate::{Kind, Streams};

/// Neither spec nor kernel say more than that there is one; it is what programs expect.
const UMASK: u32 = 0o022;

/// A hook in the shim's own namespaces, with the bundle as its current folder.
pub(crate) fn of_runtime(hook: &Hook, bundle: &Path, streams: Streams) -> Result<Plan> {
    let steps = vec![
        Step::DieWithParent,
        Step::Session,
        user::streams_of_root(streams)?,
        Step::Umask(UMASK),
        Step::Cwd { path: cstring(bundle)?, may_fail: false },
        Step::FindProgram,
    ];
    let program = Program::Paths(vec![cstring(hook.path())?]);
    executing(program, argv(hook)?, env(hook), called(hook), steps)
}

/// A hook in the container's namespaces and cgroup before pivot_root: the host's file systems are still in sight, and the
/// rootfs, its current folder, is mounted among them. It is the host's program, with the shim's own privileges.
pub(crate) fn before_pivot(
    hook: &Hook,
    joining: &Joining,
    init: BorrowedFd<'_>,
    cgroup: &Cgroup,
    rootfs: OwnedFd,
    streams: Streams,
) -> Result<Plan> {
    let program = open(hook)?;
    let mut steps = Vec::new();
    steps.extend(join_cgroup(cgroup, None)?);
    steps.extend(oom_score(joining.process())?);
    joining.enter(init, &mut steps)?;
    steps.extend([user::streams_of_root(streams)?, Step::Umask(UMASK), Step::CwdOf(rootfs), Step::FindProgram]);
    executing(program, argv(hook)?, env(hook), called(hook), steps)
}

/// A hook in the finished container: a program of the image, which gets no more than the container's own process, from user
/// and capabilities to the seccomp filter. Without an environment of its own it has that of the process, as with runc.
pub(crate) fn of_container(
    hook: &Hook,
    of_process: &[String],
    joining: &Joining,
    init: BorrowedFd<'_>,
    cgroup: &Cgroup,
    streams: Streams,
) -> Result<Plan> {
    let payload = Payload::Hook { path: cstring(hook.path())?, argv: argv(hook)?, called: called(hook) };
    let stdio = user::streams(joining.process(), joining.mappings.as_ref(), streams)?;
    let environment = hook.env().as_deref().unwrap_or(of_process);
    joining.compile(joining.process(), environment, init, cgroup, stdio, payload)
}

/// Opens the program while this process's own namespaces decide what its path means.
///
/// One that the kernel hands to an interpreter (`#!`, binfmt_misc) is not executed by descriptor: the interpreter would
/// find the descriptor closed. Its path is looked up in the container's mount namespace, where before pivot_root it leads
/// to the same file unless it goes through the rootfs.
fn open(hook: &Hook) -> Result<Program> {
    let path = hook.path();
    let what = || format!("path: {path:?}");
    // Without waiting, should it be a fifo.
    let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
    let mut file = match opened {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            return Err(Error::new(Kind::InvalidArgument, anyhow::anyhow!("{}: no such file or directory", what())));
        }
        opened => opened.or_kind(Kind::InvalidArgument, what)?,
    };
    if !file.metadata().or_kind(Kind::Internal, what)?.is_file() {
        bail!(InvalidArgument, "{}: is not a file", what());
    }
    let mut magic = Vec::with_capacity(4);
    file.by_ref().take(4).read_to_end(&mut magic).or_kind(Kind::Internal, what)?;
    if magic != b"\x7fELF" {
        return Ok(Program::Paths(vec![cstring(path)?]));
    }
    Ok(Program::File { file: above(&file)?, pass: Vec::new() })
}

/// Without arguments a program still has its own name (execve(2)).
fn argv(hook: &Hook) -> Result<Vec<CString>> {
    match hook.args().as_deref() {
        None | Some([]) => Ok(vec![cstring(hook.path())?]),
        Some(args) => args.iter().map(|arg| text(arg, "args")).collect(),
    }
}

/// Only what the spec says: nothing of the shim's or the container's.
fn env(hook: &Hook) -> &[String] {
    hook.env().as_deref().unwrap_or_default()
}

fn called(hook: &Hook) -> Called {
    Called { field: "path", name: hook.path().display().to_string() }
}
