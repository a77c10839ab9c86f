//! Which executor runs a container, and why.
//!
//! The first rule that matches wins:
//! 1. an annotation names the executor; a value that is not known is an error, never a guess;
//! 2. the sandbox (pause) container of a pod is native;
//! 3. the entrypoint, resolved inside the rootfs, begins with WebAssembly's magic bytes;
//! 4. the entrypoint is not there, and a layer of the image is a module as it is;
//! 5. it is not there, and an annotation or label of the image names the executor, or its platform is one of WebAssembly's;
//! 6. otherwise native.
//!
//! The image is only looked at when the entrypoint is not there: never for an ordinary program.

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::Process;
use rustix::io::Errno;

use crate::Kind;
use crate::bundle::{Bundle, args, variable};
use crate::error::{OrKind, Result, bail};
use crate::image::{Image, ImageStore};
use crate::native::environment::search;
use crate::rootfs::{Rootfs, open_found, open_inside};
use crate::wasm::{self, Module};

/// Which executor runs a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executor {
    /// The image's program, executed by the kernel.
    Native,
    /// The image's module or component, run by Wasmtime.
    Wasm,
}

impl fmt::Display for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Executor::Native => "native",
            Executor::Wasm => "wasm",
        })
    }
}

/// The outcome of dispatch: the executor, and the reason in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    pub executor: Executor,
    pub reason: String,
    /// Whether an annotation of the container or its image names the executor: then it holds for every process of the container.
    pub by_annotation: bool,
}

/// What is executed.
pub(crate) enum Entrypoint<'a> {
    Native,
    Wasm {
        module: Module<'a>,
        /// Its path as the container knows it, or what the image calls it.
        path: String,
        /// An export to call instead of the usual entry point.
        function: Option<String>,
    },
}

/// The annotations that name the executor, and their values: our own, then those of crun, youki and runwasi's users.
const ANNOTATIONS: [(&str, &[(&str, Executor)]); 3] = [
    ("io.containerd.hybrid.executor", &[("native", Executor::Native), ("wasm", Executor::Wasm)]),
    ("run.oci.handler", &[("wasm", Executor::Wasm)]),
    ("module.wasm.image/variant", &[("compat", Executor::Wasm), ("compat-smart", Executor::Wasm)]),
];

/// The annotations that decide.
pub(crate) fn annotations() -> impl Iterator<Item = &'static str> {
    ANNOTATIONS.iter().map(|(key, _)| *key).chain([CONTAINER_TYPE])
}

/// The CRI's annotation for what a container is in its pod.
const CONTAINER_TYPE: &str = "io.kubernetes.cri.container-type";

/// Picks the executor.
///
/// # Errors
/// InvalidArgument for an annotation's unknown value and, when the executor is Wasm by annotation, a module that is missing;
/// what is wrong with an image that had to be looked at.
pub(crate) fn pick<'a>(
    bundle: &Bundle,
    rootfs: &Rootfs,
    images: &'a dyn ImageStore,
) -> Result<(Choice, Entrypoint<'a>)> {
    let by_rule = match by_annotation(|key| bundle.annotation(key))? {
        None if bundle.annotation(CONTAINER_TYPE) == Some("sandbox") => {
            let reason = format!("annotation {CONTAINER_TYPE}=sandbox");
            Some(Choice { executor: Executor::Native, reason, by_annotation: true })
        }
        by_rule => by_rule,
    };
    let program = args(bundle.process()).first().map(String::as_str).unwrap_or_default();
    let (choice, entrypoint) = match by_rule {
        Some(choice) if choice.executor == Executor::Native => (choice, Entrypoint::Native),
        by_rule => match (find(bundle, rootfs)?, by_rule) {
            (Some(found), Some(choice)) => (choice, found.into()),
            (Some(found), None) => by_magic(found)?,
            (None, by_rule) => by_image(by_rule, program, images)?,
        },
    };
    if matches!(entrypoint, Entrypoint::Native) && program.is_empty() {
        bail!(InvalidArgument, "process.args: empty");
    }
    Ok((choice, entrypoint))
}

