//! More than one thread, or more than one loop: requests through a `Remote`, wake-ups, the
//! watcher's own thread, a watcher inside `poll(2)` or another watcher, and one busy connection
//! among many quiet ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::process::{in_child, take_all_descriptors};
use common::{
    PATIENCE, Random, assert_closed, backends, close_and_collect, collect, connect_to, connected,
    error_kind, listener, next, pair, quiet, readable, turn, until, watcher,
};
use gaio::{BackendKind, Conn, ErrorKind, Interest, OpResult, Operation, Remote, Results, Watcher};

// Remote

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

/// Runs this on a thread of its own, to the end.
fn elsewhere<T: Send>(task: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(task).join().unwrap())
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
            remote.write("empty write", conn, "").unwrap();
            remote.read("no conn", Conn::NONE, vec![0; 3]).unwrap();
            remote
                .shutdown("no conn", Conn::NONE, Shutdown::Both)
                .unwrap();
            remote.read_stream("no conn", Conn::NONE).unwrap();
            remote.free(Conn::NONE).unwrap();
        });
        for res in collect(&mut watcher, 6) {
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
}

// Wake-ups

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

// The watcher's own thread

backends! {
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

// Nested

/// Runs the watcher until it has nothing more to hand out, as its owner must before polling.
fn settle<C>(watcher: &mut Watcher<C>) -> Vec<OpResult<C>> {
    let mut all = Vec::new();
    let mut results = Results::new();
    while watcher
        .wait_io_timeout(&mut results, Duration::ZERO)
        .unwrap()
        > 0
    {
        all.extend(results.drain());
    }
    all
}

/// Waits with `poll(2)`; then there must be results.
fn polled<C>(watcher: &mut Watcher<C>) -> Vec<OpResult<C>> {
    assert!(readable(watcher, PATIENCE), "it does not become readable");
    let results = settle(watcher);
    assert!(!results.is_empty(), "readable, and yet there was nothing");
    assert!(
        !readable(watcher, Duration::ZERO),
        "readable, and there is nothing any more"
    );
    results
}

backends! {
    fn nested_first_look(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.read((), conn, None).unwrap();
        assert!(settle(&mut watcher).is_empty());
        assert!(
            !readable(&watcher, Duration::ZERO),
            "readable, and there is nothing"
        );
        peer.write_all(b"data").unwrap();
        assert_eq!(polled(&mut watcher)[0].data(), b"data");
    }

    fn nested_in_poll(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let remote = watcher.remote();
        watcher.as_fd(); // From here on; the first look has a case of its own.
        for round in 0..1_000 {
            watcher.read(round, conn, None).unwrap();
            assert!(settle(&mut watcher).is_empty());
            assert!(!readable(&watcher, Duration::ZERO), "in round {round}");
            match round % 3 {
                0 => peer.write_all(b"data").unwrap(),
                1 => {
                    remote.write(round, conn, "out").unwrap();
                    assert_eq!(polled(&mut watcher)[0].operation, Operation::Write);
                    peer.write_all(b"data").unwrap();
                }
                _ => {
                    remote.post(round).unwrap();
                    assert_eq!(polled(&mut watcher)[0].operation, Operation::Post);
                    peer.write_all(b"data").unwrap();
                }
            }
            assert_eq!(polled(&mut watcher)[0].data(), b"data");
        }
    }

    fn nested_deadlines(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let after = Duration::from_millis(10);
        watcher.as_fd();
        for round in 0..5 {
            let start = Instant::now();
            watcher.timer("timer", after).unwrap();
            watcher.read_timeout("read", conn, None, after * 2).unwrap();
            // On a slow machine this takes so long that the first look finds them.
            let mut results = settle(&mut watcher);
            let mut early = 0;
            for (at, context, due) in [(0, "timer", after), (1, "read", after * 2)] {
                while results.len() <= at {
                    // Some systems' timers are a tick early, and then there is nothing yet.
                    assert!(early <= 6, "readable, and yet there was nothing");
                    early += 1;
                    assert!(readable(&watcher, PATIENCE), "it does not become readable");
                    results.extend(settle(&mut watcher));
                }
                assert_eq!(results[at].context, context);
                assert!(start.elapsed() >= due, "early in round {round}");
            }
            assert!(!readable(&watcher, Duration::ZERO), "readable, and there is nothing");
        }
    }

    fn nested_in_another_watcher(kind: BackendKind) {
        let (mut inner, conn, mut peer) = connected(kind);
        let mut outer = watcher(kind);
        let inside = outer
            .delegate(inner.as_fd().try_clone_to_owned().unwrap())
            .unwrap();
        for round in 0..1_000 {
            inner.read(round, conn, None).unwrap();
            assert!(settle(&mut inner).is_empty());
            outer.ready(round, inside, Interest::Readable).unwrap();
            if round < 3 {
                quiet(&mut outer);
            }
            peer.write_all(b"data").unwrap();
            let res = next(&mut outer);
            assert_eq!(
                (res.operation, res.context, res.error),
                (Operation::Ready, round, None)
            );
            let results = settle(&mut inner);
            assert_eq!((results.len(), results[0].context), (1, round));
            assert_eq!(results[0].data(), b"data");
        }
    }

    /// What arrives arises within the signal of another event: three loops, one in the other, and an
    /// event of the system's own.
    fn nested_in_a_nested_watcher(kind: BackendKind) {
        let (mut inner, conn, mut peer) = connected(kind);
        let mut outer = watcher(kind);
        let inside = outer.delegate(descriptor(&inner)).unwrap();
        outer.as_fd();
        for round in 0..100 {
            inner.read(round, conn, None).unwrap();
            assert!(settle(&mut inner).is_empty());
            outer.ready(round, inside, Interest::Readable).unwrap();
            assert!(settle(&mut outer).is_empty(), "in round {round}");
            peer.write_all(b"data").unwrap();
            let res = &polled(&mut outer)[0];
            assert_eq!((res.operation, res.context), (Operation::Ready, round));
            assert_eq!(settle(&mut inner)[0].data(), b"data");
        }
    }
}

/// What another loop would keep of the watcher: its descriptor, asked for once.
fn descriptor<C>(watcher: &Watcher<C>) -> OwnedFd {
    watcher.as_fd().try_clone_to_owned().unwrap()
}

backends! {
    /// Between the last look at the results and `poll(2)` a deadline may pass, and must not be lost.
    fn nested_deadline_is_not_lost(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let descriptor = descriptor(&watcher);
        let mut random = Random::new(7);
        for round in 0..2_000 {
            let after = Duration::from_micros(20 + random.below(980) as u64);
            let deadline = Instant::now() + after;
            watcher.read_timeout(round, conn, None, deadline).unwrap();
            // In every other round the last look is just before the deadline.
            let close = Duration::from_micros(random.below(30) as u64);
            let look_until = deadline - if round % 2 == 0 { after } else { close };
            let mut results = settle(&mut watcher);
            while results.is_empty() {
                let poll = Instant::now() >= look_until;
                let within = if poll { PATIENCE / 6 } else { Duration::ZERO };
                let ready = readable(&descriptor, within);
                assert!(ready || !poll, "the deadline of round {round} was lost");
                results = settle(&mut watcher);
            }
            assert_eq!(results.len(), 1);
            let expected = (round, Some(ErrorKind::Deadline));
            assert_eq!((results[0].context, error_kind(&results[0])), expected);
        }
    }

    fn nested_timer_does_not_spin(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.timer("timer", Duration::from_millis(20)).unwrap();
        watcher.as_fd();
        assert_eq!(next(&mut watcher).context, "timer");
        watcher.read("read", conn, None).unwrap();
        let before = watcher.stats().kernel_calls;
        let count = watcher.wait_io_timeout(&mut Results::new(), Duration::from_millis(200));
        assert_eq!(count, Ok(0));
        let calls = watcher.stats().kernel_calls - before;
        assert!(calls < 50, "{calls} system calls in a silent while");
        peer.write_all(b"data").unwrap();
        assert_eq!(next(&mut watcher).data(), b"data");
    }

    /// Two loops wait for the bytes of one pipe. Who comes too late waits for the next byte, and
    /// who has stopped reading takes none.
    fn nested_pipe_shared_by_two(kind: BackendKind) {
        const ALL: usize = 5_000;
        let (reader, writer) = io::pipe().unwrap();
        let seen = &AtomicUsize::new(0);
        thread::scope(|scope| {
            let (_others, may_end) = mpsc::channel::<()>();
            let other = reader.try_clone().unwrap();
            scope.spawn(move || {
                let _idle = nested_reader(kind, reader, ALL / 10, seen);
                let _ = may_end.recv();
            });
            scope.spawn(move || nested_reader(kind, other, usize::MAX, seen));
            let mut writer = writer; // The pipe ends with this scope.
            let mut random = Random::new(12);
            for sent in 1..=ALL {
                writer.write_all(b"x").unwrap();
                (0..random.below(3_000)).for_each(|_| std::hint::spin_loop());
                if sent % 50 == 0 {
                    until("all was read", || seen.load(Ordering::Relaxed) == sent);
                }
            }
        });
    }
}

/// Reads a pipe byte by byte in a loop around `poll(2)`, up to its end or so many bytes.
fn nested_reader(
    kind: BackendKind,
    pipe: impl Into<OwnedFd>,
    at_most: usize,
    seen: &AtomicUsize,
) -> Watcher {
    let mut watcher = watcher(kind);
    let conn = watcher.delegate(pipe).unwrap();
    let descriptor = descriptor(&watcher);
    for _ in 0..at_most {
        watcher.read((), conn, vec![0; 1]).unwrap();
        let mut results = settle(&mut watcher);
        while results.is_empty() {
            assert!(readable(&descriptor, PATIENCE), "it sleeps too well");
            results = settle(&mut watcher);
        }
        assert_eq!((results.len(), results[0].error), (1, None));
        if results[0].is_eof() {
            break;
        }
        seen.fetch_add(1, Ordering::Relaxed);
    }
    watcher
}

// Fairness

const TALKERS: usize = 50;

backends! {
    /// One connection sends without an end; fifty others say a byte now and then.
    fn fairness(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (hog, hog_peer) = connect_to(&mut watcher);
        watcher.read(0, hog, None).unwrap();
        fair(&mut watcher, hog_peer, &mut Results::new(), 20);
    }

    fn fairness_of_a_stream(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (hog, hog_peer) = connect_to(&mut watcher);
        watcher.read_stream(0, hog).unwrap();
        fair(&mut watcher, hog_peer, &mut Results::new(), 20);
    }

    fn fairness_with_one_result_a_turn(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (hog, hog_peer) = connect_to(&mut watcher);
        watcher.read(0, hog, None).unwrap();
        fair(
            &mut watcher,
            hog_peer,
            &mut Results::with_capacity(1),
            20 * TALKERS,
        );
    }
}

/// While the hog talks, each talker that says a byte is heard within so many turns. The context
/// is 0 for the hog, else the talker's number. Talkers use Unix sockets: what they have said is
/// there at once, so that turns can be counted from then.
fn fair(watcher: &mut Watcher<usize>, hog: TcpStream, results: &mut Results<usize>, turns: usize) {
    let enough = Arc::new(AtomicBool::new(false));
    let hog = thread::spawn({
        let enough = enough.clone();
        move || flood(hog, &enough)
    });
    let mut talkers = Vec::new();
    for at in 0..TALKERS {
        let (ours, peer) = UnixStream::pair().unwrap();
        let conn = watcher.delegate(ours).unwrap();
        watcher.read(at + 1, conn, None).unwrap();
        talkers.push(peer);
    }
    let (mut rounds, mut hog_bytes) = (0, 0);
    while rounds < 20 || hog_bytes < 32 << 20 {
        rounds += 1;
        assert!(rounds < 1_000_000, "the hog is served as well");
        talkers
            .iter_mut()
            .for_each(|peer| peer.write_all(b"t").unwrap());
        let mut waiting = [true; TALKERS];
        for _ in 0..turns {
            turn(watcher, results);
            for res in results.drain() {
                assert_eq!(res.error, None);
                match res.context.checked_sub(1) {
                    Some(at) => waiting[at] = false,
                    None => hog_bytes += res.size,
                }
                if res.is_last() {
                    watcher.read(res.context, res.conn, None).unwrap();
                }
            }
            if waiting == [false; TALKERS] {
                break;
            }
        }
        assert_eq!(waiting, [false; TALKERS], "not heard within {turns} turns");
    }
    enough.store(true, Ordering::Relaxed);
    close_and_collect(watcher);
    hog.join().unwrap();
}

/// Sends as fast as it can, until it is enough or the other side closes.
fn flood(mut peer: TcpStream, enough: &AtomicBool) {
    let block = vec![0; 256 << 10];
    while !enough.load(Ordering::Relaxed) && peer.write_all(&block).is_ok() {}
}
