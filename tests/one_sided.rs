//! Peers that say something a waiting operation did not ask for: they end their own writing and read on,
//! or not; they send urgent data. Nothing waits for anything else than what it was asked to wait for, nothing
//! hangs, and no operation becomes a thread of the kernel's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use common::process::in_child;
use common::{
    GLANCE, backends, collect, connected, error_kind, next, pair, pattern_vec, quiet, read_exactly,
    read_pattern, until, watcher,
};
use gaio::{BackendKind, Conn, Deadline, ErrorKind, Interest, OpId, OpResult, Results, Watcher};
use socket2::SockRef;

/// What the peer does beside reading slowly.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Peer {
    EndsItsWriting,
    SendsUrgentData,
}

/// When it does so.
#[derive(Clone, Copy, Debug, PartialEq)]
enum When {
    BeforeTheWrite,
    WhileItWaits,
}

#[derive(Clone, Copy, Debug)]
enum Family {
    Tcp,
    Unix,
}

/// More than the sockets of a connection take.
fn much() -> Bytes {
    static MUCH: OnceLock<Bytes> = OnceLock::new();
    MUCH.get_or_init(|| vec![7; common::MUCH].into()).clone()
}

/// All situations that there are.
fn situations() -> impl Iterator<Item = (Family, Peer, When)> {
    let peers = [
        (Family::Tcp, Peer::EndsItsWriting),
        (Family::Unix, Peer::EndsItsWriting),
        (Family::Tcp, Peer::SendsUrgentData),
    ];
    let times = [When::BeforeTheWrite, When::WhileItWaits];
    peers
        .into_iter()
        .flat_map(move |(family, peer)| times.map(|when| (family, peer, when)))
}

impl Peer {
    fn acts(self, stream: &TcpStream) {
        match self {
            Peer::EndsItsWriting => stream.shutdown(Shutdown::Write).unwrap(),
            Peer::SendsUrgentData => {
                SockRef::from(stream).send_out_of_band(b"!").unwrap();
            }
        }
    }
}

/// Two connected ends. The calls are the same for both families.
fn ends(family: Family) -> (OwnedFd, TcpStream) {
    match family {
        Family::Tcp => {
            let (ours, peer) = pair();
            (ours.into(), peer)
        }
        Family::Unix => {
            let (ours, peer) = UnixStream::pair().unwrap();
            (ours.into(), OwnedFd::from(peer).into())
        }
    }
}

/// What [`waiting_write`] makes.
struct Waiting {
    conn: Conn,
    op: OpId,
    stream: TcpStream,
    /// If it has ended already: its deadline may be short.
    early: Option<OpResult<u8>>,
}

/// A connection on which a write waits that is far larger than what the socket takes.
fn waiting_write(
    watcher: &mut Watcher<u8>,
    (family, peer, when): (Family, Peer, When),
    deadline: Deadline,
) -> Waiting {
    let (ours, stream) = ends(family);
    let conn = watcher.delegate(ours).unwrap();
    if when == When::BeforeTheWrite {
        peer.acts(&stream);
    }
    let op = watcher.write_timeout(1, conn, much(), deadline).unwrap();
    let mut early = Results::new();
    watcher.wait_io_timeout(&mut early, Duration::ZERO).unwrap();
    if when == When::WhileItWaits {
        peer.acts(&stream);
    }
    Waiting {
        conn,
        op,
        stream,
        early: early.pop(),
    }
}

