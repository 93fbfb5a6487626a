//! Growing tables with one entry a connection: by a sixteenth, not by doubling, so that ten
//! thousand idle connections do not pay for twenty thousand.

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
