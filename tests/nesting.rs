//! A watcher inside another event loop: `poll(2)`, or another watcher. Its descriptor is readable when
//! a turn of no time has something to do, and at no other time for long.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::File;
use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::process::{affordable, descriptors, in_child, limit_descriptors};
use common::{
    GLANCE, PATIENCE, Random, backends, builder, connect_to, connected, error_kind, listener, next,
    pair_from, quiet, readable, until, watcher,
};
use gaio::{BackendKind, Conn, ErrorKind, Interest, OpId, OpResult, Operation, Results, Watcher};

/// Runs the watcher until it has nothing more to hand out.
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
fn polled<C>(watcher: &mut Watcher<C>, fd: &OwnedFd) -> Vec<OpResult<C>> {
    assert!(readable(fd, PATIENCE), "it does not become readable");
    let results = settle(watcher);
    assert!(!results.is_empty(), "readable, and yet there was nothing");
    assert_silent(fd);
    results
}

fn assert_silent(fd: &OwnedFd) {
    assert!(
        !readable(fd, Duration::ZERO),
        "readable, and there is nothing"
    );
}

backends! {
    fn first_look(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.read((), conn, None).unwrap();
        assert!(settle(&mut watcher).is_empty());
        let fd = watcher.poll_fd().unwrap();
        assert_silent(&fd);
        peer.write_all(b"data").unwrap();
        assert_eq!(polled(&mut watcher, &fd)[0].data(), b"data");
    }

    fn in_poll(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let remote = watcher.remote();
        let fd = watcher.poll_fd().unwrap();
        for round in 0..1_000 {
            watcher.read(round, conn, None).unwrap();
            assert!(settle(&mut watcher).is_empty());
            assert!(!readable(&fd, Duration::ZERO), "in round {round}");
            match round % 3 {
                0 => peer.write_all(b"data").unwrap(),
                1 => {
                    remote.write(round, conn, "out").unwrap();
                    assert_eq!(polled(&mut watcher, &fd)[0].operation, Operation::Write);
                    peer.write_all(b"data").unwrap();
                }
                _ => {
                    remote.post(round).unwrap();
                    assert_eq!(polled(&mut watcher, &fd)[0].operation, Operation::Post);
                    peer.write_all(b"data").unwrap();
                }
            }
            assert_eq!(polled(&mut watcher, &fd)[0].data(), b"data");
        }
    }

    fn deadlines(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let after = Duration::from_millis(10);
        let fd = watcher.poll_fd().unwrap();
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
                    assert!(readable(&fd, PATIENCE), "it does not become readable");
                    results.extend(settle(&mut watcher));
                }
                assert_eq!(results[at].context, context);
                assert!(start.elapsed() >= due, "early in round {round}");
            }
            assert_silent(&fd);
        }
    }

    fn in_another_watcher(kind: BackendKind) {
        let (mut inner, conn, mut peer) = connected(kind);
        let mut outer = watcher(kind);
        let inside = outer.delegate(inner.poll_fd().unwrap()).unwrap();
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
    fn in_a_nested_watcher(kind: BackendKind) {
        let (mut inner, conn, mut peer) = connected(kind);
        let mut outer = watcher(kind);
        let inside = outer.delegate(inner.poll_fd().unwrap()).unwrap();
        let fd = outer.poll_fd().unwrap();
        for round in 0..100 {
            inner.read(round, conn, None).unwrap();
            assert!(settle(&mut inner).is_empty());
            outer.ready(round, inside, Interest::Readable).unwrap();
            assert!(settle(&mut outer).is_empty(), "in round {round}");
            peer.write_all(b"data").unwrap();
            let res = &polled(&mut outer, &fd)[0];
            assert_eq!((res.operation, res.context), (Operation::Ready, round));
            assert_eq!(settle(&mut inner)[0].data(), b"data");
        }
    }
}