backends! {
    fn write_is_read_in_the_end(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let threads_before = threads();
            for (family, peer, when) in situations() {
                let mut watcher = watcher::<u8>(kind);
                let (ours, mut stream) = ends(family);
                let conn = watcher.delegate(ours).unwrap();
                if when == When::BeforeTheWrite {
                    peer.acts(&stream);
                }
                watcher.write(1, conn, pattern_vec(0, 8 << 20)).unwrap();
                // Several at once go another way.
                watcher.write(2, conn, pattern_vec(8 << 20, 1 << 20)).unwrap();
                watcher.write(3, conn, b"last").unwrap();
                quiet(&mut watcher);
                if when == When::WhileItWaits {
                    peer.acts(&stream);
                    quiet(&mut watcher);
                }
                assert_eq!(threads(), threads_before, "{family:?} {peer:?} {when:?}");
                let reader = thread::spawn(move || {
                    read_pattern(&mut stream, 0, 9 << 20);
                    read_exactly(&mut stream, b"last");
                });
                for res in collect(&mut watcher, 3) {
                    assert_eq!(res.error, None, "{family:?} {peer:?} {when:?}");
                }
                reader.join().unwrap();
            }
        });
    }

    fn deadline_passes(kind: BackendKind) {
        for situation in situations() {
            let mut watcher = watcher(kind);
            let waiting = waiting_write(&mut watcher, situation, GLANCE.into());
            let res = waiting.early.unwrap_or_else(|| next(&mut watcher));
            let kind = error_kind(&res);
            assert_eq!(
                (res.op, kind),
                (waiting.op, Some(ErrorKind::Deadline)),
                "{situation:?}"
            );
        }
    }

    fn cancelled(kind: BackendKind) {
        let cases = situations().flat_map(|it| [(it, true), (it, false)]);
        in_child(module_path!(), kind, || {
            let threads_before = threads();
            for (situation, at_once) in cases {
                let mut watcher = watcher(kind);
                let waiting = waiting_write(&mut watcher, situation, Deadline::NEVER);
                let (conn, op) = (waiting.conn, waiting.op);
                if !at_once {
                    quiet(&mut watcher);
                }
                assert!(watcher.cancel(op));
                let res = next(&mut watcher);
                assert_eq!((res.op, error_kind(&res)), (op, Some(ErrorKind::Cancelled)));
                assert!(res.size > 0, "{situation:?}");
                // The next one waits likewise.
                let op = watcher.write(2, conn, much()).unwrap();
                quiet(&mut watcher);
                assert_eq!(threads(), threads_before, "{situation:?}");
                assert!(watcher.cancel(op));
                assert_eq!(error_kind(&next(&mut watcher)), Some(ErrorKind::Cancelled));
            }
        });
    }

    fn freed(kind: BackendKind) {
        let cases = situations().flat_map(|it| [(it, true), (it, false)]);
        in_child(module_path!(), kind, || {
            let threads_before = threads();
            for (situation, at_once) in cases {
                let mut watcher = watcher(kind);
                let waiting = waiting_write(&mut watcher, situation, Deadline::NEVER);
                if !at_once {
                    quiet(&mut watcher);
                    assert_eq!(threads(), threads_before, "{situation:?}");
                }
                assert!(watcher.free(waiting.conn));
                let res = next(&mut watcher);
                assert_eq!(error_kind(&res), Some(ErrorKind::ConnClosed), "{situation:?}");
                assert_eq!(watcher.stats().pending, 0);
            }
        });
    }

    /// As many as a machine has threads to spare would be, if they were threads.
    fn no_threads(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let mut watcher = watcher(kind);
            let before = threads();
            let mut peers = Vec::new();
            for situation in situations() {
                for _ in 0..10 {
                    let waiting = waiting_write(&mut watcher, situation, Deadline::NEVER);
                    peers.push(waiting.stream);
                }
            }
            quiet(&mut watcher);
            assert_eq!(threads(), before, "{} writes wait", peers.len());
            let pending = watcher.stats().pending;
            assert_eq!(pending, peers.len());
            drop(watcher);
            assert_eq!(threads(), before);
        });
    }

    fn ready_to_write(kind: BackendKind) {
        for (family, peer, when) in situations() {
            let mut watcher = watcher(kind);
            let waiting = waiting_write(&mut watcher, (family, peer, when), Deadline::NEVER);
            let (conn, op, mut stream) = (waiting.conn, waiting.op, waiting.stream);
            quiet(&mut watcher);
            assert!(watcher.cancel(op));
            let written = next(&mut watcher).size;
            watcher.ready(2, conn, Interest::Writable).unwrap();
            quiet(&mut watcher);
            quiet(&mut watcher);
            let reader = thread::spawn(move || {
                read_exactly(&mut stream, &vec![7; written]);
                stream
            });
            let res = next(&mut watcher);
            assert_eq!((res.context, res.error), (2, None), "{family:?} {peer:?} {when:?}");
            let mut stream = reader.join().unwrap();
            watcher.write(3, conn, b"more").unwrap();
            assert_eq!(next(&mut watcher).error, None);
            read_exactly(&mut stream, b"more");
        }
    }

    fn ready_to_read(kind: BackendKind) {
        for when in [When::BeforeTheWrite, When::WhileItWaits] {
            let (mut watcher, conn, mut peer) = connected(kind);
            if when == When::BeforeTheWrite {
                Peer::SendsUrgentData.acts(&peer);
                until_urgent(&watcher, conn);
            }
            watcher.ready(1, conn, Interest::Readable).unwrap();
            quiet(&mut watcher);
            if when == When::WhileItWaits {
                Peer::SendsUrgentData.acts(&peer);
                until_urgent(&watcher, conn);
                quiet(&mut watcher);
            }
            std::io::Write::write_all(&mut peer, b"data").unwrap();
            assert_eq!(next(&mut watcher).error, None, "{when:?}");
            watcher.read(2, conn, None).unwrap();
            assert_eq!(next(&mut watcher).data(), b"data");
            // The end of the other side's writing is something to read.
            watcher.ready(3, conn, Interest::Readable).unwrap();
            quiet(&mut watcher);
            peer.shutdown(Shutdown::Write).unwrap();
            assert_eq!(next(&mut watcher).error, None);
        }
    }
}

/// Waits until an urgent byte is there, whole. While it arrives, a busy system says for a moment that there
/// is something to read.
fn until_urgent<C>(watcher: &Watcher<C>, conn: Conn) {
    let mut poll = libc::pollfd {
        fd: watcher.socket(conn).unwrap().as_raw_fd(),
        events: libc::POLLPRI,
        revents: 0,
    };
    until("the urgent byte is there", || {
        // SAFETY: one entry, borrowed for the call.
        let count = unsafe { libc::poll(&raw mut poll, 1, 0) };
        count == 1 && poll.revents & libc::POLLPRI != 0
    });
}

/// Threads of this process, the kernel's for it included. Only Linux makes any, and tells.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}
