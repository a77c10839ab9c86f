//! Standard streams: what containerd names in a request, opened and handed to the container as descriptors.
//!
//! ```text
//!            containerd                     shim                      container
//! stdin      writes the fifo                holds a write end         reads the fifo
//! stdout     reads the fifo                 holds a read end          writes the fifo
//! ```
//! The shim copies nothing. Its write end of stdin keeps the end of file away until CloseIO (or until the process
//! has ended); its read ends of stdout and stderr spare the container an EPIPE while containerd restarts. As they
//! only read, containerd sees the end of file when the container's last writer has gone.
//!
//! The container's descriptors are open file descriptions of their own and block; O_NONBLOCK belongs to the
//! description (fcntl(2)) and would show up in the container's program.

use anyhow::{Context, Result as AnyResult, anyhow};
use executors::{Error, Kind, Result, Stdio};
use nix::libc::{O_NOCTTY, O_NONBLOCK};
use percent_encoding::percent_decode_str;
use std::ffi::OsString;
use std::fs::{DirBuilder, File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

/// The three streams as the request names them: paths of fifos, `file://` URIs, or nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
}

/// The shim's own ends. Dropping them closes them.
#[derive(Debug, Default)]
pub struct Holders {
    /// The write end of stdin.
    stdin: Option<OwnedFd>,
    /// The read ends of stdout and stderr.
    _output: [Option<OwnedFd>; 2],
}

impl Holders {
    /// Lets the container read the end of file, as soon as containerd has closed its own end.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }
}

/// The user and group that shall own the streams, where the request says so (runc's options `io_uid`, `io_gid`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

/// Opens the streams. Nothing here waits for containerd: each fifo's other end is opened first.
///
/// # Errors
/// Unimplemented for loggers (`binary://`), else InvalidArgument; both name the stream.
pub fn open(names: &Names, owner: Option<Owner>) -> Result<(Stdio, Holders)> {
    let stdin = within("stdin", input(&names.stdin))?;
    let stdout = within("stdout", output(&names.stdout))?;
    let stderr = if names.stderr == names.stdout {
        within("stderr", stdout.share())?
    } else {
        within("stderr", output(&names.stderr))?
    };
    if let Some(Owner { uid, gid }) = owner {
        for (name, stream) in [("stdin", &stdin), ("stdout", &stdout), ("stderr", &stderr)] {
            if let Some(fd) = &stream.container {
                let change = fchown(fd, Some(uid), Some(gid));
                within(name, change.with_context(|| format!("change its owner to {uid}:{gid}")).map_err(invalid))?;
            }
        }
    }
    Ok((
        Stdio { stdin: stdin.container, stdout: stdout.container, stderr: stderr.container },
        Holders { stdin: stdin.shim, _output: [stdout.shim, stderr.shim] },
    ))
}

/// The two ends of one stream.
#[derive(Default)]
struct Stream {
    container: Option<OwnedFd>,
    shim: Option<OwnedFd>,
}

impl Stream {
    /// The same description again, for stderr on the same target as stdout: one file, one offset.
    fn share(&self) -> Result<Self> {
        let container = self.container.as_ref().map(OwnedFd::try_clone).transpose();
        Ok(Self { container: container.context("duplicate stdout").map_err(invalid)?, shim: None })
    }
}

enum Target {
    Null,
    Path(PathBuf),
    File(PathBuf),
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
        Target::File(_) => Err(invalid(anyhow!("{name}: stdin must be a fifo"))),
    }
}

fn output(name: &str) -> Result<Stream> {
    match target(name)? {
        Target::Null => Ok(Stream::default()),
        Target::Path(path) => open_output(&path).map_err(invalid),
        Target::File(path) => open_file(&path).map_err(invalid),
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
            // An authority, a query or a fragment is no part of the path.
            let start = rest.find('/').ok_or_else(|| invalid(anyhow!("{name}: the URI has no absolute path")))?;
            let path = rest[start..].split(['?', '#']).next().unwrap_or_default();
            let path: Vec<u8> = percent_decode_str(path).collect();
            Ok(Target::File(OsString::from_vec(path).into()))
        }
        Some((scheme @ ("binary" | "binary-v2"), _)) => {
            Err(Error::new(Kind::Unimplemented, anyhow!("{name}: loggers ({scheme}://) are not implemented")))
        }
        Some((scheme, _)) => Err(invalid(anyhow!("{name}: unknown scheme {scheme}"))),
    }
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

fn open_output(path: &Path) -> AnyResult<Stream> {
    let context = || format!("open {}", path.display());
    if !is_fifo(path)? {
        let file = OpenOptions::new().append(true).custom_flags(O_NOCTTY).open(path).with_context(context)?;
        return Ok(Stream { container: Some(file.into()), shim: None });
    }
    let reader = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path).with_context(context)?;
    let writer = OpenOptions::new().write(true).open(path).with_context(context)?;
    Ok(Stream { container: Some(writer.into()), shim: Some(reader.into()) })
}

