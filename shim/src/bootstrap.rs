//! What containerd says to `start`, and in which form it wants the answer.
//!
//! | containerd | says | reads |
//! | --- | --- | --- |
//! | 1.6 | flags, environment, runtime options (`Any`) on stdin | the bare address: task API version 2 |
//! | 1.7, 2.0–2.2 | the same, and `MAX_SHIM_VERSION` | JSON with a version no higher than that |
//! | 2.3 and later | `BootstrapParams` (protobuf) on stdin | `BootstrapResult` (protobuf) |
//!
//! containerd: pkg/shim/compat.go, core/runtime/v2/shim.go `parseStartResponse`; 1.7: runtime/v2/shim.go.

use crate::options::{self, Options};
use anyhow::{Context, Result, bail};
use containerd_shim::Flags;
use containerd_shim::bootstrap::nearest_log_level;
use containerd_shim_protos::bootstrap_api::{BootstrapParams, BootstrapResult, LogLevel};
use log::LevelFilter;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde::Serialize;

/// The newest version of the task API that we serve.
const TASK_API_VERSION: i32 = containerd_shim_protos::TASK_API_VERSION;
const PROTOCOL: &str = "ttrpc";

/// The environment variables that containerd up to 2.2 sets.
#[derive(Debug, Default)]
pub struct Environment {
    pub ttrpc_address: String,
    pub grpc_address: String,
    pub max_shim_version: Option<String>,
}

impl Environment {
    /// Reads the process's environment; a variable that is missing or not UTF-8 is empty.
    pub fn read() -> Self {
        let var = |name| std::env::var(name).unwrap_or_default();
        Self {
            ttrpc_address: var("TTRPC_ADDRESS"),
            grpc_address: var("GRPC_ADDRESS"),
            max_shim_version: std::env::var("MAX_SHIM_VERSION").ok(),
        }
    }
}

/// What `start` was told, whichever way.
#[derive(Debug, PartialEq)]
pub struct Params {
    pub id: String,
    pub namespace: String,
    /// Where containerd takes events.
    pub ttrpc_address: String,
    /// containerd's main socket: part of the name of the shim's own socket.
    pub grpc_address: String,
    pub socket_dir: Option<String>,
    pub level: LevelFilter,
    /// The container's runtime options, which come with its Create request too.
    pub options: Options,
    pub reply: Reply,
}

/// The form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reply {
    Address,
    Json { version: i32 },
    Protobuf,
}

impl Reply {
    /// The bytes to print: nothing else may go to stdout or stderr, containerd reads both as one.
    pub fn encode(self, address: &str) -> Result<Vec<u8>> {
        #[derive(Serialize)]
        struct Json<'a> {
            version: i32,
            address: &'a str,
            protocol: &'a str,
        }
        Ok(match self {
            Reply::Address => address.as_bytes().to_vec(),
            Reply::Json { version } => serde_json::to_vec(&Json { version, address, protocol: PROTOCOL })?,
            Reply::Protobuf => {
                let mut result = BootstrapResult::new();
                result.version = TASK_API_VERSION;
                result.address = address.to_owned();
                result.protocol = PROTOCOL.to_owned();
                result.write_to_bytes()?
            }
        })
    }
}

/// Makes one [`Params`] of stdin, flags and environment.
pub fn parse(stdin: &[u8], flags: &Flags, environment: Environment) -> Result<Params> {
    let params = match parse_protobuf(stdin, flags)? {
        Some(params) => Params {
            id: params.instance_id,
            namespace: params.namespace,
            ttrpc_address: params.containerd_ttrpc_address,
            grpc_address: params.containerd_grpc_address,
            socket_dir: params.socket_dir.filter(|dir| !dir.is_empty()),
            level: level(nearest_log_level(params.log_level.value()), flags.debug),
            options: runtime_options(params.extensions.iter().filter_map(|extension| extension.value.as_ref()), flags)?,
            reply: Reply::Protobuf,
        },
        None => Params {
            id: flags.id.clone(),
            namespace: flags.namespace.clone(),
            ttrpc_address: environment.ttrpc_address,
            grpc_address: if flags.address.is_empty() { environment.grpc_address } else { flags.address.clone() },
            socket_dir: None,
            level: level(LogLevel::LOG_LEVEL_INFO, flags.debug),
            options: runtime_options(parse_any(stdin)?.as_ref().into_iter(), flags)?,
            reply: reply(environment.max_shim_version.as_deref())?,
        },
    };
    if params.ttrpc_address.is_empty() {
        bail!("containerd named no ttrpc address for events (TTRPC_ADDRESS or the bootstrap parameters)");
    }
    Ok(params)
}

