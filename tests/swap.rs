//! The pool of swap buffers: how far it goes, who waits when all are out, and what ends that. `leases.rs` has the
//! leases, `slow_readers.rs` peers that do not read.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use common::*;
use gaio::{BackendKind, Conn, ErrorKind, OpResult, Results, SwapBuf, Watcher};

backends! {
    fn lease_dropped_on_another_thread(kind: BackendKind) {
        let mut watcher = one_swap_buffer(kind);
        let (conn, mut peer) = connect_to(&mut watcher);
        write_pattern(&mut peer, 0, 8 * 4096); // More than it gets.
        let held = read_until_dry(&mut watcher, conn);
        let seen: usize = held.iter().map(|lease| lease.len()).sum();
        assert!(watcher.stats().leases >= 1);
        // The watcher sleeps, or is about to, when the leases go.
        thread::scope(|scope| {
            scope.spawn(move || {
                let mut at = 0;
                for lease in &held {
                    assert!(is_pattern(at, lease));
                    at += lease.len();
                }
                drop(held);
            });
            let res = next(&mut watcher);
            assert!(is_pattern(seen, res.data()) && res.size > 0);
        });
        assert_eq!(watcher.stats().leases, 0, "each lease came back");
    }

    /// A connection that always has data takes all there is, and reads again at once: the other one has
    /// its turn before that.
    fn first_come_first_served(kind: BackendKind) {
        let mut watcher = one_swap_buffer(kind);
        let mut peers = Vec::new();
        for index in 0..2 {
            let (conn, peer) = connect_to(&mut watcher);
            peer.set_nonblocking(true).unwrap();
            fill(&peer);
            watcher.read(index, conn, None).unwrap();
            peers.push(peer);
        }
        let mut counts = [0_usize; 2];
        let mut results = Results::new();
        for _ in 0..200 {
            turn(&mut watcher, &mut results);
            for res in results.drain() {
                assert_eq!(res.error, None);
                counts[res.context] += 1;
                drop(res.buffer);
                watcher.read(res.context, res.conn, None).unwrap();
                fill(&peers[res.context]);
            }
        }
        let [a, b] = counts;
        assert!(a.abs_diff(b) < 30, "{counts:?} reads");
    }

    /// One connection keeps all that it gets. It gets the pool and a little more, then waits without an
    /// error and without work; each lease that comes back lets it go on.
    fn keeps_all(kind: BackendKind) {
        let mut watcher = builder(kind)
            .swap_buffer_size(4096)
            .swap_buffers(4)
            .build()
            .unwrap();
        let (ours, mut peer) = pair();
        // Many systems, and Linux 6.1, have room for less than that.
        let socket = socket2::SockRef::from(&ours);
        socket.set_recv_buffer_size(40 * 4096).unwrap();
        write_pattern(&mut peer, 0, 20 * 4096);
        until("all is there", || {
            ours.peek(&mut [0; 20 * 4096]).unwrap() == 20 * 4096
        });
        let conn = watcher.delegate(ours).unwrap();
        let mut held: VecDeque<_> = read_until_dry(&mut watcher, conn).into();
        let mut seen: usize = held.iter().map(|lease| lease.len()).sum();
        assert!((4 * 4096..=6 * 4096).contains(&seen), "{seen} bytes");
        let calls_before = watcher.stats().kernel_calls;
        quiet(&mut watcher);
        let calls = watcher.stats().kernel_calls - calls_before;
        assert!(
            calls <= 10,
            "{calls} system calls while nothing could be done"
        );
        assert!(watcher.stats().swap_bytes <= (4 + 2) * 4096);
        for _ in 0..10 {
            let gone = held.pop_front().unwrap();
            assert!(is_pattern(seen - held_bytes(&held) - gone.len(), &gone));
            drop(gone);
            let res = next(&mut watcher);
            assert!(res.error.is_none() && is_pattern(seen, res.data()));
            seen += res.size;
            held.push_back(res.buffer.into_swap().unwrap());
            watcher.read((), conn, None).unwrap();
            quiet(&mut watcher);
        }
    }

    /// What others keep makes nobody wait: each of many connections gets its bytes, though one has the
    /// whole pool, and each of them keeps what it gets.
    fn others_wait_for_nobody(kind: BackendKind) {
        let mut watcher = one_swap_buffer(kind);
        let (hog, mut hog_peer) = connect_to(&mut watcher);
        hog_peer.write_all(&[0; 8 * 4096]).unwrap();
        watcher.read(0, hog, None).unwrap();
        let mut kept = vec![next(&mut watcher)];
        for index in 1..=200 {
            let (conn, mut peer) = connect_to(&mut watcher);
            watcher.read(index, conn, None).unwrap();
            quiet_for_a_turn(&mut watcher);
            for half in 0..2 {
                peer.write_all(pattern(index + half, 100)).unwrap();
                let res = next(&mut watcher);
                assert_eq!((res.context, res.size, res.error), (index, 100, None));
                assert!(res.is_swap_buffer() && is_pattern(index + half, res.data()));
                kept.push(res);
                if half == 0 {
                    watcher.read(index, conn, None).unwrap();
                }
            }
        }
        let stats = watcher.stats();
        assert_eq!(stats.leases, kept.len());
        assert!(stats.swap_bytes <= 4096 + 200 * 2 * 4096);
        kept.clear();
        let stats = watcher.stats();
        assert_eq!(stats.leases, 0);
        assert!(stats.swap_bytes <= 32 * 4096, "{} bytes", stats.swap_bytes);
    }

    /// Idle connections hold nothing, also when the pool is used up.
    fn idle_holds_nothing(kind: BackendKind) {
        let mut watcher = one_swap_buffer(kind);
        let (hog, mut hog_peer) = connect_to(&mut watcher);
        hog_peer.write_all(&[0; 4096]).unwrap();
        watcher.read(0, hog, None).unwrap();
        let lease = next(&mut watcher);
        let mut peers: Vec<_> = (1..=50)
            .map(|index| {
                let (conn, peer) = connect_to(&mut watcher);
                watcher.read(index, conn, None).unwrap();
                peer
            })
            .collect();
        quiet(&mut watcher);
        assert_eq!(watcher.stats().leases, 1);
        assert!(watcher.stats().swap_bytes <= (1 + 16) * 4096);
        peers[49].write_all(b"the last").unwrap();
        let res = next(&mut watcher);
        assert_eq!((res.context, res.data()), (50, &b"the last"[..]));
        drop((lease, res));
        peers[7].write_all(b"another").unwrap();
        let res = next(&mut watcher);
        assert_eq!((res.context, res.data()), (8, &b"another"[..]));
        // Ends come through, too.
        drop(peers);
        for res in collect(&mut watcher, 48) {
            assert!(res.is_eof());
        }
    }

    /// That the pool was used up is counted once for each read that met it.
    fn starved_counts_once(kind: BackendKind) {
        let mut watcher = one_swap_buffer(kind);
        let (conn, mut peer) = connect_to(&mut watcher);
        peer.write_all(&[0; 8 * 4096]).unwrap();
        let held = read_until_dry(&mut watcher, conn);
        let reads = held.len() as u64 + 1; // The last one waits.
        let starved = watcher.stats().swap_starved;
        assert!(1 <= starved && starved <= reads, "{starved} of {reads}");
        quiet(&mut watcher);
        assert_eq!(watcher.stats().swap_starved, starved);
    }

    /// Nor is one forgotten: a connection that waits again and again is counted each time.
    fn starved_counts_each(kind: BackendKind) {
        let mut watcher = one_swap_buffer(kind);
        let (hog, mut hog_peer) = connect_to(&mut watcher);
        let (conn, mut peer) = connect_to(&mut watcher);
        let mut kept = Vec::new();
        for round in 0..4 {
            hog_peer.write_all(&[0; 4096]).unwrap();
            watcher.read("hog", hog, None).unwrap();
            let lease = next(&mut watcher);
            while kept.len() < 2 {
                peer.write_all(&[0; 4096]).unwrap();
                watcher.read("kept", conn, None).unwrap();
                kept.push(next(&mut watcher));
            }
            let before = watcher.stats().swap_starved;
            watcher.read("waits", conn, None).unwrap();
            peer.write_all(b"data").unwrap();
            quiet(&mut watcher);
            assert_eq!(watcher.stats().swap_starved, before + 1, "round {round}");
            drop(lease);
            assert_eq!(next(&mut watcher).data(), b"data");
        }
    }

    /// A read that waited and was cancelled or freed leaves nothing behind: with all buffers back, the
    /// watcher sleeps.
    fn ended_waits_are_forgotten(kind: BackendKind) {
        for frees in [false, true] {
            let mut watcher = one_swap_buffer(kind);
            let (conn, mut peer) = connect_to(&mut watcher);
            peer.write_all(&[0; 8 * 4096]).unwrap();
            let mut held = Vec::new();
            let waits = loop {
                let op = watcher.read((), conn, None).unwrap();
                let new = until_dry(&mut watcher);
                if new.is_empty() && !held.is_empty() {
                    break op;
                }
                held.extend(new);
            };
            assert!(if frees { watcher.free(conn) } else { watcher.cancel(waits) });
            let expected = if frees { ErrorKind::ConnClosed } else { ErrorKind::Cancelled };
            assert_eq!(error_kind(&next(&mut watcher)), Some(expected));
            drop(held);
            quiet(&mut watcher);
            let calls_before = watcher.stats().kernel_calls;
            let count = watcher.wait_io_timeout(&mut Results::new(), 10 * GLANCE);
            let calls = watcher.stats().kernel_calls - calls_before;
            assert_eq!(count, Ok(0));
            assert!(calls <= 10, "{calls} system calls with nothing to do");
        }
    }

    /// Connections that keep what they read wait; what another one gives back, on any thread, lets
    /// them go on, first come first served.
    fn others_give_back(kind: BackendKind) {
        let mut watcher = one_swap_buffer(kind);
        let (hog, mut hog_peer) = connect_to(&mut watcher);
        hog_peer.write_all(&[0; 4096]).unwrap();
        watcher.read(9, hog, None).unwrap();
        let lease = next(&mut watcher);
        let mut kept = Vec::new();
        let mut peers = Vec::new();
        for index in 0..3 {
            let (conn, mut peer) = connect_to(&mut watcher);
            for _ in 0..2 {
                peer.write_all(&[0; 4096]).unwrap();
                watcher.read(index, conn, None).unwrap();
                kept.push(next(&mut watcher));
            }
            peer.write_all(pattern(index, 100)).unwrap();
            watcher.read(index, conn, None).unwrap();
            quiet(&mut watcher);
            peers.push(peer);
        }
        thread::scope(|scope| {
            scope.spawn(|| {
                // Most likely, the watcher sleeps by then.
                thread::sleep(GLANCE);
                drop(lease);
            });
            for (res, index) in collect(&mut watcher, 3).iter().zip(0..) {
                assert_eq!((res.context, res.size, res.error), (index, 100, None));
                assert!(is_pattern(index, res.data()));
            }
        });
    }

    /// A connection that waits since it keeps what it read privately goes on when some of that is back.
    fn own_leases_come_back(kind: BackendKind) {
        let mut watcher = one_swap_buffer(kind);
        let (hog, mut hog_peer) = connect_to(&mut watcher);
        hog_peer.write_all(&[0; 4096]).unwrap();
        watcher.read("hog", hog, None).unwrap();
        let _lease = next(&mut watcher);
        let (conn, mut peer) = connect_to(&mut watcher);
        let mut kept = VecDeque::new();
        for round in 0..5 {
            while kept.len() < 2 {
                peer.write_all(&[0; 4096]).unwrap();
                watcher.read("kept", conn, None).unwrap();
                kept.push_back(next(&mut watcher));
            }
            peer.write_all(pattern(round, 100)).unwrap();
            watcher.read("waits", conn, None).unwrap();
            quiet(&mut watcher);
            thread::scope(|scope| {
                let oldest = kept.pop_front();
                scope.spawn(|| {
                    // Most likely, the watcher sleeps by then.
                    thread::sleep(GLANCE);
                    drop(oldest);
                });
                let res = next(&mut watcher);
                assert_eq!((res.context, res.size, res.error), ("waits", 100, None));
                assert!(is_pattern(round, res.data()));
            });
        }
    }

    /// Of a pipe, too, no more is read than the buffers take; the reads wait for leases.
    fn pool_limit_holds_for_pipes(kind: BackendKind) {
        const SIZE: usize = 4096;
        const ALL: usize = 12 * SIZE;
        let small = builder(kind).swap_buffer_size(SIZE).swap_buffers(2);
        let mut watcher = small.build().unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        write_pattern(&mut writer, 0, ALL); // It takes that much at once.
        let conn = watcher.delegate(reader).unwrap();
        let mut held = read_until_dry(&mut watcher, conn);
        let limit = (2 + 2) * SIZE; // The pool, and what a connection gets privately.
        assert!(watcher.stats().swap_bytes <= limit);
        let mut seen = 0;
        for lease in &held {
            assert!(is_pattern(seen, lease));
            seen += lease.len();
        }
        assert!(seen <= limit, "{seen} bytes");

        held.pop();
        let res = next(&mut watcher); // The read that waited.
        assert!(is_pattern(seen, res.data()) && res.error.is_none());
        seen += res.size;
        let op = watcher.read((), conn, None).unwrap();
        quiet(&mut watcher);
        assert!(watcher.cancel(op), "it waits");
        assert_eq!(
            error_kind(&next(&mut watcher)),
            Some(ErrorKind::Cancelled)
        );

        drop((held, res));
        while seen < ALL {
            watcher.read((), conn, None).unwrap();
            let res = next(&mut watcher);
            assert!(is_pattern(seen, res.data()) && res.error.is_none());
            seen += res.size;
        }
        assert!(watcher.stats().swap_bytes <= limit);
    }
}

