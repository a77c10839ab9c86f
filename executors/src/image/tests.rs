use std::sync::atomic::Ordering;

use serde_json::{Value, json};

use super::testing::Memory;
use super::*;
use crate::Kind;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const ORDINARY: &str = "application/vnd.oci.image.config.v1+json";
const CNCF: &str = "application/vnd.wasm.config.v0+json";
const WASM: &str = "application/wasm";

/// An image with a config of this type and layers of these types and titles.
fn image(config: &str, layers: &[(&str, &str)]) -> Memory {
    let mut store = Memory::default();
    let manifest = manifest(&mut store, config, layers);
    store.target(&manifest)
}

fn manifest(store: &mut Memory, config: &str, layers: &[(&str, &str)]) -> Value {
    let config = store.document(config, &json!({"os": "wasip1", "architecture": "wasm"}));
    let layers: Vec<Value> = layers
        .iter()
        .map(|(media_type, title)| {
            let mut layer = store.blob(media_type, format!("\0asm{title}"));
            if !title.is_empty() {
                layer["annotations"] = json!({"org.opencontainers.image.title": title});
            }
            layer
        })
        .collect();
    store.document(MANIFEST, &json!({"schemaVersion": 2, "config": config, "layers": layers}))
}

/// The name of the module, and the function, that an entrypoint means.
fn module(store: &Memory, entrypoint: &str) -> Result<Option<(String, Option<String>)>> {
    let Some(image) = Image::of(store)? else { return Ok(None) };
    Ok(image.module(store, entrypoint)?.map(|(module, function)| (module.name().to_owned(), function)))
}

fn refused(store: &Memory, kind: Kind, words: &str) {
    let error = module(store, "/a.wasm").unwrap_err();
    assert!(error.kind() == kind && error.to_string().contains(words), "{error:?}");
}

#[test]
fn every_form_of_a_module_is_known() {
    for (config, layer) in [
        (CNCF, WASM),
        (ORDINARY, WASM),
        (ORDINARY, "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm"),
        ("application/vnd.wasm.config.v1+json", "application/vnd.wasm.content.layer.v1+wasm"),
        ("application/vnd.oci.empty.v1+json", WASM),
        ("application/vnd.unknown.config.v1+json", WASM),
    ] {
        let store = image(config, &[(layer, "")]);
        assert_eq!(module(&store, "").unwrap(), Some(("module.wasm".into(), None)), "{config} {layer}");
        assert_eq!(module(&store, "/a.wasm#f").unwrap(), Some(("module.wasm".into(), Some("f".into()))));
    }
    assert_eq!(module(&image(ORDINARY, &[("application/vnd.oci.image.layer.v1.tar", "")]), "a").unwrap(), None);
}

#[test]
fn of_several_modules_the_title_decides() {
    let store = image(CNCF, &[(WASM, "a.wasm"), (WASM, "b.wasm"), (WASM, "b#c")]);
    for (entrypoint, name, function) in [
        ("/a.wasm", "a.wasm", None),
        ("b.wasm#f", "b.wasm", Some("f")),
        ("./b.wasm", "b.wasm", None),
        ("b#c", "b#c", None),
        ("b#c#d", "b#c", Some("d")),
    ] {
        let expected = Some((name.to_owned(), function.map(str::to_owned)));
        assert_eq!(module(&store, entrypoint).unwrap(), expected, "{entrypoint}");
    }
    let error = module(&store, "/c.wasm").unwrap_err();
    assert_eq!(error.kind(), Kind::InvalidArgument);
    assert!(error.to_string().contains("a.wasm, b.wasm"), "{error}");
    refused(&image(CNCF, &[(WASM, "a.wasm"), (WASM, "a.wasm")]), Kind::InvalidArgument, "2 WebAssembly layers");
    // What is no name is none.
    let store = image(CNCF, &[(WASM, "a\nb")]);
    assert_eq!(module(&store, "").unwrap(), Some(("module.wasm".into(), None)));
}

#[test]
fn what_cannot_be_run_is_refused_by_name() {
    let spin = "application/vnd.fermyon.spin.application.v1+config";
    refused(&image(spin, &[("application/vnd.wasm.content.layer.v1+wasm", "")]), Kind::Unimplemented, "Spin");
    refused(&image(ORDINARY, &[(WASM, ""), (spin, "")]), Kind::Unimplemented, spin);
    refused(&image("application/x-unknown", &[(WASM, "")]), Kind::InvalidArgument, "application/x-unknown");
}

