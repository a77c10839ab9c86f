//! Compiling ahead of time: what containers will find in the cache.

use std::fs::{DirBuilder, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use oci_spec::runtime::ProcessBuilder;

use super::{Module, WasmOptions, precompiled};
use crate::Kind;
use crate::dispatch::wasm_entrypoint;
use crate::error::{OrKind, Result, bail};
use crate::image::{Digest, Image, ImageStore};
use crate::rootfs::{Rootfs, RootfsMount};

/// A module whose code is in the cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Precompiled {
    /// Its path, or what the image calls it.
    pub name: String,
    /// The folder of its code.
    pub folder: PathBuf,
}

/// The unpacked layers of an image.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The digest of the image's config.
    pub config: Digest,
    /// The name of the topmost layer: the chain id (OCI image spec, config.md, "Layer ChainID").
    pub chain: String,
}

/// Compiles the module in a file.
///
/// # Errors
/// InvalidArgument, in one sentence, for a module that can't be compiled.
pub fn precompile_file(path: &Path, options: &WasmOptions) -> Result<Precompiled> {
    let name = path.display().to_string();
    let file = File::open(path).or_kind(Kind::NotFound, || format!("open {name}"))?;
    precompile(Module::File(file), name, options)
}

/// Compiles the modules of an image: those that are layers as they are, or else the entrypoint, if it is one. An image without
/// WebAssembly has none. `rootfs` gives the mounts of the unpacked layers; it is asked for an ordinary image only.
///
/// # Errors
/// NotFound when the store has no such image; those of `rootfs`; InvalidArgument for what is wrong in it.
pub fn precompile_image(
    images: &dyn ImageStore,
    rootfs: impl FnOnce(&Snapshot) -> Result<Vec<RootfsMount>>,
    options: &WasmOptions,
) -> Result<Vec<Precompiled>> {
    let Some(image) = Image::of(images)? else { bail!(NotFound, "no such image for this host") };
    let in_layers = image.modules(images).map(|module| {
        let name = module.name().to_owned();
        precompile(Module::InImage(module), name, options)
    });
    let in_layers = in_layers.collect::<Result<Vec<_>>>()?;
    if !in_layers.is_empty() {
        return Ok(in_layers);
    }
    let Some(settings) = image.settings() else { return Ok(in_layers) };
    let Some(chain) = settings.chain() else { return Ok(in_layers) };
    let process = &settings.config;
    let args: Vec<String> = process.entrypoint.iter().chain(&process.cmd).cloned().collect();
    if args.is_empty() {
        return Ok(in_layers);
    }
    let cwd = if process.working_dir.is_empty() { "/" } else { process.working_dir.as_str() };
    let process = ProcessBuilder::default().args(args).env(process.env.clone()).cwd(cwd).build();
    let process = process.or_kind(Kind::Internal, || "the image's process")?;
    let mounts = rootfs(&Snapshot { config: image.config().clone(), chain })?;
    let folder = MountPoint::new()?;
    let rootfs = Rootfs::mount(&mounts, folder.0.clone())?;
    match wasm_entrypoint(&process, |path| rootfs.open(path))? {
        Some((file, path)) => Ok(vec![precompile(Module::File(file), path, options)?]),
        None => Ok(Vec::new()),
    }
}

fn precompile(module: Module<'_>, name: String, options: &WasmOptions) -> Result<Precompiled> {
    let entry = precompiled(module, options).map_err(|e| e.context(format!("module {name}")))?;
    let link = format!("/proc/self/fd/{}", entry.folder.as_raw_fd());
    let folder = std::fs::read_link(link).or_kind(Kind::Internal, || "find the folder of the code")?;
    Ok(Precompiled { name, folder })
}

/// An empty folder for a mount that has to be attached for a moment; dropping it removes it.
struct MountPoint(PathBuf);

impl MountPoint {
    fn new() -> Result<MountPoint> {
        let path = PathBuf::from(format!("/run/hybrid-precompile.{}", std::process::id()));
        let made = DirBuilder::new().mode(0o700).create(&path);
        made.or_kind(Kind::Internal, || format!("create {}", path.display()))?;
        Ok(MountPoint(path))
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_dir(&self.0) {
            log::warn!("remove {}: {e}", self.0.display());
        }
    }
}
