//! A ring inside another event loop: a descriptor that is readable when `wait` has something to
//! hand out, and a `wait` that sleeps on that descriptor from then on.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use super::Uring;
use crate::error::Errno;
use crate::{Backend, Until, sys};

/// An epoll instance for other event loops. The ring's own descriptor does not wake a blocking
/// `poll(2)` while task work is deferred. The instance holds the ring's event, the waker's event
/// and a timer. The ring no longer reads the waker's event then, because the kernel puts off an
/// event that arises within the signal of another event.
pub(super) struct Nest {
    epoll: OwnedFd,
    event: OwnedFd,
    timer: OwnedFd,
}

impl Nest {
    /// Sets the timer, or none.
    pub(super) fn arm(&self, at: Option<Instant>) {
        sys::arm_timerfd(self.timer.as_fd(), at);
    }
}

impl Uring {
    /// A duplicate of the descriptor to poll. The first call builds the instance.
    pub(super) fn nest(&mut self) -> Result<OwnedFd, Errno> {
        if let Some(nest) = &self.nest {
            return sys::duplicate(nest.epoll.as_fd());
        }
        let nest = self.build_nest()?;
        let descriptor = sys::duplicate(nest.epoll.as_fd())?;
        // Earlier completions make no event of their own: the caller looks for them.
        self.ring
            .submitter()
            .register_eventfd(nest.event.as_raw_fd())?;
        self.nest = Some(nest);
        Ok(descriptor)
    }

    /// Waits on the descriptor rather than in the ring.
    pub(super) fn wait_nested(&mut self, until: Until) -> Result<(), Errno> {
        self.round(Until::Now)?;
        if until == Until::Now || self.has_work() {
            return Ok(());
        }
        let Some(nest) = &self.nest else {
            return Ok(());
        };
        // `until` bounds this sleep. A timer that has fired would end it at once.
        nest.arm(None);
        self.counts.waits += 1;
        sys::wait_readable(nest.epoll.as_fd(), until)?;
        self.round(Until::Now)
    }

    /// Takes back the events that made the descriptor readable. Their causes are looked at next.
    #[cold]
    pub(super) fn clear_nest(&mut self) {
        if let Some(nest) = &self.nest {
            let signalled = sys::clear_event(nest.event.as_fd());
            self.counts.others += 1 + u64::from(signalled);
            if signalled {
                self.counts.others += self.renew_registration(nest);
            }
            if !self.wake_armed {
                let signalled = sys::clear_event(self.waker.event());
                self.counts.others += 1 + u64::from(signalled);
            }
        }
    }

    /// Registers the event anew, and returns the number of calls.
    ///
    /// Kernels from 6.10 on put off a signal that arises within the signal of another event (a loop
    /// in a loop in a loop). Some 6.12 kernels put off every signal of an arrival. Of the signals
    /// that they put off, they lose all but the first, until the event is registered anew. It
    /// cannot be seen which signal was put off, so this is done after each. The ring's flags, which
    /// are looked at next, report arrivals between the two calls.
    fn renew_registration(&self, nest: &Nest) -> u64 {
        let _ = self.ring.submitter().unregister_eventfd();
        if self
            .ring
            .submitter()
            .register_eventfd(nest.event.as_raw_fd())
            .is_err()
        {
            // Out of memory: the descriptor stays readable, so that the next round tries again.
            sys::signal_event(nest.event.as_fd());
        }
        2
    }

    fn build_nest(&self) -> Result<Nest, Errno> {
        let (epoll, event, timer) = (sys::epoll_create()?, sys::eventfd()?, sys::timerfd()?);
        for part in [event.as_fd(), timer.as_fd(), self.waker.event()] {
            sys::epoll_add(epoll.as_fd(), part, libc::EPOLLIN, 0)?;
        }
        Ok(Nest {
            epoll,
            event,
            timer,
        })
    }
}
