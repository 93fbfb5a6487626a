//! The end of a watcher: closed or dropped, with anything in flight, it hands out what it owes,
//! closes what it owns, refuses what comes later, and leaves nothing behind (scenario 20).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout)]

mod common;

use std::any::Any;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::time::Duration;

use common::process::{in_child, no_leak};
use common::refusal::{refuses, refuses_new};
use common::*;
use gaio::{BackendKind, Conn, Deadline, ErrorKind, Interest, Results, Watcher};
use socket2::SockRef;

/// More than the sockets between two ends can hold: its write stays pending.
const HUGE: usize = 16 << 20;

backends! {
    fn double_close(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.read(1, conn, None).unwrap();
        watcher.write(2, conn, vec![0; HUGE]).unwrap();
        watcher.timer(3, Duration::from_secs(3600)).unwrap();
        quiet(&mut watcher);
        watcher.close();
        watcher.close();
        let mut results = close_and_collect(&mut watcher);
        results.sort_by_key(|res| res.context);
        assert_eq!(
            results.iter().map(|res| res.context).collect::<Vec<u8>>(),
            [1, 2, 3]
        );
        assert!(
            results
                .iter()
                .all(|res| error_kind(res) == Some(ErrorKind::WatcherClosed))
        );
        assert!(close_and_collect(&mut watcher).is_empty());
        let sent = results[1].size;
        peer.read_exact(&mut vec![0; sent]).unwrap();
        assert_closed(&mut peer);
    }

    fn wait_after_close(kind: BackendKind) {
        let mut watcher = watcher::<()>(kind);
        watcher.close();
        let mut results = Results::new();
        for _ in 0..3 {
            let error = watcher.wait_io(&mut results).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WatcherClosed);
            let error = watcher.wait_io_timeout(&mut results, PATIENCE).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::WatcherClosed);
            assert!(results.is_empty());
        }
    }

    fn submit_after_close(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        watcher.close();
        refuses(&mut watcher, conn, ErrorKind::WatcherClosed);
        refuses_new(&mut watcher, ErrorKind::WatcherClosed);
        assert!(close_and_collect(&mut watcher).is_empty());
        refuses(&mut watcher, conn, ErrorKind::WatcherClosed);
        refuses_new(&mut watcher, ErrorKind::WatcherClosed);
    }

    fn drop_with_inflight(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            drop(watcher::<()>(kind)); // What the first one opens for good, if anything.
            for (name, start) in IN_FLIGHT {
                for ending in [ending_drop, ending_close, ending_close_and_collect] {
                    for started in [false, true] {
                        println!("{name}, with a turn before the end: {started}");
                        no_leak(|| {
                            let mut watcher = watcher(kind);
                            let others = start(&mut watcher);
                            if started {
                                watcher
                                    .wait_io_timeout(&mut Results::new(), GLANCE)
                                    .unwrap();
                            }
                            ending(watcher);
                            drop(others);
                        });
                    }
                }
            }
        });
    }

    fn drop_closes_connections(kind: BackendKind) {
        for ending in [ending_drop, ending_close, ending_close_and_collect] {
            let (mut watcher, idle, mut idle_peer) = connected(kind);
            let (busy, mut busy_peer) = connect_to(&mut watcher);
            watcher.read((), busy, vec![0; 100]).unwrap();
            quiet(&mut watcher);
            ending(watcher);
            assert_closed(&mut idle_peer);
            assert_closed(&mut busy_peer);
            assert_ne!(idle, busy);
        }
    }

    fn drop_with_remote_alive(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            drop(watcher::<()>(kind));
            no_leak(|| {
                let (mut watcher, conn, _peer) = connected(kind);
                let remote = watcher.remote();
                let (unseen, mut peer) = pair();
                remote.read((), conn, None).unwrap();
                quiet(&mut watcher);
                // These the watcher never comes to see.
                let unseen = remote.delegate(unseen).unwrap();
                remote.read((), unseen, None).unwrap();
                remote.post(()).unwrap();
                drop(watcher);
                assert_closed(&mut peer);
                let refused = remote.read((), conn, vec![0; 5]).unwrap_err();
                assert_eq!(refused.error().kind(), ErrorKind::WatcherClosed);
                assert_eq!(refused.into_inner(), ((), Some(vec![0; 5])));
                let refused = remote.delegate(pair().0).unwrap_err();
                assert_eq!(refused.error().kind(), ErrorKind::WatcherClosed);
                assert!(remote.clone().post(()).is_err() && remote.free(conn).is_err());
                remote.close();
            });
        });
    }

    fn refused_delegate_gives_the_socket_back(kind: BackendKind) {
        // As it was handed in: open, and in its blocking mode.
        let mut watcher = watcher::<()>(kind);
        watcher.close();
        let (ours, mut peer) = pair();
        let back = watcher.delegate(ours).unwrap_err().into_inner();
        assert!(!SockRef::from(&back.as_fd()).nonblocking().unwrap());
        TcpStream::from(back).write_all(b"still open").unwrap();
        read_exactly(&mut peer, b"still open");
    }
}

