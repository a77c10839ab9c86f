//! Finds containerd and puts the program that asks into namespaces of its own.
use anyhow::{Context, Result, bail, ensure};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The release lines that can be had as packages.
pub const LINES: [&str; 3] = ["1.6", "1.7", "2.x"];

/// Set for the run inside the namespaces: `line=folder` of each containerd, separated by spaces.
const INSIDE: &str = "HYBRID_E2E_INSIDE";

/// Set there too: the folder of the newest line's programs, for upgrades to it, if it can be had.
const NEWEST: &str = "HYBRID_E2E_NEWEST";

/// The folder with the programs of the newest release line.
pub fn newest() -> Result<PathBuf> {
    std::env::var_os(NEWEST).map(PathBuf::from).context("the newest containerd cannot be had")
}

/// Returns, inside the namespaces, the release lines and the folders with their programs: those that
/// `HYBRID_CONTAINERD` names, or the ones of `default` that can be had.
///
/// Outside it finds them, while the network can be reached, and starts this program again with `scripts/isolated`; then
/// it does not return.
pub fn enter(default: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    if let Ok(found) = std::env::var(INSIDE) {
        let entries = found.split(' ').filter_map(|entry| entry.split_once('='));
        return Ok(entries.map(|(line, programs)| (line.to_owned(), PathBuf::from(programs))).collect());
    }
    let wanted = std::env::var("HYBRID_CONTAINERD").unwrap_or_default();
    let named: Vec<&str> = wanted.split([',', ' ']).filter(|line| !line.is_empty() && *line != "all").collect();
    let scripts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts");
    let mut found = Vec::new();
    let look = |line: &str| {
        let mut command = Command::new(scripts.join("containerd"));
        let output = command.arg(line).stderr(Stdio::inherit()).output();
        let output = output.with_context(|| format!("looking for containerd {line}"))?;
        let programs = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok::<_, anyhow::Error>(output.status.success().then_some(programs))
    };
    for line in if named.is_empty() { default } else { &named } {
        if let Some(programs) = look(line)? {
            found.push(format!("{line}={programs}"));
        } else if named.contains(line) {
            bail!("containerd {line} cannot be had");
        } else {
            eprintln!("containerd {line} cannot be had: nothing is tested with it");
        }
    }
    ensure!(!found.is_empty(), "no containerd can be had");
    let program = std::env::current_exe().context("finding this program")?;
    let mut command = Command::new(scripts.join("isolated"));
    command.arg(program).args(std::env::args_os().skip(1)).env(INSIDE, found.join(" "));
    if let Some(programs) = look(LINES[LINES.len() - 1])? {
        command.env(NEWEST, programs);
    }
    Err(command.exec()).with_context(|| format!("executing {command:?}"))
}
