//! Waits that transfer nothing: for a descriptor, and for a point in time.

use gaio_backends::{ErrorContext, ErrorKind, Interest, Result};

use crate::conn::Conn;
use crate::deadlines::Deadline;
use crate::error::Rejected;
use crate::request::{OpId, RequestKind};
use crate::watcher::Watcher;

impl<C> Watcher<C> {
    /// Waits until the descriptor is ready to read or write, once, and transfers nothing. The request
    /// takes its turn among the connection's reads or writes. It serves descriptors that another library
    /// reads: delegate a duplicate, wait, and let the library read.
    ///
    /// ```
    /// use gaio::{Interest, Operation, Results, Watcher};
    /// use std::io::{Read, Write};
    /// use std::os::unix::net::UnixStream;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (mut ours, mut peer) = UnixStream::pair()?;
    /// let mut watcher = Watcher::new()?;
    /// let conn = watcher.delegate(ours.try_clone()?)?;
    /// watcher.ready((), conn, Interest::Readable)?;
    /// peer.write_all(b"hello")?;
    ///
    /// let mut results = Results::new();
    /// watcher.wait_io(&mut results)?;
    /// assert_eq!(results.pop().expect("one result").operation, Operation::Ready);
    /// let mut text = [0; 5];
    /// ours.read_exact(&mut text)?; // does not wait
    /// # assert_eq!(&text, b"hello");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `ConnClosed`, `WatcherClosed`, `WrongThread`, `Forked`.
    pub fn ready(&mut self, ctx: C, conn: Conn, interest: Interest) -> Result<OpId, Rejected<C>> {
        self.submit_plain(RequestKind::Ready(interest), ctx, conn)
    }

    /// Has a result at a point in time: never earlier, and on an idle machine at most a few milliseconds
    /// later. Cancel a timer like any other request.
    ///
    /// ```
    /// use gaio::{Operation, Results, Watcher};
    /// use std::time::{Duration, Instant};
    ///
    /// # fn main() -> gaio::Result<()> {
    /// let mut watcher = Watcher::new()?;
    /// let mut tick = Instant::now();
    /// let mut results = Results::new();
    /// for _ in 0..3 {
    ///     tick += Duration::from_millis(2); // from tick to tick, so that it does not drift
    ///     watcher.timer("tick", tick)?;
    ///     watcher.wait_io(&mut results)?;
    ///     let res = results.pop().expect("the timer's result");
    ///     assert_eq!((res.operation, res.context), (Operation::Timer, "tick"));
    ///     assert!(Instant::now() >= tick);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `WatcherClosed`, `WrongThread`, `Forked`.
    pub fn timer(&mut self, ctx: C, deadline: impl Into<Deadline>) -> Result<OpId, Rejected<C>> {
        let rejection = self.admit();
        let closed = self.engine.closed.then_some(ErrorKind::WatcherClosed);
        match rejection.or(closed) {
            None => Ok(self.engine.timer(ctx, deadline.into().at())),
            Some(kind) => Err(Rejected::new(ErrorContext::Timer.error(kind), ctx)),
        }
    }
}
