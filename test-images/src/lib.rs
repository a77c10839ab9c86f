//! Builds the small OCI images that the tests, the demo and the benches run, from the sources in `programs/`.
//!
//! They are ordinary images of the host's platform: a WebAssembly image is one whose entrypoint is a `.wasm` file in
//! its root file system. Beside them are [`artifacts`], whose modules are layers as they are. Nothing is downloaded, and the same sources and compilers give the same bytes.
#![forbid(unsafe_code)]

mod archive;
mod artifact;
mod programs;
mod tree;
mod wasm;

pub use artifact::{Artifact, artifacts};

use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use tree::Tree;

/// An image before it is packed: a root file system of one layer and what starts in it.
pub struct Image {
    name: &'static str,
    entrypoint: Vec<&'static str>,
    command: Vec<&'static str>,
    /// `linux`, on the host's architecture, or one of WebAssembly's.
    os: &'static str,
    tree: Tree,
}

impl Image {
    /// The last part of the image's name: `linux`, `pause`, `wasm-core`, `wasm-component`, `mixed` (both programs),
    /// `hostile` (both, among links that lead out) or `wasm-cases`.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// The full reference containerd knows the image by after `ctr image import`.
    pub fn reference(&self) -> String {
        archive::reference(self.name)
    }

    /// Writes the image as an OCI archive into the folder `out`, named `<name>.tar`, and returns its path.
    pub fn save(&self, out: &Path) -> Result<PathBuf> {
        let bytes = archive::oci(self).with_context(|| format!("packing the image {}", self.name))?;
        archive::save(out, self.name, &bytes)
    }

    /// Unpacks the image's root file system into the folder `rootfs`, which is created: for bundles made by hand.
    pub fn unpack(&self, rootfs: &Path) -> Result<()> {
        std::fs::create_dir_all(rootfs).with_context(|| format!("creating {}", rootfs.display()))?;
        tar::Archive::new(self.tree.layer()?.as_slice())
            .unpack(rootfs)
            .with_context(|| format!("unpacking the image {} into {}", self.name, rootfs.display()))
    }
}

/// The folder of the host's that the image `hostile` leads to, where its users put what nothing may come to: a `file` and a
/// `folder`.
pub const CANARY: &str = "/run/hybrid-canary";

/// Builds a log driver (`programs/logger.c`), which runs on the host. Needs a C compiler with a static libc.
pub fn logger() -> Result<Vec<u8>> {
    programs::LOGGER.get()
}

/// Builds an OCI hook (`programs/hook.c`), which runs on the host and in containers. Needs a C compiler with a static libc.
pub fn hook() -> Result<Vec<u8>> {
    programs::HOOK.get()
}

/// A WebAssembly module or component from its text.
pub fn assemble(text: &str) -> Result<Vec<u8>> {
    wat::parse_str(text).context("assembling a module")
}

/// A command module of WASI 0.1 that does nothing, with functions beside of about `bytes` bytes.
pub fn module(bytes: usize) -> Result<Vec<u8>> {
    wasm::module(bytes)
}

/// Compiles the programs of the images, the log driver and the hook into the folder `out`. Where `HYBRID_PROGRAMS` names
/// such a folder no compiler is needed.
pub fn save_programs(out: &Path) -> Result<()> {
    programs::save(out)
}

/// Builds every image. Needs a C compiler with a static libc, and clang with wasi-libc (see `programs.rs`).
pub fn build() -> Result<Vec<Image>> {
    let probe = programs::LINUX.get()?;
    let core = programs::CORE_MODULE.get()?;
    let component = wasm::component(&core)?;
    Ok(vec![
        Image {
            name: "linux",
            entrypoint: vec!["/bin/probe"],
            command: vec!["hello"],
            os: "linux",
            tree: Tree::base().file("bin/probe", 0o755, probe.clone()),
        },
        // What keeps a pod's namespaces.
        Image {
            name: "pause",
            entrypoint: vec!["/bin/probe"],
            command: vec!["reap"],
            os: "linux",
            tree: Tree::base().file("bin/probe", 0o755, probe.clone()),
        },
        Image {
            name: "wasm-core",
            entrypoint: vec!["/probe.wasm"],
            command: vec!["hello"],
            os: "linux",
            tree: Tree::base().file("probe.wasm", 0o644, core.clone()),
        },
        Image {
            name: "wasm-component",
            entrypoint: vec!["/probe.wasm"],
            command: vec!["hello"],
            os: "linux",
            tree: Tree::base().file("probe.wasm", 0o644, component),
        },
        Image {
            name: "hostile",
            entrypoint: vec!["/bin/probe"],
            command: vec!["hello"],
            os: "linux",
            tree: Tree::hostile().file("bin/probe", 0o755, probe.clone()).file("probe.wasm", 0o644, core.clone()),
        },
        Image {
            name: "mixed",
            entrypoint: vec!["/probe.wasm"],
            command: vec!["hello"],
            os: "linux",
            tree: Tree::base().file("bin/probe", 0o755, probe).file("probe.wasm", 0o644, core),
        },
        // No entrypoint: each case is named on the command line.
        Image {
            name: "wasm-cases",
            entrypoint: vec![],
            command: vec!["/true.wasm"],
            os: "linux",
            tree: wasm::cases(Tree::base())?,
        },
    ])
}

/// Builds images of small modules that nothing else uses.
pub fn ahead_of_time() -> Result<Vec<Image>> {
    let image = |name: &'static str, os: &'static str, path: &'static str, entrypoint: &'static str| -> Result<Image> {
        let tree = Tree::base().file(path, 0o644, labelled(name)?);
        Ok(Image { name, entrypoint: vec![entrypoint], command: vec![], os, tree })
    };
    Ok(vec![
        image("ahead-file", "linux", "ahead.wasm", "/ahead.wasm")?,
        image("watched-file", "linux", "watched.wasm", "/watched.wasm")?,
        image("platform-file", "wasi", "platform.wasm", "/platform.wasm")?,
    ])
}

/// A small module that does nothing, and is another for each label.
pub fn labelled(label: &str) -> Result<Vec<u8>> {
    wasm::labelled(label)
}
