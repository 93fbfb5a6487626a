//! The requests beyond plain reads and writes: cancelling, accepting, connecting, streams of
//! reads, readiness, shutting down, and descriptors that are not TCP sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use common::process::in_child;
use common::{
    GLANCE, PATIENCE, backends, builder, collect, connect_to, connected, error_kind, is_pattern,
    listener, next, pair, pattern_vec, quiet, read_pattern, readable, turn, watcher, write_pattern,
};
use gaio::{BackendKind, Conn, ErrorKind, Interest, Operation, Results, Watcher};
use socket2::{Domain, Socket, Type};

// Cancel

backends! {
    fn cancel_read(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        for own in [None, Some(vec![0; 7])] {
            let op = watcher.read("read", conn, own.clone()).unwrap();
            quiet(&mut watcher);
            assert!(watcher.cancel(op));
            let res = next(&mut watcher);
            assert!(!watcher.cancel(op), "finished");
            assert_eq!((res.op, res.context, res.size), (op, "read", 0));
            assert_eq!(error_kind(&res), Some(ErrorKind::Cancelled));
            assert!(res.is_last() && !res.is_eof());
            assert_eq!(res.buffer.recycle(), own, "the buffer comes back");
        }
        watcher.read("again", conn, None).unwrap();
        peer.write_all(b"data").unwrap();
        assert_eq!(next(&mut watcher).data(), b"data");
    }
}

/// Runs the watcher until the peer has something to read.
fn until_peer_has_data<C>(watcher: &mut Watcher<C>, peer: &TcpStream) {
    peer.set_nonblocking(true).unwrap();
    while peer.peek(&mut [0]).is_err() {
        let count = watcher.wait_io_timeout(&mut Results::new(), Duration::from_millis(1));
        assert_eq!(count, Ok(0), "it does not fit");
    }
    peer.set_nonblocking(false).unwrap();
}

backends! {
    fn cancel_write_half_sent(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let op = watcher.write((), conn, pattern_vec(0, MUCH)).unwrap();
        until_peer_has_data(&mut watcher, &peer);
        assert!(watcher.cancel(op));
        let res = next(&mut watcher);
        assert_eq!(error_kind(&res), Some(ErrorKind::Cancelled));
        let sent = res.size;
        assert!(0 < sent && sent < MUCH, "{sent} bytes");
        assert!(
            res.buffer.len() == MUCH && is_pattern(0, &res.buffer),
            "it comes back whole"
        );
        watcher.write((), conn, "end").unwrap();
        watcher.shutdown((), conn, Shutdown::Write).unwrap();
        let reader = thread::spawn(move || {
            read_pattern(&mut peer, 0, sent);
            let mut rest = String::new();
            peer.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "end");
        });
        assert!(
            collect(&mut watcher, 2)
                .iter()
                .all(|res| res.error.is_none())
        );
        reader.join().unwrap();
    }
}

/// More bytes than the sockets of one connection take.
const MUCH: usize = 64 << 20;

