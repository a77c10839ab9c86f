//! `-v` and `-info`: what this binary is and what it can do (which the executors say).

use anyhow::{Context, Result};
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::well_known_types::any::Any;
use protobuf::{Message, MessageField};
use std::io::{self, IsTerminal, Read, Write};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit, where the build names it.
const REVISION: Option<&str> = option_env!("HYBRID_REVISION");

/// containerd's name for the OCI runtime specification's features structure, encoded as JSON.
const FEATURES_TYPE_URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The most that is read from stdin, in bytes.
const MAX_STDIN: u64 = 10 << 20;

/// `-v`: the version, in the lines of containerd's own shim.
pub fn print_version() -> Result<()> {
    let mut stdout = io::stdout().lock();
    let text = format!(
        "{}:\n  Version:  {VERSION}\n  Revision: {}\n\n",
        env!("CARGO_BIN_NAME"),
        REVISION.unwrap_or("unknown")
    );
    stdout.write_all(text.as_bytes()).context("write to stdout")
}

/// `-info`: a `RuntimeInfo` on stdout. Options on stdin are handed back as they came, as containerd's own shim does.
pub fn print_info() -> Result<()> {
    let stdin = io::stdin();
    let mut input = Vec::new();
    if !stdin.is_terminal() {
        stdin.lock().take(MAX_STDIN).read_to_end(&mut input).context("read the options from stdin")?;
    }
    let bytes = info(&input)?.write_to_bytes().context("encode the runtime info")?;
    io::stdout().lock().write_all(&bytes).context("write to stdout")
}

fn info(input: &[u8]) -> Result<RuntimeInfo> {
    let mut version = RuntimeVersion::new();
    version.version = VERSION.to_owned();
    version.revision = REVISION.unwrap_or_default().to_owned();
    let mut any = Any::new();
    any.type_url = FEATURES_TYPE_URL.to_owned();
    any.value = serde_json::to_vec(&executors::features())?;
    let mut info = RuntimeInfo::new();
    info.name = crate::RUNTIME.to_owned();
    info.version = MessageField::some(version);
    info.features = MessageField::some(any);
    if !input.is_empty() {
        info.options = MessageField::some(Any::parse_from_bytes(input).context("decode the options from stdin")?);
    }
    Ok(info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_info_carries_name_version_and_features() {
        let info = info(&[]).unwrap();
        assert_eq!(info.name, "io.containerd.hybrid.v1");
        assert_eq!(info.version.version, VERSION);
        assert!(info.options.is_none());
        assert_eq!(info.features.type_url, FEATURES_TYPE_URL);
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        assert_eq!(features, executors::features());
    }

    #[test]
    fn options_come_back_and_nonsense_is_refused() {
        let mut options = Any::new();
        options.type_url = "runtimeoptions.v1.Options".into();
        assert_eq!(info(&options.write_to_bytes().unwrap()).unwrap().options.unwrap(), options);
        assert!(info(b"\x0a\x7f").is_err());
    }
}