backends! {
    /// Between the last look at the results and `poll(2)` a deadline may pass, and must not be lost.
    fn deadline_is_not_lost(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let fd = watcher.poll_fd().unwrap();
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
                let ready = readable(&fd, within);
                assert!(ready || !poll, "the deadline of round {round} was lost");
                results = settle(&mut watcher);
            }
            assert_eq!(results.len(), 1);
            let expected = (round, Some(ErrorKind::Deadline));
            assert_eq!((results[0].context, error_kind(&results[0])), expected);
        }
    }

    fn timer_does_not_spin(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.timer("timer", Duration::from_millis(20)).unwrap();
        let _fd = watcher.poll_fd().unwrap();
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
    fn pipe_shared_by_two(kind: BackendKind) {
        const ALL: usize = 5_000;
        let (reader, writer) = io::pipe().unwrap();
        let seen = &AtomicUsize::new(0);
        thread::scope(|scope| {
            let (_others, may_end) = mpsc::channel::<()>();
            let other = reader.try_clone().unwrap();
            scope.spawn(move || {
                let _idle = reader_of(kind, reader, ALL / 10, seen);
                let _ = may_end.recv();
            });
            scope.spawn(move || reader_of(kind, other, usize::MAX, seen));
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
fn reader_of(
    kind: BackendKind,
    pipe: impl Into<OwnedFd>,
    at_most: usize,
    seen: &AtomicUsize,
) -> Watcher {
    let mut watcher = watcher(kind);
    let conn = watcher.delegate(pipe).unwrap();
    let fd = watcher.poll_fd().unwrap();
    for _ in 0..at_most {
        watcher.read((), conn, vec![0; 1]).unwrap();
        let mut results = settle(&mut watcher);
        while results.is_empty() {
            assert!(readable(&fd, PATIENCE), "it sleeps too well");
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

// What was asked for since the last turn, and a loop that makes one turn each time it is woken

/// One turn of no time.
fn glance<C>(watcher: &mut Watcher<C>, most: usize) -> Vec<OpResult<C>> {
    let mut results = Results::with_capacity(most);
    watcher
        .wait_io_timeout(&mut results, Duration::ZERO)
        .unwrap();
    results.drain().collect()
}

/// Waits for one result with `poll(2)`, and makes one turn of no time whenever that says so.
fn next_polled<C>(watcher: &mut Watcher<C>, fd: &OwnedFd) -> OpResult<C> {
    loop {
        assert!(readable(fd, PATIENCE), "it does not become readable");
        if let Some(res) = glance(watcher, 1).pop() {
            return res;
        }
    }
}

/// What a request may be about: a connection with data, one with a pending read, a listener with a
/// client.
struct Parts {
    ready: Conn,
    idle: Conn,
    pending: OpId,
    listener: Conn,
    address: SocketAddr,
}

type Ask = fn(&mut Watcher<u8>, &Parts);

const ASKS: [(&str, Ask); 18] = [
    ("read", |w, on| {
        w.read(0, on.ready, None).unwrap();
    }),
    ("read into", |w, on| {
        w.read(0, on.ready, vec![0; 4]).unwrap();
    }),
    ("read_full", |w, on| {
        w.read_full(0, on.ready, vec![0; 4], PATIENCE).unwrap();
    }),
    ("read_stream", |w, on| {
        w.read_stream(0, on.ready).unwrap();
    }),
    ("read_timeout", |w, on| {
        w.read_timeout(0, on.ready, None, Instant::now()).unwrap();
    }),
    ("write", |w, on| {
        w.write(0, on.ready, "out").unwrap();
    }),
    ("write_timeout", |w, on| {
        w.write_timeout(0, on.ready, "out", PATIENCE).unwrap();
    }),
    ("shutdown", |w, on| {
        w.shutdown(0, on.ready, Shutdown::Write).unwrap();
    }),
    ("ready to read", |w, on| {
        w.ready(0, on.ready, Interest::Readable).unwrap();
    }),
    ("ready to write", |w, on| {
        w.ready(0, on.ready, Interest::Writable).unwrap();
    }),
    ("timer", |w, _| {
        w.timer(0, Duration::from_millis(1)).unwrap();
    }),
    ("connect", |w, on| {
        w.connect(0, on.address, PATIENCE).unwrap();
    }),
    ("accept", |w, on| {
        w.accept_one(0, on.listener).unwrap();
    }),
    ("cancel", |w, on| assert!(w.cancel(on.pending))),
    ("free", |w, on| assert!(w.free(on.idle))),
    ("close", |w, _| w.close()),
    ("of another thread", |w, on| {
        let remote = w.remote();
        remote.write(0, on.ready, "out").unwrap();
    }),
    ("of another thread, then an own one", |w, on| {
        w.remote().free(Conn::NONE).unwrap();
        w.write(0, on.ready, "out").unwrap();
    }),
];

backends! {
    fn what_is_asked_for_outside_a_turn(kind: BackendKind) {
        for used in [false, true] {
            for (name, ask) in ASKS {
                let (mut watcher, ready, mut peer) = connected(kind);
                let (idle, _idle_peer) = connect_to(&mut watcher);
                let (socket, address) = listener();
                let _client = TcpStream::connect(address).unwrap();
                let listener = watcher.listen(socket).unwrap();
                peer.write_all(b"data").unwrap();
                if used {
                    quiet(&mut watcher);
                }
                let fd = watcher.poll_fd().unwrap();
                let pending = watcher.read(1, idle, None).unwrap();
                assert!(settle(&mut watcher).is_empty());
                assert_silent(&fd);
                let on = Parts { ready, idle, pending, listener, address };
                // After a turn that gave nothing, and after one that gave something.
                for round in 0..2 {
                    ask(&mut watcher, &on);
                    assert!(readable(&fd, PATIENCE), "{name}, {used}, in round {round}");
                    let res = next_polled(&mut watcher, &fd);
                    if matches!(name, "read_stream" | "cancel" | "free" | "close") {
                        break;
                    }
                    assert_eq!((res.context, res.error), (0, None));
                    peer.write_all(b"data").unwrap();
                    let client = TcpStream::connect(address).unwrap();
                    drop(client);
                }
            }
        }
    }

    /// However much is asked for, the descriptor is made readable once.
    fn one_ring_for_all(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let fd = watcher.poll_fd().unwrap();
        for _ in 0..3 {
            assert!(settle(&mut watcher).is_empty());
            let before = watcher.stats().wakeups;
            for _ in 0..100 {
                watcher.write((), conn, "data").unwrap();
            }
            assert_eq!(watcher.stats().wakeups - before, 1);
            assert_eq!(polled(&mut watcher, &fd).len(), 100);
        }
    }

    /// Everything arrives at once, while nobody looks; each result is answered before the next.
    fn many_at_once(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let count = affordable(4_000) / 2;
            let mut watcher = watcher(kind);
            let fd = watcher.poll_fd().unwrap();
            let listener = listener().0;
            let mut pairs: Vec<_> = (0..count).map(|_| pair_from(&listener)).collect();
            let mut peers = Vec::with_capacity(count);
            for (at, (ours, peer)) in pairs.drain(..).enumerate() {
                let conn = watcher.delegate(ours).unwrap();
                watcher.read(at, conn, None).unwrap();
                peers.push(peer);
            }
            assert!(settle(&mut watcher).is_empty());
            for peer in &mut peers {
                peer.write_all(b"data").unwrap();
            }
            let (mut read, mut written) = (0, 0);
            while read + written < 2 * count {
                let res = next_polled(&mut watcher, &fd);
                assert_eq!(res.error, None);
                if res.operation == Operation::Write {
                    written += 1;
                    continue;
                }
                read += 1;
                watcher.write(res.context, res.conn, res.buffer).unwrap();
            }
            assert_eq!((read, written), (count, count));
            assert!(settle(&mut watcher).is_empty());
            assert_silent(&fd);
        });
    }

    /// Completions that bring no result: reads that find the pool dry, as long as somebody keeps all
    /// of it.
    fn many_without_a_buffer(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let count = affordable(2_000) / 2;
            let mut watcher = builder(kind).swap_buffers(1).swap_buffer_size(1024).build().unwrap();
            let fd = watcher.poll_fd().unwrap();
            let listener = listener().0;
            let mut peers = Vec::new();
            for at in 0..count {
                let (ours, peer) = pair_from(&listener);
                let conn = watcher.delegate(ours).unwrap();
                watcher.read(at, conn, None).unwrap();
                peers.push(peer);
            }
            assert!(settle(&mut watcher).is_empty());
            peers[0].write_all(&[1; 1024]).unwrap();
            let mut kept = Some(next_polled(&mut watcher, &fd));
            for peer in &mut peers[1..] {
                peer.write_all(b"data").unwrap();
            }
            let mut left = count - 1;
            while left > 0 {
                // Nothing more comes as long as the lease is kept, or not from all.
                if kept.is_some() && !readable(&fd, GLANCE) {
                    kept = None;
                }
                if kept.is_none() {
                    assert!(readable(&fd, PATIENCE), "{left} are left");
                }
                for res in glance(&mut watcher, 100) {
                    assert_eq!((res.error, res.data()), (None, &b"data"[..]));
                    left -= 1;
                }
            }
        });
    }

    fn without_descriptors(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let (mut watcher, conn, mut peer) = connected(kind);
            let remote = watcher.remote();
            let free = File::open("/dev/null").unwrap().as_raw_fd() as u64;
            let mut given = None;
            let before = descriptors();
            // Three: fewer than there are.
            for limit in [3].into_iter().chain(free..) {
                limit_descriptors(limit);
                let asked = watcher.poll_fd();
                limit_descriptors(1024);
                match asked {
                    Ok(fd) => {
                        assert!(limit > free);
                        given = Some(fd);
                        break;
                    }
                    Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EMFILE)),
                }
                assert_eq!(descriptors(), before, "something is left of an attempt");
                watcher.write(0, conn, "works").unwrap();
                assert_eq!(next(&mut watcher).error, None);
            }
            let fd = given.unwrap();
            watcher.read(1, conn, None).unwrap();
            watcher.timer(2, Duration::from_millis(20)).unwrap();
            assert!(settle(&mut watcher).is_empty());
            assert_eq!(next_polled(&mut watcher, &fd).context, 2);
            let thread = thread::spawn(move || remote.post(3).unwrap());
            assert_eq!(next_polled(&mut watcher, &fd).context, 3);
            thread.join().unwrap();
            peer.write_all(b"data").unwrap();
            assert_eq!(next_polled(&mut watcher, &fd).data(), b"data");
        });
    }

    /// Each is a descriptor of its own, and outlives the watcher in peace.
    fn several_descriptors(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let [first, second] = [watcher.poll_fd().unwrap(), watcher.poll_fd().unwrap()];
        watcher.read((), conn, None).unwrap();
        assert!(settle(&mut watcher).is_empty());
        drop(first);
        assert_silent(&second);
        peer.write_all(b"data").unwrap();
        assert_eq!(polled(&mut watcher, &second)[0].data(), b"data");
        drop(watcher);
        assert_silent(&second);
    }
}

