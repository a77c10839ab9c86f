//! Standard streams: what containerd names in a request, opened and handed to the process as descriptors.
//!
//! ```text
//!             containerd          shim                        container
//! stdin       writes the fifo     holds a write end           reads the fifo
//! stdout      reads the fifo      holds a read end            writes the fifo
//! of an exec  reads the fifo      splices from pipe to fifo   writes the pipe
//! terminal    reads and writes    copies                      has a terminal
//! file://                         –                           writes the file
//! binary://   –                   holds a read end            writes a pipe that the logger reads
//! ```
//! Where it can the shim copies nothing. Its write end of stdin keeps the end of file away until CloseIO (or until the
//! process has ended); its read ends of stdout and stderr spare the process an EPIPE while containerd restarts. As they
//! only read, containerd sees the end of file when the last writer has gone. With init all writers go; what an exec'd
//! process leaves behind lives on, and would keep its client waiting: so between the two there is a pipe, whose contents
//! the kernel moves on without copying them, until the process was deleted.
//!
//! Clients open their ends in the background. A short process could write, end and be deleted before that: its output would
//! be gone, and a client that then opens a fifo without a writer would wait for ever. So both kinds of process wait for the
//! readers of their output, as with containerd's Go shim; but not for those of a client that has died. And the exit of a
//! process is told when they have read its output: see [`Output::taken`].
//!
//! The process's descriptors are open file descriptions of their own and block; O_NONBLOCK belongs to the description
//! (fcntl(2)) and would show up in the container's program.

mod copy;
mod logger;
mod outlet;
mod terminal;

use self::logger::Logger;
use self::outlet::Outlet;
use anyhow::{Context, Result as AnyResult, anyhow};
use executors::{Console, Error, Kind, Result, Stdio, Streams};
use nix::fcntl::OFlag;
use nix::libc::{ENXIO, O_NOCTTY, O_NONBLOCK};
use nix::unistd::pipe2;
use percent_encoding::percent_decode_str;
use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak, mpsc};
use std::thread;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// The streams as the request names them: paths of fifos, URIs (`file://`, `binary://`), or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
    /// Whether the process has a terminal: then stderr is not used.
    pub terminal: bool,
}

/// The user and group that shall own the streams, where the request says so (runc's options `io_uid`, `io_gid`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// Whose output a logger gets: the id of a container or an exec'd process, and containerd's namespace.
#[derive(Clone, Debug)]
pub struct Identity {
    pub id: String,
    pub namespace: String,
}

/// Which process the streams are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For {
    /// All that writes to its streams ends with it.
    Init,
    /// Its children may live on.
    Exec,
}

/// How long a process's client may take to open its end of a fifo. It has begun to before it asks for the process.
const CLIENT_LIMIT: Duration = Duration::from_secs(10);

/// Opened streams, before their process exists.
#[derive(Default)]
pub struct Prepared {
    stdin: Option<OwnedFd>,
    outlets: Vec<Outlet>,
    /// What is moved from a pipe to a fifo.
    moves: Vec<(OwnedFd, OwnedFd)>,
    /// Where a terminal's input comes from and its output goes to.
    terminal: Option<(Option<OwnedFd>, Option<OwnedFd>)>,
    logger: Option<Logger>,
}

impl Prepared {
    /// Begins to carry what there is to carry, for a process that was made with this console.
    ///
    /// # Errors
    /// Unavailable when the descriptors can't be watched.
    pub fn run(self, console: Option<Console>) -> Result<Carried> {
        let unavailable = |error: anyhow::Error| Error::new(Kind::Unavailable, error.context("carry the streams"));
        let mut output = Output { outlets: self.outlets, ..Output::default() };
        for (from, to) in self.moves {
            output.copiers.spawn(copy::splice_all(from, to).map_err(unavailable)?);
        }
        let mut weak = None;
        if let (Some((from, to)), Some(console)) = (self.terminal, console) {
            let console = Arc::new(console);
            weak = Some(Arc::downgrade(&console));
            let (sender, ended) = oneshot::channel();
            output.copiers.spawn(terminal::carry(console, from, to, ended).map_err(unavailable)?);
            output.terminal = Some(sender);
        }
        output.logger = self.logger.map(Logger::attend).transpose()?;
        Ok(Carried { stdin: self.stdin, output, console: weak })
    }
}

/// The shim's side of a process's streams.
pub struct Carried {
    /// The write end of stdin. When it is closed the process reads the end of file, as soon as containerd has closed its own.
    pub stdin: Option<OwnedFd>,
    pub output: Output,
    /// The terminal, until it is hung up.
    pub console: Option<Weak<Console>>,
}

/// The output on its way. Dropping it closes it.
#[derive(Default)]
pub struct Output {
    outlets: Vec<Outlet>,
    copiers: JoinSet<()>,
    /// Dropped when the process has ended: then the terminal's copier carries what is left, and ends.
    terminal: Option<oneshot::Sender<()>>,
    logger: Option<logger::Attended>,
}

