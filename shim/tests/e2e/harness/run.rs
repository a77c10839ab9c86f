//! `ctr run`, put together step by step.
use super::command::{Output, Running};
use super::pty::OnTerminal;
use super::{Containerd, Kind, Runtime};
use anyhow::Result;
use std::process::Command;

/// A container about to be run in the foreground with `ctr run --rm`, unless told otherwise.
pub struct Run<'a> {
    containerd: &'a Containerd,
    flags: Vec<String>,
    /// Nothing when the spec comes from a file.
    image: Option<String>,
    id: String,
    runtime: Runtime,
    arguments: Vec<String>,
    stdin: Option<Vec<u8>>,
    detached: bool,
}

impl<'a> Run<'a> {
    pub fn image(containerd: &'a Containerd, image: &str, id: &str) -> Run<'a> {
        Run::new(containerd, Some(image.to_owned()), id)
    }

    /// A container of this kind's image, with the probe and its arguments as the command: `ctr` takes what it is given
    /// for the whole of it, entrypoint included.
    pub fn probe(containerd: &'a Containerd, kind: Kind, id: &str, arguments: &[&str]) -> Run<'a> {
        Run::image(containerd, &kind.image(), id).arguments(&[&[kind.program()], arguments].concat())
    }

    /// A container from a file with its spec.
    pub fn config(containerd: &'a Containerd, config: &str, id: &str) -> Run<'a> {
        Run::new(containerd, None, id).flags(&["--config", config])
    }

    fn new(containerd: &'a Containerd, image: Option<String>, id: &str) -> Run<'a> {
        let (flags, arguments) = (Vec::new(), Vec::new());
        Run {
            containerd,
            flags,
            image,
            id: id.to_owned(),
            runtime: containerd.runtime,
            arguments,
            stdin: None,
            detached: false,
        }
    }

    pub fn flags(mut self, flags: &[&str]) -> Run<'a> {
        self.flags.extend(flags.iter().map(|flag| (*flag).to_owned()));
        self
    }

    pub fn arguments(mut self, arguments: &[&str]) -> Run<'a> {
        self.arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        self
    }

    /// Another runtime than the one under test: the benches compare two.
    #[allow(dead_code, reason = "the tests have one runtime")]
    pub fn runtime(mut self, runtime: Runtime) -> Run<'a> {
        self.runtime = runtime;
        self
    }

    /// Another id than the test's own.
    pub fn id(mut self, id: &str) -> Run<'a> {
        self.id = id.to_owned();
        self
    }

    /// What the container reads on stdin, to the end. Sent after the start: a `ctr` that meets the end of its own stdin
    /// before never closes that of the container.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Run<'a> {
        self.stdin = Some(bytes.into());
        self
    }

    /// Runs it to its end.
    pub fn output(self) -> Result<Output> {
        let mut running = Running::spawn(&mut self.command())?;
        if let Some(input) = self.stdin {
            if let Err(error) = self.containerd.events.wait_for(&self.id, "/tasks/start") {
                return Err(error.context(running.finish()?.to_string()));
            }
            running.feed(input)?;
        }
        running.finish()
    }

    /// Runs it to its end; an exit code other than 0 is an error.
    pub fn done(self) -> Result<Output> {
        self.output()?.exits(0)
    }

    /// Starts it and leaves `ctr` attached.
    pub fn spawn(self) -> Result<Running> {
        Running::spawn(&mut self.command())
    }

    /// Starts it with a terminal of the test's as that of `ctr`.
    pub fn on_terminal(self) -> Result<OnTerminal> {
        OnTerminal::spawn(self.command())
    }

    /// Starts it in the background; the container and its task stay until they are deleted.
    pub fn detach(mut self) -> Result<()> {
        self.detached = true;
        self.done().map(drop)
    }

    fn command(&self) -> Command {
        let mut ctr = self.containerd.ctr(["run", "--runtime", self.runtime.name()]);
        ctr = ctr.arg(if self.detached { "--detach" } else { "--rm" });
        for argument in self.flags.iter().chain(&self.image).chain([&self.id]).chain(&self.arguments) {
            ctr = ctr.arg(argument);
        }
        ctr.command()
    }
}
