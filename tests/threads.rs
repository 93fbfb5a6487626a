//! More than one thread: requests through a `Remote`, wake-ups, the watcher's own thread, and one busy
//! connection among many quiet ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use common::process::{in_child, take_all_descriptors};
use common::{
    PATIENCE, assert_closed, backends, close_and_collect, collect, connect_to, connected,
    error_kind, listener, next, pair, quiet, turn, watcher,
};
use gaio::{BackendKind, Conn, ErrorKind, Operation, Remote, Results, Watcher};

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