/// Decodes [`BootstrapParams`], or finds that stdin holds the older form (an `Any` with runtime options, or nothing).
fn parse_protobuf(stdin: &[u8], flags: &Flags) -> Result<Option<BootstrapParams>> {
    if stdin.is_empty() {
        return Ok(None);
    }
    let Ok(params) = BootstrapParams::parse_from_bytes(stdin) else {
        return Ok(None);
    };
    if params.instance_id == flags.id && params.namespace == flags.namespace {
        return Ok(Some(params));
    }
    // An Any decodes as well: its type URL arrives as the instance id, its value as the namespace, and nothing else.
    let mut any = BootstrapParams::new();
    any.instance_id = params.instance_id.clone();
    any.namespace = params.namespace.clone();
    if params == any {
        return Ok(None);
    }
    bail!(
        "the bootstrap parameters are for {}/{}, the command line says {}/{}",
        params.namespace,
        params.instance_id,
        flags.namespace,
        flags.id
    );
}

/// What containerd up to 2.2 writes to stdin.
fn parse_any(stdin: &[u8]) -> Result<Option<Any>> {
    if stdin.is_empty() {
        return Ok(None);
    }
    let any = Any::parse_from_bytes(stdin).context("decode stdin: neither bootstrap parameters nor runtime options")?;
    Ok(Some(any))
}

/// The runtime options among the extensions, or none: other extensions are for other programs.
fn runtime_options<'a>(mut extensions: impl Iterator<Item = &'a Any>, flags: &Flags) -> Result<Options> {
    let any = extensions.find(|any| options::are_options(&any.type_url));
    options::parse(any).with_context(|| format!("container {}", flags.id))
}

fn reply(max_shim_version: Option<&str>) -> Result<Reply> {
    let Some(text) = max_shim_version else {
        return Ok(Reply::Address);
    };
    match text.trim().parse::<i32>() {
        // Below 2 there is no JSON form; a bare address means version 2 to everyone.
        Ok(..2) => Ok(Reply::Address),
        Ok(version) => Ok(Reply::Json { version: version.min(TASK_API_VERSION) }),
        Err(_) => bail!("MAX_SHIM_VERSION is not a number: {text:?}"),
    }
}

