//! The guide: a page for each subject that a service meets. It is documentation only.
//!
//! - [`threads`]: one watcher for each thread, and [`Remote`](crate::Remote) for the others.
//! - [`leases`]: what a swap read returns, what it costs to keep, and back-pressure.
//! - [`deadlines`]: time limits of requests, idle connections, timers.
//! - [`errors`]: how each operation can end, what to do, and whose the connection is then.
//! - [`backends`]: which one a watcher gets, how to choose, and the options that matter.
//! - [`nesting`]: a watcher inside another event loop.
//!
//! # The parts
//!
//! A [`Watcher`](crate::Watcher) owns *connections*: sockets that were handed in, accepted or
//! connected. A [`Conn`](crate::Conn) is the handle of one. A call such as
//! [`read`](crate::Watcher::read) submits a *request* and returns its number, an
//! [`OpId`](crate::OpId). It never waits.
//!
//! [`wait_io`](crate::Watcher::wait_io) does the waiting. It fills a [`Results`](crate::Results)
//! with an [`OpResult`](crate::OpResult) for each finished request: the operation, the connection,
//! the [`Buffer`](crate::Buffer), the number of bytes, the error if there is one, and the *context*,
//! a value that the program handed in with the request. Contexts connect results with the program's
//! own state:
//!
//! ```
//! use gaio::{Results, Watcher};
//! use std::io::Write;
//! use std::os::unix::net::UnixStream;
//!
//! #[derive(Debug, PartialEq)]
//! enum Expected {
//!     Header,
//!     Body { length: usize },
//! }
//!
//! # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
//! let (ours, mut peer) = UnixStream::pair()?;
//! let mut watcher = Watcher::new()?;
//! let conn = watcher.delegate(ours)?;
//! peer.write_all(b"\x03abc")?;
//!
//! watcher.read(Expected::Header, conn, vec![0; 1])?;
//! let mut results = Results::new();
//! let body = 'body: loop {
//!     watcher.wait_io(&mut results)?;
//!     for res in results.drain() {
//!         match res.context {
//!             Expected::Header => {
//!                 let length = usize::from(res.data()[0]);
//!                 watcher.read(Expected::Body { length }, conn, None)?;
//!             }
//!             Expected::Body { length } => break 'body res.data()[..length].to_vec(),
//!         }
//!     }
//! };
//! assert_eq!(body, b"abc");
//! # Ok(())
//! # }
//! ```
//!
//! State that belongs to a connection fits into a vector: [`Conn::index`](crate::Conn::index) is a
//! small number.

pub mod backends;
pub mod deadlines;
pub mod errors;
pub mod leases;
pub mod nesting;
pub mod threads;