impl Output {
    /// Waits until the client has read what the process has written, but no longer than `limit`, and not for a client that is
    /// not there. For a process that has ended.
    pub async fn taken(&mut self, limit: Duration) {
        let taken = async {
            let terminal = self.terminal.take().is_some();
            for outlet in &mut self.outlets {
                // What a terminal still holds comes to the fifo first.
                if terminal && outlet.has_client()? {
                    ended(&mut self.copiers).await;
                }
                outlet.taken().await?;
            }
            std::io::Result::Ok(())
        };
        match timeout(limit, taken).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => log::warn!("wait for a client to read its output: {error}"),
            Err(_) => log::debug!("a client has not read its output within {limit:?}"),
        }
    }

    /// Waits until all output was carried, but no longer than `limit`, then closes the streams and ends the logger.
    pub async fn finish(mut self, limit: Duration) {
        self.terminal = None;
        if timeout(limit, ended(&mut self.copiers)).await.is_err() {
            log::debug!("closed streams that a process still had open after {limit:?}");
        }
        // What is still being carried ends here.
        self.copiers.abort_all();
        self.outlets.clear();
        if let Some(logger) = self.logger.take() {
            logger.end().await;
        }
    }
}

/// Waits for the end of all copiers.
async fn ended(copiers: &mut JoinSet<()>) {
    // One that panicked has said so.
    while copiers.join_next().await.is_some() {}
}

/// Opens the streams. Waits for the client to have opened its ends of the output, within a limit, and for a logger to be
/// ready.
///
/// # Errors
/// InvalidArgument, naming the stream; FailedPrecondition for a logger that doesn't start.
pub fn open(names: &Names, owner: Option<Owner>, process: For, identity: &Identity) -> Result<(Stdio, Prepared)> {
    let mut prepared = Prepared::default();
    if names.terminal {
        prepared.terminal = Some(open_terminal(names, identity, &mut prepared)?);
        return Ok((Stdio::Terminal, prepared));
    }
    let stdin = within("stdin", input(&names.stdin))?;
    prepared.stdin = stdin.shim;
    let (stdout, stderr) = match within("stdout", target(&names.stdout))? {
        Target::Logger(uri) => {
            let (logger, stdout, stderr) = within("stdout", Logger::start(&uri, identity))?;
            prepared.logger = Some(logger);
            // As containerd's Go shim has it: the logger is both streams', unless stderr goes somewhere else.
            let stderr = match names.stderr.as_str() {
                name if name.is_empty() || name == names.stdout => Some(stderr),
                name => within("stderr", output(name, process, &mut prepared))?,
            };
            (Some(stdout), stderr)
        }
        _ => {
            let stdout = within("stdout", output(&names.stdout, process, &mut prepared))?;
            let stderr = if names.stderr == names.stdout {
                // The same description again: one file, one offset.
                let shared = stdout.as_ref().map(OwnedFd::try_clone).transpose();
                within("stderr", shared.context("duplicate stdout").map_err(invalid))?
            } else {
                within("stderr", output(&names.stderr, process, &mut prepared))?
            };
            (stdout, stderr)
        }
    };
    let streams = Streams { stdin: stdin.container, stdout, stderr };
    if let Some(Owner { uid, gid }) = owner {
        for (name, fd) in [("stdin", &streams.stdin), ("stdout", &streams.stdout), ("stderr", &streams.stderr)] {
            if let Some(fd) = fd {
                let change = fchown(fd, Some(uid), Some(gid));
                within(name, change.with_context(|| format!("change its owner to {uid}:{gid}")).map_err(invalid))?;
            }
        }
    }
    Ok((Stdio::Streams(streams), prepared))
}

/// Where a terminal's input comes from, and its output goes to.
fn open_terminal(
    names: &Names,
    identity: &Identity,
    prepared: &mut Prepared,
) -> Result<(Option<OwnedFd>, Option<OwnedFd>)> {
    let stdin = within("stdin", input(&names.stdin))?;
    prepared.stdin = stdin.shim;
    let output = match within("stdout", target(&names.stdout))? {
        Target::Logger(uri) => {
            let (logger, stdout, _) = within("stdout", Logger::start(&uri, identity))?;
            prepared.logger = Some(logger);
            Some(stdout)
        }
        // All its writers are the shim's own: no pipe is needed.
        _ => within("stdout", output(&names.stdout, For::Init, prepared))?,
    };
    Ok((stdin.container, output))
}

/// The two ends of stdin.
#[derive(Default)]
struct Stream {
    container: Option<OwnedFd>,
    shim: Option<OwnedFd>,
}

enum Target {
    Null,
    Path(PathBuf),
    File(PathBuf),
    Logger(String),
}

fn within<T>(stream: &'static str, result: Result<T>) -> Result<T> {
    result.map_err(|error| error.context(stream))
}

fn invalid(error: anyhow::Error) -> Error {
    Error::new(Kind::InvalidArgument, error)
}

