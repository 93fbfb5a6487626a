//! What was asked: the pending requests of a watcher, found by number or by `OpId`.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use gaio_backends::{Address, Buffer, Credit, Doing, ErrorKind, Interest};
use slab::Slab;
use std::net::Shutdown;

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

/// What a request carries besides its context.
#[derive(Debug)]
pub(crate) enum Held {
    Buffer(Buffer),
    Address(Box<Address>),
    Credit(Credit),
}

impl Held {
    pub(crate) const NOTHING: Held = Held::Buffer(Buffer::EMPTY);

    #[inline]
    pub(crate) fn into_buffer(self) -> Buffer {
        match self {
            Held::Buffer(buffer) => buffer,
            _ => Buffer::EMPTY,
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
    pub(crate) held: Held,
    pub(crate) deadline: Option<Instant>,
}

impl<C> Order<C> {
    #[inline]
    pub(crate) fn new(what: What, context: C, held: Held, deadline: Option<Instant>) -> Self {
        Order {
            clone_context: None,
            what,
            context,
            held,
            deadline,
        }
    }

    /// An order for many results.
    pub(crate) fn stream(what: What, context: C, held: Held) -> Self
    where
        C: Clone,
    {
        Order {
            clone_context: Some(C::clone),
            ..Order::new(what, context, held, None)
        }
    }

    /// A read into a vector, or into a swap buffer.
    #[inline]
    pub(crate) fn read(context: C, buf: Option<Vec<u8>>, deadline: Option<Instant>) -> Self {
        match buf {
            Some(vec) => Order::new(What::Read, context, Held::Buffer(vec.into()), deadline),
            None => Order::new(What::ReadSwap, context, Held::NOTHING, deadline),
        }
    }

    /// What `read` was given.
    pub(crate) fn into_read(self) -> (C, Option<Vec<u8>>) {
        (self.context, self.held.into_buffer().recycle())
    }

    /// What `write` was given.
    pub(crate) fn into_write(self) -> (C, Buffer) {
        (self.context, self.held.into_buffer())
    }
}

/// An accepted request.
#[derive(Debug)]
pub(crate) struct Pending<C> {
    pub(crate) op: OpId,
    pub(crate) slot: u32,
    /// Neighbours in the queue of its lane.
    pub(crate) next: u32,
    pub(crate) prev: u32,
    /// The next request with the same place in the index by `OpId`.
    chain: u32,
    pub(crate) what: What,
    /// A backend works on it.
    pub(crate) in_flight: bool,
    pub(crate) has_deadline: bool,
    /// A stream that was cancelled only to pause it.
    pub(crate) pausing: bool,
    /// Why it is being ended before its time.
    pub(crate) end: Option<ErrorKind>,
    pub(crate) held: Held,
    /// Bytes transferred so far.
    pub(crate) done: usize,
    pub(crate) context: C,
}

const _: () = assert!(size_of::<usize>() != 8 || size_of::<Pending<()>>() <= 80);
const _: () = assert!(size_of::<Option<Pending<()>>>() <= 80);

/// All pending requests.
#[derive(Debug)]
pub(crate) struct Requests<C> {
    slab: Slab<Pending<C>>,
    /// Heads of the chains, by the low bits of the `OpId`; a power of two, at least as many as
    /// there are requests. Numbers are given out in turn, so that chains are short.
    chains: Vec<u32>,
}

impl<C> Requests<C> {
    pub(crate) fn new() -> Self {
        Requests {
            slab: Slab::new(),
            chains: vec![NONE; 64],
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.slab.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.slab.is_empty()
    }

    #[inline]
    pub(crate) fn insert(&mut self, op: OpId, slot: u32, order: Order<C>) -> u32 {
        if self.slab.len() == self.slab.capacity() {
            self.slab.reserve_exact((self.slab.len() / 16).max(32));
        }
        if self.slab.len() >= self.chains.len() {
            self.rebuild_chains();
        }
        let head = self.head(op);
        let chain = self.chains[head];
        let index = self.slab.insert(Pending {
            op,
            slot,
            next: NONE,
            prev: NONE,
            chain,
            what: order.what,
            in_flight: false,
            has_deadline: order.deadline.is_some(),
            pausing: false,
            end: None,
            held: order.held,
            done: 0,
            context: order.context,
        }) as u32;
        self.chains[head] = index;
        index
    }

    #[inline]
    pub(crate) fn get(&self, index: u32) -> Option<&Pending<C>> {
        self.slab.get(index as usize)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, index: u32) -> Option<&mut Pending<C>> {
        self.slab.get_mut(index as usize)
    }

    #[inline]
    pub(crate) fn remove(&mut self, index: u32) -> Option<Pending<C>> {
        let pending = self.slab.try_remove(index as usize)?;
        let head = self.head(pending.op);
        if self.chains[head] == index {
            self.chains[head] = pending.chain;
        } else {
            self.unchain(self.chains[head], index, pending.chain);
        }
        Some(pending)
    }

    pub(crate) fn find(&self, op: OpId) -> Option<u32> {
        let mut index = self.chains[self.head(op)];
        while let Some(pending) = self.get(index) {
            if pending.op == op {
                return Some(index);
            }
            index = pending.chain;
        }
        None
    }

    /// The numbers of all requests.
    pub(crate) fn indices(&self) -> Vec<u32> {
        self.slab.iter().map(|(index, _)| index as u32).collect()
    }

    #[inline]
    fn head(&self, op: OpId) -> usize {
        op.0.get() as usize & (self.chains.len() - 1)
    }

    fn unchain(&mut self, mut at: u32, gone: u32, after: u32) {
        while let Some(pending) = self.get_mut(at) {
            if pending.chain == gone {
                pending.chain = after;
                return;
            }
            at = pending.chain;
        }
    }

    #[cold]
    fn rebuild_chains(&mut self) {
        let len = self.chains.len() * 2;
        self.chains = Vec::new();
        self.chains.resize(len, NONE);
        for (index, pending) in &mut self.slab {
            let head = pending.op.0.get() as usize & (len - 1);
            pending.chain = std::mem::replace(&mut self.chains[head], index as u32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> Order<()> {
        Order::new(What::Timer, (), Held::NOTHING, None)
    }

    #[test]
    fn found_by_number_through_growth_and_removal() {
        let mut ids = OpIds::new();
        let mut requests = Requests::new();
        let all: Vec<_> = (0..1_000)
            .map(|_| {
                let op = ids.next();
                (op, requests.insert(op, 0, order()))
            })
            .collect();
        for &(op, index) in all.iter().step_by(3) {
            assert!(requests.remove(index).is_some_and(|p| p.op == op));
        }
        for (place, &(op, index)) in all.iter().enumerate() {
            let expected = (place % 3 != 0).then_some(index);
            assert_eq!(requests.find(op), expected);
        }
    }

    #[test]
    fn numbers_of_two_watchers_differ() {
        assert_ne!(OpIds::new().next(), OpIds::new().next());
    }
}
