//! Waiting until a descriptor is ready, for all that the ring does not wait for by itself: writes that
//! did not fit, descriptors that are not sockets, `ready`.
//!
//! The ring's own poll comes first: it costs one entry. But it also ends for what nobody asked about (the
//! other side has ended its writing, an urgent byte), at once and again and again on a socket that stays
//! full. A kernel that goes on with a send by itself does so on that word, and gives up after some rounds
//! by leaving the send to a thread of its own, for each such connection one. So sends never wait in the
//! kernel, and whoever was told "ready" and found nothing waits in an epoll instance, which says exactly
//! what it is asked, once a change; the ring polls that.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use io_uring::types::Fd;

use super::entries::poll_entry;
use super::{Uring, WAITED};
use crate::error::Errno;
use crate::{Completion, Interest, Lane, Place, sys};

/// Events taken from the epoll instance in one call.
const EVENTS_MAX: usize = 64;

/// Lanes that the ring's own poll misleads.
pub(super) struct Misled {
    epoll: OwnedFd,
    /// By slot: which lanes wait.
    waiting: HashMap<u32, [bool; 2]>,
    /// Lanes of which the instance said that they are ready.
    woken: VecDeque<Place>,
    /// The ring polls the instance.
    polled: bool,
    events: Vec<libc::epoll_event>,
}

impl Misled {
    /// The descriptor is made here, so that no wait fails for want of one.
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Misled {
            epoll: sys::epoll_create()?,
            waiting: HashMap::new(),
            woken: VecDeque::new(),
            polled: false,
            events: Vec::new(),
        })
    }

    #[inline(always)]
    pub(super) fn has_woken(&self) -> bool {
        !self.woken.is_empty()
    }

    /// The next lane to try again. It may have ended since.
    pub(super) fn next_woken(&mut self) -> Option<Place> {
        self.woken.pop_front()
    }

    pub(super) fn waits(&self, at: Place) -> bool {
        let lanes = self.waiting.get(&at.slot());
        lanes.is_some_and(|lanes| lanes[at.lane() as usize])
    }

    /// Lets a lane wait, too. Returns how many system calls it made.
    fn add(&mut self, at: Place, fd: BorrowedFd<'_>) -> Result<u64, Errno> {
        let before = self.waiting.get(&at.slot()).copied().unwrap_or_default();
        let mut lanes = before;
        lanes[at.lane() as usize] = true;
        if lanes == before {
            return Ok(0);
        }
        self.register(at.slot(), fd, before, lanes)?;
        self.waiting.insert(at.slot(), lanes);
        Ok(1)
    }

    /// A lane waits no longer, if it did; it is the last call before its descriptor may be closed.
    /// Returns how many system calls it made.
    fn remove(&mut self, at: Place, fd: BorrowedFd<'_>) -> u64 {
        if !self.waits(at) {
            return 0;
        }
        let before = self.waiting.remove(&at.slot()).unwrap_or_default();
        let mut lanes = before;
        lanes[at.lane() as usize] = false;
        if lanes != [false; 2] {
            self.waiting.insert(at.slot(), lanes);
        }
        // What is registered can be changed: it takes no memory.
        let changed = self.register(at.slot(), fd, before, lanes);
        debug_assert_eq!(changed, Ok(()));
        1
    }

    /// Registers a descriptor for the lanes that wait.
    fn register(
        &self,
        slot: u32,
        fd: BorrowedFd<'_>,
        before: [bool; 2],
        lanes: [bool; 2],
    ) -> Result<(), Errno> {
        let epoll = self.epoll.as_fd();
        let events = match lanes {
            [true, true] => libc::EPOLLIN | libc::EPOLLOUT,
            [true, false] => libc::EPOLLIN,
            [false, _] => libc::EPOLLOUT,
        };
        let events = events | libc::EPOLLET;
        match (before, lanes) {
            (_, [false, false]) => sys::epoll_del(epoll, fd),
            ([false, false], _) => sys::epoll_add(epoll, fd, events, u64::from(slot)),
            _ => sys::epoll_change(epoll, fd, events, u64::from(slot)),
        }
    }

    /// Takes what the instance says.
    fn collect(&mut self) -> Result<(), Errno> {
        self.events.reserve(EVENTS_MAX);
        sys::epoll_wait(self.epoll.as_fd(), &mut self.events, 0)?;
        for event in &self.events {
            let slot = event.u64 as u32;
            let lanes = self.waiting.get(&slot).copied().unwrap_or_default();
            // Whoever is woken in vain waits on.
            let woken = Lane::BOTH.into_iter().filter(|&lane| lanes[lane as usize]);
            self.woken.extend(woken.map(|lane| Place::new(slot, lane)));
        }
        Ok(())
    }
}

impl Uring {
    /// Waits until a lane is ready, by the ring's own poll.
    pub(super) fn poll(&mut self, at: Place) {
        let Some(socket) = self.in_flight.get(at.slot()) else {
            return;
        };
        let entry = poll_entry(Fd(socket.fd), interest(at.lane()));
        // SAFETY: a poll names no memory.
        unsafe { self.push(entry.user_data(u64::from(at.number()))) };
    }

    /// The same for a lane that was said to be ready and was not.
    pub(super) fn poll_exactly(&mut self, at: Place) -> Result<(), Errno> {
        let socket = self.in_flight.socket(at.slot()).ok_or(Errno(libc::EBADF))?;
        self.counts.others += self.misled.add(at, socket)?;
        self.poll_misled();
        Ok(())
    }

    /// A lane waits no longer. False if it did not wait in the epoll instance.
    pub(super) fn stop_waiting(&mut self, at: Place) -> bool {
        if !self.misled.waits(at) {
            return false;
        }
        if let Some(socket) = self.in_flight.socket(at.slot()) {
            self.counts.others += self.misled.remove(at, socket);
        }
        true
    }

    /// Ends an operation that waits in the epoll instance, of which the ring knows nothing. False if it
    /// does not wait there.
    pub(super) fn forget_misled(&mut self, at: Place) -> bool {
        let waited = self.stop_waiting(at);
        if waited {
            self.end(at);
            let cancelled = Err(Errno(libc::ECANCELED));
            self.immediate.push_back(Completion::last(at, cancelled));
        }
        waited
    }

    /// Whether a lane is ready for what it does, by `poll(2)`.
    pub(super) fn is_ready(&mut self, at: Place) -> Result<bool, Errno> {
        let socket = self.in_flight.get(at.slot()).ok_or(Errno(libc::EBADF))?;
        self.counts.others += 1;
        sys::is_ready(socket.fd, interest(at.lane()))
    }

    /// Lets the ring poll the epoll instance while lanes wait in it.
    fn poll_misled(&mut self) {
        if !self.misled.waiting.is_empty() && !self.misled.polled {
            self.misled.polled = true;
            let epoll = Fd(self.misled.epoll.as_raw_fd());
            let entry = poll_entry(epoll, Interest::Readable).user_data(WAITED);
            // SAFETY: a poll names no memory.
            unsafe { self.push(entry) };
        }
    }

    /// The ring's poll of the epoll instance has ended.
    #[cold]
    pub(super) fn collect_misled(&mut self) {
        self.misled.polled = false;
        self.counts.waits += 1;
        // If it fails, the poll comes again and ends at once.
        let _ = self.misled.collect();
        self.poll_misled();
    }
}

/// What a lane waits for.
fn interest(lane: Lane) -> Interest {
    match lane {
        Lane::Read => Interest::Readable,
        Lane::Write => Interest::Writable,
    }
}
