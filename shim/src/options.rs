//! The runtime options of a Create request. What hybrid does not do is refused by its field's name.
//!
//! | sender | sends |
//! | --- | --- |
//! | `ctr`, nerdctl | nothing for this runtime; `ctr --runtime-config-path` a `runtimeoptions.v1.Options` |
//! | the CRI plugin | `runtimeoptions.v1.Options` with the handler's TOML, if the handler has options |
//! | clients that treat every runtime as runc | `containerd.runc.v1.Options` |

use crate::stdio::Owner;
use anyhow::{Context, anyhow};
use containerd_shim_protos::shim::oci;
use executors::{Error, Kind, Result};
use protobuf::well_known_types::any::Any;
use protobuf::{CodedInputStream, Message};

/// Checks the options and returns what they ask for: an owner of the standard streams, or nothing.
///
/// # Errors
/// InvalidArgument for bytes that are not what they claim, else Unimplemented.
pub fn check(options: Option<&Any>) -> Result<Option<Owner>> {
    let Some(options) = options.filter(|any| !any.type_url.is_empty() || !any.value.is_empty()) else {
        return Ok(None);
    };
    // containerd writes bare names, protobuf libraries put a host in front.
    match options.type_url.rsplit('/').next().unwrap_or_default() {
        "containerd.runc.v1.Options" => check_runc(&options.value),
        "runtimeoptions.v1.Options" => check_generic(&options.value).map(|()| None),
        _ => Err(unimplemented(format!("runtime options of the type {:?}", options.type_url))),
    }
}

fn check_runc(value: &[u8]) -> Result<Option<Owner>> {
    let options = oci::Options::parse_from_bytes(value).map_err(|error| undecodable(error.into()))?;
    let set = [
        ("no_pivot_root", options.no_pivot_root),
        ("no_new_keyring", options.no_new_keyring),
        ("shim_cgroup", !options.shim_cgroup.is_empty()),
        ("binary_name", !options.binary_name.is_empty()),
        ("root", !options.root.is_empty()),
        ("systemd_cgroup", options.systemd_cgroup),
        ("criu_image_path", !options.criu_image_path.is_empty()),
        ("criu_work_path", !options.criu_work_path.is_empty()),
        ("task_api_address", !options.task_api_address.is_empty()),
        ("task_api_version", options.task_api_version != 0),
    ];
    if let Some((name, _)) = set.iter().find(|(_, set)| *set) {
        return Err(unimplemented(format!("the runtime option {name}")));
    }
    if let Some((number, _)) = options.special_fields.unknown_fields().iter().next() {
        return Err(unimplemented(format!("the runtime option with the number {number}")));
    }
    let owner = Owner { uid: options.io_uid, gid: options.io_gid };
    Ok((owner != Owner { uid: 0, gid: 0 }).then_some(owner))
}

/// `message Options { string type_url = 1; string config_path = 2; bytes config_body = 3; }`: the type only says what
/// the other two hold, so it is harmless alone (containerd: api/runtimeoptions/v1/api.proto).
fn check_generic(value: &[u8]) -> Result<()> {
    const LENGTH_DELIMITED: u32 = 2;
    let mut input = CodedInputStream::from_bytes(value);
    let mut next = || -> protobuf::Result<Option<(u32, Vec<u8>)>> {
        let Some(tag) = input.read_raw_tag_or_eof()? else { return Ok(None) };
        if tag & 7 != LENGTH_DELIMITED {
            return Ok(Some((tag >> 3, vec![0])));
        }
        Ok(Some((tag >> 3, input.read_bytes()?)))
    };
    while let Some((number, bytes)) = next().map_err(|error| undecodable(error.into()))? {
        match number {
            1 => {}
            _ if bytes.is_empty() => {}
            2 => return Err(unimplemented("the runtime option config_path")),
            3 => return Err(unimplemented("the runtime option config_body (options of the runtime handler)")),
            other => return Err(unimplemented(format!("the runtime option with the number {other}"))),
        }
    }
    Ok(())
}

