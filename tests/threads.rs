//! Threads: sleeping watchers are woken, and a watcher has a thread of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::refusal::refuses_all;
use common::{
    PATIENCE, assert_closed, backends, close_and_collect, collect, connect_to, connected,
    elsewhere, error_kind, listener, next, quiet, turn, watcher,
};
use gaio::{BackendKind, Conn, Deadline, ErrorKind, Results};

backends! {
    /// Each thread waits for an answer to each message: one lost wake-up, and all stands still.
    fn wake_storm(kind: BackendKind) {
        const ROUNDS: usize = 5_000;
        let mut watcher = watcher::<mpsc::Sender<()>>(kind);
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let remote = watcher.remote();
                thread::spawn(move || {
                    let (send, answer) = mpsc::channel();
                    for _ in 0..ROUNDS {
                        remote.post(send.clone()).unwrap();
                        answer.recv_timeout(PATIENCE).unwrap();
                    }
                })
            })
            .collect();
        let mut results = Results::new();
        let mut left = threads.len() * ROUNDS;
        while left > 0 {
            let start = Instant::now();
            turn(&mut watcher, &mut results);
            assert!(start.elapsed() < PATIENCE, "woken by the clock alone");
            left -= results.len();
            results
                .drain()
                .for_each(|res| res.context.send(()).unwrap());
        }
        threads.into_iter().for_each(|it| it.join().unwrap());
        assert!(watcher.stats().wakeups <= 4 * ROUNDS as u64);
    }

    fn wake_ups_elided_while_running(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let remote = &watcher.remote();
        quiet(&mut watcher);
        let before = watcher.stats();
        elsewhere(|| (0..1_000).for_each(|number| remote.post(number).unwrap()));
        let posted = watcher.stats();
        assert!(posted.wakeups - before.wakeups <= 1, "nobody was asleep");
        let numbers: Vec<_> = collect(&mut watcher, 1_000)
            .iter()
            .map(|res| res.context)
            .collect();
        assert!(numbers.into_iter().eq(0..1_000));
        let calls = watcher.stats().kernel_calls - before.kernel_calls;
        assert!(calls < 500, "{calls} system calls for 1,000 messages");
    }

    fn watcher_moves_to_thread(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.read("asked before the move", conn, None).unwrap();
        peer.write_all(b"data").unwrap();
        let mut watcher = elsewhere(move || {
            let res = next(&mut watcher);
            assert_eq!(
                (res.context, res.data()),
                ("asked before the move", &b"data"[..])
            );
            watcher
        });
        // Its thread is another one now, and has ended.
        let error = watcher.wait_io(&mut Results::new()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongThread);
        let error = watcher
            .wait_io_timeout(&mut Results::new(), Duration::ZERO)
            .unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongThread);
        assert_eq!(watcher.pin(0).unwrap_err().kind(), ErrorKind::WrongThread);
        drop(watcher);
        assert_eq!(
            peer.read(&mut [0]).unwrap(),
            0,
            "dropped anywhere, it closes"
        );
    }

    fn watcher_comes_home(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        quiet(&mut watcher);
        let (mut watcher, error) = elsewhere(move || {
            let error = watcher.wait_io(&mut Results::new()).unwrap_err();
            (watcher, error)
        });
        assert_eq!(error.kind(), ErrorKind::WrongThread);
        watcher.read((), conn, None).unwrap();
        peer.write_all(b"home").unwrap();
        assert_eq!(next(&mut watcher).data(), b"home");
    }

    /// Whatever is refused elsewhere has changed nothing.
    fn refused_elsewhere(kind: BackendKind) {
        for nested in [false, true] {
            let (mut watcher, conn, mut peer) = connected(kind);
            let (socket, address) = listener();
            let listener = watcher.listen(socket).unwrap();
            watcher.accept(1, listener).unwrap();
            let op = watcher.read(2, conn, None).unwrap();
            watcher.timer(3, Deadline::NEVER).unwrap();
            let _fd = nested.then(|| watcher.poll_fd().unwrap());
            quiet(&mut watcher);
            elsewhere(|| {
                let conns = [conn, listener, Conn::NONE];
                refuses_all(&mut watcher, &conns, op, ErrorKind::WrongThread);
                let stats = watcher.stats();
                assert_eq!((stats.connections, stats.pending), (2, 3));
                watcher.remote().post(4).unwrap();
                assert_eq!(watcher.backend().kind(), kind);
            });
            assert_eq!(next(&mut watcher).context, 4);
            peer.write_all(b"data").unwrap();
            assert_eq!(next(&mut watcher).data(), b"data");
            let _client = TcpStream::connect(address).unwrap();
            assert!(next(&mut watcher).accepted().is_some());
            assert!(watcher.free(conn));
        }
    }

    /// As a remote's `close`: the watcher's own thread does the work.
    fn closed_elsewhere(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.read(1, conn, None).unwrap();
        quiet(&mut watcher);
        elsewhere(|| watcher.close());
        assert!(watcher.remote().post(2).is_err());
        let results = close_and_collect(&mut watcher);
        let kinds: Vec<_> = results.iter().map(error_kind).collect();
        assert_eq!(kinds, [Some(ErrorKind::WatcherClosed)]);
        assert_closed(&mut peer);

        // Or nobody does, and the drop ends it.
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.read(1, conn, None).unwrap();
        quiet(&mut watcher);
        elsewhere(move || {
            watcher.close();
            drop(watcher);
        });
        assert_closed(&mut peer);
    }

    fn dropped_on_a_thread_with_its_own(kind: BackendKind) {
        let (mut own, conn, mut peer) = connected(kind);
        let (other, mut other_peer) = connect_to(&mut own);
        own.read(1, conn, None).unwrap();
        own.read(2, other, vec![0; 8]).unwrap();
        quiet(&mut own);
        thread::scope(|scope| {
            let (send, sent) = mpsc::channel();
            let (_stay, may_end) = mpsc::channel::<()>();
            scope.spawn(move || {
                let (mut theirs, conn, peer) = connected(kind);
                theirs.read((), conn, None).unwrap();
                quiet(&mut theirs); // It belongs to this thread now.
                send.send((theirs, peer)).unwrap();
                let _ = may_end.recv();
            });
            let (theirs, mut their_peer) = sent.recv_timeout(PATIENCE).unwrap();
            drop(theirs);
            assert_closed(&mut their_peer);
            for (number, peer) in [(1, &mut peer), (2, &mut other_peer)] {
                peer.write_all(b"data").unwrap();
                let res = next(&mut own);
                assert_eq!((res.context, res.data()), (number, &b"data"[..]));
            }
        });
    }
}