backends! {
    /// Reads wait for the leases that their connection has out, a stream for those over its window.
    fn leases_that_come_back(kind: BackendKind) {
        const MESSAGE: usize = 16 * 1024;
        for stream in [false, true] {
            let built = builder(kind).swap_buffers(1).swap_buffer_size(4096).stream_window(4096);
            let mut watcher = built.build().unwrap();
            let (conn, mut peer) = connect_to(&mut watcher);
            let fd = watcher.poll_fd().unwrap();
            peer.write_all(&[7; MESSAGE]).unwrap();
            if stream {
                watcher.read_stream((), conn).unwrap();
            } else {
                watcher.read((), conn, None).unwrap();
            }
            let (mut kept, mut left, mut waits) = (Vec::new(), MESSAGE, 0);
            while left > 0 {
                if !readable(&fd, GLANCE) {
                    assert!(!kept.is_empty(), "{left} bytes are left, and nobody keeps any");
                    kept.clear();
                    waits += 1;
                    assert!(readable(&fd, PATIENCE), "it is not told of leases that came back");
                }
                for res in glance(&mut watcher, 100) {
                    assert_eq!(res.error, None);
                    left -= res.data().len();
                    if !stream {
                        watcher.read((), conn, None).unwrap();
                    }
                    kept.push(res);
                }
            }
            assert!(waits > 0, "so many leases, and nothing waited for them");
        }
    }
}
