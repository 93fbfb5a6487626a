//! Reads: into vectors and swap buffers, one at a time and as a stream.

use gaio_backends::{OpData, Result};

use crate::conn::Conn;
use crate::deadlines::Deadline;
use crate::error::Rejected;
use crate::request::{OpId, RequestKind};
use crate::watcher::Watcher;

impl<C> Watcher<C> {
    /// Reads once. The result has at least one byte, or is the end of the stream
    /// ([`is_eof`](crate::OpResult::is_eof)).
    ///
    /// `buf` says where the bytes go:
    /// - `None`: into a swap buffer. The result holds a lease of it ([`SwapBuf`](crate::SwapBuf)). A
    ///   read that waits for data holds no memory.
    /// - a `Vec<u8>`: into this vector. Its length is the most that is read; it comes back in the result.
    /// - the [`Buffer`](crate::Buffer) of a finished read: the same kind of read again, without a new allocation.
    ///
    /// ```
    /// use gaio::{Results, Watcher};
    /// use std::io::Write;
    /// use std::os::unix::net::UnixStream;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (ours, mut peer) = UnixStream::pair()?;
    /// let mut watcher = Watcher::new()?;
    /// let mut results = Results::new();
    /// let conn = watcher.delegate(ours)?;
    ///
    /// peer.write_all(b"hello, world")?;
    /// watcher.read((), conn, vec![0; 5])?; // at most five bytes
    /// watcher.wait_io(&mut results)?;
    /// let res = results.pop().expect("one read was submitted");
    /// assert_eq!(res.data(), b"hello");
    ///
    /// watcher.read((), conn, res.buffer)?; // the same vector, at its full length
    /// watcher.wait_io(&mut results)?;
    /// assert_eq!(results.pop().expect("one read was submitted").data(), b", wor");
    ///
    /// watcher.read((), conn, None)?; // as much as there is
    /// watcher.wait_io(&mut results)?;
    /// let res = results.pop().expect("one read was submitted");
    /// assert_eq!((res.data(), res.is_swap_buffer()), (&b"ld"[..], true));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The context and the vector come back.
    /// - `EmptyBuffer` for a vector of length zero.
    /// - `ConnClosed`; `WrongKind` for a listener.
    /// - `WatcherClosed`, `WrongThread`, `Forked`.
    #[inline(always)]
    pub fn read(
        &mut self,
        ctx: C,
        conn: Conn,
        buf: impl Into<Option<Vec<u8>>>,
    ) -> Result<OpId, Rejected<(C, Option<Vec<u8>>)>> {
        self.read_timeout(ctx, conn, buf, Deadline::NEVER)
    }

    /// Like [`read`](Watcher::read), but ends with `Deadline` if nothing arrives in time. Bytes that
    /// arrive later stay in the socket for the next read.
    ///
    /// ```
    /// use gaio::{ErrorKind, Results, Watcher};
    /// use std::os::unix::net::UnixStream;
    /// use std::time::Duration;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (ours, _peer) = UnixStream::pair()?;
    /// let mut watcher = Watcher::new()?;
    /// let mut results = Results::new();
    /// let conn = watcher.delegate(ours)?;
    /// watcher.read_timeout((), conn, None, Duration::from_millis(5))?;
    /// watcher.wait_io(&mut results)?;
    /// let res = results.pop().expect("one read was submitted");
    /// assert_eq!(res.error.map(|error| error.kind()), Some(ErrorKind::Deadline));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`read`](Watcher::read).
    #[inline(always)]
    pub fn read_timeout(
        &mut self,
        ctx: C,
        conn: Conn,
        buf: impl Into<Option<Vec<u8>>>,
        deadline: impl Into<Deadline>,
    ) -> Result<OpId, Rejected<(C, Option<Vec<u8>>)>> {
        let buf = buf.into();
        let kind = match buf {
            None => RequestKind::ReadSwap,
            Some(_) => RequestKind::Read,
        };
        let is_empty = buf.as_ref().is_some_and(Vec::is_empty);
        if let Some(error) = self.rejection(conn, kind, is_empty) {
            return Err(Rejected::new(error, (ctx, buf)));
        }
        let data = buf.map_or(OpData::None, |vec| OpData::Buffer(vec.into()));
        let deadline = deadline.into().at();
        Ok(self.engine.submit(conn, kind, ctx, data, deadline))
    }

