//! Leases and back-pressure: what a swap read returns, and what it costs to keep.
//!
//! A read without a buffer of its own, `read(ctx, conn, None)`, takes memory only when data has
//! arrived. The bytes then lie in a *swap buffer* of a pool that all connections of the watcher
//! share, and the result holds a *lease* of them. So ten thousand idle connections hold no read
//! buffers at all.
//!
//! # What a lease can do
//!
//! The bytes of a lease never change while it lives. It can be written to any connection, cut with
//! [`slice`](crate::SwapBuf::slice), cloned, kept, and sent to other threads, without a copy. It can
//! outlive the watcher. This relay forwards what it reads:
//!
//! ```
//! use gaio::{Results, Watcher};
//! use std::io::{Read, Write};
//! use std::os::unix::net::UnixStream;
//!
//! # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
//! let (left, mut sender) = UnixStream::pair()?;
//! let (right, mut receiver) = UnixStream::pair()?;
//! let mut watcher = Watcher::new()?;
//! let (left, right) = (watcher.delegate(left)?, watcher.delegate(right)?);
//!
//! watcher.read((), left, None)?;
//! sender.write_all(b"hello")?;
//! let mut results = Results::new();
//! watcher.wait_io(&mut results)?;
//! let res = results.pop().expect("one read was submitted");
//! assert!(res.is_swap_buffer());
//! watcher.write((), right, res.buffer)?; // the lease moves, the bytes stay
//! watcher.wait_io(&mut results)?;
//!
//! let mut text = [0; 5];
//! receiver.read_exact(&mut text)?;
//! assert_eq!(&text, b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! [`Buffer::into_swap`](crate::Buffer::into_swap) takes the lease out of a result, to keep it:
//!
//! ```
//! use gaio::{OpResult, SwapBuf};
//!
//! /// The first line of what was read, without a copy.
//! fn first_line(res: OpResult) -> Option<SwapBuf> {
//!     let end = res.data().iter().position(|&byte| byte == b'\n')?;
//!     let lease = res.buffer.into_swap().ok()?;
//!     Some(lease.slice(..end))
//! }
//! ```
//!
//! # Messages across reads
//!
//! A read ends where the bytes that have arrived end, so the last message may be incomplete. Copy
//! those few bytes, and go on with the next read:
//!
//! ```
//! /// Cuts a stream of bytes into lines.
//! #[derive(Default)]
//! struct Lines {
//!     /// The beginning of a line whose end has not arrived.
//!     rest: Vec<u8>,
//! }
//!
//! impl Lines {
//!     const LINE_BYTES_MAX: usize = 8192;
//!
//!     /// Returns false if a line is too long.
//!     fn feed(&mut self, mut bytes: &[u8], mut handle: impl FnMut(&[u8])) -> bool {
//!         while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
//!             if self.rest.is_empty() {
//!                 handle(&bytes[..end]); // the common case: no copy
//!             } else {
//!                 self.rest.extend_from_slice(&bytes[..end]);
//!                 handle(&self.rest);
//!                 self.rest.clear();
//!             }
//!             bytes = &bytes[end + 1..];
//!         }
//!         self.rest.extend_from_slice(bytes);
//!         self.rest.len() <= Self::LINE_BYTES_MAX
//!     }
//! }
//!
//! // For each read of a connection: lines.feed(res.data(), |line| ...)
//! let mut lines = Lines::default();
//! let mut seen = Vec::new();
//! for piece in [&b"GET a\nGE"[..], b"T b", b"\n"] {
//!     assert!(lines.feed(piece, |line| seen.push(String::from_utf8_lossy(line).into_owned())));
//! }
//! assert_eq!(seen, ["GET a", "GET b"]);
//! ```
//!
//! Messages of a known length are easier: [`read_full`](crate::Watcher::read_full) for the header, and
//! again for the body.
//!
//! # What it costs to keep
//!
//! A swap buffer takes new data once all leases of it are dropped. A lease of five bytes keeps
//! a whole buffer (64 KiB by default) away from the pool. So drop leases soon, hand them on, or copy the
//! few bytes that have to live long.
//!
//! When all swap buffers are out, a connection waits for its *own* leases only. One that holds
//! little reads on in small buffers of its own, at most two of 4 KiB. One that holds more waits
//! until some of its leases, or a swap buffer, come back. Waiting is not an error. The memory of swap
//! reads is therefore at most
//! [`swap_buffers`](crate::Builder::swap_buffers) × [`swap_buffer_size`](crate::Builder::swap_buffer_size)
//! (16 MiB by default), and 8 KiB for each connection whose leases the program keeps.
//! [`Stats`](crate::Stats) shows the state of the pool: `leases`, `swap_buffers_out`,
//! `swap_buffers_peak`, `swap_bytes`, and in `swap_starved` the reads that found it used up.
//!
//! # Back-pressure
//!
//! A peer that sends quickly and reads slowly must not fill the server's memory. There are three ways.
//!
//! **Read after the write.** Submit the next read on the result of the write. Each connection then
//! holds the bytes of one read, and TCP slows the peer down. The main loop in the
//! [crate's documentation](crate) does this.
//!
//! **A stream's window.** [`read_stream`](crate::Watcher::read_stream) reads on by itself, and pauses
//! while the program holds more leased bytes of this stream than
//! [`stream_window`](crate::Builder::stream_window). Leases in writes that wait are held, too:
//! so a stream whose leases are written to another connection stops when that one is slow.
//!
//! ```
//! use gaio::{Results, Watcher};
//! use std::io::Write;
//! use std::os::unix::net::UnixStream;
//! use std::thread;
//! use std::time::Duration;
//!
//! # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
//! const SENT: usize = 8_000_000;
//! let (ours, mut peer) = UnixStream::pair()?;
//! let mut watcher = Watcher::builder().stream_window(16 * 1024).build()?;
//! let conn = watcher.delegate(ours)?;
//! watcher.read_stream((), conn)?;
//! let writer = thread::spawn(move || peer.write_all(&vec![7; SENT]));
//!
//! // Kept leases stop the stream.
//! let mut results = Results::new();
//! let mut kept = Vec::new();
//! while watcher.wait_io_timeout(&mut results, Duration::from_millis(20))? > 0 {
//!     kept.extend(results.drain().map(|res| res.buffer));
//! }
//! let mut received: usize = kept.iter().map(|buffer| buffer.len()).sum();
//! assert!(received < SENT);
//!
//! // Dropped leases let it go on.
//! kept.clear();
//! while received < SENT {
//!     watcher.wait_io(&mut results)?;
//!     received += results.drain().map(|res| res.size).sum::<usize>();
//! }
//! # writer.join().expect("no panic")?;
//! # Ok(())
//! # }
//! ```
//!
//! **A limit.** A server that writes without being asked (a chat, a feed) sets a limit for what is queued
//! for each peer, and frees a peer that is too far behind:
//!
//! ```
//! use gaio::{Conn, ErrorKind, Watcher};
//!
//! const QUEUED_BYTES_MAX: usize = 1 << 20;
//!
//! /// Returns false if the subscriber is gone or too slow.
//! fn send(watcher: &mut Watcher, to: Conn, line: &'static str) -> bool {
//!     match watcher.write((), to, line) {
//!         Ok(_) => true,
//!         Err(rejected) => {
//!             if rejected.error().kind() == ErrorKind::WriteLimit {
//!                 watcher.free(to);
//!             }
//!             false
//!         }
//!     }
//! }
//!
//! # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
//! let mut watcher = Watcher::builder().write_limit(QUEUED_BYTES_MAX).build()?;
//! # let (ours, _peer) = std::os::unix::net::UnixStream::pair()?;
//! # let conn = watcher.delegate(ours)?;
//! # assert!(send(&mut watcher, conn, "news"));
//! # Ok(())
//! # }
//! ```
//!
//! [`queued_bytes`](crate::Watcher::queued_bytes) tells how far behind a peer is, with or without a limit.
//!
//! None of these bounds the time for which a peer that never reads keeps its connection. A deadline on
//! the writes does ([`deadlines`](super::deadlines)).
