//! A store in memory.

use std::collections::BTreeMap;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::{Digest, ImageRecord, ImageStore};
use crate::Kind;
use crate::error::{OrKind, Result, bail};

/// An image in a store, put together from the inside out.
#[derive(Default)]
pub(crate) struct Memory {
    blobs: BTreeMap<String, Vec<u8>>,
    pub record: ImageRecord,
    /// How often a content was asked for.
    pub reads: AtomicU32,
}

impl Memory {
    /// Keeps a content, and returns its descriptor.
    pub fn blob(&mut self, media_type: &str, content: impl AsRef<[u8]>) -> Value {
        let content = content.as_ref();
        let digest =
            Sha256::digest(content).iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"));
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

    fn read(&self, digest: &Digest, to: &mut dyn Write) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let Some(content) = self.blobs.get(digest.as_ref()) else { bail!(NotFound, "{digest}: not there") };
        content.chunks(7).try_for_each(|chunk| to.write_all(chunk)).or_kind(Kind::Internal, || "write it")
    }
}