/// Requests that stay in flight, one of each kind, with what must live as long as they do.
const IN_FLIGHT: [(&str, Start); 12] = [
    ("read, swap buffer", |watcher| {
        on_conn(watcher, |it, conn| {
            it.read((), conn, None).unwrap();
        })
    }),
    ("read, own buffer", |watcher| {
        on_conn(watcher, |it, conn| {
            it.read((), conn, vec![0; 4096]).unwrap();
        })
    }),
    ("read with a deadline", |watcher| {
        on_conn(watcher, |it, conn| {
            let far = Duration::from_secs(3600);
            it.read_timeout((), conn, None, far).unwrap();
        })
    }),
    ("read_full, half done", |watcher| {
        let (conn, mut peer) = connect_to(watcher);
        peer.write_all(b"half").unwrap();
        watcher
            .read_full((), conn, vec![0; 8], Deadline::NEVER)
            .unwrap();
        Box::new(peer)
    }),
    ("read_stream, with results", |watcher| {
        let (conn, mut peer) = connect_to(watcher);
        peer.write_all(b"some").unwrap();
        watcher.read_stream((), conn).unwrap();
        Box::new(peer)
    }),
    ("write and shutdown", |watcher| {
        on_conn(watcher, |it, conn| {
            it.write((), conn, vec![0; HUGE]).unwrap();
            it.shutdown((), conn, Shutdown::Write).unwrap();
        })
    }),
    ("ready", |watcher| {
        on_conn(watcher, |it, conn| {
            it.ready((), conn, Interest::Readable).unwrap();
        })
    }),
    ("timer", |watcher| {
        watcher.timer((), Duration::from_secs(3600)).unwrap();
        Box::new(())
    }),
    ("accept, with unread results", |watcher| {
        let (socket, address) = listener();
        let listener = watcher.listen(socket).unwrap();
        watcher.accept((), listener).unwrap();
        let clients = [(); 3].map(|()| TcpStream::connect(address).unwrap());
        Box::new(clients)
    }),
    ("accept_one", |watcher| {
        let listener = watcher.listen(listener().0).unwrap();
        watcher.accept_one((), listener).unwrap();
        Box::new(())
    }),
    ("connect", |watcher| {
        let (full, others) = full_backlog();
        let address = full.local_addr().unwrap();
        watcher.connect((), address, Deadline::NEVER).unwrap();
        Box::new((full, others))
    }),
    ("remote requests nobody saw", |watcher| {
        let (ours, peer) = pair();
        let remote = watcher.remote();
        let conn = remote.delegate(ours).unwrap();
        remote.read((), conn, None).unwrap();
        remote.post(()).unwrap();
        Box::new(peer)
    }),
];

/// Starts a request and returns what it needs.
type Start = fn(&mut Watcher) -> Box<dyn Any>;

fn on_conn(watcher: &mut Watcher, start: impl FnOnce(&mut Watcher, Conn)) -> Box<dyn Any> {
    let (conn, peer) = connect_to(watcher);
    start(watcher, conn);
    Box::new(peer)
}

fn ending_drop(watcher: Watcher) {
    drop(watcher);
}

fn ending_close(mut watcher: Watcher) {
    watcher.close();
}

fn ending_close_and_collect(mut watcher: Watcher) {
    close_and_collect(&mut watcher);
}
