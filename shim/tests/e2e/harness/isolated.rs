//! Finds containerd, and Docker Engine for those who want it, and puts the program that asks into namespaces of its own.
use anyhow::{Context, Error, Result, bail, ensure};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The release lines that can be had as packages.
pub const LINES: [&str; 3] = ["1.6", "1.7", "2.x"];

/// Set for the run inside the namespaces: `name=folder` of all that was found, separated by spaces. A containerd's name
/// is its line.
const INSIDE: &str = "HYBRID_E2E_INSIDE";

/// Set there too: the folder of the newest line's programs, for upgrades to it, if it can be had.
const NEWEST: &str = "HYBRID_E2E_NEWEST";

/// Set there too: the folder with Python, if it can be had.
const PYTHON: &str = "HYBRID_E2E_PYTHON";

/// The folder that `scripts/python` provides.
#[allow(dead_code, reason = "only the tests through ctr ask for it")]
pub fn python() -> Result<String> {
    std::env::var(PYTHON).context("Python cannot be had")
}

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
    match inside() {
        Some(found) => Ok(found),
        None => {
            let newest = script("containerd", &[LINES[LINES.len() - 1]])?;
            Err(restart(&lines(default)?, newest.as_deref()))
        }
    }
}

/// Returns, inside the namespaces, the folders with the programs of Docker Engine and of the containerd its packages ask
/// for; nothing if they can't be had. Outside it does as [`enter`] does.
#[allow(dead_code, reason = "only the tests through Docker Engine ask for it")]
pub fn enter_with_docker() -> Result<Option<[PathBuf; 2]>> {
    if let Some(found) = inside() {
        let folders: Vec<PathBuf> = found.into_iter().map(|(_, folder)| folder).collect();
        return Ok(folders.try_into().ok());
    }
    let docker = script("docker", &[])?;
    let containerd = script("containerd", &["1.7"])?;
    let found = docker.zip(containerd).map(|folders| [("docker".to_owned(), folders.0), ("1.7".to_owned(), folders.1)]);
    Err(restart(&found.map_or_else(Vec::new, Vec::from), None))
}

/// What was found outside, if this is inside.
fn inside() -> Option<Vec<(String, PathBuf)>> {
    let found = std::env::var(INSIDE).ok()?;
    let entries = found.split(' ').filter_map(|entry| entry.split_once('='));
    Some(entries.map(|(name, programs)| (name.to_owned(), PathBuf::from(programs))).collect())
}

/// Set to run the tests of the systemd cgroup driver, and no others, on the host itself: systemd knows processes by the pids
/// of its own namespace.
const SYSTEMD: &str = "HYBRID_SYSTEMD";

/// Whether it is to be so.
pub fn on_systemd() -> bool {
    std::env::var_os(SYSTEMD).is_some_and(|value| !value.is_empty())
}

/// The release lines and their folders for a run that is not isolated.
pub fn on_the_host(default: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    ensure!(Path::new("/run/systemd/system").is_dir(), "{SYSTEMD} is set, and process 1 of this host is not systemd");
    // Else the first to connect to it would start it, and it would look like something left behind.
    Command::new("systemctl").args(["start", "dbus.service"]).status().context("executing systemctl")?;
    lines(default)
}

fn lines(default: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let wanted = std::env::var("HYBRID_CONTAINERD").unwrap_or_default();
    let named: Vec<&str> = wanted.split([',', ' ']).filter(|line| !line.is_empty() && *line != "all").collect();
    let mut found = Vec::new();
    for line in if named.is_empty() { default } else { &named } {
        if let Some(programs) = script("containerd", &[line])? {
            found.push(((*line).to_owned(), programs));
        } else if named.contains(line) {
            bail!("containerd {line} cannot be had");
        } else {
            eprintln!("containerd {line} cannot be had: nothing is tested with it");
        }
    }
    ensure!(!found.is_empty(), "no containerd can be had");
    Ok(found)
}

/// Runs one of the scripts that print the folder of what they provide; nothing if it can't.
fn script(name: &str, arguments: &[&str]) -> Result<Option<PathBuf>> {
    let output = Command::new(scripts().join(name))
        .args(arguments)
        .stderr(Stdio::inherit())
        .output()
        .with_context(|| format!("running scripts/{name}"))?;
    let folder = String::from_utf8_lossy(&output.stdout);
    Ok(output.status.success().then(|| PathBuf::from(folder.trim())))
}

fn scripts() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts")
}

/// Executes this program inside the namespaces; returns only the reason why it can't.
fn restart(found: &[(String, PathBuf)], newest: Option<&Path>) -> Error {
    let found: Vec<String> = found.iter().map(|(name, programs)| format!("{name}={}", programs.display())).collect();
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return Error::new(error).context("finding this program"),
    };
    let mut command = Command::new(scripts().join("isolated"));
    command.arg(program).args(std::env::args_os().skip(1)).env(INSIDE, found.join(" "));
    if let (Ok(Some(criu)), Some(path)) = (script("criu", &[]), std::env::var_os("PATH")) {
        let folders = std::iter::once(criu).chain(std::env::split_paths(&path));
        command.env("PATH", std::env::join_paths(folders).unwrap_or(path.clone()));
    } else {
        eprintln!("criu cannot be had: what takes it will fail");
    }
    if let Some(programs) = newest {
        command.env(NEWEST, programs);
    }
    match script("python", &[]) {
        Ok(Some(folder)) => drop(command.env(PYTHON, folder)),
        _ => eprintln!("Python cannot be had: what takes it will fail"),
    }
    Error::new(command.exec()).context(format!("executing {command:?}"))
}
