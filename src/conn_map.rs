//! `ConnMap`: the program's state by connection.

use std::fmt;
use std::iter::Map;
use std::{slice, vec};

use gaio_backends::{reserve_gently, shrink_overgrown};

use crate::conn::Conn;

/// State by connection: a map from [`Conn`] to `T` that does not hash.
///
/// A handle finds what was inserted under it, and nothing else. After its index was given to another
/// connection, an old handle finds nothing. Keep one map for each watcher: the map has room for one
/// connection of each index, and handles of two watchers may have the same one.
///
/// Each operation takes constant time. The order of iteration is arbitrary. The memory of entries that
/// were removed is given back, except four bytes for each index that was ever used.
///
/// ```
/// use gaio::{ConnMap, Operation, Results, Watcher};
/// use std::io::Write;
/// use std::os::unix::net::UnixStream;
///
/// /// What this server knows of a client.
/// #[derive(Debug, Default)]
/// struct Client {
///     received: usize,
/// }
///
/// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
/// let (ours, mut peer) = UnixStream::pair()?;
/// let mut watcher = Watcher::new()?;
/// let mut clients = ConnMap::new();
/// let conn = watcher.delegate(ours)?;
/// clients.insert(conn, Client::default());
/// watcher.read((), conn, None)?;
/// peer.write_all(b"hello")?;
///
/// let mut results = Results::new();
/// watcher.wait_io(&mut results)?;
/// for res in results.drain() {
///     // Nothing for a connection that was removed meanwhile.
///     if let Some(client) = clients.get_mut(res.conn) {
///         client.received += res.size;
///     }
/// }
/// assert_eq!(clients.get(conn).map(|client| client.received), Some(5));
///
/// watcher.free(conn);
/// let client = clients.remove(conn).expect("it was inserted");
/// assert_eq!((client.received, clients.len()), (5, 0));
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct ConnMap<T> {
    /// Without gaps. The last entry takes the place of one that is removed.
    entries: Vec<(Conn, T)>,
    /// The position in `entries` by [`slot`]. One that was never set, or whose entry was removed, names
    /// an entry of another handle, or none.
    positions: Vec<u32>,
}

impl<T> ConnMap<T> {
    /// An empty map. It allocates nothing.
    pub const fn new() -> Self {
        ConnMap {
            entries: Vec::new(),
            positions: Vec::new(),
        }
    }

    /// Enters the state of a connection. Returns what was entered before under the same handle.
    ///
    /// What is left of an earlier connection with the same [`index`](Conn::index) is dropped: that
    /// connection is over. [`Conn::NONE`] is a handle like any other.
    ///
    /// ```
    /// use gaio::{ConnMap, Watcher};
    /// use std::os::unix::net::UnixStream;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (ours, _peer) = UnixStream::pair()?;
    /// let mut watcher = Watcher::<()>::new()?;
    /// let mut names = ConnMap::new();
    /// let conn = watcher.delegate(ours)?;
    /// assert_eq!(names.insert(conn, "first"), None);
    /// assert_eq!(names.insert(conn, "second"), Some("first"));
    /// assert_eq!(names.get(conn), Some(&"second"));
    /// # Ok(())
    /// # }
    /// ```
    pub fn insert(&mut self, conn: Conn, state: T) -> Option<T> {
        let position = self.position_of_index(conn);
        match position.and_then(|at| self.entries.get_mut(at)) {
            Some((old, value)) => {
                let before = std::mem::replace(value, state);
                (std::mem::replace(old, conn) == conn).then_some(before)
            }
            None => {
                self.push(conn, state);
                None
            }
        }
    }

    /// The state of a connection.
    #[inline]
    pub fn get(&self, conn: Conn) -> Option<&T> {
        let &at = self.positions.get(slot(conn))?;
        let (owner, state) = self.entries.get(at as usize)?;
        (*owner == conn).then_some(state)
    }

