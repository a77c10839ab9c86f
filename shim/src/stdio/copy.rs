//! Carrying bytes between descriptors without blocking the shim's only thread.

use crate::descriptor;
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// As much as one call may move: all that a pipe of the largest usual size holds.
const AT_ONCE: usize = 1 << 20;

/// How many calls in a row may succeed before others get their turn.
const TURNS: u32 = 16;

/// A descriptor that never blocks, watched by the runtime. O_NONBLOCK is set on its description, so that must be the shim's
/// alone.
pub(super) fn watch(fd: OwnedFd, interest: Interest) -> Result<AsyncFd<OwnedFd>> {
    let flags = fcntl(&fd, FcntlArg::F_GETFL).context("fcntl")?;
    fcntl(&fd, FcntlArg::F_SETFL(OFlag::from_bits_retain(flags) | OFlag::O_NONBLOCK)).context("fcntl")?;
    descriptor::watch(fd, interest).context("watch a descriptor")
}

/// Moves everything from one pipe to another, until the end of file. The kernel moves pages, nothing is copied.
pub(super) fn splice_all(from: OwnedFd, to: OwnedFd) -> Result<impl Future<Output = ()> + Send + 'static> {
    let (from, to) = (watch(from, Interest::READABLE)?, watch(to, Interest::WRITABLE)?);
    Ok(async move {
        if let Err(error) = move_all(&from, &to).await {
            log::warn!("carry a stream: {error}");
        }
    })
}

async fn move_all(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    let mut turns = 0;
    loop {
        let (mut readable, mut writable) = (from.readable().await?, to.writable().await?);
        match splice(from.get_ref(), None, to.get_ref(), None, AT_ONCE, flags) {
            Ok(0) => return Ok(()),
            Ok(_) => {
                turns += 1;
                if turns % TURNS == 0 {
                    tokio::task::yield_now().await;
                }
            }
            Err(Errno::EINTR) => {}
            // Either end may be the reason.
            Err(Errno::EAGAIN) if !is_ready(to, PollFlags::POLLOUT)? => writable.clear_ready(),
            Err(Errno::EAGAIN) if !is_ready(from, PollFlags::POLLIN)? => readable.clear_ready(),
            Err(Errno::EAGAIN) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn is_ready(fd: &AsyncFd<OwnedFd>, wanted: PollFlags) -> io::Result<bool> {
    Ok(poll(&mut [PollFd::new(fd.as_fd(), wanted)], PollTimeout::ZERO)? > 0)
}

/// Reads what there is, at least one byte; 0 is the end of file.
pub(super) async fn read_some(fd: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        let mut ready = fd.readable().await?;
        match read(fd.get_ref(), buffer) {
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Writes all of it.
pub(super) async fn write_all(fd: &AsyncFd<OwnedFd>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let mut ready = fd.writable().await?;
        match write(fd.get_ref(), bytes) {
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(Errno::EAGAIN) => ready.clear_ready(),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads everything until the end of file and keeps nothing of it.
pub(super) async fn discard(fd: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut buffer = vec![0; 4096];
    while read_some(fd, &mut buffer).await? > 0 {
        tokio::task::yield_now().await;
    }
    Ok(())
}
