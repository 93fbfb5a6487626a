//! The poller of Linux: `epoll(7)`, edge-triggered.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use libc::{
    EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP, c_int, epoll_event,
};

use super::poller::{Poller, Readiness, Watch};
use crate::Until;
use crate::error::Errno;
use crate::error::SetupError;
use crate::sys;
use crate::wake::Notifier;

/// An epoll instance.
pub(crate) struct Epoll {
    instance: OwnedFd,
    events: Vec<epoll_event>,
    /// Whether the kernel is known to lack `epoll_pwait2(2)`, which came with 5.11.
    pub(super) milliseconds_only: bool,
    /// The timer of the alarm. It is watched from its creation on.
    timer: Option<OwnedFd>,
}

impl Poller for Epoll {
    const NEEDS_NONBLOCKING: bool = false;

    /// The buffer for as many takes 12 KiB of memory.
    const EVENTS_MAX: usize = 1024;

    fn new() -> Result<Self, SetupError> {
        let instance = sys::epoll_create().map_err(|errno| SetupError {
            step: "epoll_create1",
            errno,
            advice: "raise the limit of open descriptors (ulimit -n), or allow the call",
        })?;
        Ok(Epoll {
            instance,
            events: Vec::with_capacity(Self::EVENTS_MAX),
            milliseconds_only: false,
            timer: None,
        })
    }

    fn add(&self, fd: BorrowedFd<'_>, token: u64, watch: Watch) -> Result<(), Errno> {
        let events = match watch {
            Watch::Incoming => EPOLLIN,
            Watch::Both => EPOLLIN | EPOLLPRI | EPOLLOUT | EPOLLRDHUP,
        };
        sys::epoll_add(self.instance.as_fd(), fd, events | EPOLLET, token)
    }

    fn remove(&self, fd: BorrowedFd<'_>) {
        // It fails only for a descriptor that is not registered.
        let _ = sys::epoll_del(self.instance.as_fd(), fd);
    }

    fn notifier(&mut self, token: u64) -> Result<Arc<dyn Notifier>, Errno> {
        let notifier = sys::EventNotifier::new()?;
        self.add(notifier.descriptor(), token, Watch::Incoming)?;
        Ok(Arc::new(notifier))
    }

    fn alarm(&mut self, token: u64, at: Option<Instant>) -> Result<(), Errno> {
        if self.timer.is_none() {
            let timer = sys::timerfd()?;
            self.add(timer.as_fd(), token, Watch::Incoming)?;
            self.timer = Some(timer);
        }
        if let Some(timer) = &self.timer {
            sys::arm_timerfd(timer.as_fd(), at);
        }
        Ok(())
    }

    fn wait(&mut self, until: Until) -> Result<usize, Errno> {
        match self.collect(until) {
            Err(Errno(libc::EINTR)) => Ok(0),
            collected => collected.map(|()| self.events.len()),
        }
    }

    #[inline]
    fn event(&self, index: usize) -> Option<(u64, Readiness)> {
        let event = self.events.get(index)?;
        Some((event.u64, readiness(event.events as c_int)))
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.instance.as_fd()
    }
}

impl Epoll {
    fn collect(&mut self, until: Until) -> Result<(), Errno> {
        match until {
            Until::Now => self.collect_milliseconds(0),
            Until::Done => self.collect_milliseconds(-1),
            Until::Time(at) => self.collect_until(at),
        }
    }

    fn collect_until(&mut self, at: Instant) -> Result<(), Errno> {
        let left = at.saturating_duration_since(Instant::now());
        if !self.milliseconds_only {
            match sys::epoll_wait_precise(self.instance.as_fd(), &mut self.events, left) {
                // Old sandboxes answer EPERM to calls that they do not know.
                Err(Errno(libc::ENOSYS | libc::EPERM)) => self.milliseconds_only = true,
                collected => return collected,
            }
        }
        // Rounded up, because a deadline never fires early.
        let milliseconds = left.as_nanos().div_ceil(1_000_000);
        self.collect_milliseconds(c_int::try_from(milliseconds).unwrap_or(c_int::MAX))
    }

    fn collect_milliseconds(&mut self, timeout: c_int) -> Result<(), Errno> {
        sys::epoll_wait(self.instance.as_fd(), &mut self.events, timeout)
    }
}

#[inline]
fn readiness(events: c_int) -> Readiness {
    let plain = match (events & EPOLLIN != 0, events & EPOLLOUT != 0) {
        (true, true) => Readiness::READABLE | Readiness::WRITABLE,
        (true, false) => Readiness::READABLE,
        (false, true) => Readiness::WRITABLE,
        (false, false) => Readiness::default(),
    };
    match events & !(EPOLLIN | EPOLLOUT) {
        0 => plain,
        rest if rest & (EPOLLHUP | EPOLLERR) != 0 => Readiness::OVER,
        _ => plain | Readiness::READABLE | Readiness::BEYOND_DATA,
    }
}

impl fmt::Debug for Epoll {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Epoll").field(&self.instance).finish()
    }
}
