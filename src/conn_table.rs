//! The state of each connection: whether its handle is good, what it is, and a queue of requests
//! per direction. Moves requests in and out of the queues; what they mean is not known here.
//!
//! The first request of a lane lies in the connection's own state, since most lanes have one at most;
//! those behind it are linked in a table that all connections share.

use std::num::NonZeroI32;

use gaio_backends::{Lane, Load, Place, SocketKind, is_overgrown, reserve_gently};

use crate::conn::Conn;
use crate::request::{Backlog, Key, OpId, Pending, Position, Queued, Sequence};

/// No request: the end of a list.
const NONE: u32 = u32::MAX;

/// All connections by slot, and all requests.
#[derive(Debug)]
pub(crate) struct ConnTable<C> {
    slots: Vec<ConnState<C>>,
    behind: Backlog<C>,
    open: usize,
}

#[derive(Debug)]
pub(crate) struct ConnState<C> {
    /// The handle under which it was opened last.
    pub(crate) conn: Conn,
    pub(crate) phase: Phase,
    /// Accepting failed for want of descriptors, and the program was told.
    pub(crate) out_of_descriptors: bool,
    /// The system's error that said that it is lost, as it says only once.
    pub(crate) lost: Option<NonZeroI32>,
    lanes: [LaneState<C>; 2],
}

/// The life of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// A connection, and nothing special about it.
    Open,
    /// A listener.
    Listening,
    /// Other requests wait for the connect to succeed.
    Connecting,
    /// Freed; what runs is being cancelled.
    Closing,
    /// Nothing is here, or the last results of what was are on their way.
    Empty,
}

/// The requests of one direction, oldest first.
#[derive(Debug)]
pub(crate) struct LaneState<C> {
    pub(crate) first: Option<Pending<C>>,
    /// Those behind it.
    next: u32,
    last: u32,
    /// How many of the first requests a backend works on.
    pub(crate) in_flight: u16,
    pub(crate) stage: Stage,
    pub(crate) pausing: Pausing,
    /// How often the first read found no swap buffer.
    pub(crate) misses: u8,
    /// The first read reads into a private buffer.
    pub(crate) private: bool,
    /// How often the first was tried in vain, up to a limit; what waits for time to pass.
    pub(crate) tries: u8,
}

/// Why what runs was cancelled, if that is a stream which is only to pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pausing {
    #[default]
    No,
    /// It holds more than its window.
    OverWindow,
    /// It holds more than it may while little is left of the pool.
    Scarce,
}

/// In which list a lane waits, if nothing runs on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    None,
    /// To be started.
    Dirty,
    /// For a swap buffer, or for leases of its own.
    Starved,
    /// A stream over its window, for leases of its own.
    Paused,
    /// For time to pass, until it is tried again.
    Retrying,
    /// To be started: its turn for a buffer has come, and it does not wait again.
    Served,
}

const _: () = assert!(size_of::<ConnState<()>>() == 80);

impl Phase {
    /// Whether the program's handle is good.
    #[inline]
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Phase::Open | Phase::Listening | Phase::Connecting)
    }
}

impl<C> LaneState<C> {
    const fn new() -> Self {
        LaneState {
            first: None,
            next: NONE,
            last: NONE,
            in_flight: 0,
            stage: Stage::None,
            pausing: Pausing::No,
            misses: 0,
            private: false,
            tries: 0,
        }
    }

    /// Whether others wait behind the first.
    #[inline(always)]
    pub(crate) fn has_more(&self) -> bool {
        self.next != NONE
    }
}

impl<C> ConnState<C> {
    fn new() -> Self {
        ConnState {
            conn: Conn::NONE,
            phase: Phase::Empty,
            out_of_descriptors: false,
            lost: None,
            lanes: [LaneState::new(), LaneState::new()],
        }
    }

    #[inline(always)]
    pub(crate) fn lane(&self, lane: Lane) -> &LaneState<C> {
        &self.lanes[lane as usize]
    }

    #[inline(always)]
    pub(crate) fn lane_mut(&mut self, lane: Lane) -> &mut LaneState<C> {
        &mut self.lanes[lane as usize]
    }