    /// The state of a connection, to change it.
    #[inline]
    pub fn get_mut(&mut self, conn: Conn) -> Option<&mut T> {
        let &at = self.positions.get(slot(conn))?;
        let (owner, state) = self.entries.get_mut(at as usize)?;
        (*owner == conn).then_some(state)
    }

    /// The state of a connection. If there is none, the one that `make` returns is entered first.
    ///
    /// ```
    /// use gaio::{Conn, ConnMap};
    ///
    /// let mut counts = ConnMap::new();
    /// for conn in [Conn::NONE, Conn::NONE] {
    ///     *counts.get_or_insert_with(conn, || 0) += 1;
    /// }
    /// assert_eq!(counts.get(Conn::NONE), Some(&2));
    /// ```
    pub fn get_or_insert_with(&mut self, conn: Conn, make: impl FnOnce() -> T) -> &mut T {
        let at = match self.position(conn) {
            Some(at) => at,
            None => {
                self.insert(conn, make());
                self.positions[slot(conn)] as usize
            }
        };
        &mut self.entries[at].1
    }

    /// Takes the state of a connection out.
    pub fn remove(&mut self, conn: Conn) -> Option<T> {
        let state = self.take(self.position(conn)?);
        shrink_overgrown(&mut self.entries);
        Some(state)
    }

    /// Whether there is state of this connection.
    #[inline]
    pub fn contains(&self, conn: Conn) -> bool {
        self.get(conn).is_some()
    }

    /// The number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no entries.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All entries, in any order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (Conn, &T)> {
        self.into_iter()
    }

    /// All entries, in any order, to change their state.
    pub fn iter_mut(&mut self) -> impl ExactSizeIterator<Item = (Conn, &mut T)> {
        self.into_iter()
    }

    /// Drops the entries for which `keep` returns false.
    pub fn retain(&mut self, mut keep: impl FnMut(Conn, &mut T) -> bool) {
        // From the end, so that what takes a free place was looked at before.
        for at in (0..self.entries.len()).rev() {
            let (conn, state) = &mut self.entries[at];
            if !keep(*conn, state) {
                self.take(at);
            }
        }
        shrink_overgrown(&mut self.entries);
    }

    /// Takes all entries out, in any order. What the iterator has not given when it is dropped is dropped.
    pub fn drain(&mut self) -> impl ExactSizeIterator<Item = (Conn, T)> {
        self.entries.drain(..)
    }

    /// Drops all entries.
    pub fn clear(&mut self) {
        *self = ConnMap::new();
    }

    /// The position of a handle's own entry.
    fn position(&self, conn: Conn) -> Option<usize> {
        let at = self.position_of_index(conn)?;
        (self.entries[at].0 == conn).then_some(at)
    }

    /// The position of the entry that has the place of this handle, under whichever handle.
    fn position_of_index(&self, conn: Conn) -> Option<usize> {
        let at = *self.positions.get(slot(conn))? as usize;
        let (owner, _) = self.entries.get(at)?;
        (slot(*owner) == slot(conn)).then_some(at)
    }

    /// Appends an entry for an index that has none.
    fn push(&mut self, conn: Conn, state: T) {
        if self.positions.len() <= slot(conn) {
            self.positions.resize(slot(conn) + 1, 0);
        }
        // There are fewer indexes than this type has numbers.
        self.positions[slot(conn)] = self.entries.len() as u32;
        reserve_gently(&mut self.entries);
        self.entries.push((conn, state));
    }

    /// Takes the entry at a position out. The last one takes its place.
    fn take(&mut self, at: usize) -> T {
        let (_, state) = self.entries.swap_remove(at);
        if let Some((moved, _)) = self.entries.get(at) {
            self.positions[slot(*moved)] = at as u32;
        }
        state
    }
}

/// The place of a handle in the table of positions. The first one belongs to [`Conn::NONE`], so that it
/// does not stand in the way of a connection.
#[inline]
fn slot(conn: Conn) -> usize {
    conn.index() + usize::from(conn != Conn::NONE)
}

impl<T> Default for ConnMap<T> {
    fn default() -> Self {
        ConnMap::new()
    }
}

