//! A watcher inside another event loop: `poll(2)`, or another watcher. Its descriptor is readable when
//! a turn of no time has something to do, and at no other time for long. `nesting_between_turns.rs` has what
//! is asked for while the loop is elsewhere.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::nested::{assert_silent, polled, settle};
use common::{
    PATIENCE, Random, backends, connected, error_kind, next, quiet, readable, until, watcher,
};
use gaio::{BackendKind, ErrorKind, Interest, Operation, Results, Watcher};

backends! {
    fn first_look(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.read((), conn, None).unwrap();
        assert!(settle(&mut watcher).is_empty());
        let fd = watcher.poll_fd().unwrap();
        assert_silent(&fd);
        peer.write_all(b"data").unwrap();
        assert_eq!(polled(&mut watcher, &fd)[0].data(), b"data");
    }

    fn in_poll(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let remote = watcher.remote();
        let fd = watcher.poll_fd().unwrap();
        for round in 0..1_000 {
            watcher.read(round, conn, None).unwrap();
            assert!(settle(&mut watcher).is_empty());
            assert!(!readable(&fd, Duration::ZERO), "in round {round}");
            match round % 3 {
                0 => peer.write_all(b"data").unwrap(),
                1 => {
                    remote.write(round, conn, "out").unwrap();
                    assert_eq!(polled(&mut watcher, &fd)[0].operation, Operation::Write);
                    peer.write_all(b"data").unwrap();
                }
                _ => {
                    remote.post(round).unwrap();
                    assert_eq!(polled(&mut watcher, &fd)[0].operation, Operation::Post);
                    peer.write_all(b"data").unwrap();
                }
            }
            assert_eq!(polled(&mut watcher, &fd)[0].data(), b"data");
        }
    }

    fn deadlines(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let after = Duration::from_millis(10);
        let fd = watcher.poll_fd().unwrap();
        for round in 0..5 {
            let start = Instant::now();
            watcher.timer("timer", after).unwrap();
            watcher.read_timeout("read", conn, None, after * 2).unwrap();
            // On a slow machine this takes so long that the first look finds them.
            let mut results = settle(&mut watcher);
            let mut early = 0;
            for (at, context, due) in [(0, "timer", after), (1, "read", after * 2)] {
                while results.len() <= at {
                    // Some systems' timers are a tick early, and then there is nothing yet.
                    assert!(early <= 6, "readable, and yet there was nothing");
                    early += 1;
                    assert!(readable(&fd, PATIENCE), "it does not become readable");
                    results.extend(settle(&mut watcher));
                }
                assert_eq!(results[at].context, context);
                assert!(start.elapsed() >= due, "early in round {round}");
            }
            assert_silent(&fd);
        }
    }

    fn in_another_watcher(kind: BackendKind) {
        let (mut inner, conn, mut peer) = connected(kind);
        let mut outer = watcher(kind);
        let inside = outer.delegate(inner.poll_fd().unwrap()).unwrap();
        for round in 0..1_000 {
            inner.read(round, conn, None).unwrap();
            assert!(settle(&mut inner).is_empty());
            outer.ready(round, inside, Interest::Readable).unwrap();
            if round < 3 {
                quiet(&mut outer);
            }
            peer.write_all(b"data").unwrap();
            let res = next(&mut outer);
            assert_eq!(
                (res.operation, res.context, res.error),
                (Operation::Ready, round, None)
            );
            let results = settle(&mut inner);
            assert_eq!((results.len(), results[0].context), (1, round));
            assert_eq!(results[0].data(), b"data");
        }
    }

    /// What arrives arises within the signal of another event: three loops, one in the other, and an
    /// event of the system's own.
    fn in_a_nested_watcher(kind: BackendKind) {
        let (mut inner, conn, mut peer) = connected(kind);
        let mut outer = watcher(kind);
        let inside = outer.delegate(inner.poll_fd().unwrap()).unwrap();
        let fd = outer.poll_fd().unwrap();
        for round in 0..100 {
            inner.read(round, conn, None).unwrap();
            assert!(settle(&mut inner).is_empty());
            outer.ready(round, inside, Interest::Readable).unwrap();
            assert!(settle(&mut outer).is_empty(), "in round {round}");
            peer.write_all(b"data").unwrap();
            let res = &polled(&mut outer, &fd)[0];
            assert_eq!((res.operation, res.context), (Operation::Ready, round));
            assert_eq!(settle(&mut inner)[0].data(), b"data");
        }
    }

    /// Between the last look at the results and `poll(2)` a deadline may pass, and must not be lost.
    fn deadline_is_not_lost(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let fd = watcher.poll_fd().unwrap();
        let mut random = Random::new(7);
        for round in 0..2_000 {
            let after = Duration::from_micros(20 + random.below(980) as u64);
            let deadline = Instant::now() + after;
            watcher.read_timeout(round, conn, None, deadline).unwrap();
            // In every other round the last look is just before the deadline.
            let close = Duration::from_micros(random.below(30) as u64);
            let look_until = deadline - if round % 2 == 0 { after } else { close };
            let mut results = settle(&mut watcher);
            while results.is_empty() {
                let poll = Instant::now() >= look_until;
                let within = if poll { PATIENCE / 6 } else { Duration::ZERO };
                let ready = readable(&fd, within);
                assert!(ready || !poll, "the deadline of round {round} was lost");
                results = settle(&mut watcher);
            }
            assert_eq!(results.len(), 1);
            let expected = (round, Some(ErrorKind::Deadline));
            assert_eq!((results[0].context, error_kind(&results[0])), expected);
        }
    }

    fn timer_does_not_spin(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.timer("timer", Duration::from_millis(20)).unwrap();
        let _fd = watcher.poll_fd().unwrap();
        assert_eq!(next(&mut watcher).context, "timer");
        watcher.read("read", conn, None).unwrap();
        let before = watcher.stats().kernel_calls;
        let count = watcher.wait_io_timeout(&mut Results::new(), Duration::from_millis(200));
        assert_eq!(count, Ok(0));
        let calls = watcher.stats().kernel_calls - before;
        assert!(calls < 50, "{calls} system calls in a silent while");
        peer.write_all(b"data").unwrap();
        assert_eq!(next(&mut watcher).data(), b"data");
    }

    /// Two loops wait for the bytes of one pipe. Who comes too late waits for the next byte, and
    /// who has stopped reading takes none.
    fn pipe_shared_by_two(kind: BackendKind) {
        const ALL: usize = 5_000;
        let (reader, writer) = io::pipe().unwrap();
        let seen = &AtomicUsize::new(0);
        thread::scope(|scope| {
            let (_others, may_end) = mpsc::channel::<()>();
            let other = reader.try_clone().unwrap();
            scope.spawn(move || {
                let _idle = reader_of(kind, reader, ALL / 10, seen);
                let _ = may_end.recv();
            });
            scope.spawn(move || reader_of(kind, other, usize::MAX, seen));
            let mut writer = writer; // The pipe ends with this scope.
            let mut random = Random::new(12);
            for sent in 1..=ALL {
                writer.write_all(b"x").unwrap();
                (0..random.below(3_000)).for_each(|_| std::hint::spin_loop());
                if sent % 50 == 0 {
                    until("all was read", || seen.load(Ordering::Relaxed) == sent);
                }
            }
        });
    }
}