backends! {
    /// A byte is sent while its read is cancelled: the read gets it, or the next one does.
    fn cancel_race(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let (send, go) = mpsc::channel();
        let sender = thread::spawn(move || {
            while let Ok(byte) = go.recv() {
                peer.write_all(&[byte]).unwrap();
            }
        });
        for round in 0..10_000_usize {
            let op = watcher.read(round, conn, None).unwrap();
            if round % 2 == 0 {
                let count = watcher.wait_io_timeout(&mut Results::new(), Duration::ZERO);
                assert_eq!(count, Ok(0)); // The read is with the kernel now.
            }
            send.send(round as u8).unwrap();
            for _ in 0..round % 64 * 20 {
                std::hint::spin_loop();
            }
            let cancelled = watcher.cancel(op);
            let mut res = next(&mut watcher);
            assert_eq!(res.op, op);
            if res.error.is_some() {
                assert!(cancelled);
                assert_eq!(error_kind(&res), Some(ErrorKind::Cancelled));
                assert_eq!(res.size, 0);
                watcher.read(round, conn, None).unwrap();
                res = next(&mut watcher);
            }
            assert_eq!((res.context, res.data()), (round, &[round as u8][..]));
        }
        drop(send);
        sender.join().unwrap();
    }

    fn cancel_queued_not_started(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.read("first", conn, None).unwrap();
        let queued = watcher.read("queued", conn, vec![0; 3]).unwrap();
        watcher.read("last", conn, None).unwrap();
        assert!(watcher.cancel(queued));
        let res = next(&mut watcher);
        assert_eq!(
            (res.context, error_kind(&res)),
            ("queued", Some(ErrorKind::Cancelled))
        );
        for (context, data) in [("first", b"1"), ("last", b"2")] {
            peer.write_all(data).unwrap();
            let res = next(&mut watcher);
            assert_eq!((res.context, res.data()), (context, &data[..]));
        }
    }

    fn cancel_queued_write_leaves_no_byte(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.write("first", conn, pattern_vec(0, MUCH)).unwrap();
        let queued = watcher.write("queued", conn, "never").unwrap();
        watcher.write("last", conn, "end").unwrap();
        until_peer_has_data(&mut watcher, &peer);
        assert!(watcher.cancel(queued));
        let res = next(&mut watcher);
        assert_eq!((res.context, res.size), ("queued", 0));
        assert_eq!(error_kind(&res), Some(ErrorKind::Cancelled));
        let reader = thread::spawn(move || {
            read_pattern(&mut peer, 0, MUCH);
            let mut end = [0; 3];
            peer.read_exact(&mut end).unwrap();
            assert_eq!(&end, b"end");
        });
        let done = collect(&mut watcher, 2);
        assert_eq!((done[0].context, done[0].size), ("first", MUCH));
        assert_eq!((done[1].context, done[1].size), ("last", 3));
        reader.join().unwrap();
    }

    fn cancel_unknown(kind: BackendKind) {
        let mut mine = watcher(kind);
        let (mut other, conn, mut peer) = connected(kind);
        let finished = mine.timer((), Duration::ZERO).unwrap();
        next(&mut mine);
        assert!(!mine.cancel(finished));
        let foreign = other.read((), conn, None).unwrap();
        assert!(!mine.cancel(foreign));
        peer.write_all(b"still there").unwrap();
        assert_eq!(next(&mut other).data(), b"still there");
    }
}

// Accept

fn listening<C>(watcher: &mut Watcher<C>) -> (Conn, SocketAddr) {
    let (listener, addr) = listener();
    (watcher.listen(listener).unwrap(), addr)
}

backends! {
    /// 5,000 clients come, say a byte, hear it back and go, while one connection talks all the time.
    fn accept_many(kind: BackendKind) {
        const CLIENTS: usize = 5_000;
        let mut watcher = watcher(kind);
        let (listener, addr) = listening(&mut watcher);
        watcher.accept((), listener).unwrap();
        let (talker, mut peer) = connect_to(&mut watcher);
        watcher.read((), talker, None).unwrap();
        peer.write_all(b"t").unwrap();
        let clients = thread::spawn(move || clients_in_waves(addr, CLIENTS, 250));
        let (mut accepted, mut ended, mut talked) = (0, 0, 0);
        let mut results = Results::new();
        while ended < CLIENTS {
            turn(&mut watcher, &mut results);
            for res in results.drain() {
                assert_eq!(res.error, None);
                if let Some(conn) = res.accepted() {
                    assert!(!res.is_last() && res.conn == listener);
                    watcher.read((), conn, None).unwrap();
                    accepted += 1;
                } else if res.is_eof() {
                    assert!(watcher.free(res.conn));
                    ended += 1;
                } else if res.operation == Operation::Read {
                    watcher.write((), res.conn, res.buffer).unwrap();
                } else {
                    watcher.read((), res.conn, None).unwrap();
                    if res.conn == talker {
                        talked += 1;
                        peer.read_exact(&mut [0]).unwrap();
                        peer.write_all(b"t").unwrap();
                    }
                }
            }
        }
        clients.join().unwrap();
        assert_eq!(accepted, CLIENTS);
        assert!(talked > 20, "the talker was heard {talked} times");
    }
}

