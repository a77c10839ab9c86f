//! D-Bus messages as they come.
//!
//! Source: the D-Bus specification, "Message Format".

use zbus::zvariant::serialized::{Context, Data};
use zbus::zvariant::{self, BE, LE, OwnedValue, Type, Value};

/// What every message begins with, in bytes, and the most that one of systemd's is taken to have.
pub(super) const FIXED: usize = 16;
pub(super) const LONGEST: usize = 1 << 20;
// Kinds of messages.
pub(super) const ERROR: u8 = 3;
pub(super) const SIGNAL: u8 = 4;
// Fields of a header.
pub(super) const MEMBER: u8 = 3;
pub(super) const ERROR_NAME: u8 = 4;
const REPLY_SERIAL: u8 = 5;
pub(super) const SENDER: u8 = 7;

/// A message that came.
pub(super) struct Incoming {
    pub kind: u8,
    fields: Vec<(u8, OwnedValue)>,
    body: Data<'static, 'static>,
}

impl Incoming {
    /// The length of the whole message by its first [`FIXED`] bytes.
    pub fn length(bytes: &[u8]) -> Option<usize> {
        let number = |at: usize| -> Option<usize> {
            let four: [u8; 4] = bytes.get(at..at + 4)?.try_into().ok()?;
            let number = if bytes.first() == Some(&b'B') { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) };
            usize::try_from(number).ok()
        };
        let fields = number(12)?.checked_add(FIXED)?.checked_next_multiple_of(8)?;
        fields.checked_add(number(4)?)
    }

    pub fn parse(bytes: Vec<u8>) -> Result<Incoming, zvariant::Error> {
        type Header = (u8, u8, u8, u8, u32, u32, Vec<(u8, OwnedValue)>);
        let context = Context::new_dbus(if bytes.first() == Some(&b'B') { BE } else { LE }, 0);
        let message = Data::new(bytes, context);
        let ((_, kind, _, _, _, _, fields), length): (Header, usize) = message.deserialize()?;
        let body = message.bytes().get(length.next_multiple_of(8)..).unwrap_or_default().to_vec();
        Ok(Incoming { kind, fields, body: Data::new(body, context) })
    }

    fn field(&self, code: u8) -> Option<&Value<'static>> {
        self.fields.iter().find(|(found, _)| *found == code).map(|(_, value)| &**value)
    }

    pub fn text(&self, code: u8) -> Option<&str> {
        self.field(code).and_then(|value| value.try_into().ok())
    }

    /// The serial number of the call that it answers.
    pub fn reply_to(&self) -> Option<u32> {
        self.field(REPLY_SERIAL).and_then(|value| value.try_into().ok())
    }

    pub fn body<B: serde::de::DeserializeOwned + Type>(&self) -> Result<B, zvariant::Error> {
        self.body.deserialize().map(|(body, _)| body)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zbus::Message;

    #[test]
    fn messages_come_in_either_order_of_bytes_and_from_any_sender() {
        for endian in [LE, BE] {
            let message = Message::signal("/a", "a.b", "JobRemoved").unwrap().endian(endian);
            let job = zvariant::ObjectPath::try_from("/job/7").unwrap();
            let message = message.build(&(7u32, job, "a.scope", "done")).unwrap();
            let bytes = message.data().to_vec();
            assert_eq!(Incoming::length(&bytes), Some(bytes.len()));
            let incoming = Incoming::parse(bytes.clone()).unwrap();
            assert_eq!(
                (incoming.kind, incoming.text(MEMBER), incoming.text(SENDER)),
                (SIGNAL, Some("JobRemoved"), None)
            );
            let (_, job, unit, _): (u32, zvariant::OwnedObjectPath, String, String) = incoming.body().unwrap();
            assert_eq!((job.as_str(), unit.as_str()), ("/job/7", "a.scope"));
            // But for the last byte, a string's null.
            for end in 0..bytes.len() - 1 {
                // What is cut off gives an error, or a body that can't be read, and never a panic.
                if let Ok(incoming) = Incoming::parse(bytes.get(..end).unwrap().to_vec()) {
                    incoming.body::<(u32, zvariant::OwnedObjectPath, String, String)>().unwrap_err();
                }
            }
        }
    }
}
