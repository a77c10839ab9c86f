//! What a spec and an image go through before anything of the host is touched, for the fuzz targets (`fuzz/`) and the property tests.
//! Not part of the API.

#[cfg(test)]
mod contradictions;
#[cfg(test)]
mod modules;
#[cfg(test)]
mod properties;

use std::os::fd::BorrowedFd;
use std::path::Path;

use crate::bundle::Bundle;
use crate::error::Result;
use crate::native::plan;
use crate::{ExecSpec, cgroup, exec, image, wasm};

/// A config.json → a checked bundle → its cgroup's settings and as much of its plan as takes no host. Returns the number of
/// steps, after each was put into words.
///
/// # Errors
/// InvalidArgument or Unimplemented, with the name of the field.
pub fn spec(config: &[u8]) -> Result<usize> {
    let bundle = Bundle::parse("id", Path::new("/bundle"), config)?;
    cgroup::decide(bundle.id(), bundle.linux())?;
    let plan = plan::compile_without_host(&bundle)?;
    let words: Vec<String> = plan.steps.iter().map(ToString::to_string).collect();
    Ok(words.len())
}

/// The process of an exec.
///
/// # Errors
/// As for [`spec`].
pub fn process(json: &[u8]) -> Result<()> {
    ExecSpec::parse(json).map(drop)
}

/// The documents of an image, separated by null bytes, the first one its index or manifest: which modules it has, and what it
/// says of its process. Returns how many modules.
///
/// # Errors
/// InvalidArgument or Unimplemented for what is wrong; NotFound for a document that is not there.
pub fn image(documents: &[u8]) -> Result<usize> {
    image::read_documents(&documents.split(|byte| *byte == 0).collect::<Vec<_>>())
}

/// The search for a WebAssembly module by a process's arguments, below a root folder: its path there and the function behind
/// a `#`, or `None` when the program is none.
///
/// # Errors
/// As for [`spec`].
pub fn detector(json: &[u8], root: BorrowedFd<'_>) -> Result<Option<(String, Option<String>)>> {
    exec::detect(&ExecSpec::parse(json)?, root)
}

/// Whether a text is taken for what the cache says of an entry.
pub fn about(json: &[u8]) -> bool {
    wasm::is_about(json)
}
