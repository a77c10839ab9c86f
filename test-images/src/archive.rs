//! Packs an [`Image`] as an OCI image layout in a tar archive (OCI image spec 1.1, "image-layout"), which `docker load`
//! reads as well: as `docker save` does since 25.0, the archive also holds a `manifest.json` for the blobs in it.
use crate::{Image, tree::header};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tar::EntryType;

/// The archive's bytes. The annotations name the image for every containerd from 1.6 on: those before 1.7 know only
/// `io.containerd.image.name`.
pub(crate) fn oci(image: &Image) -> Result<Vec<u8>> {
    let mut blobs = Vec::new();
    let layer = blob(&mut blobs, "application/vnd.oci.image.layer.v1.tar", image.tree.layer()?);
    let config = json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": image.entrypoint,
            "Cmd": image.command,
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            "WorkingDir": "/",
        },
        // The layer is not compressed, so the digest of its content is that of the blob.
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = blob(&mut blobs, "application/vnd.oci.image.config.v1+json", serde_json::to_vec(&config)?);
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": &config,
        "layers": [&layer],
    });
    let mut manifest = blob(&mut blobs, "application/vnd.oci.image.manifest.v1+json", serde_json::to_vec(&manifest)?);
    manifest["platform"] = json!({"os": "linux", "architecture": architecture()});
    manifest["annotations"] = json!({
        "io.containerd.image.name": image.reference(),
        "org.opencontainers.image.ref.name": "latest",
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [manifest],
    });
    // Docker Engine's own image store knows no index.json.
    let path = |blob: &Value| blob["digest"].as_str().map(|digest| format!("blobs/{}", digest.replace(':', "/")));
    let for_docker = json!([{
        "Config": path(&config),
        "RepoTags": [image.reference()],
        "Layers": [path(&layer)],
    }]);

    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |path: &str, content: &[u8]| {
        tar.append_data(&mut header(EntryType::Regular, 0o644, content.len()), path, content)
            .with_context(|| format!("adding {path} to the archive"))
    };
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add("index.json", &serde_json::to_vec(&index)?)?;
    add("manifest.json", &serde_json::to_vec(&for_docker)?)?;
    for (digest, content) in &blobs {
        add(&format!("blobs/sha256/{digest}"), content)?;
    }
    tar.into_inner().context("finishing the archive")
}

/// Keeps `content` as a blob and returns its descriptor.
fn blob(blobs: &mut Vec<(String, Vec<u8>)>, media_type: &str, content: Vec<u8>) -> Value {
    let digest: String = Sha256::digest(&content).iter().map(|byte| format!("{byte:02x}")).collect();
    let descriptor = json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": content.len()});
    blobs.push((digest, content));
    descriptor
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
