//! Waits until a descriptor is ready, for everything that does not wait in the ring: writes that
//! did not fit, descriptors that are not sockets, `ready`.
//!
//! The ring's own poll comes first, because it costs one entry. But it also ends for events that
//! nobody asked about, such as an urgent byte, or the end of the other side's writing. On a socket
//! that stays full it does so at once, again and again. A kernel that retries a send by itself
//! relies on that poll. After some rounds in vain it leaves the send to a thread of its own, one
//! for each such connection. So sends never wait in the kernel here. A lane that was reported ready
//! and is not goes on to wait in an epoll instance, which reports exactly the events asked for,
//! once a change. The ring polls the instance.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use io_uring::types::Fd;

use super::entries::poll_entry;
use super::{Uring, WAITED};
use crate::error::Errno;
use crate::{Completion, Interest, Lane, LaneId, sys};

/// Events taken from the epoll instance in one call.
const EVENTS_MAX: usize = 64;

/// Lanes that the ring's own poll misled, and the epoll instance in which they wait.
pub(super) struct Misled {
    epoll: OwnedFd,
    /// The lanes that wait, by slot.
    waiting: HashMap<u32, [bool; 2]>,
    /// Lanes that the instance has reported ready.
    woken: VecDeque<LaneId>,
    /// Whether the ring polls the instance.
    polled: bool,
    events: Vec<libc::epoll_event>,
}

impl Misled {
    /// Makes the instance in advance, so that no wait fails for want of a descriptor.
    pub(super) fn new() -> Result<Self, Errno> {
        Ok(Misled {
            epoll: sys::epoll_create()?,
            waiting: HashMap::new(),
            woken: VecDeque::new(),
            polled: false,
            events: Vec::new(),
        })
    }

    #[inline]
    pub(super) fn has_woken(&self) -> bool {
        !self.woken.is_empty()
    }

    /// The next lane to try again. It may have ended since.
    pub(super) fn next_woken(&mut self) -> Option<LaneId> {
        self.woken.pop_front()
    }

    pub(super) fn waits(&self, at: LaneId) -> bool {
        let lanes = self.waiting.get(&at.slot());
        lanes.is_some_and(|lanes| lanes[at.lane() as usize])
    }

    /// Lets a lane wait. Returns the number of system calls.
    fn add(&mut self, at: LaneId, fd: BorrowedFd<'_>) -> Result<u64, Errno> {
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

    /// Ends the wait of a lane, if it waits. This is the last call before its descriptor may be
    /// closed. Returns the number of system calls.
    fn remove(&mut self, at: LaneId, fd: BorrowedFd<'_>) -> u64 {
        if !self.waits(at) {
            return 0;
        }
        let before = self.waiting.remove(&at.slot()).unwrap_or_default();
        let mut lanes = before;
        lanes[at.lane() as usize] = false;
        if lanes != [false; 2] {
            self.waiting.insert(at.slot(), lanes);
        }
        // A change of a registration takes no memory, so it does not fail.
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
        let events = match lanes {
            [true, true] => libc::EPOLLIN | libc::EPOLLOUT,
            [true, false] => libc::EPOLLIN,
            [false, _] => libc::EPOLLOUT,
        };
        let events = events | libc::EPOLLET;
        let operation = match (before, lanes) {
            (_, [false, false]) => libc::EPOLL_CTL_DEL,
            ([false, false], _) => libc::EPOLL_CTL_ADD,
            _ => libc::EPOLL_CTL_MOD,
        };
        sys::epoll_control(self.epoll.as_fd(), operation, fd, events, u64::from(slot))
    }

    /// Collects the events of the instance.
    fn collect(&mut self) -> Result<(), Errno> {
        self.events.reserve(EVENTS_MAX);
        sys::epoll_wait(self.epoll.as_fd(), &mut self.events, 0)?;
        for event in &self.events {
            let slot = event.u64 as u32;
            let lanes = self.waiting.get(&slot).copied().unwrap_or_default();
            // A lane that is woken in vain waits on.
            let woken = Lane::BOTH.into_iter().filter(|&lane| lanes[lane as usize]);
            self.woken.extend(woken.map(|lane| LaneId::new(slot, lane)));
        }
        Ok(())
    }
}

impl Uring {
    /// Waits until a lane is ready, by the ring's own poll.
    pub(super) fn poll(&mut self, at: LaneId) {
        let Some(socket) = self.in_flight.get(at.slot()) else {
            return;
        };
        let entry = poll_entry(Fd(socket.fd), interest(at.lane()));
        // SAFETY: a poll names no memory.
        unsafe { self.push(entry.user_data(u64::from(at.number()))) };
    }

    /// Waits until a lane is ready, in the epoll instance: the lane was reported ready and was not.
    pub(super) fn poll_exactly(&mut self, at: LaneId) -> Result<(), Errno> {
        let socket = self.in_flight.socket(at.slot()).ok_or(Errno(libc::EBADF))?;
        self.counts.others += self.misled.add(at, socket)?;
        self.poll_misled();
        Ok(())
    }

    /// Ends the wait of a lane. False if it did not wait in the epoll instance.
    pub(super) fn stop_waiting(&mut self, at: LaneId) -> bool {
        if !self.misled.waits(at) {
            return false;
        }
        if let Some(socket) = self.in_flight.socket(at.slot()) {
            self.counts.others += self.misled.remove(at, socket);
        }
        true
    }

    /// Ends a cancelled operation that waits in the epoll instance, because the ring knows nothing
    /// of it. False if it does not wait there.
    pub(super) fn forget_misled(&mut self, at: LaneId) -> bool {
        let waited = self.stop_waiting(at);
        if waited {
            self.end(at);
            let cancelled = Err(Errno(libc::ECANCELED));
            self.ended.push_back(Completion::last(at, cancelled));
        }
        waited
    }

    /// Whether a lane is ready now, by `poll(2)`.
    pub(super) fn is_ready(&mut self, at: LaneId) -> Result<bool, Errno> {
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
        // If this fails, the poll comes again and ends at once.
        let _ = self.misled.collect();
        self.poll_misled();
    }
}

/// The readiness that a lane waits for.
fn interest(lane: Lane) -> Interest {
    match lane {
        Lane::Read => Interest::Readable,
        Lane::Write => Interest::Writable,
    }
}