fn clients_in_waves(addr: SocketAddr, clients: usize, at_once: usize) {
    for wave in 0..clients / at_once {
        let mut streams: Vec<_> = (0..at_once)
            .map(|_| TcpStream::connect(addr).unwrap())
            .collect();
        for (i, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&[(wave + i) as u8]).unwrap();
        }
        for (i, stream) in streams.iter_mut().enumerate() {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            assert_eq!(byte[0], (wave + i) as u8);
        }
    }
}

backends! {
    fn accept_one(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (listener, addr) = listening(&mut watcher);
        let op = watcher.accept_one("one", listener).unwrap();
        let first = TcpStream::connect(addr).unwrap();
        let _second = TcpStream::connect(addr).unwrap();
        let res = next(&mut watcher);
        assert_eq!(
            (res.operation, res.op, res.context),
            (Operation::Accept, op, "one")
        );
        assert!(res.is_last() && res.conn == listener);
        let conn = res.accepted().unwrap();
        assert_eq!(
            watcher.peer_addr(conn).unwrap().to_string(),
            first.local_addr().unwrap().to_string()
        );
        quiet(&mut watcher);
        watcher.accept_one("two", listener).unwrap();
        assert!(next(&mut watcher).accepted().is_some());
    }

    fn accept_cancel(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (listener, addr) = listening(&mut watcher);
        let op = watcher.accept(String::from("each"), listener).unwrap();
        let _first = TcpStream::connect(addr).unwrap();
        let res = next(&mut watcher);
        assert!(res.op == op && !res.is_last() && res.accepted().is_some());
        assert!(watcher.cancel(op));
        let res = next(&mut watcher);
        assert!(res.op == op && res.is_last() && res.accepted().is_none());
        assert_eq!(
            (res.context.as_str(), error_kind(&res)),
            ("each", Some(ErrorKind::Cancelled))
        );
        assert!(!watcher.cancel(op));
        let _second = TcpStream::connect(addr).unwrap();
        quiet(&mut watcher);
        watcher.accept(String::from("anew"), listener).unwrap();
        assert_eq!(next(&mut watcher).context, "anew");
    }

    fn listener_freed(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (listener, addr) = listening(&mut watcher);
        watcher.accept("stream", listener).unwrap();
        watcher.accept_one("queued", listener).unwrap();
        quiet(&mut watcher);
        assert!(watcher.free(listener));
        for context in ["stream", "queued"] {
            let res = next(&mut watcher);
            assert_eq!(
                (res.context, error_kind(&res)),
                (context, Some(ErrorKind::ConnClosed))
            );
            assert!(res.is_last() && res.conn == listener);
        }
        quiet(&mut watcher);
        let error = TcpStream::connect(addr).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}

// Connect

backends! {
    /// What is asked of a connection before it is connected waits its turn.
    fn connect_ok(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (server, addr) = listener();
        let conn = watcher.connect("connect", addr, PATIENCE).unwrap();
        watcher.write("write", conn, "hello").unwrap();
        watcher.read("read", conn, None).unwrap();
        let res = next(&mut watcher);
        assert_eq!(
            (res.operation, res.context),
            (Operation::Connect, "connect")
        );
        assert!(res.conn == conn && res.error.is_none() && res.size == 0);
        assert_eq!(next(&mut watcher).context, "write");
        let (mut peer, _) = server.accept().unwrap();
        peer.read_exact(&mut [0; 5]).unwrap();
        peer.write_all(b"answer").unwrap();
        assert_eq!(next(&mut watcher).data(), b"answer");
        assert_eq!(
            watcher.peer_addr(conn).unwrap().to_string(),
            addr.to_string()
        );
    }

    fn connect_from(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (server, to) = listener();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket
            .bind(&SocketAddr::from(([127, 0, 0, 9], 0)).into())
            .unwrap();
        let ours = socket.local_addr().unwrap().as_socket().unwrap();
        let conn = watcher.connect_from((), socket, to, PATIENCE).unwrap();
        let res = next(&mut watcher);
        assert!(res.conn == conn && res.error.is_none());
        assert_eq!(server.accept().unwrap().1, ours);
    }

    fn connect_unix(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let name = format!("gaio-{}-{}", common::name(kind), std::process::id());
        let path = std::env::temp_dir().join(name);
        let server = UnixListener::bind(&path).unwrap();
        let to = server.local_addr().unwrap();
        let conn = watcher.connect((), to.clone(), PATIENCE).unwrap();
        watcher.write((), conn, "over a path").unwrap();
        assert!(
            collect(&mut watcher, 2)
                .iter()
                .all(|res| res.error.is_none())
        );
        let mut arrived = [0; 11];
        server.accept().unwrap().0.read_exact(&mut arrived).unwrap();
        assert_eq!(&arrived, b"over a path");
        std::fs::remove_file(&path).unwrap();
        // Nobody can be there any more.
        watcher.connect((), to, PATIENCE).unwrap();
        assert_eq!(
            next(&mut watcher).error.unwrap().raw_os_error(),
            Some(libc::ENOENT)
        );
    }

    fn connect_refused(kind: BackendKind) {
        let mut watcher = watcher(kind);
        // Bound but not listening: nobody else can get the port.
        let taken = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        taken
            .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
            .unwrap();
        let addr = taken.local_addr().unwrap().as_socket().unwrap();
        let conn = watcher.connect("connect", addr, PATIENCE).unwrap();
        watcher.write("write", conn, "hello").unwrap();
        watcher.read("read", conn, None).unwrap();
        let results = collect(&mut watcher, 3);
        let connect = results.iter().find(|res| res.context == "connect").unwrap();
        assert_eq!(connect.operation, Operation::Connect);
        let errno = connect.error.unwrap().raw_os_error();
        assert_eq!(errno, Some(libc::ECONNREFUSED));
        assert!(results.iter().all(|res| res.size == 0 && res.conn == conn));
        let write = results.iter().find(|res| res.context == "write").unwrap();
        assert!(write.error.is_some());
        assert!(watcher.contains(conn), "ours until free");
        assert!(watcher.free(conn));
        assert!(!watcher.contains(conn));
    }
}

/// A listener whose queue is full, so that it does not answer.
fn unanswering() -> (Socket, TcpStream, SocketAddr) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    listener
        .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
        .unwrap();
    listener.listen(0).unwrap();
    let addr = listener.local_addr().unwrap().as_socket().unwrap();
    let filler = TcpStream::connect(addr).unwrap();
    assert!(readable(&listener, PATIENCE));
    (listener, filler, addr)
}

