//! The same event is the same error on every backend: how connections end that were reset, timed out,
//! refused, or closed in order.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]
// Some cases are about what only Linux has.
#![cfg_attr(not(target_os = "linux"), allow(unused_imports))]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use common::{MUCH, backends, collect, connected, next, pair, quiet, reset, turn, watcher};
use gaio::{BackendKind, OpResult, Results, Watcher};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

fn os_error<C>(res: &OpResult<C>) -> Option<i32> {
    res.error.and_then(|error| error.raw_os_error())
}

/// Reads until the connection has ended; says with which error, if it was one, and what came before.
fn read_to_end(watcher: &mut Watcher<&str>, conn: gaio::Conn) -> (Vec<u8>, Option<i32>) {
    let mut all = Vec::new();
    loop {
        watcher.read("read", conn, None).unwrap();
        let mut results = Results::with_capacity(1);
        turn(watcher, &mut results);
        let res = results.pop().unwrap();
        all.extend_from_slice(res.data());
        if res.error.is_some() || res.is_eof() {
            return (all, os_error(&res));
        }
    }
}

backends! {
    /// Whoever waits for room is told of the reset; reads that come later are, too.
    fn write_reset_half_way(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.write("write", conn, vec![1; MUCH]).unwrap();
        quiet(&mut watcher);
        peer.write_all(b"answer").unwrap();
        reset(peer);
        let res = next(&mut watcher);
        assert!(res.size > 0 && res.size < MUCH);
        assert_eq!(os_error(&res), Some(libc::ECONNRESET));
        watcher.write("too late", conn, "x").unwrap();
        assert_eq!(os_error(&next(&mut watcher)), Some(libc::EPIPE));
        let (_, error) = read_to_end(&mut watcher, conn);
        assert_eq!(error, Some(libc::ECONNRESET));
    }

    /// A peer that takes nothing for too long.
    #[cfg(target_os = "linux")]
    fn timed_out(kind: BackendKind) {
        for reads in [false, true] {
            let (ours, _peer) = pair();
            let timeout = Some(Duration::from_millis(50));
            SockRef::from(&ours).set_tcp_user_timeout(timeout).unwrap();
            let mut watcher = watcher(kind);
            let conn = watcher.delegate(ours).unwrap();
            if reads {
                watcher.read("read", conn, None).unwrap();
            }
            watcher.write("write", conn, vec![1; MUCH]).unwrap();
            for res in collect(&mut watcher, if reads { 2 } else { 1 }) {
                let error = os_error(&res);
                // The system says so once. If that is the read's, the write finds a closed connection.
                let closed = reads && res.context == "write" && error == Some(libc::EPIPE);
                assert!(closed || error == Some(libc::ETIMEDOUT), "{}: {error:?}", res.context);
            }
            let (_, error) = read_to_end(&mut watcher, conn);
            assert_eq!(error, Some(libc::ETIMEDOUT));
        }
    }

    fn refused(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (gone, address) = common::listener();
        drop(gone);
        let conn = watcher.connect("connect", address, gaio::Deadline::NEVER).unwrap();
        assert_eq!(os_error(&next(&mut watcher)), Some(libc::ECONNREFUSED));
        for _ in 0..2 {
            let (_, error) = read_to_end(&mut watcher, conn);
            assert_eq!(error, Some(libc::ECONNREFUSED));
        }
        watcher.write("write", conn, "x").unwrap();
        assert_eq!(os_error(&next(&mut watcher)), Some(libc::EPIPE));
    }

    /// Multipath TCP, which Go listens with by default: an orderly end is one.
    #[cfg(target_os = "linux")]
    fn multipath(kind: BackendKind) {
        let socket = |multipath: bool| {
            let protocol = if multipath { Protocol::MPTCP } else { Protocol::TCP };
            Socket::new(Domain::IPV4, Type::STREAM, Some(protocol))
        };
        if let Err(error) = socket(true) {
            return println!("skipped: no multipath TCP here: {error}");
        }
        for (ours, theirs) in [(true, true), (true, false), (false, true)] {
            for early in [false, true] {
                let listener = socket(ours).unwrap();
                let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
                listener.bind(&any.into()).unwrap();
                listener.listen(8).unwrap();
                let peer = socket(theirs).unwrap();
                peer.connect(&listener.local_addr().unwrap()).unwrap();
                let mut peer = TcpStream::from(peer);
                let mut watcher = watcher(kind);
                let conn = watcher.delegate(listener.accept().unwrap().0).unwrap();
                if early {
                    watcher.read("read", conn, None).unwrap();
                    quiet(&mut watcher);
                    peer.write_all(b"hello").unwrap();
                    assert_eq!(next(&mut watcher).data(), b"hello");
                    watcher.read("end", conn, None).unwrap();
                    quiet(&mut watcher);
                    drop(peer);
                    let res = next(&mut watcher);
                    assert!(res.is_eof(), "{ours} {theirs}: {:?}", res.error);
                } else {
                    peer.write_all(b"hello").unwrap();
                    drop(peer);
                    let end = read_to_end(&mut watcher, conn);
                    assert_eq!(end, (b"hello".to_vec(), None), "{ours} {theirs}");
                }
            }
        }
    }
}
