//! `delete`: clean what a dead shim left of one container.
//!
//! containerd calls it whenever a shim's connection ends, mostly after everything was deleted in order. So it must
//! be quick, and must leave a shim alone that still answers for other containers of its group.

use crate::exit_record;
use crate::socket;
use crate::start::{ADDRESS_FILE, SOCKET_DIR_LINK};
use crate::status::timestamp;
use crate::task::INIT_PID_FILE;
use anyhow::{Context, Result, anyhow};
use containerd_shim::Flags;
use containerd_shim_protos::api::DeleteResponse;
use executors::Exit;
use nix::sys::signal::{SigSet, Signal};
use protobuf::Message;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// What containerd takes for the exit status of a container whose shim died: 128 + SIGKILL.
const EXIT_STATUS: u32 = 128 + Signal::SIGKILL as u32;

/// Runs the `delete` action: a `DeleteResponse` goes to stdout, warnings to stderr.
pub fn run(flags: &Flags) -> Result<()> {
    // Half a cleaning would leave things that nobody looks for again.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTERM);
    signals.add(Signal::SIGINT);
    signals.thread_block().context("block SIGTERM")?;

    let bundle = bundle(&flags.id)?;
    if let Err(error) = executors::clean(&flags.id, &bundle) {
        warn(&anyhow!(error).context(format!("clean the container {}", flags.id)));
    }
    if let Err(error) = socket::remove_stale(&socket_path(&bundle, flags)) {
        warn(&error);
    }
    let mut response = DeleteResponse::new();
    response.pid = init_pid(&bundle).unwrap_or_else(|error| {
        warn(&error);
        0
    });
    // What init did before the shim died is known; what was still running has just been killed.
    let recorded = exit_record::read(&bundle).unwrap_or_else(|error| {
        warn(&error);
        None
    });
    let exit = recorded.unwrap_or_else(|| Exit { code: EXIT_STATUS, at: SystemTime::now() });
    response.exit_status = exit.code;
    response.exited_at = timestamp(exit.at);
    let bytes = response.write_to_bytes().context("encode the answer")?;
    io::stdout().lock().write_all(&bytes).context("answer containerd on stdout")
}

fn warn(error: &anyhow::Error) {
    eprintln!("{}: {error:#}", crate::RUNTIME);
}

/// The current folder is a bundle, but not necessarily this container's: all of a namespace are siblings.
fn bundle(id: &str) -> Result<PathBuf> {
    let current = std::env::current_dir().context("find the current folder")?;
    Ok(current.parent().unwrap_or(Path::new("/")).join(id))
}

/// The address that `start` wrote, or, if it didn't get that far, the one of a group of this container alone.
fn socket_path(bundle: &Path, flags: &Flags) -> PathBuf {
    let written = std::fs::read_to_string(bundle.join(ADDRESS_FILE)).ok();
    written.as_deref().and_then(socket::path_of).unwrap_or_else(|| {
        let dir = std::fs::read_link(bundle.join(SOCKET_DIR_LINK)).unwrap_or_else(|_| socket::DEFAULT_DIR.into());
        socket::path(&dir, &flags.address, &flags.namespace, &flags.id)
    })
}

/// The pid of init, or 0 when the container was never created.
fn init_pid(bundle: &Path) -> Result<u32> {
    let path = bundle.join(INIT_PID_FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().with_context(|| format!("parse {}", path.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pid_is_read_from_the_bundle() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(init_pid(bundle.path()).unwrap(), 0);
        std::fs::write(bundle.path().join(INIT_PID_FILE), "123").unwrap();
        assert_eq!(init_pid(bundle.path()).unwrap(), 123);
        std::fs::write(bundle.path().join(INIT_PID_FILE), "x").unwrap();
        assert!(init_pid(bundle.path()).is_err());
    }

    #[test]
    fn the_socket_is_the_written_one_or_the_container_s_own() {
        let bundle = tempfile::tempdir().unwrap();
        let flags = Flags { id: "box".into(), namespace: "n".into(), address: "/c".into(), ..Default::default() };
        let own = |dir: &str| socket::path(Path::new(dir), "/c", "n", "box");
        assert_eq!(socket_path(bundle.path(), &flags), own(socket::DEFAULT_DIR));
        std::os::unix::fs::symlink("/run/elsewhere", bundle.path().join(SOCKET_DIR_LINK)).unwrap();
        assert_eq!(socket_path(bundle.path(), &flags), own("/run/elsewhere"));
        std::fs::write(bundle.path().join(ADDRESS_FILE), "unix:///run/s/x").unwrap();
        assert_eq!(socket_path(bundle.path(), &flags), Path::new("/run/s/x"));
    }
}
