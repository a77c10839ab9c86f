//! A conversation with systemd over D-Bus: opened for one change of a unit, closed after it.
//!
//! zbus has the messages that are sent, and the encoding. Its connections are not used: they bring threads (an executor's,
//! and async-io's, which is never ended), and the shim's server must be one thread again when a call is answered. Here reads
//! block, by a deadline. Nor does it read what comes: it panics at the sender that systemd names on its own socket.
//!
//! Source: the D-Bus specification; org.freedesktop.systemd1(5).

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use zbus::Message;
use zbus::message::Flags;
use zbus::zvariant::{self, DynamicType, OwnedObjectPath, OwnedValue};

use super::message::{self, Incoming};
use crate::error::Error;
use crate::{Kind, Result};

/// The system's bus, which is the way for others than systemctl(1), and systemd's own socket, where there is no bus
/// (systemd(1), "Files").
const SOCKETS: [(&str, bool); 2] = [("/run/dbus/system_bus_socket", true), ("/run/systemd/private", false)];

/// How long a conversation may take: what runc allows for a job.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long nobody may be listening: systemd that executes itself anew listens again when it has read its state.
const AWAY: Duration = Duration::from_secs(2);

const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER: (&str, &str) = ("/org/freedesktop/systemd1", "org.freedesktop.systemd1.Manager");
const BUS: (&str, &str, &str) = ("org.freedesktop.DBus", "/org/freedesktop/DBus", "org.freedesktop.DBus");

/// Why a call did not succeed.
#[derive(Debug)]
pub(super) enum Failure {
    /// systemd's answer: the error's name and its words.
    Refused { name: String, text: String },
    /// There was none.
    Lost(anyhow::Error),
}

impl Failure {
    /// Whether systemd answered with an error of that name of its own.
    pub fn is(&self, error: &str) -> bool {
        let Self::Refused { name, .. } = self else { return false };
        name.strip_prefix(SYSTEMD).and_then(|name| name.strip_prefix('.')) == Some(error)
    }

    /// The same for others, with what was tried in front.
    pub fn explain(self, what: String) -> Error {
        const WRONG: [&str; 4] = ["InvalidArgs", "PropertyReadOnly", "UnknownProperty", "NotSupported"];
        let kind = match &self {
            Self::Lost(_) => Kind::Unavailable,
            refused if refused.is("NoSuchUnit") => Kind::NotFound,
            refused if refused.is("UnitExists") => Kind::FailedPrecondition,
            refused if refused.is("BadUnitSetting") => Kind::InvalidArgument,
            Self::Refused { name, .. } => match name.strip_prefix("org.freedesktop.DBus.Error.") {
                Some(error) if WRONG.contains(&error) => Kind::InvalidArgument,
                _ => Kind::Internal,
            },
        };
        Error::new(kind, self).context(what)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused { name, text } => write!(f, "systemd says: {text} ({name})"),
            Self::Lost(error) => write!(f, "{error:#}"),
        }
    }
}

impl std::error::Error for Failure {}

impl From<zbus::Error> for Failure {
    fn from(error: zbus::Error) -> Self {
        Self::Lost(error.into())
    }
}

impl From<zvariant::Error> for Failure {
    fn from(error: zvariant::Error) -> Self {
        Self::Lost(error.into())
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Lost(error.into())
    }
}

/// A connection to systemd's manager.
pub(super) struct Manager {
    socket: Socket,
    /// What came behind the handshake, and belongs to the first message.
    ahead: Vec<u8>,
    /// Whether the system's bus is between.
    by_bus: bool,
}

impl Manager {
    /// Connects to it.
    ///
    /// # Errors
    /// Unavailable when nobody listens.
    pub fn connect() -> Result<Manager> {
        Self::open().map_err(|failure| failure.explain("connect to systemd".to_owned()))
    }

    fn open() -> Result<Manager, Failure> {
        let (stream, by_bus) = reach()?;
        let socket = Socket { stream, deadline: Instant::now() + PATIENCE };
        let mut manager = Self { socket, ahead: Vec::new(), by_bus };
        manager.authenticate()?;
        if by_bus {
            // A bus names each of its clients first of all. Its answer is passed over: it is an error only where the next
            // call is one too.
            let hello = Message::method_call(BUS.1, "Hello")?.destination(BUS.0)?.interface(BUS.2)?;
            manager.send(&hello.build(&())?)?;
        }
        Ok(manager)
    }

    /// As root by the socket's credentials (D-Bus specification, "Authentication Protocol").
    fn authenticate(&mut self) -> Result<(), Failure> {
        let uid = rustix::process::geteuid().as_raw().to_string();
        let hex: String = uid.bytes().map(|byte| format!("{byte:02x}")).collect();
        // BEGIN need not wait for the answer, as systemd's own clients have it: after a refusal nothing else counts.
        self.socket.stream.write_all(format!("\0AUTH EXTERNAL {hex}\r\nBEGIN\r\n").as_bytes())?;
        let mut answer = Vec::new();
        loop {
            let mut buffer = [0; 256];
            let length = self.socket.receive(&mut buffer)?;
            answer.extend(buffer.iter().take(length));
            if let Some(end) = answer.windows(2).position(|two| two == b"\r\n") {
                self.ahead = answer.split_off(end + 2);
                break;
            }
            if length == 0 || answer.len() > 4096 {
                break;
            }
        }
        match answer.strip_prefix(b"OK ") {
            Some(_) => Ok(()),
            None => Err(Failure::Lost(anyhow::anyhow!("not let in: {:?}", String::from_utf8_lossy(&answer)))),
        }
    }

