//! The runner's `unsafe` calls.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Ends this process with 128 + n when it gets one of these signals.
pub(crate) fn exit_on_signals(signals: &[c_int]) {
    extern "C" fn end(signal: c_int) {
        // SAFETY: _exit never returns and does nothing else.
        unsafe { libc::_exit(128 + signal) }
    }
    for signal in signals {
        // SAFETY: all zeroes is a valid sigaction.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = end as extern "C" fn(c_int) as usize;
        // Signals may arrive while the guest runs on a small stack of Wasmtime's own.
        action.sa_flags = libc::SA_ONSTACK;
        // SAFETY: the handler only calls _exit, which is async-signal-safe (signal-safety(7)).
        unsafe { libc::sigaction(*signal, &raw const action, std::ptr::null_mut()) };
    }
}

/// Takes ownership of descriptors that this process was executed with. To be called once, before any other is opened.
pub(crate) fn take_inherited<const N: usize>(numbers: [RawFd; N]) -> std::io::Result<[OwnedFd; N]> {
    for number in numbers {
        // SAFETY: F_SETFD takes an int and touches no memory; it fails for a number that is not open.
        if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    // SAFETY: they are open, as was just checked, and nothing in this process has opened or taken any before.
    Ok(numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) }))
}

/// unshare(2). `namespaces` are CLONE_NEW* flags.
pub(crate) fn unshare(namespaces: c_int) -> std::io::Result<()> {
    // SAFETY: no pointers are passed, and namespaces don't concern memory.
    if unsafe { libc::unshare(namespaces) } < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}
