//! Finds pending requests by `OpId`, for the calls that name one.
//!
//! The index is made at the first search, so a program that never searches does not pay for it. It
//! is a table of keys in which each number has one place. Numbers are given out one after the other, so
//! those that are pending at the same time mostly have different places, and entering or leaving costs
//! a few instructions. If the place of a new request is taken, the older one moves to a map on the side:
//! it is a long wait beside many short ones, and it moves once.
//!
//! A place holds a key without its number. That is enough: no two pending requests have the same key,
//! and the caller, who knows the requests, compares the number of the one that was found.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use gaio_backends::is_overgrown;

use crate::request::{Key, OpId};

/// The least number of places, once the index is made.
const PLACES_MIN: usize = 1024;

/// The pending requests by number. Exact at any time: each is in the table or on the side.
#[derive(Debug, Default)]
pub(crate) struct OpIndex {
    /// A power of two of places, or none before the first search. `Key::NONE` is an empty place.
    places: Vec<Key>,
    /// The requests whose places were taken by younger ones.
    displaced: HashMap<OpId, Key, BuildHasherDefault<Spread>>,
}

impl OpIndex {
    /// Enters a new request. Returns the key of the older one whose place it has taken: that one must
    /// be [`displaced`](OpIndex::displace).
    #[inline]
    #[must_use]
    pub(crate) fn insert(&mut self, op: OpId, key: Key) -> Key {
        match self.place(op) {
            Some(place) => std::mem::replace(place, key),
            None => Key::NONE,
        }
    }

    /// Gives a request its new key.
    #[inline]
    pub(crate) fn rename(&mut self, op: OpId, from: Key, to: Key) {
        match self.place(op) {
            None => {}
            Some(place) if *place == from => *place = to,
            Some(_) => self.rename_displaced(op, to),
        }
    }

    /// Removes a request that has ended.
    #[inline]
    pub(crate) fn remove(&mut self, op: OpId, key: Key) {
        match self.place(op) {
            None => {}
            Some(place) if *place == key => *place = Key::NONE,
            Some(_) => self.remove_displaced(op),
        }
    }

    /// The two keys that a request can have, if it is pending: those of its place and of the map.
    pub(crate) fn find(&self, op: OpId) -> [Option<Key>; 2] {
        let place = self.places.get(self.place_of(op)).copied();
        [place, self.displaced.get(&op).copied()]
    }

    /// Keeps a request whose place was taken by a younger one.
    pub(crate) fn displace(&mut self, older: OpId, key: Key) {
        self.displaced.insert(older, key);
    }

    /// Whether the index was made.
    #[inline]
    pub(crate) fn is_made(&self) -> bool {
        !self.places.is_empty()
    }

    /// Whether the table is too small for so many requests: younger ones would take the places of
    /// many.
    pub(crate) fn is_outgrown(&self, count: usize) -> bool {
        self.places.len() < 2 * count
    }

    /// Whether a flood has left far more places than so many requests need.
    #[inline]
    pub(crate) fn is_overgrown(&self, count: usize) -> bool {
        is_overgrown(2 * count, self.places.len())
            || is_overgrown(self.displaced.len(), self.displaced.capacity())
    }

    /// Makes the index, of two to four times as many places as there are requests. `all` lists them, so
    /// often as it is called.
    #[cold]
    pub(crate) fn rebuild<I>(&mut self, count: usize, all: impl Fn() -> I)
    where
        I: Iterator<Item = (OpId, Key)>,
    {
        let len = (2 * count).next_power_of_two().max(PLACES_MIN);
        // The youngest get the places. Any order would be right, but this one moves each only once.
        let mut youngest: Vec<Option<OpId>> = vec![None; len];
        let place = |op: OpId| op.count() as usize & (len - 1);
        for (op, _) in all() {
            let there = &mut youngest[place(op)];
            *there = (*there).max(Some(op));
        }
        self.places = vec![Key::NONE; len];
        self.displaced = HashMap::default();
        for (op, key) in all() {
            if youngest[place(op)] == Some(op) {
                self.places[place(op)] = key;
            } else {
                self.displace(op, key);
            }
        }
    }

    /// The place of a number; none before the first search.
    #[inline]
    fn place(&mut self, op: OpId) -> Option<&mut Key> {
        let place = self.place_of(op);
        self.places.get_mut(place)
    }

    #[inline]
    fn place_of(&self, op: OpId) -> usize {
        op.count() as usize & self.places.len().wrapping_sub(1)
    }

    #[cold]
    fn rename_displaced(&mut self, op: OpId, key: Key) {
        let entry = self.displaced.get_mut(&op);
        debug_assert!(entry.is_some(), "{op:?} is not in the index");
        if let Some(entry) = entry {
            *entry = key;
        }
    }

