//! `start`: find the group's live shim or become it, and tell containerd where it listens.
//!
//! The server is a fork of this process, which runs from a read-only mount of its binary, without an exec: the listener is bound before, so that containerd's
//! connect waits in its backlog, and this process answers and ends at once.

use crate::bootstrap::{self, Environment, Params};
use crate::serve::{self, Server};
use crate::socket::{self, Bound, Claim};
use anyhow::{Context, Result};
use containerd_shim::Flags;
use executors::host;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use std::collections::HashMap;
use std::io::{self, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

/// The most that containerd's Go shim reads from stdin, in bytes.
const MAX_STDIN: u64 = 10 << 20;

/// Annotations that put containers into one shim; the first one that is there counts.
const GROUP_ANNOTATIONS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// A symbolic link in the bundle to the folder of the socket, where it isn't the default one.
pub const SOCKET_DIR_LINK: &str = "s";
/// A file in the bundle with the shim's address; containerd up to 2.2 reads it after a restart.
pub const ADDRESS_FILE: &str = "address";

/// The largest value of oom_score_adj, see proc_pid_oom_score_adj(5).
const OOM_SCORE_MAX: i32 = 1000;

/// Runs the `start` action in the bundle (the current folder).
pub fn run(flags: &Flags) -> Result<()> {
    // Before anything is read: what comes back from it is another process image.
    host::run_read_only()?;
    let params = bootstrap::parse(&read_stdin()?, flags, Environment::read())?;
    let bundle = std::env::current_dir().context("find the bundle (the current folder)")?;
    let group = group(&bundle, &params.id)?;
    let dir = params.socket_dir.as_deref().unwrap_or(socket::DEFAULT_DIR);
    if params.socket_dir.is_some() {
        link_socket_dir(&bundle, dir)?;
    }
    let path = socket::path(Path::new(dir), &params.grpc_address, &params.namespace, &group);
    let address = socket::address(&path);
    let reply = params.reply.encode(&address)?;
    match socket::bind(&path)? {
        Bound::Live => {
            write_address(&bundle, &address)?;
            answer(&reply)
        }
        Bound::New(claim) => leave_server(&bundle, params, path.clone(), claim, &address, &reply)
            .inspect_err(|_| remove_socket_after_error(&path)),
    }
}

/// Prepares this process to be the server, forks it off and answers.
fn leave_server(bundle: &Path, params: Params, path: PathBuf, claim: Claim, address: &str, reply: &[u8]) -> Result<()> {
    write_address(bundle, address)?;
    if let Some(cgroup) = &params.options.shim_cgroup {
        host::join_cgroup(cgroup).with_context(|| format!("container {}: the option ShimCgroup", params.id))?;
    }
    let warning = raise_oom_score()?;
    if std::env::var_os("SCHED_CORE").is_some_and(|value| !value.is_empty()) {
        host::new_core_scheduling_group().context("create a core scheduling group, as SCHED_CORE asks")?;
    }
    match host::fork().context("fork the server")? {
        host::Fork::Parent { child } => answer(reply).inspect_err(|_| {
            // Nobody will ever connect. SIGKILL, because the child may not handle SIGTERM yet.
            let _ = kill(Pid::from_raw(child.cast_signed()), Signal::SIGKILL);
        }),
        host::Fork::Child => serve::run(Server {
            listener: claim.take_over()?,
            socket: path,
            id: params.id,
            namespace: params.namespace,
            grpc_address: params.grpc_address,
            ttrpc_address: params.ttrpc_address,
            level: params.level,
            warning,
        }),
    }
}

fn remove_socket_after_error(path: &Path) {
    // The error that led here is the one to report; a socket left behind is found stale by the next start.
    let _ = socket::remove(path);
}

fn read_stdin() -> Result<Vec<u8>> {
    let stdin = io::stdin();
    let mut input = Vec::new();
    // A terminal means that a person tries the command: there is nothing to wait for.
    if !stdin.is_terminal() {
        stdin.lock().take(MAX_STDIN).read_to_end(&mut input).context("read the bootstrap parameters from stdin")?;
    }
    Ok(input)
}

/// The group of the container: from the bundle's annotations, or its own id. A bundle may come without config.json
/// (a sandbox that the shim itself makes), which `start` has no reason to refuse.
fn group(bundle: &Path, id: &str) -> Result<String> {
    #[derive(Deserialize)]
    struct Spec {
        #[serde(default)]
        annotations: Option<HashMap<String, String>>,
    }
    let path = bundle.join("config.json");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(id.to_owned()),
        Err(error) => return Err(error).with_context(|| format!("container {id}: read {}", path.display())),
    };
    let spec: Spec =
        serde_json::from_slice(&text).with_context(|| format!("container {id}: parse {}", path.display()))?;
    let mut annotations = spec.annotations.unwrap_or_default();
    let group = GROUP_ANNOTATIONS.iter().find_map(|name| annotations.remove(*name));
    Ok(group.unwrap_or_else(|| id.to_owned()))
}

