//! A process's terminal from the shim's side.
//!
//! Source: pty(7), ioctl_tty(2); the kernel's filesystems/devpts.rst; OCI runtime spec, config.md "process.terminal".

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use oci_spec::runtime::Process;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::Kind;
use crate::error::{OrKind, Result, bail};

/// The kernel's magic number of devpts (statfs(2)).
const DEVPTS: u64 = 0x1cd1;

/// The master of a pseudoterminal: what is written to it is the process's input, what is read from it the output.
///
/// It belongs to the container's own devpts, so that the process finds its terminal's name there. When the last descriptor
/// of the master is closed, which its dropping does, the terminal is hung up (SIGHUP to the session's leader).
#[derive(Debug)]
pub struct Console {
    master: OwnedFd,
    /// The process's end, held so that it is open all the time that the process could use it.
    slave: Mutex<Option<OwnedFd>>,
}

impl Console {
    /// A new terminal in the devpts whose root folder is `devpts`, and its other end, for the process.
    ///
    /// The folder may be a container's, so nothing about it is believed: the device is the file system's own, and its other
    /// end is had from it, not by a path.
    pub(crate) fn open(devpts: BorrowedFd<'_>) -> Result<(Console, OwnedFd)> {
        let what = || "process.terminal: open a terminal";
        let (master, slave) = match open_pair(devpts) {
            Err(Errno::NODEV) => {
                bail!(InvalidArgument, "process.terminal: /dev/pts of the container is not a devpts file system")
            }
            pair => pair.or_kind(Kind::FailedPrecondition, what)?,
        };
        let held = slave.try_clone().or_kind(Kind::Unavailable, what)?;
        Ok((Self::from_pair(master, held), slave))
    }

    /// A terminal that is there already: its master, and its other end.
    pub(crate) fn from_pair(master: OwnedFd, slave: OwnedFd) -> Console {
        Console { master, slave: Mutex::new(Some(slave)) }
    }

    /// A terminal that is there already, by its master.
    pub(crate) fn from_master(master: OwnedFd) -> Result<Console> {
        let slave = peer(&master).or_kind(Kind::Internal, || "process.terminal: open its other end")?;
        Ok(Self::from_pair(master, slave))
    }

    /// A new terminal in the host's devpts: for a container that has none of its own.
    pub(crate) fn open_on_host() -> Result<(Console, OwnedFd)> {
        let devpts = rustix::fs::open("/dev/pts", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .or_kind(Kind::FailedPrecondition, || "process.terminal: open the host's /dev/pts")?;
        Self::open(devpts.as_fd())
    }

    /// Sets the window's size, in characters; the foreground process group gets SIGWINCH if that is a change.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).or_kind(Kind::Internal, || "resize the terminal")
    }

    /// Closes this shim's own descriptor of the process's end. From then on reading from the master fails with EIO where no
    /// process has the terminal open any more, after all that was written to it has been read.
    pub fn release_slave(&self) {
        *self.slave.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Sets the size that the spec wants (`process.consoleSize`).
    pub(crate) fn resize_to(&self, process: &Process) -> Result<()> {
        match size(process)? {
            Some(size) => tcsetwinsize(&self.master, size).or_kind(Kind::Internal, || "resize the terminal"),
            None => Ok(()),
        }
    }
}

/// The size that the spec wants (`process.consoleSize`); as with runc none where one side of it is 0.
pub(crate) fn size(process: &Process) -> Result<Option<Winsize>> {
    let Some(size) = process.console_size() else { return Ok(None) };
    let number = |field: &'static str, number: u64| {
        u16::try_from(number).or_kind(Kind::InvalidArgument, || format!("process.consoleSize.{field}: {number}"))
    };
    let (ws_row, ws_col) = (number("height", size.height())?, number("width", size.width())?);
    Ok((ws_row != 0 && ws_col != 0).then_some(Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 }))
}

/// Master and slave of a new terminal in a devpts; ENODEV for a folder of another file system. System calls only: a child
/// that has mounted its own devpts uses it too.
pub(crate) fn open_pair(devpts: BorrowedFd<'_>) -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    if rustix::fs::fstatfs(devpts)?.f_type as u64 != DEVPTS {
        return Err(Errno::NODEV);
    }
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let master = openat2(devpts, c"ptmx", flags, Mode::empty(), resolve)?;
    unlockpt(&master)?;
    let slave = peer(&master)?;
    Ok((master, slave))
}

/// The other end of a master.
fn peer(master: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    ioctl_tiocgptpeer(master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
}

impl AsFd for Console {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.master.as_fd()
    }
}