    /// Calls a method of the manager whose answer says nothing.
    pub fn call(&mut self, member: &str, body: &(impl serde::Serialize + DynamicType)) -> Result<(), Failure> {
        self.call_interface(MANAGER.1, member, body).map(drop)
    }

    fn call_interface(
        &mut self,
        interface: &str,
        member: &str,
        body: &(impl serde::Serialize + DynamicType),
    ) -> Result<Incoming, Failure> {
        let call = Message::method_call(MANAGER.0, member)?.destination(SYSTEMD)?.interface(interface)?;
        let call = call.build(body)?;
        let serial = call.primary_header().serial_num();
        self.send(&call)?;
        loop {
            let answer = self.receive()?;
            if answer.reply_to() != Some(serial.get()) {
                continue;
            }
            if answer.kind == message::ERROR {
                let name = answer.text(message::ERROR_NAME).unwrap_or_default().to_owned();
                return Err(Failure::Refused { name, text: answer.body::<String>().unwrap_or_default() });
            }
            return Ok(answer);
        }
    }

    /// Calls a method that makes a job for a unit, waits for the job's end and returns its result: `done`, or what else
    /// org.freedesktop.systemd1(5) has for JobRemoved.
    pub fn job(
        &mut self,
        unit: &str,
        member: &str,
        body: &(impl serde::Serialize + DynamicType),
    ) -> Result<String, Failure> {
        if self.by_bus {
            // Without a bus between every signal comes, without being asked for.
            let rule =
                format!("type='signal',sender='{SYSTEMD}',interface='{}',member='JobRemoved',arg2='{unit}'", MANAGER.1);
            let watch = Message::method_call(BUS.1, "AddMatch")?.destination(BUS.0)?.interface(BUS.2)?;
            self.send(&watch.with_flags(Flags::NoReplyExpected)?.build(&(rule,))?)?;
            let subscribe = Message::method_call(MANAGER.0, "Subscribe")?.destination(SYSTEMD)?.interface(MANAGER.1)?;
            self.send(&subscribe.with_flags(Flags::NoReplyExpected)?.build(&())?)?;
        }
        let answer = self.call_interface(MANAGER.1, member, body)?;
        let job: OwnedObjectPath = answer.body()?;
        loop {
            let signal = self.receive()?;
            // Others on the bus could send such a signal too.
            if signal.kind != message::SIGNAL
                || signal.text(message::MEMBER) != Some("JobRemoved")
                || signal.text(message::SENDER) != answer.text(message::SENDER)
            {
                continue;
            }
            let (_, removed, _, result): (u32, OwnedObjectPath, String, String) = signal.body()?;
            if removed == job {
                return Ok(result);
            }
        }
    }

    /// systemd's version, such as 257.
    pub fn version(&mut self) -> Result<u32, Failure> {
        let answer = self.call_interface("org.freedesktop.DBus.Properties", "Get", &(MANAGER.1, "Version"))?;
        let value: OwnedValue = answer.body()?;
        Ok(parse_version(<&str>::try_from(&*value)?))
    }

    fn send(&mut self, message: &Message) -> io::Result<()> {
        self.socket.stream.write_all(message.data())
    }

    /// The next message, whatever it is.
    fn receive(&mut self) -> Result<Incoming, Failure> {
        let mut bytes = Vec::new();
        self.read_up_to(message::FIXED, &mut bytes)?;
        let length = Incoming::length(&bytes).filter(|length| *length <= message::LONGEST);
        let length = length.ok_or_else(|| Failure::Lost(anyhow::anyhow!("not a message of D-Bus: {bytes:?}")))?;
        self.read_up_to(length, &mut bytes)?;
        Ok(Incoming::parse(bytes)?)
    }

    /// Reads until there are `length` bytes.
    fn read_up_to(&mut self, length: usize, bytes: &mut Vec<u8>) -> io::Result<()> {
        while let Some(missing) = length.checked_sub(bytes.len()).filter(|missing| *missing > 0) {
            if self.ahead.is_empty() {
                let mut buffer = [0; 4096];
                let length = self.socket.receive(&mut buffer)?;
                if length == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                self.ahead.extend(buffer.iter().take(length));
            }
            bytes.extend(self.ahead.drain(..missing.min(self.ahead.len())));
        }
        Ok(())
    }
}

/// Connects to the first socket that somebody listens on, and tells whether that is the bus.
fn reach() -> io::Result<(UnixStream, bool)> {
    let deadline = Instant::now() + AWAY;
    let mut pause = Duration::from_millis(5);
    loop {
        let mut error = io::Error::from(io::ErrorKind::NotFound);
        for (path, by_bus) in SOCKETS {
            match UnixStream::connect(path) {
                Ok(stream) => {
                    stream.set_write_timeout(Some(PATIENCE))?;
                    return Ok((stream, by_bus));
                }
                Err(e) => error = io::Error::new(e.kind(), format!("{path}: {e}")),
            }
        }
        let is_away = matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused);
        if !is_away || Instant::now() > deadline {
            return Err(error);
        }
        std::thread::sleep(pause);
        pause *= 2;
    }
}

/// The digits of `257.7-1`, `v245.4` and the like; zero where there are none.
fn parse_version(text: &str) -> u32 {
    let digits = text.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

#[derive(Debug)]
struct Socket {
    stream: UnixStream,
    deadline: Instant,
}

impl Socket {
    /// Blocks until something comes; TimedOut past the deadline.
    fn receive(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {PATIENCE:?}")));
            }
            self.stream.set_read_timeout(Some(left))?;
            match self.stream.read(buffer) {
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                result => return result,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        for (text, version) in [("257.7-1~deb13u1", 257), ("v245.4-4ubuntu3", 245), ("252", 252), ("", 0), ("x", 0)] {
            assert_eq!(parse_version(text), version, "{text}");
        }
    }
}
