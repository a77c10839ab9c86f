//! The runtime options of `start` and of a Create request: four forms, one checked value. docs/configuration.md has the
//! table for users.
//!
//! | sender | sends |
//! | --- | --- |
//! | `ctr`, nerdctl | nothing for this runtime; `ctr --runtime-config-path` a `runtimeoptions.v1.Options` with the path |
//! | the CRI plugin | `runtimeoptions.v1.Options` with the handler's TOML, if the handler has options |
//! | clients that treat every runtime as runc | `containerd.runc.v1.Options` |
//! | clients of containerd 1.x, `ctr` for a user namespace | `containerd.linux.runc.CreateOptions` |
//!
//! What hybrid does not do is refused by the option's name, as it stands in containerd's configuration.

mod checkpoint;
mod create;
mod generic;
mod table;

use crate::stdio::Owner;
use anyhow::{Context, anyhow};
use containerd_shim_protos::shim::oci;
use executors::{CreateOptions, Criu, Error, Kind, Result, WasmOptions};

pub use self::checkpoint::checkpoint;
use protobuf::well_known_types::any::Any;
use protobuf::{Message, UnknownValueRef};
use std::path::PathBuf;

const RUNC: &str = "containerd.runc.v1.Options";
const CREATE: &str = "containerd.linux.runc.CreateOptions";
const GENERIC: &str = "runtimeoptions.v1.Options";

/// What the options ask for. The default is what no options ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// `IoUid`, `IoGid`: who shall own the standard streams.
    pub io_owner: Option<Owner>,
    /// `NoPivotRoot`, `NoNewKeyring`, `SystemdCgroup`, and those for WebAssembly.
    pub create: CreateOptions,
    /// `ShimCgroup`: the cgroup that `start` moves the shim into.
    pub shim_cgroup: Option<String>,
    /// `CriuPath`, `CriuWorkPath`: what checkpoint and restore are done with.
    pub criu: Criu,
}

/// An option before it is judged: those of containerd, and what our protobuf definition has no longer.
#[derive(Default)]
struct Raw {
    runc: oci::Options,
    criu_path: String,
    wasm: WasmOptions,
}

/// The options in any of their forms.
///
/// # Errors
/// InvalidArgument for what is not what it claims to be, Unimplemented for what is not done.
pub fn parse(options: Option<&Any>) -> Result<Options> {
    let Some(options) = options.filter(|any| !any.type_url.is_empty() || !any.value.is_empty()) else {
        return Ok(Options::default());
    };
    let raw = match bare(&options.type_url) {
        RUNC => decode_runc(&options.value)?,
        CREATE => create::read(&options.value)?,
        GENERIC => generic::read(&options.value)?,
        _ => return Err(unimplemented(format!("runtime options of the type {:?}", options.type_url))),
    };
    judge(raw)
}

/// The name of a message: containerd writes it bare, protobuf libraries put a host in front.
fn bare(type_url: &str) -> &str {
    type_url.rsplit('/').next().unwrap_or_default()
}

/// Whether that type of message holds runtime options which [`parse`] reads.
pub fn are_options(type_url: &str) -> bool {
    matches!(bare(type_url), RUNC | CREATE | GENERIC)
}

fn decode_runc(value: &[u8]) -> Result<Raw> {
    /// `criu_path`, which containerd 2.0 has removed.
    const CRIU_PATH: u32 = 8;
    let runc = oci::Options::parse_from_bytes(value).map_err(|error| undecodable(error.into()))?;
    let mut criu_path = String::new();
    for (number, value) in runc.special_fields.unknown_fields().iter() {
        match (number, value) {
            (CRIU_PATH, UnknownValueRef::LengthDelimited(text)) => {
                criu_path = String::from_utf8(text.to_vec()).map_err(|error| undecodable(error.into()))?;
            }
            _ => return Err(unimplemented(format!("the runtime option with the number {number}"))),
        }
    }
    Ok(Raw { runc, criu_path, ..Raw::default() })
}

