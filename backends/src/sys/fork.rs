//! Detects a fork. Most systems can be told to wipe a page in the child, whichever call makes it.
//! Elsewhere `fork(2)` runs a handler in the child.

use std::sync::atomic::AtomicU64;

use crate::error::Errno;

/// Memory that is zero in a child. `None` if the system does not promise that.
pub(crate) fn wiped_at_fork() -> Option<&'static AtomicU64> {
    let len = size_of::<AtomicU64>();
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANON;
    // SAFETY: this maps fresh memory, wherever the system likes.
    let page = unsafe { libc::mmap(std::ptr::null_mut(), len, access, kind, -1, 0) };
    if page == libc::MAP_FAILED {
        return None;
    }
    if !system::wipe_at_fork(page, len) {
        // SAFETY: the page was mapped just now, and nobody else knows of it.
        unsafe { libc::munmap(page, len) };
        return None;
    }
    // SAFETY: the memory starts on a page, is zero, and is never unmapped.
    Some(unsafe { &*page.cast() })
}

/// Makes every child of `fork(2)` run this handler first, for ever.
pub(crate) fn at_fork(handler: extern "C" fn()) -> Result<(), Errno> {
    // SAFETY: the handler is a function of this program, and exists as long as the program.
    match unsafe { libc::pthread_atfork(None, None, Some(handler)) } {
        0 => Ok(()),
        errno => Err(Errno(errno)),
    }
}

#[cfg(all(
    any(target_os = "linux", target_os = "android"),
    not(gaio_kqueue_model)
))]
mod system {
    use libc::{c_int, c_void};

    /// From Linux 4.14 on.
    pub(super) fn wipe_at_fork(page: *mut c_void, len: usize) -> bool {
        /// Emulators that say yes to this say yes to everything.
        const NO_ADVICE: c_int = -1;
        // SAFETY: neither call changes a page of this process, whichever it is.
        unsafe {
            libc::madvise(page, len, NO_ADVICE) != 0
                && libc::madvise(page, len, libc::MADV_WIPEONFORK) == 0
        }
    }
}

#[cfg(any(target_os = "freebsd", target_os = "netbsd", target_os = "openbsd"))]
mod system {
    use libc::{c_int, c_void};

    #[cfg(target_os = "freebsd")]
    const ZERO: c_int = libc::INHERIT_ZERO;
    #[cfg(not(target_os = "freebsd"))]
    const ZERO: c_int = libc::MAP_INHERIT_ZERO;

    pub(super) fn wipe_at_fork(page: *mut c_void, len: usize) -> bool {
        // SAFETY: the call changes no page of this process, whichever it is.
        unsafe { libc::minherit(page, len, ZERO) == 0 }
    }
}

/// DragonFly, macOS, and the model of such systems in tests.
#[cfg(any(target_os = "dragonfly", target_vendor = "apple", gaio_kqueue_model))]
mod system {
    pub(super) fn wipe_at_fork(_: *mut libc::c_void, _: usize) -> bool {
        false
    }
}