    /// Whether a backend works on nothing.
    pub(crate) fn is_still(&self) -> bool {
        self.lanes.iter().all(|lane| lane.in_flight == 0)
    }

    /// Whether nothing was asked.
    pub(crate) fn is_idle(&self) -> bool {
        self.lanes.iter().all(|lane| lane.first.is_none())
    }
}

impl<C> Default for ConnTable<C> {
    fn default() -> Self {
        ConnTable {
            slots: Vec::new(),
            behind: Backlog::new(),
            open: 0,
        }
    }
}

impl<C> ConnTable<C> {
    pub(crate) fn open_count(&self) -> usize {
        self.open
    }

    /// Opens the slot of a new handle.
    pub(crate) fn open(&mut self, conn: Conn, kind: SocketKind) {
        let index = conn.index();
        while self.slots.len() <= index {
            reserve_gently(&mut self.slots);
            self.slots.push(ConnState::new());
        }
        self.slots[index] = ConnState {
            conn,
            phase: match kind {
                SocketKind::Listener => Phase::Listening,
                SocketKind::Stream | SocketKind::Other => Phase::Open,
            },
            ..ConnState::new()
        };
        self.open += 1;
    }

    /// The connection is no longer the program's.
    pub(crate) fn begin_closing(&mut self, slot: u32) {
        if let Some(state) = self.get_mut(slot)
            && state.phase.is_open()
        {
            state.phase = Phase::Closing;
            self.open -= 1;
        }
    }

    #[inline(always)]
    pub(crate) fn get(&self, slot: u32) -> Option<&ConnState<C>> {
        self.slots.get(slot as usize)
    }

    #[inline(always)]
    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut ConnState<C>> {
        self.slots.get_mut(slot as usize)
    }

    #[inline(always)]
    pub(crate) fn lane(&self, at: Place) -> Option<&LaneState<C>> {
        Some(self.get(at.slot())?.lane(at.lane()))
    }

    #[inline(always)]
    pub(crate) fn lane_mut(&mut self, at: Place) -> Option<&mut LaneState<C>> {
        Some(self.get_mut(at.slot())?.lane_mut(at.lane()))
    }

    /// The slots of all open connections.
    pub(crate) fn open_slots(&self) -> Vec<u32> {
        let open =
            |(slot, state): (usize, &ConnState<C>)| state.phase.is_open().then_some(slot as u32);
        self.slots.iter().enumerate().filter_map(open).collect()
    }

    /// A pending request.
    pub(crate) fn request(&self, key: Key) -> Option<&Pending<C>> {
        match key.kind() {
            Position::First(at) => self.lane(at)?.first.as_ref(),
            Position::Queued(number) => Some(&self.behind.get(number as usize)?.pending),
        }
    }

    pub(crate) fn request_mut(&mut self, key: Key) -> Option<&mut Pending<C>> {
        match key.kind() {
            Position::First(at) => self.lane_mut(at)?.first.as_mut(),
            Position::Queued(number) => Some(&mut self.behind.get_mut(number as usize)?.pending),
        }
    }

    /// The lane in which a request stands; none for a timer.
    pub(crate) fn place_of(&self, key: Key) -> Option<Place> {
        match key.kind() {
            Position::First(at) => Some(at),
            Position::Queued(number) => self.behind.get(number as usize)?.at,
        }
    }

    /// Whether a backend works on a request.
    pub(crate) fn is_in_flight(&self, key: Key) -> bool {
        match key.kind() {
            Position::First(at) => self.lane(at).is_some_and(|lane| lane.in_flight > 0),
            Position::Queued(number) => {
                let queued = self.behind.get(number as usize);
                queued.is_some_and(|queued| queued.in_flight)
            }
        }
    }

    /// The request before one that waits.
    pub(crate) fn before(&self, key: Key) -> Option<&Pending<C>> {
        let Position::Queued(number) = key.kind() else {
            return None;
        };
        let queued = self.behind.get(number as usize)?;
        match self.behind.get(queued.prev as usize) {
            Some(before) => Some(&before.pending),
            None => self.lane(queued.at?)?.first.as_ref(),
        }
    }

