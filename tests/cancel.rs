//! Cancelling: reads and writes, running, half done or not yet started; done or cancelled, never
//! both.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::{
    GLANCE, MUCH, backends, builder, collect, connect_to, connected, error_kind, is_pattern, next,
    pattern_vec, quiet, read_pattern, watcher,
};
use gaio::{BackendKind, Conn, Deadline, ErrorKind, OpId, Results, Watcher};

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
    /// A long wait is found beside thousands of short ones: once younger requests have taken its place
    /// in the index, and once the index has grown and shrunk.
    fn cancel_one_that_waited_long(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let [idle, later] = [0, 1].map(|ctx| watcher.read(ctx, conn, None).unwrap());
        let soon = watcher.timer(1, Duration::ZERO).unwrap();
        assert_eq!(next(&mut watcher).op, soon);
        assert!(!watcher.cancel(soon), "finished");
        for _ in 0..3_000 {
            watcher.timer(1, Duration::ZERO).unwrap();
            next(&mut watcher);
        }
        assert!(watcher.cancel(idle));
        assert_eq!(next(&mut watcher).op, idle);
        let late: Vec<OpId> = (0..3_000)
            .map(|_| watcher.timer(2, Deadline::NEVER).unwrap())
            .collect();
        for &op in &late[1..] {
            assert!(watcher.cancel(op));
        }
        collect(&mut watcher, late.len() - 1);
        for op in [later, late[0]] {
            assert!(watcher.cancel(op));
            let res = next(&mut watcher);
            assert_eq!((res.op, error_kind(&res)), (op, Some(ErrorKind::Cancelled)));
        }
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

/// A connection, or a pipe to read from, and what writes to it.
fn connect_or_pipe<C>(watcher: &mut Watcher<C>, pipe: bool) -> (Conn, Box<dyn Write>) {
    if pipe {
        let (reader, writer) = std::io::pipe().unwrap();
        (watcher.delegate(reader).unwrap(), Box::new(writer))
    } else {
        let (conn, peer) = connect_to(watcher);
        (conn, Box::new(peer))
    }
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

    /// Requests of a lane that were all cancelled end in the order in which they were accepted: the
    /// first, which runs, before those that only wait.
    fn cancelled_end_in_order(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let ops = [0, 1, 2, 3].map(|context| watcher.read(context, conn, None).unwrap());
        quiet(&mut watcher);
        for op in ops {
            assert!(watcher.cancel(op));
        }
        let ended = collect(&mut watcher, 4);
        let order = ended.iter().map(|res| (res.context, error_kind(res)));
        assert!(order.eq((0..4).map(|context| (context, Some(ErrorKind::Cancelled)))));
    }

    /// So do writes of which some run in one call and others wait behind them, in whatever order they
    /// are cancelled.
    fn cancelled_writes_end_in_order(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let huge = watcher.write(0, conn, pattern_vec(0, MUCH)).unwrap();
        let mut ops = vec![huge];
        ops.extend((1..5).map(|context| watcher.write(context, conn, "together").unwrap()));
        until_peer_has_data(&mut watcher, &peer);
        ops.extend((5..9).map(|context| watcher.write(context, conn, "later").unwrap()));
        for op in [4, 2, 5, 6, 7, 1] {
            assert!(watcher.cancel(ops[op]));
        }
        let ended = collect(&mut watcher, 6);
        let order = ended.iter().map(|res| (res.context, res.size, error_kind(res)));
        let expected = [1, 2, 4, 5, 6, 7].map(|context| (context, 0, Some(ErrorKind::Cancelled)));
        assert!(order.eq(expected), "{ended:?}");
        let reader = thread::spawn(move || {
            read_pattern(&mut peer, 0, MUCH);
            let mut rest = [0; 13];
            peer.read_exact(&mut rest).unwrap();
            assert_eq!(&rest, b"togetherlater");
        });
        for (res, context) in collect(&mut watcher, 3).iter().zip([0, 3, 8]) {
            assert_eq!((res.context, res.error), (context, None));
        }
        reader.join().unwrap();
    }

    /// Reads are cancelled when their data is there, but unseen, some of them twice. Each ends one way
    /// or the other, and leaves nothing to do: the watcher sleeps.
    fn cancelled_too_late(kind: BackendKind) {
        const READS: usize = 40;
        let mut watcher = watcher(kind);
        for _ in 0..4 {
            let mut ops = Vec::new();
            let mut peers: Vec<_> = (0..READS)
                .map(|index| {
                    let (conn, peer) = connect_to(&mut watcher);
                    let buffer = (index % 4 == 0).then(|| vec![0; 4]);
                    ops.push((watcher.read(index, conn, buffer).unwrap(), conn));
                    peer
                })
                .collect();
            quiet(&mut watcher);
            for peer in &mut peers[..READS / 2] {
                peer.write_all(b"data").unwrap();
            }
            // Room for one; what else has come is left where it is.
            let first = next(&mut watcher);
            for (index, &(op, conn)) in ops.iter().enumerate() {
                assert_eq!(watcher.cancel(op), index != first.context);
                assert!(index % 2 == 0 || watcher.free(conn));
            }
            for res in collect(&mut watcher, READS - 1) {
                let expected = match res.context % 2 {
                    0 => ErrorKind::Cancelled,
                    _ => ErrorKind::ConnClosed,
                };
                let error = error_kind(&res);
                assert!(res.data() == b"data" || error == Some(expected), "{res:?}");
            }
        }
        let calls_before = watcher.stats().kernel_calls;
        let count = watcher.wait_io_timeout(&mut Results::new(), 10 * GLANCE);
        let calls = watcher.stats().kernel_calls - calls_before;
        assert_eq!(count, Ok(0));
        assert!(calls <= 10, "{calls} system calls with nothing to do");
    }

    /// A swap read is cancelled when there is data for it, unseen, but no buffer; be it one that would
    /// get a private buffer, or one whose connection has as many as it may.
    fn cancelled_without_a_buffer(kind: BackendKind) {
        const SIZE: usize = 4096;
        for (pipe, kept) in [(false, 0), (false, 2), (true, 0), (true, 2)] {
            let small = builder(kind).swap_buffer_size(SIZE).swap_buffers(1);
            let mut watcher = small.build().unwrap();
            let (hog, mut hog_peer) = connect_to(&mut watcher);
            hog_peer.write_all(&[0; SIZE]).unwrap();
            watcher.read("hog", hog, None).unwrap();
            let mut leases = vec![next(&mut watcher)];
            let (other, mut other_peer) = connect_to(&mut watcher);
            let (conn, mut peer) = connect_or_pipe(&mut watcher, pipe);
            for _ in 0..kept {
                peer.write_all(&[1; SIZE]).unwrap();
                watcher.read("kept", conn, None).unwrap();
                leases.push(next(&mut watcher));
                assert_eq!(leases[leases.len() - 1].size, SIZE);
            }
            watcher.read("other", other, vec![0; 8]).unwrap();
            let op = watcher.read("no buffer", conn, None).unwrap();
            quiet(&mut watcher);
            other_peer.write_all(b"first").unwrap();
            peer.write_all(b"data").unwrap();
            assert_eq!(next(&mut watcher).context, "other");
            assert!(watcher.cancel(op));
            let res = next(&mut watcher);
            assert_eq!((res.op, res.size), (op, 0), "pipe: {pipe}, kept: {kept}");
            assert_eq!(error_kind(&res), Some(ErrorKind::Cancelled));
            drop(leases);
            watcher.read("again", conn, None).unwrap();
            assert_eq!(next(&mut watcher).data(), b"data");
        }
    }

    /// A read is cancelled when its data was there, unseen, but somebody else has taken it.
    fn cancelled_after_others_took_the_data(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (reader, mut writer) = std::io::pipe().unwrap();
        let mut thief = reader.try_clone().unwrap();
        let conn = watcher.delegate(reader).unwrap();
        let (other, mut other_peer) = connect_to(&mut watcher);
        for own in [None, Some(vec![0; 4])] {
            watcher.read("other", other, vec![0; 8]).unwrap();
            let op = watcher.read("too late", conn, own).unwrap();
            quiet(&mut watcher);
            other_peer.write_all(b"first").unwrap();
            writer.write_all(b"data").unwrap();
            assert_eq!(next(&mut watcher).context, "other");
            thief.read_exact(&mut [0; 4]).unwrap();
            assert!(watcher.cancel(op));
            let res = next(&mut watcher);
            assert_eq!((res.op, res.size), (op, 0));
            assert_eq!(error_kind(&res), Some(ErrorKind::Cancelled));
        }
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
