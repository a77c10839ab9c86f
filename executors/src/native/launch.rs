//! The parent's half: clones the child and turns what it reports into words.

use std::cell::Cell;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, recvmsg, socketpair,
};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_open};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::child::{self, GO, HOOKS, LISTENER, READY, Report, TERMINAL};
use super::namespaces::Namespaces;
use super::step::{Plan, Step};
use crate::Kind;
use crate::cgroup::Cgroup;
use crate::console::Console;
use crate::error::{Error, OrKind, Result, bail};
use crate::process::{self, Child, Process, Starter, Unfinished};
use crate::sys::{self, Cloned, WaitFor};

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
    let born_in: Vec<_> = namespaces.born_in.iter().map(|(namespace, kind)| (namespace.as_fd(), *kind)).collect();
    let failed = Cell::new(None);
    let cloned = clone(&plan, namespaces.flags, &born_in, &namespaces.before, &failed, birth.as_ref().map(AsFd::as_fd));
    let (child, socket) = match (cloned, failed.get()) {
        (Err(errno), Some(step)) => {
            let report = Report { step, errno: errno.raw_os_error() };
            return Err(explain(&report, &Words::of(&namespaces.before, &plan)));
        }
        (cloned, _) => cloned.or_kind(Kind::Unavailable, || "linux.namespaces: clone3")?,
    };
    if let Some(child) = child.get().filter(|_| namespaces.waits_for_parent()) {
        let settled = namespaces.settle(child.pid);
        // One that has failed before is gone, and has told why.
        if settled.is_err()
            && let Some(report) = reported(&socket)
        {
            return Err(explain(&report, &Words::all(&plan)));
        }
        settled?;
        // If it is gone, what comes next says so.
        let _ = go(&socket);
    }
    let (mut console, mut hooks) = (console, Some(hooks));
    loop {
        let received = receive_all(&socket)?;
        // The first thing that it says comes after it has joined its cgroup.
        cgroup.settled();
        match received {
            Received::Terminal(opened) => console = Some(opened),
            Received::Report(Report { step: HOOKS, .. }) => {
                if let (Some(hooks), Some(child)) = (hooks.take(), child.get()) {
                    hooks(child.pid, child.pidfd.as_fd())?;
                }
                go(&socket)?;
            }
            Received::Report(Report { step: LISTENER, errno: number }) => {
                child.get().map_or(Ok(()), |child| pass_listener(&plan, child, number, &socket))?;
            }
            Received::Report(Report { step: READY, .. }) => break,
            Received::Report(report) => return Err(explain(&report, &Words::all(&plan))),
            Received::Nothing => return Err(died(cgroup)),
        }
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
    let born_in: Vec<_> = pid_namespace.map(|init| (init, ThreadNameSpaceType::PROCESS_ID)).into_iter().collect();
    let (child, socket) = loop {
        match clone(&plan, 0, &born_in, &[], &Cell::new(None), births.next()) {
            // A cgroup of v2 that hands controllers on takes no processes (cgroup-v2.rst, "No Internal Process Constraint").
            Err(Errno::BUSY | Errno::NOENT) if births.peek().is_some() => {}
            made => break made.or_kind(Kind::Unavailable, || "clone3")?,
        }
    };
    while let Some(report) = receive(&socket)? {
        match (report.step, child.get()) {
            (LISTENER, Some(child)) => pass_listener(&plan, child, report.errno, &socket)?,
            _ => return Err(explain(&report, &Words::all(&plan))),
        }
    }
    drop(plan);
    match child.finish() {
        Some(child) => Ok(Process::new(child, None, console)),
        None => bail!(Internal, "the process is gone"),
    }
}

