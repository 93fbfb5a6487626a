//! Errors: how each operation can end, what to do, and whose the connection is then.
//!
//! Errors appear in three places: a *call* is refused, a *result* has an error, or
//! [`wait_io`](crate::Watcher::wait_io) itself fails. Match on [`Error::kind`](crate::Error::kind).
//! The text of an [`Error`](crate::Error) says what was being done, what happened, and what
//! to do.
//!
//! # Whose is the connection?
//!
//! A connection is the program's until it calls [`free`](crate::Watcher::free),
//! [`reclaim`](crate::Watcher::reclaim) or [`close`](crate::Watcher::close). **No error frees a
//! connection.** After a reset, a failed connect or a deadline, the handle is still valid and the
//! socket still open. `free` on a dead handle returns false and does no harm, so one arm of a `match`
//! can free whatever has an error:
//!
//! ```
//! use gaio::{Operation, Results, Watcher};
//!
//! fn serve(watcher: &mut Watcher, results: &mut Results) {
//!     for res in results.drain() {
//!         match res.operation {
//!             // A listener is not freed for an error that passes.
//!             Operation::Accept if !res.is_last() => { /* read from res.accepted() */ }
//!             _ if res.error.is_some() => {
//!                 watcher.free(res.conn);
//!             }
//!             _ => { /* the next request */ }
//!         }
//!     }
//! }
//! ```
//!
//! # Refused calls
//!
//! A refused call starts nothing, has no result, and returns everything that was handed in
//! ([`Rejected`](crate::Rejected)). `?` turns the rejection into an `Error`. But do not use `?` for a
//! request of one connection inside the loop: a refusal is no reason to stop serving the others.
//!
//! | Kind | Cause | What to do |
//! |---|---|---|
//! | `ConnClosed` | the connection was freed or reclaimed, or is another watcher's | forget the handle |
//! | `EmptyBuffer` | a read into a vector of length zero | give it a length |
//! | `WriteLimit` | too many bytes are queued on the connection ([`write_limit`](crate::Builder::write_limit)) | go on when a write has ended, or free a peer that is too slow |
//! | `WrongKind` | a listener where a connection is needed, or the reverse | fix the program |
//! | `Unsupported` | a descriptor that cannot be waited for; a backend that cannot be had | see the text |
//! | `InvalidInput` | an option out of its range (`build`), an `accept_limit` of 0, a range that is not within the file | see the text |
//! | `Busy` | `reclaim` while requests are pending | cancel them, take their results, try again |
//! | `WrongThread` | called on another thread than `wait_io` | use a [`Remote`](crate::Remote) |
//! | `Forked` | called in a child of the watcher's process | build a watcher there |
//! | `WatcherClosed` | `close` was called | leave the loop |
//! | `Os` | the system refused: no descriptors, no memory | see [`raw_os_error`](crate::Error::raw_os_error) |
//!
//! A [`Remote`](crate::Remote) cannot know most of this when it is called. `ConnClosed`, `EmptyBuffer`,
//! `WriteLimit`, `WrongKind` and `Os` then come in the result of the request. If `Remote::connect` finds no socket,
//! the handle in the result is dead.
//!
//! # Results
//!
//! Every pending request can end with
//!
//! - `ConnClosed`: its connection was freed meanwhile. The handle is dead.
//! - `WatcherClosed`: the watcher was closed meanwhile. All handles are dead.
//! - `Cancelled`: [`cancel`](crate::Watcher::cancel), `cancel_reads` or `cancel_writes` was called. The connection is as it was, but
//!   see writes below.
//!
//! and, by operation:
//!
//! | Operation | Also ends with | What was done | The connection |
//! |---|---|---|---|
//! | `read`, `read_timeout` | `Deadline`, `Os` | nothing is lost: bytes are in the result or in the socket | after `Deadline`: goes on. After `Os`: lost, free it |
//! | the end of a read | no error, `size` 0 (`is_eof`) | | the peer sends no more, but may still read: write the rest, shut down, free |
//! | `read_full` | `UnexpectedEof`, `Deadline`, `Os` | the bytes so far are in `data()` | likewise |
//! | `read_stream` | `Os`, in the last result | earlier results stay valid | after `Cancelled`: goes on, read again. After `Os`: lost |
//! | `send_file` | `UnexpectedEof` (the file became shorter), `Deadline`, `Os` | the first `size` bytes are with the kernel | after a part of a message: free it. After `Os`: lost |
//! | `write`, `write_timeout` | `Deadline`, `Os` | the first `size` bytes are with the kernel | after a part of a message: free it. After `Os`: lost |
//! | `accept` | `Os`, not the last: no descriptors or memory | connections wait in the backlog | the listener goes on by itself |
//! | `accept`, `accept_one` | `Os`, the last one | | the listener may be used again or freed |
//! | `connect` | `Os` (`ECONNREFUSED`, `ETIMEDOUT`, ...), `Deadline` | requests that waited for it end with the same error | not connected: free it, connect anew |
//! | `shutdown` | `Os` (`ENOTCONN` if the peer is gone) | | free it |
//! | `ready` | `Os` | | goes on: the next read or write tells more |
//! | `timer`, `post` | nothing: a timer that fires has no error | | `Conn::NONE` |
//!
//! A reset connection ends its reads with `ECONNRESET`, the later ones too, and its writes with
//! `ECONNRESET` or `EPIPE`.
//!
//! ```
//! use gaio::{ErrorKind, OpResult, Operation};
//!
//! #[derive(Debug, PartialEq)]
//! enum Next {
//!     GoOn,
//!     ReadAgain,
//!     Finish,
//!     Free,
//! }
//!
//! fn next(res: &OpResult) -> Next {
//!     match (res.operation, res.error.map(|error| error.kind())) {
//!         (Operation::Read, None) if res.is_eof() => Next::Finish,
//!         (_, None) => Next::GoOn,
//!         (Operation::Read, Some(ErrorKind::Deadline | ErrorKind::Cancelled)) => Next::ReadAgain,
//!         (Operation::Accept, Some(_)) if !res.is_last() => Next::GoOn,
//!         (_, Some(_)) => Next::Free,
//!     }
//! }
//! # use gaio::{Results, Watcher};
//! # use std::os::unix::net::UnixStream;
//! # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
//! # let (ours, peer) = UnixStream::pair()?;
//! # let mut watcher = Watcher::new()?;
//! # let mut results = Results::new();
//! # let conn = watcher.delegate(ours)?;
//! # watcher.read_timeout((), conn, None, std::time::Duration::from_millis(1))?;
//! # watcher.wait_io(&mut results)?;
//! # assert_eq!(next(&results.pop().expect("one result")), Next::ReadAgain);
//! # drop(peer);
//! # watcher.read((), conn, None)?;
//! # watcher.wait_io(&mut results)?;
//! # assert_eq!(next(&results.pop().expect("one result")), Next::Finish);
//! # watcher.write((), conn, "x")?;
//! # watcher.wait_io(&mut results)?;
//! # assert_eq!(next(&results.pop().expect("one result")), Next::Free);
//! # Ok(())
//! # }
//! ```
//!
//! # `wait_io`
//!
//! It fails with `WatcherClosed` when everything is over, with `WrongThread` or `Forked` when it is
//! called where it may not be, and with `Os` if the system refuses to wait. The first is how a loop
//! ends; the others mean that this watcher cannot go on here.
//!
//! # As `io::Error`
//!
//! An `Error` converts into [`std::io::Error`], with the system's number where there is one, and
//! otherwise with a kind that fits: `ConnClosed` becomes `NotConnected`, `Deadline` `TimedOut`, and so on.