    /// Reads until the vector is full. If the stream ends before, the result has `UnexpectedEof`; if
    /// time runs out, `Deadline`. Either way it also has the bytes so far.
    ///
    /// ```
    /// use gaio::{ErrorKind, Results, Watcher};
    /// use std::io::Write;
    /// use std::os::unix::net::UnixStream;
    /// use std::time::Duration;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (ours, mut peer) = UnixStream::pair()?;
    /// let mut watcher = Watcher::new()?;
    /// let mut results = Results::new();
    /// let conn = watcher.delegate(ours)?;
    /// let limit = Duration::from_secs(5);
    ///
    /// peer.write_all(b"\0\x05hel")?; // a length of two bytes, then the message
    /// watcher.read_full("length", conn, vec![0; 2], limit)?;
    /// watcher.wait_io(&mut results)?;
    /// let res = results.pop().expect("one read was submitted");
    /// let length = usize::from(res.data()[0]) * 256 + usize::from(res.data()[1]);
    ///
    /// watcher.read_full("message", conn, vec![0; length], limit)?;
    /// drop(peer);
    /// watcher.wait_io(&mut results)?;
    /// let res = results.pop().expect("one read was submitted");
    /// assert_eq!(res.error.map(|error| error.kind()), Some(ErrorKind::UnexpectedEof));
    /// assert_eq!(res.data(), b"hel");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`read`](Watcher::read).
    pub fn read_full(
        &mut self,
        ctx: C,
        conn: Conn,
        buf: Vec<u8>,
        deadline: impl Into<Deadline>,
    ) -> Result<OpId, Rejected<(C, Vec<u8>)>> {
        if let Some(error) = self.rejection(conn, RequestKind::ReadFull, buf.is_empty()) {
            return Err(Rejected::new(error, (ctx, buf)));
        }
        let (data, deadline) = (OpData::Buffer(buf.into()), deadline.into().at());
        Ok(self
            .engine
            .submit(conn, RequestKind::ReadFull, ctx, data, deadline))
    }

    /// Reads into swap buffers again and again, until the stream ends, an error occurs, or the request
    /// is [cancelled](Watcher::cancel). One request has many results, each with a clone of the context.
    /// Only the last one says [`is_last`](crate::OpResult::is_last).
    ///
    /// The stream pauses while the program keeps more leased bytes of it than
    /// [`Builder::stream_window`](crate::Builder::stream_window), and goes on when half of them are
    /// dropped. For bulk data it is quicker than one read at a time.
    ///
    /// ```
    /// use gaio::{Results, Watcher};
    /// use std::io::Write;
    /// use std::os::unix::net::UnixStream;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (ours, mut peer) = UnixStream::pair()?;
    /// let mut watcher = Watcher::new()?;
    /// let conn = watcher.delegate(ours)?;
    /// watcher.read_stream((), conn)?;
    /// let writer = std::thread::spawn(move || peer.write_all(&[7; 1_000_000]));
    ///
    /// let mut results = Results::new();
    /// let mut received = 0;
    /// 'stream: loop {
    ///     watcher.wait_io(&mut results)?;
    ///     for res in results.drain() {
    ///         received += res.data().len(); // and the lease goes back
    ///         if res.is_last() {
    ///             assert!(res.is_eof());
    ///             break 'stream;
    ///         }
    ///     }
    /// }
    /// assert_eq!(received, 1_000_000);
    /// # writer.join().expect("no panic")?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `ConnClosed`, `WrongKind` (a listener), `WatcherClosed`, `WrongThread`, `Forked`.
    pub fn read_stream(&mut self, ctx: C, conn: Conn) -> Result<OpId, Rejected<C>>
    where
        C: Clone,
    {
        self.submit_stream(RequestKind::ReadStream, ctx, conn)
    }
}
