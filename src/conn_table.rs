//! The table of all connections, and the queues of their lanes. It moves requests in and out of the
//! queues, and does not know what they mean.
//!
//! The first request of a lane lies in the connection's own state. The requests behind it are linked in
//! a table that all connections share. Timers are in that table, too.

use gaio_backends::{Lane, LaneId, OpData, SocketKind, is_overgrown, reserve_gently};

use crate::conn::Conn;
use crate::conn_state::{ConnState, LaneState, NONE, Phase};
use crate::request::{Key, OpId, Pending, Position, Queued, QueuedRequests, Sequence};

/// All connections by slot, and all requests.
#[derive(Debug)]
pub(crate) struct ConnTable<C> {
    slots: Vec<ConnState<C>>,
    behind: QueuedRequests<C>,
    open: usize,
}

impl<C> Default for ConnTable<C> {
    fn default() -> Self {
        ConnTable {
            slots: Vec::new(),
            behind: QueuedRequests::new(),
            open: 0,
        }
    }
}

impl<C> ConnTable<C> {
    pub(crate) fn open_count(&self) -> usize {
        self.open
    }

    /// The number of slots, in use or not.
    #[cfg(debug_assertions)]
    pub(crate) fn slot_count(&self) -> usize {
        self.slots.len()
    }

    /// All slots.
    #[cfg(debug_assertions)]
    pub(crate) fn states(&self) -> impl Iterator<Item = (u32, &ConnState<C>)> {
        (0..).zip(&self.slots)
    }

    /// The number of requests behind the first of a lane, and of timers.
    #[cfg(debug_assertions)]
    pub(crate) fn queued_count(&self) -> usize {
        self.behind.len()
    }

    /// Whether the connections' counts of queued bytes are right.
    #[cfg(debug_assertions)]
    pub(crate) fn queued_bytes_agree(&self) -> bool {
        let counted = self.slots.iter().map(|state| state.queued_bytes);
        let queued = self.behind.iter().map(|(_, queued)| queued.unwritten());
        counted.sum::<usize>() == queued.sum()
    }

    /// Opens the slot of a new handle.
    pub(crate) fn open(&mut self, conn: Conn, kind: SocketKind) {
        let index = conn.index();
        while self.slots.len() <= index {
            reserve_gently(&mut self.slots);
            self.slots.push(ConnState::new());
        }
        let state = &mut self.slots[index];
        *state = ConnState::new();
        state.conn = conn;
        state.phase = match kind {
            SocketKind::Listener => Phase::Listening,
            SocketKind::Stream | SocketKind::Other => Phase::Open,
        };
        self.open += 1;
    }

    /// Takes a connection from the program: its handle is no longer valid.
    pub(crate) fn begin_closing(&mut self, slot: u32) {
        if let Some(state) = self.get_mut(slot)
            && state.phase.is_open()
        {
            state.phase = Phase::Closing;
            self.open -= 1;
        }
    }

    #[inline]
    pub(crate) fn get(&self, slot: u32) -> Option<&ConnState<C>> {
        self.slots.get(slot as usize)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, slot: u32) -> Option<&mut ConnState<C>> {
        self.slots.get_mut(slot as usize)
    }

    #[inline]
    pub(crate) fn lane(&self, at: LaneId) -> Option<&LaneState<C>> {
        Some(self.get(at.slot())?.lane(at.lane()))
    }