/// Rule 3.
fn by_magic<'a>(found: Found) -> Result<(Choice, Entrypoint<'a>)> {
    if is_wasm(&found.file)? {
        let reason = format!("{:?} begins with WebAssembly's magic bytes", found.path);
        return Ok((Choice { executor: Executor::Wasm, reason, by_annotation: false }, found.into()));
    }
    Ok(native("no annotation, and the entrypoint is not WebAssembly"))
}

/// Rules 4 to 6, for an entrypoint that is not in the rootfs; an annotation of the container's may have said what it is.
fn by_image<'a>(
    by_rule: Option<Choice>,
    program: &str,
    images: &'a dyn ImageStore,
) -> Result<(Choice, Entrypoint<'a>)> {
    let what = || format!("process.args: {program:?} is not in the root file system");
    let image = Image::of(images).map_err(|e| e.context(what()))?;
    let module = image.as_ref().map_or(Ok(None), |image| image.module(images, program));
    if let Some((module, function)) = module.map_err(|e| e.context(what()))? {
        let layer = module.layer();
        let reason = format!("the layer {} of the image is {}", layer.digest, layer.media_type);
        let choice = by_rule.unwrap_or(Choice { executor: Executor::Wasm, reason, by_annotation: false });
        let path = module.name().to_owned();
        return Ok((choice, Entrypoint::Wasm { module: Module::InImage(module), path, function }));
    }
    let of_image = image.as_ref().map_or(Ok(None), |image| {
        by_annotation(|key| image.annotation(key)).map_err(|e| e.context(format!("image {}", image.name)))
    })?;
    let reason = match (by_rule, of_image, image.as_ref().and_then(Image::wasm_platform)) {
        (Some(choice), ..) => choice.reason,
        (None, Some(choice), _) if choice.executor == Executor::Native => {
            let reason = format!("{} of the image", choice.reason);
            return Ok((Choice { reason, ..choice }, Entrypoint::Native));
        }
        (None, Some(choice), _) => format!("{} of the image", choice.reason),
        (None, None, Some(platform)) => format!("the image's platform is {platform}"),
        (None, None, None) => {
            return Ok(native("no annotation, and no entrypoint or layer of the image is WebAssembly"));
        }
    };
    bail!(InvalidArgument, "process.args: {program:?}: module not found in the container or its image ({reason})")
}

fn native<'a>(reason: &str) -> (Choice, Entrypoint<'a>) {
    let choice = Choice { executor: Executor::Native, reason: reason.to_owned(), by_annotation: false };
    (choice, Entrypoint::Native)
}

/// Rules 1 and 5, over any source of annotations.
fn by_annotation<'a>(annotation: impl Fn(&str) -> Option<&'a str>) -> Result<Option<Choice>> {
    for (key, values) in ANNOTATIONS {
        let Some(value) = annotation(key) else { continue };
        let Some((_, executor)) = values.iter().find(|(name, _)| *name == value) else {
            let known: Vec<&str> = values.iter().map(|(name, _)| *name).collect();
            bail!(InvalidArgument, "annotation {key}: unknown value {value:?}; known: {}", known.join(", "));
        };
        let reason = format!("annotation {key}={value}");
        return Ok(Some(Choice { executor: *executor, reason, by_annotation: true }));
    }
    Ok(None)
}

/// The entrypoint's file, and its name: path, and function behind a `#`.
struct Found {
    file: File,
    path: String,
    function: Option<String>,
}

impl From<Found> for Entrypoint<'_> {
    fn from(Found { file, path, function }: Found) -> Self {
        Entrypoint::Wasm { module: Module::File(file), path, function }
    }
}

/// Looks for the entrypoint as the container will.
fn find(bundle: &Bundle, rootfs: &Rootfs) -> Result<Option<Found>> {
    search_program(bundle.process(), |path| open(bundle, rootfs, path))
}

