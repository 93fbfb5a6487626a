//! The growth and the shrinking of tables. A table with one entry a connection grows by a
//! sixteenth, not by doubling, so that ten thousand idle connections do not pay for twenty
//! thousand. A table that a flood of requests has enlarged shrinks once the flood is over.

/// The number of entries whose room is never given back. A table of this size costs little, and a
/// table in frequent use is not allocated again and again.
const KEPT: usize = 1024;

/// Makes room in `table` for one more entry, with little slack.
pub fn reserve_gently<T>(table: &mut Vec<T>) {
    if table.len() == table.capacity() {
        table.reserve_exact(gentle_step(table.len()));
    }
}

/// Makes `table` long enough for an entry at `index`, and for a few more.
#[cold]
pub(crate) fn grow_gently<T>(table: &mut Vec<T>, index: usize, fill: impl FnMut() -> T) {
    let len = (index + 1).max(table.len() + gentle_step(table.len()));
    table.reserve_exact(len - table.len());
    table.resize_with(len, fill);
}

/// The number of entries by which a table of this length grows.
fn gentle_step(len: usize) -> usize {
    (len / 16).max(32)
}

/// Whether a table has far more room than its `used` entries need, as after a flood. A table that
/// was shrunk to fit is not overgrown again before it has had four times as many entries.
#[inline]
pub fn is_overgrown(used: usize, capacity: usize) -> bool {
    capacity > KEPT && used < capacity / 4
}

/// Gives back the room that a flood left behind.
#[inline]
pub fn shrink_overgrown<T>(table: &mut Vec<T>) {
    if is_overgrown(table.len(), table.capacity()) {
        table.shrink_to(table.len() + gentle_step(table.len()));
    }
}
