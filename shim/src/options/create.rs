//! `containerd.linux.runc.CreateOptions`: what the clients of containerd 1.x send every runtime that is not named
//! `io.containerd.runc…`, as for `ctr run --uidmap` and `--no-pivot`
//! (containerd 1.7: task_opts_unix.go; runtime/linux/runctypes/runc.proto has the fields).

use super::{Raw, undecodable, unimplemented};
use executors::Result;
use protobuf::CodedInputStream;
use protobuf::rt::WireType;

/// The fields that no release of containerd's own clients sets: those of checkpoints.
const NAMES: [(u32, &str); 6] = [
    (2, "open_tcp"),
    (3, "external_unix_sockets"),
    (4, "terminal"),
    (5, "file_locks"),
    (6, "empty_namespaces"),
    (7, "cgroups_mode"),
];

pub(super) fn read(value: &[u8]) -> Result<Raw> {
    let failed = |error: protobuf::Error| undecodable(error.into());
    let mut input = CodedInputStream::from_bytes(value);
    let mut raw = Raw::default();
    while let Some(tag) = input.read_raw_tag_or_eof().map_err(failed)? {
        let runc = &mut raw.runc;
        match (tag >> 3, WireType::new(tag & 7)) {
            (1, Some(WireType::Varint)) => runc.no_pivot_root = input.read_bool().map_err(failed)?,
            (8, Some(WireType::Varint)) => runc.no_new_keyring = input.read_bool().map_err(failed)?,
            (9, Some(WireType::LengthDelimited)) => runc.shim_cgroup = input.read_string().map_err(failed)?,
            (10, Some(WireType::Varint)) => runc.io_uid = input.read_uint32().map_err(failed)?,
            (11, Some(WireType::Varint)) => runc.io_gid = input.read_uint32().map_err(failed)?,
            (12, Some(WireType::LengthDelimited)) => runc.criu_work_path = input.read_string().map_err(failed)?,
            (13, Some(WireType::LengthDelimited)) => runc.criu_image_path = input.read_string().map_err(failed)?,
            (number, _) => {
                let name = NAMES.iter().find(|(known, _)| *known == number).map(|(_, name)| *name);
                let number = format!("with the number {number}");
                return Err(unimplemented(format!("the runtime option {}", name.unwrap_or(&number))));
            }
        }
    }
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use executors::Kind;

    #[test]
    fn every_field_is_taken() {
        let raw = read(b"\x08\x01\x40\x01\x4a\x02/s\x50\x07\x58\x08\x62\x02/w\x6a\x02/i").unwrap().runc;
        assert!(raw.no_pivot_root && raw.no_new_keyring);
        assert_eq!((raw.shim_cgroup.as_str(), raw.io_uid, raw.io_gid), ("/s", 7, 8));
        assert_eq!((raw.criu_work_path.as_str(), raw.criu_image_path.as_str()), ("/w", "/i"));
        assert_eq!(read(b"").unwrap().runc, Default::default());
    }

    #[test]
    fn others_are_refused_by_name() {
        for (bytes, name) in [(&b"\x10\x01"[..], "open_tcp"), (b"\x32\x01n", "empty_namespaces"), (b"\x70\x01", "14")] {
            let error = read(bytes).err().unwrap();
            assert_eq!(error.kind(), Kind::Unimplemented, "{error}");
            assert!(error.to_string().contains(name), "{error}");
        }
        assert_eq!(read(b"\x4a\x7f").err().unwrap().kind(), Kind::InvalidArgument);
    }
}
