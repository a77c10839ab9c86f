//! The options in TOML, with the names that runc's have in containerd's configuration, so that a handler's table can be
//! copied from one runtime to the other.

use super::{Raw, generic, invalid};
use anyhow::anyhow;
use executors::{Error, Result, WasmOptions};
use toml::de::{DeTable, DeValue};

/// Sets an option from its value; the error says what the value should be.
type Set = fn(&mut Raw, &DeValue) -> Result<(), &'static str>;

const KEYS: [(&str, Set); 13] = [
    ("BinaryName", |raw, value| text(value, &mut raw.runc.binary_name)),
    ("CriuImagePath", |raw, value| text(value, &mut raw.runc.criu_image_path)),
    ("CriuPath", |raw, value| text(value, &mut raw.criu_path)),
    ("CriuWorkPath", |raw, value| text(value, &mut raw.runc.criu_work_path)),
    ("IoGid", |raw, value| number(value, &mut raw.runc.io_gid)),
    ("IoUid", |raw, value| number(value, &mut raw.runc.io_uid)),
    ("NoNewKeyring", |raw, value| flag(value, &mut raw.runc.no_new_keyring)),
    ("NoPivotRoot", |raw, value| flag(value, &mut raw.runc.no_pivot_root)),
    ("Root", |raw, value| text(value, &mut raw.runc.root)),
    ("ShimCgroup", |raw, value| text(value, &mut raw.runc.shim_cgroup)),
    ("SystemdCgroup", |raw, value| flag(value, &mut raw.runc.systemd_cgroup)),
    ("TaskApiAddress", |raw, value| text(value, &mut raw.runc.task_api_address)),
    ("TaskApiVersion", |raw, value| number(value, &mut raw.runc.task_api_version)),
];

/// Reads the table. The CRI plugin sends the whole of a handler's options, so `TypeUrl` and an empty `ConfigPath` may be
/// in it too.
///
/// # Errors
/// InvalidArgument for what is no TOML, an unknown key or a value of the wrong type; each by its name.
pub(super) fn parse(text: &str) -> Result<Raw> {
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        invalid(anyhow!("line {line}: {}", error.message()))
    })?;
    let mut raw = Raw::default();
    for (key, value) in table.get_ref() {
        let (key, value) = (key.get_ref().as_ref(), value.get_ref());
        let set = match (key, value) {
            ("TypeUrl", DeValue::String(type_url)) => {
                generic::check_type(type_url)?;
                continue;
            }
            ("ConfigPath", DeValue::String(path)) if path.is_empty() => continue,
            ("ConfigPath", DeValue::String(_)) => {
                return Err(invalid(anyhow!("ConfigPath must not be in the configuration itself")));
            }
            ("TypeUrl" | "ConfigPath", value) => return Err(wrong(key, value, "string")),
            _ if WasmOptions::names().any(|name| name == key) => {
                let value = match value {
                    DeValue::Boolean(flag) => flag.to_string(),
                    value => value.as_str().ok_or_else(|| wrong(key, value, "string or boolean"))?.to_owned(),
                };
                raw.wasm.set(key, &value)?;
                continue;
            }
            _ => KEYS.iter().find(|(name, _)| *name == key).map(|(_, set)| set),
        };
        let Some(set) = set else {
            let known: Vec<&str> = KEYS.iter().map(|(name, _)| *name).chain(WasmOptions::names()).collect();
            return Err(invalid(anyhow!("unknown option {key:?}; known: {}", known.join(", "))));
        };
        set(&mut raw, value).map_err(|wanted| wrong(key, value, wanted))?;
    }
    Ok(raw)
}

fn wrong(key: &str, value: &DeValue, wanted: &str) -> Error {
    invalid(anyhow!("{key}: {} given, {wanted} expected", value.type_str()))
}

fn flag(value: &DeValue, field: &mut bool) -> Result<(), &'static str> {
    *field = value.as_bool().ok_or("boolean")?;
    Ok(())
}

