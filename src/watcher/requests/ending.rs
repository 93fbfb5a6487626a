//! The end of a direction, of a request, and of a connection.

use std::net::Shutdown;

use gaio_backends::{Lane, Result};

use crate::conn::Conn;
use crate::deadlines::Deadline;
use crate::error::Rejected;
use crate::request::{OpId, RequestKind};
use crate::watcher::Watcher;

impl<C> Watcher<C> {
    /// Shuts down one or both directions of the connection, after the writes submitted before. This is
    /// how to end a connection without losing data: shut down, and [`free`](Watcher::free) it on the result.
    ///
    /// ```
    /// use gaio::{Operation, Results, Shutdown, Watcher};
    /// use std::io::Read;
    /// use std::os::unix::net::UnixStream;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (ours, mut peer) = UnixStream::pair()?;
    /// let mut watcher = Watcher::new()?;
    /// let conn = watcher.delegate(ours)?;
    /// watcher.write((), conn, "the last words")?;
    /// watcher.shutdown((), conn, Shutdown::Write)?; // after the write
    ///
    /// let mut results = Results::new();
    /// while watcher.contains(conn) {
    ///     watcher.wait_io(&mut results)?;
    ///     for res in results.drain() {
    ///         if res.operation == Operation::Shutdown || res.error.is_some() {
    ///             watcher.free(res.conn);
    ///         }
    ///     }
    /// }
    /// let mut text = String::new();
    /// peer.read_to_string(&mut text)?;
    /// assert_eq!(text, "the last words");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `ConnClosed`, `WrongKind` (a listener), `WatcherClosed`, `WrongThread`, `Forked`.
    pub fn shutdown(&mut self, ctx: C, conn: Conn, how: Shutdown) -> Result<OpId, Rejected<C>> {
        self.submit_plain(RequestKind::Shutdown(how), ctx, conn)
    }

    /// Cancels a request. It still has its result: `Cancelled`, unless it finished just before. Returns
    /// false if the request has finished, is unknown, or belongs to another watcher, and on a wrong thread,
    /// where it does nothing: use [`Remote::cancel`](crate::Remote::cancel) there.
    ///
    /// ```
    /// use gaio::{ErrorKind, Results, Watcher};
    /// use std::os::unix::net::UnixStream;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (ours, _peer) = UnixStream::pair()?;
    /// let mut watcher = Watcher::new()?;
    /// let conn = watcher.delegate(ours)?;
    /// let read = watcher.read((), conn, None)?;
    /// assert!(watcher.cancel(read));
    ///
    /// let mut results = Results::new();
    /// watcher.wait_io(&mut results)?;
    /// let res = results.pop().expect("the read's result");
    /// assert_eq!(res.op, read);
    /// assert_eq!(res.error.map(|error| error.kind()), Some(ErrorKind::Cancelled));
    /// assert!(watcher.contains(conn)); // the connection lives on
    /// assert!(!watcher.cancel(read));
    /// # Ok(())
    /// # }
    /// ```
    pub fn cancel(&mut self, op: OpId) -> bool {
        if self.admit().is_some() {
            return false;
        }
        if self.inbox.is_pending() {
            self.receive_requests();
        }
        self.engine.cancel(op)
    }

    /// Cancels all that is pending in the reading direction of a connection: reads, a stream of reads,
    /// `ready(Readable)`, the accepts of a listener. Each has its result, in order: `Cancelled`, unless it
    /// finished just before. Returns the number of requests that it told to end; 0 for a handle that is
    /// not valid, and on a wrong thread.
    ///
    /// Unlike [`cancel`](Watcher::cancel), it needs no number, and no table in which numbers are found.
    ///
    /// ```
    /// use gaio::{ErrorKind, Results, Watcher};
    /// use std::os::unix::net::UnixStream;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (ours, _peer) = UnixStream::pair()?;
    /// let mut watcher = Watcher::new()?;
    /// let conn = watcher.delegate(ours)?;
    /// watcher.read("first", conn, None)?;
    /// watcher.read("second", conn, None)?;
    /// assert_eq!(watcher.cancel_reads(conn), 2);
    ///
    /// let (mut results, mut ended) = (Results::new(), Vec::new());
    /// while ended.len() < 2 {
    ///     watcher.wait_io(&mut results)?;
    ///     for res in results.drain() {
    ///         assert_eq!(res.error.map(|error| error.kind()), Some(ErrorKind::Cancelled));
    ///         ended.push(res.context);
    ///     }
    /// }
    /// assert_eq!(ended, ["first", "second"]);
    /// # Ok(())
    /// # }
    /// ```
    pub fn cancel_reads(&mut self, conn: Conn) -> usize {
        self.cancel_lane(conn, Lane::Read)
    }

