//! A proactor for sockets: submit reads and writes, call [`wait_io`](Watcher::wait_io), get a
//! batch of finished operations.
//!
//! On Linux the operations are io_uring's own; where that is too old or not allowed, and on macOS and
//! the BSDs, an edge-triggered loop over epoll or kqueue does the same behind the same calls, and a
//! program cannot tell which one it runs on, except by [asking](Watcher::backend) and by the clock.
//!
//! ```no_run
//! use gaio::{Operation, Results, Watcher};
//! use std::net::{Shutdown, TcpListener};
//!
//! # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
//! let mut watcher = Watcher::new()?;
//! let listener = watcher.listen(TcpListener::bind("127.0.0.1:7000")?)?;
//! watcher.accept((), listener)?;
//! let mut results = Results::new();
//! loop {
//!     watcher.wait_io(&mut results)?;
//!     for res in results.drain() {
//!         match res.operation {
//!             Operation::Accept => {
//!                 if let Some(conn) = res.accepted() {
//!                     let _ = watcher.read((), conn, None);
//!                 }
//!             }
//!             _ if res.error.is_some() => {
//!                 watcher.free(res.conn); // the connection is lost
//!             }
//!             Operation::Read if res.is_eof() => {
//!                 // The peer sends no more, but may still read: our end comes after the last write.
//!                 let _ = watcher.shutdown((), res.conn, Shutdown::Write);
//!             }
//!             Operation::Read => {
//!                 let _ = watcher.write((), res.conn, res.buffer); // no copy: the lease travels
//!             }
//!             Operation::Write => {
//!                 let _ = watcher.read((), res.conn, None);
//!             }
//!             Operation::Shutdown => {
//!                 watcher.free(res.conn);
//!             }
//!             _ => {}
//!         }
//!     }
//! }
//! # }
//! ```
//!
//! The `let _` are on purpose: a request for a connection that was freed is refused, and that is no
//! reason to end the loop for all others, which `?` would do. If the watcher itself fails, `wait_io`
//! says so.
//!
//! To accept in another thread, hand the connections over through a [`Remote`]:
//!
//! ```no_run
//! use gaio::Remote;
//! use std::net::TcpListener;
//! use std::thread;
//! use std::time::Duration;
//!
//! fn accept(listener: TcpListener, remote: Remote) -> gaio::Result<()> {
//!     for socket in listener.incoming() {
//!         let Ok(socket) = socket else {
//!             // Out of descriptors, most likely: some will be closed.
//!             thread::sleep(Duration::from_millis(100));
//!             continue;
//!         };
//!         let conn = remote.delegate(socket)?; // fails only when the watcher is closed
//!         remote.read((), conn, None)?;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! # What holds on every backend
//!
//! - Every accepted request gives exactly one result (a stream: any number, then one that
//!   [is the last](OpResult::is_last)), also when it is cancelled, runs out of time, or its
//!   connection or the watcher is closed. A refused call starts nothing and gives everything
//!   back ([`Rejected`]).
//! - Per connection and direction, bytes move in the order of submission.
//! - A write ends when every byte is with the kernel. A read gives at least one byte, or the end.
//! - A read without a buffer of its own (`None`) gives a lease of a swap buffer: an idle
//!   connection holds no memory, and the bytes can be kept or written elsewhere without a copy.
//!   Leases that are kept are back-pressure on their own connection alone: when all buffers are out,
//!   one that holds little goes on in small buffers of its own, one that holds more waits.
//! - No call blocks but `wait_io`.
//!
//! # Fork
//!
//! A watcher belongs to the process that built it. In a child that `fork(2)` made, every call of its
//! [`Watcher`] and [`Remote`]s is refused with [`ErrorKind::Forked`] and gives back what it was given;
//! those that cannot fail say `false` or do nothing. Dropping them there closes the child's copies of
//! the descriptors and leaves the parent alone. So a daemon forks first and builds its watcher then;
//! a child that needs one builds its own. (Starting other programs, as `std::process::Command` does, is no
//! concern: all descriptors are close-on-exec.)
//!
//! # What is not promised
//!
//! - Datagram sockets are refused: this is a library for streams.
//! - `close(2)` is called on the watcher's thread; a socket with `SO_LINGER` set can block there.
//! - How many results a turn gives, and in which order results of different connections come.

#![forbid(unsafe_code)]

mod builder;
mod conn;
mod conn_table;
mod deadlines;
mod engine;
mod error;
mod inbox;
mod remote;
mod request;
mod results;
mod stats;
mod watcher;

pub use builder::Builder;
pub use conn::Conn;
pub use deadlines::Deadline;
pub use error::Rejected;
pub use gaio_backends::buffer::Buffer;
pub use gaio_backends::select::{BackendInfo, BackendKind, Choice, Declined};
pub use gaio_backends::swap::SwapBuf;
pub use gaio_backends::{Address, Error, ErrorKind, Interest, Result};
pub use remote::Remote;
pub use request::{OpId, Operation};
pub use results::{Drain, OpResult, Results};
pub use stats::Stats;
pub use std::net::Shutdown;
pub use watcher::Watcher;
