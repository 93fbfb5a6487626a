//! A nested watcher of which something is asked between two turns, and a loop that makes one turn each time
//! its descriptor says so.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::File;
use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use common::nested::{assert_silent, polled, settle};
use common::process::{affordable, descriptors, in_child, limit_descriptors};
use common::{
    GLANCE, PATIENCE, backends, builder, connect_to, connected, listener, next, pair_from, quiet,
    readable, watcher,
};
use gaio::{BackendKind, Conn, Interest, OpId, OpResult, Operation, Results, Watcher};

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