backends! {
    fn connect_deadline(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (_listener, _filler, addr) = unanswering();
        let conn = watcher.connect("connect", addr, GLANCE).unwrap();
        let res = next(&mut watcher);
        assert_eq!(
            (res.context, error_kind(&res)),
            ("connect", Some(ErrorKind::Deadline))
        );
        assert!(res.conn == conn && watcher.contains(conn));
        assert!(watcher.free(conn));
    }

    fn connect_cancel(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (_listener, _filler, addr) = unanswering();
        let conn = watcher.connect("connect", addr, PATIENCE).unwrap();
        let write = watcher.write("write", conn, "hello").unwrap();
        quiet(&mut watcher);
        assert!(watcher.cancel(write), "it waits behind the connect");
        assert_eq!(next(&mut watcher).context, "write");
        assert!(watcher.free(conn));
        assert_eq!(next(&mut watcher).context, "connect");
    }

    fn free_while_connecting(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (_listener, _filler, addr) = unanswering();
        let conn = watcher.connect("connect", addr, PATIENCE).unwrap();
        watcher.write("write", conn, "hello").unwrap();
        watcher.read("read", conn, None).unwrap();
        quiet(&mut watcher);
        assert!(watcher.free(conn));
        let results = collect(&mut watcher, 3);
        for res in &results {
            assert_eq!(
                error_kind(res),
                Some(ErrorKind::ConnClosed),
                "{}",
                res.context
            );
        }
        let place = |context| results.iter().position(|res| res.context == context);
        assert!(place("connect") < place("write"), "in order");
        assert!(!watcher.contains(conn));
    }
}

