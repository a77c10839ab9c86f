//! A store in memory, for tests and fuzz targets.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};

#[cfg(test)]
use serde_json::{Value, json};

use super::content::sha256;
use super::document::Settings;
use super::{Digest, Image, ImageRecord, ImageStore};
use crate::Kind;
use crate::error::{OrKind, Result, bail};

/// An image in a store, put together from the inside out.
#[derive(Default)]
pub(crate) struct Memory {
    blobs: BTreeMap<String, Vec<u8>>,
    pub record: ImageRecord,
    pub asked_for: Option<ImageRecord>,
    /// How often a content was asked for.
    pub reads: AtomicU32,
}

#[cfg(test)]
impl Memory {
    /// Keeps a content, and returns its descriptor.
    pub fn blob(&mut self, media_type: &str, content: impl AsRef<[u8]>) -> Value {
        let content = content.as_ref();
        let digest = sha256(content);
        self.blobs.insert(digest.clone(), content.to_vec());
        json!({"mediaType": media_type, "digest": digest, "size": content.len()})
    }

    /// Keeps a document, and returns its descriptor.
    pub fn document(&mut self, media_type: &str, document: &Value) -> Value {
        self.blob(media_type, document.to_string())
    }

    /// Keeps another content under a descriptor's digest, or none.
    pub fn replace(&mut self, descriptor: &Value, content: Option<&[u8]>) {
        let digest = descriptor["digest"].as_str().unwrap().to_owned();
        match content {
            Some(content) => self.blobs.insert(digest, content.to_vec()),
            None => self.blobs.remove(&digest),
        };
    }

    /// Makes the content of this descriptor the image.
    pub fn target(mut self, descriptor: &Value) -> Memory {
        self.record.name = "i".into();
        self.record.target = descriptor["digest"].as_str().unwrap().into();
        self.record.size = descriptor["size"].as_u64().unwrap();
        self
    }
}

impl ImageStore for Memory {
    fn image(&self) -> Result<Option<ImageRecord>> {
        Ok(Some(self.record.clone()))
    }

    fn asked_for(&self) -> Result<Option<ImageRecord>> {
        Ok(self.asked_for.clone())
    }

    fn read(&self, digest: &Digest, to: &mut dyn Write) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let Some(content) = self.blobs.get(digest.as_ref()) else { bail!(NotFound, "{digest}: not there") };
        content.chunks(7).try_for_each(|chunk| to.write_all(chunk)).or_kind(Kind::Internal, || "write it")
    }
}

/// See [`crate::fuzzing::image`].
pub(crate) fn read_documents(documents: &[&[u8]]) -> Result<usize> {
    let mut store = Memory::default();
    for document in documents {
        // Whatever its place, it could be a config; what is wrong with that is said for the first.
        let _ = Settings::parse(document).map(|settings| settings.chain());
        store.blobs.insert(sha256(document), document.to_vec());
    }
    let target = documents.first().copied().unwrap_or_default();
    let (name, target, size) = ("i".to_owned(), sha256(target), target.len() as u64);
    store.record = ImageRecord { name, target, size, ..Default::default() };
    let Some(image) = Image::of(&store)? else { return Ok(0) };
    image.module(&store, "/a.wasm#f")?;
    Ok(image.modules(&store).count())
}
