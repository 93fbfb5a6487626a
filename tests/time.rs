//! Deadlines, timers, and how long `wait_io_timeout` sleeps: nothing ends early, everything ends
//! once, and time never costs a byte. No case fails for being late.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use common::process::{affordable, in_child};
use common::{
    PATIENCE, backends, builder, collect, connect_to, connected, error_kind, is_pattern, listener,
    next, pair, pair_from, pattern_vec, quiet, read_pattern, readable, turn, watcher,
};
use gaio::{BackendKind, Conn, Deadline, ErrorKind, OpResult, Operation, Results, Watcher};
use socket2::SockRef;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// So many timers are due at once.
const DUE: usize = 100_000;

/// A connection with `DUE` timers and a read beside it; the timers are due, and there is data.
fn all_due(kind: BackendKind) -> (Watcher<usize>, Conn, TcpStream) {
    let (mut watcher, conn, mut peer) = connected(kind);
    watcher.read(DUE, conn, None).unwrap();
    quiet(&mut watcher);
    for number in 0..DUE {
        watcher.timer(number, Duration::ZERO).unwrap();
    }
    peer.write_all(b"now").unwrap();
    (watcher, conn, peer)
}

backends! {
    /// Each turn ends as many as it can hand out, and what the kernel has does not wait for the rest.
    fn many_timers_due(kind: BackendKind) {
        let (mut watcher, conn, _peer) = all_due(kind);
        let mut results = Results::new();
        let mut times = vec![0; DUE];
        let (mut turns, mut read_in, mut handed_out) = (0, None, 0);
        while handed_out <= DUE {
            turn(&mut watcher, &mut results);
            turns += 1;
            handed_out += results.len();
            let ended = DUE + 1 - watcher.stats().pending;
            assert_eq!(ended, handed_out, "more have ended than were handed out");
            for res in results.drain() {
                match res.operation {
                    Operation::Timer => times[res.context] += 1,
                    _ => {
                        assert_eq!((res.conn, res.data()), (conn, &b"now"[..]));
                        read_in = Some(turns);
                    }
                }
            }
        }
        assert!(times.iter().all(|&count| count == 1));
        assert!(read_in.is_some_and(|turn| turn <= 2), "the read came in turn {read_in:?}");
    }

    /// With one result a turn, they take turns.
    fn many_timers_due_one_by_one(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = all_due(kind);
        let mut results = Results::with_capacity(1);
        let (mut timers, mut reads) = (0, 0);
        for _ in 0..400 {
            turn(&mut watcher, &mut results);
            let res = results.pop().unwrap();
            match res.operation {
                Operation::Timer => timers += 1,
                _ => {
                    reads += 1;
                    peer.write_all(b"now").unwrap();
                    watcher.read(DUE, conn, None).unwrap();
                }
            }
        }
        assert!(timers >= 100 && reads >= 100, "{timers} timers and {reads} reads");
    }

    /// Spinning changes how it waits, not what comes.
    fn spin(kind: BackendKind) {
        let forever = Duration::from_secs(1 << 40);
        for spin in [Duration::from_micros(50), Duration::from_secs(3600), forever] {
            let mut watcher = builder(kind).spin(spin).build().unwrap();
            let (conn, mut peer) = connect_to(&mut watcher);
            watcher.read(1, conn, None).unwrap();
            quiet(&mut watcher);
            let remote = watcher.remote();
            let thread = thread::spawn(move || {
                thread::sleep(Duration::from_millis(5));
                peer.write_all(b"late").unwrap();
                thread::sleep(Duration::from_millis(5));
                remote.post(2).unwrap();
                peer
            });
            let mut both = collect(&mut watcher, 2);
            both.sort_by_key(|res| res.context);
            assert_eq!((both[0].data(), both[1].context), (&b"late"[..], 2));
            let start = Instant::now();
            watcher.timer(3, Duration::from_millis(5)).unwrap();
            assert_eq!(next(&mut watcher).context, 3);
            assert!(start.elapsed() >= Duration::from_millis(5));
            thread.join().unwrap();
        }
    }

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
}

