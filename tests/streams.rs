//! Streams of reads: one request, many results, and back-pressure by leases.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;
use std::thread;
use std::time::Duration;

use common::{
    GLANCE, PATIENCE, backends, builder, connect_to, connected, error_kind, is_pattern, next,
    quiet, turn, write_pattern,
};
use gaio::{BackendKind, Conn, ErrorKind, Operation, Results, Watcher};

/// Takes what a stream of reads brings until its last result; returns the bytes and that result's
/// error.
fn until_last(watcher: &mut Watcher<Conn>, arrived: &mut Vec<u8>) -> (usize, Option<ErrorKind>) {
    let mut results = Results::new();
    let mut count = 0;
    loop {
        turn(watcher, &mut results);
        for res in results.drain() {
            assert!(res.context == res.conn && res.operation == Operation::Read);
            arrived.extend_from_slice(res.data());
            count += 1;
            if res.is_last() {
                assert!(res.size == 0, "the end brings no bytes");
                assert!(res.is_eof() || res.error.is_some());
                return (count, error_kind(&res));
            }
            assert!(res.size > 0 && res.error.is_none() && res.is_swap_buffer());
        }
    }
}

backends! {
    fn read_stream(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.read_stream(conn, conn).unwrap();
        let sender = thread::spawn(move || write_pattern(&mut peer, 0, 16 << 20));
        let mut arrived = Vec::new();
        let (count, error) = until_last(&mut watcher, &mut arrived);
        assert!(error.is_none() && count > 2, "{count} results, {error:?}");
        assert!(arrived.len() == 16 << 20 && is_pattern(0, &arrived));
        sender.join().unwrap();
        assert_eq!(watcher.stats().pending, 0);
    }

    fn read_stream_cancel(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let op = watcher.read_stream(conn, conn).unwrap();
        peer.write_all(b"before").unwrap();
        let mut arrived = Vec::new();
        while arrived != b"before" {
            let res = next(&mut watcher);
            assert!(res.op == op && !res.is_last());
            arrived.extend_from_slice(res.data());
        }
        assert!(watcher.cancel(op));
        let (_, error) = until_last(&mut watcher, &mut arrived);
        assert_eq!(error, Some(ErrorKind::Cancelled));
        assert!(!watcher.cancel(op));
        peer.write_all(b"after").unwrap();
        quiet(&mut watcher);
        watcher.read_full(conn, conn, vec![0; 5], PATIENCE).unwrap();
        assert_eq!(next(&mut watcher).data(), b"after");
    }

    fn read_stream_freed(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        watcher.read_stream(conn, conn).unwrap();
        quiet(&mut watcher);
        assert!(watcher.free(conn));
        let (count, error) = until_last(&mut watcher, &mut Vec::new());
        assert_eq!((count, error), (1, Some(ErrorKind::ConnClosed)));
    }

    /// Requests that queue behind a stream that waits for leases do not make it read on.
    fn paused_stream_stays_paused(kind: BackendKind) {
        const SIZE: usize = 1024;
        let builder = builder(kind).swap_buffer_size(SIZE).swap_buffers(256);
        let mut watcher = builder.stream_window(4 * SIZE).build().unwrap();
        let (conn, mut peer) = connect_to(&mut watcher);
        let stream = watcher.read_stream(conn, conn).unwrap();
        write_pattern(&mut peer, 0, 24 * SIZE); // The sockets of any system take that much at once.
        let mut held = Vec::new();
        let mut results = Results::new();
        while watcher.wait_io_timeout(&mut results, GLANCE).unwrap() > 0 {
            held.extend(results.drain());
        }
        let bytes: usize = held.iter().map(|res| res.size).sum();
        for _ in 0..50 {
            watcher.read(conn, conn, vec![0; 10]).unwrap();
            watcher
                .wait_io_timeout(&mut results, GLANCE / 10)
                .unwrap();
            held.extend(results.drain());
        }
        let more = held.iter().map(|res| res.size).sum::<usize>() - bytes;
        assert!(more <= SIZE, "{more} bytes more than {bytes}");
        assert!(held.iter().all(|res| res.op == stream && res.error.is_none()));
    }

    /// Leases that are dropped on another thread wake the watcher that sleeps meanwhile.
    fn paused_stream_is_woken(kind: BackendKind) {
        const SIZE: usize = 1024;
        let builder = builder(kind).swap_buffer_size(SIZE).swap_buffers(256);
        let mut watcher = builder.stream_window(4 * SIZE).build().unwrap();
        let (conn, mut peer) = connect_to(&mut watcher);
        watcher.read_stream(conn, conn).unwrap();
        write_pattern(&mut peer, 0, 24 * SIZE);
        let mut held = vec![next(&mut watcher)];
        let mut results = Results::new();
        while watcher.wait_io_timeout(&mut results, GLANCE).unwrap() > 0 {
            held.extend(results.drain());
        }
        let seen: usize = held.iter().map(|res| res.size).sum();
        assert!(seen < 24 * SIZE, "it did not pause");
        thread::scope(|scope| {
            scope.spawn(|| {
                // Most likely, the watcher sleeps by then.
                thread::sleep(GLANCE);
                drop(held);
            });
            let mut results = Results::with_capacity(1);
            turn(&mut watcher, &mut results);
            let res = results.pop().unwrap();
            assert!(res.size > 0 && is_pattern(seen, res.data()));
        });
    }

    /// The end of a pause is no result, and no reason to give none: others may have something.
    fn pausing_hides_nobody(kind: BackendKind) {
        let mut watcher = builder(kind).stream_window(1000).build().unwrap();
        let (stream, mut peer) = connect_to(&mut watcher);
        let (other, mut other_peer) = connect_to(&mut watcher);
        watcher.read_stream(stream, stream).unwrap();
        watcher.read(other, other, None).unwrap();
        quiet(&mut watcher);
        peer.write_all(&[1; 2000]).unwrap();
        // With room for no more than what makes it pause.
        let held = next(&mut watcher);
        assert_eq!((held.context, held.size), (stream, 2000));
        other_peer.write_all(b"here").unwrap();
        thread::sleep(GLANCE);
        let mut results = Results::new();
        let count = watcher.wait_io_timeout(&mut results, Duration::ZERO);
        assert_eq!(count, Ok(1));
        assert_eq!(results.pop().unwrap().data(), b"here");
    }

    /// Nobody drops leases: the stream stops within its window, another connection goes on, and all
    /// bytes arrive once the leases are dropped.
    fn read_stream_back_pressure(kind: BackendKind) {
        const WINDOW: usize = 64 << 10;
        const SWAP_BYTES: usize = 256 * (8 << 10);
        const ALL: usize = 24 << 20;
        let builder = builder(kind).swap_buffer_size(8 << 10).swap_buffers(256);
        let mut watcher = builder.stream_window(WINDOW).build().unwrap();
        let (conn, mut peer) = connect_to(&mut watcher);
        let (other, mut other_peer) = connect_to(&mut watcher);
        watcher.read_stream(conn, conn).unwrap();
        let sender = thread::spawn(move || write_pattern(&mut peer, 0, ALL));

        let mut held = vec![next(&mut watcher)];
        let mut results = Results::new();
        while watcher.wait_io_timeout(&mut results, GLANCE).unwrap() > 0 {
            held.extend(results.drain());
            let bytes: usize = held.iter().map(|res| res.size).sum();
            // Above the window by no more than what was under way.
            assert!(bytes <= 3 * WINDOW, "{bytes} bytes leased");
            assert!(watcher.stats().swap_bytes <= SWAP_BYTES);
        }
        assert!(!sender.is_finished());
        watcher.read(other, other, None).unwrap();
        other_peer.write_all(b"not me").unwrap();
        assert_eq!(next(&mut watcher).data(), b"not me");

        let mut arrived = Vec::new();
        held.drain(..)
            .for_each(|res| arrived.extend_from_slice(res.data()));
        let (_, error) = until_last(&mut watcher, &mut arrived);
        assert!(error.is_none() && arrived.len() == ALL && is_pattern(0, &arrived));
        sender.join().unwrap();
    }
}