fn level(wire: LogLevel, debug: bool) -> LevelFilter {
    let level = match wire {
        LogLevel::LOG_LEVEL_TRACE => LevelFilter::Trace,
        LogLevel::LOG_LEVEL_DEBUG => LevelFilter::Debug,
        LogLevel::LOG_LEVEL_INFO => LevelFilter::Info,
        LogLevel::LOG_LEVEL_WARN => LevelFilter::Warn,
        LogLevel::LOG_LEVEL_ERROR | LogLevel::LOG_LEVEL_FATAL | LogLevel::LOG_LEVEL_PANIC => LevelFilter::Error,
    };
    if debug { level.max(LevelFilter::Debug) } else { level }
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::Extension;
    use protobuf::{EnumOrUnknown, MessageField};

    fn flags() -> Flags {
        Flags {
            id: "box".into(),
            namespace: "default".into(),
            address: "/run/containerd/containerd.sock".into(),
            ..Default::default()
        }
    }

    fn environment(max: Option<&str>) -> Environment {
        Environment {
            ttrpc_address: "/run/containerd/containerd.sock.ttrpc".into(),
            grpc_address: "/run/other.sock".into(),
            max_shim_version: max.map(Into::into),
        }
    }

    fn params() -> BootstrapParams {
        let mut params = BootstrapParams::new();
        params.instance_id = "box".into();
        params.namespace = "default".into();
        params.containerd_ttrpc_address = "/c.ttrpc".into();
        params.containerd_grpc_address = "/c".into();
        params.socket_dir = Some("/run/s".into());
        params.log_level = EnumOrUnknown::from_i32(-5);
        params
    }

    #[test]
    fn bootstrap_params_are_taken_as_they_are() {
        let parsed = parse(&params().write_to_bytes().unwrap(), &flags(), environment(Some("2"))).unwrap();
        assert_eq!(
            parsed,
            Params {
                id: "box".into(),
                namespace: "default".into(),
                ttrpc_address: "/c.ttrpc".into(),
                grpc_address: "/c".into(),
                socket_dir: Some("/run/s".into()),
                level: LevelFilter::Debug,
                options: Options::default(),
                reply: Reply::Protobuf,
            }
        );
    }

    #[test]
    fn runtime_options_are_found_among_the_extensions() {
        let extension = |type_url: &str, value: &[u8]| Extension {
            value: MessageField::some(Any { type_url: type_url.into(), value: value.into(), ..Default::default() }),
            ..Default::default()
        };
        let mut params = params();
        params.extensions.push(extension("containerd.io/nri.v1.PluginConfig", b"\xff"));
        params.extensions.push(Extension::new());
        params.extensions.push(extension("containerd.runc.v1.Options", b"\x1a\x02/s"));
        let parsed = parse(&params.write_to_bytes().unwrap(), &flags(), environment(None)).unwrap();
        assert_eq!(parsed.options.shim_cgroup.as_deref(), Some("/s"));
        params.extensions.push(extension("runtimeoptions.v1.Options", b"\x1a\x01="));
        params.extensions.swap_remove(2);
        let error = format!("{:#}", parse(&params.write_to_bytes().unwrap(), &flags(), environment(None)).unwrap_err());
        assert!(error.contains("container box") && error.contains("config_body"), "{error}");
    }

    #[test]
    fn an_empty_socket_dir_is_none() {
        let mut params = params();
        params.socket_dir = Some(String::new());
        let parsed = parse(&params.write_to_bytes().unwrap(), &flags(), environment(None)).unwrap();
        assert_eq!(parsed.socket_dir, None);
    }

    #[test]
    fn bootstrap_params_of_another_container_are_refused() {
        let mut other = params();
        other.instance_id = "other".into();
        let error = parse(&other.write_to_bytes().unwrap(), &flags(), environment(None)).unwrap_err().to_string();
        assert!(error.contains("default/other") && error.contains("default/box"), "{error}");
    }

    #[test]
    fn an_any_with_runtime_options_is_the_older_form() {
        for (value, cgroup) in [(&b""[..], None), (b"\x1a\x04/run", Some("/run"))] {
            let mut any = Any::new();
            any.type_url = "containerd.runc.v1.Options".into();
            any.value = value.to_vec();
            let parsed = parse(&any.write_to_bytes().unwrap(), &flags(), environment(Some("2"))).unwrap();
            assert_eq!(parsed.id, "box");
            assert_eq!(parsed.reply, Reply::Json { version: 2 });
            assert_eq!(parsed.options.shim_cgroup.as_deref(), cgroup);
        }
        // Of another type: for Create to refuse.
        let other = Any { type_url: "example.Options".into(), value: vec![0xff], ..Default::default() };
        assert!(parse(&other.write_to_bytes().unwrap(), &flags(), environment(None)).is_ok());
        assert!(parse(b"\xff", &flags(), environment(None)).is_err());
    }

    #[test]
    fn the_older_forms_choose_their_reply_by_the_environment() {
        let reply = |max| parse(&[], &flags(), environment(max)).unwrap().reply;
        assert_eq!(reply(None), Reply::Address);
        assert_eq!(reply(Some("1")), Reply::Address);
        assert_eq!(reply(Some("2")), Reply::Json { version: 2 });
        assert_eq!(reply(Some("3")), Reply::Json { version: 3 });
        assert_eq!(reply(Some("9")), Reply::Json { version: 3 });
        assert!(parse(&[], &flags(), environment(Some("two"))).is_err());
    }

    #[test]
    fn the_older_forms_take_addresses_from_flags_and_environment() {
        let parsed = parse(&[], &flags(), environment(None)).unwrap();
        assert_eq!(parsed.grpc_address, "/run/containerd/containerd.sock");
        assert_eq!(parsed.ttrpc_address, "/run/containerd/containerd.sock.ttrpc");
        let bare = Flags { address: String::new(), debug: true, ..flags() };
        let parsed = parse(&[], &bare, environment(None)).unwrap();
        assert_eq!(parsed.grpc_address, "/run/other.sock");
        assert_eq!(parsed.level, LevelFilter::Debug);
    }

    #[test]
    fn without_an_address_for_events_there_is_no_start() {
        assert!(parse(&[], &flags(), Environment::default()).is_err());
        let mut params = params();
        params.containerd_ttrpc_address.clear();
        assert!(parse(&params.write_to_bytes().unwrap(), &flags(), environment(None)).is_err());
    }

    #[test]
    fn replies_are_in_the_three_forms() {
        let address = "unix:///run/containerd/s/abc";
        assert_eq!(Reply::Address.encode(address).unwrap(), address.as_bytes());
        assert_eq!(
            String::from_utf8(Reply::Json { version: 2 }.encode(address).unwrap()).unwrap(),
            r#"{"version":2,"address":"unix:///run/containerd/s/abc","protocol":"ttrpc"}"#
        );
        let result = BootstrapResult::parse_from_bytes(&Reply::Protobuf.encode(address).unwrap()).unwrap();
        assert_eq!((result.version, result.address.as_str(), result.protocol.as_str()), (3, address, "ttrpc"));
    }
}
