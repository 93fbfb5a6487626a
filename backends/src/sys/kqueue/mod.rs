//! `kqueue(2)`: changes in, events out. No other file knows the system's structures. The choice of
//! what to watch and the meaning of events are in `emulated/kqueue.rs`.
//!
//! Under `gaio_kqueue_model` the two calls are those of `kqueue_model`, so tests on Linux run all
//! of this file.

use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

#[cfg(gaio_kqueue_model)]
use super::kqueue_model as system;
#[cfg(not(gaio_kqueue_model))]
use libc as system;

use super::{Process, check, close_on_exec, timespec};
use crate::error::Errno;
use system::{
    EV_ADD, EV_CLEAR, EV_DELETE, EV_EOF, EV_ERROR, EV_ONESHOT, EV_RECEIPT, EVFILT_READ,
    EVFILT_TIMER, EVFILT_USER, EVFILT_WRITE, NOTE_TRIGGER,
};

/// The longest sleep. Systems refuse to sleep for longer than some three years.
const SLEEP_MAX: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// An hour, for a timer that is never to fire.
const FAR_MS: u32 = 60 * 60 * 1000;

/// The subject of a change or an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filter {
    Read,
    Write,
    Timer,
    User,
}

/// A change of the watched filters, or an event.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Event(system::kevent);

// SAFETY: the pointer inside is a token that nobody follows.
unsafe impl Send for Event {}

impl Event {
    fn new(filter: Filter, ident: usize, token: u64) -> Self {
        // SAFETY: for this structure of numbers and a pointer, zeros are valid.
        let mut raw: system::kevent = unsafe { std::mem::zeroed() };
        raw.ident = ident as _;
        raw.filter = match filter {
            Filter::Read => EVFILT_READ,
            Filter::Write => EVFILT_WRITE,
            Filter::Timer => EVFILT_TIMER,
            Filter::User => EVFILT_USER,
        };
        raw.udata = std::ptr::without_provenance_mut(token as usize);
        Event(raw)
    }

    /// Watches a descriptor, edge-triggered.
    pub(crate) fn watch(filter: Filter, fd: RawFd, token: u64) -> Self {
        let mut event = Event::new(filter, fd as usize, token);
        event.0.flags = EV_ADD | EV_CLEAR;
        event
    }

    /// Stops watching.
    pub(crate) fn forget(filter: Filter, ident: usize) -> Self {
        let mut event = Event::new(filter, ident, 0);
        event.0.flags = EV_DELETE;
        event
    }

    /// Starts a timer that fires once. Milliseconds are the one unit that all systems know.
    pub(crate) fn timer(ident: usize, token: u64, ms: u32) -> Self {
        let mut event = Event::new(Filter::Timer, ident, token);
        event.0.flags = EV_ADD | EV_ONESHOT;
        event.0.data = ms as _;
        event
    }

    /// Registers a user event, to be triggered later.
    pub(crate) fn user(ident: usize, token: u64) -> Self {
        let mut event = Event::new(Filter::User, ident, token);
        event.0.flags = EV_ADD | EV_CLEAR;
        event
    }

    /// Triggers a user event, with neither `EV_ADD` nor `EV_CLEAR`. With `EV_ADD` alone, macOS
    /// would forget that the event clears itself. With `EV_CLEAR`, the BSDs take the trigger back.
    fn trigger(ident: usize, token: u64) -> Self {
        let mut event = Event::new(Filter::User, ident, token);
        event.0.fflags = NOTE_TRIGGER;
        event
    }

    #[inline]
    pub(crate) fn token(&self) -> u64 {
        self.0.udata.addr() as u64
    }

    #[inline]
    pub(crate) fn is_write(&self) -> bool {
        self.0.filter == EVFILT_WRITE
    }

    /// Whether the end was reached: no more can be read, or nobody would read.
    #[inline]
    pub(crate) fn is_end(&self) -> bool {
        self.0.flags & EV_EOF != 0
    }

    /// The answer to a change, if the event is one.
    fn receipt(&self) -> Option<Result<(), Errno>> {
        let errno = Errno(self.0.data as i32);
        let result = if errno.0 == 0 { Ok(()) } else { Err(errno) };
        (self.0.flags & EV_ERROR != 0).then_some(result)
    }
}

/// A kqueue.
#[derive(Debug)]
pub(crate) struct Kqueue {
    fd: ManuallyDrop<OwnedFd>,
    /// A child does not inherit the queue. There, its number means nothing, or something else.
    process: Process,
    /// Whether the system knows `EV_RECEIPT`.
    receipts: bool,
}

