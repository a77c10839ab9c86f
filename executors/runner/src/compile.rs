//! The precompiler: a short-lived process of this binary that compiles one module.
//!
//! Compilers eat hostile input, so it confines itself before it reads any: no network, no privileges, another user, and
//! limits on memory and time, nothing but its own folder as root. It gets the module as stdin, the file for the code as
//! stdout, and answers on stderr, a file too: the module's [`Facts`] as JSON and exit code 0, or one sentence and exit code 1,
//! or [`HOST_FAILED`].

use std::io::{Read, Write};
use std::process::ExitCode;

use rustix::fs::{Gid, Uid};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets};
use wasmtime::component::Component;
use wasmtime::component::types::ComponentItem;
use wasmtime::{Engine, ExternType, Module};

use crate::{Entry, Facts, Imports, World, engine, sys, text};

/// Memory that compiling may take, in bytes; a module of 50 MB takes about 2 GB.
const MAX_DATA: u64 = 8 << 30;

/// Processor time that compiling may take, in seconds.
pub const MAX_CPU: u64 = 600;

/// The exit code when it was not the module that was at fault.
pub const HOST_FAILED: u8 = 2;

/// The largest file of code, in bytes.
pub const MAX_CODE: u64 = 2 << 30;

/// The memory that compiling may take on this host, in bytes: no more than half of what the host has.
pub fn max_data() -> u64 {
    let host = rustix::system::sysinfo();
    #[allow(clippy::useless_conversion, reason = "the width differs between architectures")]
    let total = u64::from(host.totalram).saturating_mul(host.mem_unit.into());
    MAX_DATA.min(total / 2)
}

/// The user that compiles: nobody.
const NOBODY: u32 = 65534;

/// The precompiler's own main.
pub(crate) fn main() -> ExitCode {
    let confined = confine().map_err(|e| wasmtime::Error::from(e).context("confine the precompiler"));
    match confined.and_then(|()| compile()) {
        Ok(facts) => {
            eprint!("{facts}");
            ExitCode::SUCCESS
        }
        Err(e) => {
            // Room for the sentence, if it is the disk that is full.
            let _ = rustix::fs::ftruncate(std::io::stdout(), 0);
            let _ = writeln!(std::io::stderr(), "{e:#}");
            ExitCode::from(if e.is::<std::io::Error>() { HOST_FAILED } else { 1 })
        }
    }
}

/// Gives up everything that compiling doesn't need.
fn confine() -> std::io::Result<()> {
    // Where memory is short this is what may go first (proc_pid_oom_score_adj(5)): the shim's own score says the opposite.
    std::fs::write("/proc/self/oom_score_adj", "1000")?;
    sys::unshare(libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWNS)?;
    // The folder that it was started in.
    std::os::unix::fs::chroot(".")?;
    std::env::set_current_dir("/")?;
    for (resource, limit) in [
        (Resource::Data, max_data()),
        (Resource::Cpu, MAX_CPU),
        (Resource::Fsize, MAX_CODE),
        (Resource::Core, 0),
        (Resource::Nofile, 64),
    ] {
        // A lower limit that this process has already stays.
        let lower = |limit: u64, old: Option<u64>| Some(old.map_or(limit, |old| old.min(limit)));
        // A second more, or there would be no SIGXCPU to tell by (setrlimit(2)).
        let hard = if resource == Resource::Cpu { limit + 1 } else { limit };
        let old = rustix::process::getrlimit(resource);
        rustix::process::setrlimit(
            resource,
            Rlimit { current: lower(limit, old.current), maximum: lower(hard, old.maximum) },
        )?;
    }
    rustix::thread::set_thread_groups(&[])?;
    let (uid, gid) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })?;
    rustix::thread::set_no_new_privs(true)?;
    // Last, as a change of user clears it (PR_SET_PDEATHSIG(2const)).
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    Ok(())
}

