//! A proactor for stream sockets: submit reads and writes, call [`wait_io`](Watcher::wait_io), get a
//! batch of finished operations.
//!
//! On Linux, the kernel runs the operations through io_uring. Where io_uring is unavailable, and on
//! macOS and the BSDs, an edge-triggered loop over epoll or kqueue provides the same API. A program
//! can [ask](Watcher::backend) which one it runs on; otherwise only the speed differs.
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
//!                 // No connection if descriptors ran out. Accepting goes on by itself.
//!                 if let Some(conn) = res.accepted() {
//!                     let _ = watcher.read((), conn, None);
//!                 }
//!             }
//!             _ if res.error.is_some() => {
//!                 watcher.free(res.conn); // the connection is lost
//!             }
//!             Operation::Read if res.is_eof() => {
//!                 // The peer sends no more, but may still read. So end after the last write.
//!                 let _ = watcher.shutdown((), res.conn, Shutdown::Write);
//!             }
//!             Operation::Read => {
//!                 let _ = watcher.write((), res.conn, res.buffer); // no copy: the lease moves
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
//! The `let _` are deliberate. A request for a connection that was freed is refused; that concerns
//! one connection, and `?` would end the loop for all of them. If the watcher itself fails,
//! `wait_io` says so.
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
//!             // Most likely out of descriptors. Wait until some are closed.
//!             thread::sleep(Duration::from_millis(100));
//!             continue;
//!         };
//!         let conn = remote.delegate(socket)?; // fails only if the watcher is closed
//!         remote.read((), conn, None)?;
//!     }
//!     Ok(())
//! }
//! ```
//!
//! The [`guide`] has a page each on [threads](guide::threads), [leases and
//! back-pressure](guide::leases), [deadlines](guide::deadlines), [errors](guide::errors), [choosing a
//! backend](guide::backends) and [nesting in another loop](guide::nesting).
//!
//! # What holds on every backend
//!
//! - Every accepted request has exactly one result, even if it is cancelled, runs out of time, or its
//!   connection or watcher is closed. A stream has any number, and then one that
//!   [is the last](OpResult::is_last).
//! - A refused call starts nothing and returns everything that was handed in ([`Rejected`]).
//! - Bytes of one connection move in the order of submission, in each direction.
//! - A write ends when the kernel has every byte. A read returns at least one byte, or the end.
//! - A deadline is never early, and loses no data.
//! - A read without a buffer of its own (`None`) returns a lease of a swap buffer. An idle connection
//!   holds no memory, and the bytes can be kept or forwarded without a copy.
//! - No connection can starve the others, however busy, slow or stuck it is.
//! - No call blocks except `wait_io`. No signal is raised. Descriptors are close-on-exec.
//! - A watcher belongs to one thread and one process; a [`Remote`] is for other threads. A forked child
//!   is [refused](ErrorKind::Forked).
//!
//! # What is not promised
//!
//! - Datagram sockets are refused: this library is for streams.
//! - `close(2)` runs on the watcher's thread. It can block for a socket with `SO_LINGER` set.
//! - The number of results in a turn, and the order of results of different connections, may change.

#![forbid(unsafe_code)]

mod builder;
mod conn;
mod conn_map;
mod conn_state;
mod conn_table;
mod deadlines;
mod engine;
mod error;
pub mod guide;
mod inbox;
mod listen_options;
mod op_index;
mod remote;
mod request;
mod results;
mod stats;
mod watcher;

pub use builder::Builder;
/// The crate whose [`Bytes`](bytes::Bytes) a [`Buffer`] can be made of, in the version that fits.
pub use bytes;
pub use conn::Conn;
pub use conn_map::ConnMap;
pub use deadlines::Deadline;
pub use error::Rejected;
pub use gaio_backends::Buffer;
pub use gaio_backends::SwapBuf;
pub use gaio_backends::{Address, Error, ErrorKind, Interest, PeerCred, Result};
pub use gaio_backends::{BackendInfo, BackendKind, Choice, Declined};
pub use listen_options::ListenOptions;
pub use remote::Remote;
pub use request::{OpId, Operation};
pub use results::{Drain, OpResult, Results};
pub use stats::Stats;
pub use std::net::Shutdown;
pub use watcher::Watcher;
