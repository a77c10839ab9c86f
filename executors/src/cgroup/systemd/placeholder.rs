//! What is in a scope before init: a process that does nothing.

use std::os::fd::RawFd;

use rustix::process::{Pid, Signal, getpid, getppid, set_parent_process_death_signal};

use crate::error::{OrKind, Result};
use crate::process::{Unfinished, spawn};
use crate::{Kind, sys};

/// Makes one, in the cgroup of the shim. It ends when it is dropped, or with the thread that made it.
pub(super) fn make() -> Result<Unfinished> {
    let parent = getpid();
    spawn(|| sys::clone3(0, None, &|| stay(parent))).or_kind(Kind::Unavailable, || "clone3")
}

/// The placeholder's whole life: system calls only, as for every copy of the shim.
fn stay(parent: Pid) -> i32 {
    let ready = sys::reset_signals()
        .and_then(|()| set_parent_process_death_signal(Some(Signal::KILL)))
        // Other containers' pipes and terminals are none of its business.
        .and_then(|()| sys::close_range(0, RawFd::MAX));
    if ready.is_err() || getppid() != Some(parent) {
        return 1;
    }
    loop {
        rustix::event::pause();
    }
}