    #[inline]
    pub(crate) fn lane_mut(&mut self, at: LaneId) -> Option<&mut LaneState<C>> {
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
    pub(crate) fn lane_of(&self, key: Key) -> Option<LaneId> {
        match key.kind() {
            Position::First(at) => Some(at),
            Position::Queued(number) => self.behind.get(number as usize)?.at,
        }
    }

    /// Whether the backend works on a request.
    pub(crate) fn is_in_flight(&self, key: Key) -> bool {
        match key.kind() {
            Position::First(at) => self.lane(at).is_some_and(|lane| lane.in_flight > 0),
            Position::Queued(number) => {
                let queued = self.behind.get(number as usize);
                queued.is_some_and(|queued| queued.in_flight)
            }
        }
    }

    /// The request before a queued one in its lane.
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
                Some((first.op, Key::first(LaneId::new(slot as u32, lane))))
            })
        });
        let behind = self.behind.iter();
        let behind = behind.map(|(number, queued)| (queued.pending.op, Key::queued(number as u32)));
        firsts.chain(behind)
    }

    /// Gives the pending requests new numbers in the old order. The highest is `last`.
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
        self.insert(pending, OpData::None, None, NONE)
    }

    /// Appends a request to a lane that has a first one.
    #[cold]
    pub(crate) fn append(&mut self, at: LaneId, pending: Pending<C>, data: OpData) -> Key {
        let last = self.lane(at).map_or(NONE, |lane| lane.last);
        let key = self.insert(pending, data, Some(at), last);
        let Position::Queued(number) = key.kind() else {
            return key;
        };
        match self.behind.get_mut(last as usize) {
            Some(before) => before.next = number,
            None => self.set_next(at, number),
        }
        let bytes = self
            .behind
            .get(number as usize)
            .map_or(0, Queued::unwritten);
        if let Some(state) = self.get_mut(at.slot()) {
            state.queued_bytes += bytes;
            state.lane_mut(at.lane()).last = number;
        }
        key
    }

    fn insert(&mut self, pending: Pending<C>, data: OpData, at: Option<LaneId>, prev: u32) -> Key {
        if self.behind.len() == self.behind.capacity() {
            self.behind.reserve_exact((self.behind.len() / 16).max(32));
        }
        Key::queued(self.behind.insert(Queued {
            pending,
            data,
            at,
            done: 0,
            next: NONE,
            prev,
            in_flight: false,
        }) as u32)
    }

    /// Takes the second request of a lane out of the queue. It is to become the first.
    pub(crate) fn take_next(&mut self, at: LaneId) -> Option<(Key, Queued<C>)> {
        let key = Key::queued(self.lane(at)?.next);
        Some((key, self.take_queued(key)?))
    }

    /// Takes a queued request out of its lane, wherever it stands, or a timer.
    pub(crate) fn take_queued(&mut self, key: Key) -> Option<Queued<C>> {
        let Position::Queued(number) = key.kind() else {
            return None;
        };
        let queued = self.behind.try_remove(number as usize)?;
        let Some(at) = queued.at else {
            return Some(queued);
        };
        if let Some(state) = self.get_mut(at.slot()) {
            state.queued_bytes -= queued.unwritten();
        }
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

    /// Whether a flood of requests has left far more room than the queued ones need.
    #[inline]
    pub(crate) fn is_overgrown(&self) -> bool {
        is_overgrown(self.behind.len(), self.behind.capacity())
    }

    /// Gives that room back. The queued requests get other numbers. Returns their old and new keys, in
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

    fn set_next(&mut self, at: LaneId, number: u32) {
        if let Some(lane) = self.lane_mut(at) {
            lane.next = number;
        }
    }

    /// Visits the requests behind the first of a lane, oldest first, until `each` returns false.
    pub(crate) fn walk(&mut self, at: LaneId, mut each: impl FnMut(Key, &mut Queued<C>) -> bool) {
        let Some(state) = self.get(at.slot()) else {
            return;
        };
        let (mut number, mut bytes) = (state.lane(at.lane()).next, state.queued_bytes);
        while let Some(queued) = self.behind.get_mut(number as usize) {
            let key = Key::queued(number);
            number = queued.next;
            bytes -= queued.unwritten();
            let goes_on = each(key, queued);
            bytes += queued.unwritten();
            if !goes_on {
                break;
            }
        }
        if let Some(state) = self.get_mut(at.slot()) {
            state.queued_bytes = bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conn::ConnIds;
    use crate::request::{OpIds, RequestKind};

    #[test]
    fn order_survives_a_flood() {
        let (ids, mut ops) = (ConnIds::new(), OpIds::new());
        let mut table = ConnTable::default();
        let mut pending = |kind| Pending::new(ops.next(), Sequence::last(0), kind, (), None);
        let lanes: Vec<LaneId> = (0..3)
            .filter_map(|_| ids.allocate())
            .map(|conn| {
                table.open(conn, SocketKind::Stream);
                LaneId::new(conn.slot(), Lane::Write)
            })
            .collect();
        let mut expected = [const { Vec::new() }; 3];
        let mut others = Vec::new();
        for round in 0..3_000 {
            for (at, expected) in lanes.iter().zip(&mut expected) {
                let request = pending(RequestKind::Write);
                let (op, key) = (request.op, table.append(*at, request, OpData::None));
                if round % 500 == 7 {
                    expected.push(op);
                } else {
                    others.push(key);
                }
            }
            others.push(table.add_timer(pending(RequestKind::Timer)));
        }
        let timer = pending(RequestKind::Timer);
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
            // A later request goes behind them.
            let last = pending(RequestKind::Write);
            expected.push(last.op);
            table.append(at, last, OpData::None);
            let left = std::iter::from_fn(|| table.take_next(at));
            assert_eq!(
                left.map(|(_, it)| it.pending.op).collect::<Vec<_>>(),
                expected
            );
        }
    }
}
