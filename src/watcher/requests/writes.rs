//! Writes.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use gaio_backends::{Buffer, ErrorContext, ErrorKind, OpData, Result};

use crate::conn::Conn;
use crate::deadlines::Deadline;
use crate::error::Rejected;
use crate::request::{OpId, RequestKind, Submission, refuses_file};
use crate::watcher::Watcher;

impl<C> Watcher<C> {
    /// Writes every byte of the buffer: a `Vec<u8>`, `String`, `Bytes`, a lease, or static data. The
    /// result comes when the kernel has all bytes. If the write ends early,
    /// [`size`](crate::OpResult::size) says how many the kernel has. The buffer comes back in the result.
    ///
    /// An empty write is no error: its result comes in its turn, with a `size` of 0, and the system is not
    /// called.
    ///
    /// Writes are queued without a limit, unless [`Builder::write_limit`](crate::Builder::write_limit) sets
    /// one. Bound them: read on only when a write has ended, for instance
    /// ([`guide::leases`](crate::guide::leases)), or look at
    /// [`queued_bytes`](Watcher::queued_bytes). [`free`](Watcher::free) drops the writes that wait; to
    /// close a connection after its last write, use [`shutdown`](Watcher::shutdown).
    ///
    /// ```
    /// use gaio::{Results, Watcher};
    /// use std::io::Read;
    /// use std::os::unix::net::UnixStream;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (ours, mut peer) = UnixStream::pair()?;
    /// let mut watcher = Watcher::new()?;
    /// let conn = watcher.delegate(ours)?;
    /// watcher.write("first", conn, "hello, ")?;
    /// watcher.write("second", conn, vec![b'y', b'o', b'u'])?;
    ///
    /// let mut results = Results::new();
    /// let mut done = Vec::new();
    /// while done.len() < 2 {
    ///     watcher.wait_io(&mut results)?;
    ///     done.extend(results.drain().map(|res| (res.context, res.size)));
    /// }
    /// assert_eq!(done, [("first", 7), ("second", 3)]); // in the order of submission
    /// # let mut text = [0; 10];
    /// # peer.read_exact(&mut text)?;
    /// # assert_eq!(&text, b"hello, you");
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The context and the buffer come back.
    /// - `WriteLimit` if too much is queued already ([`Builder::write_limit`](crate::Builder::write_limit)).
    /// - `ConnClosed`; `WrongKind` for a listener.
    /// - `WatcherClosed`, `WrongThread`, `Forked`.
    #[inline(always)]
    pub fn write(
        &mut self,
        ctx: C,
        conn: Conn,
        buf: impl Into<Buffer>,
    ) -> Result<OpId, Rejected<(C, Buffer)>> {
        self.write_timeout(ctx, conn, buf, Deadline::NEVER)
    }

    /// Like [`write`](Watcher::write), but ends with `Deadline` if the kernel does not have every byte in
    /// time. The bytes that it has by then are sent all the same, so anything written later would follow a
    /// part of a message: free the connection.
    ///
    /// ```
    /// use gaio::{ErrorKind, Results, Watcher};
    /// use std::os::unix::net::UnixStream;
    /// use std::time::Duration;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (ours, _peer) = UnixStream::pair()?; // a peer that never reads
    /// let mut watcher = Watcher::new()?;
    /// let conn = watcher.delegate(ours)?;
    /// watcher.write_timeout((), conn, vec![0; 10_000_000], Duration::from_millis(20))?;
    ///
    /// let mut results = Results::new();
    /// watcher.wait_io(&mut results)?;
    /// let res = results.pop().expect("one write was submitted");
    /// assert_eq!(res.error.map(|error| error.kind()), Some(ErrorKind::Deadline));
    /// println!("{} of {} bytes were taken", res.size, res.buffer.len());
    /// watcher.free(conn);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`write`](Watcher::write).
    #[inline(always)]
    pub fn write_timeout(
        &mut self,
        ctx: C,
        conn: Conn,
        buf: impl Into<Buffer>,
        deadline: impl Into<Deadline>,
    ) -> Result<OpId, Rejected<(C, Buffer)>> {
        let buffer = buf.into();
        let kind = RequestKind::write(&buffer);
        if let Some(error) = self.rejection(conn, RequestKind::Write, false) {
            return Err(Rejected::new(error, (ctx, buffer)));
        }
        if self.engine.is_over_write_limit(conn, buffer.len_bytes()) {
            let error = ErrorContext::Write.error(ErrorKind::WriteLimit);
            return Err(Rejected::new(error, (ctx, buffer)));
        }
        let (data, deadline) = (OpData::Buffer(buffer), deadline.into().at());
        Ok(self.engine.submit(conn, kind, ctx, data, deadline))
    }

