//! `runtimeoptions.v1.Options`: our own options in TOML, in the message or in a file.
//!
//! `message Options { string type_url = 1; string config_path = 2; bytes config_body = 3; }`
//! (containerd: api/types/runtimeoptions/v1/api.proto, which also says that a path goes before a body).

use super::{Raw, invalid, table, undecodable, unimplemented};
use anyhow::{Context, Result as AnyResult, anyhow, ensure};
use executors::Result;
use nix::libc::O_NONBLOCK;
use protobuf::CodedInputStream;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// The type of the TOML, where a sender names one.
const TYPE_URL: &str = "io.containerd.hybrid.v1.options";

/// The largest file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

#[derive(Debug, Default, PartialEq)]
struct Message {
    type_url: String,
    config_path: String,
    config_body: String,
}

pub(super) fn read(value: &[u8]) -> Result<Raw> {
    let message = decode(value)?;
    check_type(&message.type_url)?;
    let (text, source) = if message.config_path.is_empty() {
        (message.config_body, "config_body".to_owned())
    } else {
        (read_file(&message.config_path).map_err(invalid)?, message.config_path)
    };
    table::parse(&text).map_err(|error| error.context(format!("runtime options ({source})")))
}

/// The type says what the other two fields hold.
pub(super) fn check_type(type_url: &str) -> Result<()> {
    match type_url {
        "" | TYPE_URL => Ok(()),
        other => Err(invalid(anyhow!(
            "the runtime options' TypeUrl is {other:?}: they are another runtime's, not {TYPE_URL}"
        ))),
    }
}

fn decode(value: &[u8]) -> Result<Message> {
    const LENGTH_DELIMITED: u32 = 2;
    let mut input = CodedInputStream::from_bytes(value);
    let mut message = Message::default();
    loop {
        let tag = input.read_raw_tag_or_eof().map_err(|error| undecodable(error.into()))?;
        let Some(tag) = tag else { return Ok(message) };
        let field = match (tag >> 3, tag & 7) {
            (1, LENGTH_DELIMITED) => &mut message.type_url,
            (2, LENGTH_DELIMITED) => &mut message.config_path,
            (3, LENGTH_DELIMITED) => &mut message.config_body,
            (number, _) => return Err(unimplemented(format!("the runtime option with the number {number}"))),
        };
        *field = input.read_string().map_err(|error| undecodable(error.into()))?;
    }
}

fn read_file(path: &str) -> AnyResult<String> {
    let what = || format!("runtime options: config_path {path}");
    // The shim's own folder means nothing to whoever wrote the path.
    ensure!(Path::new(path).is_absolute(), "{} is not an absolute path", what());
    // A fifo must not keep the shim waiting.
    let file = OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(path).with_context(what)?;
    ensure!(file.metadata().with_context(what)?.is_file(), "{} is not a file", what());
    let mut text = String::new();
    file.take(MAX_FILE + 1).read_to_string(&mut text).with_context(what)?;
    ensure!(text.len() as u64 <= MAX_FILE, "{} is larger than {MAX_FILE} bytes", what());
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use executors::Kind;

    fn encode(fields: &[(u8, &str)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (number, text) in fields {
            bytes.extend([number << 3 | 2, u8::try_from(text.len()).unwrap()]);
            bytes.extend(text.as_bytes());
        }
        bytes
    }

    fn error(fields: &[(u8, &str)]) -> String {
        read(&encode(fields)).err().unwrap().to_string()
    }

    #[test]
    fn a_path_goes_before_a_body() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("options.toml");
        std::fs::write(&file, "IoUid = 7\n").unwrap();
        let path = file.to_str().unwrap();
        assert_eq!(read(&encode(&[(2, path)])).unwrap().runc.io_uid, 7);
        assert_eq!(read(&encode(&[(3, "IoUid = 8")])).unwrap().runc.io_uid, 8);
        assert_eq!(read(&encode(&[(1, TYPE_URL), (3, "IoUid = 8"), (2, path)])).unwrap().runc.io_uid, 7);
        assert_eq!(read(b"").unwrap().runc.io_uid, 0);
    }

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("options.toml");
        let path = file.to_str().unwrap();
        assert!(error(&[(2, path)]).contains(path));
        std::fs::write(&file, "Colour = 1").unwrap();
        let text = error(&[(2, path)]);
        assert!(text.contains(path) && text.contains("Colour"), "{text}");
        std::fs::write(&file, [0xff]).unwrap();
        assert!(error(&[(2, path)]).contains(path));
        std::fs::write(&file, vec![b'#'; MAX_FILE as usize + 1]).unwrap();
        assert!(error(&[(2, path)]).contains("larger"));
        assert!(error(&[(2, "options.toml")]).contains("absolute"));
        assert!(error(&[(2, dir.path().to_str().unwrap())]).contains("not a file"));
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(error(&[(2, fifo.to_str().unwrap())]).contains("not a file"));
    }

    #[test]
    fn another_runtime_s_type_and_unknown_fields_are_refused() {
        assert!(error(&[(1, "io.containerd.runsc.v1.options")]).contains("io.containerd.runsc.v1.options"));
        let unknown = read(b"\x48\x01").err().unwrap();
        assert!(unknown.kind() == Kind::Unimplemented && unknown.to_string().contains("number 9"), "{unknown}");
        for broken in [&b"\x12\x7f"[..], b"\x1a\x01\xff"] {
            assert_eq!(read(broken).err().unwrap().kind(), Kind::InvalidArgument);
        }
    }
}
