//! Files that are sent without a copy of the whole in memory.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "common/heap.rs"]
#[allow(dead_code)] // Only the bytes are looked at.
mod heap;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::{
    PATIENCE, backends, builder, collect, connect_to, connected, elsewhere, error_kind, listener,
    next, quiet, read_exactly, read_pattern, watcher, write_pattern,
};
use gaio::{BackendKind, Conn, Deadline, ErrorKind, Operation, Watcher};
use heap::Heap;

/// More than the buffers of two sockets take.
const LONG: usize = 64 << 20;

/// A file of this much of the pattern, without a name.
fn file(len: usize) -> Arc<File> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("gaio-send-file-{}-{number}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let mut options = OpenOptions::new();
    options.read(true).write(true).create_new(true);
    let mut file = options.open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    write_pattern(&mut file, 0, len);
    Arc::new(file)
}

backends! {
    fn in_its_turn(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let file = file(500_000);
        let position = (&*file).stream_position().unwrap();
        watcher.write(0, conn, "before").unwrap();
        watcher.send_file(1, conn, Arc::clone(&file), 10..300_010, Deadline::NEVER).unwrap();
        watcher.write(2, conn, "between").unwrap();
        watcher.send_file(3, conn, Arc::clone(&file), 7..7, Deadline::NEVER).unwrap();
        let remote = watcher.remote();
        let again = Arc::clone(&file);
        elsewhere(|| {
            remote.send_file(4, conn, again, 499_999..500_000, PATIENCE).map(drop).unwrap();
            remote.write(5, conn, "behind").map(drop).unwrap();
        });
        let reader = std::thread::spawn(move || {
            read_exactly(&mut peer, b"before");
            read_pattern(&mut peer, 10, 300_000);
            read_exactly(&mut peer, b"between");
            read_pattern(&mut peer, 499_999, 1);
            read_exactly(&mut peer, b"behind");
        });
        for (res, number) in collect(&mut watcher, 6).into_iter().zip(0..) {
            assert_eq!((res.context, res.error), (number, None));
            assert_eq!(res.size, [6, 300_000, 7, 0, 1, 6][number]);
            let sends = matches!(number, 1 | 3 | 4);
            assert_eq!(res.operation == Operation::SendFile, sends);
            assert!(!sends || res.buffer.is_empty());
        }
        reader.join().unwrap();
        assert_eq!((&*file).stream_position().unwrap(), position);
        assert_eq!(Arc::strong_count(&file), 1, "nobody else holds the file");
    }

    /// One peer reads at once, the other only then. Neither costs more than a block.
    fn fast_and_slow_reader(kind: BackendKind) {
        const MOST: usize = 12 << 20;
        let mut watcher = watcher(kind);
        let file = file(LONG);
        let (fast, mut fast_peer) = connect_to(&mut watcher);
        let (slow, mut slow_peer) = connect_to(&mut watcher);
        let before = Heap::now().bytes;
        for conn in [slow, fast] {
            watcher.send_file(conn, conn, Arc::clone(&file), 0..LONG as u64, PATIENCE).unwrap();
            assert_eq!(watcher.queued_bytes(conn), 0);
        }
        let readers = std::thread::spawn(move || {
            read_pattern(&mut fast_peer, 0, LONG);
            let bytes = Heap::now().bytes.saturating_sub(before);
            assert!(bytes < MOST, "{bytes} bytes in use");
            read_pattern(&mut slow_peer, 0, LONG);
        });
        for conn in [fast, slow] {
            let res = next(&mut watcher);
            assert_eq!((res.context, res.size, res.error), (conn, LONG, None));
        }
        readers.join().unwrap();
    }

    fn cut_meanwhile(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let file = file(LONG);
        watcher.send_file(0, conn, Arc::clone(&file), 0..LONG as u64, Deadline::NEVER).unwrap();
        quiet(&mut watcher);
        file.set_len(1_000).unwrap();
        let reader = std::thread::spawn(move || {
            let mut all = Vec::new();
            peer.read_to_end(&mut all).unwrap();
            all
        });
        let res = next(&mut watcher);
        assert_eq!((res.operation, error_kind(&res)), (Operation::SendFile, Some(ErrorKind::UnexpectedEof)));
        assert!(res.size > 1_000 && res.size < LONG, "{} bytes", res.size);
        assert!(watcher.free(conn));
        let all = reader.join().unwrap();
        assert_eq!(all.len(), res.size);
        assert!(common::is_pattern(0, &all));
        // One that waits finds a file that was cut before its turn.
        let (conn, _peer) = connect_to(&mut watcher);
        watcher.send_file(1, conn, Arc::clone(&file), 0..1_000, Deadline::NEVER).unwrap();
        file.set_len(0).unwrap();
        let res = next(&mut watcher);
        assert_eq!((res.size, error_kind(&res)), (0, Some(ErrorKind::UnexpectedEof)));
    }

    fn ended_half_way(kind: BackendKind) {
        let file = file(LONG);
        let range = 0..LONG as u64;
        for why in [ErrorKind::Cancelled, ErrorKind::Deadline, ErrorKind::ConnClosed] {
            let (mut watcher, conn, mut peer) = connected(kind);
            let deadline = match why {
                ErrorKind::Deadline => Duration::from_millis(30).into(),
                _ => Deadline::NEVER,
            };
            let op = watcher.send_file((), conn, Arc::clone(&file), range.clone(), deadline).unwrap();
            if why != ErrorKind::Deadline {
                quiet(&mut watcher);
            }
            if why == ErrorKind::Cancelled {
                assert!(watcher.cancel(op));
            } else if why == ErrorKind::ConnClosed {
                assert!(watcher.free(conn));
            }
            let res = next(&mut watcher);
            assert_eq!(error_kind(&res), Some(why));
            assert!(res.size < LONG, "{} bytes", res.size);
            watcher.free(conn);
            read_pattern(&mut peer, 0, res.size);
            assert_eq!(peer.read(&mut [0]).unwrap(), 0, "more than the result says");
            assert_eq!(Arc::strong_count(&file), 1);
        }
        let (mut watcher, conn, peer) = connected(kind);
        watcher.send_file((), conn, Arc::clone(&file), range.clone(), Deadline::NEVER).unwrap();
        quiet(&mut watcher);
        common::reset(peer);
        assert!(next(&mut watcher).error.unwrap().raw_os_error().is_some());
        // A drop, while the kernel has a block.
        let (mut watcher, conn, _peer) = connected(kind);
        watcher.send_file((), conn, Arc::clone(&file), range, Deadline::NEVER).unwrap();
        quiet(&mut watcher);
        drop(watcher);
        assert_eq!(Arc::strong_count(&file), 1);
    }

    fn into_a_pipe(kind: BackendKind) {
        let (mut from, to) = std::io::pipe().unwrap();
        let mut watcher = watcher(kind);
        let conn = watcher.delegate(to).unwrap();
        watcher.send_file((), conn, file(3 << 20), 1..3 << 20, Deadline::NEVER).unwrap();
        let reader = std::thread::spawn(move || read_pattern(&mut from, 1, (3 << 20) - 1));
        assert_eq!(next(&mut watcher).size, (3 << 20) - 1);
        reader.join().unwrap();
    }

    /// A file's bytes do not count: they take no memory.
    fn beside_the_write_limit(kind: BackendKind) {
        let mut watcher: Watcher = builder(kind).write_limit(10).build().unwrap();
        let (conn, mut peer) = connect_to(&mut watcher);
        watcher.write((), conn, "ten bytes!").unwrap();
        watcher.send_file((), conn, file(70_000), 0..70_000, Deadline::NEVER).unwrap();
        assert_eq!(watcher.queued_bytes(conn), 10);
        let reader = std::thread::spawn(move || {
            read_exactly(&mut peer, b"ten bytes!");
            read_pattern(&mut peer, 0, 70_000);
        });
        assert_eq!(collect(&mut watcher, 2)[1].size, 70_000);
        reader.join().unwrap();
    }

    #[allow(clippy::reversed_empty_ranges)]
    fn refused(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (conn, _peer) = connect_to(&mut watcher);
        let listener = watcher.listen(listener().0).unwrap();
        let (pipe, _end) = std::io::pipe().unwrap();
        let pipe = Arc::new(File::from(OwnedFd::from(pipe)));
        let directory = Arc::new(File::open("/").unwrap());
        let remote = watcher.remote();
        let good = file(100);
        for (conn, file, range, why) in [
            (conn, &pipe, 0..1, ErrorKind::Unsupported),
            (conn, &directory, 0..1, ErrorKind::Unsupported),
            (conn, &good, 0..101, ErrorKind::InvalidInput),
            (conn, &good, 50..49, ErrorKind::InvalidInput),
            (conn, &good, 0..u64::MAX, ErrorKind::InvalidInput),
            (Conn::NONE, &good, 0..1, ErrorKind::ConnClosed),
            (listener, &good, 0..1, ErrorKind::WrongKind),
        ] {
            let refused = watcher.send_file("context", conn, Arc::clone(file), range.clone(), PATIENCE);
            let (error, context) = refused.unwrap_err().into_parts();
            assert_eq!((error.kind(), context), (why, "context"));
            match remote.send_file("remote", conn, Arc::clone(file), range, PATIENCE) {
                Err(refused) => assert_eq!((refused.error().kind(), refused.into_inner()), (why, "remote")),
                Ok(_) => {
                    let res = next(&mut watcher);
                    assert_eq!((res.operation, res.context), (Operation::SendFile, "remote"));
                    assert_eq!((error_kind(&res), res.buffer.is_empty()), (Some(why), true));
                }
            }
            assert_eq!(Arc::strong_count(file), 1);
        }
        drop(watcher);
        let refused = remote.send_file("context", conn, good, 0..1, PATIENCE);
        assert_eq!(refused.unwrap_err().error().kind(), ErrorKind::WatcherClosed);
    }
}
