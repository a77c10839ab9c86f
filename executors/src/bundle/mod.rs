//! A bundle: config.json read once and checked once. What comes out of [`Bundle::open`] is trusted after.
//!
//! Source: OCI runtime spec 1.3, bundle.md, config.md and config-linux.md.

mod check;
mod tolerant;
mod unsupported;

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Linux, LinuxNamespaceType, Process, Spec};
use serde::de::DeserializeOwned;

pub(crate) use self::check::check_process;
pub(crate) use self::tolerant::read_with_process;
use crate::Kind;
use crate::error::{Error, OrKind, Result, bail};

/// The largest config.json that is read, in bytes. Real ones have some tens of kilobytes.
const MAX_CONFIG: u64 = 16 << 20;

/// A bundle folder with its checked config.json.
pub struct Bundle {
    id: String,
    path: PathBuf,
    spec: Spec,
}

impl Bundle {
    /// Reads and checks `path/config.json` for the container `id`.
    ///
    /// # Errors
    /// InvalidArgument when bundle or config.json is missing or for what is wrong in it, Unimplemented for what hybrid
    /// doesn't do; both with the name of the field.
    pub fn open(id: &str, path: &Path) -> Result<Bundle> {
        let config = path.join("config.json");
        let text = read(&config)?;
        Self::parse(id, path, &text).map_err(|e| e.context(config.display().to_string()))
    }

    /// From the text of a config.json: nothing of the host is looked at.
    pub(crate) fn parse(id: &str, path: &Path, config: &[u8]) -> Result<Bundle> {
        let mut spec: Spec = read_with_process(config, "", "/process")?;
        for mount in spec.mounts_mut().iter_mut().flatten() {
            // A relative path is deprecated, and below / (config.md, "Mounts").
            let absolute = Path::new("/").join(mount.destination());
            mount.set_destination(absolute);
        }
        check::check(&spec)?;
        Ok(Bundle { id: id.to_owned(), path: path.to_owned(), spec })
    }

    /// The container's id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The bundle's folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the process wants a terminal (`process.terminal`).
    pub fn terminal(&self) -> bool {
        self.process().terminal().unwrap_or(false)
    }

    /// The spec's value for an annotation.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.spec.annotations().as_ref()?.get(key).map(String::as_str)
    }

    pub(crate) fn spec(&self) -> &Spec {
        &self.spec
    }

    pub(crate) fn process(&self) -> &Process {
        self.spec.process().as_ref().expect("checked in open: process")
    }

    pub(crate) fn linux(&self) -> &Linux {
        self.spec.linux().as_ref().expect("checked in open: linux")
    }

    /// The folder on the host that becomes the container's root.
    pub(crate) fn root(&self) -> PathBuf {
        // A relative path is below the bundle (config.md, Root).
        self.path.join(self.spec.root().as_ref().expect("checked in open: root").path())
    }

    /// Whether init is the first process of a pid namespace of the container's own, so that all in it end with it.
    pub(crate) fn owns_pid_namespace(&self) -> bool {
        self.namespace(LinuxNamespaceType::Pid) == Some(None)
    }

    /// A namespace of the spec: `None` if it is not listed, `Some(None)` for a new one, or the path of the one to join.
    pub(crate) fn namespace(&self, kind: LinuxNamespaceType) -> Option<Option<&Path>> {
        let namespaces = self.linux().namespaces().as_deref().unwrap_or_default();
        let namespace = namespaces.iter().find(|namespace| namespace.typ() == kind)?;
        Some(namespace.path().as_deref().filter(|path| !path.as_os_str().is_empty()))
    }
}

/// A process's arguments, the first one not empty. Without any are only init of a module in the image, and hooks.
pub(crate) fn args(process: &Process) -> &[String] {
    process.args().as_deref().unwrap_or_default()
}

/// A variable of a process's environment.
pub(crate) fn variable<'a>(process: &'a Process, name: &str) -> Option<&'a str> {
    let env = process.env().as_deref().unwrap_or_default();
    env.iter().rev().find_map(|entry| entry.split_once('=').filter(|(key, _)| *key == name).map(|(_, value)| value))
}

/// Parses `part` of a spec, empty for the whole.
///
/// # Errors
/// InvalidArgument, with the name of the field that is wrong.
pub(crate) fn from_json<T: DeserializeOwned>(text: &[u8], part: &str) -> Result<T> {
    let mut json = serde_json::Deserializer::from_slice(text);
    let parsed = serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let path = e.path().to_string();
        let field = match (part, path.as_str()) {
            // What has no path is no object, or no JSON.
            ("", path) if path.starts_with(['.', '?', '[']) => "not an object of the spec".to_owned(),
            ("", path) => path.to_owned(),
            (part, ".") => part.to_owned(),
            (part, path) => format!("{part}.{path}"),
        };
        Error::new(Kind::InvalidArgument, e.into_inner()).context(field)
    })?;
    json.end().or_kind(Kind::InvalidArgument, || format!("{part}: more than one document"))?;
    Ok(parsed)
}

fn read(config: &Path) -> Result<Vec<u8>> {
    use std::io::Read;
    let file = std::fs::File::open(config).or_kind(Kind::InvalidArgument, || format!("open {}", config.display()))?;
    let mut text = Vec::new();
    file.take(MAX_CONFIG + 1)
        .read_to_end(&mut text)
        .or_kind(Kind::Internal, || format!("read {}", config.display()))?;
    if text.len() as u64 > MAX_CONFIG {
        bail!(InvalidArgument, "{} is larger than {MAX_CONFIG} bytes", config.display());
    }
    Ok(text)
}
