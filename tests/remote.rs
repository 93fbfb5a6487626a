//! Requests and messages from other threads, through a `Remote`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use common::process::{in_child, take_all_descriptors};
use common::{
    PATIENCE, backends, close_and_collect, collect, connect_to, connected, elsewhere, error_kind,
    listener, next, pair, quiet, turn, watcher,
};
use gaio::{BackendKind, Conn, ErrorKind, OpResult, Operation, Remote, Results};

/// Who asked, and which of their requests it is.
type Ticket = (usize, usize);

const THREADS: usize = 8;

const EACH: usize = 125_000;

/// One request of so many is a write, the others are messages.
const WRITE_EVERY: usize = 25;

backends! {
    fn remote_submits(kind: BackendKind) {
        let mut watcher = watcher::<Ticket>(kind);
        let threads: Vec<_> = (0..THREADS)
            .map(|me| {
                let remote = watcher.remote();
                thread::spawn(move || submit_many(&remote, me))
            })
            .collect();
        let mut seen = [[0; 2]; THREADS];
        let mut results = Results::with_capacity(1024);
        let mut left = THREADS * EACH;
        while left > 0 {
            turn(&mut watcher, &mut results);
            left -= results.len();
            for res in results.drain() {
                assert_eq!(res.error, None);
                let (who, number) = res.context;
                let is_write = number % WRITE_EVERY == 0;
                assert_eq!(res.operation == Operation::Write, is_write);
                // Each handle's requests of one kind come in order, so none is missing in between.
                let count = &mut seen[who][usize::from(is_write)];
                assert_eq!(number, nth_number(*count, is_write));
                *count += 1;
            }
        }
        threads.into_iter().for_each(|it| it.join().unwrap());
        quiet(&mut watcher);
    }
}

/// The number of the nth write, or of the nth message.
fn nth_number(nth: usize, is_write: bool) -> usize {
    if is_write {
        nth * WRITE_EVERY
    } else {
        nth + nth / (WRITE_EVERY - 1) + 1
    }
}

fn submit_many(remote: &Remote<Ticket>, me: usize) {
    let (ours, mut peer) = pair();
    let conn = remote.delegate(ours).unwrap();
    for number in 0..EACH {
        if number % WRITE_EVERY == 0 {
            let bytes = (number as u32).to_le_bytes().to_vec();
            remote.write((me, number), conn, bytes).unwrap();
        } else {
            remote.post((me, number)).unwrap();
        }
    }
    for number in (0..EACH).step_by(WRITE_EVERY) {
        let mut bytes = [0; 4];
        peer.read_exact(&mut bytes).unwrap();
        assert_eq!(u32::from_le_bytes(bytes), number as u32);
    }
}

