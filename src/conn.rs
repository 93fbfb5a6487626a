//! `Conn`, the handle of a connection, and `ConnIds`, which gives handles out.
//!
//! A handle is an index and the number of a *life* of that index. Lives are counted for the whole
//! process: each watcher takes them in blocks from one table, so that no two connections ever have the
//! same handle, whichever watchers they belonged to.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

const INDEX_BITS: u32 = 24;
const INDEX_MAX: u32 = (1 << INDEX_BITS) - 1;
/// The number of lives of an index that a watcher takes at a time is 2^8. So each index has 2^32 such
/// blocks.
const BLOCK_BITS: u32 = 8;

/// The handle of a connection or a listener. Eight bytes, `Copy`.
///
/// A handle never comes to mean another connection: the process gives out each one once. After the
/// connection was freed, or on another watcher, it is refused with
/// [`ErrorKind::ConnClosed`](crate::ErrorKind::ConnClosed). For state by connection there is
/// [`ConnMap`](crate::ConnMap).
///
/// ```
/// use gaio::{Conn, Watcher};
/// use std::os::unix::net::UnixStream;
///
/// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
/// let (ours, theirs) = UnixStream::pair()?;
/// let mut watcher = Watcher::<()>::new()?;
/// let (one, two) = (watcher.delegate(ours)?, watcher.delegate(theirs)?);
/// assert_ne!(one, two);
/// assert!(one.index() < 2 && two.index() < 2); // dense
/// assert!(!watcher.contains(Conn::NONE));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Conn(u64);

/// Hands out the handles of one watcher, to its own thread and to its `Remote`s.
#[derive(Debug)]
pub(crate) struct ConnIds {
    lives: &'static Lives,
    state: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    /// Handles that were never given out, of indexes that were used before.
    reusable: Vec<Conn>,
    /// The indexes from here on were never used.
    fresh: u32,
}

impl Conn {
    /// No connection. Results of timers and messages have it. Every call refuses it.
    pub const NONE: Conn = Conn(0);

    /// A small number for the program's own tables. Indexes are dense. A new connection has the index of
    /// an old one only after the last result of the old one was returned and a later `wait_io` began.
    pub fn index(self) -> usize {
        self.slot() as usize
    }

    #[inline]
    pub(crate) fn slot(self) -> u32 {
        self.0 as u32 & INDEX_MAX
    }

    /// The first handle of a block.
    fn first(index: u32, block: u32) -> Self {
        Conn(u64::from(block) << (BLOCK_BITS + INDEX_BITS) | u64::from(index))
    }

    /// The handle of the next life in the same block, if there is one.
    fn next(self) -> Option<Self> {
        let next = self.0.checked_add(1 << INDEX_BITS)?;
        (next >> (BLOCK_BITS + INDEX_BITS) == self.0 >> (BLOCK_BITS + INDEX_BITS))
            .then_some(Conn(next))
    }
}

impl fmt::Debug for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Conn::NONE {
            return f.write_str("Conn::NONE");
        }
        write!(f, "Conn({}.{})", self.slot(), self.0 >> INDEX_BITS)
    }
}

impl ConnIds {
    pub(crate) fn new() -> Self {
        static LIVES: Lives = Lives::new();
        ConnIds::of(&LIVES)
    }

    fn of(lives: &'static Lives) -> Self {
        ConnIds {
            lives,
            state: Mutex::default(),
        }
    }

    /// A handle that was never given out. `None` when there are sixteen million.
    pub(crate) fn allocate(&self) -> Option<Conn> {
        let mut free = self.lock();
        if let Some(conn) = free.reusable.pop() {
            return Some(conn);
        }
        while free.fresh < INDEX_MAX {
            let index = free.fresh;
            free.fresh += 1;
            // Other watchers may have worn the index out.
            if let Some(block) = self.lives.take_block(index) {
                return Some(Conn::first(index, block));
            }
        }
        None
    }

