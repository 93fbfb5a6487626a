//! The names of both ends of a connection, and who is at the other.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::TcpListener;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddr, UnixListener, UnixStream};
use std::{fs, process};

use common::*;
use gaio::{Address, BackendKind, Conn, ErrorKind, Watcher};
use socket2::{Domain, Socket, Type};

/// The other end of a Unix connection.
fn unix_peer<C>(watcher: &Watcher<C>, conn: Conn) -> UnixAddr {
    match watcher.peer_addr(conn).unwrap() {
        Address::Unix(peer) => peer,
        other => panic!("{other} of a Unix socket"),
    }
}

/// This end of a Unix connection.
fn unix_local<C>(watcher: &Watcher<C>, conn: Conn) -> UnixAddr {
    match watcher.local_addr(conn).unwrap() {
        Address::Unix(local) => local,
        other => panic!("{other} of a Unix socket"),
    }
}

backends! {
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

    fn local_names(kind: BackendKind) {
        let mut watcher: Watcher<()> = watcher(kind);
        let (listener, addr) = listener();
        let client = pair_from(&listener).1;
        let expected = client.local_addr().unwrap().to_string();
        let conn = watcher.delegate(client).unwrap();
        assert_eq!(watcher.local_addr(conn).unwrap().to_string(), expected);
        let listener = watcher.listen(listener).unwrap();
        assert_eq!(watcher.local_addr(listener).unwrap().to_string(), addr.to_string());
        assert!(watcher.free(conn));
        let refused = [
            (watcher.local_addr(conn).unwrap_err(), ErrorKind::ConnClosed),
            (watcher.local_addr(Conn::NONE).unwrap_err(), ErrorKind::ConnClosed),
            (watcher.peer_cred(conn).unwrap_err(), ErrorKind::ConnClosed),
        ];
        assert!(refused.iter().all(|(error, kind)| error.kind() == *kind));
        let pipe = watcher.delegate(std::io::pipe().unwrap().0).unwrap();
        for error in [watcher.local_addr(pipe).unwrap_err(), watcher.peer_cred(pipe).unwrap_err()] {
            assert_eq!(error.raw_os_error(), Some(libc::ENOTSOCK));
        }
    }

    fn local_names_of_unix_sockets(kind: BackendKind) {
        let mut watcher: Watcher<()> = watcher(kind);
        let (ours, _peer) = UnixStream::pair().unwrap();
        let conn = watcher.delegate(ours).unwrap();
        assert!(unix_local(&watcher, conn).is_unnamed());
        let path = std::env::temp_dir().join(format!("gaio-l.{}.{}", process::id(), name(kind)));
        let listener = watcher.listen(UnixListener::bind(&path).unwrap()).unwrap();
        let _client = UnixStream::connect(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(unix_local(&watcher, listener).as_pathname(), Some(&*path));
        watcher.accept_one((), listener).unwrap();
        let accepted = next(&mut watcher).accepted().unwrap();
        assert_eq!(unix_local(&watcher, accepted).as_pathname(), Some(&*path));
    }

    #[cfg(target_os = "linux")]
    fn local_abstract_name(kind: BackendKind) {
        let mut watcher: Watcher<()> = watcher(kind);
        let unique = format!("gaio-l.{}.{}\0", process::id(), name(kind)).into_bytes();
        let address = UnixAddr::from_abstract_name(&unique).unwrap();
        let listener = watcher.listen(UnixListener::bind_addr(&address).unwrap()).unwrap();
        assert_eq!(unix_local(&watcher, listener).as_abstract_name(), Some(&*unique));
    }

    /// Both ends belong to this process.
    fn credentials(kind: BackendKind) {
        let mut watcher: Watcher<()> = watcher(kind);
        let (ours, _peer) = UnixStream::pair().unwrap();
        let path = std::env::temp_dir().join(format!("gaio-c.{}.{}", process::id(), name(kind)));
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let listener = watcher.listen(listener).unwrap();
        watcher.accept_one((), listener).unwrap();
        let accepted = next(&mut watcher).accepted().unwrap();
        // SAFETY: these calls take nothing and cannot fail.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        for conn in [watcher.delegate(ours).unwrap(), watcher.delegate(client).unwrap(), accepted] {
            let peer = watcher.peer_cred(conn).unwrap();
            assert_eq!((peer.uid, peer.gid), (uid, gid));
            if cfg!(target_os = "linux") {
                assert_eq!(peer.pid, Some(process::id()));
            }
        }
        assert_eq!(watcher.peer_cred(listener).unwrap_err().raw_os_error(), Some(libc::ENOTCONN));
    }

    fn no_credentials(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected::<()>(kind);
        let error = watcher.peer_cred(conn).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert!(error.to_string().contains("Unix socket"), "{error}");
        let unconnected = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        let unconnected = watcher.delegate(unconnected).unwrap();
        let listener = watcher.listen(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
        for conn in [unconnected, listener] {
            let error = watcher.peer_cred(conn).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN));
        }
    }
}