fn unimplemented(what: impl std::fmt::Display) -> Error {
    Error::new(Kind::Unimplemented, anyhow!("{what} is not implemented"))
}

fn undecodable(error: anyhow::Error) -> Error {
    let result: anyhow::Result<()> = Err(error);
    Error::new(Kind::InvalidArgument, result.context("decode the runtime options").unwrap_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, value: Vec<u8>) -> Any {
        let mut any = Any::new();
        any.type_url = type_url.into();
        any.value = value;
        any
    }

    fn runc(change: impl FnOnce(&mut oci::Options)) -> Result<Option<Owner>> {
        let mut options = oci::Options::new();
        change(&mut options);
        check(Some(&any("containerd.runc.v1.Options", options.write_to_bytes().unwrap())))
    }

    fn generic(value: &[u8]) -> Result<Option<Owner>> {
        check(Some(&any("runtimeoptions.v1.Options", value.to_vec())))
    }

    #[test]
    fn no_options_and_default_options_are_fine() {
        assert_eq!(check(None).unwrap(), None);
        assert_eq!(check(Some(&Any::new())).unwrap(), None);
        assert_eq!(runc(|_| {}).unwrap(), None);
        assert_eq!(generic(b"").unwrap(), None);
        assert_eq!(generic(b"\x0a\x01t\x12\x00").unwrap(), None);
        let hosted = any("type.googleapis.com/containerd.runc.v1.Options", vec![]);
        assert_eq!(check(Some(&hosted)).unwrap(), None);
    }

    #[test]
    fn the_owner_of_the_streams_is_taken() {
        assert_eq!(runc(|o| o.io_uid = 7).unwrap(), Some(Owner { uid: 7, gid: 0 }));
        assert_eq!(runc(|o| o.io_gid = 8).unwrap(), Some(Owner { uid: 0, gid: 8 }));
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        type Change = fn(&mut oci::Options);
        let changes: [(&str, Change); 10] = [
            ("no_pivot_root", |o| o.no_pivot_root = true),
            ("no_new_keyring", |o| o.no_new_keyring = true),
            ("shim_cgroup", |o| o.shim_cgroup = "/s".into()),
            ("binary_name", |o| o.binary_name = "crun".into()),
            ("root", |o| o.root = "/r".into()),
            ("systemd_cgroup", |o| o.systemd_cgroup = true),
            ("criu_image_path", |o| o.criu_image_path = "/c".into()),
            ("criu_work_path", |o| o.criu_work_path = "/c".into()),
            ("task_api_address", |o| o.task_api_address = "a".into()),
            ("task_api_version", |o| o.task_api_version = 3),
        ];
        for (name, change) in changes {
            let error = runc(change).unwrap_err();
            assert_eq!(error.kind(), Kind::Unimplemented);
            assert!(error.to_string().contains(name), "{error}");
        }
        for (name, value) in
            [("config_path", &b"\x12\x01p"[..]), ("config_body", b"\x1a\x01b"), ("number 9", b"\x48\x01")]
        {
            let error = generic(value).unwrap_err();
            assert_eq!(error.kind(), Kind::Unimplemented);
            assert!(error.to_string().contains(name), "{error}");
        }
        let error = check(Some(&any("example.Options", vec![]))).unwrap_err();
        assert!(error.kind() == Kind::Unimplemented && error.to_string().contains("example.Options"), "{error}");
        // A field of a newer containerd (number 99).
        let error = check(Some(&any("containerd.runc.v1.Options", b"\x98\x06\x01".to_vec()))).unwrap_err();
        assert!(error.kind() == Kind::Unimplemented && error.to_string().contains("99"), "{error}");
    }

    #[test]
    fn bytes_that_are_no_options_are_invalid() {
        assert_eq!(generic(b"\x12\x7f").unwrap_err().kind(), Kind::InvalidArgument);
        let error = check(Some(&any("containerd.runc.v1.Options", b"\x1a\x7f".to_vec()))).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
    }
}