fn held_bytes(held: &VecDeque<SwapBuf>) -> usize {
    held.iter().map(|lease| lease.len()).sum()
}

/// A turn in which nothing comes.
fn quiet_for_a_turn<C>(watcher: &mut Watcher<C>) {
    let mut results = Results::new();
    let count = watcher.wait_io_timeout(&mut results, Duration::ZERO);
    assert_eq!(count, Ok(0));
}

/// Writes until the sockets take no more.
fn fill(mut peer: &TcpStream) {
    while peer.write(&[1; 4096]).is_ok() {}
}

/// A watcher whose pool is a single small buffer.
fn one_swap_buffer<C>(kind: BackendKind) -> Watcher<C> {
    let small = builder(kind).swap_buffer_size(4096).swap_buffers(1);
    small.build().unwrap()
}

/// Takes results without an error until none comes any more.
fn until_dry<C>(watcher: &mut Watcher<C>) -> Vec<OpResult<C>> {
    let mut all = Vec::new();
    let mut results = Results::new();
    while watcher.wait_io_timeout(&mut results, GLANCE).unwrap() > 0 {
        all.extend(results.drain());
    }
    assert!(all.iter().all(|res| res.error.is_none() && res.size > 0));
    all
}

/// Reads, and holds what comes, until the pool is dry and a read waits.
fn read_until_dry(watcher: &mut Watcher, conn: Conn) -> Vec<SwapBuf> {
    watcher.read((), conn, None).unwrap();
    let mut new = vec![next(watcher)];
    let mut held = Vec::new();
    while !new.is_empty() {
        held.extend(new.into_iter().map(|res| res.buffer.into_swap().unwrap()));
        watcher.read((), conn, None).unwrap();
        new = until_dry(watcher);
    }
    held
}
