//! Cancelling by direction: all that reads on a connection, or all that writes.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;

use common::{
    MUCH, backends, close_and_collect, collect, connect_to, connected, elsewhere, error_kind,
    is_pattern, listener, next, pattern_vec, quiet, read_pattern, watcher,
};
use gaio::{BackendKind, Conn, Deadline, ErrorKind, Interest, Operation, Shutdown, Watcher};

/// The contexts of the next results, all of which were cancelled.
fn cancelled(watcher: &mut Watcher<usize>, count: usize) -> Vec<usize> {
    let all = collect(watcher, count);
    let is_cancelled = |res| error_kind(res) == Some(ErrorKind::Cancelled);
    assert!(all.iter().all(is_cancelled), "{all:?}");
    all.into_iter().map(|res| res.context).collect()
}

backends! {
    /// They end in order, whether the first runs or not, and the connection goes on.
    fn all_reads(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        for runs in [true, false] {
            watcher.read(0, conn, None).unwrap();
            watcher.read(1, conn, vec![0; 9]).unwrap();
            watcher.ready(2, conn, Interest::Readable).unwrap();
            watcher.read_stream(3, conn).unwrap();
            if runs {
                quiet(&mut watcher);
            }
            watcher.write(4, conn, "out").unwrap();
            assert_eq!(watcher.cancel_reads(conn), 4);
            assert_eq!(watcher.cancel_reads(conn), 0, "they end already");
            let mut all = collect(&mut watcher, 5);
            let write = all.iter().position(|res| res.operation == Operation::Write).unwrap();
            assert_eq!(all.remove(write).error, None);
            assert!(all.iter().map(|res| res.context).eq(0..4));
            assert!(all.iter().all(|res| error_kind(res) == Some(ErrorKind::Cancelled)));
        }
        watcher.read(5, conn, None).unwrap();
        peer.write_all(b"in").unwrap();
        assert_eq!(next(&mut watcher).data(), b"in");
    }

    /// One that was cancelled by its number is not counted again.
    fn one_was_cancelled(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let first = watcher.read(0, conn, None).unwrap();
        watcher.read(1, conn, None).unwrap();
        watcher.read(2, conn, None).unwrap();
        quiet(&mut watcher);
        assert!(watcher.cancel(first));
        assert_eq!(watcher.cancel_reads(conn), 2);
        assert_eq!(cancelled(&mut watcher, 3), [0, 1, 2]);
    }

    /// A stream of reads, and one of accepts.
    fn streams(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.read_stream(0, conn).unwrap();
        peer.write_all(b"step").unwrap();
        assert_eq!(next(&mut watcher).data(), b"step");
        assert_eq!(watcher.cancel_reads(conn), 1);
        assert_eq!(cancelled(&mut watcher, 1), [0]);
        let (listener, _) = listener();
        let listener = watcher.listen(listener).unwrap();
        watcher.accept(1, listener).unwrap();
        quiet(&mut watcher);
        assert_eq!(watcher.cancel_writes(listener), 0);
        assert_eq!(watcher.cancel_reads(listener), 1);
        assert_eq!(cancelled(&mut watcher, 1), [1]);
    }

    /// What the kernel has of them is told, and the bytes of later writes follow directly.
    fn writes_under_way(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let mut start = 0;
        for context in 0..3 {
            watcher.write(context, conn, pattern_vec(start, MUCH)).unwrap();
            start += MUCH;
        }
        watcher.shutdown(3, conn, Shutdown::Write).unwrap();
        watcher.read(9, conn, None).unwrap();
        quiet(&mut watcher);
        assert_eq!(watcher.cancel_writes(conn), 4);
        assert_eq!(watcher.cancel_writes(conn), 0);
        let all = collect(&mut watcher, 4);
        assert!(all.iter().map(|res| res.context).eq(0..4));
        assert!(all.iter().all(|res| error_kind(res) == Some(ErrorKind::Cancelled)));
        let sent: usize = all.iter().map(|res| res.size).sum();
        assert!(all[0].size < MUCH && sent == all[0].size && is_pattern(0, all[0].data()));
        let reader = std::thread::spawn(move || {
            read_pattern(&mut peer, 0, sent + 100);
            peer
        });
        watcher.write(4, conn, pattern_vec(sent, 100)).unwrap();
        let res = next(&mut watcher);
        assert_eq!((res.context, res.error), (4, None));
        drop(reader.join().unwrap());
        assert_eq!(next(&mut watcher).context, 9, "the read was left alone");
    }

    /// Small writes that share one call of the system's end together.
    fn writes_in_one_call(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        watcher.write(0, conn, vec![0; MUCH]).unwrap();
        for context in 1..50 {
            watcher.write(context, conn, vec![0; 10]).unwrap();
        }
        quiet(&mut watcher);
        assert_eq!(watcher.cancel_writes(conn), 50);
        assert!(cancelled(&mut watcher, 50).into_iter().eq(0..50));
        assert_eq!(watcher.queued_bytes(conn), 0);
        assert_eq!(watcher.stats().pending, 0);
    }

    /// A connect, and the write behind it.
    fn connecting(kind: BackendKind) {
        let mut watcher: Watcher<usize> = watcher(kind);
        let (_full, _waiting, address) = {
            let (listener, waiting) = common::full_backlog();
            let address = listener.local_addr().unwrap();
            (listener, waiting, address)
        };
        let conn = watcher.connect(0, address, Deadline::NEVER).unwrap();
        watcher.write(1, conn, "behind it").unwrap();
        quiet(&mut watcher);
        assert_eq!(watcher.cancel_writes(conn), 2);
        assert_eq!(cancelled(&mut watcher, 2), [0, 1]);
    }

    fn handles_that_are_not_good(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let (mut other, foreign, _) = connected::<usize>(kind);
        other.read(0, foreign, None).unwrap();
        watcher.read(1, conn, None).unwrap();
        assert_eq!(watcher.cancel_reads(Conn::NONE), 0);
        assert_eq!(watcher.cancel_reads(foreign), 0);
        assert!(watcher.free(conn));
        assert_eq!(watcher.cancel_reads(conn), 0);
        assert_eq!(error_kind(&next(&mut watcher)), Some(ErrorKind::ConnClosed));
        watcher.close();
        assert_eq!(watcher.cancel_writes(conn), 0);
        assert_eq!(close_and_collect(&mut other).len(), 1);
    }

    /// From another thread, in the order of the other requests.
    fn from_elsewhere(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let (full, _unread) = connect_to(&mut watcher);
        let remote = watcher.remote();
        elsewhere(|| {
            remote.read(0, conn, None).unwrap();
            remote.cancel_reads(conn).unwrap();
            remote.read(1, conn, None).unwrap();
            remote.write(2, full, vec![0; MUCH]).unwrap();
            remote.cancel_writes(full).unwrap();
        });
        let mut contexts = cancelled(&mut watcher, 2);
        contexts.sort();
        assert_eq!(contexts, [0, 2]);
        peer.write_all(b"data").unwrap();
        let res = next(&mut watcher);
        assert_eq!((res.context, res.data()), (1, &b"data"[..]));
        watcher.close();
        assert_eq!(remote.cancel_reads(conn).unwrap_err().kind(), ErrorKind::WatcherClosed);
    }
}