impl Kqueue {
    /// A close-on-exec kqueue. No child inherits it, so it does not matter that close-on-exec is
    /// set by a second call.
    pub(crate) fn new() -> Result<Self, Errno> {
        let process = Process::current()?;
        // SAFETY: the call takes nothing.
        let fd = check(unsafe { system::kqueue() })?;
        let mut queue = Kqueue {
            // SAFETY: the call just made this descriptor.
            fd: ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(fd) }),
            process,
            receipts: true,
        };
        close_on_exec(fd)?;
        // A system that does not know the flag makes the changes and answers none.
        let mut proof = [Event::timer(0, 0, FAR_MS), Event::forget(Filter::Timer, 0)];
        queue.receipts = queue.apply_with_receipts(&mut proof)? == proof.len();
        Ok(queue)
    }

    /// Makes all changes, and returns the result of each.
    pub(crate) fn apply<const N: usize>(
        &self,
        mut changes: [Event; N],
    ) -> Result<[Result<(), Errno>; N], Errno> {
        if !self.receipts {
            return Ok(changes.map(|change| self.apply_one(change)));
        }
        let answered = self.apply_with_receipts(&mut changes)?;
        debug_assert_eq!(answered, N);
        Ok(changes.map(|answer| answer.receipt().unwrap_or(Ok(()))))
    }

    /// Makes the changes and puts the answers in their places. There is no room for more, so no
    /// event is collected.
    fn apply_with_receipts(&self, changes: &mut [Event]) -> Result<usize, Errno> {
        for change in &mut *changes {
            change.0.flags |= EV_RECEIPT;
        }
        let (list, len) = (changes.as_mut_ptr(), changes.len());
        // SAFETY: the list is valid for `len` changes and as many answers. The manuals allow one
        // list to serve as both: each change is copied before an answer is written.
        unsafe { self.kevent(list, len, list, len, Some(Duration::ZERO)) }
    }

    /// Makes one change. There is no room for an answer, so an error is the call's own, and no
    /// event is collected.
    fn apply_one(&self, change: Event) -> Result<(), Errno> {
        let none = std::ptr::null_mut();
        // SAFETY: one change, borrowed for the call.
        unsafe { self.kevent(&raw const change, 1, none, 0, Some(Duration::ZERO)) }.map(drop)
    }

    /// Triggers a user event, from any thread.
    pub(crate) fn trigger(&self, ident: usize, token: u64) {
        // It fails only for an event that was never registered.
        let _ = self.apply_one(Event::trigger(ident, token));
    }

    /// Fills `events` up to its capacity. Sleeps until there are events, for the timeout, or until
    /// a signal.
    pub(crate) fn wait(
        &self,
        events: &mut Vec<Event>,
        timeout: Option<Duration>,
    ) -> Result<(), Errno> {
        events.clear();
        let (list, room) = (events.as_mut_ptr(), events.capacity());
        // SAFETY: the vector owns memory for `room` events, borrowed for the call, which
        // initialises as many as it says.
        unsafe {
            let collected = self.kevent(std::ptr::null(), 0, list, room, timeout)?;
            events.set_len(collected);
        }
        Ok(())
    }

    /// `kevent(2)`.
    ///
    /// # Safety
    /// `changes` is valid for reads of `changes_len` events, `events` for writes of `events_len`.
    unsafe fn kevent(
        &self,
        changes: *const Event,
        changes_len: usize,
        events: *mut Event,
        events_len: usize,
        timeout: Option<Duration>,
    ) -> Result<usize, Errno> {
        let timeout = timeout.map(|timeout| timespec(timeout.min(SLEEP_MAX)));
        let timeout = timeout
            .as_ref()
            .map_or(std::ptr::null(), std::ptr::from_ref);
        let queue = self.fd.as_raw_fd();
        // SAFETY: the caller vouches for the lists, whose items are the system's own structure
        // in a transparent shell; the timeout is borrowed for the call.
        let returned = check(unsafe {
            system::kevent(
                queue,
                changes.cast(),
                changes_len as _,
                events.cast(),
                events_len as _,
                timeout,
            )
        })?;
        Ok(returned as usize)
    }
}

impl AsFd for Kqueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Kqueue {
    fn drop(&mut self) {
        if self.process.is_current() {
            // The model cannot see `close(2)`.
            #[cfg(gaio_kqueue_model)]
            system::closing(self.fd.as_raw_fd());
            // SAFETY: the descriptor is not used again.
            unsafe { ManuallyDrop::drop(&mut self.fd) };
        }
    }
}

/// Whether the system can watch this descriptor.
pub(crate) fn can_watch(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let scratch = Kqueue::new()?;
    let watch = Event::watch(Filter::Read, fd.as_raw_fd(), 0);
    match scratch.apply([watch])? {
        [Err(Errno(errno @ (libc::EBADF | libc::ENOMEM)))] => Err(Errno(errno)),
        [refused] => Ok(refused.is_ok()),
    }
}

#[cfg(test)]
mod tests;
