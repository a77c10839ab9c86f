//! The image that a container was made from, where the container itself does not say what it runs: WebAssembly in layers that
//! containerd does not unpack, and what the image says of its executor.
//!
//! ```text
//! record ─> index ─> manifest ─> config
//!                       └─ layers ─> Module, read only when it has to be compiled
//! ```
//! Nothing of an image is trusted: documents are small, every content is compared with its digest (OCI image spec 1.1,
//! descriptor.md), and an index leads to few others.

mod content;
mod document;
mod layers;
mod walk;

use std::collections::BTreeMap;
use std::io::Write;

pub use self::content::Digest;
pub(crate) use self::layers::Module;

use self::document::{Descriptor, Platform, Settings};
use crate::error::Result;

/// Where images lie. Calls block, for milliseconds.
pub trait ImageStore {
    /// The image of the container, `None` when it has none that is known.
    fn image(&self) -> Result<Option<ImageRecord>>;

    /// The image by the name that was asked for, where the container may have been given another one with the same config: the
    /// CRI tells images apart by that, and modules that are layers need not be in it.
    fn asked_for(&self) -> Result<Option<ImageRecord>> {
        Ok(None)
    }

    /// Writes the content of that digest to `to`; who asked compares. It ends early when `to` takes no more.
    ///
    /// # Errors
    /// NotFound when the store does not have it.
    fn read(&self, digest: &Digest, to: &mut dyn Write) -> Result<()>;
}

/// What a store knows an image by.
#[derive(Clone, Debug, Default)]
pub struct ImageRecord {
    pub name: String,
    pub labels: BTreeMap<String, String>,
    /// The digest of its index or manifest, in text.
    pub target: String,
    /// That document's length in bytes.
    pub size: u64,
}

/// No images at all.
pub struct NoImages;

impl ImageStore for NoImages {
    fn image(&self) -> Result<Option<ImageRecord>> {
        Ok(None)
    }

    fn read(&self, digest: &Digest, _: &mut dyn Write) -> Result<()> {
        crate::error::bail!(NotFound, "{digest}: no images here")
    }
}

/// An image for this host.
#[derive(Debug)]
pub(crate) struct Image {
    /// As the store knows it.
    pub name: String,
    platform: Option<Platform>,
    /// From the manifest outwards, then the config's labels, then the store's own.
    annotations: Vec<BTreeMap<String, String>>,
    config: Descriptor,
    layers: Vec<Descriptor>,
    /// Of an ordinary image.
    settings: Option<Settings>,
}

impl Image {
    /// Reads the image of the container.
    ///
    /// # Errors
    /// NotFound when a part is not in the store, InvalidArgument for what is wrong in one.
    pub fn of(store: &dyn ImageStore) -> Result<Option<Image>> {
        let Some(record) = store.image()? else { return Ok(None) };
        let target = record.target.clone();
        let Some(image) = Image::read(store, record)? else { return Ok(None) };
        if let Some(asked_for) = store.asked_for()?.filter(|record| record.target != target) {
            let other = Image::read(store, asked_for)?;
            return Ok(Some(other.filter(|other| other.config() == image.config()).unwrap_or(image)));
        }
        Ok(Some(image))
    }

    fn read(store: &dyn ImageStore, record: ImageRecord) -> Result<Option<Image>> {
        let name = record.name.clone();
        walk::read(store, record).map_err(|e| e.context(format!("image {name}")))
    }

    /// Whether the image is for WebAssembly's platforms, and for which.
    pub fn wasm_platform(&self) -> Option<&Platform> {
        self.platform.as_ref().filter(|platform| platform.is_wasm())
    }

    /// The first value of an annotation or label.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.iter().find_map(|annotations| annotations.get(key)).map(String::as_str)
    }

    /// The digest of the config.
    pub fn config(&self) -> &Digest {
        &self.config.digest
    }

    /// What an ordinary image says of its process.
    pub fn settings(&self) -> Option<&Settings> {
        self.settings.as_ref()
    }
}

#[cfg(any(test, feature = "fuzzing"))]
mod testing;
#[cfg(test)]
mod tests;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::testing::read_documents;