fn number(value: &DeValue, field: &mut u32) -> Result<(), &'static str> {
    const WANTED: &str = "integer from 0 to 4294967295";
    let integer = value.as_integer().ok_or(WANTED)?;
    *field = u32::from_str_radix(integer.as_str(), integer.radix()).map_err(|_| WANTED)?;
    Ok(())
}

fn text(value: &DeValue, field: &mut String) -> Result<(), &'static str> {
    *field = value.as_str().ok_or("string")?.to_owned();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use executors::Kind;

    fn error(text: &str) -> String {
        let error = parse(text).err().unwrap();
        assert_eq!(error.kind(), Kind::InvalidArgument, "{error}");
        error.to_string()
    }

    #[test]
    fn the_options_have_runc_s_names() {
        let raw = parse(
            r#"
            # As in a handler's table.
            TypeUrl = ""
            ConfigPath = ""
            BinaryName = ""
            SystemdCgroup = true
            IoUid = 1_000
            IoGid = 0x10
            NoPivotRoot = true
            NoNewKeyring = true
            ShimCgroup = "/shims"
            Root = "/run/r"
            CriuPath = "/c"
            CriuImagePath = "/i"
            CriuWorkPath = "/w"
            TaskApiAddress = "ttrpc+unix:///a"
            TaskApiVersion = 3
            "#,
        )
        .unwrap();
        let runc = &raw.runc;
        assert!(runc.systemd_cgroup && runc.no_pivot_root && runc.no_new_keyring);
        assert_eq!((runc.io_uid, runc.io_gid, runc.task_api_version), (1000, 16, 3));
        assert_eq!((runc.shim_cgroup.as_str(), runc.root.as_str()), ("/shims", "/run/r"));
        assert_eq!((runc.criu_image_path.as_str(), runc.criu_work_path.as_str()), ("/i", "/w"));
        assert_eq!((raw.criu_path.as_str(), runc.task_api_address.as_str()), ("/c", "ttrpc+unix:///a"));
    }

    #[test]
    fn options_of_webassembly_are_texts_or_flags() {
        let raw = parse("WasmNetwork = \"none\"\nWasmWasi03 = false").unwrap();
        let mut expected = WasmOptions::default();
        expected.set("WasmNetwork", "none").unwrap();
        expected.set("WasmWasi03", "false").unwrap();
        assert_eq!(raw.wasm, expected);
        assert_eq!(error("WasmWasi03 = 1"), "WasmWasi03: integer given, string or boolean expected");
        assert!(error("WasmNetwork = \"all\"").contains("WasmNetwork: \"all\" given"));
        assert!(error("WasmNoise = true").contains("WasmNetwork"));
    }

    #[test]
    fn keys_are_sorted_and_there_once() {
        assert!(KEYS.is_sorted_by(|(a, _), (b, _)| a < b));
    }

    #[test]
    fn unknown_keys_and_wrong_types_are_refused_by_name() {
        assert!(error("SystemdCGroup = true").contains("\"SystemdCGroup\""));
        assert!(error("[runtimes.hybrid]\nIoUid = 1").contains("\"runtimes\""));
        assert_eq!(error("SystemdCgroup = \"true\""), "SystemdCgroup: string given, boolean expected");
        assert_eq!(error("NoPivotRoot = 1"), "NoPivotRoot: integer given, boolean expected");
        assert_eq!(error("ShimCgroup = [\"/a\"]"), "ShimCgroup: array given, string expected");
        assert_eq!(error("TypeUrl = 1"), "TypeUrl: integer given, string expected");
        for value in ["-1", "4294967296", "1.5", "true"] {
            let text = error(&format!("IoUid = {value}"));
            assert!(text.contains("IoUid") && text.contains("from 0 to 4294967295"), "{text}");
        }
        assert!(error("ConfigPath = \"/a\"").contains("ConfigPath"));
        assert!(error("TypeUrl = \"other\"").contains("\"other\""));
    }

    #[test]
    fn what_is_no_toml_is_refused_with_its_line() {
        assert!(error("IoUid = 1\nIoGid =").contains("line 2"), "{}", error("IoUid = 1\nIoGid ="));
        assert!(error("IoUid = 1\nIoUid = 2").contains("line 2"));
    }
}
