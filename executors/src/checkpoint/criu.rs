//! One run of criu: a request, its notifications and its answer.
//!
//! ```text
//! shim                              criu swrk 3
//!   ----- DUMP or RESTORE ------->
//!   <---- NOTIFY (name, pid) -----    at each of its stages; a terminal's master may come with it
//!   ----- NOTIFY, success ------->
//!   <---- DUMP or RESTORE --------    its answer; it ends
//! ```

use std::fs;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType, recvmsg,
    send, socketpair,
};

use super::message::{Message, Response};
use super::{Criu, SETTINGS, open_folder};
use crate::bundle::Bundle;
use crate::error::{Error, OrKind, Result, bail};
use crate::process::{self, Unfinished};
use crate::{Kind, sys};

/// `criu_req_type`.
pub(super) const DUMP: u64 = 1;
pub(super) const RESTORE: u64 = 2;
const NOTIFY: u64 = 6;

/// The descriptor that criu finds the socket at; those to be inherited follow.
const SOCKET: RawFd = 3;

/// The log's length that is quoted of at most, in bytes.
const QUOTED: usize = 600;

/// A request, while it is put together.
pub(super) struct Request {
    kind: u64,
    pub options: Message,
    /// What criu gets beside its socket, from [`SOCKET`] + 1 on.
    inherited: Vec<OwnedFd>,
    images: OwnedFd,
    work: Work,
}

/// The fields of `criu_opts`.
pub(super) mod field {
    pub const PID: u64 = 2;
    pub const LEAVE_RUNNING: u64 = 3;
    pub const EXT_UNIX_SK: u64 = 4;
    pub const TCP_ESTABLISHED: u64 = 5;
    pub const EVASIVE_DEVICES: u64 = 6;
    pub const SHELL_JOB: u64 = 7;
    pub const FILE_LOCKS: u64 = 8;
    pub const ROOT: u64 = 13;
    pub const RST_SIBLING: u64 = 26;
    pub const EXTERNAL: u64 = 37;
    pub const JOIN_NS: u64 = 39;
    pub const FREEZE_CGROUP: u64 = 44;
    pub const ORPHAN_PTS_MASTER: u64 = 50;
    pub(super) const CONFIG_FILE: u64 = 51;
    pub const NETWORK_LOCK: u64 = 64;
    pub(super) const IMAGES_DIR_FD: u64 = 1;
    pub(super) const LOG_LEVEL: u64 = 9;
    pub(super) const LOG_FILE: u64 = 10;
    pub(super) const NOTIFY_SCRIPTS: u64 = 12;
    pub(super) const WORK_DIR_FD: u64 = 17;
    pub(super) const EXT_MNT: u64 = 23;
    pub(super) const INHERIT_FD: u64 = 27;
    pub(super) const EXT_SHARING: u64 = 29;
    pub(super) const EXT_MASTERS: u64 = 30;
    pub(super) const MANAGE_CGROUPS_MODE: u64 = 34;
}

impl Request {
    pub fn new(kind: u64, images: &Path, criu: &Criu, bundle: &Bundle) -> Result<Request> {
        /// Errors, warnings and what it is at.
        const LEVEL: u64 = 4;
        const IGNORE: u64 = 0;
        let images = open_folder(images)?;
        let log = if kind == DUMP { "dump.log" } else { "restore.log" };
        let work = Work::new(criu.work_path.as_deref(), bundle.path(), log)?;
        let mut options = Message::default();
        // criu opens both by the descriptors of its client.
        options
            .number(field::IMAGES_DIR_FD, images.as_raw_fd() as u64)
            .number(field::WORK_DIR_FD, work.folder.as_raw_fd() as u64)
            .number(field::LOG_LEVEL, LEVEL)
            .bytes(field::LOG_FILE, work.log)
            .flag(field::NOTIFY_SCRIPTS, true)
            .number(field::MANAGE_CGROUPS_MODE, IGNORE)
            // Binds are slaves of the host's mounts, or their peers.
            .flag(field::EXT_SHARING, true)
            .flag(field::EXT_MASTERS, true)
            .flag(field::ORPHAN_PTS_MASTER, true);
        if let Some(file) = settings(bundle) {
            options.bytes(field::CONFIG_FILE, file);
        }
        Ok(Request { kind, options, inherited: Vec::new(), images, work })
    }

