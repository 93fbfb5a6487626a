//! Listening sockets, as their options say.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]

mod common;

use std::io::ErrorKind as IoErrorKind;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::{fs, process};

use common::{backends, name, next, watcher};
use gaio::{BackendKind, ListenOptions, Watcher};
use socket2::SockRef;

backends! {
    /// Accepted connections inherit it, whichever call accepts them.
    fn nodelay(kind: BackendKind) {
        for on in [true, false] {
            let mut watcher: Watcher<()> = watcher(kind);
            let options = match on {
                true => ListenOptions::new(),
                false => ListenOptions::new().nodelay(false),
            };
            let listener = options.bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let listener = watcher.listen(listener).unwrap();
            let mut accepted = Vec::new();
            watcher.accept_one((), listener).unwrap();
            let _first = TcpStream::connect(address).unwrap();
            accepted.extend(next(&mut watcher).accepted());
            watcher.accept((), listener).unwrap();
            let _second = TcpStream::connect(address).unwrap();
            accepted.extend(next(&mut watcher).accepted());
            assert_eq!(accepted.len(), 2);
            for conn in accepted {
                let socket = watcher.socket(conn).unwrap();
                assert_eq!(SockRef::from(&socket).tcp_nodelay().unwrap(), on);
            }
        }
    }

    fn unix(kind: BackendKind) {
        let mut watcher: Watcher<()> = watcher(kind);
        let path = std::env::temp_dir().join(format!("gaio-o.{}.{}", process::id(), name(kind)));
        let options = ListenOptions::new();
        let listener = watcher.listen(options.bind_unix(&path).unwrap()).unwrap();
        watcher.accept((), listener).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        assert!(next(&mut watcher).accepted().is_some());
        // A file that is there is left alone, whether anybody listens or not.
        for _ in 0..2 {
            let error = options.bind_unix(&path).unwrap_err();
            assert_eq!(error.kind(), IoErrorKind::AddrInUse);
            watcher.close();
        }
        assert!(fs::symlink_metadata(&path).is_ok());
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn the_first_address_that_works() {
    // Nobody has this one (RFC 5737).
    let elsewhere = SocketAddr::from(([192, 0, 2, 1], 0));
    let here = SocketAddr::from(([127, 0, 0, 1], 0));
    let listener = ListenOptions::new().bind(&[elsewhere, here][..]).unwrap();
    assert_eq!(listener.local_addr().unwrap().ip(), here.ip());
    let error = ListenOptions::new().bind(elsewhere).unwrap_err();
    assert_eq!(error.kind(), IoErrorKind::AddrNotAvailable);
    let none: &[SocketAddr] = &[];
    let error = ListenOptions::new().bind(none).unwrap_err();
    assert_eq!(error.kind(), IoErrorKind::InvalidInput);
}

#[test]
fn a_shared_port() {
    let options = ListenOptions::new().reuse_port(true);
    let first = options.bind("127.0.0.1:0").unwrap();
    let address = first.local_addr().unwrap();
    let _second = options.bind(address).unwrap();
    // Only with those who share it, too.
    let error = ListenOptions::new().bind(address).unwrap_err();
    assert_eq!(error.kind(), IoErrorKind::AddrInUse);
}

/// A connection that the server ended holds the port for a while. A new server gets it all the same.
#[test]
fn the_address_again() {
    let listener = ListenOptions::new().bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let client = TcpStream::connect(address).unwrap();
    drop(listener.accept().unwrap());
    drop((listener, client));
    ListenOptions::new().bind(address).unwrap();
}

/// Connections beyond the backlog are not made: on Linux, they wait.
#[cfg(target_os = "linux")]
#[test]
fn backlog() {
    let listener = ListenOptions::new().backlog(1).bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let wait = common::GLANCE * 3;
    let clients: Vec<std::io::Result<TcpStream>> = (0..4)
        .map(|_| TcpStream::connect_timeout(&address, wait))
        .collect();
    let made = clients.iter().filter(|client| client.is_ok()).count();
    assert_eq!(made, 2, "{clients:?}");
    let many = ListenOptions::new().backlog(u32::MAX).bind("127.0.0.1:0");
    let address = many.as_ref().unwrap().local_addr().unwrap();
    let clients: Vec<TcpStream> = (0..50)
        .map(|_| TcpStream::connect_timeout(&address, common::PATIENCE).unwrap())
        .collect();
    assert_eq!(clients.len(), 50);
}

#[test]
fn only_v6() {
    let listen = |on| ListenOptions::new().only_v6(on).bind("[::]:0");
    let listener: TcpListener = match listen(true) {
        Ok(listener) => listener,
        Err(error) => {
            println!("skipped: no IPv6 here: {error}");
            return;
        }
    };
    assert!(SockRef::from(&listener).only_v6().unwrap());
    let port = listener.local_addr().unwrap().port();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    if cfg!(not(target_os = "openbsd")) {
        let port = listen(false).unwrap().local_addr().unwrap().port();
        assert!(
            TcpStream::connect(("127.0.0.1", port)).is_err(),
            "its listener is gone"
        );
        let both = listen(false).unwrap();
        let port = both.local_addr().unwrap().port();
        assert!(TcpStream::connect(("127.0.0.1", port)).is_ok());
    }
}