    /// The keys of all requests.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (OpId, Key)> {
        let firsts = self.slots.iter().enumerate().flat_map(|(slot, state)| {
            Lane::BOTH.into_iter().filter_map(move |lane| {
                let first = state.lane(lane).first.as_ref()?;
                Some((first.op, Key::first(Place::new(slot as u32, lane))))
            })
        });
        let behind = self.behind.iter();
        let behind = behind.map(|(number, queued)| (queued.pending.op, Key::queued(number as u32)));
        firsts.chain(behind)
    }

    /// Gives the pending requests new numbers, in the old order, of which the highest is `last`.
    #[cold]
    pub(crate) fn renumber(&mut self, last: Sequence) {
        let age = |(_, key)| Some((self.request(key)?.sequence.age(last), key));
        let mut all: Vec<(u32, Key)> = self.keys().filter_map(age).collect();
        all.sort_unstable_by_key(|&(age, _)| age);
        for ((_, key), age) in all.into_iter().zip(0..) {
            if let Some(pending) = self.request_mut(key) {
                pending.sequence = Sequence::of_age(age, last);
            }
        }
    }

    /// The keys of all timers.
    pub(crate) fn timers(&self) -> Vec<Key> {
        let timers = self.behind.iter().filter(|(_, queued)| queued.at.is_none());
        timers
            .map(|(number, _)| Key::queued(number as u32))
            .collect()
    }

    /// Takes a timer.
    pub(crate) fn add_timer(&mut self, pending: Pending<C>) -> Key {
        self.insert(pending, Load::None, None, NONE)
    }

    /// Appends a request to a lane that has others.
    #[cold]
    pub(crate) fn append(&mut self, at: Place, pending: Pending<C>, load: Load) -> Key {
        let last = self.lane(at).map_or(NONE, |lane| lane.last);
        let key = self.insert(pending, load, Some(at), last);
        let Position::Queued(number) = key.kind() else {
            return key;
        };
        match self.behind.get_mut(last as usize) {
            Some(before) => before.next = number,
            None => self.set_next(at, number),
        }
        if let Some(lane) = self.lane_mut(at) {
            lane.last = number;
        }
        key
    }

    fn insert(&mut self, pending: Pending<C>, load: Load, at: Option<Place>, prev: u32) -> Key {
        if self.behind.len() == self.behind.capacity() {
            self.behind.reserve_exact((self.behind.len() / 16).max(32));
        }
        Key::queued(self.behind.insert(Queued {
            pending,
            load,
            at,
            done: 0,
            next: NONE,
            prev,
            in_flight: false,
        }) as u32)
    }

    /// Takes the request behind the first of a lane, to become the first.
    pub(crate) fn take_next(&mut self, at: Place) -> Option<(Key, Queued<C>)> {
        let key = Key::queued(self.lane(at)?.next);
        Some((key, self.take_queued(key)?))
    }

    /// Takes a request that waits out of its lane, wherever it stands; or a timer.
    pub(crate) fn take_queued(&mut self, key: Key) -> Option<Queued<C>> {
        let Position::Queued(number) = key.kind() else {
            return None;
        };
        let queued = self.behind.try_remove(number as usize)?;
        let Some(at) = queued.at else {
            return Some(queued);
        };
        match self.behind.get_mut(queued.prev as usize) {
            Some(before) => before.next = queued.next,
            None => self.set_next(at, queued.next),
        }
        match self.behind.get_mut(queued.next as usize) {
            Some(after) => after.prev = queued.prev,
            None => {
                if let Some(lane) = self.lane_mut(at) {
                    lane.last = queued.prev;
                }
            }
        }
        Some(queued)
    }

    /// Whether a flood of requests has left far more room behind than those that wait want.
    #[inline]
    pub(crate) fn is_overgrown(&self) -> bool {
        is_overgrown(self.behind.len(), self.behind.capacity())
    }

    /// Gives that room back. Those that wait get other numbers: their old keys and their new ones, in
    /// order.
    #[cold]
    pub(crate) fn compact(&mut self) -> Vec<(Key, Key)> {
        let old = std::mem::take(&mut self.behind);
        let mut numbers = vec![NONE; old.capacity()];
        for ((number, _), new) in old.iter().zip(0..) {
            numbers[number] = new;
        }
        let renumber = |number: u32| numbers.get(number as usize).copied().unwrap_or(NONE);
        let mut renamed = Vec::with_capacity(old.len());
        self.behind.reserve_exact(old.len());
        for (number, mut queued) in old {
            queued.next = renumber(queued.next);
            queued.prev = renumber(queued.prev);
            let (at, prev, next) = (queued.at, queued.prev, queued.next);
            let new = self.behind.insert(queued) as u32;
            renamed.push((Key::queued(number as u32), Key::queued(new)));
            debug_assert_eq!(new, renumber(number as u32));
            if let Some(lane) = at.and_then(|at| self.lane_mut(at)) {
                if prev == NONE {
                    lane.next = new;
                }
                if next == NONE {
                    lane.last = new;
                }
            }
        }
        renamed
    }

    fn set_next(&mut self, at: Place, number: u32) {
        if let Some(lane) = self.lane_mut(at) {
            lane.next = number;
        }
    }

    /// The requests behind the first of a lane, oldest first, as long as `each` says so.
    pub(crate) fn walk(&mut self, at: Place, mut each: impl FnMut(Key, &mut Queued<C>) -> bool) {
        let mut number = self.lane(at).map_or(NONE, |lane| lane.next);
        while let Some(queued) = self.behind.get_mut(number as usize) {
            let key = Key::queued(number);
            number = queued.next;
            if !each(key, queued) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::ConnIds;
    use crate::request::{OpIds, What};

    #[test]
    fn order_survives_a_flood() {
        let (ids, mut ops) = (ConnIds::new(), OpIds::new());
        let mut table = ConnTable::default();
        let mut pending = |what| Pending::new(ops.next(), Sequence::last(0), what, (), None);
        let lanes: Vec<Place> = (0..3)
            .filter_map(|_| ids.allocate())
            .map(|conn| {
                table.open(conn, SocketKind::Stream);
                Place::new(conn.slot(), Lane::Write)
            })
            .collect();
        let mut expected = [const { Vec::new() }; 3];
        let mut others = Vec::new();
        for round in 0..3_000 {
            for (at, expected) in lanes.iter().zip(&mut expected) {
                let request = pending(What::Write);
                let (op, key) = (request.op, table.append(*at, request, Load::None));
                if round % 500 == 7 {
                    expected.push(op);
                } else {
                    others.push(key);
                }
            }
            others.push(table.add_timer(pending(What::Timer)));
        }
        let timer = pending(What::Timer);
        let (timer_op, timer_key) = (timer.op, table.add_timer(timer));
        for key in others {
            assert!(table.take_queued(key).is_some());
        }
        assert!(table.is_overgrown());
        let before: Vec<_> = table.keys().collect();
        let renamed = table.compact();
        assert!(!table.is_overgrown() && table.behind.len() == 3 * 6 + 1);
        for (op, key) in before {
            let new = renamed
                .iter()
                .find(|(old, _)| *old == key)
                .map(|(_, new)| *new);
            assert_eq!(
                new.and_then(|new| table.request(new)).map(|it| it.op),
                Some(op)
            );
        }
        let timers = table.timers();
        let new = renamed
            .iter()
            .find(|(old, _)| *old == timer_key)
            .map(|(_, new)| *new);
        assert_eq!(timers, Vec::from_iter(new));
        assert_eq!(table.request(timers[0]).map(|it| it.op), Some(timer_op));
        for (at, mut expected) in lanes.into_iter().zip(expected) {
            // What comes later goes behind them.
            let last = pending(What::Write);
            expected.push(last.op);
            table.append(at, last, Load::None);
            let left = std::iter::from_fn(|| table.take_next(at));
            assert_eq!(
                left.map(|(_, it)| it.pending.op).collect::<Vec<_>>(),
                expected
            );
        }
    }
}