fn compile() -> wasmtime::Result<String> {
    let mut bytes = Vec::new();
    std::io::stdin().lock().read_to_end(&mut bytes)?;
    if text::is_text(&bytes[..bytes.len().min(text::TEXT_HEAD)]) {
        wasmtime::bail!("it is WebAssembly text; assemble it, for instance with `wasm-tools parse`");
    }
    let proposals: Vec<String> = std::env::args().skip(1).collect();
    let engine = engine::compiler(&proposals, false)?;
    let (facts, code) = if !is_component(&bytes) {
        core(&engine, &bytes)?
    } else if might_serve(&bytes) {
        // What it is, is known when it is compiled: once more, if it only has the name in it.
        match component(&engine::compiler(&proposals, true)?, &bytes)? {
            (facts, code) if facts.serves() => (facts, code),
            _ => component(&engine, &bytes)?,
        }
    } else {
        component(&engine, &bytes)?
    };
    std::io::stdout().lock().write_all(&code)?;
    std::io::stdout().lock().flush()?;
    Ok(serde_json::to_string(&facts)?)
}

/// Whether the bytes behind the magic ones say "component": the layer field (component model, Binary.md).
fn is_component(bytes: &[u8]) -> bool {
    bytes.get(6..8) == Some(&[1, 0])
}

/// Whether the names of what services export are in a component.
fn might_serve(bytes: &[u8]) -> bool {
    [Entry::Handler03, Entry::Handler02].iter().any(|entry| {
        let name = entry.name().as_bytes();
        bytes.windows(name.len()).any(|part| part == name)
    })
}

fn core(engine: &Engine, bytes: &[u8]) -> wasmtime::Result<(Facts, Vec<u8>)> {
    let module = Module::from_binary(engine, bytes).map_err(|e| e.context("it is not a valid module"))?;
    engine::check_core(engine, &module)?;
    let is_plain =
        |ty: &ExternType| matches!(ty, ExternType::Func(f) if f.params().len() == 0 && f.results().len() == 0);
    let functions: Vec<String> =
        module.exports().filter(|export| is_plain(&export.ty())).map(|export| export.name().to_owned()).collect();
    let start = functions.iter().any(|function| function == Entry::Start.name()).then_some(Entry::Start);
    let entries = start.into_iter().collect();
    Ok((Facts { world: World::Core, entries, functions, imports: Imports::default() }, module.serialize()?))
}

fn component(engine: &Engine, bytes: &[u8]) -> wasmtime::Result<(Facts, Vec<u8>)> {
    let component = Component::from_binary(engine, bytes).map_err(|e| e.context("it is not a valid component"))?;
    let ty = component.component_type();
    let mut imports = Imports::default();
    for (name, _) in ty.imports(engine) {
        if is_candidate(name) {
            wasmtime::bail!("it imports {name}: {CANDIDATES}");
        }
        imports.add(name);
    }
    engine::check_component(engine, &component, imports)?;
    let mut facts = Facts { world: World::Component, entries: Vec::new(), functions: Vec::new(), imports };
    for (name, item) in ty.exports(engine) {
        match item.ty {
            ComponentItem::ComponentInstance(_) => facts.entries.extend(Entry::of_export(name)),
            ComponentItem::ComponentFunc(f) if f.params().len() == 0 && f.results().len() == 0 => {
                facts.functions.push(name.to_owned());
            }
            _ => {}
        }
    }
    if facts.entries.is_empty()
        && facts.functions.is_empty()
        && let Some((name, _)) = ty.exports(engine).find(|(name, _)| is_candidate(name))
    {
        wasmtime::bail!("no entry point: it exports {name}: {CANDIDATES}");
    }
    facts.entries.sort_unstable();
    Ok((facts, component.serialize()?))
}

const CANDIDATES: &str = "release candidates of WASI 0.3 are not supported; build it for 0.3.0";

/// Whether a name is of a release candidate of WASI 0.3, such as `wasi:cli/run@0.3.0-rc-2026-01-06`: their interfaces are others.
fn is_candidate(name: &str) -> bool {
    name.starts_with("wasi:") && name.split_once("@0.3.0-").is_some()
}
