//! Connecting: to TCP and Unix listeners, from a chosen address, in vain, and not for ever.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixListener;

use common::{
    GLANCE, PATIENCE, backends, collect, error_kind, listener, next, quiet, readable, refusing,
    watcher,
};
use gaio::{BackendKind, ErrorKind, Operation};
use socket2::{Domain, SockRef, Socket, Type};

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

    /// A small write goes out at once, whoever made the socket; but one that the program made is left as
    /// it is.
    fn nodelay_by_default(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (_server, to) = listener();
        let own = watcher.connect((), to, PATIENCE).unwrap();
        let remote = watcher.remote().connect((), to, PATIENCE).unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        let given = watcher.connect_from((), socket, to, PATIENCE).unwrap();
        assert!(collect(&mut watcher, 3).iter().all(|res| res.error.is_none()));
        for (conn, expected) in [(own, true), (remote, true), (given, false)] {
            let socket = watcher.socket(conn).unwrap();
            assert_eq!(SockRef::from(&socket).tcp_nodelay().unwrap(), expected);
        }
    }

    /// Nothing is sent before the next turn: until then the socket can be bound, and its options set.
    fn options_before_the_connection(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (server, to) = listener();
        let conn = watcher.connect((), to, PATIENCE).unwrap();
        let socket = watcher.socket(conn).unwrap();
        let socket = SockRef::from(&socket);
        assert!(socket.peer_addr().is_err(), "connected already");
        socket.set_tcp_nodelay(false).unwrap();
        socket
            .bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())
            .unwrap();
        let ours = socket.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(next(&mut watcher).error, None);
        assert_eq!(server.accept().unwrap().1, ours);
        let socket = watcher.socket(conn).unwrap();
        assert!(!SockRef::from(&socket).tcp_nodelay().unwrap());
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
