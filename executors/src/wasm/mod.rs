//! WebAssembly containers: the same as native ones, but the last step executes our own binary, which runs the module.
//!
//! ```text
//! server:       prepare ─ cache hit ──────────────────────────────> Runner: what to execute and what to pass to it
//!                  └───── miss ─> precompiler (own process, confined) ─> cache
//! container:    runner ─> Wasmtime with precompiled code ─> guest
//! ```
//! `precompile` fills the cache before (see [`ahead`]). The server never initialises Wasmtime: hostile bytes are parsed in the precompiler, hostile code runs in the container.

mod ahead;
mod cache;
mod options;
mod precompile;

use std::ffi::CString;
use std::fs::File;
use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

pub use self::ahead::{Precompiled, Snapshot, precompile_file, precompile_image};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use self::cache::is_about;
pub use self::options::WasmOptions;
pub use runner::entry;
use runner::{Call, Entry, Facts, RUNNER, RunnerConfig, TEXT_HEAD, World, is_text, may_be_text};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use crate::error::{OrKind, Result, bail};
use crate::native::options::Recursive;
use crate::native::plan::Payload;
use crate::rootfs::clone_tree;
use crate::sys::{self, MountAttr};
use crate::{Kind, host, image};

/// The largest module that is read, in bytes: it is held in memory to be compiled, and an image can hold a file of any length
/// for nothing.
pub(crate) const MAX_MODULE: u64 = 512 << 20;

/// Whether a file is a module or component (WebAssembly core specification, 5.5.16), or one in text form: no program begins
/// so, and it shall be refused by what it is. Of most other files four bytes are read.
pub(crate) fn is_wasm(file: &File) -> std::io::Result<bool> {
    const MAGIC: &[u8] = b"\0asm";
    let mut head = [0; TEXT_HEAD];
    let length = read_at(file, &mut head[..MAGIC.len()])?;
    match head[..length].first() {
        Some(&first) if may_be_text(first) => {
            let length = read_at(file, &mut head)?;
            Ok(is_text(&head[..length]))
        }
        _ => Ok(&head[..length] == MAGIC),
    }
}