backends! {
    fn remote_reads(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let remote = &watcher.remote();
        let ops = elsewhere(|| {
            [
                remote.read("read", conn, vec![0; 8]).unwrap(),
                remote
                    .read_timeout("timeout", conn, None, PATIENCE)
                    .unwrap(),
                remote
                    .read_full("full", conn, vec![0; 2], PATIENCE)
                    .unwrap(),
                remote.read_stream("stream", conn).unwrap(),
            ]
        });
        for (op, context) in ops.into_iter().zip(["read", "timeout", "full", "stream"]) {
            peer.write_all(&context.as_bytes()[..2]).unwrap();
            let res = next(&mut watcher);
            assert_eq!((res.op, res.context, res.error), (op, context, None));
            assert_eq!(res.data(), &context.as_bytes()[..2]);
            assert_eq!(res.is_last(), context != "stream");
        }
        drop(peer);
        let res = next(&mut watcher);
        assert!(res.op == ops[3] && res.is_eof() && res.is_last());
    }

    fn remote_writes_and_shuts_down(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let remote = &watcher.remote();
        elsewhere(|| {
            remote.write(1, conn, "one ").unwrap();
            remote.write_timeout(2, conn, "two", PATIENCE).unwrap();
            remote.shutdown(3, conn, Shutdown::Write).unwrap();
        });
        let results = collect(&mut watcher, 3);
        let seen: Vec<_> = results
            .iter()
            .map(|res| (res.context, res.size, res.error))
            .collect();
        assert_eq!(seen, [(1, 4, None), (2, 3, None), (3, 0, None)]);
        let mut arrived = String::new();
        peer.read_to_string(&mut arrived).unwrap();
        assert_eq!(arrived, "one two");
    }

    fn remote_connects_delegates_and_frees(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let remote = &watcher.remote();
        let (server, addr) = listener();
        let connected = elsewhere(|| remote.connect("connect", addr, PATIENCE).unwrap());
        let res = next(&mut watcher);
        assert_eq!((res.operation, res.error), (Operation::Connect, None));
        assert!(res.conn == connected && watcher.contains(connected));
        drop(server.accept().unwrap());

        let (ours, mut peer) = pair();
        let delegated = elsewhere(|| {
            let conn = remote.delegate(ours).unwrap();
            remote.read("freed", conn, None).unwrap();
            remote.free(conn).unwrap();
            remote.write("stale", conn, "never").unwrap();
            conn
        });
        for res in collect(&mut watcher, 2) {
            assert_eq!(
                error_kind(&res),
                Some(ErrorKind::ConnClosed),
                "{}",
                res.context
            );
            assert!(res.conn == delegated && res.size == 0);
        }
        assert!(!watcher.contains(delegated));
        assert_eq!(
            peer.read(&mut [0]).unwrap(),
            0,
            "it was closed, and nothing was sent"
        );
    }

    fn remote_cancels(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let remote = &watcher.remote();
        let cancelled = watcher.read("cancelled", conn, None).unwrap();
        quiet(&mut watcher);
        elsewhere(|| {
            remote.cancel(cancelled).unwrap();
            let own = remote.read("own", conn, None).unwrap();
            remote.cancel(own).unwrap();
            remote.cancel(own).unwrap(); // Unknown by then, and no error.
            remote.read("kept", conn, None).unwrap();
        });
        for res in collect(&mut watcher, 2) {
            assert_eq!(
                error_kind(&res),
                Some(ErrorKind::Cancelled),
                "{}",
                res.context
            );
        }
        peer.write_all(b"data").unwrap();
        let res = next(&mut watcher);
        assert_eq!((res.context, res.data()), ("kept", &b"data"[..]));
    }

    fn remote_errors_come_as_results(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let remote = &watcher.remote();
        elsewhere(|| {
            remote.read("empty read", conn, vec![]).unwrap();
            remote
                .read_full("empty full", conn, vec![], PATIENCE)
                .unwrap();
            remote.read("no conn", Conn::NONE, vec![0; 3]).unwrap();
            remote
                .shutdown("no conn", Conn::NONE, Shutdown::Both)
                .unwrap();
            remote.read_stream("no conn", Conn::NONE).unwrap();
            remote.free(Conn::NONE).unwrap();
        });
        for res in collect(&mut watcher, 5) {
            let expected = match res.context {
                "no conn" => ErrorKind::ConnClosed,
                _ => ErrorKind::EmptyBuffer,
            };
            assert_eq!(error_kind(&res), Some(expected), "{}", res.context);
            assert!(res.is_last());
            if res.operation == Operation::Read && res.context == "no conn" {
                let own = res.buffer.recycle();
                assert!(own.is_none_or(|own| own.len() == 3));
            }
        }
        quiet(&mut watcher);
    }

    /// A regular file cannot be waited for, and that is known at once.
    fn remote_refuses_a_file(kind: BackendKind) {
        let watcher = watcher::<()>(kind);
        let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
        let (error, file) = watcher.remote().delegate(file).unwrap_err().into_parts();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        let mut magic = [0; 4];
        std::fs::File::from(file).read_exact(&mut magic).unwrap();
    }

    fn post_keeps_order(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let remote = watcher.remote();
        for number in 0..1_000 {
            remote.post(number.to_string()).unwrap();
        }
        for (number, res) in collect(&mut watcher, 1_000).into_iter().enumerate() {
            assert_eq!((res.operation, res.error), (Operation::Post, None));
            assert!(res.conn == Conn::NONE && res.is_last() && !res.is_eof());
            assert_eq!((res.context, res.size), (number.to_string(), 0));
            assert!(res.buffer.is_empty());
        }
        quiet(&mut watcher);
    }

    /// However many messages wait, a turn takes a few of them: what the system has for the watcher and
    /// what is due comes in between.
    fn many_messages_delay_nothing_else(kind: BackendKind) {
        const POSTS: usize = 10_000;
        for room in [1, 2, 100] {
            let (mut watcher, conn, mut peer) = connected(kind);
            let remote = watcher.remote();
            (0..POSTS).for_each(|number| remote.post(number).unwrap());
            peer.write_all(b"data").unwrap();
            watcher.read(POSTS, conn, None).unwrap();
            watcher.timer(POSTS + 1, Duration::ZERO).unwrap();
            let mut results = Results::with_capacity(room);
            let (mut posts, mut others) = (0, Vec::new());
            for number in 0.. {
                if posts == POSTS {
                    break;
                }
                turn(&mut watcher, &mut results);
                for res in results.drain() {
                    if res.operation == Operation::Post {
                        assert_eq!(res.context, posts);
                        posts += 1;
                    } else {
                        others.push((res.context, number));
                    }
                }
            }
            others.sort();
            let [(POSTS, read), (_, timer)] = others[..] else {
                panic!("{others:?}");
            };
            assert!(read < 10 && timer < 10, "turns {read} and {timer}, {room} results each");
        }
    }

    /// What a `Remote` asked for behind many other messages is known at once to whoever asks about it,
    /// and all of it comes to an end when the watcher is closed, in order.
    fn last_of_many_messages(kind: BackendKind) {
        const POSTS: usize = 10_000;
        for by_remote in [false, true] {
            let mut watcher = watcher(kind);
            let remote = watcher.remote();
            let post_all = || (0..POSTS).for_each(|number| remote.post(number).unwrap());
            let posts = |all: Vec<OpResult<usize>>| {
                let numbers = all.into_iter().filter(|res| res.operation == Operation::Post);
                assert!(numbers.map(|res| res.context).eq(0..POSTS));
            };
            let (socket, _peer) = pair();
            post_all();
            let conn = remote.delegate(socket).unwrap();
            let op = watcher.read(POSTS, conn, None).unwrap();
            posts(collect(&mut watcher, POSTS));
            post_all();
            let behind = remote.write(POSTS, conn, b"data").unwrap();
            let last = remote.read(POSTS, conn, None).unwrap();
            assert!(watcher.cancel(last), "it is known");
            let all = collect(&mut watcher, POSTS + 2);
            assert!(all.iter().any(|res| (res.op, res.error) == (behind, None)));
            posts(all);
            post_all();
            let mut all = Vec::new();
            if by_remote {
                remote.close();
                let mut results = Results::new();
                while watcher.wait_io_timeout(&mut results, PATIENCE).is_ok() {
                    assert!(!results.is_empty(), "not closed within {PATIENCE:?}");
                    all.extend(results.drain());
                }
            } else {
                all = close_and_collect(&mut watcher);
            }
            let read = all.iter().find(|res| res.op == op).unwrap();
            assert_eq!(error_kind(read), Some(ErrorKind::WatcherClosed));
            posts(all);
        }
    }

    /// Connects that get no socket use up no place in the program's tables.
    fn failed_remote_connects_leak_no_index(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let mut watcher = watcher(kind);
            let remote = watcher.remote();
            quiet(&mut watcher);
            let fillers = take_all_descriptors();
            for round in 0..1_000 {
                let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
                let conn = remote.connect(round, nowhere, PATIENCE).unwrap();
                let res = next(&mut watcher);
                assert_eq!((res.context, res.conn), (round, conn));
                assert_eq!(res.error.unwrap().raw_os_error(), Some(libc::EMFILE));
                watcher.free(conn);
            }
            drop(fillers);
            quiet(&mut watcher);
            let (conn, _peer) = connect_to(&mut watcher);
            assert!(conn.index() < 10, "index {}", conn.index());
        });
    }

    fn remote_close(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let remote = watcher.remote();
        watcher.read("read", conn, None).unwrap();
        watcher.timer("timer", PATIENCE * 60).unwrap();
        let (send, awake) = mpsc::channel();
        let owner = thread::spawn(move || {
            let mut results = Results::new();
            let mut rest = Vec::new();
            send.send(()).unwrap();
            let error = loop {
                match watcher.wait_io(&mut results) {
                    Ok(_) => rest.extend(results.drain()),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.kind(), ErrorKind::WatcherClosed);
            rest
        });
        awake.recv().unwrap();
        thread::sleep(Duration::from_millis(10)); // Most likely it sleeps; it must work anyway.
        remote.close();
        let mut rest = owner.join().unwrap();
        rest.sort_by_key(|res| res.context);
        assert_eq!(rest.len(), 2);
        for (res, context) in rest.iter().zip(["read", "timer"]) {
            assert_eq!(res.context, context);
            assert_eq!(error_kind(res), Some(ErrorKind::WatcherClosed));
        }
        assert_eq!(peer.read(&mut [0]).unwrap(), 0, "the connection was closed");
        remote.close();
        assert_eq!(
            remote.post("late").unwrap_err().error().kind(),
            ErrorKind::WatcherClosed
        );
    }

    fn remote_outlives_watcher(kind: BackendKind) {
        let context = Arc::new(());
        let mut watcher = watcher(kind);
        let (conn, _peer) = connect_to(&mut watcher);
        let remote = watcher.remote();
        remote.post(context.clone()).unwrap();
        let op = remote.read(context.clone(), conn, None).unwrap();
        drop(watcher);
        assert_eq!(
            Arc::strong_count(&context),
            1,
            "what was queued is dropped, once"
        );

        let refused = remote.write(context.clone(), conn, "kept").unwrap_err();
        assert_eq!(refused.error().kind(), ErrorKind::WatcherClosed);
        let (given_back, buffer) = refused.into_inner();
        assert!(Arc::ptr_eq(&given_back, &context) && &*buffer == b"kept");
        let refused = remote.read(context.clone(), conn, vec![1; 5]).unwrap_err();
        assert_eq!(refused.into_inner().1, Some(vec![1; 5]));
        let refused = remote.post(context.clone()).unwrap_err();
        assert!(Arc::ptr_eq(&refused.into_inner(), &context));
        assert_eq!(
            remote.cancel(op).unwrap_err().kind(),
            ErrorKind::WatcherClosed
        );
        assert_eq!(
            remote.free(conn).unwrap_err().kind(),
            ErrorKind::WatcherClosed
        );

        let (ours, mut peer) = pair();
        let ours = remote.delegate(ours).unwrap_err().into_inner();
        TcpStream::from(ours).write_all(b"open").unwrap();
        peer.read_exact(&mut [0; 4]).unwrap();
    }
}
