//! A container's process from the parent's side: known by its pidfd, started by one byte, reaped once.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use rustix::io::Errno;

use crate::Kind;
use crate::console::Console;
use crate::error::{OrKind, Result, bail};
use crate::sys::{self, WaitFor};

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code, or 128 + n when signal n ended it.
    pub code: u32,
    /// When this process noticed.
    pub at: SystemTime,
}

/// What a start leaves to do: one byte to send, and the child's words to understand if it fails.
pub(crate) trait Starter: Send {
    /// Lets the child go on and returns once execve has happened; an error says in words what failed.
    fn start(self: Box<Self>) -> Result<()>;
}

/// One process of a container.
pub struct Process {
    pid: u32,
    pidfd: OwnedFd,
    starter: Mutex<Option<Box<dyn Starter>>>,
    exit: Mutex<Option<Exit>>,
    console: Mutex<Option<Console>>,
}

impl Process {
    /// Without a starter the process runs already.
    pub(crate) fn new(child: Child, starter: Option<Box<dyn Starter>>, console: Option<Console>) -> Self {
        let Child { pid, pidfd } = child;
        Self { pid, pidfd, starter: Mutex::new(starter), exit: Mutex::default(), console: Mutex::new(console) }
    }

    /// With the terminal's end for the shim.
    pub(crate) fn with_console(self, console: Console) -> Process {
        *lock(&self.console) = Some(console);
        self
    }

    /// Puts something around the start.
    pub(crate) fn wrap_starter(&self, wrap: impl FnOnce(Box<dyn Starter>) -> Box<dyn Starter>) {
        let mut starter = lock(&self.starter);
        *starter = starter.take().map(wrap);
    }

    /// The terminal's end for the shim, once; `None` when the process has no terminal.
    pub fn take_console(&self) -> Option<Console> {
        lock(&self.console).take()
    }

    /// The pid in the shim's pid namespace.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Lets a created process execute its program; returns once execve(2) has happened or failed.
    ///
    /// # Errors
    /// FailedPrecondition when it was started before; otherwise what execve said, with the program's name.
    pub fn start(&self) -> Result<()> {
        let Some(starter) = lock(&self.starter).take() else {
            bail!(FailedPrecondition, "process {} was started before", self.pid);
        };
        starter.start()
    }

    /// Sends a signal, by its number.
    ///
    /// # Errors
    /// NotFound when the process has ended; InvalidArgument for a number that is no signal.
    pub fn signal(&self, signal: i32) -> Result<()> {
        if lock(&self.exit).is_some() {
            bail!(NotFound, "process already finished");
        }
        send(self.pidfd.as_fd(), signal)
    }

    /// The pidfd, which becomes readable when the process has ended (pidfd_open(2)).
    pub fn exit_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// How the process ended, or `None` while it lives. Does not block; the answer is the same however often it is asked.
    pub fn reap(&self) -> Result<Option<Exit>> {
        let mut exit = lock(&self.exit);
        if exit.is_none()
            && let Some(code) = wait(self.pidfd.as_fd(), libc::WNOHANG)?
        {
            forget(self.pid);
            *exit = Some(Exit { code, at: SystemTime::now() });
        }
        Ok(*exit)
    }
}

/// A process that nobody will ask for any more may not live on, nor stay a zombie.
impl Drop for Process {
    fn drop(&mut self) {
        if lock(&self.exit).is_none() {
            end(self.pid, self.pidfd.as_fd());
        }
    }
}

/// Kills a child and reaps it.
fn end(pid: u32, pidfd: BorrowedFd<'_>) {
    // It may be dead already; waiting for it is what matters.
    let _ = sys::pidfd_send_signal(pidfd, libc::SIGKILL);
    let _ = wait(pidfd, 0);
    forget(pid);
}

/// A child of this process that somebody waits for, so that [`reap_orphans`] leaves it alone.
pub(crate) struct Child {
    pub pid: u32,
    pub pidfd: OwnedFd,
}

/// A [`Child`] that is killed when dropped: for the time until it becomes a [`Process`].
pub(crate) struct Unfinished(Option<Child>);

impl Unfinished {
    /// The child, which is there until this is finished.
    pub fn get(&self) -> Option<&Child> {
        self.0.as_ref()
    }

