//! Modules among an image's layers.

use std::os::fd::OwnedFd;

use super::content::{self, short};
use super::document::Descriptor;
use super::{Image, ImageStore};
use crate::error::{Result, bail};
use crate::wasm;

/// Layers that are a module or component as it is: of the CNCF's Wasm OCI artifact layout (and of runwasi, with the config of
/// an ordinary image), runwasi's own, and that of wasm-to-oci.
const MODULES: [&str; 3] = [
    "application/wasm",
    "application/vnd.bytecodealliance.wasm.component.layer.v0+wasm",
    "application/vnd.wasm.content.layer.v1+wasm",
];

/// Configs of ordinary images.
const ORDINARY: [&str; 2] =
    ["application/vnd.oci.image.config.v1+json", "application/vnd.docker.container.image.v1+json"];

/// Configs of artifacts, of which nothing is needed: the Wasm OCI artifact layout's, wasm-to-oci's, the OCI image spec's for
/// artifacts without one, and that of ORAS before there was such.
const ARTIFACTS: [&str; 4] = [
    "application/vnd.wasm.config.v0+json",
    "application/vnd.wasm.config.v1+json",
    "application/vnd.oci.empty.v1+json",
    "application/vnd.unknown.config.v1+json",
];

/// What begins the media types of Spin's applications, whose modules are for Spin's own host.
const SPIN: &str = "application/vnd.fermyon.spin.";

/// The annotation that names a layer's file (OCI image spec, annotations.md).
const TITLE: &str = "org.opencontainers.image.title";

/// The longest title in bytes: that of a path (PATH_MAX, limits.h).
const MAX_TITLE: usize = 4095;

/// What a module without a title is called.
const NAME: &str = "module.wasm";

pub(super) fn is_ordinary_config(config: &Descriptor) -> bool {
    ORDINARY.contains(&config.media_type.as_str())
}

fn is_module(layer: &&Descriptor) -> bool {
    MODULES.contains(&layer.media_type.as_str())
}

/// Refuses what is not for this host, by name.
pub(super) fn check(config: &Descriptor, layers: &[Descriptor]) -> Result<()> {
    let mut types = layers.iter().chain([config]).map(|part| part.media_type.as_str());
    if let Some(media_type) = types.find(|media_type| media_type.starts_with(SPIN)) {
        bail!(Unimplemented, "a Spin application ({}), which only Spin's own host runs", short(media_type));
    }
    if layers.iter().any(|layer| is_module(&layer)) {
        let media_type = config.media_type.as_str();
        if !ORDINARY.contains(&media_type) && !ARTIFACTS.contains(&media_type) {
            bail!(InvalidArgument, "WebAssembly with a config of the unknown type {:?}", short(media_type));
        }
    }
    Ok(())
}

impl Image {
    /// The module that an entrypoint means: the only one, or of several the one whose title it names. Behind it the function
    /// that it names with `#`.
    ///
    /// # Errors
    /// InvalidArgument when several are there and it does not say which.
    pub fn module<'a>(
        &self,
        store: &'a dyn ImageStore,
        entrypoint: &str,
    ) -> Result<Option<(Module<'a>, Option<String>)>> {
        let modules: Vec<Module> = self.modules(store).collect();
        let (program, function) = wasm::entrypoint(entrypoint);
        let named = |program: &str| {
            let mut named = modules.iter().filter(|module| module.is_named(program));
            named.next().filter(|_| named.next().is_none())
        };
        let found = match modules.as_slice() {
            [] => return Ok(None),
            [only] if only.is_named(entrypoint) => (only, None),
            [only] => (only, function),
            _ => match (named(entrypoint), named(program)) {
                (Some(module), _) => (module, None),
                (None, Some(module)) => (module, function),
                (None, None) => {
                    let names: Vec<&str> = modules.iter().take(8).map(|module| short(module.name())).collect();
                    let (number, names) = (modules.len(), names.join(", "));
                    bail!(
                        InvalidArgument,
                        "image {}: {number} WebAssembly layers ({names}), and process.args[0], {entrypoint:?}, is not the \
                         title of one",
                        self.name
                    )
                }
            },
        };
        Ok(Some((found.0.clone(), found.1.map(str::to_owned))))
    }

    /// All modules among the layers.
    pub fn modules<'a>(&self, store: &'a dyn ImageStore) -> impl Iterator<Item = Module<'a>> {
        self.layers.iter().filter(is_module).map(move |layer| Module { store, layer: layer.clone() })
    }
}

/// A module that lies in a store.
#[derive(Clone)]
pub(crate) struct Module<'a> {
    store: &'a dyn ImageStore,
    layer: Descriptor,
}

impl Module<'_> {
    /// The title of its layer, or what it is called without one.
    pub fn name(&self) -> &str {
        self.title().unwrap_or(NAME)
    }

    /// None that is no name.
    fn title(&self) -> Option<&str> {
        let title = self.layer.annotations.get(TITLE)?;
        (1..=MAX_TITLE).contains(&title.len()).then_some(title.as_str()).filter(|t| !t.contains(char::is_control))
    }

    /// A title is a path in the image's root.
    fn is_named(&self, program: &str) -> bool {
        let relative = |path: &str| path.trim_start_matches("./").trim_start_matches('/').to_owned();
        self.title().is_some_and(|title| relative(title) == relative(program))
    }

    /// The digest and media type of its layer.
    pub fn layer(&self) -> &Descriptor {
        &self.layer
    }

    /// Its bytes in a file that nobody can change any more.
    ///
    /// # Errors
    /// NotFound when the store does not have them; InvalidArgument when they are others than the digest's.
    pub fn read(&self) -> Result<OwnedFd> {
        content::module(self.store, &self.layer.digest, self.layer.size)
    }
}
