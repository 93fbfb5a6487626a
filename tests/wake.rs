//! `Remote::wake`: a wait that ends without a result.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::nested::{assert_silent, settle};
use common::{PATIENCE, backends, connected, elsewhere, next, quiet, readable, watcher};
use gaio::{BackendKind, Conn, ErrorKind, Interest, Results};

backends! {
    /// Each wake ends one wait. The watcher sleeps when it comes, or is just about to, or runs.
    fn ends_the_wait(kind: BackendKind) {
        const ROUNDS: usize = 2_000;
        let mut watcher = watcher::<()>(kind);
        let remote = watcher.remote();
        let (send, returned) = mpsc::channel();
        let waker = thread::spawn(move || {
            for _ in 0..ROUNDS {
                remote.wake().unwrap();
                returned.recv_timeout(PATIENCE).unwrap();
            }
        });
        let mut results = Results::new();
        for _ in 0..ROUNDS {
            let start = Instant::now();
            assert_eq!(watcher.wait_io_timeout(&mut results, PATIENCE).unwrap(), 0);
            assert!(start.elapsed() < PATIENCE, "woken by the clock alone");
            send.send(()).unwrap();
        }
        waker.join().unwrap();
        quiet(&mut watcher);
    }

    /// Many wakes before a turn are one, and cost nothing while the watcher runs.
    fn many_are_one(kind: BackendKind) {
        let mut watcher = watcher::<()>(kind);
        let remote = &watcher.remote();
        quiet(&mut watcher);
        let before = watcher.stats().wakeups;
        elsewhere(|| (0..1_000).for_each(|_| remote.wake().unwrap()));
        assert!(watcher.stats().wakeups - before <= 1, "nobody was asleep");
        assert_eq!(watcher.wait_io(&mut Results::new()).unwrap(), 0);
        let start = Instant::now();
        quiet(&mut watcher);
        assert!(start.elapsed() >= Duration::from_millis(1), "it was woken twice");
    }

    /// A call between two turns takes the inbox. The wake is still for the next turn.
    fn outlives_calls_between_turns(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let remote = watcher.remote();
        quiet(&mut watcher);
        remote.wake().unwrap();
        watcher.read((), Conn::NONE, None).unwrap_err();
        let start = Instant::now();
        assert_eq!(watcher.wait_io_timeout(&mut Results::new(), PATIENCE).unwrap(), 0);
        assert!(start.elapsed() < PATIENCE);
    }

    /// Results that are there are returned, and the wake is over with them.
    fn brings_what_there_is(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let remote = watcher.remote();
        watcher.read("read", conn, None).unwrap();
        remote.wake().unwrap();
        remote.post("post").unwrap();
        let res = next(&mut watcher);
        assert_eq!(res.context, "post");
        quiet(&mut watcher);
        remote.wake().unwrap();
        assert_eq!(watcher.wait_io(&mut Results::new()).unwrap(), 0);
        peer.write_all(b"data").unwrap();
        assert_eq!(next(&mut watcher).data(), b"data");
    }

    /// A watcher in another loop becomes readable, once.
    fn wakes_the_outer_loop(kind: BackendKind) {
        let mut inner = watcher::<()>(kind);
        let mut outer = watcher(kind);
        let fd = inner.poll_fd().unwrap();
        let inside = outer.delegate(fd.try_clone().unwrap()).unwrap();
        let remote = &inner.remote();
        for round in 0..100 {
            outer.ready(round, inside, Interest::Readable).unwrap();
            elsewhere(|| remote.wake().unwrap());
            assert_eq!(next(&mut outer).context, round);
            assert!(readable(&fd, Duration::ZERO));
            assert!(settle(&mut inner).is_empty());
            assert_silent(&fd);
        }
        remote.wake().unwrap();
        let late = inner.poll_fd().unwrap();
        assert!(readable(&late, PATIENCE), "woken before the descriptor was there");
    }

    fn is_refused_by_a_closed_watcher(kind: BackendKind) {
        let mut watcher = watcher::<()>(kind);
        let remote = watcher.remote();
        remote.wake().unwrap();
        watcher.close();
        let error = remote.wake().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WatcherClosed);
        assert_eq!(error.to_string(), "wake: the watcher is closed: build a new one");
    }
}