fn open_file(path: &Path) -> AnyResult<Stream> {
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
    Ok(Stream { container: Some(file.into()), shim: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    use nix::sys::stat::Mode;
    use std::io::{Read, Write};

    fn fifo(dir: &Path, name: &str) -> PathBuf {
        let path = dir.join(name);
        nix::unistd::mkfifo(&path, Mode::S_IRWXU).unwrap();
        path
    }

    fn names(stdin: &str, stdout: &str, stderr: &str) -> Names {
        Names { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() }
    }

    fn error(names: &Names) -> Error {
        open(names, None).map(|_| ()).unwrap_err()
    }

    #[test]
    fn nothing_named_is_null() {
        let (stdio, _) = open(&Names::default(), None).unwrap();
        assert!(stdio.stdin.is_none() && stdio.stdout.is_none() && stdio.stderr.is_none());
    }

    #[test]
    fn fifos_open_without_a_partner_and_block() {
        let dir = tempfile::tempdir().unwrap();
        let [i, o, e] = ["i", "o", "e"].map(|name| fifo(dir.path(), name).to_str().unwrap().to_owned());
        let (stdio, _holders) = open(&names(&i, &o, &e), None).unwrap();
        for fd in [stdio.stdin.unwrap(), stdio.stdout.unwrap(), stdio.stderr.unwrap()] {
            let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL).unwrap());
            assert!(!flags.contains(OFlag::O_NONBLOCK));
        }
    }

    #[test]
    fn output_survives_a_reader_and_ends_with_its_writer() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path(), "o");
        let (stdio, holders) = open(&names("", path.to_str().unwrap(), ""), None).unwrap();
        let mut container = File::from(stdio.stdout.unwrap());
        // No reader yet, then one that goes away, then the next one: the container notices nothing.
        container.write_all(b"one ").unwrap();
        drop(File::open(&path).unwrap());
        container.write_all(b"two").unwrap();
        let mut reader = File::open(&path).unwrap();
        drop(container);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "one two");
        drop(holders);
    }

    #[test]
    fn stdin_ends_only_when_it_is_closed_by_both() {
        let dir = tempfile::tempdir().unwrap();
        let path = fifo(dir.path(), "i");
        let (stdio, mut holders) = open(&names(path.to_str().unwrap(), "", ""), None).unwrap();
        let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
        writer.write_all(b"text").unwrap();
        drop(writer);
        let mut container = File::from(stdio.stdin.unwrap());
        let mut buffer = [0; 8];
        assert_eq!(container.read(&mut buffer).unwrap(), 4);
        // Were the shim's end not there, this read would return the end of file now.
        let reader = std::thread::spawn(move || container.read(&mut buffer).unwrap());
        let mut writer = OpenOptions::new().write(true).open(&path).unwrap();
        writer.write_all(b"more").unwrap();
        assert_eq!(reader.join().unwrap(), 4);
        drop(writer);
        holders.close_stdin();
        let mut rest = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(&path).unwrap();
        assert_eq!(rest.read(&mut buffer).unwrap(), 0);
    }

    #[test]
    fn a_file_is_made_with_its_folder_shared_and_appended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b/log");
        let uri = format!("file://{}", path.to_str().unwrap().replace(' ', "%20"));
        for _ in 0..2 {
            let (stdio, _) = open(&names("", &uri, &uri), None).unwrap();
            File::from(stdio.stdout.unwrap()).write_all(b"out ").unwrap();
            File::from(stdio.stderr.unwrap()).write_all(b"err ").unwrap();
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "out err out err ");
    }

    #[test]
    fn a_path_that_is_no_fifo_is_an_existing_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plain");
        std::fs::write(&path, "old ").unwrap();
        let (stdio, _) = open(&names("", path.to_str().unwrap(), ""), None).unwrap();
        File::from(stdio.stdout.unwrap()).write_all(b"new").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "old new");
        let missing = error(&names("", "", "/nonexistent/fifo"));
        assert_eq!(missing.kind(), Kind::InvalidArgument);
        assert!(missing.to_string().starts_with("stderr: open /nonexistent/fifo"), "{missing}");
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let logger = error(&names("", "binary:///bin/logger?id=a", ""));
        assert_eq!(logger.kind(), Kind::Unimplemented);
        assert!(logger.to_string().contains("stdout: binary:///bin/logger"), "{logger}");
        for bad in ["npipe://x", "file://"] {
            assert_eq!(error(&names("", bad, "")).kind(), Kind::InvalidArgument, "{bad}");
        }
        assert_eq!(error(&names("file:///a", "", "")).kind(), Kind::InvalidArgument);
    }
}
