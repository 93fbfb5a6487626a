//! `Deadline`, and the queue that knows which request runs out of time next.
//!
//! The queue is a heap with four children a node. It remembers where each request stands, so a request
//! that finishes in time takes its deadline along in O(log n), and nothing stale piles up.

use std::time::{Duration, Instant};

use gaio_backends::shrink_overgrown;

use crate::request::{Key, Position};

/// A point in time at which a request runs out of time, or never.
///
/// Calls take whatever converts into one: a [`Duration`] from now, an [`Instant`], or an
/// `Option<Instant>`. A duration that is too long for the clock means never.
///
/// ```
/// use gaio::{Conn, Deadline, Watcher};
/// use std::time::{Duration, Instant};
///
/// # fn main() -> gaio::Result<()> {
/// # let mut watcher = Watcher::<()>::new()?;
/// # let conn = Conn::NONE;
/// let limit = Instant::now() + Duration::from_secs(10);
/// let _ = watcher.read_timeout((), conn, None, Duration::from_secs(10)); // from now
/// let _ = watcher.read_timeout((), conn, None, limit); // a point in time
/// let _ = watcher.read_full((), conn, vec![0; 512], Deadline::NEVER);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// No deadline.
    pub const NEVER: Deadline = Deadline(None);

    pub(crate) fn at(self) -> Option<Instant> {
        self.0
    }
}

impl From<Instant> for Deadline {
    fn from(at: Instant) -> Self {
        Deadline(Some(at))
    }
}

impl From<Duration> for Deadline {
    fn from(from_now: Duration) -> Self {
        Deadline(Instant::now().checked_add(from_now))
    }
}

impl From<Option<Instant>> for Deadline {
    fn from(at: Option<Instant>) -> Self {
        Deadline(at)
    }
}

const ABSENT: u32 = u32::MAX;
const CHILDREN: usize = 4;

/// Requests in the order of their deadlines.
#[derive(Debug, Default)]
pub(crate) struct Deadlines {
    heap: Vec<(Instant, Key)>,
    /// The place of each request in the heap, by the number in its key: the first requests of lanes,
    /// and all others.
    firsts: Vec<u32>,
    others: Vec<u32>,
}

impl Deadlines {
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }

    /// The earliest deadline.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.first().map(|&(at, _)| at)
    }

    /// Adds a request that has none yet.
    pub(crate) fn insert(&mut self, request: Key, at: Instant) {
        self.heap.push((at, request));
        self.rise(self.heap.len() - 1);
    }

    /// Moves the deadline of a request, or adds its first.
    pub(crate) fn set(&mut self, request: Key, at: Instant) {
        let place = *self.place(request);
        match self.heap.get_mut(place as usize) {
            Some(entry) => {
                entry.0 = at;
                self.settle(place as usize);
            }
            None => self.insert(request, at),
        }
    }

    /// Forgets a request, if it has a deadline.
    pub(crate) fn remove(&mut self, request: Key) {
        let place = std::mem::replace(self.place(request), ABSENT);
        if place != ABSENT {
            self.take(place as usize);
        }
    }

    /// Gives a request its new key.
    pub(crate) fn rename(&mut self, from: Key, to: Key) {
        let place = std::mem::replace(self.place(from), ABSENT);
        if let Some(entry) = self.heap.get_mut(place as usize) {
            entry.1 = to;
            *self.place(to) = place;
        }
    }

    /// Gives back the room that a flood has left behind.
    #[inline]
    pub(crate) fn shrink_overgrown(&mut self) {
        shrink_overgrown(&mut self.heap);
    }

    /// Queued requests and timers have only keys below `count` from now on.
    pub(crate) fn forget_others(&mut self, count: usize) {
        debug_assert!(self.others.iter().skip(count).all(|&place| place == ABSENT));
        self.others.truncate(count);
        self.others.shrink_to_fit();
    }

    fn place(&mut self, request: Key) -> &mut u32 {
        let (places, index) = match request.kind() {
            Position::First(at) => (&mut self.firsts, at.number() as usize),
            Position::Queued(number) => (&mut self.others, number as usize),
        };
        if places.len() <= index {
            places.resize(index + 1, ABSENT);
        }
        &mut places[index]
    }

    /// Whether the request has a deadline here.
    pub(crate) fn contains(&mut self, request: Key) -> bool {
        *self.place(request) != ABSENT
    }

    /// Takes a request whose time has come.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<Key> {
        let &(at, request) = self.heap.first()?;
        if at > now {
            return None;
        }
        self.remove(request);
        Some(request)
    }

    fn take(&mut self, place: usize) {
        self.heap.swap_remove(place);
        if place < self.heap.len() {
            self.settle(place);
        }
    }

    /// Moves an entry to where its time belongs.
    fn settle(&mut self, place: usize) {
        self.rise(place);
        self.sink(place);
    }

    fn rise(&mut self, mut place: usize) {
        let entry = self.heap[place];
        while place > 0 {
            let parent = (place - 1) / CHILDREN;
            if self.heap[parent].0 <= entry.0 {
                break;
            }
            self.put(place, self.heap[parent]);
            place = parent;
        }
        self.put(place, entry);
    }

    fn sink(&mut self, mut place: usize) {
        let entry = self.heap[place];
        loop {
            let first = place * CHILDREN + 1;
            let children = first..(first + CHILDREN).min(self.heap.len());
            let Some(least) = children.min_by_key(|&child| self.heap[child].0) else {
                break;
            };
            if self.heap[least].0 >= entry.0 {
                break;
            }
            self.put(place, self.heap[least]);
            place = least;
        }
        self.put(place, entry);
    }

    fn put(&mut self, place: usize, entry: (Instant, Key)) {
        self.heap[place] = entry;
        *self.place(entry.1) = place as u32;
    }
}

#[cfg(test)]
mod tests {
    use gaio_backends::LaneId;

    use super::*;

    /// A small linear congruential generator. The order is arbitrary, but repeatable.
    fn scramble(seed: &mut u64) -> u64 {
        *seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *seed >> 33
    }

    #[test]
    fn due_in_order_and_never_after_removal() {
        let start = Instant::now();
        let mut deadlines = Deadlines::default();
        let mut expected = Vec::new();
        let mut seed = 7;
        for request in 0..5_000 {
            let at = start + Duration::from_nanos(scramble(&mut seed) % 100_000);
            let key = match request % 2 {
                0 => Key::queued(request),
                _ => Key::first(LaneId::from_number(request)),
            };
            // Some were moved here from another time.
            if request % 5 == 0 {
                deadlines.insert(
                    key,
                    start + Duration::from_nanos(scramble(&mut seed) % 100_000),
                );
            }
            deadlines.set(key, at);
            expected.push((at, key));
        }
        expected.retain_mut(|(_, key)| match scramble(&mut seed) % 3 {
            0 => {
                deadlines.remove(*key);
                false
            }
            1 => {
                if let Position::Queued(number) = key.kind() {
                    let first = Key::first(LaneId::from_number(number));
                    deadlines.rename(*key, first);
                    *key = first;
                }
                true
            }
            _ => true,
        });
        expected.sort_by_key(|&(at, _)| at);
        for &(at, _) in &expected {
            assert_eq!(deadlines.next(), Some(at));
            assert_eq!(deadlines.pop_due(at - Duration::from_nanos(1)), None);
            let popped = deadlines.pop_due(at);
            let known = expected
                .iter()
                .any(|&(time, key)| time == at && Some(key) == popped);
            assert!(known, "{popped:?} was not due at {at:?}");
        }
        assert!(deadlines.is_empty());
    }
}
