//! The documents of an image: index, manifest and config (OCI image spec 1.1: image-index.md, manifest.md, config.md), and
//! Docker's of the same shape.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::anyhow;
use serde::{Deserialize, Deserializer};

use super::content::{Digest, sha256, short};
use crate::Kind;
use crate::error::{OrKind, Result, bail};

/// A reference to content (descriptor.md).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    /// In bytes.
    pub size: u64,
    #[serde(default, deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub platform: Option<Platform>,
}

/// What an image is for (image-index.md, `platform`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub architecture: String,
}

impl Platform {
    /// Whether it is one of WebAssembly's: `wasi/wasm` and `wasi/wasm32`, or `wasip1/wasm` and `wasip2/wasm` of the Wasm OCI
    /// artifact layout.
    pub fn is_wasm(&self) -> bool {
        ["wasi", "wasip1", "wasip2"].contains(&self.os.as_str())
            && ["wasm", "wasm32"].contains(&self.architecture.as_str())
    }

    /// Whether Linux programs for it run here.
    pub fn is_host(&self) -> bool {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        self.os == "linux" && self.architecture == architecture
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", short(&self.os), short(&self.architecture))
    }
}

/// An index or a manifest: their media types are often left away, so their fields tell them apart.
#[derive(Debug)]
pub(super) enum Document {
    Index { manifests: Vec<Descriptor>, annotations: BTreeMap<String, String> },
    Manifest { config: Descriptor, layers: Vec<Descriptor>, annotations: BTreeMap<String, String> },
}

impl Document {
    pub fn parse(json: &[u8]) -> Result<Document> {
        #[derive(Deserialize)]
        struct Fields {
            config: Option<Descriptor>,
            layers: Option<Vec<Descriptor>>,
            manifests: Option<Vec<Descriptor>>,
            #[serde(default, deserialize_with = "or_default")]
            annotations: BTreeMap<String, String>,
        }
        let Fields { config, layers, manifests, annotations } = from_json(json)?;
        match (config, layers, manifests) {
            (None, None, Some(manifests)) => Ok(Document::Index { manifests, annotations }),
            // Go writes an empty list as null.
            (Some(config), layers, None) => {
                Ok(Document::Manifest { config, layers: layers.unwrap_or_default(), annotations })
            }
            // Each reader could see something else in it (CVE-2021-41190).
            (_, _, Some(_)) => bail!(InvalidArgument, "both an index and a manifest"),
            (None, _, None) => bail!(InvalidArgument, "neither an index nor a manifest"),
        }
    }
}

/// What the config of an ordinary image says.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Settings {
    #[serde(default, deserialize_with = "or_default")]
    os: String,
    #[serde(default, deserialize_with = "or_default")]
    architecture: String,
    #[serde(default, deserialize_with = "or_default")]
    pub config: ProcessSettings,
    #[serde(default, deserialize_with = "or_default")]
    pub rootfs: Layers,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct ProcessSettings {
    #[serde(default, deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub env: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub working_dir: String,
    #[serde(default, deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Layers {
    #[serde(default, deserialize_with = "or_default")]
    pub diff_ids: Vec<Digest>,
}

impl Settings {
    pub fn parse(json: &[u8]) -> Result<Settings> {
        from_json(json)
    }

    /// The name of its topmost layer when it is unpacked (config.md, "Layer ChainID"); none without layers.
    pub fn chain(&self) -> Option<String> {
        let mut layers = self.rootfs.diff_ids.iter();
        let first = layers.next()?.to_string();
        Some(layers.fold(first, |chain, layer| sha256(format!("{chain} {layer}").as_bytes())))
    }

    pub fn platform(&self) -> Platform {
        Platform { os: self.os.clone(), architecture: self.architecture.clone() }
    }
}

fn from_json<'a, T: Deserialize<'a>>(json: &'a [u8]) -> Result<T> {
    // It repeats what it has found, however long.
    serde_json::from_slice(json)
        .map_err(|e| anyhow!("{}", short(&e.to_string())))
        .or_kind(Kind::InvalidArgument, || "not a document of an image")
}

/// Go's encoder writes what is empty as null.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}