// Streams of reads

/// Takes what a stream of reads brings until its last result; returns the bytes and that result's
/// error.
fn until_last(watcher: &mut Watcher<Conn>, arrived: &mut Vec<u8>) -> (usize, Option<ErrorKind>) {
    let mut results = Results::new();
    let mut count = 0;
    loop {
        turn(watcher, &mut results);
        for res in results.drain() {
            assert!(res.context == res.conn && res.operation == Operation::Read);
            arrived.extend_from_slice(res.data());
            count += 1;
            if res.is_last() {
                assert!(res.size == 0, "the end brings no bytes");
                assert!(res.is_eof() || res.error.is_some());
                return (count, error_kind(&res));
            }
            assert!(res.size > 0 && res.error.is_none() && res.is_swap_buffer());
        }
    }
}

backends! {
    fn read_stream(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.read_stream(conn, conn).unwrap();
        let sender = thread::spawn(move || write_pattern(&mut peer, 0, 16 << 20));
        let mut arrived = Vec::new();
        let (count, error) = until_last(&mut watcher, &mut arrived);
        assert!(error.is_none() && count > 2, "{count} results, {error:?}");
        assert!(arrived.len() == 16 << 20 && is_pattern(0, &arrived));
        sender.join().unwrap();
        assert_eq!(watcher.stats().pending, 0);
    }

    fn read_stream_cancel(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let op = watcher.read_stream(conn, conn).unwrap();
        peer.write_all(b"before").unwrap();
        let mut arrived = Vec::new();
        while arrived != b"before" {
            let res = next(&mut watcher);
            assert!(res.op == op && !res.is_last());
            arrived.extend_from_slice(res.data());
        }
        assert!(watcher.cancel(op));
        let (_, error) = until_last(&mut watcher, &mut arrived);
        assert_eq!(error, Some(ErrorKind::Cancelled));
        assert!(!watcher.cancel(op));
        peer.write_all(b"after").unwrap();
        quiet(&mut watcher);
        watcher.read_full(conn, conn, vec![0; 5], PATIENCE).unwrap();
        assert_eq!(next(&mut watcher).data(), b"after");
    }

    fn read_stream_freed(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        watcher.read_stream(conn, conn).unwrap();
        quiet(&mut watcher);
        assert!(watcher.free(conn));
        let (count, error) = until_last(&mut watcher, &mut Vec::new());
        assert_eq!((count, error), (1, Some(ErrorKind::ConnClosed)));
    }

    /// Nobody drops leases: the stream stops within its window, another connection goes on, and all
    /// bytes arrive once the leases are dropped.
    fn read_stream_back_pressure(kind: BackendKind) {
        const WINDOW: usize = 64 << 10;
        const SWAP_BYTES: usize = 256 * (8 << 10);
        const ALL: usize = 24 << 20;
        let builder = builder(kind).swap_buffer_size(8 << 10).swap_buffers(256);
        let mut watcher = builder.stream_window(WINDOW).build().unwrap();
        let (conn, mut peer) = connect_to(&mut watcher);
        let (other, mut other_peer) = connect_to(&mut watcher);
        watcher.read_stream(conn, conn).unwrap();
        let sender = thread::spawn(move || write_pattern(&mut peer, 0, ALL));

        let mut held = Vec::new();
        let mut results = Results::new();
        while watcher.wait_io_timeout(&mut results, GLANCE).unwrap() > 0 {
            held.extend(results.drain());
            let bytes: usize = held.iter().map(|res| res.size).sum();
            // Above the window by no more than what was under way.
            assert!(bytes <= 3 * WINDOW, "{bytes} bytes leased");
            assert!(watcher.stats().swap_bytes <= SWAP_BYTES);
        }
        assert!(!held.is_empty() && !sender.is_finished());
        watcher.read(other, other, None).unwrap();
        other_peer.write_all(b"not me").unwrap();
        assert_eq!(next(&mut watcher).data(), b"not me");

        let mut arrived = Vec::new();
        held.drain(..)
            .for_each(|res| arrived.extend_from_slice(res.data()));
        let (_, error) = until_last(&mut watcher, &mut arrived);
        assert!(error.is_none() && arrived.len() == ALL && is_pattern(0, &arrived));
        sender.join().unwrap();
    }
}