/// Picks what an exec'd process is, by the magic bytes of its program below `root`, the container's root folder.
pub(crate) fn pick_exec(process: &Process, root: BorrowedFd<'_>) -> Result<Entrypoint<'static>> {
    if let Some(found) = search_program(process, |path| open_inside(root, path))?
        && is_wasm(&found.file)?
    {
        return Ok(found.into());
    }
    Ok(Entrypoint::Native)
}

/// The entrypoint of a process and its path, if it is WebAssembly.
pub(crate) fn wasm_entrypoint(
    process: &Process,
    open: impl Fn(&Path) -> std::result::Result<File, Errno>,
) -> Result<Option<(File, String)>> {
    let Some(found) = search_program(process, open)? else { return Ok(None) };
    Ok(is_wasm(&found.file)?.then_some((found.file, found.path)))
}

/// Looks for `args[0]` with `open`, which is given absolute paths.
fn search_program(
    process: &Process,
    open: impl Fn(&Path) -> std::result::Result<File, Errno>,
) -> Result<Option<Found>> {
    let Some(program) = args(process).first() else { return Ok(None) };
    // A file whose name has the "#" in it comes first.
    let (module, function) = wasm::entrypoint(program);
    let names = [(program.as_str(), None), (module, function)];
    for (name, function) in names.iter().take(if function.is_some() { 2 } else { 1 }) {
        // A module may also be named as it lies in the current folder: images for runwasi have it so.
        let here = (!name.contains('/')).then(|| (*name).to_owned());
        for path in search(name, variable(process, "PATH")).into_iter().chain(here) {
            let path = process.cwd().join(path);
            match open(&path) {
                Ok(file) => {
                    let (path, function) = (path.to_string_lossy().into_owned(), function.map(str::to_owned));
                    return Ok(Some(Found { file, path, function }));
                }
                // Not a file to read is not a module; whether it is a program is the kernel's to say.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::ISDIR | Errno::LOOP | Errno::NAMETOOLONG) => {
                }
                Err(errno) => {
                    return Err(errno).or_kind(Kind::Internal, || format!("process.args: open {}", path.display()));
                }
            }
        }
    }
    Ok(None)
}

/// Opens a file as the container will see it: in the bind mount that covers the path, or else in the rootfs.
fn open(bundle: &Bundle, rootfs: &Rootfs, path: &Path) -> std::result::Result<File, Errno> {
    let mounts = bundle.spec().mounts().as_deref().unwrap_or_default();
    let Some(mount) = mounts.iter().rev().find(|mount| path.starts_with(mount.destination())) else {
        return rootfs.open(path);
    };
    let options = mount.options().as_deref().unwrap_or_default();
    let is_bind = mount.typ().as_deref() == Some("bind") || options.iter().any(|o| o == "bind" || o == "rbind");
    let source: PathBuf = match mount.source() {
        Some(source) if is_bind => bundle.path().join(source),
        // A file system that is empty or the kernel's own.
        _ => return Err(Errno::NOENT),
    };
    let below = path.strip_prefix(mount.destination()).unwrap_or(Path::new(""));
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    let source = rustix::fs::open(source, flags, rustix::fs::Mode::empty())?;
    if below.as_os_str().is_empty() { open_found(source) } else { open_inside(source.as_fd(), below) }
}

fn is_wasm(file: &File) -> Result<bool> {
    wasm::is_wasm(file).or_kind(Kind::Internal, || "process.args: read the entrypoint")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pick(annotations: &[(&str, &'static str)]) -> Result<Option<Choice>> {
        by_annotation(|key| annotations.iter().find(|(name, _)| *name == key).map(|(_, value)| *value))
    }

    #[test]
    fn annotations_decide_and_ours_comes_first() {
        assert_eq!(pick(&[]).unwrap(), None);
        let cases: [(&[(&str, &'static str)], Executor); 4] = [
            (&[("io.containerd.hybrid.executor", "native"), ("run.oci.handler", "wasm")], Executor::Native),
            (&[("io.containerd.hybrid.executor", "wasm")], Executor::Wasm),
            (&[("run.oci.handler", "wasm")], Executor::Wasm),
            (&[("module.wasm.image/variant", "compat-smart")], Executor::Wasm),
        ];
        for (annotations, executor) in cases {
            let choice = pick(annotations).unwrap().unwrap();
            assert_eq!(choice.executor, executor);
            assert!(choice.reason.starts_with("annotation "), "{}", choice.reason);
        }
    }

    #[test]
    fn an_unknown_value_is_an_error() {
        let error = pick(&[("io.containerd.hybrid.executor", "gpu")]).unwrap_err();
        assert_eq!(error.kind(), Kind::InvalidArgument);
        assert!(error.to_string().contains("\"gpu\""), "{error}");
    }
}