/// Reads from a file's beginning as much as there is and as has room.
fn read_at(file: &File, to: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < to.len() {
        match file.read_at(&mut to[length..], length as u64) {
            Ok(0) => break,
            Ok(more) => length += more,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(length)
}

/// Splits `module.wasm#function` into the file and the export to call.
pub(crate) fn entrypoint(program: &str) -> (&str, Option<&str>) {
    match program.rsplit_once('#') {
        Some((module, function)) if !module.is_empty() && !function.is_empty() => (module, Some(function)),
        _ => (program, None),
    }
}

/// What to execute for a Wasm container, and what to pass to it.
pub(crate) struct Runner {
    /// This binary, on a read-only mount: through /proc/self/exe nobody can write to it (CVE-2019-5736).
    pub program: OwnedFd,
    /// What the module is called, for a guest without arguments.
    pub name: String,
    /// Its [`RunnerConfig`], and the folder with its code; the plan adds the guest's root (see [`runner::CONFIG_FD`]).
    pub pass: Vec<OwnedFd>,
}

impl Runner {
    /// The payload of a plan, for a guest with these arguments; without any it has the module's name.
    pub fn payload(self, guest: &[String]) -> Result<Payload> {
        let guest = if guest.is_empty() { std::slice::from_ref(&self.name) } else { guest };
        let argv = std::iter::once(RUNNER)
            .chain(guest.iter().map(String::as_str))
            .map(|arg| CString::new(arg).or_kind(Kind::InvalidArgument, || "process.args"))
            .collect::<Result<_>>()?;
        Ok(Payload::Runner { file: self.program, pass: self.pass, argv })
    }
}

/// Gets a module ready to run: its code from the cache, or compiled into it now.
///
/// # Errors
/// InvalidArgument, in one sentence, for a module that can't run: not valid, no entry point, an import we lack.
pub(crate) fn prepare(module: Module<'_>, name: &str, function: Option<&str>, options: &WasmOptions) -> Result<Runner> {
    let what = || format!("module {name}");
    let entry = precompiled(module, options).map_err(|e| e.context(what()))?;
    let call = call(&entry.facts, function, options).map_err(|e| e.context(what()))?;
    let (imports, settings) = (entry.facts.imports, options.settings.clone());
    let serves = entry.facts.serves();
    let config = RunnerConfig { name: name.to_owned(), call, imports, serves, settings };
    let code = read_only_entry(&entry.folder).map_err(|e| e.context(what()))?;
    Ok(Runner { program: own_binary()?, name: name.to_owned(), pass: vec![sealed(&config)?, code] })
}

/// Where a module is.
pub(crate) enum Module<'a> {
    File(File),
    /// In the container's image, as it is.
    InImage(image::Module<'a>),
}

/// A module's code. That of a layer is known by the layer's digest, so the module is only read to be compiled.
fn precompiled(module: Module<'_>, options: &WasmOptions) -> Result<cache::Entry> {
    let module = match module {
        Module::File(file) => file,
        Module::InImage(module) => {
            let known = module.layer().digest.sha256().map(|digest| cache::by_digest(digest, options));
            if let Some(entry) = known.transpose()?.flatten() {
                return Ok(entry);
            }
            module.read()?.into()
        }
    };
    cache::get(module, options)
}

/// What is called of a module: the function that is asked for, or its first usual entry point.
fn call(facts: &Facts, function: Option<&str>, options: &WasmOptions) -> Result<Call> {
    const OFF: &str = "WASI 0.3 is turned off (the runtime option WasmWasi03)";
    if facts.imports.wasi03 && !options.wasi03 {
        bail!(InvalidArgument, "it imports WASI 0.3: {OFF}");
    }
    if let Some(function) = function {
        if !facts.functions.iter().any(|export| export == function) {
            bail!(InvalidArgument, "no function {function:?} without parameters and results is exported");
        }
        let function = function.to_owned();
        return Ok(match facts.world {
            World::Core => Call::CoreFunction(function),
            World::Component => Call::ComponentFunction(function),
        });
    }
    if let Some(entry) = facts.entries.iter().find(|entry| options.wasi03 || !entry.is_wasi03()) {
        return Ok(Call::Entry(*entry));
    }
    match (facts.world, facts.entries.first()) {
        (_, Some(entry)) => bail!(InvalidArgument, "it exports {} only: {OFF}", entry.name()),
        (World::Core, None) => bail!(InvalidArgument, "no entry point: it does not export {}", Entry::Start.name()),
        (World::Component, None) => {
            let wanted = [Entry::Handler03, Entry::Handler02, Entry::Run03, Entry::Run02].map(Entry::name);
            bail!(InvalidArgument, "no entry point: it exports none of {}", wanted.join(", "))
        }
    }
}

/// A cache entry's folder on a read-only mount that is attached nowhere: it has no `..` to leave by. It keeps the entry from
/// being removed until the runner has mapped the code and closes it.
fn read_only_entry(folder: &OwnedFd) -> Result<OwnedFd> {
    let what = || "mount its code read-only";
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(folder, c"", flags).or_kind(Kind::Internal, what)?;
    let tree = read_only(tree).or_kind(Kind::Internal, what)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let copy = rustix::fs::openat(tree, c".", flags, Mode::empty()).or_kind(Kind::Internal, what)?;
    rustix::fs::flock(&copy, FlockOperation::LockShared).or_kind(Kind::Internal, what)?;
    Ok(copy)
}

fn read_only(tree: OwnedFd) -> std::result::Result<OwnedFd, Errno> {
    let attr = MountAttr {
        set: libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV,
        propagation: libc::MS_PRIVATE,
        ..MountAttr::default()
    };
    sys::mount_setattr(tree.as_fd(), false, &attr)?;
    Ok(tree)
}

/// This process's own binary, also when it was replaced on disk by an upgrade.
fn own_binary() -> Result<OwnedFd> {
    let binary = host::own_binary()?;
    if host::is_read_only(&binary)? {
        return Ok(binary);
    }
    // A server runs from a read-only mount; who else runs containers may not.
    let path = std::fs::read_link("/proc/self/exe").or_kind(Kind::Internal, || "read /proc/self/exe")?;
    let tree = clone_tree(&path, Recursive::No).and_then(read_only);
    tree.or_kind(Kind::Internal, || format!("mount {} read-only", path.display()))
}

/// The runner's configuration where nobody can change it any more.
fn sealed(config: &RunnerConfig) -> Result<OwnedFd> {
    let what = || "runner configuration";
    let json = serde_json::to_vec(config).or_kind(Kind::Internal, what)?;
    host::sealed_file("hybrid-wasm", &json).map_err(|e| e.context(what()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_lock_file() {
        let (lock, version) = (include_str!("../../../Cargo.lock"), runner::WASMTIME);
        assert!(lock.contains(&format!("name = \"wasmtime\"\nversion = \"{version}\"")), "update runner::WASMTIME");
    }

    #[test]
    fn text_is_told_by_its_first_words() {
        let is_wasm = |bytes: &[u8]| {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(bytes, 0).unwrap();
            super::is_wasm(&file).unwrap()
        };
        let padded = |length: usize| format!("(;{};)(module)", "x".repeat(length - 4));
        for text in [
            "(module",
            "(module)",
            "(component $c (core module))",
            " \t\r\n( module)",
            "( (;why;) module;; not",
            ";; a comment\n;; another\n(module\n)",
            "(; (; in ;) (; another ;) ;)(component)",
            "(;;)(;);;)(module)",
            &padded(TEXT_HEAD - 8),
        ] {
            assert!(is_wasm(text.as_bytes()), "{text}");
        }
        for other in [
            "",
            "(",
            "(mod",
            "(modules)",
            "(component-of nothing)",
            "(progn)",
            "# (module)",
            "#!/bin/sh\n",
            "; (module)",
            ";; (module)",
            "(; (module)",
            "(; (; ;) (module)",
            &padded(TEXT_HEAD),
        ] {
            assert!(!is_wasm(other.as_bytes()), "{other}");
        }
        assert!(is_wasm(b"\0asm") && is_wasm(b"\0asm\x01\0\0\0") && !is_wasm(b"\0as") && !is_wasm(b"\x7fELF"));
    }

    #[test]
    fn an_entrypoint_may_name_an_export() {
        assert_eq!(entrypoint("/a.wasm"), ("/a.wasm", None));
        assert_eq!(entrypoint("/a.wasm#run"), ("/a.wasm", Some("run")));
        assert_eq!(entrypoint("/a#b.wasm#run"), ("/a#b.wasm", Some("run")));
        assert_eq!(entrypoint("#run"), ("#run", None));
        assert_eq!(entrypoint("/a.wasm#"), ("/a.wasm#", None));
    }
}
