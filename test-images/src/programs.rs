//! Compiles the probe for Linux and for WASI 0.1, the guests of WASI 0.2 and 0.3, and the logger and the hook for Linux.
//!
//! Compilers: `CC` (default `cc`, with a static libc) and `WASM_CC` (default: the first of `clang-19`, `clang` that
//! exists; Debian's packages are clang-19, lld-19, wasi-libc and libclang-rt-19-dev-wasm32). Where there are none,
//! `HYBRID_PROGRAMS` names a folder with what was compiled elsewhere ([`save`]).
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

const FLAGS: [&str; 5] = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror"];

/// What both kinds of the probe are made of.
const PROBE: &[&str] = &["probe.c", "terminal.c", "memory.c"];

/// The same with what only Linux has.
const LINUX_PROBE: &[&str] = &["probe.c", "terminal.c", "memory.c", "kernel.c", "attack.c"];

/// The probe as a statically linked Linux program.
pub(crate) const LINUX: Program = Program { name: "probe", target: Target::Linux, sources: LINUX_PROBE };
/// The probe as a WASI 0.1 command module.
pub(crate) const CORE_MODULE: Program = Program { name: "probe.wasm", target: Target::Command, sources: PROBE };
/// The log driver as a statically linked Linux program.
pub(crate) const LOGGER: Program = Program { name: "logger", target: Target::Linux, sources: &["logger.c"] };
/// The hook as a statically linked Linux program.
pub(crate) const HOOK: Program = Program { name: "hook", target: Target::Linux, sources: &["hook.c"] };
pub(crate) const SERVICE: Program = Program { name: "service.wasm", target: Target::Guest, sources: &["service.c"] };
pub(crate) const NETWORK: Program = Program { name: "network.wasm", target: Target::Guest, sources: &["network.c"] };
pub(crate) const HANDLER: Program = Program { name: "handler.wasm", target: Target::Guest, sources: &["handler.c"] };
pub(crate) const SOCKET: Program = Program { name: "socket.wasm", target: Target::Guest, sources: &["socket.c"] };
pub(crate) const CONFIG: Program = Program { name: "config.wasm", target: Target::Guest, sources: &["config.c"] };
pub(crate) const FOLDER: Program = Program { name: "folder.wasm", target: Target::Guest, sources: &["folder.c"] };
pub(crate) const REQUEST: Program = Program { name: "request.wasm", target: Target::Guest, sources: &["request.c"] };
pub(crate) const CLIENT: Program = Program { name: "client.wasm", target: Target::Guest, sources: &["client.c"] };
/// The same service with a memory of 64 MiB.
pub(crate) const LARGE_SERVICE: Program =
    Program { name: "large-service.wasm", target: Target::Guest, sources: &["service.c", "large.c"] };
/// Services that are commands as well, and one that is also a service of an older version.
pub(crate) const SEVERAL_02: Program =
    Program { name: "several-0-2.wasm", target: Target::Guest, sources: &["service.c", "commands.c"] };
pub(crate) const SEVERAL_03: Program =
    Program { name: "several-0-3.wasm", target: Target::Guest, sources: &["handler.c", "older.c", "commands.c"] };
/// A WASI 0.1 command module that has DWARF and traps.
pub(crate) const LINES: Program = Program { name: "lines.wasm", target: Target::Debugged, sources: &["lines.c"] };

const ALL: [&Program; 16] = [
    &LINUX,
    &CORE_MODULE,
    &LOGGER,
    &HOOK,
    &SERVICE,
    &NETWORK,
    &HANDLER,
    &SOCKET,
    &CONFIG,
    &FOLDER,
    &REQUEST,
    &CLIENT,
    &LARGE_SERVICE,
    &SEVERAL_02,
    &SEVERAL_03,
    &LINES,
];

pub(crate) struct Program {
    name: &'static str,
    target: Target,
    sources: &'static [&'static str],
}

enum Target {
    Linux,
    /// A command module of WASI 0.1.
    Command,
    /// The same with DWARF.
    Debugged,
    /// A guest of WASI 0.2 or 0.3 that is no command module: the core of a component (see [`crate::wasm::guest`]).
    Guest,
}

impl Program {
    pub(crate) fn get(&self) -> Result<Vec<u8>> {
        match std::env::var_os("HYBRID_PROGRAMS") {
            Some(folder) => read(&Path::new(&folder).join(self.name)),
            None => self.compile(),
        }
    }

    fn compile(&self) -> Result<Vec<u8>> {
        let mut compiler = match self.target {
            Target::Linux => static_linux(),
            Target::Command | Target::Debugged | Target::Guest => for_wasm()?,
        };
        if matches!(self.target, Target::Guest) {
            compiler.args(["-nostartfiles", "-Wl,--no-entry"]);
        }
        match self.target {
            // The compiler's folder is part of it, where it isn't named.
            Target::Debugged => compiler.args(["-g", "-ffile-compilation-dir=."]),
            _ => compiler.arg("-Wl,--strip-all"),
        };
        compile(&mut compiler, self.sources)
    }
}

/// Compiles every program into the folder `out`, for `HYBRID_PROGRAMS`.
pub(crate) fn save(out: &Path) -> Result<()> {
    for program in ALL {
        let path = out.join(program.name);
        std::fs::write(&path, program.compile()?).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn static_linux() -> Command {
    let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    // A build id is a digest of the build's inputs, paths among them.
    compiler.args(["-static", "-Wl,--build-id=none"]);
    compiler
}

fn for_wasm() -> Result<Command> {
    let mut compiler = Command::new(wasm_compiler()?);
    compiler.arg("--target=wasm32-wasi");
    Ok(compiler)
}

fn wasm_compiler() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("WASM_CC") {
        return Ok(named.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    for name in ["clang-19", "clang"] {
        if let Some(found) = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.is_file()) {
            return Ok(found);
        }
    }
    bail!("no clang for WebAssembly: install clang-19 lld-19 wasi-libc libclang-rt-19-dev-wasm32, or set WASM_CC")
}

fn compile(compiler: &mut Command, sources: &[&str]) -> Result<Vec<u8>> {
    let out = tempfile::tempdir().context("making a folder for the compiler's output")?;
    let program = out.path().join("program");
    // From its own folder and by a relative name, so that no path of the machine ends up in the program.
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs");
    compiler.args(FLAGS).arg("-o").arg(&program).args(sources).current_dir(folder);
    let output = compiler.output().with_context(|| format!("running the compiler: {compiler:?}"))?;
    ensure!(
        output.status.success(),
        "{compiler:?} failed ({}):\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    read(&program)
}

fn read(program: &Path) -> Result<Vec<u8>> {
    std::fs::read(program).with_context(|| format!("reading the compiled {}", program.display()))
}
