//! Checkpoint and restore of native containers, by criu: a program of the host that writes a tree of processes to files and
//! makes it again from them.
//!
//! ```text
//! checkpoint   criu is told what is not the container's own (binds, masks, cgroups, streams, its network)  ─> dump
//! restorable   spec → cgroup, rootfs mounted at bundle/rootfs (clients may change it until the start)
//! restore      criu, in the container's cgroup and told where on this host those things are               ─> init
//! ```
//! criu runs as a child of this process, for the time of the call. The restored init is a child of this process, too
//! (`rst_sibling`). Cgroups are made by the spec, as for any other container, and not dumped: criu itself enters the new
//! container's, and what it makes is born there.
//!
//! A network namespace is never dumped. It is what CNI or a client has made of it; one of the container's own has its
//! loopback device only, and is made anew.
//!
//! Source: criu(8); criu's rpc.proto; runc(8), `checkpoint` and `restore`.

mod criu;
mod dump;
mod external;
mod message;
mod restore;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

pub use self::restore::Restorable;
use crate::Kind;
use crate::error::{OrKind, Result};

/// The annotation with the path of a file of settings for criu, or nothing for none: runc's, as podman and the CRI's users
/// know it. As these settings can have programs executed it is named in the features document.
pub(crate) const SETTINGS: &str = "org.criu.config";

/// How criu is used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Criu {
    /// Its program; `criu` of PATH when not set.
    pub path: Option<PathBuf>,
    /// The folder for its log; one in the bundle when not set, of which the log is kept when criu fails.
    pub work_path: Option<PathBuf>,
}

/// What a checkpoint is to be: `containerd.runc.v1.CheckpointOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// The folder that the checkpoint is written to, made if missing.
    pub images: PathBuf,
    /// End the container once it is dumped.
    pub exit: bool,
    /// Dump established TCP connections.
    pub open_tcp: bool,
    /// Dump unix sockets that are connected to something outside.
    pub external_unix_sockets: bool,
    /// Dump a session whose leader, or whose terminal, is outside.
    pub terminal: bool,
    /// Dump file locks.
    pub file_locks: bool,
}

/// The file in a checkpoint with the three standard streams of init.
const STREAMS: &str = "streams.json";

/// A standard stream of init's that is not the container's own; `None` for one that is.
type Streams = [Option<Stream>; 3];

#[derive(Debug, Serialize, Deserialize)]
struct Stream {
    /// What criu knows it by.
    name: String,
    /// Whether it was none: /dev/null, whose place no fifo can take, as it has a position in criu's eyes.
    null: bool,
}

/// criu's names for namespaces that are not dumped, which runc gives them, too.
const NETWORK: &str = "extRootNetNS";
const PIDS: &str = "extRootPidNS";

fn open_folder(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .or_kind(Kind::InvalidArgument, || format!("open the folder {}", path.display()))
}
