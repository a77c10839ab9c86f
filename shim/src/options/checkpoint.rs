//! The options of a Checkpoint request: `containerd.runc.v1.CheckpointOptions`, or `containerd.linux.runc.CheckpointOptions`
//! of clients of containerd 1.x, which has the two paths the other way round.

use super::{bare, invalid, undecodable, unimplemented};
use anyhow::anyhow;
use containerd_shim_protos::shim::oci::CheckpointOptions as Message;
use executors::{CheckpointOptions, Criu, Result};
use protobuf::well_known_types::any::Any;
use protobuf::{Message as _, UnknownValueRef};

const RUNC: &str = "containerd.runc.v1.CheckpointOptions";
const LINUX: &str = "containerd.linux.runc.CheckpointOptions";

/// What the options ask for, and what criu is used with. `path` is the request's own, the folder of the checkpoint; `criu` is
/// what the container was created with.
///
/// # Errors
/// InvalidArgument for what is not what it claims to be, Unimplemented for what is not done.
pub fn checkpoint(path: &str, options: Option<&Any>, criu: &Criu) -> Result<(CheckpointOptions, Criu)> {
    let message = match options.filter(|any| !any.type_url.is_empty() || !any.value.is_empty()) {
        None => Message::default(),
        Some(any) => decode(any)?,
    };
    match message.cgroups_mode.as_str() {
        "" | "ignore" => {}
        mode => {
            return Err(unimplemented(format!(
                "the checkpoint option cgroups_mode {mode:?}: a restored container's cgroup is made by its spec (\"ignore\"), \
                 any other"
            )));
        }
    }
    // A network namespace is never dumped.
    if let Some(name) = message.empty_namespaces.iter().find(|name| *name != "network") {
        return Err(invalid(anyhow!("the checkpoint option empty_namespaces: {name:?} is not \"network\"")));
    }
    let images = if path.is_empty() { &message.image_path } else { path };
    if !images.starts_with('/') {
        return Err(invalid(anyhow!("the checkpoint's path, {images:?}, is not absolute")));
    }
    let mut criu = criu.clone();
    if !message.work_path.is_empty() {
        criu.work_path = Some(message.work_path.into());
    }
    let options = CheckpointOptions {
        images: images.into(),
        exit: message.exit,
        open_tcp: message.open_tcp,
        external_unix_sockets: message.external_unix_sockets,
        terminal: message.terminal,
        file_locks: message.file_locks,
    };
    Ok((options, criu))
}

fn decode(any: &Any) -> Result<Message> {
    let name = bare(&any.type_url);
    if name != RUNC && name != LINUX {
        return Err(unimplemented(format!("checkpoint options of the type {:?}", any.type_url)));
    }
    let mut message = Message::parse_from_bytes(&any.value).map_err(|error| undecodable(error.into()))?;
    if let Some((number, _)) = message.special_fields.unknown_fields().iter().next() as Option<(u32, UnknownValueRef)> {
        return Err(unimplemented(format!("the checkpoint option with the number {number}")));
    }
    if name == LINUX {
        std::mem::swap(&mut message.image_path, &mut message.work_path);
    }
    Ok(message)
}

#[cfg(test)]
mod tests {
    use super::super::tests::any;
    use super::*;
    use executors::Kind;

    fn read(name: &str, path: &str, change: impl FnOnce(&mut Message)) -> Result<(CheckpointOptions, Criu)> {
        let mut message = Message::new();
        change(&mut message);
        let criu = Criu { path: Some("/criu".into()), work_path: Some("/w".into()) };
        checkpoint(path, Some(&any(name, message.write_to_bytes().unwrap())), &criu)
    }

    #[test]
    fn every_field_is_taken() {
        let (options, criu) = read(RUNC, "", |m| {
            (m.exit, m.open_tcp, m.external_unix_sockets, m.terminal, m.file_locks) = (true, true, true, true, true);
            m.empty_namespaces = vec!["network".into()];
            m.cgroups_mode = "ignore".into();
            (m.image_path, m.work_path) = ("/images".into(), "/work".into());
        })
        .unwrap();
        let expected = CheckpointOptions {
            images: "/images".into(),
            exit: true,
            open_tcp: true,
            external_unix_sockets: true,
            terminal: true,
            file_locks: true,
        };
        assert_eq!(options, expected);
        assert_eq!(criu, Criu { path: Some("/criu".into()), work_path: Some("/work".into()) });
    }

    #[test]
    fn the_request_s_path_goes_first_and_the_old_type_has_its_own_order() {
        let (options, criu) = read(RUNC, "/request", |m| m.image_path = "/images".into()).unwrap();
        assert_eq!((options.images.to_str(), criu.work_path), (Some("/request"), Some("/w".into())));
        let (options, criu) =
            read(LINUX, "", |m| (m.image_path, m.work_path) = ("/work".into(), "/images".into())).unwrap();
        assert_eq!((options.images.to_str(), criu.work_path), (Some("/images"), Some("/work".into())));
        assert_eq!(checkpoint("/p", None, &Criu::default()).unwrap().0.images.to_str(), Some("/p"));
    }

    #[test]
    fn what_is_not_done_is_refused_by_name() {
        let refused = |result: Result<(CheckpointOptions, Criu)>, kind, name: &str| {
            let error = result.unwrap_err();
            assert_eq!(error.kind(), kind, "{error}");
            assert!(error.to_string().contains(name), "{error}");
        };
        refused(read(RUNC, "/p", |m| m.cgroups_mode = "full".into()), Kind::Unimplemented, "cgroups_mode \"full\"");
        refused(read(RUNC, "/p", |m| m.empty_namespaces = vec!["pid".into()]), Kind::InvalidArgument, "\"pid\"");
        refused(read(RUNC, "p", |_| ()), Kind::InvalidArgument, "not absolute");
        refused(read("example.Options", "/p", |_| ()), Kind::Unimplemented, "example.Options");
        let unknown = checkpoint("/p", Some(&any(RUNC, b"\x98\x06\x01".to_vec())), &Criu::default());
        refused(unknown, Kind::Unimplemented, "number 99");
        let broken = checkpoint("/p", Some(&any(RUNC, b"\x4a\x7f".to_vec())), &Criu::default());
        refused(broken, Kind::InvalidArgument, "decode");
    }
}
