//! A ring inside another event loop: a descriptor that is readable when `wait` has something, and
//! a `wait` that sleeps on that descriptor from then on.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Instant;

use super::Uring;
use crate::error::Errno;
use crate::{Backend, Until, sys};

/// What makes a blocking `poll(2)` work: the ring's own descriptor does not wake one while task
/// work is deferred. The ring's event, the waker's and a timer. The waker's event is no longer
/// read by the ring then: an event that arises within an event's signal is put off by the kernel.
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
    /// A duplicate of what to poll, which is there from the first call on.
    pub(super) fn nest(&mut self) -> Result<OwnedFd, Errno> {
        if let Some(nest) = &self.nest {
            return sys::duplicate(nest.epoll.as_fd());
        }
        let nest = self.build_nest()?;
        let descriptor = sys::duplicate(nest.epoll.as_fd())?;
        // What completed before makes no event of its own: whoever asks looks for that.
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
        // `until` bounds this sleep; a timer that has fired would end it at once.
        nest.arm(None);
        self.counts.waits += 1;
        sys::wait_readable(nest.epoll.as_fd(), until)?;
        self.round(Until::Now)
    }

    /// Takes back the events that made the descriptor readable: their cause is looked at next.
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

    /// Kernels from 6.10 on lose all but the first of the signals that they put off, until the event
    /// is registered anew. They put off what arises within another event's signal (a loop in a loop
    /// in a loop), and some 6.12 every one for an arrival. Which signal was put off cannot be seen.
    /// What arrives between the two calls is told by the ring's flags, which are looked at next.
    /// Returns how many calls it made.
    fn renew_registration(&self, nest: &Nest) -> u64 {
        let _ = self.ring.submitter().unregister_eventfd();
        if self
            .ring
            .submitter()
            .register_eventfd(nest.event.as_raw_fd())
            .is_err()
        {
            // No memory: stay readable, so that the next round tries again.
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
