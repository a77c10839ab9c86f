//! Fifos for the standard streams of a process, as containerd's clients make them.
use super::stream::Stream;
use super::{Containerd, PATIENCE};
use anyhow::{Context, Result};
use containerd_shim_protos::api::CreateTaskRequest;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, mknodat};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

/// The three fifos. stdout and stderr are open from the start: a process may have come and gone before a thread runs.
pub struct Fifos {
    folder: PathBuf,
    stdin: Option<File>,
    pub stdout: Stream,
    pub stderr: Stream,
}

impl Fifos {
    pub fn new(containerd: &Containerd) -> Result<Fifos> {
        let folder = make(containerd)?;
        let stdout = Stream::read_from(Early::open(&folder.join("stdout"))?);
        let stderr = Stream::read_from(Early::open(&folder.join("stderr"))?);
        // Read and write, so that it opens before the shim comes (fifo(7)), and before the shim could miss its writer.
        let stdin = OpenOptions::new().read(true).write(true).open(folder.join("stdin")).context("opening stdin")?;
        Ok(Fifos { folder, stdin: Some(stdin), stdout, stderr })
    }

    /// The path of `stdin`, `stdout` or `stderr`, as requests name it.
    pub fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Has a request to create a task name them; a terminal has no stderr.
    pub fn name(&self, request: &mut CreateTaskRequest) {
        request.stdin = self.path("stdin");
        request.stdout = self.path("stdout");
        request.stderr = if request.terminal { String::new() } else { self.path("stderr") };
    }

    /// Writes to stdin, which stays open.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.stdin.as_mut().context("stdin was closed before")?.write_all(bytes).context("writing to stdin")
    }

    /// Writes all of `input` to stdin and closes it; returns when the shim or the process has taken all of it.
    pub fn feed(&mut self, input: Vec<u8>) -> Result<()> {
        let mut stdin = self.stdin.take().context("stdin was closed before")?;
        let (sender, written) = mpsc::channel();
        thread::spawn(move || {
            // The receiver is gone when patience has ended.
            let _ = sender.send(stdin.write_all(&input));
        });
        written.recv_timeout(PATIENCE).context("nobody reads all of stdin")?.context("writing to stdin")
    }

    /// Closes the client's end of stdin. The process sees the end of it when the shim has closed its own.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits for the end of stdout and stderr, and returns what they held.
    pub fn to_end(&self) -> Result<(String, String)> {
        self.stdout.to_end().context("stdout")?;
        self.stderr.to_end().context("stderr")?;
        Ok((self.stdout.text(), self.stderr.text()))
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        for name in ["stdout", "stderr"] {
            // Lets go a reader whose fifo the shim never opened; there is none (ENXIO) where it did.
            let _ = OpenOptions::new().write(true).custom_flags(NONBLOCK).open(self.folder.join(name));
        }
        // A folder below the containerd's own, which is gone after the run.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Makes the fifos `stdin`, `stdout` and `stderr` in a folder of their own, which is returned.
pub fn make(containerd: &Containerd) -> Result<PathBuf> {
    let folder = containerd.fresh_path("fifos");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    for name in ["stdin", "stdout", "stderr"] {
        mknodat(CWD, folder.join(name), FileType::Fifo, 0o600.into(), 0).with_context(|| format!("making {name}"))?;
    }
    Ok(folder)
}

/// O_NONBLOCK, as fcntl(2) of Linux has it on every architecture hybrid is built for.
pub const NONBLOCK: i32 = rustix::fs::OFlags::NONBLOCK.bits() as i32;

/// A fifo that is open before it has a writer. Its end is that of the last writer, not that there was none yet (poll(2)).
struct Early(File);

impl Early {
    fn open(path: &Path) -> Result<Early> {
        let file = OpenOptions::new().read(true).custom_flags(NONBLOCK).open(path);
        Ok(Early(file.with_context(|| format!("opening {}", path.display()))?))
    }
}

impl Read for Early {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            poll(&mut [PollFd::new(&self.0, PollFlags::IN)], None)?;
            match self.0.read(buffer) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }
}

/// A fifo that is opened with the first read: the open waits for a writer.
pub struct Late(PathBuf, Option<File>);

impl Late {
    pub fn open(path: impl AsRef<Path>) -> Late {
        Late(path.as_ref().to_owned(), None)
    }
}

impl Read for Late {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.1.is_none() {
            self.1 = Some(File::open(&self.0)?);
        }
        self.1.as_mut().map_or(Ok(0), |file| file.read(buffer))
    }
}
