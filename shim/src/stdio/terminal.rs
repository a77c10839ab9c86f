//! Carrying bytes between a terminal and what containerd named: the one place where the shim copies.
//!
//! ```text
//! stdin ──> master ──> the program ──> master ──> stdout
//! ```
//! - The shim keeps the process's end open itself while the process lives: a program that closes its terminal for a while
//!   would else look as if it had hung up.
//! - When the process has ended, what it wrote before is carried to the end; what others still write is not waited for.
//! - When stdin ends, which takes a CloseIO, the terminal is hung up, as containerd's Go shim does.

use super::copy::{read_some, watch, write_all};
use anyhow::{Context, Result};
use executors::Console;
use nix::errno::Errno;
use nix::unistd::read;
use std::fs::OpenOptions;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::pin;
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::oneshot;

/// The kernel hands out no more of a terminal at once.
const BUFFER: usize = 4096;

/// Where output goes.
enum Output {
    /// A fifo or pipe, which can be full.
    Pipe(AsyncFd<OwnedFd>),
    /// A file or device, which can't be waited for, and /dev/null where nothing was named.
    File(OwnedFd),
}

impl Output {
    fn new(fd: Option<OwnedFd>) -> Result<Output> {
        let fd = match fd {
            Some(fd) => fd,
            None => OpenOptions::new().write(true).open("/dev/null").context("open /dev/null")?.into(),
        };
        // The container never sees this description: it may be made so that it does not block.
        match watch(fd.try_clone().context("duplicate a descriptor")?, Interest::WRITABLE) {
            Ok(pipe) => Ok(Output::Pipe(pipe)),
            Err(_) => Ok(Output::File(fd)),
        }
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Output::Pipe(pipe) => write_all(pipe, bytes).await,
            Output::File(file) => {
                let mut left = bytes;
                while !left.is_empty() {
                    let written = nix::unistd::write(file, left)?;
                    left = left.get(written..).unwrap_or_default();
                }
                Ok(())
            }
        }
    }
}

/// Carries a terminal's input and output until its process has `ended` or its stdin has.
pub(super) fn carry(
    console: Arc<Console>,
    input: Option<OwnedFd>,
    output: Option<OwnedFd>,
    ended: oneshot::Receiver<()>,
) -> Result<impl Future<Output = ()> + Send + 'static> {
    let master = console.as_fd().try_clone_to_owned().context("duplicate the terminal")?;
    let master = watch(master, Interest::READABLE | Interest::WRITABLE)?;
    let input = input.map(|input| watch(input, Interest::READABLE)).transpose()?;
    let output = Output::new(output)?;
    Ok(async move {
        let stop = async {
            tokio::select! {
                () = carry_input(input.as_ref(), &master) => {}
                // The sender was dropped.
                _ = ended => {}
            }
            console.release_slave();
        };
        if let Err(error) = carry_output(&master, &output, stop).await {
            log::warn!("carry a terminal's output: {error}");
        }
        // With the master, the last reference to it in any process, this hangs up.
        drop((master, console));
    })
}

/// Never returns before stdin has ended; without one, never.
async fn carry_input(input: Option<&AsyncFd<OwnedFd>>, master: &AsyncFd<OwnedFd>) {
    let Some(input) = input else { return std::future::pending().await };
    let mut buffer = vec![0; BUFFER];
    loop {
        match read_some(input, &mut buffer).await {
            Ok(0) => return,
            Ok(n) => {
                if let Err(error) = write_all(master, &buffer[..n]).await {
                    log::warn!("carry a terminal's input: {error}");
                    return;
                }
            }
            Err(error) => return log::warn!("carry a terminal's input: {error}"),
        }
    }
}

/// Carries output until `stop`, and then what is left. Nothing that was read is given up.
async fn carry_output(master: &AsyncFd<OwnedFd>, output: &Output, stop: impl Future<Output = ()>) -> io::Result<()> {
    let mut stop = pin!(stop);
    let mut buffer = vec![0; BUFFER];
    let mut running = true;
    while running {
        let n = tokio::select! {
            n = read_some(master, &mut buffer) => n?,
            () = &mut stop => break,
        };
        let mut written = pin!(output.write(&buffer[..n]));
        loop {
            tokio::select! {
                result = &mut written => break result?,
                () = &mut stop, if running => running = false,
            }
        }
    }
    carry_rest(master, output).await
}

/// Carries what was written so far: reading waits for what the kernel still has on its way through the terminal.
async fn carry_rest(master: &AsyncFd<OwnedFd>, output: &Output) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        match read(master.get_ref(), &mut buffer) {
            // Nobody has the terminal any more, or somebody who has nothing to say.
            Ok(0) | Err(Errno::EIO | Errno::EAGAIN) => return Ok(()),
            Ok(n) => output.write(&buffer[..n]).await?,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