/// Takes a copy of the listener of the child's filter, lets the child go on, and sends the copy to the agent. The kernel keeps
/// notifications until the agent asks for them.
fn pass_listener(plan: &Plan, child: &Child, number: RawFd, socket: &OwnedFd) -> Result<()> {
    let Some(agent) = plan.agent() else { bail!(Internal, "linux.seccomp: a listener that nobody is to get") };
    let listener = rustix::process::pidfd_getfd(&child.pidfd, number, PidfdGetfdFlags::empty())
        .or_kind(Kind::Internal, || "linux.seccomp: take the listener from the child")?;
    go(socket)?;
    agent.send(listener.as_fd(), child.pid)
}

/// Clones the child that runs the plan, and returns it with the parent's end of the socket. With steps `before` by way of a
/// process in between; `failed` says which of them has.
fn clone(
    plan: &Plan,
    flags: i32,
    born_in: &[(BorrowedFd<'_>, ThreadNameSpaceType)],
    before: &[Step],
    failed: &Cell<Option<u32>>,
    cgroup: Option<BorrowedFd<'_>>,
) -> rustix::io::Result<(Unfinished, OwnedFd)> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let _born_in = BirthNamespaces::enter(born_in)?;
    let run = || {
        // The parent's end must not be open here: else end of file, its sign that this process is gone, never comes.
        sys::close(ours.as_raw_fd());
        child::run(plan, theirs.as_fd())
    };
    let child = process::spawn(|| match before {
        [] => sys::clone3(flags, cgroup, &run),
        before => clone_behind(plan, before, failed, &|| sys::clone3_sibling(flags, cgroup, &run)),
    })?;
    Ok((child, ours))
}

/// Has a process in between do `before` and then clone this process's child (CLONE_PARENT), and waits for its end.
fn clone_behind(
    plan: &Plan,
    before: &[Step],
    failed: &Cell<Option<u32>>,
    clone: &dyn Fn() -> rustix::io::Result<u32>,
) -> rustix::io::Result<Cloned> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    let run = || {
        let report = match child::run_before(plan, before, writer.as_fd()) {
            Err((step, errno)) => Report { step, errno: errno.raw_os_error() },
            Ok(()) => match clone() {
                Ok(pid) => Report { step: READY, errno: pid as i32 },
                Err(errno) => Report { step: before.len() as u32, errno: errno.raw_os_error() },
            },
        };
        let _ = rustix::io::write(&writer, &report.to_bytes());
        0
    };
    let between = sys::clone3(0, None, &run)?;
    while let Err(Errno::INTR) = sys::waitid(WaitFor::PidFd(between.pidfd.as_fd()), 0) {}
    let mut bytes = [0; Report::SIZE];
    if rustix::io::read(&reader, &mut bytes)? < bytes.len() {
        return Err(Errno::SRCH);
    }
    match Report::from_bytes(bytes) {
        Report { step: READY, errno: pid } => {
            // Not reaped yet by anybody, as it is made under the lock of those who do.
            let raw = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
            Ok(Cloned { pid: pid as u32, pidfd: pidfd_open(raw, PidfdFlags::empty())? })
        }
        Report { step, errno } => {
            failed.set(Some(step));
            Err(Errno::from_raw_os_error(errno))
        }
    }
}

/// While it lives, children of this thread are born in other namespaces. It keeps the way back. For its own pid namespace a
/// thread has only that of its children to change (pid_namespaces(7)); in the others it is itself for that time.
pub(super) struct BirthNamespaces(Vec<(OwnedFd, ThreadNameSpaceType)>);

