//! What tests of deadlines and timers share.

use std::io::Write;
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use gaio::{Conn, OpResult, Results, Watcher};

use super::{pair, turn};

/// So many milliseconds.
pub fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Waits until each context below `due.len()` came back, once, and not before its time.
pub fn expect_all_once(
    watcher: &mut Watcher<usize>,
    due: &[Instant],
    check: impl Fn(&OpResult<usize>),
) {
    let mut seen = vec![false; due.len()];
    let mut results = Results::new();
    let mut left = due.len();
    while left > 0 {
        turn(watcher, &mut results);
        let now = Instant::now();
        for res in results.drain() {
            assert!(now >= due[res.context], "{} came early", res.context);
            assert!(!std::mem::replace(&mut seen[res.context], true), "twice");
            check(&res);
            left -= 1;
        }
    }
    assert_eq!(watcher.wait_io_timeout(&mut results, ms(20)).unwrap(), 0);
    assert_eq!(watcher.stats().pending, 0);
}

/// A delegated connection with these bytes already in its socket, and the peer.
pub fn with_data_ready<C>(watcher: &mut Watcher<C>, data: &[u8]) -> (Conn, TcpStream) {
    let (ours, mut peer) = pair();
    peer.write_all(data).unwrap();
    let mut seen = vec![0; data.len()];
    while ours.peek(&mut seen).unwrap() < data.len() {
        thread::yield_now();
    }
    (watcher.delegate(ours).unwrap(), peer)
}
