//! What was asked: the pending requests of a watcher, found by number or by `OpId`.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::Shutdown;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use gaio_backends::{Buffer, Doing, ErrorKind, Interest, Lane, Load, reserve_gently};

/// No request: the end of a list.
pub(crate) const NONE: u32 = u32::MAX;

/// What kind of request a result belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// `read`, `read_timeout`, `read_full`, `read_stream`.
    Read,
    /// `write`, `write_timeout`.
    Write,
    /// `accept`, `accept_one`.
    Accept,
    /// `connect`, `connect_from`.
    Connect,
    /// `shutdown`.
    Shutdown,
    /// `ready`.
    Ready,
    /// `timer`.
    Timer,
    /// [`Remote::post`](crate::Remote::post).
    Post,
}

/// A request's number: never used twice, not even by different watchers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OpId(NonZeroU64);

/// Numbers come in blocks, so that taking one costs an addition.
#[derive(Debug)]
pub(crate) struct OpIds {
    next: u64,
    end: u64,
}

impl OpIds {
    const BLOCK: u64 = 1 << 32;

    pub(crate) fn new() -> Self {
        OpIds { next: 0, end: 0 }
    }

    #[inline]
    pub(crate) fn next(&mut self) -> OpId {
        if self.next == self.end {
            static NEXT_BLOCK: AtomicU64 = AtomicU64::new(0);
            let block = NEXT_BLOCK.fetch_add(1, Ordering::Relaxed);
            self.next = block * Self::BLOCK;
            self.end = self.next + Self::BLOCK;
        }
        self.next += 1;
        OpId(NonZeroU64::new(self.next).unwrap_or(NonZeroU64::MAX))
    }
}

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    ReadSwap,
    Read,
    ReadFull,
    ReadStream,
    Write,
    Accept,
    AcceptOne,
    Connect,
    Shutdown(Shutdown),
    Ready(Interest),
    Timer,
}

impl What {
    /// The lane in which a request waits its turn.
    #[inline(always)]
    pub(crate) fn lane(self) -> Lane {
        match self {
            What::Write
            | What::Connect
            | What::Shutdown(_)
            | What::Ready(Interest::Writable)
            | What::Timer => Lane::Write,
            What::ReadSwap
            | What::Read
            | What::ReadFull
            | What::ReadStream
            | What::Accept
            | What::AcceptOne
            | What::Ready(Interest::Readable) => Lane::Read,
        }
    }

    #[inline]
    pub(crate) fn operation(self) -> Operation {
        match self {
            What::ReadSwap | What::Read | What::ReadFull | What::ReadStream => Operation::Read,
            What::Write => Operation::Write,
            What::Accept | What::AcceptOne => Operation::Accept,
            What::Connect => Operation::Connect,
            What::Shutdown(_) => Operation::Shutdown,
            What::Ready(_) => Operation::Ready,
            What::Timer => Operation::Timer,
        }
    }

    pub(crate) fn doing(self) -> Doing {
        match self.operation() {
            Operation::Read => Doing::Read,
            Operation::Write => Doing::Write,
            Operation::Accept => Doing::Accept,
            Operation::Connect => Doing::Connect,
            Operation::Shutdown => Doing::Shutdown,
            Operation::Ready => Doing::Ready,
            Operation::Timer => Doing::Timer,
            Operation::Post => Doing::Post,
        }
    }
}

/// A new request, not yet accepted.
#[derive(Debug)]
pub(crate) struct Order<C> {
    /// How a stream copies its context for each result.
    pub(crate) clone_context: Option<fn(&C) -> C>,
    pub(crate) what: What,
    pub(crate) context: C,
    pub(crate) load: Load,
    pub(crate) deadline: Option<Instant>,
}

impl<C> Order<C> {
    #[inline]
    pub(crate) fn new(what: What, context: C, load: Load, deadline: Option<Instant>) -> Self {
        Order {
            clone_context: None,
            what,
            context,
            load,
            deadline,
        }
    }

    /// An order for many results.
    pub(crate) fn stream(what: What, context: C, load: Load) -> Self
    where
        C: Clone,
    {
        Order {
            clone_context: Some(C::clone),
            ..Order::new(what, context, load, None)
        }
    }

    /// A read into a vector, or into a swap buffer.
    #[inline(always)]
    pub(crate) fn read(context: C, buf: Option<Vec<u8>>, deadline: Option<Instant>) -> Self {
        match buf {
            Some(vec) => Order::new(What::Read, context, Load::Buffer(vec.into()), deadline),
            None => Order::new(What::ReadSwap, context, Load::None, deadline),
        }
    }

    /// What `read` was given.
    pub(crate) fn into_read(self) -> (C, Option<Vec<u8>>) {
        (self.context, self.load.into_buffer().recycle())
    }

    /// What `write` was given.
    pub(crate) fn into_write(self) -> (C, Buffer) {
        (self.context, self.load.into_buffer())
    }
}

/// An accepted request. What it carries besides its context is in the backend's `Loads`.
#[derive(Debug)]
pub(crate) struct Pending<C> {
    pub(crate) op: OpId,
    pub(crate) slot: u32,
    /// Neighbours in the queue of its lane; of a free place, the next free one.
    pub(crate) next: u32,
    pub(crate) prev: u32,
    /// When it was accepted, counting requests; wraps around.
    pub(crate) accepted: u32,
    pub(crate) what: What,
    pub(crate) lane: Lane,
    /// A backend works on it.
    pub(crate) in_flight: bool,
    pub(crate) has_deadline: bool,
    /// A stream that was cancelled only to pause it.
    pub(crate) pausing: bool,
    /// Why it is being ended before its time.
    pub(crate) end: Option<ErrorKind>,
    /// None of a free place.
    pub(crate) context: Option<C>,
}

