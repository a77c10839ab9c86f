//! Compiles the probe for Linux and for WASI 0.1, the guests of WASI 0.2, and the logger and the hook for Linux.
//!
//! Compilers: `CC` (default `cc`, with a static libc) and `WASM_CC` (default: the first of `clang-19`, `clang` that
//! exists; Debian's packages are clang-19, lld-19, wasi-libc and libclang-rt-19-dev-wasm32).
use anyhow::{Context, Result, bail, ensure};
use std::path::{Path, PathBuf};
use std::process::Command;

const FLAGS: [&str; 6] = ["-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-Wl,--strip-all"];

const PROBE: &[&str] = &["probe.c", "terminal.c", "memory.c"];

/// The probe as a statically linked Linux program.
pub(crate) fn linux() -> Result<Vec<u8>> {
    compile(&mut static_linux(), PROBE)
}

/// The probe as a WASI 0.1 command module.
pub(crate) fn core_module() -> Result<Vec<u8>> {
    compile(Command::new(wasm_compiler()?).arg("--target=wasm32-wasi"), PROBE)
}

/// A guest of WASI 0.2 that is no command module: the core of a component (see [`crate::wasm::guest`]).
pub(crate) fn guest(source: &str) -> Result<Vec<u8>> {
    let mut compiler = Command::new(wasm_compiler()?);
    compile(compiler.args(["--target=wasm32-wasi", "-nostartfiles", "-Wl,--no-entry"]), &[source])
}

/// The log driver as a statically linked Linux program.
pub(crate) fn logger() -> Result<Vec<u8>> {
    compile(&mut static_linux(), &["logger.c"])
}

/// The hook as a statically linked Linux program.
pub(crate) fn hook() -> Result<Vec<u8>> {
    compile(&mut static_linux(), &["hook.c"])
}

fn static_linux() -> Command {
    let mut compiler = Command::new(std::env::var_os("CC").unwrap_or_else(|| "cc".into()));
    // A build id is a digest of the build's inputs, paths among them.
    compiler.args(["-static", "-Wl,--build-id=none"]);
    compiler
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
    std::fs::read(&program).with_context(|| format!("reading the compiled {}", program.display()))
}
