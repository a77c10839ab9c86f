//! Freezing a cgroup: nothing in it runs until it is thawed.
//!
//! Source: the kernel's cgroup-v1/freezer-subsystem.rst; cgroup-v2.rst, "cgroup.freeze" and "cgroup.events".

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cgroups_rs::fs::Controllers;

use super::Cgroup;
use super::folders::{await_event, subfolders, write};
use crate::Kind;
use crate::error::{OrKind, Result, bail};

/// How long processes may take to stop. One that waits in the kernel for a slow disk can only be frozen after that.
const PATIENCE: Duration = Duration::from_secs(5);

/// v1's file; THAWED, FREEZING or FROZEN.
const STATE: &str = "freezer.state";
/// v2's file; 0 or 1.
const FREEZE: &str = "cgroup.freeze";

impl Cgroup {
    /// Freezes it with all below it, and returns once nothing in it runs any more. That it is frozen already is success.
    ///
    /// # Errors
    /// FailedPrecondition where the host can't freeze; Unavailable when something in it did not stop within
    /// [`PATIENCE`] (it is thawed again then); NotFound when it is gone.
    pub fn freeze(&self) -> Result<()> {
        let _changing = self.changing();
        self.freeze_now()
    }

    fn freeze_now(&self) -> Result<()> {
        let folder = self.freezer()?;
        let frozen = if self.v2() { freeze_v2(&folder) } else { freeze_v1(&folder) };
        let describe = || format!("freeze cgroup {}", folder.display());
        match frozen {
            Ok(true) => Ok(()),
            Err(e) if is_gone(&e) => self.gone(),
            frozen => {
                let undone = match set(&folder, self.v2(), false) {
                    Ok(()) => "it was thawed again".to_owned(),
                    Err(e) => format!("nor could it be thawed again: {e}"),
                };
                frozen.or_kind(Kind::Internal, describe)?;
                bail!(Unavailable, "{}: not everything in it stopped within {PATIENCE:?}; {undone}", describe())
            }
        }
    }

    /// Lets it run again, but for cgroups below it that were frozen for themselves. Success when it is not frozen or gone.
    pub fn thaw(&self) -> Result<()> {
        let _changing = self.changing();
        self.thaw_now()
    }

    fn thaw_now(&self) -> Result<()> {
        let Some(folder) = self.freezer_folder() else { return Ok(()) };
        match set(&folder, self.v2(), false) {
            Err(e) if is_gone(&e) => Ok(()),
            result => result.or_kind(Kind::Internal, || format!("thaw cgroup {}", folder.display())),
        }
    }

    /// Freezes it, if it is not, until the value is dropped; for a caller that holds `attached`. Where that fails it runs on.
    pub(super) fn still(&self) -> Still<'_> {
        let was_frozen = self.is_frozen().unwrap_or(true);
        let frozen = !was_frozen
            && self.freeze_now().inspect_err(|e| log::warn!("while its device rules change it runs on: {e}")).is_ok();
        Still { cgroup: self, frozen }
    }

    /// Fails when it is frozen, or about to be, for itself or with one above it.
    pub(super) fn refuse_frozen(&self) -> Result<()> {
        if self.is_frozen()? {
            bail!(FailedPrecondition, "linux.cgroupsPath: {} is frozen, or one above it is", self.groups.path());
        }
        Ok(())
    }

    pub(super) fn is_frozen(&self) -> Result<bool> {
        let Some(folder) = self.freezer_folder() else { return Ok(false) };
        let file = folder.join(if self.v2() { "cgroup.events" } else { STATE });
        let text = match std::fs::read_to_string(&file) {
            Err(e) if is_gone(&e) => return Ok(false),
            text => text.or_kind(Kind::Internal, || format!("read {}", file.display()))?,
        };
        Ok(if self.v2() { text.lines().any(|line| line == "frozen 1") } else { text.trim() != "THAWED" })
    }

    /// Keeps what is in it from running, as far as that is done at once. Failure is not told.
    pub(super) fn hold(&self) {
        if let Some(folder) = self.freezer_folder() {
            let _ = set(&folder, self.v2(), true);
        }
    }

    /// Thaws it and all below it on v1, where a frozen process does not die of SIGKILL.
    pub(super) fn thaw_to_die(&self) {
        if let Some(folder) = self.freezer_folder() {
            thaw_tree(&folder, self.v2());
        }
    }

    /// The folder by which it is frozen.
    pub fn freezer_folder(&self) -> Option<PathBuf> {
        // v2 has no freezer among its controllers: every cgroup can be frozen.
        let controller = (!self.v2()).then_some(Controllers::Freezer);
        self.controller_folder(&controller)
    }

    fn freezer(&self) -> Result<PathBuf> {
        let Some(folder) = self.freezer_folder() else {
            bail!(FailedPrecondition, "freezer: this host has no such cgroup controller")
        };
        if !folder.exists() {
            return self.gone();
        }
        if self.v2() && !folder.join(FREEZE).exists() {
            bail!(FailedPrecondition, "freezer: cgroup {} has no {FREEZE}", folder.display());
        }
        Ok(folder)
    }

    pub(super) fn gone<T>(&self) -> Result<T> {
        bail!(NotFound, "cgroup {} is gone", self.groups.path())
    }
}

/// See [`Cgroup::still`].
pub(super) struct Still<'a> {
    cgroup: &'a Cgroup,
    frozen: bool,
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        if self.frozen
            && let Err(e) = self.cgroup.thaw_now()
        {
            log::error!("{e}");
        }
    }
}

pub(super) fn set(folder: &Path, v2: bool, frozen: bool) -> io::Result<()> {
    match (v2, frozen) {
        (true, true) => write(&folder.join(FREEZE), "1"),
        (true, false) => write(&folder.join(FREEZE), "0"),
        (false, true) => write(&folder.join(STATE), "FROZEN"),
        (false, false) => write(&folder.join(STATE), "THAWED"),
    }
}

fn freeze_v2(folder: &Path) -> io::Result<bool> {
    set(folder, true, true)?;
    await_event(folder, "frozen 1", Instant::now() + PATIENCE)
}

/// The kernel tells nobody when v1's FREEZING becomes FROZEN, and a process that is forked or moved in meanwhile may
/// make it FREEZING for ever. So the state is read, and written, again and again.
fn freeze_v1(folder: &Path) -> io::Result<bool> {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_micros(50);
    loop {
        set(folder, false, true)?;
        if std::fs::read_to_string(folder.join(STATE))?.trim() == "FROZEN" {
            return Ok(true);
        }
        if Instant::now() > deadline {
            return Ok(false);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

fn thaw_tree(folder: &Path, v2: bool) {
    if let Err(e) = set(folder, v2, false)
        && !is_gone(&e)
    {
        log::warn!("thaw cgroup {}: {e}", folder.display());
    }
    for child in subfolders(folder).unwrap_or_default() {
        thaw_tree(&child, v2);
    }
}

/// Whether a file is missing, or was removed with its cgroup while it was open.
fn is_gone(e: &io::Error) -> bool {
    e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV)
}
