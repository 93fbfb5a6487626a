//! Queues that are long, and queues that are short: what a request costs does not depend on how many others
//! wait behind it, all get their turn, and little room in the backend's own queue delays nobody for long.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{HashMap, HashSet};
use std::thread;
use std::time::{Duration, Instant};

use common::process::in_child;
use common::*;
use gaio::{BackendKind, ErrorKind, OpId, Results};

/// Writes that wait for a peer that does not read.
const QUEUED: usize = 400_000;

/// Writes that are cancelled while they run, one by one: enough to take minutes if all that are queued
/// were looked at each time.
const CANCELLED: usize = 2_000;

backends! {
    fn many_queued_writes(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        watcher.write(0, conn, vec![0; MUCH]).unwrap();
        let ops: Vec<OpId> = (1..=QUEUED)
            .map(|number| watcher.write(number, conn, "0123456789").unwrap())
            .collect();
        let start = Instant::now();
        for (op, number) in ops.iter().take(CANCELLED).zip(1..) {
            // They run from now on, as many at once as there may be.
            let count = watcher.wait_io_timeout(&mut Results::new(), Duration::ZERO);
            assert_eq!(count, Ok(0));
            assert!(watcher.cancel(*op));
            let res = next(&mut watcher);
            assert_eq!((res.context, error_kind(&res)), (number, Some(ErrorKind::Cancelled)));
            assert!(start.elapsed() < PATIENCE, "{number} of {CANCELLED} in {PATIENCE:?}");
        }
        // One far behind ends without a wait.
        assert!(watcher.cancel(ops[QUEUED - 1]));
        assert_eq!(next(&mut watcher).context, QUEUED);
        assert!(watcher.free(conn));
        let rest = collect(&mut watcher, QUEUED - CANCELLED);
        for (res, number) in rest.iter().zip([0].into_iter().chain(CANCELLED + 1..)) {
            assert_eq!((res.context, error_kind(res)), (number, Some(ErrorKind::ConnClosed)));
        }
        assert_eq!(watcher.stats().pending, 0);
    }
}

const MANY: usize = 100_000;

backends! {
    fn reads_100k_queued(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        for number in 0..MANY {
            let own = vec![0; 1 + number % 2];
            watcher.read_full(number, conn, own, PATIENCE).unwrap();
        }
        assert_eq!(watcher.stats().pending, MANY);
        let all = MANY / 2 * 3;
        let sender = thread::spawn(move || write_pattern(&mut peer, 0, all));
        let (mut count, mut at) = (0, 0);
        let mut results = Results::new();
        while count < MANY {
            turn(&mut watcher, &mut results);
            for res in results.drain() {
                assert_eq!((res.context, res.error), (count, None));
                assert_eq!(res.size, 1 + count % 2);
                assert!(is_pattern(at, res.data()), "read {count}");
                at += res.size;
                count += 1;
            }
        }
        sender.join().unwrap();
        quiet(&mut watcher);
    }

    fn requests_100k_freed_at_once(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        for number in 0..MANY {
            watcher.read(number, conn, None).unwrap();
        }
        quiet(&mut watcher);
        assert!(watcher.free(conn));
        for (number, res) in collect(&mut watcher, MANY).into_iter().enumerate() {
            assert_eq!(res.context, number);
            assert_eq!(error_kind(&res), Some(ErrorKind::ConnClosed));
        }
        assert_eq!(watcher.stats().pending, 0);
    }

    /// A queue with room for less than a turn needs: all goes on, only slower, and time passes.
    fn smallest_queue_depth(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            for depth in [1, 2] {
                let mut watcher = builder(kind).queue_depth(depth).build().unwrap();
                let mut pairs: Vec<_> = (0..4).map(|_| connect_to(&mut watcher)).collect();
                for round in 0..3 {
                    for (conn, _) in &pairs {
                        watcher.read((), *conn, None).unwrap();
                    }
                    assert_eq!(
                        watcher.wait_io_timeout(&mut Results::new(), GLANCE * 7),
                        Ok(0),
                        "nothing was sent"
                    );
                    for (at, (_, peer)) in pairs.iter_mut().enumerate() {
                        write_pattern(peer, at + round, 10);
                    }
                    for res in collect(&mut watcher, pairs.len()) {
                        watcher.write((), res.conn, res.buffer).unwrap();
                    }
                    collect(&mut watcher, pairs.len());
                    for (at, (_, peer)) in pairs.iter_mut().enumerate() {
                        read_pattern(peer, at + round, 10);
                    }
                }
            }
        });
    }

    /// Connections that always have something to read, and are read again at once, could take all the
    /// room of a small queue for ever.
    fn small_queue_starves_nobody(kind: BackendKind) {
        const HOGS: usize = 40;
        const OTHERS: usize = 200;
        let mut watcher = builder(kind).queue_depth(8).build().unwrap();
        let (mut hogs, mut others) = (HashMap::new(), HashSet::new());
        for _ in 0..HOGS {
            let (conn, mut peer) = connect_to(&mut watcher);
            write_pattern(&mut peer, 0, 1);
            watcher.read((), conn, None).unwrap();
            hogs.insert(conn, peer);
        }
        let mut kept = Vec::new();
        for _ in 0..OTHERS {
            let (conn, mut peer) = connect_to(&mut watcher);
            write_pattern(&mut peer, 0, 1);
            watcher.read((), conn, None).unwrap();
            others.insert(conn);
            kept.push(peer);
        }
        let mut results = Results::new();
        let mut turns = 0;
        while !others.is_empty() {
            turns += 1;
            assert!(turns < 10 * (HOGS + OTHERS), "{} starve", others.len());
            turn(&mut watcher, &mut results);
            for res in results.drain() {
                assert!(is_pattern(0, res.data()), "{res:?}");
                if let Some(peer) = hogs.get_mut(&res.conn) {
                    write_pattern(peer, 0, 1);
                    watcher.read((), res.conn, None).unwrap();
                } else {
                    assert!(others.remove(&res.conn));
                }
            }
        }
    }
}