fn judge(Raw { runc, criu_path, wasm }: Raw) -> Result<Options> {
    if !runc.binary_name.is_empty() {
        let message = format!(
            "the runtime option BinaryName ({:?}) is not implemented: hybrid runs containers itself, without an OCI \
             runtime's binary; leave it out",
            runc.binary_name
        );
        return Err(Error::new(Kind::Unimplemented, anyhow!(message)));
    }
    // Neither changes anything here: our state is in the bundle and in the cgroup, and containerd itself has read by
    // now which shim it is to call.
    if !runc.root.is_empty() {
        log::debug!("the runtime option Root, {:?}, changes nothing: there is no folder of state", runc.root);
    }
    if !runc.task_api_address.is_empty() || runc.task_api_version != 0 {
        let (address, version) = (&runc.task_api_address, runc.task_api_version);
        log::debug!("the runtime option TaskApiAddress, {address:?} (version {version}), is containerd's own");
    }
    if !runc.criu_image_path.is_empty() {
        let path = &runc.criu_image_path;
        log::debug!(
            "the runtime option CriuImagePath, {path:?}, is containerd's own: it names the checkpoint in Create"
        );
    }
    let owner = Owner { uid: runc.io_uid, gid: runc.io_gid };
    let path = |text: String| (!text.is_empty()).then(|| PathBuf::from(text));
    Ok(Options {
        io_owner: (owner != Owner { uid: 0, gid: 0 }).then_some(owner),
        create: CreateOptions {
            no_pivot_root: runc.no_pivot_root,
            no_new_keyring: runc.no_new_keyring,
            systemd_cgroup: runc.systemd_cgroup,
            wasm,
        },
        shim_cgroup: (!runc.shim_cgroup.is_empty()).then_some(runc.shim_cgroup),
        criu: Criu { path: path(criu_path), work_path: path(runc.criu_work_path) },
    })
}

fn unimplemented(what: impl std::fmt::Display) -> Error {
    Error::new(Kind::Unimplemented, anyhow!("{what} is not implemented"))
}

fn invalid(error: anyhow::Error) -> Error {
    Error::new(Kind::InvalidArgument, error)
}

fn undecodable(error: anyhow::Error) -> Error {
    let result: anyhow::Result<()> = Err(error);
    invalid(result.context("decode the runtime options").unwrap_err())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn any(type_url: &str, value: Vec<u8>) -> Any {
        let mut any = Any::new();
        any.type_url = type_url.into();
        any.value = value;
        any
    }

    fn runc(change: impl FnOnce(&mut oci::Options)) -> Result<Options> {
        let mut options = oci::Options::new();
        change(&mut options);
        parse(Some(&any("containerd.runc.v1.Options", options.write_to_bytes().unwrap())))
    }

    #[test]
    fn no_options_and_default_options_are_the_default() {
        assert_eq!(parse(None).unwrap(), Options::default());
        assert_eq!(parse(Some(&Any::new())).unwrap(), Options::default());
        assert_eq!(runc(|_| {}).unwrap(), Options::default());
        let hosted = any("type.googleapis.com/containerd.runc.v1.Options", vec![]);
        assert_eq!(parse(Some(&hosted)).unwrap(), Options::default());
        assert_eq!(parse(Some(&any("runtimeoptions.v1.Options", vec![]))).unwrap(), Options::default());
    }

    #[test]
    fn every_field_is_taken() {
        let options = runc(|o| {
            (o.io_uid, o.io_gid) = (7, 0);
            (o.no_pivot_root, o.no_new_keyring, o.systemd_cgroup) = (true, true, true);
            o.shim_cgroup = "/shims".into();
            o.criu_image_path = "/images".into();
            o.criu_work_path = "/work".into();
            // These two are nobody's business here.
            (o.root, o.task_api_address, o.task_api_version) = ("/r".into(), "ttrpc+unix:///a".into(), 3);
        });
        let criu = Criu { path: None, work_path: Some("/work".into()) };
        let expected = Options {
            io_owner: Some(Owner { uid: 7, gid: 0 }),
            create: CreateOptions {
                no_pivot_root: true,
                no_new_keyring: true,
                systemd_cgroup: true,
                ..CreateOptions::default()
            },
            shim_cgroup: Some("/shims".into()),
            criu,
        };
        assert_eq!(options.unwrap(), expected);
        assert_eq!(runc(|o| o.io_gid = 8).unwrap().io_owner, Some(Owner { uid: 0, gid: 8 }));
    }

    #[test]
    fn a_field_of_containerd_1_is_taken() {
        let options = parse(Some(&any("containerd.runc.v1.Options", b"\x42\x05/criu".to_vec()))).unwrap();
        assert_eq!(options.criu.path, Some("/criu".into()));
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let refused = |error: Error, name: &str| {
            assert_eq!(error.kind(), Kind::Unimplemented, "{error}");
            assert!(error.to_string().contains(name), "{error}");
        };
        refused(runc(|o| o.binary_name = "crun".into()).unwrap_err(), "BinaryName (\"crun\")");
        refused(parse(Some(&any("example.Options", vec![]))).unwrap_err(), "example.Options");
        // A field of a newer containerd (number 99), and an old one of another type.
        refused(parse(Some(&any("containerd.runc.v1.Options", b"\x98\x06\x01".to_vec()))).unwrap_err(), "99");
        refused(parse(Some(&any("containerd.runc.v1.Options", b"\x40\x01".to_vec()))).unwrap_err(), "number 8");
    }

    #[test]
    fn bytes_that_are_no_options_are_invalid() {
        let error = parse(Some(&any("containerd.runc.v1.Options", b"\x1a\x7f".to_vec()))).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
    }
}
