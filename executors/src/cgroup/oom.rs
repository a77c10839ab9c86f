//! Being told when the kernel kills for want of memory.
//!
//! ```text
//! v1  memory.oom_control + cgroup.event_control ─> eventfd: out of memory, here or above; what is killed is counted later
//! v2  memory.events ─> POLLPRI: some counter rose
//! ```
//! Neither says that something of this cgroup was killed: only its counter `oom_kill` does, so that is what is compared.
//! systemd removes a unit's cgroup as soon as it is empty, and can be quicker than whoever wants to read the counter. What v2
//! counts it counts in the cgroups above as well, and there it stays.
//!
//! Source: the kernel's cgroup-v1/memory.rst ("OOM Control") and cgroup-v2.rst ("memory.events").

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cgroups_rs::fs::Controllers;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::Cgroup;
use super::folders::write;
use super::stats::{v1::MemoryOomControl, v2::MemoryEvents};
use crate::Kind;
use crate::error::{OrKind, Result, bail};

/// What has happened in a cgroup since it was last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Oom {
    /// The kernel has killed something in it.
    Killed,
    /// It ran out of memory, or one above it did, and nothing of it has been counted as killed since. v1 only: there the
    /// kernel tells first and kills then. Ask again after some milliseconds, later again, and a last time when init has
    /// ended; when another cgroup of the pod had to give, this stays the answer.
    Pending,
    /// Nothing.
    Nothing,
    /// The cgroup was removed; nothing more will come.
    Gone,
}

/// Watches a cgroup for processes that are killed for want of memory. Its descriptor becomes ready when asking
/// ([`OomWatch::take`]) may have a new answer.
///
/// On v2 that is up to a hundred times a second while the cgroup is at its limit and gets on by giving up caches. Nothing is
/// lost by resting between two waits.
pub struct OomWatch {
    /// v1's eventfd; on v2 memory.events itself.
    event: OwnedFd,
    /// v1's memory.oom_control.
    control: Option<OwnedFd>,
    kills: AtomicU64,
    pending: AtomicBool,
    /// v2's memory.events of the cgroup above, and its count.
    above: Option<(OwnedFd, AtomicU64)>,
}

impl OomWatch {
    /// How the descriptor becomes ready: by POLLPRI (v2) rather than POLLIN (v1), poll(2). On v2 POLLIN is always there.
    pub fn is_priority(&self) -> bool {
        self.control.is_none()
    }

    /// What has happened since it was last called, or since the watch was made. Never blocks; may be called at any time.
    ///
    /// `reached` is whether the kernel has said just now that the limit was reached. If the cgroup is gone then, it counts as
    /// killed for that when something below the cgroup above it was.
    pub fn take(&self, reached: bool) -> Result<Oom> {
        // Before the counter is read: what happens after that wakes the caller again.
        if self.control.is_some() && take_event(&self.event)? {
            self.pending.store(true, Ordering::Relaxed);
        }
        // First the one above: so a kill in between is told twice at worst, and never missed.
        let above = self.above.as_ref().and_then(|(file, kills)| Some((killed(file).ok()?, kills)));
        let kills = match self.read() {
            Err(Errno::NODEV | Errno::NOENT) => {
                let rose = above.is_some_and(|(now, kills)| reached && kills.swap(now, Ordering::Relaxed) < now);
                return Ok(if rose { Oom::Killed } else { Oom::Gone });
            }
            kills => kills.or_kind(Kind::Internal, || "read how many processes were killed for want of memory")?,
        };
        if let Some((now, kills)) = above {
            kills.store(now, Ordering::Relaxed);
        }
        if self.kills.swap(kills, Ordering::Relaxed) < kills {
            self.pending.store(false, Ordering::Relaxed);
            return Ok(Oom::Killed);
        }
        Ok(if self.pending.load(Ordering::Relaxed) { Oom::Pending } else { Oom::Nothing })
    }

    /// The counter. Reading it also makes memory.events wait for the next change.
    fn read(&self) -> Result<u64, Errno> {
        match &self.control {
            Some(control) => Ok(MemoryOomControl::parse(&text(control)?).oom_kill),
            None => killed(&self.event),
        }
    }
}

/// The counter of a memory.events.
fn killed(file: &OwnedFd) -> Result<u64, Errno> {
    Ok(MemoryEvents::parse(&text(file)?).oom_kill)
}

/// What is in a file of a cgroup.
fn text(file: &OwnedFd) -> Result<String, Errno> {
    let mut buffer = [0u8; 512];
    let length = rustix::io::pread(file, &mut buffer[..], 0)?;
    Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

impl AsRawFd for OomWatch {
    fn as_raw_fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

impl Cgroup {
    /// Watches it from now on. `None` when nothing counts its memory: then the kernel kills for the whole host only.
    ///
    /// # Errors
    /// NotFound when it is gone.
    pub fn watch_oom(&self) -> Result<Option<OomWatch>> {
        let Some(folder) = self.controller_folder(&(!self.v2()).then_some(Controllers::Mem)) else { return Ok(None) };
        let describe = || format!("watch the memory of cgroup {}", folder.display());
        let file = folder.join(if self.v2() { "memory.events" } else { "memory.oom_control" });
        let counter = match open(&file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Err(Errno::NOENT) if folder.exists() => return Ok(None),
            Err(Errno::NOENT | Errno::NODEV) => bail!(NotFound, "cgroup {} is gone", folder.display()),
            counter => counter.or_kind(Kind::Internal, describe)?,
        };
        let (event, control) = if self.v2() {
            (counter, None)
        } else {
            (event(&folder, &counter).or_kind(Kind::Internal, describe)?, Some(counter))
        };
        // The root of the tree has none.
        let above = control.is_none().then(|| folder.parent().map(|above| above.join("memory.events"))).flatten();
        let above = above.and_then(|file| open(&file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok());
        let watch = OomWatch {
            event,
            control,
            kills: AtomicU64::new(0),
            pending: AtomicBool::new(false),
            above: above.map(|file| (file, AtomicU64::new(0))),
        };
        // What was counted before is not news. That it is gone already, `take` says.
        watch.take(false).map_err(|error| error.context(describe()))?;
        Ok(Some(watch))
    }
}

/// An eventfd that counts how often a v1 cgroup was out of memory, and its removal. It is forgotten when it is closed.
fn event(folder: &Path, control: &OwnedFd) -> std::io::Result<OwnedFd> {
    let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    write(&folder.join("cgroup.event_control"), &format!("{} {} ", event.as_raw_fd(), control.as_raw_fd()))?;
    Ok(event)
}

/// Whether an eventfd was signalled; it is not any more after that.
fn take_event(event: &OwnedFd) -> Result<bool> {
    let mut count = [0u8; 8];
    loop {
        match rustix::io::read(event, &mut count) {
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(false),
            result => return result.map(|_| true).or_kind(Kind::Internal, || "read the eventfd of memory.oom_control"),
        }
    }
}
