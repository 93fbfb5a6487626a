//! Cancelling: reads and writes, running, half done or not yet started; done or cancelled, never
//! both (scenario 26).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{
    MUCH, backends, collect, connected, error_kind, is_pattern, next, pattern_vec, quiet,
    read_pattern, watcher,
};
use gaio::{BackendKind, ErrorKind, OpId, Results, Watcher};

backends! {
    fn cancel_read(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        for own in [None, Some(vec![0; 7])] {
            let op = watcher.read("read", conn, own.clone()).unwrap();
            quiet(&mut watcher);
            assert!(watcher.cancel(op));
            let res = next(&mut watcher);
            assert!(!watcher.cancel(op), "finished");
            assert_eq!((res.op, res.context, res.size), (op, "read", 0));
            assert_eq!(error_kind(&res), Some(ErrorKind::Cancelled));
            assert!(res.is_last() && !res.is_eof());
            assert_eq!(res.buffer.recycle(), own, "the buffer comes back");
        }
        watcher.read("again", conn, None).unwrap();
        peer.write_all(b"data").unwrap();
        assert_eq!(next(&mut watcher).data(), b"data");
    }
}

backends! {
    /// A request is known by the number that it got, wherever in its lane it has come to stand, and
    /// its deadline goes along.
    fn cancel_one_that_moved_up(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let never = Duration::from_secs(3600);
        let mut ops = Vec::new();
        for i in 0..4 {
            // The first search makes an index; what follows has to keep it up to date.
            ops.push(watcher.read_timeout(i, conn, vec![0; 2], never).unwrap());
            assert!(!watcher.cancel(gone(kind)), "another watcher's");
        }
        peer.write_all(b"ab").unwrap();
        assert_eq!(next(&mut watcher).data(), b"ab");
        quiet(&mut watcher);
        assert!(!watcher.cancel(ops[0]), "finished");
        assert!(watcher.cancel(ops[1]));
        let res = next(&mut watcher);
        assert_eq!((res.op, error_kind(&res)), (ops[1], Some(ErrorKind::Cancelled)));
        assert!(watcher.cancel(ops[3]));
        let res = next(&mut watcher);
        assert_eq!((res.op, error_kind(&res)), (ops[3], Some(ErrorKind::Cancelled)));
        peer.write_all(b"cd").unwrap();
        let res = next(&mut watcher);
        assert_eq!((res.context, res.data()), (2, &b"cd"[..]));
        assert_eq!(watcher.stats().pending, 0);
    }
}

/// The number of a request that another watcher had.
fn gone(kind: BackendKind) -> OpId {
    let (mut other, conn, _peer) = connected(kind);
    other.read((), conn, None).unwrap()
}

/// Runs the watcher until the peer has something to read.
fn until_peer_has_data<C>(watcher: &mut Watcher<C>, peer: &TcpStream) {
    peer.set_nonblocking(true).unwrap();
    while peer.peek(&mut [0]).is_err() {
        let count = watcher.wait_io_timeout(&mut Results::new(), Duration::from_millis(1));
        assert_eq!(count, Ok(0), "it does not fit");
    }
    peer.set_nonblocking(false).unwrap();
}

backends! {
    fn cancel_write_half_sent(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let op = watcher.write((), conn, pattern_vec(0, MUCH)).unwrap();
        until_peer_has_data(&mut watcher, &peer);
        assert!(watcher.cancel(op));
        let res = next(&mut watcher);
        assert_eq!(error_kind(&res), Some(ErrorKind::Cancelled));
        let sent = res.size;
        assert!(0 < sent && sent < MUCH, "{sent} bytes");
        assert!(
            res.buffer.len() == MUCH && is_pattern(0, &res.buffer),
            "it comes back whole"
        );
        watcher.write((), conn, "end").unwrap();
        watcher.shutdown((), conn, Shutdown::Write).unwrap();
        let reader = thread::spawn(move || {
            read_pattern(&mut peer, 0, sent);
            let mut rest = String::new();
            peer.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "end");
        });
        assert!(
            collect(&mut watcher, 2)
                .iter()
                .all(|res| res.error.is_none())
        );
        reader.join().unwrap();
    }
}

