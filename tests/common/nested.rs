//! A watcher that lies in another event loop, as that loop sees it.

use std::os::fd::OwnedFd;
use std::time::Duration;

use gaio::{OpResult, Results, Watcher};

use super::{PATIENCE, readable};

/// Runs the watcher until it has nothing more to hand out.
pub fn settle<C>(watcher: &mut Watcher<C>) -> Vec<OpResult<C>> {
    let mut all = Vec::new();
    let mut results = Results::new();
    while watcher
        .wait_io_timeout(&mut results, Duration::ZERO)
        .unwrap()
        > 0
    {
        all.extend(results.drain());
    }
    all
}

/// Waits with `poll(2)`; then there must be results.
pub fn polled<C>(watcher: &mut Watcher<C>, fd: &OwnedFd) -> Vec<OpResult<C>> {
    assert!(readable(fd, PATIENCE), "it does not become readable");
    let results = settle(watcher);
    assert!(!results.is_empty(), "readable, and yet there was nothing");
    assert_silent(fd);
    results
}

/// Asserts that the descriptor does not ask for a turn.
pub fn assert_silent(fd: &OwnedFd) {
    assert!(
        !readable(fd, Duration::ZERO),
        "readable, and there is nothing"
    );
}
