//! From an image's record to its manifest and config.

use std::collections::BTreeMap;

use super::content::{Digest, document};
use super::document::{Descriptor, Document, Platform, Settings};
use super::{Image, ImageRecord, ImageStore, layers};
use crate::Kind;
use crate::error::{Error, Result, bail};

/// How many documents of one image are asked for: an index may list any number of manifests that are not there.
const MAX_DOCUMENTS: u32 = 32;

/// How deep an index may lie in another.
const MAX_DEPTH: u32 = 3;

pub(super) fn read(store: &dyn ImageStore, record: ImageRecord) -> Result<Option<Image>> {
    let mut walk = Walk { store, left: MAX_DOCUMENTS };
    let target = Digest::try_from(record.target)?;
    let found = walk.find(&target, record.size, None, 0)?;
    let Some(Found { config, layers, mut annotations, platform }) = found else { return Ok(None) };
    layers::check(&config, &layers)?;
    let settings = if layers::is_ordinary_config(&config) {
        let text = walk.document(&config.digest, config.size)?;
        Some(Settings::parse(&text).map_err(|e| e.context(format!("config {}", config.digest)))?)
    } else {
        None
    };
    annotations.extend(settings.iter().map(|settings| settings.config.labels.clone()));
    annotations.push(record.labels);
    let platform = platform.or_else(|| settings.as_ref().map(Settings::platform));
    Ok(Some(Image { name: record.name, platform, annotations, config, layers, settings }))
}

/// A manifest, with what was said of it on the way.
struct Found {
    config: Descriptor,
    layers: Vec<Descriptor>,
    annotations: Vec<BTreeMap<String, String>>,
    platform: Option<Platform>,
}

struct Walk<'a> {
    store: &'a dyn ImageStore,
    /// How many documents may still be asked for.
    left: u32,
}

impl Walk<'_> {
    fn document(&mut self, digest: &Digest, size: u64) -> Result<Vec<u8>> {
        let Some(left) = self.left.checked_sub(1) else {
            bail!(InvalidArgument, "more than {MAX_DOCUMENTS} documents lead to its manifest");
        };
        self.left = left;
        document(self.store, digest, size)
    }

    /// The manifest at or below a document; `None` where there is none for this host.
    fn find(&mut self, digest: &Digest, size: u64, platform: Option<&Platform>, depth: u32) -> Result<Option<Found>> {
        let text = self.document(digest, size)?;
        let (manifests, annotations) = match Document::parse(&text).map_err(|e| e.context(digest.to_string()))? {
            Document::Manifest { config, layers, annotations } => {
                let (annotations, platform) = (vec![annotations], platform.cloned());
                return Ok(Some(Found { config, layers, annotations, platform }));
            }
            Document::Index { .. } if depth == MAX_DEPTH => {
                bail!(InvalidArgument, "{digest}: an index, {MAX_DEPTH} deep in others")
            }
            Document::Index { manifests, annotations } => (manifests, annotations),
        };
        let mut missing: Option<Error> = None;
        for manifest in in_order(&manifests) {
            match self.find(&manifest.digest, manifest.size, manifest.platform.as_ref(), depth + 1) {
                Ok(Some(mut found)) => {
                    found.annotations.extend([manifest.annotations.clone(), annotations]);
                    return Ok(Some(found));
                }
                Ok(None) => {}
                // Clients pull what they want to run of an index.
                Err(error) if error.kind() == Kind::NotFound => missing = missing.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        missing.map_or(Ok(None), Err)
    }
}

/// The manifests that may be meant: WebAssembly's, then the host's, then those that don't say what they are for.
fn in_order(manifests: &[Descriptor]) -> impl Iterator<Item = &Descriptor> {
    let of = |wanted: fn(Option<&Platform>) -> bool| {
        manifests.iter().filter(move |manifest| wanted(manifest.platform.as_ref()))
    };
    of(|platform| platform.is_some_and(Platform::is_wasm))
        .chain(of(|platform| platform.is_some_and(Platform::is_host)))
        .chain(of(|platform| platform.is_none()))
}
