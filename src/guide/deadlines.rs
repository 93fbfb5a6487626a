//! Deadlines: time limits of requests, idle connections, timers.
//!
//! A [`Deadline`](crate::Deadline) is a point in time or [`NEVER`](crate::Deadline::NEVER). Calls
//! take it as a [`Duration`](std::time::Duration) from now, as an [`Instant`](std::time::Instant), or
//! as an `Option<Instant>`. A request whose deadline passes ends with
//! [`ErrorKind::Deadline`](crate::ErrorKind::Deadline), in a result like any other.
//!
//! - A deadline is never early. On an idle machine it is at most a few milliseconds late.
//! - Every request gets one attempt, even with a deadline in the past: bytes that are
//!   there are read.
//! - Nothing is lost. Bytes that arrived are in the result or still in the socket.
//!   [`size`](crate::OpResult::size) says how much of a write the kernel has.
//! - The connection stays open. The program decides what becomes of it.
//!
//! A deadline costs no thread and no system call of its own. A million of them are no problem.
//!
//! # Idle connections
//!
//! Give each read a deadline, and free the connection when one passes:
//!
//! ```
//! use gaio::{ErrorKind, Operation, Results, Watcher};
//! use std::io::Write;
//! use std::os::unix::net::UnixStream;
//! use std::time::Duration;
//!
//! # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
//! const IDLE: Duration = Duration::from_millis(20);
//! let (ours, mut peer) = UnixStream::pair()?;
//! let mut watcher = Watcher::new()?;
//! let conn = watcher.delegate(ours)?;
//! watcher.read_timeout((), conn, None, IDLE)?;
//! peer.write_all(b"the only words")?;
//!
//! let mut results = Results::new();
//! while watcher.contains(conn) {
//!     watcher.wait_io(&mut results)?;
//!     for res in results.drain() {
//!         match res.error.map(|error| error.kind()) {
//!             None => drop(watcher.read_timeout((), conn, None, IDLE)),
//!             Some(ErrorKind::Deadline) => drop(watcher.free(conn)), // silent for too long
//!             Some(_) => drop(watcher.free(conn)),
//!         }
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! A stream has no deadline of its own. [`set_deadline`](crate::Watcher::set_deadline) gives it one, and
//! moves it with each result: then it is the longest silence that the program bears.
//!
//! # One limit for a whole exchange
//!
//! An `Instant` can be used for several requests. This call has two seconds in all, for the
//! connection, the question and the answer:
//!
//! ```
//! use gaio::{Operation, Results, Watcher};
//! use std::io::{Read, Write};
//! use std::net::TcpListener;
//! use std::time::{Duration, Instant};
//!
//! # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
//! # let server = TcpListener::bind("127.0.0.1:0")?;
//! # let address = server.local_addr()?;
//! # let thread = std::thread::spawn(move || -> std::io::Result<()> {
//! #     let (mut socket, _) = server.accept()?;
//! #     socket.read_exact(&mut [0; 9])?;
//! #     socket.write_all(b"42\n")
//! # });
//! let limit = Instant::now() + Duration::from_secs(2);
//! let mut watcher = Watcher::new()?;
//! let conn = watcher.connect((), address, limit)?;
//! watcher.write_timeout((), conn, "question\n", limit)?;
//! watcher.read_timeout((), conn, None, limit)?; // all three at once
//!
//! let mut results = Results::new();
//! let mut answer = None;
//! while watcher.stats().pending > 0 {
//!     watcher.wait_io(&mut results)?;
//!     for res in results.drain() {
//!         match res.error {
//!             Some(error) => eprintln!("{error}"),
//!             None if res.operation == Operation::Read => answer = Some(res.data().to_vec()),
//!             None => {}
//!         }
//!     }
//! }
//! watcher.free(conn); // also after an error
//! assert_eq!(answer.as_deref(), Some(&b"42\n"[..]));
//! # thread.join().expect("no panic")?;
//! # Ok(())
//! # }
//! ```
//!
//! # After a deadline
//!
//! - A **read** can be submitted again: nothing is lost.
//! - A **write** may have sent a part of its bytes. Free the connection, unless `size` is zero.
//! - A **connect** may still succeed in the system. Free the handle and connect anew.
//!
//! # Timers
//!
//! [`timer`](crate::Watcher::timer) has a result at its time, without an error. Use it for
//! everything that belongs to no request: ticks, retries, statistics. It belongs to no connection
//! and ends by itself or by [`cancel`](crate::Watcher::cancel). A retry with growing pauses:
//!
//! ```
//! use gaio::{Deadline, Operation, Results, Watcher};
//! use std::net::TcpListener;
//! use std::time::Duration;
//!
//! # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
//! let nobody = TcpListener::bind("127.0.0.1:0")?.local_addr()?; // closed again
//! let mut watcher = Watcher::new()?;
//! let mut results = Results::new();
//! let mut attempts = 0;
//! watcher.connect((), nobody, Duration::from_secs(1))?;
//! while watcher.stats().pending > 0 {
//!     watcher.wait_io(&mut results)?;
//!     for res in results.drain() {
//!         if res.operation == Operation::Timer {
//!             watcher.connect((), nobody, Duration::from_secs(1))?;
//!         } else if res.error.is_some() {
//!             watcher.free(res.conn);
//!             attempts += 1;
//!             if attempts < 3 {
//!                 watcher.timer((), Duration::from_millis(1 << attempts))?;
//!             }
//!         }
//!     }
//! }
//! assert_eq!(attempts, 3);
//! # Ok(())
//! # }
//! ```