    /// A mount that is not the container's own: for a dump where it is and what to call it, for a restore what it was called
    /// and where on the host it is.
    pub fn external_mount(&mut self, key: &str, value: &str) {
        let mut pair = Message::default();
        pair.bytes(1, key).bytes(2, value);
        self.options.message(field::EXT_MNT, &pair);
    }

    /// What takes the place of a file or namespace of that name.
    pub fn inherit(&mut self, name: &str, fd: OwnedFd) {
        self.inherited.push(fd);
        let mut pair = Message::default();
        pair.bytes(1, name).number(2, SOCKET as u64 + self.inherited.len() as u64);
        self.options.message(field::INHERIT_FD, &pair);
    }

    /// Runs criu; `prepare` may change how it is started.
    ///
    /// # Errors
    /// What it says.
    pub fn run(self, program: &Path, prepare: impl FnOnce(&mut Command)) -> Result<Answer> {
        let Request { kind, options, inherited, images, mut work } = self;
        let what = || format!("run {}", program.display());
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .or_kind(Kind::Unavailable, what)?;
        let mut command = Command::new(program);
        command.arg("swrk").arg(SOCKET.to_string());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        prepare(&mut command);
        sys::pass_descriptors(&mut command, [theirs].into_iter().chain(inherited).zip(SOCKET..).collect());
        let child = Unfinished::from(process::spawn_command(&mut command).or_kind(Kind::FailedPrecondition, what)?);
        // It holds the other end of the socket, and the streams.
        drop(command);
        let mut request = Message::default();
        request.number(1, kind).message(2, &options);
        let answer = converse(&ours, kind, &request);
        drop((ours, images));
        match answer {
            Ok(answer) => {
                child.wait()?;
                Ok(answer)
            }
            Err((init, error)) => {
                // It undoes what it has begun, now that nobody talks to it any more.
                child.wait()?;
                drop(init);
                let (log, errors) = work.keep();
                let error = match errors.as_str() {
                    "" => error,
                    errors => Error::new(error.kind(), anyhow::anyhow!("{errors}")),
                };
                Err(error.context(format!("criu failed (its log is {})", log.display())))
            }
        }
    }
}

/// The file of settings that come before ours, if it is there (criu(8), configuration files): the container's own or, without
/// the annotation, that of the host, by the name that runc has for it.
pub(super) fn settings(bundle: &Bundle) -> Option<&str> {
    let file = bundle.annotation(SETTINGS).unwrap_or("/etc/criu/runc.conf");
    Path::new(file).is_file().then_some(file)
}

/// Whether settings allow established TCP connections, from which packets are to be kept while they are dumped.
pub(super) fn allow_connections(file: &str) -> bool {
    let is_it = |line: &str| line.split_whitespace().next() == Some("tcp-established");
    fs::read_to_string(file).is_ok_and(|text| text.lines().any(is_it))
}

/// What came of a run.
#[derive(Default)]
pub(super) struct Answer {
    /// A restored container's first process.
    pub init: Option<Unfinished>,
    /// The master of its terminal.
    pub terminal: Option<OwnedFd>,
}

fn converse(socket: &OwnedFd, kind: u64, request: &Message) -> Result<Answer, (Option<Unfinished>, Error)> {
    let mut answer = Answer::default();
    let mut step = || -> Result<()> {
        let what = || "talk to criu";
        send(socket, request.as_bytes(), SendFlags::NOSIGNAL).or_kind(Kind::Internal, what)?;
        loop {
            let (response, descriptor) = receive(socket)?;
            if !response.success {
                bail!(Internal, "{}", if response.error.is_empty() { "it says no more" } else { &response.error });
            }
            if response.kind == kind {
                return Ok(());
            }
            if response.kind != NOTIFY {
                bail!(Internal, "it answered with a message of type {}", response.kind);
            }
            match response.notification.as_str() {
                "orphan-pts-master" => answer.terminal = descriptor,
                // It goes on once it is answered, so the pid is that of a process that is there.
                "post-restore" => answer.init = Some(process::adopt(response.pid).or_kind(Kind::Internal, what)?),
                _ => {}
            }
            let mut go_on = Message::default();
            go_on.number(1, NOTIFY).flag(3, true);
            send(socket, go_on.as_bytes(), SendFlags::NOSIGNAL).or_kind(Kind::Internal, what)?;
        }
    };
    match step() {
        Ok(()) => Ok(answer),
        Err(error) => Err((answer.init, error)),
    }
}