/// Waits until each context below `due.len()` came back, once, and not before its time.
fn expect_all_once(
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

backends! {
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
}

/// A delegated connection with these bytes already in its socket, and the peer.
fn with_data_ready<C>(watcher: &mut Watcher<C>, data: &[u8]) -> (Conn, TcpStream) {
    let (ours, mut peer) = pair();
    peer.write_all(data).unwrap();
    let mut seen = vec![0; data.len()];
    while ours.peek(&mut seen).unwrap() < data.len() {
        thread::yield_now();
    }
    (watcher.delegate(ours).unwrap(), peer)
}

backends! {
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

    fn wait_io_timeout_gives_nothing_in_time(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        watcher.read((), conn, None).unwrap();
        let mut results = Results::new();
        for time in [Duration::ZERO, Duration::from_micros(300), ms(15)] {
            let start = Instant::now();
            assert_eq!(watcher.wait_io_timeout(&mut results, time).unwrap(), 0);
            assert!(start.elapsed() >= time);
            assert!(results.is_empty());
        }
        assert_eq!(watcher.stats().pending, 1);
    }

    /// The system tells of a thousand sockets at a time, also of those from which nothing is wanted.
    fn turn_of_no_time_looks_behind_what_nobody_asked_for(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let count = affordable(2 * 3_000) / 2;
            let mut watcher = watcher(kind);
            let listener = listener().0;
            let mut all: Vec<_> = (0..count)
                .map(|_| {
                    let (ours, peer) = pair_from(&listener);
                    (watcher.delegate(ours).unwrap(), peer)
                })
                .collect();
            for nested in [false, true] {
                let _fd = nested.then(|| watcher.poll_fd().unwrap());
                quiet(&mut watcher);
                for (conn, peer) in &mut all {
                    peer.write_all(b"data").unwrap();
                    let socket = watcher.socket(*conn).unwrap();
                    assert!(readable(&socket, PATIENCE));
                }
                let (last, _) = all[count - 1];
                watcher.read(nested, last, None).unwrap();
                let mut results = Results::new();
                assert_eq!(watcher.wait_io_timeout(&mut results, Duration::ZERO), Ok(1));
                assert_eq!(results.pop().unwrap().data(), b"data");
            }
        });
    }

    fn wait_io_timeout_does_not_wait_with_results(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (conn, _peer) = with_data_ready(&mut watcher, b"here");
        watcher.read((), conn, None).unwrap();
        let mut results = Results::new();
        let start = Instant::now();
        let n = watcher
            .wait_io_timeout(&mut results, PATIENCE * 60)
            .unwrap();
        assert_eq!((n, results.len()), (1, 1));
        assert!(start.elapsed() < PATIENCE);
        // What was left unread is dropped by the next call.
        assert_eq!(watcher.wait_io_timeout(&mut results, ms(1)).unwrap(), 0);
        assert!(results.is_empty());
    }

    fn timer_fires_once(kind: BackendKind) {
        let mut watcher = watcher(kind);
        for after in [ms(10), Duration::ZERO] {
            let start = Instant::now();
            let op = watcher.timer("tick", after).unwrap();
            let res = next(&mut watcher);
            assert!(start.elapsed() >= after);
            assert_eq!(res.operation, Operation::Timer);
            assert_eq!((res.op, res.context), (op, "tick"));
            assert!(res.conn == Conn::NONE && res.is_last() && !res.is_eof());
            assert_eq!((res.size, res.buffer.len(), res.error), (0, 0, None));
            assert!(!watcher.cancel(op), "finished");
        }
        quiet(&mut watcher);
    }

    /// Each turn more connections are ready than one turn can start operations.
    fn timer_under_load(kind: BackendKind) {
        const TALKERS: usize = 50;
        let mut watcher = builder(kind).queue_depth(8).build().unwrap();
        for _ in 0..TALKERS {
            let (one, other) = UnixStream::pair().unwrap();
            for end in [one, other] {
                let conn = watcher.delegate(end).unwrap();
                watcher.read("talk", conn, vec![0; 1]).unwrap();
                watcher.write("talk", conn, "x").unwrap();
            }
        }
        let start = Instant::now();
        watcher.timer("timer", ms(20)).unwrap();
        let mut results = Results::new();
        let mut fired = false;
        while !fired {
            assert!(start.elapsed() < PATIENCE / 3, "the timer starves");
            turn(&mut watcher, &mut results);
            for res in results.drain() {
                match res.operation {
                    Operation::Timer => fired = true,
                    Operation::Read => {
                        watcher.write("talk", res.conn, res.buffer).unwrap();
                    }
                    _ => {
                        watcher.read("talk", res.conn, vec![0; 1]).unwrap();
                    }
                }
            }
        }
        assert!(start.elapsed() >= ms(20));
    }

    fn timers_10k_all_once(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let mut due = Vec::new();
        for i in 0..10_000 {
            due.push(Instant::now() + ms(i * 7919 % 250));
            watcher.timer(i as usize, due[i as usize]).unwrap();
        }
        expect_all_once(&mut watcher, &due, |res| assert_eq!(res.error, None));
    }

    fn timer_cancel(kind: BackendKind) {
        let mut watcher = watcher(kind);
        watcher.timer("kept", ms(20)).unwrap();
        let op = watcher.timer("cancelled", ms(10)).unwrap();
        assert!(watcher.cancel(op));
        assert!(!watcher.cancel(op), "cancelled once is enough");
        let results = collect(&mut watcher, 2);
        assert_eq!(results[0].context, "cancelled");
        assert_eq!(error_kind(&results[0]), Some(ErrorKind::Cancelled));
        assert_eq!(results[0].operation, Operation::Timer);
        assert_eq!((results[1].context, results[1].error), ("kept", None));
    }

    fn timer_never(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let never = watcher.timer("never", Deadline::NEVER).unwrap();
        watcher.timer("none", None).unwrap();
        quiet(&mut watcher);
        assert!(watcher.cancel(never));
        assert_eq!(next(&mut watcher).context, "never");
        watcher.close();
        let res = next(&mut watcher);
        assert_eq!(
            (res.context, error_kind(&res)),
            ("none", Some(ErrorKind::WatcherClosed))
        );
    }
}
