//! Giving back the memory of code that only starting needed. The shim's server does so too.
#![allow(unsafe_code)]

use std::ffi::c_int;

/// Does [`drop_code_pages`] once, in `seconds` seconds, by SIGALRM.
pub(crate) fn drop_code_pages_after(seconds: u32) {
    extern "C" fn drop_now(_signal: c_int) {
        // SAFETY: errno is this thread's own; the code that was interrupted may be about to read it.
        let errno = unsafe { *libc::__errno_location() };
        drop_code_pages();
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
    }
    // SAFETY: all zeroes is a valid sigaction.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = drop_now as extern "C" fn(c_int) as usize;
    action.sa_flags = libc::SA_ONSTACK | libc::SA_RESTART | libc::SA_RESETHAND;
    // SAFETY: the handler makes one kind of system call, on memory that is no data (signal-safety(7)).
    unsafe {
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
        libc::alarm(seconds);
    }
}

/// Unmaps the pages of this program's own code and constants. Those that are still needed come back from the page cache when
/// they are touched: a few, where starting has touched hundreds and the kernel has mapped their neighbours too
/// ("fault-around").
pub fn drop_code_pages() {
    const PF_W: u32 = 2;
    // SAFETY: getauxval has no preconditions.
    let (headers, count) = unsafe { (libc::getauxval(libc::AT_PHDR), libc::getauxval(libc::AT_PHNUM)) };
    if headers == 0 {
        return;
    }
    // SAFETY: the kernel's auxiliary vector says where this program's headers are and how many (getauxval(3)); they are
    // mapped as long as the program runs, and nothing writes to them.
    let segments = unsafe { std::slice::from_raw_parts(headers as *const libc::Elf64_Phdr, count as usize) };
    // Nought unless the program is position-independent.
    let base = segments.iter().find(|s| s.p_type == libc::PT_PHDR).map_or(0, |s| headers.wrapping_sub(s.p_vaddr));
    let page = rustix::param::page_size() as u64;
    for segment in segments.iter().filter(|s| s.p_type == libc::PT_LOAD && s.p_flags & PF_W == 0) {
        let start = base.wrapping_add(segment.p_vaddr) & !(page - 1);
        let end = base.wrapping_add(segment.p_vaddr).wrapping_add(segment.p_memsz);
        // SAFETY: the range is a read-only mapping of this program's file, which can't change while it is executed; so each
        // page comes back with the bytes that it had. Failure changes nothing.
        unsafe { libc::madvise(start as *mut libc::c_void, end.wrapping_sub(start) as usize, libc::MADV_DONTNEED) };
    }
}