    #[cold]
    fn remove_displaced(&mut self, op: OpId) {
        let removed = self.displaced.remove(&op);
        debug_assert!(removed.is_some(), "{op:?} is not in the index");
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
    use std::collections::{BTreeMap, HashMap};

    use super::*;
    use crate::request::OpIds;

    /// The index beside an ordered map, which also knows the number of each key, as the engine does.
    #[derive(Default)]
    struct Pair {
        index: OpIndex,
        model: BTreeMap<OpId, Key>,
        ops: HashMap<u32, OpId>,
        keys: u32,
    }

    impl Pair {
        /// A key that no other request has.
        fn fresh(&mut self, op: OpId) -> Key {
            self.keys = (self.keys + 1) % (1 << 30);
            self.ops.insert(self.keys, op);
            self.model.insert(op, Key::queued(self.keys));
            Key::queued(self.keys)
        }

        fn op(&self, key: Key) -> Option<OpId> {
            match key.kind() {
                crate::request::Position::Queued(number) => self.ops.get(&number).copied(),
                crate::request::Position::First(_) => None,
            }
        }

        fn forget(&mut self, op: OpId) -> Key {
            let key = self.model.remove(&op).unwrap_or(Key::NONE);
            if let crate::request::Position::Queued(number) = key.kind() {
                self.ops.remove(&number);
            }
            key
        }

        fn insert(&mut self, op: OpId) {
            let key = self.fresh(op);
            let older = self.index.insert(op, key);
            if let Some(older_op) = self.op(older) {
                self.index.displace(older_op, older);
                if self.index.is_outgrown(self.model.len()) {
                    self.rebuild();
                }
            }
        }

        fn rename(&mut self, op: OpId) {
            let from = self.forget(op);
            let to = self.fresh(op);
            self.index.rename(op, from, to);
        }

        fn remove(&mut self, op: OpId) {
            let key = self.forget(op);
            self.index.remove(op, key);
        }

        fn find(&mut self, op: OpId) -> Option<Key> {
            let found = self.index.find(op);
            let mut found = found.into_iter().flatten();
            found.find(|&key| self.op(key) == Some(op))
        }

        fn rebuild(&mut self) {
            let all = || self.model.iter().map(|(&op, &key)| (op, key));
            self.index.rebuild(self.model.len(), all);
        }

        fn shrink(&mut self) {
            if self.index.is_overgrown(self.model.len()) {
                self.rebuild();
            }
        }

        fn assert_exact(&mut self) {
            for (op, key) in self.model.clone() {
                assert_eq!(self.find(op), Some(key));
            }
            let places = self.index.places.iter();
            let there = places.filter(|&&key| key != Key::NONE).count();
            assert_eq!(there + self.index.displaced.len(), self.model.len());
        }
    }

    /// A small linear congruential generator. The order is arbitrary, but repeatable.
    struct Random(u64);

    impl Random {
        fn below(&mut self, end: usize) -> usize {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
            self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % end
        }
    }

    /// Random operations, and the same on an ordered map. Two sources of numbers have the same places,
    /// like those of a watcher and its remotes.
    #[test]
    fn as_a_map() {
        let mut random = Random(1);
        let mut sources = [OpIds::new(), OpIds::new()];
        let mut pair = Pair::default();
        let mut order: Vec<OpId> = Vec::new();
        for step in 0..1_000_000 {
            // Floods and droughts: the number of entries goes up to thousands and back.
            let grows = step / 50_000 % 2 == 0;
            let choice = random.below(100);
            if step == 10_000 {
                pair.rebuild();
            } else if choice < 10 && !order.is_empty() {
                let op = order[random.below(order.len())];
                if step > 10_000 {
                    assert_eq!(pair.find(op), pair.model.get(&op).copied());
                }
                pair.rename(op);
            } else if choice < if grows { 65 } else { 45 } {
                let op = sources[random.below(2)].next();
                pair.insert(op);
                order.push(op);
            } else if !order.is_empty() {
                // Mostly one of the youngest: others wait long.
                let youngest = order.len().min(if choice < 90 { 20 } else { usize::MAX });
                let place = order.len() - 1 - random.below(youngest);
                let op = order.swap_remove(place);
                pair.remove(op);
                assert_eq!(pair.find(op), None);
            }
            if step % 1_000 == 0 {
                pair.shrink();
            }
            if step % 50_000 == 49_999 {
                pair.assert_exact();
            }
        }
        for op in order {
            pair.remove(op);
        }
        pair.assert_exact();
    }

    /// An idle read costs the others nothing, and is moved once.
    #[test]
    fn one_waits_beside_a_million() {
        let (mut pair, mut ops) = (Pair::default(), OpIds::new());
        pair.rebuild();
        let idle = ops.next();
        pair.insert(idle);
        let mut last = None;
        for _ in 0..1_000_000 {
            let op = ops.next();
            pair.insert(op);
            if let Some(last) = last.replace(op) {
                pair.remove(last);
            }
        }
        let displaced: Vec<_> = pair.index.displaced.keys().copied().collect();
        assert_eq!(
            (pair.index.places.len(), displaced),
            (PLACES_MIN, vec![idle])
        );
        pair.assert_exact();
        pair.remove(idle);
        assert!(pair.index.displaced.is_empty());
    }

    /// Requests that are answered in order do not meet, however many are pending.
    #[test]
    fn those_in_order_do_not_meet() {
        for pending in [100, 1_000, 30_000] {
            let (mut pair, mut ops) = (Pair::default(), OpIds::new());
            pair.rebuild();
            let mut order = Vec::new();
            for at in 0..4 * pending {
                let op = ops.next();
                pair.insert(op);
                order.push(op);
                if at >= pending {
                    pair.remove(order[at - pending]);
                }
            }
            assert!(pair.index.displaced.is_empty(), "with {pending}");
            assert!(pair.index.places.len() <= 4 * pending.max(PLACES_MIN));
        }
    }

    #[test]
    fn room_for_a_flood_is_given_back() {
        let (mut pair, mut ops) = (Pair::default(), OpIds::new());
        let flood: Vec<OpId> = (0..100_000).map(|_| ops.next()).collect();
        for &op in &flood {
            pair.insert(op);
        }
        pair.rebuild();
        assert!(pair.index.places.len() >= 2 * flood.len());
        for &op in &flood[10..] {
            pair.remove(op);
        }
        pair.shrink();
        assert_eq!(pair.index.places.len(), PLACES_MIN);
        pair.assert_exact();
    }
}
