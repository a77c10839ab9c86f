//! The messages between criu and its client, as far as they are used here, in protobuf's encoding.
//!
//! Source: criu, images/rpc.proto; protobuf's encoding: fields are a tag (number << 3 | wire type) and a value.

/// A message being written.
#[derive(Default)]
pub(super) struct Message(Vec<u8>);

const VARINT: u64 = 0;
const LENGTH: u64 = 2;

impl Message {
    pub fn number(&mut self, field: u64, value: u64) -> &mut Self {
        self.varint(field << 3 | VARINT);
        self.varint(value);
        self
    }

    pub fn flag(&mut self, field: u64, value: bool) -> &mut Self {
        self.number(field, u64::from(value))
    }

    pub fn bytes(&mut self, field: u64, value: impl AsRef<[u8]>) -> &mut Self {
        let value = value.as_ref();
        self.varint(field << 3 | LENGTH);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    pub fn message(&mut self, field: u64, value: &Message) -> &mut Self {
        self.bytes(field, &value.0)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// `criu_resp`: what criu answers, or asks for by a notification.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Response {
    pub kind: u64,
    pub success: bool,
    /// `notify.script`, the name of a notification.
    pub notification: String,
    /// `notify.pid`.
    pub pid: u32,
    pub error: String,
}

impl Response {
    /// `None` for what is no such message.
    pub fn parse(bytes: &[u8]) -> Option<Response> {
        const NOTIFY: u64 = 5;
        const ERROR: u64 = 9;
        let mut response = Response::default();
        for field in fields(bytes)? {
            match field {
                (1, Value::Number(kind)) => response.kind = kind,
                (2, Value::Number(success)) => response.success = success != 0,
                (NOTIFY, Value::Bytes(notify)) => {
                    for field in fields(notify)? {
                        match field {
                            (1, Value::Bytes(name)) => {
                                response.notification = String::from_utf8_lossy(name).into_owned()
                            }
                            (2, Value::Number(pid)) => response.pid = u32::try_from(pid).ok()?,
                            _ => {}
                        }
                    }
                }
                (ERROR, Value::Bytes(error)) => response.error = String::from_utf8_lossy(error).into_owned(),
                _ => {}
            }
        }
        Some(response)
    }
}

enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn fields(mut bytes: &[u8]) -> Option<Vec<(u64, Value<'_>)>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let tag = varint(&mut bytes)?;
        let value = match tag & 7 {
            VARINT => Value::Number(varint(&mut bytes)?),
            LENGTH => {
                let length = usize::try_from(varint(&mut bytes)?).ok()?;
                let (value, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Value::Bytes(value)
            }
            _ => return None,
        };
        fields.push((tag >> 3, value));
    }
    Some(fields)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let mut notify = Message::default();
        notify.bytes(1, "post-restore").number(2, 70_000);
        let mut message = Message::default();
        message.number(1, 6).flag(2, true).message(5, &notify).bytes(9, "why");
        let response = Response::parse(message.as_bytes()).unwrap();
        let expected =
            Response { kind: 6, success: true, notification: "post-restore".into(), pid: 70_000, error: "why".into() };
        assert_eq!(response, expected);
    }

    #[test]
    fn what_is_cut_off_is_no_message() {
        let mut message = Message::default();
        message.number(1, 300).bytes(9, "why");
        let bytes = message.as_bytes();
        assert_eq!(bytes, b"\x08\xac\x02\x4a\x03why");
        for length in [1, 2, 4, 5, 7] {
            assert_eq!(Response::parse(&bytes[..length]), None);
        }
        assert_eq!(Response::parse(b"\x0d\0\0\0\0"), None);
    }
}
