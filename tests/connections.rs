//! Where connections come from: accepting and connecting (scenarios 27 and 28).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
#[cfg(target_os = "linux")]
use std::time::Duration;
use std::{fs, process, thread};

#[cfg(target_os = "linux")]
use common::process::in_child;
use common::{
    GLANCE, PATIENCE, backends, collect, connect_to, error_kind, listener, name, next, quiet,
    readable, refusing, turn, watcher,
};
use gaio::{Address, BackendKind, Conn, ErrorKind, OpResult, Operation, Results, Watcher};
use socket2::{Domain, SockRef, Socket, Type};

// Accept

fn listening<C>(watcher: &mut Watcher<C>) -> (Conn, SocketAddr) {
    let (listener, addr) = listener();
    (watcher.listen(listener).unwrap(), addr)
}

/// The other end of a Unix connection.
fn unix_peer<C>(watcher: &Watcher<C>, conn: Conn) -> UnixAddr {
    match watcher.peer_addr(conn).unwrap() {
        Address::Unix(peer) => peer,
        other => panic!("{other} of a Unix socket"),
    }
}

backends! {
    /// Another accepts from the same listener, and is always faster: no thread of the kernel waits for one
    /// that is left over.
    #[cfg(target_os = "linux")]
    fn accept_beside_a_rival(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let mut watcher = watcher(kind);
            let (rival, addr) = listener();
            let conn = watcher.listen(rival.try_clone().unwrap()).unwrap();
            rival.set_nonblocking(true).unwrap();
            let threads = || fs::read_dir("/proc/self/task").unwrap().count();
            let before = threads();
            watcher.accept_one((), conn).unwrap();
            for _ in 0..300 {
                let _peer = TcpStream::connect(addr).unwrap();
                drop(rival.accept());
                let mut results = Results::new();
                let now = Duration::ZERO;
                if watcher.wait_io_timeout(&mut results, now).unwrap() > 0 {
                    watcher.accept_one((), conn).unwrap();
                }
            }
            quiet(&mut watcher);
            assert_eq!(threads(), before);
            let _peer = TcpStream::connect(addr).unwrap();
            assert!(next(&mut watcher).accepted().is_some());
        });
    }

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

    /// Clients of Unix sockets nearly always have no name; on Linux a name need not be a path.
    fn peers_of_unix_sockets(kind: BackendKind) {
        let mut watcher: Watcher<()> = watcher(kind);
        let (ours, _peer) = UnixStream::pair().unwrap();
        let conn = watcher.delegate(ours).unwrap();
        assert!(unix_peer(&watcher, conn).is_unnamed());
        let path = std::env::temp_dir().join(format!("gaio.{}.{}", process::id(), name(kind)));
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let conn = watcher.delegate(client).unwrap();
        assert_eq!(unix_peer(&watcher, conn).as_pathname(), Some(&*path));
        let listener = watcher.listen(listener).unwrap();
        watcher.accept_one((), listener).unwrap();
        let accepted = next(&mut watcher).accepted().unwrap();
        assert!(unix_peer(&watcher, accepted).is_unnamed());
        assert!(watcher.peer_addr(accepted).unwrap().to_string().contains("unnamed"));
    }

    #[cfg(target_os = "linux")]
    fn peer_with_an_abstract_name(kind: BackendKind) {
        let mut watcher: Watcher<()> = watcher(kind);
        let unique = format!("gaio.{}.{}\0", process::id(), name(kind)).into_bytes();
        let address = UnixAddr::from_abstract_name(&unique).unwrap();
        let _listener = UnixListener::bind_addr(&address).unwrap();
        let conn = watcher.connect((), address, PATIENCE).unwrap();
        assert_eq!(next(&mut watcher).error, None);
        assert_eq!(unix_peer(&watcher, conn).as_abstract_name(), Some(&*unique));
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

    /// The program shuts down what it listens with: no connection will come any more, and whoever
    /// waits for one learns it, once for each request.
    fn listener_shut_down(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (listener, _addr) = listening(&mut watcher);
        let stream = watcher.accept("stream", listener).unwrap();
        watcher.accept_one("queued", listener).unwrap();
        quiet(&mut watcher);
        let socket = watcher.socket(listener).unwrap();
        let shut_down = SockRef::from(&socket).shutdown(Shutdown::Both);
        if says_nothing_of_a_shutdown(kind) {
            quiet(&mut watcher);
            assert!(watcher.cancel(stream) && watcher.free(listener));
            assert!(collect(&mut watcher, 2).iter().all(OpResult::is_last));
            return;
        }
        shut_down.unwrap();
        let calls = watcher.stats().kernel_calls;
        for context in ["stream", "queued"] {
            let res = next(&mut watcher);
            let errno = res.error.unwrap().raw_os_error();
            assert_eq!((res.context, errno), (context, Some(libc::EINVAL)));
            assert!(res.is_last() && res.accepted().is_none());
        }
        quiet(&mut watcher);
        watcher.accept("late", listener).unwrap();
        let res = next(&mut watcher);
        let errno = res.error.unwrap().raw_os_error();
        assert_eq!((errno, res.is_last()), (Some(libc::EINVAL), true));
        quiet(&mut watcher);
        let calls = watcher.stats().kernel_calls - calls;
        assert!(calls < 50, "{calls} system calls for three answers");
        assert!(watcher.free(listener));
    }
}

/// NetBSD and macOS let the accept wait for ever, and so does FreeBSD, which refuses the shutdown.
fn says_nothing_of_a_shutdown(kind: BackendKind) -> bool {
    let modelled = cfg!(gaio_kqueue_model)
        && kind != BackendKind::IoUring
        && std::env::var("GAIO_KQUEUE_MODEL").is_ok_and(|model| model == "netbsd");
    modelled
        || cfg!(any(
            target_vendor = "apple",
            target_os = "netbsd",
            target_os = "freebsd"
        ))
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
            .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
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
        let (_holders, addr) = refusing();
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
        // A socket that is still connecting cannot be used for another attempt.
        let text = res.error.unwrap().to_string();
        assert!(text.contains("free this Conn"), "{text}");
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
