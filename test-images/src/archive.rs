//! Packs an [`Image`] as an OCI image layout in a tar archive (OCI image spec 1.1, "image-layout"), which `docker load`
//! reads as well: as `docker save` does since 25.0, the archive also holds a `manifest.json` for the blobs in it.
use crate::{Image, tree::header};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256, Sha512};
use std::path::{Path, PathBuf};
use tar::EntryType;

/// The archive's bytes.
pub(crate) fn oci(image: &Image) -> Result<Vec<u8>> {
    let mut blobs = Blobs::default();
    let layer = blobs.add("application/vnd.oci.image.layer.v1.tar", image.tree.layer()?);
    let mut config = json!({
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": image.entrypoint,
            "Cmd": image.command,
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "WorkingDir": "/",
        },
        // The layer is not compressed, so the digest of its content is that of the blob.
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let for_whom = platform(image.os);
    for part in ["os", "architecture"] {
        config[part] = for_whom[part].clone();
    }
    let config = blobs.add(ORDINARY_CONFIG, serde_json::to_vec(&config)?);
    let mut manifest = blobs.manifest(&config, &[&layer], &json!({}))?;
    manifest["platform"] = for_whom;
    // Docker Engine's own image store knows no index.json.
    let path = |blob: &Value| blob["digest"].as_str().map(|digest| format!("blobs/{}", digest.replace(':', "/")));
    let for_docker = json!([{
        "Config": path(&config),
        "RepoTags": [image.reference()],
        "Layers": [path(&layer)],
    }]);
    blobs.archive(&image.reference(), manifest, &[("manifest.json", serde_json::to_vec(&for_docker)?)])
}

/// The config of an ordinary image.
pub(crate) const ORDINARY_CONFIG: &str = "application/vnd.oci.image.config.v1+json";

/// The reference that containerd knows an image by.
pub(crate) fn reference(name: &str) -> String {
    format!("localhost/hybrid/{name}:latest")
}

/// Writes an archive into the folder `out` and returns its path.
pub(crate) fn save(out: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = out.join(format!("{name}.tar"));
    std::fs::write(&path, bytes).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// The content of an archive: algorithm and digest in hexadecimal, as a path, and what has them.
#[derive(Default)]
pub(crate) struct Blobs(Vec<(String, Vec<u8>)>);

impl Blobs {
    /// Keeps `content` as a blob and returns its descriptor.
    pub fn add(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        self.add_by("sha256", &Sha256::digest(&content), media_type, content)
    }

    /// The same with a digest of SHA-512.
    pub fn add_by_sha512(&mut self, media_type: &str, content: Vec<u8>) -> Value {
        self.add_by("sha512", &Sha512::digest(&content), media_type, content)
    }

    fn add_by(&mut self, algorithm: &str, digest: &[u8], media_type: &str, content: Vec<u8>) -> Value {
        let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        let size = content.len();
        self.0.push((format!("{algorithm}/{digest}"), content));
        json!({"mediaType": media_type, "digest": format!("{algorithm}:{digest}"), "size": size})
    }

    /// Keeps a manifest and returns its descriptor.
    pub fn manifest(&mut self, config: &Value, layers: &[&Value], annotations: &Value) -> Result<Value> {
        const TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
        let mut manifest = json!({"schemaVersion": 2, "mediaType": TYPE, "config": config, "layers": layers});
        if annotations.as_object().is_some_and(|annotations| !annotations.is_empty()) {
            manifest["annotations"] = annotations.clone();
        }
        Ok(self.add(TYPE, serde_json::to_vec(&manifest)?))
    }

    /// Keeps an index of these manifests and returns its descriptor.
    pub fn index(&mut self, manifests: &[Value]) -> Result<Value> {
        let index = index(manifests);
        Ok(self.add(INDEX, serde_json::to_vec(&index)?))
    }

    /// The archive's bytes, with other files beside. The annotations name the image for every containerd from 1.6 on: those
    /// before 1.7 know only `io.containerd.image.name`.
    pub fn archive(self, reference: &str, mut manifest: Value, others: &[(&str, Vec<u8>)]) -> Result<Vec<u8>> {
        manifest["annotations"] = json!({
            "io.containerd.image.name": reference,
            "org.opencontainers.image.ref.name": "latest",
        });
        let index = index(&[manifest]);
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |path: &str, content: &[u8]| {
            tar.append_data(&mut header(EntryType::Regular, 0o644, content.len()), path, content)
                .with_context(|| format!("adding {path} to the archive"))
        };
        add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        add("index.json", &serde_json::to_vec(&index)?)?;
        for (path, content) in others {
            add(path, content)?;
        }
        for (digest, content) in &self.0 {
            add(&format!("blobs/{digest}"), content)?;
        }
        tar.into_inner().context("finishing the archive")
    }
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";

fn index(manifests: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})
}

/// The host's, or one of WebAssembly's.
pub(crate) fn platform(os: &str) -> Value {
    json!({"os": os, "architecture": if os == "linux" { architecture() } else { "wasm" }})
}

/// The host's architecture as the OCI image spec (Go's GOARCH) names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        other => other, // s390x, riscv64, arm: the same word in both
    }
}
