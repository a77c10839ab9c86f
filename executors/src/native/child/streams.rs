//! The three standard descriptors.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{FileType, OFlags, Uid};
use rustix::io::{Errno, Result};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::termios::{Winsize, tcsetwinsize};

use super::{Context, Report, TERMINAL};
use crate::console;
use crate::native::resolve;
use crate::sys;

impl Context<'_> {
    pub(super) fn open_terminal(&mut self, size: Option<Winsize>) -> Result<()> {
        let devpts = resolve::open(self.rootfs()?, c"/dev/pts", OFlags::DIRECTORY)?;
        let (master, slave) = console::open_pair(sys::leak(devpts))?;
        let (master, slave) = (sys::leak(master), sys::leak(slave));
        if let Some(size) = size {
            tcsetwinsize(master, size)?;
        }
        let ends = [master, slave];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&ends));
        let report = Report { step: TERMINAL, errno: 0 }.to_bytes();
        rustix::net::sendmsg(self.parent, &[IoSlice::new(&report)], &mut control, SendFlags::NOSIGNAL)?;
        self.terminal = Some(slave);
        self.mount_console(slave)
    }
}

pub(super) fn stdio(fds: &[OwnedFd; 3], uid: u32) -> Result<()> {
    for (number, fd) in fds.iter().enumerate() {
        let stat = rustix::fs::fstat(fd)?;
        let file_type = FileType::from_raw_mode(stat.st_mode);
        // Fifos and sockets are this container's own; files and devices belong to others.
        if stat.st_uid != uid && matches!(file_type, FileType::Fifo | FileType::Socket) {
            match rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None) {
                Err(Errno::INVAL | Errno::PERM | Errno::ROFS) | Ok(()) => {}
                Err(errno) => return Err(errno),
            }
        }
        sys::dup2(fd.as_fd(), number as RawFd)?;
    }
    Ok(())
}

/// Makes the terminal this session's controlling one, its three standard descriptors, and the user's.
pub(super) fn terminal(slave: BorrowedFd<'_>, uid: u32) -> Result<()> {
    rustix::process::ioctl_tiocsctty(slave)?;
    // In a user namespace the parent has seen to it where this process may not.
    if rustix::fs::fstat(slave)?.st_uid != uid {
        rustix::fs::fchown(slave, Some(Uid::from_raw(uid)), None)?;
    }
    (0..3).try_for_each(|number| sys::dup2(slave, number))
}
