//! The echo servers: each takes a listener, sends back what it gets, and never returns. All run on
//! one thread, with buffers of 64 KiB, and take their sockets' options from the listener.

mod compio;
mod floor_epoll;
mod floor_uring;
mod mio;
mod monoio;
mod ours;
mod tokio;

use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use gaio::BackendKind::{Epoll, IoUring};

use crate::Fallible;

/// Bytes that one read can take.
const BUFFER_BYTES: usize = 64 * 1024;

/// How a server waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Uring,
    Epoll,
}

/// A server's name, and what runs it.
pub struct Server {
    pub name: &'static str,
    pub kind: Kind,
    /// Written by hand, for the others to be compared with.
    pub floor: bool,
    pub run: fn(TcpListener) -> Fallible<()>,
}

const fn floor(name: &'static str, kind: Kind, run: fn(TcpListener) -> Fallible<()>) -> Server {
    let floor = true;
    Server {
        name,
        kind,
        floor,
        run,
    }
}

const fn peer(name: &'static str, kind: Kind, run: fn(TcpListener) -> Fallible<()>) -> Server {
    let floor = false;
    Server {
        name,
        kind,
        floor,
        run,
    }
}

/// All of them.
pub const ALL: &[Server] = &[
    floor("floor-uring-once", Kind::Uring, |listener| {
        floor_uring::run(listener, false)
    }),
    floor("floor-uring-stream", Kind::Uring, |listener| {
        floor_uring::run(listener, true)
    }),
    floor("floor-epoll", Kind::Epoll, floor_epoll::run),
    peer("gaio-uring-once", Kind::Uring, |listener| {
        ours::run(listener, IoUring, false, SLEEP)
    }),
    peer("gaio-uring-stream", Kind::Uring, |listener| {
        ours::run(listener, IoUring, true, SLEEP)
    }),
    peer("gaio-epoll-once", Kind::Epoll, |listener| {
        ours::run(listener, Epoll, false, SLEEP)
    }),
    peer("gaio-epoll-stream", Kind::Epoll, |listener| {
        ours::run(listener, Epoll, true, SLEEP)
    }),
    peer("mio", Kind::Epoll, mio::run),
    peer("tokio", Kind::Epoll, tokio::run),
    peer("monoio", Kind::Uring, monoio::run),
    peer("compio", Kind::Uring, compio::run),
];

/// Ours, looking for so long before they sleep: for the round trip of one connection.
pub const SPINNING: &[Server] = &[
    peer("gaio-uring-spin", Kind::Uring, |listener| {
        ours::run(listener, IoUring, false, SPIN)
    }),
    peer("gaio-epoll-spin", Kind::Epoll, |listener| {
        ours::run(listener, Epoll, false, SPIN)
    }),
];

const SLEEP: Duration = Duration::ZERO;
const SPIN: Duration = Duration::from_millis(1);

/// Connections that may close before the process ends; none is no limit.
static CLOSES_LEFT: AtomicUsize = AtomicUsize::new(0);

/// Lets this process end when so many connections have closed, by itself: under valgrind, no signal
/// reaches a process that waits in io_uring.
pub fn end_after(closes: usize) {
    CLOSES_LEFT.store(closes, Ordering::Relaxed);
}

/// A connection has closed.
fn closed() {
    let left = CLOSES_LEFT.load(Ordering::Relaxed);
    if left == 1 {
        std::process::exit(0);
    }
    CLOSES_LEFT.store(left.saturating_sub(1), Ordering::Relaxed);
}

/// The server of that name.
pub fn find(name: &str) -> Option<&'static Server> {
    ALL.iter()
        .chain(SPINNING)
        .find(|server| server.name == name)
}
