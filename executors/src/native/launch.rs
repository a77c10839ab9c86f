//! The parent's half: clones the child and turns what it reports into words.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::child::{self, GO, HOOKS, READY, Report};
use super::plan::Namespaces;
use super::step::{Plan, Step};
use crate::cgroup::Cgroup;
use crate::console::Console;
use crate::error::{Error, OrKind, Result, bail};
use crate::process::{self, Process, Starter, Unfinished};
use crate::{Kind, sys};

/// Makes the container's first process and returns when it is ready to execute its program.
/// On error it is gone again.
///
/// `hooks` is called with the process's pid and pidfd while it waits at [`Step::AwaitHooks`], if its plan has that step.
pub(crate) fn launch(
    plan: Plan,
    namespaces: &Namespaces,
    cgroup: &Cgroup,
    console: Option<Console>,
    hooks: impl FnOnce(u32, BorrowedFd<'_>) -> Result<()>,
) -> Result<Process> {
    let birth = cgroup.birth()?;
    let pid_namespace = namespaces.pid.as_ref().map(AsFd::as_fd);
    let (child, socket) = clone(&plan, namespaces.flags, pid_namespace, birth.as_ref().map(AsFd::as_fd))
        .or_kind(Kind::Unavailable, || "linux.namespaces: clone3")?;
    let mut report = receive(&socket)?;
    if let (Some(Report { step: HOOKS, .. }), Some(child)) = (&report, child.get()) {
        hooks(child.pid, child.pidfd.as_fd())?;
        go(&socket)?;
        report = receive(&socket)?;
    }
    match report {
        Some(Report { step: READY, .. }) => {}
        Some(report) => return Err(explain(&report, &Words::all(&plan))),
        None => return Err(died(cgroup)),
    }
    let words = Words::from_start(&plan);
    // Everything that the child holds is its own by now.
    drop(plan);
    match child.finish() {
        Some(child) => Ok(Process::new(child, Some(Box::new(Start { socket, words })), console)),
        None => Err(died(cgroup)),
    }
}

/// Makes a further process of a container and returns when its execve(2) has happened. On error it is gone again.
///
/// `pid_namespace` is a process in the pid namespace to be born in; `births` are cgroups of v2 to be born in, the first that
/// takes it.
pub(crate) fn exec(
    plan: Plan,
    pid_namespace: Option<BorrowedFd<'_>>,
    births: &[OwnedFd],
    console: Option<Console>,
) -> Result<Process> {
    let mut births = births.iter().map(AsFd::as_fd).peekable();
    let (child, socket) = loop {
        match clone(&plan, 0, pid_namespace, births.next()) {
            // A cgroup of v2 that hands controllers on takes no processes (cgroup-v2.rst, "No Internal Process Constraint").
            Err(Errno::BUSY | Errno::NOENT) if births.peek().is_some() => {}
            made => break made.or_kind(Kind::Unavailable, || "clone3")?,
        }
    };
    if let Some(report) = receive(&socket)? {
        return Err(explain(&report, &Words::all(&plan)));
    }
    drop(plan);
    match child.finish() {
        Some(child) => Ok(Process::new(child, None, console)),
        None => bail!(Internal, "the process is gone"),
    }
}

/// Clones the child that runs the plan, and returns it with the parent's end of the socket.
fn clone(
    plan: &Plan,
    flags: i32,
    pid_namespace: Option<BorrowedFd<'_>>,
    cgroup: Option<BorrowedFd<'_>>,
) -> rustix::io::Result<(Unfinished, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let _born_in = BirthNamespace::enter(pid_namespace)?;
    let run = || {
        // The parent's end must not be open here: else end of file, its sign that this process is gone, never comes.
        sys::close(ours.as_raw_fd());
        child::run(plan, theirs.as_fd())
    };
    let child = process::spawn(|| sys::clone3(flags, cgroup, &run))?;
    Ok((child, ours))
}

/// While it lives, children of this thread are born in another pid namespace (pid_namespaces(7)).
struct BirthNamespace(Option<OwnedFd>);

impl BirthNamespace {
    /// `namespace` is a descriptor of a pid namespace, or the pidfd of a process in it (setns(2)).
    fn enter(namespace: Option<BorrowedFd<'_>>) -> rustix::io::Result<Self> {
        let Some(namespace) = namespace else { return Ok(Self(None)) };
        let own =
            rustix::fs::open("/proc/thread-self/ns/pid", OFlags::RDONLY | OFlags::CLOEXEC, rustix::fs::Mode::empty())?;
        move_into_thread_name_spaces(namespace, ThreadNameSpaceType::PROCESS_ID)?;
        Ok(Self(Some(own)))
    }
}

impl Drop for BirthNamespace {
    fn drop(&mut self) {
        if let Some(own) = self.0.take()
            && let Err(errno) = move_into_thread_name_spaces(own.as_fd(), ThreadNameSpaceType::PROCESS_ID)
        {
            // Later children of this thread would be born in a container.
            log::error!("return to the own pid namespace: {errno}");
            std::process::abort();
        }
    }
}

/// What the steps and the program are called, for the time when the plan itself is gone.
struct Words {
    first: u32,
    steps: Vec<String>,
    field: &'static str,
    program: String,
    searched: bool,
}

impl Words {
    fn all(plan: &Plan) -> Self {
        Self::from(plan, 0)
    }

    /// Only what can fail after the start.
    fn from_start(plan: &Plan) -> Self {
        let start = plan.steps.iter().position(|step| matches!(step, Step::AwaitStart)).unwrap_or(0);
        Self::from(plan, start)
    }

    fn from(plan: &Plan, first: usize) -> Self {
        let (field, program) = (plan.called.field, plan.called.name.clone());
        let searched = !program.contains('/');
        Self {
            first: first as u32,
            steps: plan.steps.iter().skip(first).map(Step::to_string).collect(),
            field,
            program,
            searched,
        }
    }
}

/// The error for a step that failed.
fn explain(report: &Report, words: &Words) -> Error {
    let (field, program) = (words.field, &words.program);
    let errno = Errno::from_raw_os_error(report.errno);
    let step =
        report.step.checked_sub(words.first).and_then(|index| words.steps.get(index as usize)).map(String::as_str);
    let find = Step::FindProgram.to_string();
    let (kind, text) = match (step, errno) {
        (Some(step), Errno::NOENT) if step == find && words.searched => {
            (Kind::InvalidArgument, format!("{field}: {program:?}: executable file not found in $PATH"))
        }
        (Some(step), Errno::NOENT) if step == find => {
            (Kind::InvalidArgument, format!("{field}: {program:?}: no such file or directory"))
        }
        (Some(step), Errno::ACCESS) if step == find => {
            (Kind::InvalidArgument, format!("{field}: {program:?}: permission denied: it is not executable"))
        }
        (Some(step), Errno::ISDIR) if step == find => {
            (Kind::InvalidArgument, format!("{field}: {program:?}: is a directory"))
        }
        (Some("execve"), Errno::NOENT) => (
            Kind::NotFound,
            format!("exec {program:?}: no such file or directory (its interpreter or loader is missing)"),
        ),
        (Some("execve"), errno) => (Kind::InvalidArgument, format!("exec {program:?}: {}", describe(errno))),
        (Some(step), errno) => {
            let kind = match errno {
                Errno::NOENT | Errno::NOTDIR | Errno::INVAL | Errno::LOOP | Errno::NAMETOOLONG | Errno::ISDIR => {
                    Kind::InvalidArgument
                }
                Errno::NOMEM | Errno::NOSPC | Errno::MFILE | Errno::AGAIN => Kind::Unavailable,
                _ => Kind::Internal,
            };
            let what = if step == find { format!("{field}: {program:?}") } else { step.to_owned() };
            (kind, format!("{what}: {}", describe(errno)))
        }
        (None, errno) => (Kind::Internal, describe(errno)),
    };
    Error::new(kind, anyhow::anyhow!(text))
}

/// The system's words for an error, as they stand in the middle of a sentence.
fn describe(errno: Errno) -> String {
    let text = nix::errno::Errno::from_raw(errno.raw_os_error()).desc();
    let mut letters = text.chars();
    match (letters.next(), letters.next()) {
        // "Exec format error", but not "RFS specific error" or "Value too large".
        (Some(first), Some(second)) if second.is_lowercase() => {
            first.to_lowercase().chain([second]).chain(letters).collect()
        }
        _ => text.to_owned(),
    }
}

fn died(cgroup: &Cgroup) -> Error {
    if cgroup.oom_killed() {
        let text = "linux.resources.memory.limit: too low: the container's first process ran out of memory before it was ready";
        return Error::new(Kind::InvalidArgument, anyhow::anyhow!(text));
    }
    Error::new(Kind::Internal, anyhow::anyhow!("the container's first process died before it was ready"))
}

/// The parent's end of the socket, kept until the start.
struct Start {
    socket: OwnedFd,
    words: Words,
}

impl Starter for Start {
    fn start(self: Box<Self>) -> Result<()> {
        go(&self.socket)?;
        match receive(&self.socket)? {
            // The child's end is closed by execve.
            None => Ok(()),
            Some(report) => Err(explain(&report, &self.words)),
        }
    }
}

fn go(socket: &OwnedFd) -> Result<()> {
    match rustix::net::send(socket, &[GO], rustix::net::SendFlags::NOSIGNAL) {
        Ok(_) => Ok(()),
        Err(Errno::PIPE | Errno::CONNRESET) => {
            Err(Error::new(Kind::FailedPrecondition, anyhow::anyhow!("the container's first process is dead")))
        }
        Err(errno) => Err(errno).or_kind(Kind::Internal, || "send to the child"),
    }
}

/// The next report, or `None` at the end of file.
fn receive(socket: &OwnedFd) -> Result<Option<Report>> {
    let mut bytes = [0; Report::SIZE];
    loop {
        match rustix::io::read(socket, &mut bytes) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) | Ok(0) => return Ok(None),
            Err(errno) => return Err(errno).or_kind(Kind::Internal, || "read the child's report"),
            Ok(_) => return Ok(Some(Report::from_bytes(bytes))),
        }
    }
}
