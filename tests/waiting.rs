//! How long a turn waits: `wait_io_timeout` with some time, with none, and a watcher that spins.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;
use std::thread;
use std::time::{Duration, Instant};

use common::process::{affordable, in_child};
use common::timing::{ms, with_data_ready};
use common::{
    PATIENCE, backends, builder, collect, connect_to, connected, listener, next, pair_from, quiet,
    readable, watcher,
};
use gaio::{BackendKind, Results};

backends! {
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
}