fn input(name: &str) -> Result<Stream> {
    match target(name)? {
        Target::Null => Ok(Stream::default()),
        Target::Path(path) => open_input(&path).map_err(invalid),
        Target::File(_) | Target::Logger(_) => Err(invalid(anyhow!("{name}: stdin must be a fifo"))),
    }
}

/// Opens a stream for output; the shim's ends go to `prepared`.
fn output(name: &str, process: For, prepared: &mut Prepared) -> Result<Option<OwnedFd>> {
    match target(name)? {
        Target::Null => Ok(None),
        Target::Path(path) => open_output(&path, process, prepared).map(Some).map_err(invalid),
        Target::File(path) => open_file(&path).map(Some).map_err(invalid),
        Target::Logger(_) => Err(invalid(anyhow!("{name}: a logger has to be that of stdout, too"))),
    }
}

/// containerd reads the name as a URI whose scheme is `fifo` when there is none.
fn target(name: &str) -> Result<Target> {
    if name.is_empty() {
        return Ok(Target::Null);
    }
    match name.split_once("://") {
        None => Ok(Target::Path(name.into())),
        Some(("file", rest)) => {
            let path = path_of_uri(rest).ok_or_else(|| invalid(anyhow!("{name}: the URI has no absolute path")))?;
            Ok(Target::File(path))
        }
        Some(("binary" | "binary-v2", _)) => Ok(Target::Logger(name.to_owned())),
        Some((scheme, _)) => Err(invalid(anyhow!("{name}: unknown scheme {scheme}"))),
    }
}

/// The path in what follows `scheme://`: without authority, query and fragment.
fn path_of_uri(rest: &str) -> Option<PathBuf> {
    let path = rest[rest.find('/')?..].split(['?', '#']).next().unwrap_or_default();
    Some(OsString::from_vec(percent_decode_str(path).collect()).into())
}

fn is_fifo(path: &Path) -> AnyResult<bool> {
    let metadata = std::fs::metadata(path).with_context(|| format!("open {}", path.display()))?;
    Ok(metadata.file_type().is_fifo())
}

fn open_input(path: &Path) -> AnyResult<Stream> {
    let context = || format!("open {}", path.display());
    let read = |flags| OpenOptions::new().read(true).custom_flags(flags | O_NOCTTY).open(path).with_context(context);
    if !is_fifo(path)? {
        return Ok(Stream { container: Some(read(0)?.into()), shim: None });
    }
    // A reader that doesn't wait lets the writer in, and the writer lets the container's reader in.
    let _first = read(O_NONBLOCK)?;
    let writer = OpenOptions::new().write(true).open(path).with_context(context)?;
    Ok(Stream { container: Some(read(0)?.into()), shim: Some(writer.into()) })
}

fn open_output(path: &Path, process: For, prepared: &mut Prepared) -> AnyResult<OwnedFd> {
    let context = || format!("open {}", path.display());
    if !is_fifo(path)? {
        let file = OpenOptions::new().append(true).custom_flags(O_NOCTTY).open(path).with_context(context)?;
        return Ok(file.into());
    }
    let opened = open_when_read(path, CLIENT_LIMIT).with_context(context)?;
    let reader = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path).with_context(context)?;
    let writer = match opened {
        Some(writer) => writer,
        None => OpenOptions::new().write(true).open(path).with_context(context)?,
    };
    if process == For::Init {
        prepared.outlets.push(Outlet::new(reader.into(), None));
        return Ok(writer.into());
    }
    let (read, write) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
    let pipe = read.try_clone().context("duplicate a pipe")?;
    prepared.outlets.push(Outlet::new(reader.into(), Some(pipe)));
    prepared.moves.push((read, writer.into()));
    Ok(write)
}

/// Opens a fifo for writing as soon as somebody reads it; nothing when nobody has come within the limit.
fn open_when_read(path: &Path, limit: Duration) -> AnyResult<Option<File>> {
    // fifo(7): this blocks until there is a reader, so it takes a thread to give up.
    let open = |path: &Path| OpenOptions::new().write(true).open(path);
    match OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(path) {
        Ok(_probe) => return Ok(Some(open(path)?)),
        Err(error) if error.raw_os_error() == Some(ENXIO) => {}
        Err(error) => return Err(error.into()),
    }
    let (send, opened) = mpsc::channel();
    let own = path.to_owned();
    let waiting = thread::Builder::new().spawn(move || send.send(open(&own))).context("start a thread")?;
    if let Ok(opened) = opened.recv_timeout(limit) {
        return Ok(Some(opened?));
    }
    log::warn!("nobody has opened {} for reading within {limit:?}", path.display());
    // This one lets the thread go.
    let _reader = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path)?;
    let _ = waiting.join();
    Ok(None)
}

fn open_file(path: &Path) -> AnyResult<OwnedFd> {
    if let Some(dir) = path.parent() {
        DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)
            .with_context(|| format!("create the folder {}", dir.display()))?;
    }
    let file: File = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .open(path)
        .with_context(|| format!("open {}", path.display()))?;
    Ok(file.into())
}

#[cfg(test)]
mod tests;
