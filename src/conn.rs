//! `Conn`, the handle of a connection, and where handles come from.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

const INDEX_BITS: u32 = 24;
const GENERATION_BITS: u32 = 20;
const INDEX_MAX: u32 = (1 << INDEX_BITS) - 1;
const GENERATION_MAX: u32 = (1 << GENERATION_BITS) - 1;
const TAG_MASK: u64 = (1 << (64 - INDEX_BITS - GENERATION_BITS)) - 1;

/// A connection or a listener of one watcher. Eight bytes, `Copy`.
///
/// A handle never comes to mean another connection: it carries its watcher's tag and a
/// generation that does not wrap (an index that was used a million times is retired). Used after
/// the connection was freed, or on another watcher, it is refused with
/// [`ErrorKind::ConnClosed`](crate::ErrorKind::ConnClosed).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Conn(u64);

/// Hands out the handles of one watcher, to its own thread and to its `Remote`s.
#[derive(Debug)]
pub(crate) struct ConnIds {
    tag: u64,
    state: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    /// Index and next generation.
    reusable: Vec<(u32, u32)>,
    fresh: u32,
}

impl Conn {
    /// No connection: what results of timers and messages carry. Every call refuses it.
    pub const NONE: Conn = Conn(0);

    /// A small number for tables of the program's own: dense, and given to a new connection only
    /// after the last result of the old one was handed out and a later `wait_io` began.
    pub fn index(self) -> usize {
        self.slot() as usize
    }

    #[inline]
    pub(crate) fn slot(self) -> u32 {
        self.0 as u32 & INDEX_MAX
    }

    #[inline]
    pub(crate) fn generation(self) -> u32 {
        (self.0 >> INDEX_BITS) as u32 & GENERATION_MAX
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Conn::NONE {
            return f.write_str("Conn::NONE");
        }
        let tag = self.0 >> (INDEX_BITS + GENERATION_BITS);
        write!(f, "Conn({}.{}@{tag})", self.slot(), self.generation())
    }
}

impl ConnIds {
    pub(crate) fn new() -> Self {
        // From one, so that no handle is `NONE`.
        static NEXT_TAG: AtomicU64 = AtomicU64::new(0);
        let tag = NEXT_TAG.fetch_add(1, Ordering::Relaxed) % TAG_MASK + 1;
        ConnIds {
            tag,
            state: Mutex::default(),
        }
    }

    /// A handle that was never given out. `None` when there are sixteen million.
    pub(crate) fn allocate(&self) -> Option<Conn> {
        let mut free = self.lock();
        let (index, generation) = match free.reusable.pop() {
            Some(pair) => pair,
            None if free.fresh < INDEX_MAX => {
                free.fresh += 1;
                (free.fresh - 1, 0)
            }
            None => return None,
        };
        Some(self.conn(index, generation))
    }

    /// The handle's life is over: its index may be used again, unless it is worn out.
    pub(crate) fn release(&self, conn: Conn) {
        if conn.generation() < GENERATION_MAX {
            self.lock()
                .reusable
                .push((conn.slot(), conn.generation() + 1));
        }
    }

    #[inline]
    pub(crate) fn conn(&self, index: u32, generation: u32) -> Conn {
        let place = u64::from(generation) << INDEX_BITS | u64::from(index);
        Conn(self.tag << (INDEX_BITS + GENERATION_BITS) | place)
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worn_index_retires() {
        let ids = ConnIds::new();
        let first = ids.conn(0, GENERATION_MAX - 1);
        ids.release(first);
        let last = ids.allocate();
        assert_eq!(last, Some(ids.conn(0, GENERATION_MAX)));
        last.into_iter().for_each(|conn| ids.release(conn));
        // Never released again, so never given out again.
        assert!(ids.lock().reusable.is_empty());
    }

    #[test]
    fn handles_of_two_watchers_differ() {
        assert_ne!(ConnIds::new().allocate(), ConnIds::new().allocate());
    }
}