/// Reads a pipe byte by byte in a loop around `poll(2)`, up to its end or so many bytes.
fn reader_of(
    kind: BackendKind,
    pipe: impl Into<OwnedFd>,
    at_most: usize,
    seen: &AtomicUsize,
) -> Watcher {
    let mut watcher = watcher(kind);
    let conn = watcher.delegate(pipe).unwrap();
    let fd = watcher.poll_fd().unwrap();
    for _ in 0..at_most {
        watcher.read((), conn, vec![0; 1]).unwrap();
        let mut results = settle(&mut watcher);
        while results.is_empty() {
            assert!(readable(&fd, PATIENCE), "it sleeps too well");
            results = settle(&mut watcher);
        }
        assert_eq!((results.len(), results[0].error), (1, None));
        if results[0].is_eof() {
            break;
        }
        seen.fetch_add(1, Ordering::Relaxed);
    }
    watcher
}

backends! {
    /// Each is a descriptor of its own, and outlives the watcher in peace.
    fn several_descriptors(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let [first, second] = [watcher.poll_fd().unwrap(), watcher.poll_fd().unwrap()];
        watcher.read((), conn, None).unwrap();
        assert!(settle(&mut watcher).is_empty());
        drop(first);
        assert_silent(&second);
        peer.write_all(b"data").unwrap();
        assert_eq!(polled(&mut watcher, &second)[0].data(), b"data");
        drop(watcher);
        assert_silent(&second);
    }
}