// Readiness

backends! {
    fn ready_readable(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.ready("ready", conn, Interest::Readable).unwrap();
        quiet(&mut watcher);
        peer.write_all(b"data").unwrap();
        for _ in 0..2 {
            let res = next(&mut watcher);
            assert_eq!((res.operation, res.context), (Operation::Ready, "ready"));
            assert_eq!((res.size, res.error, res.conn == conn), (0, None, true));
            assert!(res.is_last() && !res.is_eof() && res.buffer.is_empty());
            // Ready still, as nothing was read.
            watcher.ready("ready", conn, Interest::Readable).unwrap();
        }
        next(&mut watcher);
        watcher.read("read", conn, None).unwrap();
        assert_eq!(next(&mut watcher).data(), b"data");
        watcher.ready("ready", conn, Interest::Readable).unwrap();
        quiet(&mut watcher);
        drop(peer);
        assert_eq!(
            next(&mut watcher).error,
            None,
            "the end is something to read"
        );
        watcher.read("end", conn, None).unwrap();
        assert!(next(&mut watcher).is_eof());
    }

    fn ready_writable(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (ours, mut peer) = pair();
        ours.set_nonblocking(true).unwrap();
        let block = vec![0; 1 << 20];
        let mut sent = 0;
        while let Ok(n) = (&ours).write(&block) {
            sent += n;
        }
        let conn = watcher.delegate(ours).unwrap();
        watcher.ready((), conn, Interest::Writable).unwrap();
        quiet(&mut watcher);
        let reader = thread::spawn(move || {
            peer.read_exact(&mut vec![0; sent]).unwrap();
            peer
        });
        let res = next(&mut watcher);
        assert_eq!((res.operation, res.error), (Operation::Ready, None));
        drop(reader.join().unwrap());
    }

    fn ready_ends(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let op = watcher
            .ready("cancelled", conn, Interest::Readable)
            .unwrap();
        quiet(&mut watcher);
        assert!(watcher.cancel(op));
        assert_eq!(error_kind(&next(&mut watcher)), Some(ErrorKind::Cancelled));
        watcher.ready("freed", conn, Interest::Readable).unwrap();
        assert!(watcher.free(conn));
        assert_eq!(error_kind(&next(&mut watcher)), Some(ErrorKind::ConnClosed));
    }
}

// Shutdown