#[test]
fn an_index_is_followed_to_what_is_for_us() {
    let platform = |os: &str, architecture: &str| json!({"os": os, "architecture": architecture});
    let mut store = Memory::default();
    let host = if cfg!(target_arch = "x86_64") { "amd64" } else { "arm64" };
    let of = |store: &mut Memory, title: &str, platform: Value| {
        let mut manifest = manifest(store, CNCF, &[(WASM, title)]);
        manifest["platform"] = platform;
        manifest
    };
    let others = of(&mut store, "other", platform("linux", "s390x"));
    let hosts = of(&mut store, "host", platform("linux", host));
    let missing = of(&mut store, "missing", platform("wasi", "wasm"));
    let wasm = of(&mut store, "wasm", platform("wasip2", "wasm"));
    store.replace(&missing, None);
    let all = store.document(INDEX, &json!({"manifests": [others, hosts, missing, wasm]}));
    let store = store.target(&all);
    assert_eq!(module(&store, "").unwrap().unwrap().0, "wasm");
    // The missing one was looked for.
    assert_eq!(store.reads.load(Ordering::Relaxed), 3);
    let mut store = store;
    store.replace(&wasm, None);
    assert_eq!(module(&store, "").unwrap().unwrap().0, "host");
    let only = store.document(INDEX, &json!({"manifests": [missing]}));
    let mut store = store.target(&only);
    refused(&store, Kind::NotFound, missing["digest"].as_str().unwrap());
    let none = store.document(INDEX, &json!({"manifests": [others]}));
    assert_eq!(module(&store.target(&none), "").unwrap(), None);
}

#[test]
fn an_index_does_not_lead_far() {
    let mut store = Memory::default();
    let mut inner = manifest(&mut store, CNCF, &[(WASM, "")]);
    for _ in 0..4 {
        inner = store.document(INDEX, &json!({"manifests": [inner]}));
    }
    refused(&store.target(&inner), Kind::InvalidArgument, "deep");
    let mut store = Memory::default();
    let missing = |n: u32| json!({"mediaType": MANIFEST, "digest": format!("sha256:{n:064x}"), "size": 2});
    let many = store.document(INDEX, &json!({"manifests": (0..1000).map(missing).collect::<Vec<_>>()}));
    let store = store.target(&many);
    refused(&store, Kind::InvalidArgument, "more than 32");
    assert_eq!(store.reads.load(Ordering::Relaxed), 32);
}

#[test]
fn content_is_what_its_descriptor_says() {
    let config = |store: &mut Memory| store.document(CNCF, &json!({}));
    let mut store = Memory::default();
    let (config, layer) = (config(&mut store), store.blob(WASM, "\0asm"));
    let manifest = store.document(MANIFEST, &json!({"config": config, "layers": [layer]}));
    let mut store = store.target(&manifest);
    let read = |store: &Memory| Image::of(store)?.unwrap().module(store, "")?.unwrap().0.read().map(drop);
    read(&store).unwrap();
    for (content, words) in [("\0asx", "its content has the digest"), ("\0as", "3 bytes long"), ("\0asm\0", "longer")] {
        store.replace(&layer, Some(content.as_bytes()));
        let error = read(&store).unwrap_err();
        assert!(error.kind() == Kind::InvalidArgument && error.to_string().contains(words), "{error}");
    }
    store.replace(&layer, None);
    assert_eq!(read(&store).unwrap_err().kind(), Kind::NotFound);
    store.replace(&manifest, Some(b"{}"));
    refused(&store, Kind::InvalidArgument, "bytes long");
    store.record.size = 10 << 20;
    refused(&store, Kind::InvalidArgument, "10485760 bytes");
}

#[test]
fn content_is_compared_by_sha512_too() {
    use sha2::{Digest as _, Sha512};
    let mut store = Memory::default();
    let config = store.document(CNCF, &json!({}));
    let layer = json!({"mediaType": WASM, "digest": format!("sha512:{:x}", Sha512::digest("\0asm")), "size": 4});
    let manifest = store.document(MANIFEST, &json!({"config": config, "layers": [layer]}));
    let mut store = store.target(&manifest);
    let read = |store: &Memory| Image::of(store)?.unwrap().module(store, "")?.unwrap().0.read().map(drop);
    store.replace(&layer, Some(b"\0asm"));
    read(&store).unwrap();
    store.replace(&layer, Some(b"\0asx"));
    let error = read(&store).unwrap_err().to_string();
    assert!(error.contains("its content has the digest sha512:"), "{error}");
}