    /// The same for the writing direction: writes, `ready(Writable)`, a shutdown, a connect.
    /// [`size`](crate::OpResult::size) tells how much of a write the kernel has already.
    ///
    /// ```
    /// use gaio::{Results, Watcher};
    /// use std::os::unix::net::UnixStream;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (ours, _peer) = UnixStream::pair()?;
    /// let mut watcher = Watcher::new()?;
    /// let conn = watcher.delegate(ours)?;
    /// watcher.write((), conn, vec![0; 64 << 20])?; // more than the system takes
    /// watcher.write((), conn, "and this")?;
    /// assert_eq!(watcher.cancel_writes(conn), 2);
    /// # Ok(())
    /// # }
    /// ```
    pub fn cancel_writes(&mut self, conn: Conn) -> usize {
        self.cancel_lane(conn, Lane::Write)
    }

    fn cancel_lane(&mut self, conn: Conn, lane: Lane) -> usize {
        if self.admit().is_some() {
            return 0;
        }
        if self.inbox.is_pending() {
            self.receive_requests();
        }
        self.engine.cancel_lane(conn, lane)
    }

    /// Gives a pending request another deadline: sets one, moves it, or takes it away
    /// ([`Deadline::NEVER`]). This is for requests of every kind, timers and streams, too. Returns false
    /// if the request has finished or is ending, is unknown, or belongs to another watcher, and on a wrong
    /// thread.
    ///
    /// Move the deadline of a stream with each of its results, and it is the longest silence that the
    /// program bears. To move a deadline allocates nothing and costs O(log n).
    ///
    /// ```
    /// use gaio::{ErrorKind, Results, Watcher};
    /// use std::io::Write;
    /// use std::os::unix::net::UnixStream;
    /// use std::time::Duration;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// const IDLE: Duration = Duration::from_millis(20);
    /// let (ours, mut peer) = UnixStream::pair()?;
    /// let mut watcher = Watcher::new()?;
    /// let conn = watcher.delegate(ours)?;
    /// let stream = watcher.read_stream((), conn)?;
    /// assert!(watcher.set_deadline(stream, IDLE));
    /// peer.write_all(b"the only words")?;
    ///
    /// let mut results = Results::new();
    /// while watcher.contains(conn) {
    ///     watcher.wait_io(&mut results)?;
    ///     for res in results.drain() {
    ///         if !res.is_last() {
    ///             watcher.set_deadline(res.op, IDLE); // it is not silent
    ///         } else if res.error.is_some_and(|error| error.kind() == ErrorKind::Deadline) {
    ///             watcher.free(res.conn); // silent for too long
    ///         }
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn set_deadline(&mut self, op: OpId, deadline: impl Into<Deadline>) -> bool {
        if self.admit().is_some() {
            return false;
        }
        if self.inbox.is_pending() {
            self.receive_requests();
        }
        self.engine.set_deadline(op, deadline.into().at())
    }

    /// Frees a connection or a listener. Its pending requests end with `ConnClosed`, in order, and its
    /// socket is closed. Returns false if the handle was not valid, and on a wrong thread, where it does
    /// nothing: use [`Remote::free`](crate::Remote::free) there.
    ///
    /// Writes that wait are pending requests, so their bytes are lost. To send them first, use
    /// [`shutdown`](Watcher::shutdown) and free the connection on its result. The socket is closed, not shut down: a duplicate
    /// that the program holds stays usable. Results that were returned before stay valid; new requests are
    /// refused with `ConnClosed`.
    ///
    /// ```
    /// use gaio::{ErrorKind, Watcher};
    /// use std::os::unix::net::UnixStream;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (ours, _peer) = UnixStream::pair()?;
    /// let mut watcher = Watcher::new()?;
    /// let conn = watcher.delegate(ours)?;
    /// assert!(watcher.free(conn));
    /// assert!(!watcher.free(conn)); // harmless
    /// let rejected = watcher.read((), conn, None).unwrap_err();
    /// assert_eq!(rejected.error().kind(), ErrorKind::ConnClosed);
    /// # Ok(())
    /// # }
    /// ```
    pub fn free(&mut self, conn: Conn) -> bool {
        if self.admit().is_some() {
            return false;
        }
        self.find_in_inbox(conn);
        self.engine.free(conn)
    }
}
