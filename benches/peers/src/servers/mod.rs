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

use crate::Fallible;

/// Bytes that one read can take.
const BUFFER_BYTES: usize = 64 * 1024;

/// A server's name, and what runs it.
pub struct Server {
    pub name: &'static str,
    pub run: fn(TcpListener) -> Fallible<()>,
}

/// All of them. The first ones set the limit that the others are compared with.
pub const ALL: &[Server] = &[
    Server {
        name: "floor-uring-once",
        run: |listener| floor_uring::run(listener, false),
    },
    Server {
        name: "floor-uring-stream",
        run: |listener| floor_uring::run(listener, true),
    },
    Server {
        name: "floor-epoll",
        run: floor_epoll::run,
    },
    Server {
        name: "gaio-uring-once",
        run: |listener| ours::run(listener, gaio::BackendKind::IoUring, false),
    },
    Server {
        name: "gaio-uring-stream",
        run: |listener| ours::run(listener, gaio::BackendKind::IoUring, true),
    },
    Server {
        name: "gaio-epoll-once",
        run: |listener| ours::run(listener, gaio::BackendKind::Epoll, false),
    },
    Server {
        name: "gaio-epoll-stream",
        run: |listener| ours::run(listener, gaio::BackendKind::Epoll, true),
    },
    Server {
        name: "mio",
        run: mio::run,
    },
    Server {
        name: "tokio",
        run: tokio::run,
    },
    Server {
        name: "monoio",
        run: monoio::run,
    },
    Server {
        name: "compio",
        run: compio::run,
    },
];

/// The server of that name.
pub fn find(name: &str) -> Option<&'static Server> {
    ALL.iter().find(|server| server.name == name)
}