const _: () = assert!(size_of::<Pending<()>>() <= 32);

/// What is left of a request that was taken out.
pub(crate) struct Removed<C> {
    pub(crate) op: OpId,
    pub(crate) slot: u32,
    pub(crate) next: u32,
    pub(crate) prev: u32,
    pub(crate) what: What,
    pub(crate) lane: Lane,
    pub(crate) has_deadline: bool,
    pub(crate) context: C,
}

/// All pending requests, each under a small number, its *key*.
#[derive(Debug)]
pub(crate) struct Requests<C> {
    places: Vec<Pending<C>>,
    free: u32,
    /// How many came, and how many went.
    accepted: u64,
    removed: u64,
    /// Where to find requests by `OpId`. Made when the first is looked for: a program that never
    /// cancels does not pay for it.
    by_op: Option<HashMap<OpId, u32, BuildHasherDefault<Spread>>>,
}

impl<C> Requests<C> {
    pub(crate) fn new() -> Self {
        Requests {
            places: Vec::new(),
            free: NONE,
            accepted: 0,
            removed: 0,
            by_op: None,
        }
    }

    /// How many are pending.
    pub(crate) fn len(&self) -> usize {
        (self.accepted - self.removed) as usize
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many there ever were.
    pub(crate) fn accepted(&self) -> u64 {
        self.accepted
    }

    #[inline(always)]
    pub(crate) fn insert(
        &mut self,
        op: OpId,
        slot: u32,
        what: What,
        has_deadline: bool,
        context: C,
    ) -> u32 {
        let pending = Pending {
            op,
            slot,
            next: NONE,
            prev: NONE,
            accepted: self.accepted as u32,
            what,
            lane: what.lane(),
            in_flight: false,
            has_deadline,
            pausing: false,
            end: None,
            context: Some(context),
        };
        self.accepted += 1;
        let mut key = self.free;
        match self.places.get_mut(key as usize) {
            Some(place) => {
                self.free = place.next;
                *place = pending;
            }
            None => {
                key = self.places.len() as u32;
                reserve_gently(&mut self.places);
                self.places.push(pending);
            }
        }
        if let Some(by_op) = &mut self.by_op {
            by_op.insert(op, key);
        }
        key
    }

    #[inline]
    pub(crate) fn get(&self, key: u32) -> Option<&Pending<C>> {
        self.places.get(key as usize)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, key: u32) -> Option<&mut Pending<C>> {
        self.places.get_mut(key as usize)
    }

    /// Takes a request out.
    #[inline(always)]
    pub(crate) fn remove(&mut self, key: u32) -> Option<Removed<C>> {
        let place = self.places.get_mut(key as usize)?;
        let op = place.op;
        let removed = Removed {
            op,
            slot: place.slot,
            next: place.next,
            prev: place.prev,
            what: place.what,
            lane: place.lane,
            has_deadline: place.has_deadline,
            context: place.context.take()?,
        };
        place.next = std::mem::replace(&mut self.free, key);
        self.removed += 1;
        if let Some(by_op) = &mut self.by_op {
            by_op.remove(&op);
        }
        Some(removed)
    }

    /// The key of a request that is pending.
    pub(crate) fn find(&mut self, op: OpId) -> Option<u32> {
        let places = &self.places;
        let by_op = self.by_op.get_or_insert_with(|| {
            let pending = places.iter().enumerate();
            pending
                .filter(|(_, pending)| pending.context.is_some())
                .map(|(key, pending)| (pending.op, key as u32))
                .collect()
        });
        by_op.get(&op).copied()
    }

    /// The keys of all requests.
    pub(crate) fn keys(&self) -> Vec<u32> {
        let pending = self.places.iter().enumerate();
        pending
            .filter(|(_, pending)| pending.context.is_some())
            .map(|(key, _)| key as u32)
            .collect()
    }
}

/// A hash for numbers that are given out one after the other: a multiplication spreads them.
#[derive(Debug, Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(self.0 ^ u64::from(byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // 2^64 divided by the golden ratio.
        self.0 = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_by_number_through_growth_and_removal() {
        let mut ids = OpIds::new();
        let mut requests = Requests::new();
        let all: Vec<_> = (0..1_000)
            .map(|_| {
                let op = ids.next();
                (op, requests.insert(op, 0, What::Timer, false, ()))
            })
            .collect();
        for &(_, key) in all.iter().step_by(6) {
            assert!(requests.remove(key).is_some());
        }
        // The first search makes the index; what follows keeps it up to date.
        assert_eq!(requests.find(all[1].0), Some(all[1].1));
        for &(_, key) in all.iter().skip(3).step_by(6) {
            assert!(requests.remove(key).is_some());
        }
        let late = ids.next();
        let key = requests.insert(late, 0, What::Timer, false, ());
        assert_eq!(requests.find(late), Some(key));
        for (place, &(op, key)) in all.iter().enumerate() {
            let expected = (place % 3 != 0).then_some(key);
            assert_eq!(requests.find(op), expected);
        }
    }

    #[test]
    fn numbers_of_two_watchers_differ() {
        assert_ne!(OpIds::new().next(), OpIds::new().next());
    }
}
