//! Descriptors that the shim's runtime waits for.

use anyhow::Context;
use executors::{Exit, Result};
use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Has the runtime watch a descriptor.
///
/// # Errors
/// Those of epoll_ctl(2), EPERM for a regular file among them.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    #[expect(
        deprecated,
        reason = "its successor is unsafe, for types whose descriptor may change; OwnedFd's never does"
    )]
    AsyncFd::with_interest(fd, interest)
}

/// Waits for the end of the process that `pidfd` refers to and `reap` reaps.
pub async fn exited(pidfd: &AsyncFd<OwnedFd>, reap: impl Fn() -> Result<Option<Exit>>) -> Result<Exit> {
    loop {
        let mut ready = pidfd.readable().await.context("wait for the pidfd")?;
        if let Some(exit) = reap()? {
            return Ok(exit);
        }
        ready.clear_ready();
    }
}
