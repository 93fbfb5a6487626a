//! Growing tables with one entry a connection: by a sixteenth, not by doubling, so that ten
//! thousand idle connections do not pay for twenty thousand.

/// Makes room in `table` for one more entry, with little slack.
pub fn reserve_gently<T>(table: &mut Vec<T>) {
    if table.len() == table.capacity() {
        table.reserve_exact(gentle_step(table.len()));
    }
}

/// How many entries a table of this length grows by.
pub(crate) fn gentle_step(len: usize) -> usize {
    (len / 16).max(32)
}
