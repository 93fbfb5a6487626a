//! Writes of several buffers as one.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Read;
use std::time::Duration;

use common::{
    MUCH, PATIENCE, backends, builder, close_and_collect, collect, connected, elsewhere,
    error_kind, listener, next, pair, pattern_vec, quiet, read_exactly, read_pattern, watcher,
};
use gaio::bytes::Bytes;
use gaio::{BackendKind, Buffer, Conn, Deadline, ErrorKind, Operation, Watcher};

/// The parts of "head vvvbytes", in every form.
fn parts() -> Vec<Buffer> {
    vec![
        "head ".into(),
        vec![b'v'; 3].into(),
        Buffer::EMPTY,
        Bytes::from_static(b"bytes").into(),
        "".into(),
    ]
}

fn lens(parts: &[Buffer]) -> Vec<usize> {
    parts.iter().map(|part| part.len()).collect()
}

/// The pattern, cut into parts of these lengths in turn.
fn pattern_in_parts(len: usize, lens: &[usize]) -> Vec<Buffer> {
    let all = Bytes::from(pattern_vec(0, len));
    let (mut parts, mut at) = (Vec::new(), 0);
    for &most in lens.iter().cycle() {
        let end = (at + most).min(len);
        parts.push(all.slice(at..end).into());
        at = end;
        if at == len {
            break;
        }
    }
    parts
}

