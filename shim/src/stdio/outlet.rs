//! Output that the client has not read yet.
//!
//! containerd 2's client deletes a process as soon as it hears of its exit, and before it does it closes its ends of the
//! streams (client/process.go and client/task.go: `Delete` cancels the streams before it waits for them): what is in a fifo
//! then is lost. So the exit is told only when the client has read what the process wrote.

use crate::descriptor;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::inotify;
use rustix::io::ioctl_fionread;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

/// When to look again where inotify(7) has nothing to give.
const PAUSE: Duration = Duration::from_millis(10);

/// Where a process's output waits for the client.
pub(super) struct Outlet {
    /// The shim's read end, so that the process can write while there is no client.
    fifo: OwnedFd,
    /// The read end of the pipe from which a copier fills the fifo.
    pipe: Option<OwnedFd>,
}

impl Outlet {
    pub fn new(fifo: OwnedFd, pipe: Option<OwnedFd>) -> Outlet {
        Outlet { fifo, pipe }
    }

    /// Waits until nothing is left that a client could read, or nobody is left who could.
    ///
    /// Dropped at any time it leaves everything as it was. The copiers must run on the caller's thread.
    ///
    /// # Errors
    /// Those of open(2).
    pub async fn taken(&mut self) -> io::Result<()> {
        while !self.is_empty()? && self.has_client()? {
            let changes = self.changes();
            // What was read before that does not come as a change.
            if self.is_empty()? {
                break;
            }
            match changes {
                Ok(changes) => changes.readable().await?.retain_ready(),
                Err(error) => {
                    log::debug!("no inotify: {error}");
                    sleep(PAUSE).await;
                }
            }
        }
        Ok(())
    }

    /// Becomes readable when somebody has read from the fifo, or closed it.
    ///
    /// # Errors
    /// Those of inotify(7), whose instances and watches are few for each user.
    fn changes(&self) -> io::Result<AsyncFd<OwnedFd>> {
        let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let watched = inotify::WatchFlags::ACCESS | inotify::WatchFlags::CLOSE_NOWRITE;
        inotify::add_watch(&changes, path(&self.fifo), watched)?;
        descriptor::watch(changes, Interest::READABLE)
    }

    fn is_empty(&self) -> io::Result<bool> {
        // In the direction of the flow, so that nothing is missed.
        for fd in self.pipe.iter().chain([&self.fifo]) {
            if ioctl_fionread(fd)? > 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether anybody else has the fifo open for reading.
    ///
    /// # Errors
    /// Those of open(2). The fifo and what is in it are kept all the same.
    pub fn has_client(&mut self) -> io::Result<bool> {
        let nonblocking = nix::libc::O_NONBLOCK;
        let writer = OpenOptions::new().write(true).custom_flags(nonblocking).open(path(&self.fifo))?;
        // This closes the shim's read end; the writer keeps the contents (fifo(7)). A copier doesn't notice: see `taken`.
        self.fifo = writer.into();
        // poll(2): POLLERR is set for the write end of a pipe whose read end was closed.
        let mut fds = [PollFd::new(self.fifo.as_fd(), PollFlags::empty())];
        poll(&mut fds, PollTimeout::ZERO)?;
        let has_client = !fds[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR));
        self.fifo = OpenOptions::new().read(true).custom_flags(nonblocking).open(path(&self.fifo))?.into();
        Ok(has_client)
    }
}

/// A path that opens a descriptor's file again, even when it was removed.
fn path(fd: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}
