//! Nesting a watcher in another event loop: a timer that makes a descriptor readable.

use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use crate::error::Errno;
use crate::sys;

/// A `timerfd(2)` that exists once it is needed.
#[derive(Debug, Default)]
pub(crate) struct NestTimer {
    timer: OnceCell<OwnedFd>,
}

impl NestTimer {
    /// The timer's descriptor, made on the first call.
    pub(crate) fn descriptor(&self) -> Result<BorrowedFd<'_>, Errno> {
        if self.timer.get().is_none() {
            let timer = sys::timerfd()?;
            return Ok(self.timer.get_or_init(|| timer).as_fd());
        }
        self.timer.get().map(AsFd::as_fd).ok_or(Errno(libc::EBADF))
    }

    /// Sets the time, or none. Does nothing while nobody asked for the descriptor.
    pub(crate) fn arm(&self, at: Option<Instant>) {
        if let Some(timer) = self.timer.get() {
            sys::arm_timerfd(timer.as_fd(), at);
        }
    }
}
