//! The end of a watcher, closed or dropped, with anything in flight: it returns what it owes, closes what
//! it owns, refuses later calls, and leaves nothing behind.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout)]

mod common;

use std::any::Any;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;

use common::process::{affordable, in_child, no_leak};
use common::refusal::{refuses, refuses_new, refuses_post};
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
        refuses_post(&watcher.remote());
        assert!(close_and_collect(&mut watcher).is_empty());
        refuses(&mut watcher, conn, ErrorKind::WatcherClosed);
        refuses_new(&mut watcher, ErrorKind::WatcherClosed);
        refuses_post(&watcher.remote());
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

    /// While the thread lives on that used it: whoever dropped it, everything has ended.
    fn drop_elsewhere(kind: BackendKind) {
        for (name, start) in IN_FLIGHT {
            println!("{name}");
            let used = |watcher: &mut Watcher| {
                let others = start(watcher);
                let (conn, peer) = connect_to(watcher);
                watcher.read_stream((), conn).unwrap();
                (others, peer)
            };
            dropped_elsewhere(kind, used, |(_others, mut peer)| assert_closed(&mut peer));
        }
    }

    /// The peer reads what was sent, and then the end.
    fn drop_elsewhere_while_writing(kind: BackendKind) {
        for waits_only in [false, true] {
            let used = |watcher: &mut Watcher| {
                let (ours, peer) = pair();
                if waits_only {
                    ours.set_nonblocking(true).unwrap();
                    while (&ours).write(&[0; 4096]).is_ok() {}
                }
                let conn = watcher.delegate(ours).unwrap();
                if waits_only {
                    watcher.ready((), conn, Interest::Writable).unwrap();
                } else {
                    watcher.write((), conn, vec![0; MUCH]).unwrap();
                }
                peer
            };
            dropped_elsewhere(kind, used, |mut peer| read_to_the_end(&mut peer));
        }
    }

    /// However small the queue: all is cancelled, and every peer sees its end.
    fn drop_with_thousands_in_flight(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let count = affordable(5_000) / 2;
            let block = Bytes::from(vec![0; 1 << 20]);
            for (depth, writes) in [(1, false), (32, true), (1024, false)] {
                let mut watcher: Watcher = builder(kind).queue_depth(depth).build().unwrap();
                let mut peers = Vec::new();
                for _ in 0..count {
                    let (ours, peer) = UnixStream::pair().unwrap();
                    let conn = watcher.delegate(ours).unwrap();
                    if writes {
                        watcher.write((), conn, block.clone()).unwrap();
                    } else {
                        watcher.read((), conn, None).unwrap();
                    }
                    peers.push(peer);
                }
                until("all are in flight", || {
                    watcher.wait_io_timeout(&mut Results::new(), Duration::ZERO).unwrap();
                    !writes || peers.iter().all(|peer| readable(peer, Duration::ZERO))
                });
                quiet(&mut watcher);
                drop(watcher);
                for peer in &mut peers {
                    peer.set_read_timeout(Some(PATIENCE)).unwrap();
                    read_to_the_end(peer);
                }
            }
        });
    }

    /// What drops a buffer may do anything, and soon does: also if the ring outlives its watcher,
    /// because a forked process holds it for a while.
    fn owner_that_builds_a_watcher(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            drop(watcher::<()>(kind));
            for forks in [false, true] {
                no_leak(|| {
                    let (told, dropped) = mpsc::channel();
                    let used = |watcher: &mut Watcher| {
                        let (conn, peer) = connect_to(watcher);
                        let owner = Owner(kind, vec![0; MUCH], told);
                        watcher.write((), conn, Bytes::from_owner(owner)).unwrap();
                        quiet(watcher);
                        (peer, forks.then(SleepingCopy::start))
                    };
                    dropped_elsewhere(kind, used, |(_peer, copy)| {
                        drop(copy);
                        dropped.recv_timeout(PATIENCE).unwrap();
                    });
                });
            }
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

/// Has a watcher used on another thread, drops it here, and checks while that thread lives.
fn dropped_elsewhere<T: Send>(
    kind: BackendKind,
    used: impl FnOnce(&mut Watcher) -> T + Send,
    check: impl FnOnce(T),
) {
    let (give, take) = mpsc::channel();
    let (may_end, ended) = mpsc::channel::<()>();
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut watcher = watcher(kind);
            let others = used(&mut watcher);
            let mut results = Results::new();
            watcher.wait_io_timeout(&mut results, GLANCE).unwrap();
            give.send((watcher, others)).unwrap();
            let _ = ended.recv();
        });
        let (watcher, others) = take.recv().unwrap();
        drop(watcher);
        check(others);
        drop(may_end);
    });
}

/// Reads whatever is there up to the end, which may be a reset.
fn read_to_the_end(from: &mut impl Read) {
    let mut room = vec![0; 1 << 20];
    loop {
        match from.read(&mut room) {
            Ok(0) => return,
            Ok(_) => {}
            // A ring of this thread has ended just now.
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                return assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "{error}");
            }
        }
    }
}

/// Bytes whose owner builds a watcher when it is dropped, and tells.
struct Owner(BackendKind, Vec<u8>, mpsc::Sender<()>);

impl AsRef<[u8]> for Owner {
    fn as_ref(&self) -> &[u8] {
        &self.1
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        assert_works(watcher(self.0));
        self.2.send(()).unwrap();
    }
}

/// A forked process that does nothing but hold the same descriptors.
struct SleepingCopy(libc::pid_t);

impl SleepingCopy {
    fn start() -> Self {
        // SAFETY: the child makes only calls that are safe after a fork.
        match unsafe { libc::fork() } {
            0 => loop {
                // SAFETY: it touches no memory.
                unsafe { libc::pause() };
            },
            child => SleepingCopy(child),
        }
    }
}

impl Drop for SleepingCopy {
    fn drop(&mut self) {
        // SAFETY: the process is this one's child and was not waited for; no memory is touched but
        // what is borrowed for the call.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
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
type Start = fn(&mut Watcher) -> Box<dyn Any + Send>;

fn on_conn(watcher: &mut Watcher, start: impl FnOnce(&mut Watcher, Conn)) -> Box<dyn Any + Send> {
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
