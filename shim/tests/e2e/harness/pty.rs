//! A terminal for `ctr`, whose user is the test.
use super::PATIENCE;
use super::command::Output;
use super::stream::Stream;
use anyhow::{Context, Result, bail};
use rustix::fs::{Mode, OFlags, open};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

/// A program under way whose controlling terminal is the test's.
pub struct OnTerminal {
    what: String,
    user: File,
    screen: Stream,
    ended: mpsc::Receiver<std::io::Result<std::process::ExitStatus>>,
}

impl OnTerminal {
    /// Runs the command in a session of its own, by setsid(1).
    pub fn spawn(command: Command) -> Result<OnTerminal> {
        let master =
            openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).context("opening a terminal")?;
        grantpt(&master).and_then(|()| unlockpt(&master)).context("unlocking the terminal")?;
        let name = ptsname(&master, Vec::new()).context("finding the terminal's name")?;
        let slave =
            open(&name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty()).context("opening it")?;
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&master, size).context("setting its size")?;

        let what = format!("{command:?}");
        let mut session = Command::new("setsid");
        session.args(["--ctty", "--wait"]).arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            session.env(name, value.unwrap_or_default());
        }
        let stdio = || slave.try_clone().map(Stdio::from).context("sharing the terminal");
        let mut child: Child =
            session.stdin(stdio()?).stdout(stdio()?).stderr(stdio()?).spawn().with_context(|| what.clone())?;
        drop(session);
        drop(slave);
        let user = File::from(master);
        // Reading fails (EIO) when the last of the program's descriptors is closed, which is as good as the end.
        let screen = Stream::read_from(user.try_clone().context("sharing the terminal")?);
        let (sender, ended) = mpsc::channel();
        thread::spawn(move || {
            // The receiver is gone when the test has already failed.
            let _ = sender.send(child.wait());
        });
        Ok(OnTerminal { what, user, screen, ended })
    }

    /// Types.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.user.write_all(bytes).with_context(|| format!("typing to {}", self.what))
    }

    /// Changes the terminal's size, of which the program is told by SIGWINCH.
    #[allow(dead_code, reason = "ctr's are resized by other tests")]
    pub fn resize(&self, rows: u16, columns: u16) -> Result<()> {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.user, size).context("changing the terminal's size")
    }

    /// Whether `text` is shown within this time.
    #[allow(dead_code, reason = "not every program has to be asked twice")]
    pub fn shows(&self, text: &str, patience: Duration) -> bool {
        self.screen.shows(text, patience)
    }

    /// Waits until `text` has been shown.
    pub fn wait_for(&self, text: &str) -> Result<()> {
        self.screen.wait_for(text).with_context(|| self.what.clone())
    }

    /// Waits for the program to end by itself; all it has shown is the output's stdout.
    pub fn finish(self) -> Result<Output> {
        let Ok(status) = self.ended.recv_timeout(PATIENCE) else {
            bail!("{} did not end and has shown {:?}", self.what, self.screen.text());
        };
        let status = status.with_context(|| format!("waiting for {}", self.what))?;
        self.screen.to_end()?;
        let code = status.code().with_context(|| format!("{} ended by {status}", self.what))?;
        Ok(Output::new(self.what, code, self.screen.text(), String::new()))
    }
}
