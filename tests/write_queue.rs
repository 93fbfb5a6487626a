//! What is queued to be written: how much it is, its limit, and writes of nothing.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use common::{
    MUCH, PATIENCE, backends, builder, close_and_collect, collect, connected, elsewhere,
    error_kind, listener, next, pair, pattern_vec, quiet, read_exactly, read_pattern, refusing,
    turn, watcher,
};
use gaio::{BackendKind, Conn, ErrorKind, Interest, Operation, Results, Watcher};

/// A connection of a watcher with this limit, and its peer.
fn limited(kind: BackendKind, limit: usize) -> (Watcher<usize>, Conn, TcpStream) {
    let mut watcher = builder(kind).write_limit(limit).build().unwrap();
    let (ours, peer) = pair();
    let conn = watcher.delegate(ours).unwrap();
    (watcher, conn, peer)
}

backends! {
    /// They come in their turn among the others, from wherever they were asked for.
    fn empty_writes_in_order(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.write(0, conn, Vec::with_capacity(64)).unwrap();
        watcher.write(1, conn, "one").unwrap();
        watcher.write_timeout(2, conn, "", PATIENCE).unwrap();
        watcher.write(3, conn, "").unwrap();
        watcher.write(4, conn, "four").unwrap();
        let remote = watcher.remote();
        elsewhere(|| {
            remote.write(5, conn, "").unwrap();
            remote.write_timeout(6, conn, vec![], PATIENCE).unwrap();
            remote.write(7, conn, "seven").unwrap();
        });
        for (res, number) in collect(&mut watcher, 8).into_iter().zip(0..) {
            assert_eq!((res.operation, res.context), (Operation::Write, number));
            assert_eq!((res.error, res.size, res.is_last()), (None, res.buffer.len(), true));
            if number == 0 {
                assert_eq!(res.buffer.into_vec().capacity(), 64, "the buffer comes back");
            }
        }
        read_exactly(&mut peer, b"onefourseven");
        // One attempt, though its time is over.
        watcher.write_timeout(8, conn, "", Duration::ZERO).unwrap();
        let res = next(&mut watcher);
        assert_eq!((res.context, res.error), (8, None));
        quiet(&mut watcher);
    }

    fn empty_writes_call_nobody(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        watcher.shutdown((), conn, Shutdown::Write).unwrap();
        next(&mut watcher);
        // The system would refuse a write of any length.
        let before = watcher.stats();
        for _ in 0..10 {
            watcher.write((), conn, "").unwrap();
            let res = next(&mut watcher);
            assert_eq!((res.error, res.size), (None, 0));
        }
        let after = watcher.stats();
        assert_eq!(after.write_calls, before.write_calls);
        assert_eq!(after.completions, before.completions);
    }

    /// They wait for what is before them, and end as it does.
    fn empty_writes_wait(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        watcher.write(0, conn, vec![0; MUCH]).unwrap();
        let cancelled = watcher.write(1, conn, "").unwrap();
        watcher.write_timeout(2, conn, "", Duration::from_millis(1)).unwrap();
        watcher.write(3, conn, "").unwrap();
        assert!(watcher.cancel(cancelled));
        for (number, why) in [(1, ErrorKind::Cancelled), (2, ErrorKind::Deadline)] {
            let res = next(&mut watcher);
            assert_eq!((res.context, error_kind(&res)), (number, Some(why)));
        }
        quiet(&mut watcher);
        assert!(watcher.free(conn));
        for number in [0, 3] {
            let res = next(&mut watcher);
            assert_eq!((res.context, error_kind(&res)), (number, Some(ErrorKind::ConnClosed)));
        }
    }

    fn empty_writes_wait_for_the_connection(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (_server, to) = listener();
        let conn = watcher.connect(0, to, PATIENCE).unwrap();
        watcher.write(1, conn, "").unwrap();
        let order: Vec<_> = collect(&mut watcher, 2).iter().map(|res| (res.context, res.error)).collect();
        assert_eq!(order, [(0, None), (1, None)]);
        let (_holders, to) = refusing();
        let conn = watcher.connect(2, to, PATIENCE).unwrap();
        watcher.write(3, conn, "").unwrap();
        for res in collect(&mut watcher, 2) {
            assert_eq!(res.error.unwrap().raw_os_error(), Some(libc::ECONNREFUSED));
        }
    }

    fn queued_bytes(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        assert_eq!(watcher.queued_bytes(conn), 0);
        watcher.read(0, conn, vec![0; 500]).unwrap();
        for (number, len) in [(1, 10), (2, 0), (3, 300)] {
            watcher.write(number, conn, vec![7; len]).unwrap();
        }
        assert_eq!(watcher.queued_bytes(conn), 310);
        collect(&mut watcher, 3);
        assert_eq!(watcher.queued_bytes(conn), 0);
        read_exactly(&mut peer, &[7; 310]);

        // More than the sockets take: what the kernel has does not count.
        let ops: Vec<_> = [(4, MUCH), (5, 1_000), (6, 2_000)]
            .map(|(number, len)| watcher.write(number, conn, pattern_vec(0, len)).unwrap())
            .into();
        assert_eq!(watcher.queued_bytes(conn), MUCH + 3_000);
        quiet(&mut watcher);
        let queued = watcher.queued_bytes(conn);
        assert!(queued < MUCH + 3_000 && queued > MUCH / 4, "{queued} bytes");
        assert!(watcher.cancel(ops[1]));
        assert_eq!(next(&mut watcher).context, 5);
        assert_eq!(watcher.queued_bytes(conn), queued - 1_000);
        // What the peer reads makes room for the rest.
        let reader = std::thread::spawn(move || {
            read_pattern(&mut peer, 0, MUCH);
            read_pattern(&mut peer, 0, 2_000);
        });
        assert!(collect(&mut watcher, 2).iter().all(|res| res.error.is_none()));
        assert_eq!(watcher.queued_bytes(conn), 0);
        reader.join().unwrap();
    }

    fn queued_bytes_of_what_has_ended(kind: BackendKind) {
        let (mut watcher, conn, peer) = connected(kind);
        watcher.write(0, conn, vec![0; MUCH]).unwrap();
        watcher.write(1, conn, vec![0; 5_000]).unwrap();
        quiet(&mut watcher);
        assert!(watcher.queued_bytes(conn) > 5_000);
        // A reset ends the first; the second has its own attempt, and ends as well.
        common::reset(peer);
        assert!(collect(&mut watcher, 2).iter().all(|res| res.error.is_some()));
        assert_eq!(watcher.queued_bytes(conn), 0);
        watcher.ready(2, conn, Interest::Writable).unwrap();
        watcher.write(3, conn, "four").unwrap();
        assert_eq!(watcher.queued_bytes(conn), 4);
        assert!(watcher.free(conn));
        assert_eq!(watcher.queued_bytes(conn), 0);
        assert_eq!(watcher.queued_bytes(Conn::NONE), 0);
        collect(&mut watcher, 2);

        let (_server, to) = listener();
        let connecting = watcher.connect(4, to, PATIENCE).unwrap();
        watcher.write(5, connecting, "five5").unwrap();
        assert_eq!(watcher.queued_bytes(connecting), 5);
        close_and_collect(&mut watcher);
        assert_eq!(watcher.queued_bytes(connecting), 0);
    }

    fn write_limit(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = limited(kind, 1_000);
        // The first may be as long as it likes.
        let first = watcher.write(0, conn, vec![0; MUCH]).unwrap();
        let (error, (context, buffer)) = watcher.write(1, conn, vec![5]).unwrap_err().into_parts();
        assert_eq!((error.kind(), context, &buffer[..]), (ErrorKind::WriteLimit, 1, &[5][..]));
        watcher.write(2, conn, "").unwrap();
        quiet(&mut watcher);
        assert!(watcher.write(3, conn, "x").is_err());
        assert!(watcher.cancel(first));
        let taken = next(&mut watcher).size;
        assert_eq!(next(&mut watcher).context, 2);
        read_pattern_of_zeros(&mut peer, taken);

        // Exactly the limit, and not a byte more.
        watcher.write(4, conn, vec![4; 600]).unwrap();
        assert!(watcher.write(5, conn, vec![0; 401]).is_err());
        watcher.write_timeout(6, conn, vec![6; 400], PATIENCE).unwrap();
        assert!(watcher.write(7, conn, "x").is_err());
        assert_eq!(watcher.queued_bytes(conn), 1_000);
        for number in [4, 6] {
            let res = next(&mut watcher);
            assert_eq!((res.context, res.error), (number, None));
        }
        read_exactly(&mut peer, &[vec![4; 600], vec![6; 400]].concat());
        watcher.write(8, conn, vec![0; 1_000]).unwrap();
        assert_eq!(next(&mut watcher).context, 8);
    }

    /// The refusal is the result, and brings the buffer back.
    fn write_limit_for_remotes(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = limited(kind, 10);
        let remote = watcher.remote();
        elsewhere(|| {
            remote.write(0, conn, "eightbyt").unwrap();
            remote.write(1, conn, "nine").unwrap();
            remote.write_timeout(2, conn, "..", PATIENCE).unwrap();
            remote.write(3, conn, "").unwrap();
        });
        let mut all = collect(&mut watcher, 4);
        all.sort_by_key(|res| res.context);
        let kinds: Vec<_> = all.iter().map(error_kind).collect();
        assert_eq!(kinds, [None, Some(ErrorKind::WriteLimit), None, None]);
        assert_eq!((all[1].size, &all[1].buffer[..]), (0, &b"nine"[..]));
        read_exactly(&mut peer, b"eightbyt..");
    }

    /// A peer that does not read is held to the limit, and one that reads is not hindered by it.
    fn write_limit_over_time(kind: BackendKind) {
        const LIMIT: usize = 100_000;
        let (mut watcher, conn, mut peer) = limited(kind, LIMIT);
        let (mut results, mut sent) = (Results::new(), 0);
        while let Ok(op) = watcher.write(0, conn, pattern_vec(sent, 7_000)) {
            sent += 7_000;
            assert!(watcher.queued_bytes(conn) <= LIMIT, "{op:?}");
            watcher.wait_io_timeout(&mut results, Duration::ZERO).unwrap();
        }
        let reader = std::thread::spawn(move || read_pattern(&mut peer, 0, sent + 7_000));
        while watcher.write(0, conn, pattern_vec(sent, 7_000)).is_err() {
            turn(&mut watcher, &mut results);
        }
        while watcher.stats().pending > 0 {
            turn(&mut watcher, &mut results);
        }
        reader.join().unwrap();
    }

    fn no_write_limit_of_nothing(kind: BackendKind) {
        let error = builder::<()>(kind).write_limit(0).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().starts_with("write_limit: "), "{error}");
        let io = std::io::Error::from(limited(kind, 1).0.write(0, Conn::NONE, "").unwrap_err());
        assert_eq!(io.kind(), std::io::ErrorKind::NotConnected);
    }
}

fn read_pattern_of_zeros(peer: &mut TcpStream, len: usize) {
    let mut left = len as u64;
    let mut chunk = vec![1; 1 << 16];
    while left > 0 {
        let want = chunk.len().min(left as usize);
        let got = std::io::Read::read(peer, &mut chunk[..want]).unwrap();
        assert!(got > 0 && chunk[..got].iter().all(|byte| *byte == 0));
        left -= got as u64;
    }
}
