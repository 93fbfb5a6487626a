//! Deadlines: nothing ends early, everything ends once, and time never costs a byte. No case fails for being
//! late.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::thread;
use std::time::{Duration, Instant};

use common::timing::{expect_all_once, ms, with_data_ready};
use common::{
    PATIENCE, backends, builder, collect, connect_to, connected, error_kind, is_pattern, next,
    pattern_vec, quiet, read_pattern, turn, watcher,
};
use gaio::{BackendKind, ErrorKind, Results};
use socket2::SockRef;

backends! {
    fn deadline_near_due(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        for after in [0, 1, 2, 3, 5, 10, 20] {
            let start = Instant::now();
            watcher.read_timeout(after, conn, None, ms(after)).unwrap();
            let res = next(&mut watcher);
            assert!(start.elapsed() >= ms(after), "{after} ms came early");
            assert_eq!(error_kind(&res), Some(ErrorKind::Deadline));
            assert_eq!((res.context, res.size), (after, 0));
        }
        peer.write_all(b"later").unwrap();
        watcher.read_timeout(99, conn, None, PATIENCE).unwrap();
        assert_eq!(next(&mut watcher).data(), b"later");
    }

    /// The deadline of a request that waits behind others holds when it has become the first.
    fn deadline_of_one_that_moved_up(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let start = Instant::now();
        watcher.read(1, conn, None).unwrap();
        watcher.read_timeout(2, conn, None, ms(50)).unwrap();
        watcher.read_timeout(3, conn, None, PATIENCE).unwrap();
        peer.write_all(b"first").unwrap();
        assert_eq!(next(&mut watcher).data(), b"first");
        let res = next(&mut watcher);
        assert!(start.elapsed() >= ms(50));
        assert_eq!((res.context, error_kind(&res)), (2, Some(ErrorKind::Deadline)));
        peer.write_all(b"third").unwrap();
        let res = next(&mut watcher);
        assert_eq!((res.context, res.data()), (3, &b"third"[..]));
    }

    fn deadline_10k_all_once(kind: BackendKind) {
        const CONNECTIONS: usize = 100;
        const EACH: usize = 100;
        let mut watcher = watcher(kind);
        let connections: Vec<_> = (0..CONNECTIONS).map(|_| connect_to(&mut watcher)).collect();
        let mut due = Vec::new();
        for &(conn, _) in &connections {
            for _ in 0..EACH {
                let at = Instant::now() + ms(due.len() as u64 * 7919 % 300);
                watcher.read_timeout(due.len(), conn, None, at).unwrap();
                due.push(at);
            }
        }
        expect_all_once(&mut watcher, &due, |res| {
            assert_eq!(error_kind(res), Some(ErrorKind::Deadline));
        });
    }

    fn earlier_deadline_rearms(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (far, _far_peer) = connect_to(&mut watcher);
        let (near, _near_peer) = connect_to(&mut watcher);
        let far_op = watcher
            .read_timeout("far", far, None, PATIENCE * 60)
            .unwrap();
        quiet(&mut watcher);
        watcher.read_timeout("near", near, None, ms(10)).unwrap();
        assert_eq!(next(&mut watcher).context, "near");
        assert!(watcher.cancel(far_op), "the far one is still pending");
        let res = next(&mut watcher);
        assert_eq!(
            (res.context, error_kind(&res)),
            ("far", Some(ErrorKind::Cancelled))
        );
    }

    fn earlier_deadline_wakes_a_sleeper(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        watcher.timer("far", PATIENCE * 60).unwrap();
        let remote = watcher.remote();
        let sender = thread::spawn(move || {
            thread::sleep(ms(20)); // Most likely the watcher sleeps by then; it must work anyway.
            remote.read_timeout("near", conn, None, ms(10)).unwrap();
        });
        let res = next(&mut watcher);
        assert_eq!(
            (res.context, error_kind(&res)),
            ("near", Some(ErrorKind::Deadline))
        );
        sender.join().unwrap();
    }

    fn deadline_in_the_past_with_data_ready(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let past = Instant::now() - ms(5);
        let (conn, mut peer) = with_data_ready(&mut watcher, b"swap");
        watcher.read_timeout((), conn, None, past).unwrap();
        assert_eq!(next(&mut watcher).data(), b"swap");

        let (conn, _peer) = with_data_ready(&mut watcher, b"own");
        watcher.read_timeout((), conn, vec![0; 3], past).unwrap();
        assert_eq!(next(&mut watcher).data(), b"own");

        let (conn, _peer) = with_data_ready(&mut watcher, b"full");
        watcher.read_full((), conn, vec![0; 4], past).unwrap();
        let res = next(&mut watcher);
        assert_eq!((res.data(), res.error), (&b"full"[..], None));

        watcher.write_timeout((), conn, "out", past).unwrap();
        let res = next(&mut watcher);
        assert_eq!((res.size, res.error), (3, None));
        peer.set_nonblocking(true).unwrap();
        assert!(peer.read(&mut [0]).is_err(), "nothing went elsewhere");
    }

    /// Each gets its attempt, also if there are more than the backend has room for in one turn.
    fn deadline_in_the_past_of_more_than_fit(kind: BackendKind) {
        const COUNT: usize = 12;
        let mut watcher = builder(kind).queue_depth(1).build().unwrap();
        let past = Instant::now() - ms(5);
        let mut peers = Vec::new();
        for index in 0..COUNT {
            let (conn, peer) = with_data_ready(&mut watcher, b"data");
            let buffer = (index % 2 == 0).then(|| vec![0; 4]);
            watcher.read_timeout(index, conn, buffer, past).unwrap();
            watcher.write_timeout(COUNT + index, conn, "out", past).unwrap();
            peers.push(peer);
        }
        for res in collect(&mut watcher, 2 * COUNT) {
            let size = if res.context < COUNT { 4 } else { 3 };
            assert_eq!((res.size, res.error), (size, None), "{}", res.context);
        }
    }

    /// Overdue requests that wait for room can be cancelled, and those behind them keep their own time.
    fn behind_a_deadline_in_the_past(kind: BackendKind) {
        const COUNT: usize = 40;
        let mut watcher = builder(kind).queue_depth(1).build().unwrap();
        let past = Instant::now() - ms(5);
        let mut expected = Vec::new();
        let mut peers = Vec::new();
        for index in 0..COUNT {
            let (conn, peer) = connect_to(&mut watcher);
            let overdue = watcher.read_timeout(4 * index, conn, None, past).unwrap();
            let behind = watcher.read_timeout(4 * index + 1, conn, None, past).unwrap();
            watcher.read_timeout(4 * index + 2, conn, None, PATIENCE * 10).unwrap();
            watcher.read(4 * index + 3, conn, None).unwrap();
            peers.push(peer);
            expected.push((conn, overdue, behind));
        }
        let mut results = Results::with_capacity(COUNT);
        let mut ends = vec![None; 4 * COUNT];
        let mut take = |results: &mut Results<usize>| {
            for res in results.drain() {
                assert!(ends[res.context].replace((error_kind(&res), res.size)).is_none());
            }
            ends.iter().flatten().count()
        };
        // Some have started now, and some wait.
        watcher.wait_io_timeout(&mut results, Duration::ZERO).unwrap();
        take(&mut results);
        for &(conn, overdue, behind) in expected.iter().rev().step_by(3) {
            watcher.cancel(overdue);
            watcher.cancel(behind);
            assert!(watcher.contains(conn));
        }
        while take(&mut results) < 2 * COUNT {
            turn(&mut watcher, &mut results);
        }
        quiet(&mut watcher);
        for peer in &mut peers {
            peer.write_all(b"1").unwrap();
        }
        while take(&mut results) < 3 * COUNT {
            turn(&mut watcher, &mut results);
        }
        for peer in &mut peers {
            peer.write_all(b"23").unwrap();
        }
        while take(&mut results) < 4 * COUNT {
            turn(&mut watcher, &mut results);
        }
        for (index, end) in ends.into_iter().enumerate() {
            let (kind, size) = end.unwrap();
            match index % 4 {
                0 | 1 => {
                    assert!(matches!(kind, Some(ErrorKind::Deadline | ErrorKind::Cancelled)));
                    assert_eq!(size, 0);
                }
                of_lane => assert_eq!((kind, size), (None, of_lane - 1)),
            }
        }
    }

    fn deadline_in_the_past_without_data(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let past = Instant::now() - ms(5);
        watcher.read_timeout(1, conn, None, past).unwrap();
        watcher.read_timeout(2, conn, vec![7; 9], past).unwrap();
        watcher
            .read_full(3, conn, vec![7; 9], Duration::ZERO)
            .unwrap();
        let mut results = collect(&mut watcher, 3);
        results.sort_by_key(|res| res.context); // No bytes, so any order.
        for (res, expected) in results.into_iter().zip(1..) {
            assert_eq!((res.context, res.size), (expected, 0));
            assert_eq!(error_kind(&res), Some(ErrorKind::Deadline));
            let own = res.buffer.recycle();
            assert_eq!(own.map(|vec| vec.len()), (expected > 1).then_some(9));
        }
    }

    fn deadline_of_a_queued_request(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.read("first", conn, None).unwrap();
        watcher.read_timeout("queued", conn, None, ms(5)).unwrap();
        watcher.read("last", conn, vec![0; 8]).unwrap();
        let res = next(&mut watcher);
        assert_eq!(
            (res.context, error_kind(&res)),
            ("queued", Some(ErrorKind::Deadline))
        );
        for (context, data) in [("first", b"1"), ("last", b"2")] {
            peer.write_all(data).unwrap();
            let res = next(&mut watcher);
            assert_eq!((res.context, res.data()), (context, &data[..]));
        }
    }

    /// A byte arrives about when the deadline fires, again and again; each arrives once, in order.
    fn deadline_loses_no_data(kind: BackendKind) {
        const ROUNDS: usize = 10_000;
        let (mut watcher, conn, mut peer) = connected(kind);
        let sender = thread::spawn(move || {
            for round in 0..ROUNDS {
                peer.write_all(&[round as u8]).unwrap();
                thread::sleep(Duration::from_micros(round as u64 * 31 % 150));
            }
            peer
        });
        let (mut received, mut round) = (0, 0u64);
        while received < ROUNDS {
            round += 1;
            let deadline = Duration::from_micros(round * 17 % 200);
            match round % 3 {
                0 => watcher
                    .read_timeout((), conn, None, deadline)
                    .map(drop)
                    .unwrap(),
                1 => watcher
                    .read_timeout((), conn, vec![0; 4], deadline)
                    .map(drop)
                    .unwrap(),
                _ => watcher
                    .read_full((), conn, vec![0; 2], deadline)
                    .map(drop)
                    .unwrap(),
            }
            let res = next(&mut watcher);
            for &byte in res.data() {
                assert_eq!(byte, received as u8, "byte {received}");
                received += 1;
            }
            match error_kind(&res) {
                None => assert!(res.size > 0, "no end was sent"),
                kind => assert_eq!(kind, Some(ErrorKind::Deadline)),
            }
        }
        drop(sender.join().unwrap());
    }

    fn read_full_deadline_keeps_the_bytes_so_far(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (conn, _peer) = with_data_ready(&mut watcher, b"half");
        watcher.read_full((), conn, vec![0; 8], ms(10)).unwrap();
        let res = next(&mut watcher);
        assert_eq!(error_kind(&res), Some(ErrorKind::Deadline));
        assert_eq!(res.data(), b"half");
        assert_eq!(
            res.buffer.recycle().unwrap().len(),
            8,
            "the whole buffer comes back"
        );
    }

    fn write_deadline_reports_bytes(kind: BackendKind) {
        const ALL: usize = 32 << 20;
        let (mut watcher, conn, mut peer) = connected(kind);
        SockRef::from(&peer).set_recv_buffer_size(64 << 10).unwrap();
        watcher
            .write_timeout(1, conn, pattern_vec(0, ALL), ms(500))
            .unwrap();
        watcher.write_timeout(2, conn, "queued", ms(5)).unwrap();
        let queued = next(&mut watcher);
        assert_eq!((queued.context, queued.size), (2, 0));
        let res = next(&mut watcher);
        let sent = res.size;
        assert_eq!(error_kind(&res), Some(ErrorKind::Deadline));
        assert!(0 < sent && sent < ALL, "{sent} bytes");
        assert!(
            res.buffer.len() == ALL && is_pattern(0, &res.buffer),
            "it comes back whole"
        );
        assert!(watcher.free(conn));
        quiet(&mut watcher);
        read_pattern(&mut peer, 0, sent);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "no byte more");
    }

    fn no_deadline_after_an_absurd_time(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (conn, _peer) = with_data_ready(&mut watcher, b"x");
        watcher.timer("absurd", Duration::MAX).unwrap();
        watcher
            .read_timeout("read", conn, None, Duration::MAX)
            .unwrap();
        let mut results = Results::new();
        let n = watcher.wait_io_timeout(&mut results, Duration::MAX);
        assert_eq!(n.unwrap(), 1);
        assert_eq!(results.pop().unwrap().context, "read");
    }
}