    /// The handle's life is over: its index may be used again, unless it is worn out.
    pub(crate) fn release(&self, conn: Conn) {
        let next_block = || {
            let block = self.lives.take_block(conn.slot());
            block.map(|block| Conn::first(conn.slot(), block))
        };
        if let Some(next) = conn.next().or_else(next_block) {
            self.lock().reusable.push(next);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Free> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const CHUNK_BITS: u32 = 12;
const CHUNKS: usize = 1 << (INDEX_BITS - CHUNK_BITS);

/// The number of blocks of lives that were given out of each index, for all watchers of the process.
/// The table only grows: four bytes for each index that was ever used at the same time as all below it.
/// There is no lock, so a forked child never waits for one.
struct Lives {
    chunks: [OnceLock<Box<[AtomicU32]>>; CHUNKS],
}

impl Lives {
    const fn new() -> Self {
        Lives {
            chunks: [const { OnceLock::new() }; CHUNKS],
        }
    }

    /// A block of an index that no watcher had before. It is never block 0, to which [`Conn::NONE`]
    /// belongs. `None` when there are no more: the index is worn out for ever.
    fn take_block(&self, index: u32) -> Option<u32> {
        let taken = self.taken(index)?;
        let before =
            taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |it| it.checked_add(1));
        before.ok().map(|before| before + 1)
    }

    fn taken(&self, index: u32) -> Option<&AtomicU32> {
        let chunk = self.chunks.get((index >> CHUNK_BITS) as usize)?;
        let chunk = chunk.get_or_init(|| (0..1 << CHUNK_BITS).map(|_| AtomicU32::new(0)).collect());
        chunk.get((index & ((1 << CHUNK_BITS) - 1)) as usize)
    }
}

impl fmt::Debug for Lives {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lives")
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn no_handle_comes_twice() {
        // A table of its own, because tests run at the same time.
        static LIVES: Lives = Lives::new();
        let lives = &LIVES;
        let mut seen = HashSet::from([Conn::NONE]);
        for _ in 0..3 {
            let ids = ConnIds::of(lives);
            for round in 0..2_000 {
                let conns = [(); 3].map(|()| ids.allocate().unwrap_or(Conn::NONE));
                for conn in conns {
                    assert!(seen.insert(conn), "{conn:?} again, in round {round}");
                    assert!(conn.index() < 3, "dense");
                    ids.release(conn);
                }
            }
        }
    }

    /// More watchers than a tag in the handle could tell apart.
    #[test]
    fn handles_of_many_watchers_differ() {
        // A table of its own, because tests run at the same time.
        static LIVES: Lives = Lives::new();
        let lives = &LIVES;
        let first = ConnIds::of(lives).allocate();
        for _ in 0..(1 << 20) + 10 {
            assert_ne!(ConnIds::of(lives).allocate(), first);
        }
    }

    #[test]
    fn a_worn_index_retires() {
        // A table of its own, because tests run at the same time.
        static LIVES: Lives = Lives::new();
        let lives = &LIVES;
        if let Some(taken) = lives.taken(0) {
            taken.store(u32::MAX - 1, Ordering::Relaxed);
        }
        let ids = ConnIds::of(lives);
        for life in 0..1 << BLOCK_BITS {
            let conn = ids.allocate();
            assert_eq!(
                conn.map(|conn| (conn.index(), conn.0 >> 56)),
                Some((0, 255))
            );
            assert_eq!(conn.map(|conn| conn.0 >> INDEX_BITS & 255), Some(life));
            conn.into_iter().for_each(|conn| ids.release(conn));
        }
        // For this watcher and for all others.
        assert_eq!(ids.allocate().map(Conn::index), Some(1));
        assert_eq!(ConnIds::of(lives).allocate().map(Conn::index), Some(1));
    }

    #[test]
    fn handles_of_two_watchers_differ() {
        assert_ne!(ConnIds::new().allocate(), ConnIds::new().allocate());
    }
}