backends! {
    fn shutdown_after_queued_writes(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.write("big", conn, pattern_vec(0, MUCH)).unwrap();
        watcher.write("small", conn, "tail").unwrap();
        watcher.shutdown("shutdown", conn, Shutdown::Write).unwrap();
        watcher.write("late", conn, "never").unwrap();
        watcher.read("read", conn, None).unwrap();
        let reader = thread::spawn(move || {
            read_pattern(&mut peer, 0, MUCH);
            let mut rest = String::new();
            peer.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "tail");
            peer.write_all(b"got it").unwrap();
        });
        let results = collect(&mut watcher, 5);
        let order: Vec<_> = results.iter().map(|res| res.context).collect();
        assert_eq!(order, ["big", "small", "shutdown", "late", "read"]);
        assert_eq!(results[2].operation, Operation::Shutdown);
        assert_eq!((results[2].error, results[2].conn == conn), (None, true));
        let errno = results[3].error.unwrap().raw_os_error();
        assert_eq!((errno, results[3].size), (Some(libc::EPIPE), 0));
        assert_eq!(results[4].data(), b"got it");
        reader.join().unwrap();
    }

    fn shutdown_read_ends_reads(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.read("read", conn, None).unwrap();
        quiet(&mut watcher);
        watcher.shutdown("shutdown", conn, Shutdown::Read).unwrap();
        for res in collect(&mut watcher, 2) {
            assert_eq!(res.error, None, "{}", res.context);
            assert_eq!(res.is_eof(), res.context == "read");
        }
        watcher.write("write", conn, "still").unwrap();
        assert_eq!(next(&mut watcher).error, None);
        let mut arrived = [0; 5];
        peer.read_exact(&mut arrived).unwrap();
        assert_eq!(&arrived, b"still");
    }
}

// Other descriptors

backends! {
    fn pipe_works(kind: BackendKind) {
        const ALL: usize = 1 << 20; // More than a pipe holds.
        let mut watcher = watcher(kind);
        let (reader, writer) = io::pipe().unwrap();
        let reader = watcher.delegate(reader).unwrap();
        let writer = watcher.delegate(writer).unwrap();
        watcher.write((), writer, pattern_vec(0, ALL)).unwrap();
        watcher
            .read_full((), reader, vec![0; ALL / 2], PATIENCE)
            .unwrap();
        let (mut arrived, mut written) = (Vec::new(), 0);
        while arrived.len() < ALL || written == 0 {
            let res = next(&mut watcher);
            assert_eq!(res.error, None);
            if res.operation == Operation::Write {
                written = res.size;
                continue;
            }
            arrived.extend_from_slice(res.data());
            if arrived.len() < ALL {
                watcher.read((), reader, None).unwrap();
            }
        }
        assert_eq!((written, arrived.len()), (ALL, ALL));
        assert!(is_pattern(0, &arrived));
        watcher.read((), reader, None).unwrap();
        assert!(watcher.free(writer));
        assert!(next(&mut watcher).is_eof());
    }

    fn pipe_write_on_closed(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            // SAFETY: the default action, which would end this process, touches no memory of ours.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            let mut watcher = watcher(kind);
            let (reader, writer) = io::pipe().unwrap();
            let writer = watcher.delegate(writer).unwrap();
            drop(reader);
            watcher.write((), writer, "nobody").unwrap();
            let res = next(&mut watcher);
            assert_eq!(res.error.unwrap().raw_os_error(), Some(libc::EPIPE));
            assert_eq!((res.size, &*res.buffer), (0, &b"nobody"[..]));
        });
    }

    fn unix_stream_works(kind: BackendKind) {
        const ALL: usize = 4 << 20;
        let mut watcher = watcher(kind);
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let conn = watcher.delegate(ours).unwrap();
        watcher.write((), conn, pattern_vec(0, ALL)).unwrap();
        watcher.read_full((), conn, vec![0; ALL], PATIENCE).unwrap();
        let friend = thread::spawn(move || {
            read_pattern(&mut peer, 0, ALL);
            write_pattern(&mut peer, 7, ALL);
        });
        let results = collect(&mut watcher, 2);
        assert_eq!((results[0].size, results[1].size), (ALL, ALL));
        assert!(is_pattern(7, results[1].data()));
        watcher.read((), conn, None).unwrap();
        friend.join().unwrap();
        assert!(next(&mut watcher).is_eof());
    }
}