#[test]
fn what_is_too_large_is_not_read() {
    let mut store = Memory::default();
    let (config, mut layer) = (store.document(CNCF, &json!({})), store.blob(WASM, "\0asm"));
    layer["size"] = json!((512 << 20) + 1);
    let manifest = store.document(MANIFEST, &json!({"config": config, "layers": [layer]}));
    let store = store.target(&manifest);
    let error =
        Image::of(&store).unwrap().unwrap().module(&store, "").unwrap().unwrap().0.read().map(drop).unwrap_err();
    assert!(error.to_string().contains("536870913 bytes, and no more than 536870912 are read"), "{error}");
    let mut store = Memory::default();
    let (mut config, layer) = (store.document(ORDINARY, &json!({})), store.blob(WASM, "\0asm"));
    config["size"] = json!((4 << 20) + 1);
    let manifest = store.document(MANIFEST, &json!({"config": config, "layers": [layer]}));
    refused(&store.target(&manifest), Kind::InvalidArgument, "4194305 bytes, and no more than 4194304 are read");
}

#[test]
fn documents_that_are_none() {
    for (text, words) in [
        ("", "not a document"),
        ("[]", "not a document"),
        ("{}", "neither"),
        (r#"{"manifests": [], "layers": []}"#, "both"),
        (r#"{"config": {"digest": "md5:0", "size": 0}}"#, "neither sha256 nor sha512"),
        (r#"{"manifests": [{"digest": "sha256:0", "size": -1}]}"#, "not a document"),
    ] {
        let mut store = Memory::default();
        let target = store.blob(MANIFEST, text);
        refused(&store.target(&target), Kind::InvalidArgument, words);
    }
}

#[test]
fn annotations_come_from_the_inside_out() {
    let mut store = Memory::default();
    let settings = json!({"config": {"Labels": {"a": "config", "b": "config", "c": "config"}}, "os": "linux"});
    let config = store.document(ORDINARY, &settings);
    let manifest = json!({"config": config, "layers": null, "annotations": {"a": "manifest"}});
    let mut manifest = store.document(MANIFEST, &manifest);
    manifest["annotations"] = json!({"b": "descriptor"});
    let index = store.document(INDEX, &json!({"manifests": [manifest], "annotations": {"b": "index"}}));
    let mut store = store.target(&index);
    store.record.labels = [("c".into(), "record".into()), ("d".into(), "record".into())].into();
    let image = Image::of(&store).unwrap().unwrap();
    let values = ["a", "b", "c", "d", "e"].map(|key| image.annotation(key));
    assert_eq!(values, [Some("manifest"), Some("descriptor"), Some("config"), Some("record"), None]);
    assert_eq!(image.wasm_platform(), None);
}

#[test]
fn a_chain_of_layers_has_one_name() {
    let chain = |diff_ids: Value| {
        let settings = json!({"rootfs": {"type": "layers", "diff_ids": diff_ids}}).to_string();
        document::Settings::parse(settings.as_bytes()).unwrap().chain()
    };
    let (a, b) = (format!("sha256:{}", "a".repeat(64)), format!("sha256:{}", "b".repeat(64)));
    assert_eq!((chain(json!([])), chain(Value::Null)), (None, None));
    assert_eq!(chain(json!([a])), Some(a.clone()));
    let two = content::sha256(format!("{a} {b}").as_bytes());
    assert_eq!(chain(json!([a, b])), Some(two.clone()));
    assert_eq!(chain(json!([a, b, a])), Some(content::sha256(format!("{two} {a}").as_bytes())));
}

#[test]
fn of_images_with_one_config_the_one_that_was_asked_for_counts() {
    let mut store = Memory::default();
    let (one, two) = (manifest(&mut store, CNCF, &[(WASM, "one")]), manifest(&mut store, CNCF, &[(WASM, "two")]));
    let config = store.document(CNCF, &json!({"os": "wasi", "architecture": "wasm"}));
    let layer = store.blob(WASM, "\0asm");
    let third = store.document(MANIFEST, &json!({"config": config, "layers": [layer]}));
    let mut store = store.target(&one);
    for (asked_for, name) in [(&two, "two"), (&third, "one"), (&one, "one")] {
        let (target, size) = (asked_for["digest"].as_str().unwrap().to_owned(), asked_for["size"].as_u64().unwrap());
        store.asked_for = Some(ImageRecord { name: "asked for".into(), target, size, ..Default::default() });
        assert_eq!(module(&store, "").unwrap().unwrap().0, name);
    }
}
