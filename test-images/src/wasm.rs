//! WebAssembly made here without a compiler: the component around a core module, and the small cases in text form.
use crate::programs;
use crate::tree::Tree;
use anyhow::{Context, Result};
use wasi_preview1_component_adapter_provider::{
    WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER,
};
use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

/// Wraps a WASI 0.1 command module as a 0.2 command component.
pub(crate) fn component(core: &[u8]) -> Result<Vec<u8>> {
    ComponentEncoder::default()
        .validate(true)
        .module(core)
        .and_then(|encoder| {
            encoder.adapter(WASI_SNAPSHOT_PREVIEW1_ADAPTER_NAME, WASI_SNAPSHOT_PREVIEW1_COMMAND_ADAPTER)
        })
        .and_then(|encoder| encoder.encode())
        .context("wrapping the core module as a component")
}

/// Makes a component of a core module that uses the interfaces of `world` in `programs/guests.wit` by itself.
pub(crate) fn guest(mut core: Vec<u8>, world: &str) -> Result<Vec<u8>> {
    let mut resolve = Resolve::default();
    let package = resolve.push_str("guests.wit", include_str!("../programs/guests.wit"))?;
    let world = resolve.select_world(&[package], Some(world))?;
    embed_component_metadata(&mut core, &resolve, world, StringEncoding::UTF8, false)?;
    ComponentEncoder::default()
        .validate(true)
        .module(&core)
        .and_then(|encoder| encoder.encode())
        .context("making a component of the core module")
}

const CASES: [(&str, &str); 10] = [
    ("true.wasm", include_str!("../programs/true.wat")),
    ("trap.wasm", include_str!("../programs/trap.wat")),
    ("no-entry.wasm", include_str!("../programs/no-entry.wat")),
    ("missing-import.wasm", include_str!("../programs/missing-import.wat")),
    ("function.wasm", include_str!("../programs/function.wat")),
    ("name.wasm", include_str!("../programs/name.wat")),
    ("loop.wasm", include_str!("../programs/loop.wat")),
    ("reactor.wasm", include_str!("../programs/reactor.wat")),
    ("threads.wasm", include_str!("../programs/threads.wat")),
    ("wide.wasm", include_str!("../programs/wide.wat")),
];

/// The module of one case.
pub(crate) fn case(name: &str) -> Result<Vec<u8>> {
    let (_, text) = CASES.iter().find(|(case, _)| *case == name).with_context(|| format!("no case {name}"))?;
    wat::parse_str(text).with_context(|| format!("assembling {name}"))
}

/// A module that does nothing, and is another for each label (WebAssembly core specification, 5.5.3: a custom section).
pub(crate) fn labelled(label: &str) -> Result<Vec<u8>> {
    let mut module = case("true.wasm")?;
    let length = u8::try_from(label.len()).ok().filter(|length| *length < 127).context("a short label")?;
    module.extend([0, length + 1, length]);
    module.extend(label.as_bytes());
    Ok(module)
}

/// Adds one file for each case to the tree: the guests of WASI 0.2 and 0.3, `truncated.wasm`, a module that is cut off,
/// `text.wasm`, one in text form, and those that trap and have DWARF.
pub(crate) fn cases(mut tree: Tree) -> Result<Tree> {
    for (name, program, world) in [
        ("service.wasm", programs::SERVICE, "service"),
        ("network.wasm", programs::NETWORK, "network"),
        ("config.wasm", programs::CONFIG, "config"),
        ("handler.wasm", programs::HANDLER, "handler"),
        ("socket.wasm", programs::SOCKET, "socket"),
        ("folder.wasm", programs::FOLDER, "folder"),
        ("request.wasm", programs::REQUEST, "request"),
        ("client.wasm", programs::CLIENT, "client"),
        ("large-service.wasm", programs::LARGE_SERVICE, "service"),
        ("several-0-2.wasm", programs::SEVERAL_02, "several-0-2"),
        ("several-0-3.wasm", programs::SEVERAL_03, "several-0-3"),
    ] {
        let guest = program.get().and_then(|core| guest(core, world));
        tree = tree.file(name, 0o644, guest.with_context(|| format!("building {name}"))?);
    }
    let lines = programs::LINES.get()?;
    tree = tree.file("lines-component.wasm", 0o644, component(&lines)?).file("lines.wasm", 0o644, lines);
    for (name, text) in CASES {
        let module = case(name)?;
        if name == "function.wasm" {
            tree = tree.file("truncated.wasm", 0o644, &module[..module.len() / 2]);
            tree = tree.file("text.wasm", 0o644, text);
        }
        tree = tree.file(name, 0o644, module);
    }
    Ok(tree)
}

/// A module that does nothing, with functions of about `bytes` bytes that a program could have.
pub(crate) fn module(bytes: usize) -> Result<Vec<u8>> {
    // Assembled each takes 64 bytes: about as many instructions as a compiler puts into a small function.
    const FUNCTION: &str = "(func (param i32 i32) (result i32) (local i32)
        local.get 0 local.get 1 i32.add local.tee 2 i32.load offset=8 local.get 2 i32.const 12345 i32.mul i32.xor local.get 0
        (if (param i32) (result i32) (then local.get 1 i32.sub) (else local.get 0 i32.const 77 i32.and i32.or))
        local.get 2 i32.const 3 i32.shl local.get 1 i32.store offset=16 local.get 2 i32.rotl
        local.get 0 i32.const 1048575 i32.and i32.add)";
    let functions = FUNCTION.repeat(bytes / 64);
    let text = format!("(module (memory (export \"memory\") 1) {functions} (func (export \"_start\")))");
    wat::parse_str(text).context("assembling a module")
}
