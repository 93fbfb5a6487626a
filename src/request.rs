//! What was asked: requests, new and pending, and by what they are found.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::Shutdown;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use gaio_backends::{Buffer, Doing, ErrorKind, Interest, Lane, Load, Place, is_overgrown};
use slab::Slab;

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
        self.next += 2;
        // Odd ones only, so that none is zero.
        OpId(NonZeroU64::MIN | self.next)
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

/// An accepted request. What it carries besides its context is in the backend's `Loads`, or waits with
/// it in the [`Backlog`].
#[derive(Debug)]
pub(crate) struct Pending<C> {
    pub(crate) op: OpId,
    pub(crate) sequence: Sequence,
    pub(crate) what: What,
    /// Why it is being ended before its time.
    pub(crate) end: Option<ErrorKind>,
    pub(crate) has_deadline: bool,
    pub(crate) context: C,
}

const _: () = assert!(size_of::<Option<Pending<()>>>() == 16);

impl<C> Pending<C> {
    #[inline(always)]
    pub(crate) fn new(
        op: OpId,
        sequence: Sequence,
        what: What,
        context: C,
        deadline: Option<Instant>,
    ) -> Self {
        Pending {
            op,
            sequence,
            what,
            end: None,
            has_deadline: deadline.is_some(),
            context,
        }
    }
}

/// Where a request stands in the order of acceptance. It is small, and wraps around: those that are
/// pending get new ones before it matters ([`Sequence::LIFE`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sequence(u32);

impl Sequence {
    /// After so many requests, those that are pending get new numbers. Twice as many may lie between
    /// two that are told apart.
    pub(crate) const LIFE: u64 = 1 << 30;

    /// The last one of so many requests.
    #[inline(always)]
    pub(crate) fn last(accepted: u64) -> Self {
        Sequence(accepted as u32)
    }

    /// How many requests were accepted after this one, up to that one.
    pub(crate) fn age(self, last: Sequence) -> u32 {
        last.0.wrapping_sub(self.0)
    }

    /// The one that has this age.
    pub(crate) fn of_age(age: u32, last: Sequence) -> Self {
        Sequence(last.0.wrapping_sub(age))
    }

    pub(crate) fn is_before(self, other: Sequence) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }
}

/// By what a request is found: the place of the first of a lane, a number for one that waits behind
/// others, or for a timer. It changes once at most, when a request becomes the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u32);

impl Key {
    const QUEUED: u32 = 1 << 31;

    #[inline(always)]
    pub(crate) fn first(at: Place) -> Self {
        Key(at.number())
    }

    #[inline]
    pub(crate) fn queued(number: u32) -> Self {
        Key(number | Key::QUEUED)
    }

    pub(crate) fn kind(self) -> Position {
        if self.0 & Key::QUEUED == 0 {
            Position::First(Place::from_number(self.0))
        } else {
            Position::Queued(self.0 & !Key::QUEUED)
        }
    }
}

/// What a [`Key`] says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    First(Place),
    Queued(u32),
}

/// A request that is not the first of its lane, or a timer.
#[derive(Debug)]
pub(crate) struct Queued<C> {
    pub(crate) pending: Pending<C>,
    /// Nothing while it is part of a vectored write.
    pub(crate) load: Load,
    /// Bytes of it that were written.
    pub(crate) done: usize,
    /// Its lane; none for a timer.
    pub(crate) at: Option<Place>,
    /// Neighbours in its lane.
    pub(crate) next: u32,
    pub(crate) prev: u32,
    /// It runs together with the first.
    pub(crate) in_flight: bool,
}

/// All requests that wait behind others, and the timers, by number.
pub(crate) type Backlog<C> = Slab<Queued<C>>;

/// Where to find requests by `OpId`. Made when the first is looked for: a program that never cancels
/// does not pay for it.
#[derive(Debug, Default)]
pub(crate) struct OpIndex(Option<HashMap<OpId, Key, BuildHasherDefault<Spread>>>);

impl OpIndex {
    #[inline(always)]
    pub(crate) fn is_used(&self) -> bool {
        self.0.is_some()
    }

    /// A request came, or goes by another key from now on.
    #[inline(always)]
    pub(crate) fn note(&mut self, op: OpId, key: Key) {
        if let Some(keys) = &mut self.0 {
            keys.insert(op, key);
        }
    }

    #[inline(always)]
    pub(crate) fn forget(&mut self, op: OpId) {
        if let Some(keys) = &mut self.0 {
            keys.remove(&op);
        }
    }

    /// Gives back the room that a flood has left behind.
    #[inline]
    pub(crate) fn shrink_overgrown(&mut self) {
        if let Some(keys) = &mut self.0
            && is_overgrown(keys.len(), keys.capacity())
        {
            keys.shrink_to_fit();
        }
    }

    /// The key of a pending request; the first time, `all` says what there is.
    pub(crate) fn find<I>(&mut self, op: OpId, all: impl FnOnce() -> I) -> Option<Key>
    where
        I: Iterator<Item = (OpId, Key)>,
    {
        let keys = self.0.get_or_insert_with(|| all().collect());
        keys.get(&op).copied()
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
    fn numbers_of_two_watchers_differ() {
        assert_ne!(OpIds::new().next(), OpIds::new().next());
    }

    #[test]
    fn keys_say_where_a_request_stands() {
        let at = Place::new(77, Lane::Write);
        assert_eq!(Key::first(at).kind(), Position::First(at));
        assert_eq!(Key::queued(77).kind(), Position::Queued(77));
    }
}