backends! {
    /// A byte is sent while its read is cancelled: the read gets it, or the next one does.
    fn cancel_race(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let (send, go) = mpsc::channel();
        let sender = thread::spawn(move || {
            while let Ok(byte) = go.recv() {
                peer.write_all(&[byte]).unwrap();
            }
        });
        for round in 0..10_000_usize {
            let op = watcher.read(round, conn, None).unwrap();
            if round % 2 == 0 {
                let count = watcher.wait_io_timeout(&mut Results::new(), Duration::ZERO);
                assert_eq!(count, Ok(0)); // The read is with the kernel now.
            }
            send.send(round as u8).unwrap();
            for _ in 0..round % 64 * 20 {
                std::hint::spin_loop();
            }
            let cancelled = watcher.cancel(op);
            let mut res = next(&mut watcher);
            assert_eq!(res.op, op);
            if res.error.is_some() {
                assert!(cancelled);
                assert_eq!(error_kind(&res), Some(ErrorKind::Cancelled));
                assert_eq!(res.size, 0);
                watcher.read(round, conn, None).unwrap();
                res = next(&mut watcher);
            }
            assert_eq!((res.context, res.data()), (round, &[round as u8][..]));
        }
        drop(send);
        sender.join().unwrap();
    }

    fn cancel_queued_not_started(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.read("first", conn, None).unwrap();
        let queued = watcher.read("queued", conn, vec![0; 3]).unwrap();
        watcher.read("last", conn, None).unwrap();
        assert!(watcher.cancel(queued));
        let res = next(&mut watcher);
        assert_eq!(
            (res.context, error_kind(&res)),
            ("queued", Some(ErrorKind::Cancelled))
        );
        for (context, data) in [("first", b"1"), ("last", b"2")] {
            peer.write_all(data).unwrap();
            let res = next(&mut watcher);
            assert_eq!((res.context, res.data()), (context, &data[..]));
        }
    }

    /// The first is ending, but the one between is not: the last does not wait for that one.
    fn cancel_around_one_that_stays(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let ops = [0, 1, 2].map(|context| watcher.read(context, conn, None).unwrap());
        quiet(&mut watcher);
        assert!(watcher.cancel(ops[0]) && watcher.cancel(ops[2]));
        let mut ended = collect(&mut watcher, 2);
        ended.sort_by_key(|res| res.context);
        for (res, context) in ended.iter().zip([0, 2]) {
            assert_eq!((res.context, error_kind(res)), (context, Some(ErrorKind::Cancelled)));
        }
        peer.write_all(b"for the one").unwrap();
        let res = next(&mut watcher);
        assert_eq!((res.context, res.data()), (1, &b"for the one"[..]));
    }

    fn unstarted_read_gives_back_nothing_read(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        watcher.read("first", conn, vec![7; 10]).unwrap();
        let queued = watcher.read("queued", conn, vec![7; 10]).unwrap();
        quiet(&mut watcher);
        assert!(watcher.cancel(queued));
        let res = next(&mut watcher);
        assert_eq!(
            (res.context, error_kind(&res)),
            ("queued", Some(ErrorKind::Cancelled))
        );
        assert_eq!((res.size, &*res.buffer), (0, &b""[..]));
        assert_eq!(res.buffer.recycle(), Some(vec![7; 10]));
    }

    fn cancel_queued_write_leaves_no_byte(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.write("first", conn, pattern_vec(0, MUCH)).unwrap();
        let queued = watcher.write("queued", conn, "never").unwrap();
        watcher.write("last", conn, "end").unwrap();
        until_peer_has_data(&mut watcher, &peer);
        assert!(watcher.cancel(queued));
        let res = next(&mut watcher);
        assert_eq!((res.context, res.size), ("queued", 0));
        assert_eq!(error_kind(&res), Some(ErrorKind::Cancelled));
        let reader = thread::spawn(move || {
            read_pattern(&mut peer, 0, MUCH);
            let mut end = [0; 3];
            peer.read_exact(&mut end).unwrap();
            assert_eq!(&end, b"end");
        });
        let done = collect(&mut watcher, 2);
        assert_eq!((done[0].context, done[0].size), ("first", MUCH));
        assert_eq!((done[1].context, done[1].size), ("last", 3));
        reader.join().unwrap();
    }

    fn cancel_unknown(kind: BackendKind) {
        let mut mine = watcher(kind);
        let (mut other, conn, mut peer) = connected(kind);
        let finished = mine.timer((), Duration::ZERO).unwrap();
        next(&mut mine);
        assert!(!mine.cancel(finished));
        let foreign = other.read((), conn, None).unwrap();
        assert!(!mine.cancel(foreign));
        peer.write_all(b"still there").unwrap();
        assert_eq!(next(&mut other).data(), b"still there");
    }
}