impl<T: fmt::Debug> fmt::Debug for ConnMap<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<T> Extend<(Conn, T)> for ConnMap<T> {
    fn extend<I: IntoIterator<Item = (Conn, T)>>(&mut self, entries: I) {
        for (conn, state) in entries {
            self.insert(conn, state);
        }
    }
}

impl<T> FromIterator<(Conn, T)> for ConnMap<T> {
    fn from_iter<I: IntoIterator<Item = (Conn, T)>>(entries: I) -> Self {
        let mut map = ConnMap::new();
        map.extend(entries);
        map
    }
}

impl<T> IntoIterator for ConnMap<T> {
    type Item = (Conn, T);
    type IntoIter = vec::IntoIter<(Conn, T)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a ConnMap<T> {
    type Item = (Conn, &'a T);
    type IntoIter = Map<slice::Iter<'a, (Conn, T)>, fn(&'a (Conn, T)) -> (Conn, &'a T)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.iter().map(|(conn, state)| (*conn, state))
    }
}

impl<'a, T> IntoIterator for &'a mut ConnMap<T> {
    type Item = (Conn, &'a mut T);
    type IntoIter = Map<slice::IterMut<'a, (Conn, T)>, fn(&'a mut (Conn, T)) -> (Conn, &'a mut T)>;

    fn into_iter(self) -> Self::IntoIter {
        self.entries.iter_mut().map(|(conn, state)| (*conn, state))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::conn::ConnIds;

    /// Against a map that hashes, over many lives of few indexes.
    #[test]
    fn like_a_map_that_hashes() {
        let ids = ConnIds::new();
        let (mut map, mut model) = (ConnMap::new(), HashMap::new());
        let mut live = vec![Conn::NONE];
        let mut dead = Vec::new();
        let mut random = 1u32;
        for step in 0..20_000u32 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let pick = live[(random >> 8) as usize % live.len()];
            match random >> 29 {
                0 | 1 if live.len() < 40 => live.extend(ids.allocate()),
                2 if pick != Conn::NONE => {
                    // Often with its state, sometimes without.
                    if step % 3 > 0 {
                        assert_eq!(map.remove(pick), model.remove(&pick));
                    }
                    live.retain(|conn| *conn != pick);
                    dead.push(pick);
                    ids.release(pick);
                }
                3 => assert_eq!(map.remove(pick), model.remove(&pick)),
                4 if step % 50 == 0 => {
                    map.retain(|_, state| *state % 2 == 0);
                    model.retain(|_, state| *state % 2 == 0);
                }
                _ => {
                    model.retain(|conn: &Conn, _| *conn == pick || slot(*conn) != slot(pick));
                    assert_eq!(map.insert(pick, step), model.insert(pick, step));
                }
            }
            let expected = model.get(&pick).copied();
            assert_eq!(map.get(pick).copied(), expected, "{pick:?}");
            assert_eq!(map.get_mut(pick).copied(), expected);
            assert_eq!(map.contains(pick), expected.is_some());
            assert_eq!(map.len(), model.len());
        }
        let known = dead.iter().filter(|conn| map.contains(**conn)).count();
        let stale = dead.iter().filter(|conn| model.contains_key(conn)).count();
        assert!(dead.len() > 100 && known == stale);
        let all: HashMap<Conn, u32> = map.into_iter().collect();
        assert_eq!(all, model);
    }

    #[test]
    fn memory_of_a_flood_is_given_back() {
        let ids = ConnIds::new();
        let conns: Vec<Conn> = (0..10_000).filter_map(|_| ids.allocate()).collect();
        let mut map: ConnMap<[u64; 4]> = conns.iter().map(|conn| (*conn, [0; 4])).collect();
        assert!(map.entries.capacity() < 11_000, "grows by little");
        for conn in &conns[5..] {
            map.remove(*conn);
        }
        assert_eq!(map.len(), 5);
        assert!(map.entries.capacity() <= 1_024);
    }
}