    /// Waits for its end.
    pub fn wait(mut self) -> Result<()> {
        if let Some(child) = self.0.take() {
            let waited = wait(child.pidfd.as_fd(), 0);
            forget(child.pid);
            waited?;
        }
        Ok(())
    }

    /// The child as it is; nothing is killed any more.
    pub fn finish(mut self) -> Option<Child> {
        self.0.take()
    }
}

impl From<Child> for Unfinished {
    fn from(child: Child) -> Self {
        Self(Some(child))
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(child) = self.0.take() {
            end(child.pid, child.pidfd.as_fd());
        }
    }
}

/// Pids that somebody waits for. Children are made under this lock, so that none can end before it is listed.
static WAITED_FOR: Mutex<Option<HashSet<u32>>> = Mutex::new(None);

/// Makes a child by `make`, listed as waited for.
pub(crate) fn spawn(make: impl FnOnce() -> rustix::io::Result<sys::Cloned>) -> rustix::io::Result<Unfinished> {
    let mut pids = lock(&WAITED_FOR);
    let cloned = make()?;
    pids.get_or_insert_default().insert(cloned.pid);
    Ok(Unfinished(Some(Child { pid: cloned.pid, pidfd: cloned.pidfd })))
}

/// Starts a helper program, listed as waited for.
pub(crate) fn spawn_command(command: &mut std::process::Command) -> std::io::Result<Child> {
    let mut pids = lock(&WAITED_FOR);
    let pid = command.spawn()?.id();
    // Nobody reaps it meanwhile, so the pid is its own.
    let raw = rustix::process::Pid::from_raw(pid as i32).ok_or(Errno::SRCH)?;
    let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())?;
    pids.get_or_insert_default().insert(pid);
    Ok(Child { pid, pidfd })
}

/// Lists a child that another process has made as waited for.
pub(crate) fn adopt(pid: u32) -> rustix::io::Result<Unfinished> {
    let mut pids = lock(&WAITED_FOR);
    let raw = rustix::process::Pid::from_raw(pid as i32).ok_or(Errno::SRCH)?;
    let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())?;
    pids.get_or_insert_default().insert(pid);
    Ok(Child { pid, pidfd }.into())
}

/// Runs a helper program to its end, listed as waited for; its output is returned as [`std::process::Command::output`] does.
pub(crate) fn output(command: &mut std::process::Command) -> std::io::Result<std::process::Output> {
    let child = {
        let mut pids = lock(&WAITED_FOR);
        let child = command.spawn()?;
        pids.get_or_insert_default().insert(child.id());
        child
    };
    let pid = child.id();
    let output = child.wait_with_output();
    forget(pid);
    output
}

fn forget(pid: u32) {
    if let Some(pids) = lock(&WAITED_FOR).as_mut() {
        pids.remove(&pid);
    }
    // It may have been in front of an orphan, which WNOWAIT then could not see.
    reap_orphans();
}

/// Reaps ended children that nobody waits for.
pub(crate) fn reap_orphans() {
    let pids = lock(&WAITED_FOR);
    // A child that is waited for hides those behind it; forget() comes back here for them.
    while let Ok(Some(ended)) = sys::waitid(WaitFor::Any, libc::WNOHANG | libc::WNOWAIT) {
        if pids.as_ref().is_some_and(|pids| pids.contains(&ended.pid))
            || sys::waitid(WaitFor::Pid(ended.pid), libc::WNOHANG).is_err()
        {
            return;
        }
    }
}

/// Waits for the child behind a pidfd: its exit code, or `None` when it lives and `options` has WNOHANG.
fn wait(pidfd: BorrowedFd<'_>, options: i32) -> Result<Option<u32>> {
    loop {
        match sys::waitid(WaitFor::PidFd(pidfd), options) {
            Err(Errno::INTR) => {}
            waited => return Ok(waited.or_kind(Kind::Internal, || "waitid")?.map(|waited| waited.code)),
        }
    }
}

/// pidfd_send_signal(2) with the errors that callers tell apart.
fn send(pidfd: BorrowedFd<'_>, signal: i32) -> Result<()> {
    match sys::pidfd_send_signal(pidfd, signal) {
        Err(Errno::SRCH) => bail!(NotFound, "process already finished"),
        Err(Errno::INVAL) => bail!(InvalidArgument, "{signal} is not a signal"),
        result => result.or_kind(Kind::Internal, || format!("send signal {signal}")),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Data behind these locks is replaced whole, so a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