impl BirthNamespaces {
    /// Each is a descriptor of a namespace of that kind, or the pidfd of a process in it (setns(2)).
    pub(super) fn enter(namespaces: &[(BorrowedFd<'_>, ThreadNameSpaceType)]) -> rustix::io::Result<Self> {
        let mut entered = Self(Vec::new());
        for (namespace, kind) in namespaces {
            let own = rustix::fs::open(own_namespace(*kind)?, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
            move_into_thread_name_spaces(*namespace, *kind)?;
            entered.0.push((own, *kind));
        }
        Ok(entered)
    }
}

impl Drop for BirthNamespaces {
    fn drop(&mut self) {
        while let Some((own, kind)) = self.0.pop() {
            if let Err(errno) = move_into_thread_name_spaces(own.as_fd(), kind) {
                // This thread, or its later children, would be in a container.
                log::error!("return to the own namespace {kind:?}: {errno}");
                std::process::abort();
            }
        }
    }
}

/// Where a thread finds its namespace of a kind (namespaces(7)); EINVAL for those that a thread can't change and come back.
fn own_namespace(kind: ThreadNameSpaceType) -> rustix::io::Result<&'static str> {
    use ThreadNameSpaceType as T;
    let kinds = [
        (T::PROCESS_ID, "/proc/thread-self/ns/pid"),
        (T::NETWORK, "/proc/thread-self/ns/net"),
        (T::INTER_PROCESS_COMMUNICATION, "/proc/thread-self/ns/ipc"),
        (T::HOST_NAME_AND_NIS_DOMAIN_NAME, "/proc/thread-self/ns/uts"),
        (T::CONTROL_GROUP, "/proc/thread-self/ns/cgroup"),
    ];
    kinds.into_iter().find(|(known, _)| *known == kind).map(|(_, path)| path).ok_or(Errno::INVAL)
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

    /// Those of the process in between, whose last step is the clone.
    fn of(before: &[Step], plan: &Plan) -> Self {
        let clone = "linux.namespaces: clone3".to_owned();
        Self { steps: before.iter().map(Step::to_string).chain([clone]).collect(), ..Self::from(plan, 0) }
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
        // In runc's words, which others look for.
        (Some(step), Errno::LOOP)
            if ["proc", "sysfs"].iter().any(|fstype| step.contains(&format!("mount {fstype} at"))) =>
        {
            (Kind::InvalidArgument, format!("{step}: must be mounted on ordinary directory, and there is a symlink"))
        }
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

/// A report that is there already.
fn reported(socket: &OwnedFd) -> Option<Report> {
    let mut bytes = [0; Report::SIZE];
    let (length, _) = rustix::net::recv(socket, &mut bytes, RecvFlags::DONTWAIT).ok()?;
    (length == Report::SIZE).then(|| Report::from_bytes(bytes))
}

/// The next report, or `None` at the end of file.
///
/// ECONNRESET says once that the child has not read all that was sent to it, before what it sent itself and the end of file
/// (unix(7)).
fn receive(socket: &OwnedFd) -> Result<Option<Report>> {
    let mut bytes = [0; Report::SIZE];
    loop {
        match rustix::io::read(socket, &mut bytes) {
            Err(Errno::INTR | Errno::CONNRESET) => {}
            Ok(0) => return Ok(None),
            Err(errno) => return Err(errno).or_kind(Kind::Internal, || "read the child's report"),
            Ok(_) => return Ok(Some(Report::from_bytes(bytes))),
        }
    }
}

/// What comes from a child before its start.
enum Received {
    Terminal(Console),
    Report(Report),
    Nothing,
}

/// The next report, or the terminal of a child that opens it itself.
fn receive_all(socket: &OwnedFd) -> Result<Received> {
    let what = || "process.terminal: receive the terminal";
    let mut bytes = [0; Report::SIZE];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR | Errno::CONNRESET) => {}
            received => break received.or_kind(Kind::Internal, what)?.bytes,
        }
    };
    if length == 0 {
        return Ok(Received::Nothing);
    }
    let report = Report::from_bytes(bytes);
    if report.step != TERMINAL {
        return Ok(Received::Report(report));
    }
    let mut ends = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let mut ends = ends.by_ref().flatten();
    match (ends.next(), ends.next()) {
        (Some(master), Some(slave)) => Ok(Received::Terminal(Console::from_pair(master, slave))),
        _ => bail!(Internal, "process.terminal: it did not come with the child's report"),
    }
}
