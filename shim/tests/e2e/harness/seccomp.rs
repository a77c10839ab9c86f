//! A seccomp agent: gets the listeners of containers' filters and answers their notifications.
use super::{PATIENCE, Test};
use anyhow::{Context, Result, ensure};
use libseccomp::{ScmpNotifReq, ScmpNotifResp, ScmpNotifRespFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::Value;
use std::fs;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// The socket that a profile names.
pub struct Agent {
    socket: UnixListener,
    path: PathBuf,
}

/// What comes on one connection.
pub struct Handed {
    /// The container process state (OCI runtime spec, config-linux.md).
    pub state: Value,
    listener: OwnedFd,
}

impl Agent {
    pub fn listen(test: &Test) -> Result<Agent> {
        let path = test.containerd.fresh_path("agent");
        let socket = UnixListener::bind(&path).with_context(|| format!("listening on {}", path.display()))?;
        Ok(Agent { socket, path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits for the next connection and reads all of it.
    pub fn accept(&self) -> Result<Handed> {
        wait_for(&self.socket, "a connection to the agent")?;
        let (mut stream, _) = self.socket.accept().context("accepting")?;
        let mut bytes = vec![0; 1 << 16];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received =
            recvmsg(&stream, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC)?.bytes;
        bytes.truncate(received);
        // Up to the end: the connection must be closed after it.
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_to_end(&mut bytes).context("reading the state")?;
        let mut descriptors = control.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect::<Vec<_>>(),
            _ => Vec::new(),
        });
        let listener = descriptors.next().context("a descriptor comes with the state")?;
        ensure!(descriptors.next().is_none(), "more than one descriptor");
        Ok(Handed { state: serde_json::from_slice(&bytes).context("parsing the state")?, listener })
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Handed {
    /// Waits for the next notification, which comes from the process `pid`.
    pub fn receive(&self, pid: u32) -> Result<ScmpNotifReq> {
        wait_for(&self.listener, "a notification")?;
        let request = ScmpNotifReq::receive(self.listener.as_raw_fd()).context("receiving a notification")?;
        ensure!(request.pid == pid, "{request:?} is not of {pid}");
        Ok(request)
    }

    /// Lets the next call of the process fail with an error.
    pub fn answer(&self, pid: u32, errno: i32) -> Result<()> {
        let request = self.receive(pid)?;
        let response = ScmpNotifResp::new_error(request.id, -errno, ScmpNotifRespFlags::empty());
        response.respond(self.listener.as_raw_fd()).context("answering")
    }
}

fn wait_for(fd: impl AsFd, what: &str) -> Result<()> {
    let limit = Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&limit)).context("poll")?;
    ensure!(ready > 0, "{what} did not come");
    Ok(())
}
