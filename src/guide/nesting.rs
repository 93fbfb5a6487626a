//! Nesting: a watcher inside another event loop.
//!
//! A program that already has a loop (a toolkit, an async runtime, `poll(2)`) can drive a watcher
//! from it. [`poll_fd`](crate::Watcher::poll_fd) returns a descriptor that is readable when the
//! watcher has something to do. Then:
//!
//! 1. Register the descriptor for reading, once. Level- and edge-triggered loops both work.
//! 2. Each time it is readable, make one turn that does not wait:
//!    [`wait_io_timeout`](crate::Watcher::wait_io_timeout) with a timeout of zero.
//! 3. Process the results. There may be none.
//!
//! The loop needs no timer for the watcher's deadlines: the descriptor becomes readable when one
//! passes. It also becomes readable when a [`Remote`](crate::Remote) sends something, and when the program
//! submits a request between two turns, because the next turn starts it.
//!
//! All of this happens on the watcher's own thread. In a runtime with several threads, run the loop
//! in a task that stays on its thread, and let other tasks use a `Remote`. With tokio, that is an
//! `AsyncFd` in a current-thread runtime or a `LocalSet`.
//!
//! # Example
//!
//! Here the outer loop is another watcher, which waits for the inner one's descriptor with
//! [`ready`](crate::Watcher::ready):
//!
//! ```
//! use gaio::{Interest, Results, Watcher};
//! use std::io::Write;
//! use std::os::unix::net::UnixStream;
//! use std::time::Duration;
//!
//! # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
//! let mut inner = Watcher::new()?;
//! let mut outer = Watcher::new()?;
//! let nested = outer.delegate(inner.poll_fd()?)?;
//! outer.ready("inner", nested, Interest::Readable)?;
//!
//! let (ours, mut peer) = UnixStream::pair()?;
//! let conn = inner.delegate(ours)?;
//! inner.read((), conn, None)?;
//! peer.write_all(b"hello")?;
//!
//! let (mut outer_results, mut inner_results) = (Results::new(), Results::new());
//! let mut received = Vec::new();
//! while received.is_empty() {
//!     outer.wait_io(&mut outer_results)?;
//!     for res in outer_results.drain() {
//!         assert_eq!(res.context, "inner");
//!         inner.wait_io_timeout(&mut inner_results, Duration::ZERO)?;
//!         for res in inner_results.drain() {
//!             received.extend_from_slice(res.data());
//!         }
//!         outer.ready("inner", nested, Interest::Readable)?;
//!     }
//! }
//! assert_eq!(received, b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! # Cost
//!
//! A nested watcher makes some more system calls a turn than one that waits itself. If you can,
//! nest the other way round: let the watcher be the loop, and wait for the other descriptors with
//! [`ready`](crate::Watcher::ready), or read from them as from any connection.