    /// Writes several buffers as one: every byte of every part, in order, with one result. A head and a
    /// body go out together without a copy. Each part is anything that [`write`](Watcher::write) takes.
    ///
    /// [`size`](crate::OpResult::size) counts the bytes of all parts that the kernel has, also if the write
    /// ends early. [`buffer.into_parts()`](Buffer::into_parts) gives the parts back, whole, empty ones too.
    /// The order among other writes, deadlines, cancels, [`queued_bytes`](Watcher::queued_bytes) and the
    /// limit of it are those of one write with as many bytes. There may be any number of parts; one system
    /// call takes 1,024. Without a byte it is an empty write.
    ///
    /// ```
    /// use gaio::bytes::Bytes;
    /// use gaio::{Deadline, Results, Watcher};
    /// use std::io::Read;
    /// use std::os::unix::net::UnixStream;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (ours, mut peer) = UnixStream::pair()?;
    /// let mut watcher = Watcher::new()?;
    /// let conn = watcher.delegate(ours)?;
    /// let body = Bytes::from_static(b"hello"); // shared, in a cache for instance
    /// let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    /// watcher.write_vectored((), conn, vec![head.into(), body.into()], Deadline::NEVER)?;
    ///
    /// let mut results = Results::new();
    /// watcher.wait_io(&mut results)?;
    /// let res = results.pop().expect("one write was submitted");
    /// assert_eq!(res.size, 38 + 5);
    /// assert_eq!(res.buffer.into_parts()[1][..], *b"hello");
    /// # let mut text = [0; 43];
    /// # peer.read_exact(&mut text)?;
    /// # assert!(text.ends_with(b"\r\n\r\nhello"));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The context and the parts come back, with the errors of [`write`](Watcher::write).
    pub fn write_vectored(
        &mut self,
        ctx: C,
        conn: Conn,
        parts: Vec<Buffer>,
        deadline: impl Into<Deadline>,
    ) -> Result<OpId, Rejected<(C, Vec<Buffer>)>> {
        let written = self.write_timeout(ctx, conn, Buffer::from_parts(parts), deadline);
        written.map_err(|rejected| rejected.map(|(ctx, buffer)| (ctx, buffer.into_parts())))
    }

    /// Sends a range of a regular file, in its turn among the writes. The result, of
    /// [`Operation::SendFile`](crate::Operation::SendFile), comes when the kernel has all bytes;
    /// [`size`](crate::OpResult::size) counts them, also if it ends early. The file's own position is
    /// neither used nor moved.
    ///
    /// The library reads one block of 128 KiB at a time, when the last one is with the kernel, so a file of
    /// any length takes this much memory, and none while it waits. It does not count in
    /// [`queued_bytes`](Watcher::queued_bytes), or for the limit of it.
    ///
    /// A file cannot be waited for: the read of a block holds up the loop for as long as the disk takes.
    /// That is nothing for files in the page cache. For others on a slow disk, read on a thread of your
    /// own and hand the bytes to [`Remote::write`](crate::Remote::write).
    ///
    /// ```
    /// use gaio::{Deadline, Operation, Results, Watcher};
    /// use std::fs::File;
    /// use std::os::unix::net::UnixStream;
    /// use std::sync::Arc;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (ours, _peer) = UnixStream::pair()?;
    /// let mut watcher = Watcher::new()?;
    /// let conn = watcher.delegate(ours)?;
    /// let file = Arc::new(File::open("Cargo.toml")?); // shared by all who ask for it
    /// let len = file.metadata()?.len();
    /// watcher.write("head", conn, format!("{len} bytes follow\n"))?;
    /// watcher.send_file("body", conn, file, 0..len, Deadline::NEVER)?;
    ///
    /// let mut results = Results::new();
    /// let mut sent = None;
    /// while sent.is_none() {
    ///     watcher.wait_io(&mut results)?;
    ///     sent = results.drain().find(|res| res.operation == Operation::SendFile);
    /// }
    /// assert_eq!(sent.map(|res| res.size as u64), Some(len));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// The result has `UnexpectedEof` if the file became shorter meanwhile: what was promised cannot be
    /// sent, so free the connection. It has `Os` if the file cannot be read, or the connection is lost.
    ///
    /// # Errors
    /// The context comes back.
    /// - `Unsupported` for what is no regular file: a directory, a pipe.
    /// - `InvalidInput` for a range that is not within the file.
    /// - `ConnClosed`; `WrongKind` for a listener.
    /// - `WatcherClosed`, `WrongThread`, `Forked`.
    pub fn send_file(
        &mut self,
        ctx: C,
        conn: Conn,
        file: Arc<File>,
        range: Range<u64>,
        deadline: impl Into<Deadline>,
    ) -> Result<OpId, Rejected<C>> {
        let rejection = self.rejection(conn, RequestKind::SendFile, false);
        if let Some(error) = rejection.or_else(|| refuses_file(&file, &range)) {
            return Err(Rejected::new(error, ctx));
        }
        let Submission {
            kind,
            context,
            data,
            deadline,
            ..
        } = Submission::file(ctx, file, range, deadline.into().at());
        Ok(self.engine.submit(conn, kind, context, data, deadline))
    }
}
