//! How tables grow, and shrink. Those with one entry a connection grow by a sixteenth, not by doubling,
//! so that ten thousand idle connections do not pay for twenty thousand. Those that a flood of
//! requests has made large become small again once it is over.

/// Room for so many entries is never given back: a table of this size costs little, and one that is
/// used often is not allocated again and again.
const KEPT: usize = 1024;

/// Makes room in `table` for one more entry, with little slack.
pub fn reserve_gently<T>(table: &mut Vec<T>) {
    if table.len() == table.capacity() {
        table.reserve_exact(gentle_step(table.len()));
    }
}

/// Makes `table` long enough to have an entry at `index`, with a few more.
#[cold]
pub(crate) fn grow_gently<T>(table: &mut Vec<T>, index: usize, fill: impl FnMut() -> T) {
    let len = (index + 1).max(table.len() + gentle_step(table.len()));
    table.reserve_exact(len - table.len());
    table.resize_with(len, fill);
}

/// How many entries a table of this length grows by.
fn gentle_step(len: usize) -> usize {
    (len / 16).max(32)
}

/// Whether a table has far more room than the `used` entries want, as a flood leaves it behind. One that
/// is made as small as it need be is not so again before it has had four times as many.
#[inline]
pub fn is_overgrown(used: usize, capacity: usize) -> bool {
    capacity > KEPT && used < capacity / 4
}

/// Gives back the room that a flood has left behind.
#[inline]
pub fn shrink_overgrown<T>(table: &mut Vec<T>) {
    if is_overgrown(table.len(), table.capacity()) {
        table.shrink_to(table.len() + gentle_step(table.len()));
    }
}
