//! `-info` and `-v`: what the binary says of itself, and what containerd reads from it.
use crate::harness::command::{output, raw_output};
use crate::harness::{Case, Runtime, Test};
use anyhow::{Context, Result, ensure};
use containerd_shim_protos::types::introspection::RuntimeInfo;
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use serde_json::{Value, json};
use std::process::Command;

pub const CASES: &[Case] = &[
    Case::new("info", |test| {
        if shim_of_containerd_1(test) {
            return Ok(());
        }
        // containerd calls it in no bundle, with neither id nor namespace.
        let info = info(test, b"")?;
        ensure!(info.name == test.runtime().name() && !info.version.version.is_empty(), "{info}");
        ensure!(info.options.is_none(), "{info}");
        let features = features(&info)?;
        ensure!(features["ociVersionMax"].is_string(), "{features}");
        // What the CRI plugin looks for: recursive read-only mounts.
        ensure!(features["mountOptions"].as_array().is_some_and(|list| list.contains(&json!("rro"))), "{features}");
        // runc says nothing of it before 1.2.
        let idmap = &features["linux"]["mountExtensions"]["idmap"]["enabled"];
        ensure!(idmap.is_boolean() || test.runtime() == Runtime::Runc, "{features}");
        ensure!(features["linux"]["namespaces"].as_array().is_some_and(|list| list.len() >= 6), "{features}");
        Ok(())
    }),
    Case::new("info_hands_options_back", |test| {
        if shim_of_containerd_1(test) {
            return Ok(());
        }
        let options = Any { type_url: "containerd.runc.v1.Options".to_owned(), ..Default::default() };
        let info = info(test, &options.write_to_bytes()?)?;
        ensure!(info.options.as_ref() == Some(&options), "{info}");
        Ok(())
    }),
    Case::new("inspect_runtime", |test| {
        if test.containerd.line.starts_with("1.") {
            // Such a containerd never asks.
            return Ok(());
        }
        let text = test.ctr(["plugins", "inspect-runtime", "--runtime", test.runtime().name()]).done()?.stdout;
        let shown: Value = serde_json::from_str(&text).context("parsing what ctr prints")?;
        ensure!(shown["Name"] == test.runtime().name(), "{shown}");
        let features = &shown["Features"];
        ensure!(features["mountOptions"].as_array().is_some_and(|list| list.contains(&json!("rro"))), "{shown}");
        if test.runtime() == Runtime::Hybrid {
            let said = self::features(&info(test, b"")?)?;
            ensure!(is_part(features, &said), "containerd has read something else than {said}: {shown}");
        }
        Ok(())
    }),
    Case::new("version", |test| {
        let output = output(Command::new(test.containerd.shim(test.runtime())).arg("-v"), b"")?.exits(0)?;
        ensure!(output.stdout.contains("Version:") && output.stderr.is_empty(), "{output}");
        Ok(())
    }),
];

/// Whether the shim under test is runc's of a containerd that had no `-info` yet.
fn shim_of_containerd_1(test: &Test) -> bool {
    test.runtime() == Runtime::Runc && test.containerd.line.starts_with("1.")
}

/// Whether all of `part` is in `whole`: ctr leaves out what is empty, and what is newer than itself.
fn is_part(part: &Value, whole: &Value) -> bool {
    match part {
        Value::Object(fields) => fields.iter().all(|(name, field)| is_part(field, &whole[name])),
        other => other == whole,
    }
}

fn info(test: &Test, stdin: &[u8]) -> Result<RuntimeInfo> {
    let mut command = Command::new(test.containerd.shim(test.runtime()));
    let answer = raw_output(command.arg("-info").current_dir("/"), stdin)?;
    RuntimeInfo::parse_from_bytes(&answer).context("decoding the answer of -info")
}

fn features(info: &RuntimeInfo) -> Result<Value> {
    let any = info.features.as_ref().context("the info has features")?;
    ensure!(any.type_url == "types.containerd.io/opencontainers/runtime-spec/1/features/Features", "{}", any.type_url);
    serde_json::from_slice(&any.value).context("parsing the features")
}
