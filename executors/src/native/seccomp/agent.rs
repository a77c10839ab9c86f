//! The seccomp agent: the program that answers the notifications of a container's filter, outside of the container.
//!
//! ```text
//! child                              parent                                    agent
//!   seccomp(2) → listener
//!   ── (LISTENER, its number) ─────>   pidfd_getfd(2): a copy of it
//!   <── GO ─────────────────────────   connect, sendmsg: state and descriptor ──>
//! ```
//! The child only writes and reads: those calls a filter must let through anyway.
//!
//! Source: OCI runtime spec 1.3, config-linux.md "Seccomp" (listenerPath) and "The Container Process State".

use std::collections::HashMap;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use oci_spec::runtime::{ContainerProcessState, ContainerState, LinuxSeccomp, SECCOMP_FD_NAME, State};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, sendmsg, socket_with,
};

use crate::Kind;
use crate::bundle::Bundle;
use crate::error::{OrKind, Result, bail};
use crate::features::OCI_VERSIONS;

/// How long an agent may take to listen and to read.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the agent listens, and what it is told of the container.
pub(crate) struct Agent {
    socket: PathBuf,
    metadata: Option<String>,
    id: String,
    bundle: PathBuf,
    annotations: HashMap<String, String>,
    /// The pid of the container's first process, which is the first to load the filter.
    init: OnceLock<u32>,
}

impl Agent {
    pub fn new(profile: &LinuxSeccomp, bundle: &Bundle) -> Result<Agent> {
        let Some(socket) = profile.listener_path().as_deref().filter(|path| !path.as_os_str().is_empty()) else {
            bail!(InvalidArgument, "linux.seccomp.listenerPath: missing, and SCMP_ACT_NOTIFY needs it");
        };
        Ok(Agent {
            socket: bundle.path().join(socket),
            metadata: profile.listener_metadata().clone(),
            id: bundle.id().to_owned(),
            bundle: bundle.path().to_owned(),
            annotations: bundle.spec().annotations().clone().unwrap_or_default(),
            init: OnceLock::new(),
        })
    }

    /// Sends the listener of the filter that the process `pid` has loaded, on a connection of its own.
    pub fn send(&self, listener: BorrowedFd<'_>, pid: u32) -> Result<()> {
        let what = || format!("linux.seccomp.listenerPath: send the listener to {}", self.socket.display());
        let state = serde_json::to_vec(&self.state(pid)).or_kind(Kind::Internal, what)?;
        let address = SocketAddrUnix::new(&self.socket).or_kind(Kind::InvalidArgument, what)?;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .or_kind(Kind::Unavailable, what)?;
        set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE)).or_kind(Kind::Internal, what)?;
        connect(&socket, &address).or_kind(Kind::FailedPrecondition, what)?;
        let descriptors = [listener.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        control.push(SendAncillaryMessage::ScmRights(&descriptors));
        let mut rest = &state[..];
        while !rest.is_empty() {
            let sent = sendmsg(&socket, &[IoSlice::new(rest)], &mut control, SendFlags::NOSIGNAL)
                .or_kind(Kind::FailedPrecondition, what)?;
            // Only with the first part.
            control.clear();
            rest = rest.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    fn state(&self, pid: u32) -> ContainerProcessState {
        let init = *self.init.get_or_init(|| pid);
        let [_, version] = OCI_VERSIONS;
        let mut container = State::default();
        container
            .set_version(version.to_owned())
            .set_id(self.id.clone())
            .set_status(if init == pid { ContainerState::Creating } else { ContainerState::Running })
            .set_pid(Some(init as i32))
            .set_bundle(self.bundle.clone())
            .set_annotations((!self.annotations.is_empty()).then(|| self.annotations.clone()));
        let mut state = ContainerProcessState::default();
        state
            .set_version(version.to_owned())
            .set_fds(vec![SECCOMP_FD_NAME.to_owned()])
            .set_pid(pid as i32)
            .set_metadata(self.metadata.clone())
            .set_state(container);
        state
    }
}
