//! Images whose modules are layers as they are, which containerd does not unpack: each form that is in use, and some that
//! can't be run.
use crate::archive::{self, Blobs, ORDINARY_CONFIG, platform};
use crate::{programs, wasm};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

const WASM: &str = "application/wasm";
const RUNWASI: &str = "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm";
const CONTENT: &str = "application/vnd.wasm.content.layer.v1+wasm";
const SPIN: &str = "application/vnd.fermyon.spin.application.v1+config";

/// An artifact before it is packed.
pub struct Artifact {
    name: &'static str,
    config_type: &'static str,
    config: Value,
    os: &'static str,
    layers: Vec<Layer>,
    annotations: Value,
    /// Whether its layers are known by digests of SHA-512.
    by_sha512: bool,
    /// Whether it is one of an index, with something else for the host's platform.
    indexed: bool,
}

struct Layer {
    media_type: &'static str,
    title: &'static str,
    content: Vec<u8>,
}

impl Artifact {
    /// The last part of the image's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The full reference containerd knows it by after `ctr image import --all-platforms --no-unpack`.
    pub fn reference(&self) -> String {
        archive::reference(self.name)
    }

    /// Writes it as an OCI archive into the folder `out`, named `<name>.tar`, and returns its path.
    pub fn save(&self, out: &Path) -> Result<PathBuf> {
        let bytes = self.pack().with_context(|| format!("packing the artifact {}", self.name))?;
        archive::save(out, self.name, &bytes)
    }

    fn pack(&self) -> Result<Vec<u8>> {
        let mut blobs = Blobs::default();
        let config = blobs.add(self.config_type, serde_json::to_vec(&self.config)?);
        let mut layers = Vec::new();
        for layer in &self.layers {
            let content = layer.content.clone();
            let mut descriptor = match self.by_sha512 {
                true => blobs.add_by_sha512(layer.media_type, content),
                false => blobs.add(layer.media_type, content),
            };
            if !layer.title.is_empty() {
                descriptor["annotations"] = json!({"org.opencontainers.image.title": layer.title});
            }
            layers.push(descriptor);
        }
        let mut manifest = blobs.manifest(&config, &layers.iter().collect::<Vec<_>>(), &self.annotations)?;
        manifest["platform"] = platform(self.os);
        if self.indexed {
            let other = blobs.add(WASM, b"not a module".to_vec());
            let mut other = blobs.manifest(&config, &[&other], &json!({}))?;
            other["platform"] = platform("linux");
            manifest = blobs.index(&[other, manifest])?;
        }
        blobs.archive(&self.reference(), manifest, &[])
    }

    fn by_sha512(self) -> Artifact {
        Artifact { by_sha512: true, ..self }
    }

    fn indexed(self) -> Artifact {
        Artifact { indexed: true, ..self }
    }

    fn annotated(mut self, key: &str, value: &str) -> Artifact {
        self.annotations[key] = json!(value);
        self
    }
}

fn layer(media_type: &'static str, title: &'static str, content: impl Into<Vec<u8>>) -> Layer {
    Layer { media_type, title, content: content.into() }
}

/// With the config of an ordinary image, and so for every client; `entrypoint` may be none.
fn ordinary(name: &'static str, os: &'static str, entrypoint: &[&str], layers: Vec<Layer>) -> Artifact {
    let mut config = platform(os);
    config["created"] = json!("1970-01-01T00:00:00Z");
    config["config"] = json!({"Entrypoint": entrypoint, "WorkingDir": "/"});
    config["rootfs"] = json!({"type": "layers", "diff_ids": []});
    Artifact { config, ..artifact(name, ORDINARY_CONFIG, os, layers) }
}

/// With a config of another type.
fn artifact(name: &'static str, config_type: &'static str, os: &'static str, layers: Vec<Layer>) -> Artifact {
    let (config, annotations) = (platform(os), json!({}));
    Artifact { name, config_type, config, os, layers, annotations, by_sha512: false, indexed: false }
}

/// Builds every artifact. Needs clang with wasi-libc (see `programs.rs`).
pub fn artifacts() -> Result<Vec<Artifact>> {
    let core = programs::CORE_MODULE.get()?;
    let component = wasm::component(&core)?;
    let function = wasm::case("function.wasm")?;
    let cncf = "application/vnd.wasm.config.v0+json";
    Ok(vec![
        // Runs with any client: the form that runwasi has documented.
        ordinary("raw-layer", "wasip1", &[], vec![layer(WASM, "", core.clone())]),
        ordinary("runwasi-layer", "linux", &["/probe.wasm"], vec![layer(RUNWASI, "probe.wasm", core.clone())]),
        // With a config that no other has.
        ordinary("pod-layer", "linux", &["/pod.wasm"], vec![layer(RUNWASI, "", core.clone())]),
        // The Wasm OCI artifact layout of the CNCF.
        artifact("cncf-module", cncf, "wasip1", vec![layer(WASM, "", core.clone())]),
        artifact("cncf-component", cncf, "wasip2", vec![layer(WASM, "probe.wasm", component)]),
        artifact(
            "wasm-to-oci",
            "application/vnd.wasm.config.v1+json",
            "linux",
            vec![layer(CONTENT, "probe.wasm", core.clone())],
        ),
        ordinary(
            "two-layers",
            "linux",
            &["/probe.wasm"],
            vec![layer(WASM, "probe.wasm", core.clone()), layer(WASM, "function.wasm", function.clone())],
        ),
        artifact("sha512-layer", cncf, "wasip1", vec![layer(WASM, "", core.clone())]).by_sha512(),
        artifact("in-an-index", cncf, "wasip1", vec![layer(WASM, "", core.clone())]).indexed(),
        // One prints the name that it is called by.
        artifact("name-with-title", cncf, "wasip1", vec![layer(WASM, "printer.wasm", wasm::case("name.wasm")?)]),
        artifact("name-without-title", cncf, "wasip1", vec![layer(WASM, "", wasm::case("name.wasm")?)]),
        // Modules of their own, which nothing has compiled yet.
        artifact("ahead-layer", cncf, "wasip1", vec![layer(WASM, "ahead.wasm", wasm::labelled("ahead of time")?)]),
        artifact("watched-layer", cncf, "wasip1", vec![layer(WASM, "watched.wasm", wasm::labelled("watched")?)]),
        // What can't be run.
        ordinary("not-wasm", "linux", &["/probe.wasm"], vec![layer(WASM, "", "not a module")]),
        artifact("unknown-config", "application/x-unknown", "wasip1", vec![layer(WASM, "", function.clone())]),
        artifact("spin", SPIN, "wasi", vec![layer(CONTENT, "", function.clone()), layer(SPIN, "", "{}")]),
        artifact("huge-manifest", cncf, "wasip1", vec![layer(WASM, "", function.clone())])
            .annotated("padding", &"x".repeat(5 << 20)),
        // Nothing to run, but what the image says.
        ordinary("named-wasm", "linux", &["/missing"], vec![]).annotated("run.oci.handler", "wasm"),
        ordinary("named-badly", "linux", &["/missing"], vec![]).annotated("run.oci.handler", "vm"),
        ordinary("wasm-platform", "wasip1", &["/missing"], vec![]),
        // Its layer is for tests to take away or to change.
        ordinary("broken", "linux", &["/a.wasm"], vec![layer(WASM, "", wasm::labelled("broken")?)]),
        ordinary("missing", "linux", &["/a.wasm"], vec![layer(WASM, "", "not there")]),
    ])
}
