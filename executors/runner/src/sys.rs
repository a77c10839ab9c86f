//! The runner's `unsafe` calls.
#![allow(unsafe_code)]

use std::ffi::c_int;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering::Relaxed};

use rustix::pipe::PipeFlags;

/// Ends this process with 128 + n when it gets one of these signals.
pub(crate) fn exit_on_signals(signals: &[c_int]) {
    extern "C" fn end(signal: c_int) {
        // SAFETY: _exit never returns and does nothing else.
        unsafe { libc::_exit(128 + signal) }
    }
    for signal in signals {
        handle(*signal, end);
    }
}

/// Gives the end of a pipe that becomes readable when this process gets the first of these signals. Another one
/// ends it with 128 + n at once, and so does, in place of a second one of the same kind, that `seconds` have passed.
pub(crate) fn tell_of_signals(signals: &[c_int], seconds: u32) -> std::io::Result<OwnedFd> {
    static TOLD: AtomicI32 = AtomicI32::new(0);
    static DESCRIPTOR: AtomicI32 = AtomicI32::new(-1);
    static SECONDS: AtomicU32 = AtomicU32::new(0);
    extern "C" fn too_late(_signal: c_int) {
        // SAFETY: _exit never returns and does nothing else.
        unsafe { libc::_exit(128 + TOLD.load(Relaxed)) }
    }
    extern "C" fn tell(signal: c_int) {
        if TOLD.compare_exchange(0, signal, Relaxed, Relaxed).is_err() {
            // SAFETY: _exit never returns and does nothing else.
            unsafe { libc::_exit(128 + signal) }
        }
        // SAFETY: errno is this thread's own; the code that was interrupted may be about to read it.
        let errno = unsafe { *libc::__errno_location() };
        handle(libc::SIGALRM, too_late);
        // SAFETY: both calls are async-signal-safe (signal-safety(7)); the byte is valid, and the descriptor stays open.
        unsafe {
            libc::write(DESCRIPTOR.load(Relaxed), c"!".as_ptr().cast(), 1);
            libc::alarm(SECONDS.load(Relaxed).max(1));
            *libc::__errno_location() = errno;
        }
    }
    let (told, teller) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    DESCRIPTOR.store(teller.into_raw_fd(), Relaxed);
    SECONDS.store(seconds, Relaxed);
    for signal in signals {
        handle(*signal, tell);
    }
    Ok(told)
}

/// Has a handler called, which only makes async-signal-safe calls.
fn handle(signal: c_int, handler: extern "C" fn(c_int)) {
    // SAFETY: all zeroes is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler as usize;
    // Signals may arrive while the guest runs on a small stack of Wasmtime's own.
    action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART;
    // SAFETY: the action is valid, and the caller has seen to it that the handler may run at any time.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
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
