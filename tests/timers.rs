//! Timers: none is early, each comes once, and many that are due together delay nothing else.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::timing::{expect_all_once, ms};
use common::{
    PATIENCE, backends, builder, collect, connected, error_kind, next, quiet, turn, watcher,
};
use gaio::{BackendKind, Conn, Deadline, ErrorKind, Operation, Results, Watcher};

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