/// `delete` runs without the bootstrap parameters and finds the folder here.
fn link_socket_dir(bundle: &Path, dir: &str) -> Result<()> {
    let link = bundle.join(SOCKET_DIR_LINK);
    match std::fs::remove_file(&link) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("replace {}", link.display()));
        }
        _ => {}
    }
    std::os::unix::fs::symlink(dir, &link).with_context(|| format!("link {} to {dir}", link.display()))
}

/// Written aside and renamed: containerd must never read half an address after a crash.
fn write_address(bundle: &Path, address: &str) -> Result<()> {
    let file = bundle.join(ADDRESS_FILE);
    let temporary = bundle.join(".address");
    std::fs::write(&temporary, address)
        .and_then(|()| std::fs::rename(&temporary, &file))
        .with_context(|| format!("write {}", file.display()))
}

/// Sets our OOM score to the parent's plus one, so that the kernel prefers to kill the shim over containerd.
/// Without the privilege for it (a rootless containerd) the score stays: that is returned as a warning.
fn raise_oom_score() -> Result<Option<String>> {
    let parent = format!("/proc/{}/oom_score_adj", std::os::unix::process::parent_id());
    let score: i32 = std::fs::read_to_string(&parent)
        .with_context(|| format!("read {parent}"))?
        .trim()
        .parse()
        .with_context(|| format!("parse {parent}"))?;
    let score = (score + 1).min(OOM_SCORE_MAX);
    match std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        Ok(()) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Ok(Some(format!("set the shim's OOM score to {score}: {error}")))
        }
        Err(error) => Err(error).with_context(|| format!("set the shim's OOM score to {score}")),
    }
}

fn answer(reply: &[u8]) -> Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(reply).and_then(|()| stdout.flush()).context("answer containerd on stdout")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group_of(config: Option<&str>) -> Result<String> {
        let bundle = tempfile::tempdir().unwrap();
        if let Some(config) = config {
            std::fs::write(bundle.path().join("config.json"), config).unwrap();
        }
        group(bundle.path(), "box")
    }

    #[test]
    fn the_group_comes_from_the_first_annotation_or_is_the_id() {
        let both = r#"{"ociVersion":"1.3.0","annotations":{
            "io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"mine"}}"#;
        assert_eq!(group_of(Some(both)).unwrap(), "mine");
        assert_eq!(group_of(Some(r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#)).unwrap(), "pod");
        assert_eq!(group_of(Some(r#"{"annotations":{"other":"x"}}"#)).unwrap(), "box");
        assert_eq!(group_of(Some(r#"{"annotations":null}"#)).unwrap(), "box");
        assert_eq!(group_of(Some("{}")).unwrap(), "box");
        assert_eq!(group_of(None).unwrap(), "box");
    }

    #[test]
    fn a_broken_config_is_refused_with_its_container() {
        let error = format!("{:#}", group_of(Some(r#"{"annotations":{"#)).unwrap_err());
        assert!(error.contains("container box") && error.contains("config.json"), "{error}");
    }

    #[test]
    fn address_and_link_are_replaced() {
        let bundle = tempfile::tempdir().unwrap();
        for address in ["unix:///a", "unix:///b"] {
            write_address(bundle.path(), address).unwrap();
            assert_eq!(std::fs::read_to_string(bundle.path().join(ADDRESS_FILE)).unwrap(), address);
        }
        for dir in ["/run/a", "/run/b"] {
            link_socket_dir(bundle.path(), dir).unwrap();
            assert_eq!(std::fs::read_link(bundle.path().join(SOCKET_DIR_LINK)).unwrap(), Path::new(dir));
        }
        let mut names: Vec<_> = std::fs::read_dir(bundle.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["address", "s"]);
    }
}