backends! {
    fn one_write_among_others(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.write(0, conn, "before ").unwrap();
        watcher.write_vectored(1, conn, parts(), Deadline::NEVER).unwrap();
        watcher.write(2, conn, " after ").unwrap();
        watcher.write_vectored(3, conn, parts(), PATIENCE).unwrap();
        let remote = watcher.remote();
        elsewhere(|| remote.write_vectored(4, conn, parts(), PATIENCE).map(drop).unwrap());
        for (res, number) in collect(&mut watcher, 5).into_iter().zip(0..) {
            assert_eq!((res.operation, res.context, res.error), (Operation::Write, number, None));
            assert_eq!(res.size, [7, 13, 7, 13, 13][number]);
            if let 1 | 3 | 4 = number {
                assert_eq!((res.data(), res.is_swap_buffer()), (&[][..], false));
                assert_eq!(lens(&res.buffer.into_parts()), [5, 3, 0, 5, 0]);
            } else {
                assert_eq!(lens(&res.buffer.into_parts()), [7]);
            }
        }
        read_exactly(&mut peer, b"before head vvvbytes after head vvvbyteshead vvvbytes");
    }

    /// A buffer in parts can be written again, alone or as a part.
    fn parts_of_parts(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.write_vectored((), conn, parts(), Deadline::NEVER).unwrap();
        let buffer = next(&mut watcher).buffer;
        watcher.write((), conn, buffer).unwrap();
        let res = next(&mut watcher);
        assert_eq!((res.size, res.error), (13, None));
        let nested = vec!["<".into(), res.buffer, ">".into()];
        watcher.write_vectored((), conn, nested, Deadline::NEVER).unwrap();
        let res = next(&mut watcher);
        assert_eq!((res.size, res.buffer.is_empty()), (15, true));
        assert_eq!(res.buffer.into_vec(), b"<head vvvbytes>");
        read_exactly(&mut peer, b"head vvvbyteshead vvvbytes<head vvvbytes>");
        watcher.write_vectored((), conn, parts(), Deadline::NEVER).unwrap();
        assert_eq!(next(&mut watcher).buffer.into_bytes()[..], *b"head vvvbytes");
    }

    fn nothing_in_parts(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        watcher.write_vectored(0, conn, vec![], Deadline::NEVER).unwrap();
        watcher.write_vectored(1, conn, vec!["".into(), vec![].into()], Deadline::NEVER).unwrap();
        for (res, count) in collect(&mut watcher, 2).into_iter().zip([0, 2]) {
            assert_eq!((res.operation, res.size, res.error), (Operation::Write, 0, None));
            assert_eq!(res.buffer.into_parts().len(), count);
        }
        assert_eq!(watcher.stats().write_calls, 0);
    }

    /// More parts than one call takes.
    fn many_parts(kind: BackendKind) {
        const LEN: usize = 300_000;
        let (mut watcher, conn, mut peer) = connected(kind);
        let reader = std::thread::spawn(move || {
            read_pattern(&mut peer, 0, LEN);
            read_exactly(&mut peer, b"behind");
        });
        let parts = pattern_in_parts(LEN, &[1, 0, 2, 3, 4, 5]);
        let expected = lens(&parts);
        assert!(parts.len() > 100_000);
        watcher.write_vectored((), conn, parts, PATIENCE).unwrap();
        watcher.write((), conn, "behind").unwrap();
        let res = next(&mut watcher);
        assert_eq!((res.size, res.error), (LEN, None));
        assert_eq!(lens(&res.buffer.into_parts()), expected);
        assert_eq!(next(&mut watcher).size, 6);
        reader.join().unwrap();
    }

    fn as_few_calls_as_possible(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let parts = pattern_in_parts(2_100, &[1]);
        watcher.write_vectored((), conn, parts, Deadline::NEVER).unwrap();
        assert_eq!(next(&mut watcher).size, 2_100);
        read_pattern(&mut peer, 0, 2_100);
        let stats = watcher.stats();
        assert_eq!(stats.write_calls, if kind == BackendKind::IoUring { 0 } else { 3 });
        assert_eq!(stats.completions, 3);
    }

    /// What did not fit goes on in the middle of a part.
    fn more_than_the_socket_takes(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let parts = pattern_in_parts(MUCH, &[1, 1_000_000, 0, 777, 12]);
        watcher.write_vectored((), conn, parts, Deadline::NEVER).unwrap();
        watcher.write_vectored((), conn, vec!["behind".into()], Deadline::NEVER).unwrap();
        assert_eq!(watcher.queued_bytes(conn), MUCH + 6);
        quiet(&mut watcher);
        let queued = watcher.queued_bytes(conn);
        assert!(queued > MUCH / 4 && queued < MUCH, "{queued} bytes");
        let reader = std::thread::spawn(move || {
            read_pattern(&mut peer, 0, MUCH);
            read_exactly(&mut peer, b"behind");
        });
        assert_eq!(next(&mut watcher).size, MUCH);
        assert_eq!(next(&mut watcher).size, 6);
        assert_eq!(watcher.queued_bytes(conn), 0);
        reader.join().unwrap();
    }

    fn ended_half_way(kind: BackendKind) {
        for by_deadline in [false, true] {
            let (mut watcher, conn, mut peer) = connected(kind);
            let parts = || pattern_in_parts(MUCH, &[100_000, 3]);
            let deadline = if by_deadline { Duration::from_millis(30).into() } else { Deadline::NEVER };
            let op = watcher.write_vectored(0, conn, parts(), deadline).unwrap();
            let queued = watcher.write_vectored(1, conn, parts(), Deadline::NEVER).unwrap();
            watcher.write_vectored(2, conn, vec!["ta".into(), "il".into()], Deadline::NEVER).unwrap();
            if !by_deadline {
                quiet(&mut watcher);
                assert!(watcher.cancel(op));
            }
            let res = next(&mut watcher);
            let why = if by_deadline { ErrorKind::Deadline } else { ErrorKind::Cancelled };
            assert_eq!((res.context, error_kind(&res)), (0, Some(why)));
            assert!(res.size > 0 && res.size < MUCH, "{} bytes", res.size);
            assert_eq!(res.buffer.into_parts().len(), parts().len());
            // One that has not begun ends with no byte; what is behind it goes on.
            assert!(watcher.cancel(queued));
            let res2 = next(&mut watcher);
            assert_eq!((res2.context, res2.error.unwrap().kind()), (1, ErrorKind::Cancelled));
            let sent = [res.size, res2.size];
            let reader = std::thread::spawn(move || {
                for len in sent {
                    read_pattern(&mut peer, 0, len);
                }
                read_exactly(&mut peer, b"tail");
                peer
            });
            assert_eq!(next(&mut watcher).size, 4);
            reader.join().unwrap();
        }
    }

    fn freed_and_closed_half_way(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.write_vectored((), conn, pattern_in_parts(MUCH, &[9_999]), Deadline::NEVER).unwrap();
        quiet(&mut watcher);
        assert!(watcher.free(conn));
        let res = next(&mut watcher);
        assert_eq!(error_kind(&res), Some(ErrorKind::ConnClosed));
        read_pattern(&mut peer, 0, res.size);
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "more than the result says");

        let (ours, _peer) = pair();
        let conn = watcher.delegate(ours).unwrap();
        watcher.write_vectored((), conn, pattern_in_parts(MUCH, &[9_999]), Deadline::NEVER).unwrap();
        quiet(&mut watcher);
        assert_eq!(close_and_collect(&mut watcher).len(), 1);

        // A drop, while the kernel has the parts.
        let (mut watcher, conn, _peer) = connected(kind);
        watcher.write_vectored((), conn, pattern_in_parts(MUCH, &[9_999]), Deadline::NEVER).unwrap();
        quiet(&mut watcher);
    }

    fn limit(kind: BackendKind) {
        let mut watcher: Watcher<usize> = builder(kind).write_limit(26).build().unwrap();
        let (ours, mut peer) = pair();
        let conn = watcher.delegate(ours).unwrap();
        watcher.write_vectored(0, conn, parts(), Deadline::NEVER).unwrap();
        watcher.write_vectored(1, conn, parts(), Deadline::NEVER).unwrap();
        let refused = watcher.write_vectored(2, conn, vec!["".into(), "x".into()], Deadline::NEVER);
        let (error, (context, came_back)) = refused.unwrap_err().into_parts();
        assert_eq!((error.kind(), context, lens(&came_back)), (ErrorKind::WriteLimit, 2, vec![0, 1]));
        let remote = watcher.remote();
        elsewhere(|| remote.write_vectored(3, conn, parts(), Deadline::NEVER).map(drop).unwrap());
        for _ in 0..3 {
            let res = next(&mut watcher);
            if res.context == 3 && res.error.is_some() {
                assert_eq!(error_kind(&res), Some(ErrorKind::WriteLimit));
                assert_eq!(res.buffer.into_parts().len(), 5);
            } else {
                assert_eq!((res.size, res.error), (13, None));
            }
        }
        read_exactly(&mut peer, b"head vvvbyteshead vvvbytes");
    }

    fn refused(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let listener = watcher.listen(listener().0).unwrap();
        for (conn, why) in [(Conn::NONE, ErrorKind::ConnClosed), (listener, ErrorKind::WrongKind)] {
            let refused = watcher.write_vectored("context", conn, parts(), PATIENCE);
            let (error, (context, came_back)) = refused.unwrap_err().into_parts();
            assert_eq!((error.kind(), context), (why, "context"));
            assert_eq!(lens(&came_back), [5, 3, 0, 5, 0]);
        }
        let remote = watcher.remote();
        drop(watcher);
        let refused = remote.write_vectored("context", Conn::NONE, parts(), PATIENCE);
        let (error, (context, came_back)) = refused.unwrap_err().into_parts();
        assert_eq!((error.kind(), context), (ErrorKind::WatcherClosed, "context"));
        assert_eq!(lens(&came_back), [5, 3, 0, 5, 0]);
    }

    fn into_a_pipe(kind: BackendKind) {
        const LEN: usize = 3 << 20;
        let (mut from, to) = std::io::pipe().unwrap();
        let mut watcher = watcher(kind);
        let conn = watcher.delegate(to).unwrap();
        watcher.write_vectored((), conn, pattern_in_parts(LEN, &[700, 0, 1]), Deadline::NEVER).unwrap();
        quiet(&mut watcher);
        let reader = std::thread::spawn(move || read_pattern(&mut from, 0, LEN));
        let res = next(&mut watcher);
        assert_eq!((res.size, res.error), (LEN, None));
        reader.join().unwrap();
    }
}
