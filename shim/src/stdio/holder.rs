//! The shim's read end of a fifo: while it is open, the process gets no EPIPE where nobody else reads.
//!
//! A pipe's bytes live as long as one of its ends is open. Clients open theirs in the background, so one that is slow may
//! come when a short process has ended already, and was deleted: then the bytes would be gone. So where no reader had come
//! when the process was made, the shim waits for it before it lets go. (containerd's Go shim waits before the start.)

use super::copy::is_ready;
use anyhow::{Context, Result};
use nix::fcntl::{OFlag, open};
use nix::poll::PollFlags;
use nix::sys::stat::Mode;
use std::os::fd::{AsRawFd, OwnedFd};
use tokio::time::{Instant, timeout_at};

pub(super) struct Holder {
    reader: OwnedFd,
    /// Whether the client had opened its end when this was made.
    client_came: bool,
}

impl Holder {
    pub fn new(reader: OwnedFd, client_came: bool) -> Self {
        Self { reader, client_came }
    }

    /// Closes the read end. If the client has not come before and there are bytes for it, it may come until the deadline.
    pub async fn release(self, deadline: Instant) {
        if !self.client_came
            && let Err(error) = wait_for_reader(self.reader, deadline).await
        {
            log::warn!("wait for a reader of a stream: {error:#}");
        }
    }
}

async fn wait_for_reader(reader: OwnedFd, deadline: Instant) -> Result<()> {
    if !is_ready(&reader, PollFlags::POLLIN)? {
        return Ok(());
    }
    // From here on a write end keeps the bytes: as with it, and only so, the kernel says whether there is another reader.
    let writer = again(&reader, OFlag::O_WRONLY | OFlag::O_NONBLOCK)?;
    drop(reader);
    if !is_ready(&writer, PollFlags::POLLERR)? {
        return Ok(());
    }
    let waiting = writer.try_clone()?;
    // fifo(7): opening for writing blocks until there is a reader.
    let comes = tokio::task::spawn_blocking(move || again(&waiting, OFlag::O_WRONLY).map(drop));
    if timeout_at(deadline, comes).await.is_err() {
        log::debug!("nobody has come to read a stream");
        // Lets the thread above go.
        again(&writer, OFlag::O_RDONLY | OFlag::O_NONBLOCK)?;
    }
    Ok(())
}

/// Opens what a descriptor is of once more.
fn again(fd: &OwnedFd, flags: OFlag) -> Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    open(path.as_str(), flags | OFlag::O_CLOEXEC, Mode::empty()).with_context(|| format!("open {path}"))
}
