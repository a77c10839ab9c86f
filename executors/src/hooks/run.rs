//! One hook that is run to its end: within its time, with what it says on stderr kept for the error.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use oci_spec::runtime::Hook;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use crate::error::{OrKind, Result, bail};
use crate::native::launch;
use crate::native::step::Plan;
use crate::process::Process;
use crate::{Kind, Streams, host, sys};

/// As much of the end of stderr as is kept, in bytes.
const TAIL: usize = 1024;

/// As much as is read at once, in bytes; a pipe holds 64 KiB (pipe(7)).
const CHUNK: usize = 4096;
const CHUNKS_OF_A_PIPE: usize = 16;

/// A hook with all that its process needs.
pub(super) struct Prepared {
    /// As the spec names it, such as `hooks.prestart[0]`.
    name: String,
    plan: Plan,
    path: String,
    stderr: OwnedFd,
    limit: Option<Duration>,
    place: Place,
}

/// Where a process is born: in the pid namespace of the process behind the pidfd, and on v2 in the first of the cgroups that
/// takes it.
#[derive(Default)]
pub(super) struct Place {
    pub pid_namespace: Option<OwnedFd>,
    pub cgroups: Vec<OwnedFd>,
}

impl Prepared {
    /// `state` is what the hook reads on stdin; `compile` makes its plan.
    pub fn new(
        name: String,
        hook: &Hook,
        state: &[u8],
        place: Place,
        compile: impl FnOnce(Streams) -> Result<Plan>,
    ) -> Result<Prepared> {
        let (stderr, theirs) = pipe_with(PipeFlags::CLOEXEC).or_kind(Kind::Unavailable, || "make a pipe")?;
        // This end only: of the other one the hook would not expect it.
        rustix::fs::fcntl_setfl(&stderr, OFlags::NONBLOCK).or_kind(Kind::Internal, || "set up a pipe")?;
        let stdin = host::sealed_file("hybrid-state", state)?;
        let streams = Streams { stdin: Some(stdin), stdout: None, stderr: Some(theirs) };
        let plan = compile(streams).map_err(|e| e.context(name.clone()))?;
        let limit = hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()).map(Duration::from_secs);
        Ok(Prepared { name, plan, path: hook.path().display().to_string(), stderr, limit, place })
    }

    /// Runs it and waits for its end.
    ///
    /// # Errors
    /// What failed, with the hook's name and path; when it failed itself, with its exit status and the last line of its
    /// stderr.
    pub fn run(mut self) -> Result<()> {
        let name = std::mem::take(&mut self.name);
        self.run_unnamed().map_err(|e| e.context(name))
    }

    fn run_unnamed(self) -> Result<()> {
        let Prepared { name: _, plan, path, stderr, limit, place } = self;
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        let process = launch::exec(plan, place.pid_namespace.as_ref().map(AsFd::as_fd), &place.cgroups, None)?;
        let mut output = Output { pipe: Some(stderr), tail: Vec::new() };
        let Some(code) = watch(&process, &mut output, deadline)? else {
            // It leads a process group of its own, and is not reaped yet, so the number is still the group's.
            let _ = sys::kill_group(process.pid(), libc::SIGKILL);
            drop(process);
            let limit = limit.unwrap_or_default().as_secs();
            bail!(FailedPrecondition, "{path:?}: killed: it has not ended within its timeout of {limit} s");
        };
        // Without waiting for more: a process that it left in the background may keep stderr open.
        (0..CHUNKS_OF_A_PIPE).for_each(|_| output.read());
        match (code, output.last_line()) {
            (0, _) => Ok(()),
            (code, None) => bail!(FailedPrecondition, "{path:?}: exit status {code}"),
            (code, Some(line)) => bail!(FailedPrecondition, "{path:?}: exit status {code}: {line}"),
        }
    }
}

/// Waits for the end of a process, and reads its stderr meanwhile. Returns its exit code, or `None` at the deadline.
fn watch(process: &Process, output: &mut Output, deadline: Option<Instant>) -> Result<Option<u32>> {
    loop {
        if let Some(exit) = process.reap()? {
            return Ok(Some(exit.code));
        }
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            return Ok(None);
        }
        let left = left.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() });
        let pidfd = process.exit_fd();
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
        fds.extend(output.pipe.as_ref().map(|pipe| PollFd::new(pipe, PollFlags::IN)));
        let has_output = match poll(&mut fds, left.as_ref()) {
            Ok(_) => fds.get(1).is_some_and(|fd| !fd.revents().is_empty()),
            Err(Errno::INTR) => false,
            Err(errno) => return Err(errno).or_kind(Kind::Internal, || "wait for the hook"),
        };
        drop(fds);
        if has_output {
            output.read();
        }
    }
}

/// The end of what a process writes to a pipe.
struct Output {
    /// `None` when nobody can write to it any more.
    pipe: Option<OwnedFd>,
    tail: Vec<u8>,
}

impl Output {
    /// Reads what is there, but no more than a chunk of it.
    fn read(&mut self) {
        let Some(pipe) = &self.pipe else { return };
        let mut chunk = [0; CHUNK];
        match rustix::io::read(pipe, &mut chunk) {
            Ok(0) => self.pipe = None,
            Ok(n) => self.add(&chunk[..n]),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.pipe = None,
        }
    }

    fn add(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        let surplus = self.tail.len().saturating_sub(TAIL);
        self.tail.drain(..surplus);
    }

    /// The last line that says anything, fit for a log: it may be an image's.
    fn last_line(&self) -> Option<String> {
        let text = String::from_utf8_lossy(&self.tail);
        let printable = |line: &str| line.chars().filter(|c| !c.is_control()).collect::<String>().trim().to_owned();
        text.lines().rev().map(printable).find(|line| !line.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_line(writes: &[&[u8]]) -> Option<String> {
        let mut output = Output { pipe: None, tail: Vec::new() };
        writes.iter().for_each(|bytes| output.add(bytes));
        output.last_line()
    }

    #[test]
    fn the_last_line_of_stderr_is_found() {
        assert_eq!(last_line(&[]), None);
        assert_eq!(last_line(&[b" \n\n"]), None);
        assert_eq!(last_line(&[b"first\nsec", b"ond\n\n"]).as_deref(), Some("second"));
        assert_eq!(last_line(&[b"no newline"]).as_deref(), Some("no newline"));
        assert_eq!(last_line(&[b"\x1b[31mred\x07 \xff\n"]).as_deref(), Some("[31mred \u{fffd}"));
    }

    #[test]
    fn only_the_end_of_stderr_is_kept() {
        let long = vec![b'a'; 3 * TAIL];
        assert_eq!(last_line(&[&long, b"\nend\n"]).as_deref(), Some("end"));
        assert_eq!(last_line(&[&long]).map(|line| line.len()), Some(TAIL));
    }
}