/// The next message, and the descriptor that came with it.
fn receive(socket: &OwnedFd) -> Result<(Response, Option<OwnedFd>)> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let length = loop {
        match recvmsg(socket, &mut [IoSliceMut::new(&mut bytes)], &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(Errno::INTR) => {}
            Err(Errno::CONNRESET) => break 0,
            received => break received.or_kind(Kind::Internal, || "hear from criu")?.bytes,
        }
    };
    if length == 0 {
        bail!(Internal, "it ended before it was done");
    }
    let descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptor = descriptors.flatten().next();
    match bytes.get(..length).and_then(Response::parse) {
        Some(response) => Ok((response, descriptor)),
        None => bail!(Internal, "it said what is no message"),
    }
}

impl Criu {
    /// Its program.
    ///
    /// # Errors
    /// Unimplemented when this host has none.
    pub(super) fn find(&self) -> Result<PathBuf> {
        let name = self.path.as_deref().unwrap_or(Path::new("criu"));
        let is_there = |path: &PathBuf| path.is_file();
        let found = if name.components().count() > 1 {
            Some(name.to_owned()).filter(is_there)
        } else {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).map(|folder| folder.join(name)).find(is_there)
        };
        match found {
            Some(path) => Ok(path),
            None => bail!(Unimplemented, "checkpoints take criu, which this host does not have: {}", name.display()),
        }
    }
}

/// The folder that criu works in.
struct Work {
    folder: OwnedFd,
    path: PathBuf,
    log: &'static str,
    /// Where the log goes if criu fails, when the folder is not to stay.
    rescue: Option<PathBuf>,
}

impl Work {
    fn new(given: Option<&Path>, bundle: &Path, log: &'static str) -> Result<Work> {
        let path = given.map_or_else(|| bundle.join("criu-work"), Path::to_owned);
        make_folder(&path)?;
        let rescue = given.is_none().then(|| bundle.join(format!("criu-{log}")));
        Ok(Work { folder: open_folder(&path)?, path, log, rescue })
    }

    /// Saves the log: where it is, and what it says of errors.
    fn keep(&mut self) -> (PathBuf, String) {
        let mut path = self.path.join(self.log);
        if let Some(rescue) = &self.rescue
            && fs::rename(&path, rescue).is_ok()
        {
            path = rescue.clone();
        }
        let text = fs::read(&path).unwrap_or_default();
        let quoted = errors(&String::from_utf8_lossy(&text));
        (path, quoted)
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        if self.rescue.is_some()
            && let Err(e) = fs::remove_dir_all(&self.path)
        {
            log::warn!("remove {}: {e}", self.path.display());
        }
    }
}

/// Makes a folder for root alone, unless it is there.
pub(super) fn make_folder(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .or_kind(Kind::InvalidArgument, || format!("make the folder {}", path.display()))
}

/// The lines of a log that say what went wrong, in one; the first ones, which the others follow from.
fn errors(log: &str) -> String {
    let mut quoted = String::new();
    for line in log.lines().filter(|line| line.contains("Error (")) {
        // "(00.012345) 123: Error (criu/files.c:1234): words"
        let words = line.split_once("): ").map_or(line, |(_, words)| words);
        let words = words.split_once("): ").map_or(words, |(_, words)| words).trim();
        if quoted.len() + words.len() > QUOTED {
            break;
        }
        quoted.push_str(if quoted.is_empty() { "" } else { "; " });
        quoted.push_str(words);
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_quoted_for_its_errors() {
        let log = "(00.01) Dumping\n(00.02) Error (criu/files.c:12): Can't lookup mount\n\
                   (00.03)     45: Error (criu/cr-dump.c:9): Dump files (pid: 45) failed\n(00.04) Warn  (x): y\n";
        assert_eq!(errors(log), "Can't lookup mount; Dump files (pid: 45) failed");
        assert_eq!(errors(""), "");
    }
}
