//! `OpResult`, and `Results`, the container that each `wait_io` fills again.

use std::fmt;
use std::slice;

use gaio_backends::{Buffer, Error, Result, ResultQueue};

use crate::conn::Conn;
use crate::request::{OpId, Operation};

/// The most results of a turn, unless the program says otherwise.
const MAX_DEFAULT: usize = 256;

/// A finished request, or one step of a stream.
///
/// ```
/// use gaio::{OpResult, Operation};
///
/// fn describe(res: &OpResult<&str>) -> String {
///     match (res.operation, res.result()) {
///         (_, Err(error)) => format!("{}: {error}", res.context),
///         (Operation::Read, _) if res.is_eof() => format!("{}: the end", res.context),
///         (Operation::Read, _) => format!("{}: {:?}", res.context, res.data()),
///         (operation, Ok(size)) => format!("{}: {operation:?} of {size} bytes", res.context),
///     }
/// }
/// # use gaio::{Results, Watcher};
/// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
/// # let (ours, _peer) = std::os::unix::net::UnixStream::pair()?;
/// # let mut watcher = Watcher::new()?;
/// # let mut results = Results::new();
/// # let conn = watcher.delegate(ours)?;
/// # watcher.write("greeting", conn, "hello")?;
/// # watcher.wait_io(&mut results)?;
/// # let res = results.pop().expect("one result");
/// # assert_eq!(describe(&res), "greeting: Write of 5 bytes");
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct OpResult<C = ()> {
    /// The operation.
    pub operation: Operation,
    /// The request's number, as the submitting call returned it. `connect` and `post` return no
    /// number, but their results have one.
    pub op: OpId,
    /// The connection. For [`Operation::Accept`] it is the listener; for timers and messages it is
    /// [`Conn::NONE`].
    pub conn: Conn,
    /// The context that was handed in with the request.
    pub context: C,
    /// For reads, the bytes that were read. For writes, the buffer that was handed in, whole; for
    /// [`write_vectored`](crate::Watcher::write_vectored), its parts ([`Buffer::into_parts`]). For
    /// other operations, empty.
    pub buffer: Buffer,
    /// The number of bytes transferred, also if there is an error.
    pub size: usize,
    /// The reason, if the operation failed. [`guide::errors`](crate::guide::errors) lists them by operation.
    pub error: Option<Error>,
    /// `Conn::NONE` if there is none. Not `Option<Conn>`, which would double the size.
    pub(crate) accepted: Conn,
    pub(crate) last: bool,
}

impl<C> OpResult<C> {
    /// The last result of a request.
    #[inline]
    pub(crate) fn last(
        operation: Operation,
        op: OpId,
        conn: Conn,
        context: C,
        buffer: Buffer,
        size: usize,
        error: Option<Error>,
    ) -> Self {
        OpResult {
            operation,
            op,
            conn,
            context,
            buffer,
            size,
            error,
            accepted: Conn::NONE,
            last: true,
        }
    }

    /// The bytes transferred: the first [`size`](OpResult::size) bytes of the buffer. None of a buffer in
    /// parts.
    pub fn data(&self) -> &[u8] {
        &self.buffer[..self.size.min(self.buffer.len())]
    }

    /// Whether the buffer is a lease of a swap buffer.
    pub fn is_swap_buffer(&self) -> bool {
        self.buffer.is_swap()
    }

    /// Whether the stream has ended: a read without bytes and without an error. The peer has closed its
    /// sending side, but may still read.
    pub fn is_eof(&self) -> bool {
        self.operation == Operation::Read && self.size == 0 && self.error.is_none()
    }

    /// Whether this is the request's last result. It is false only for steps of a stream
    /// (`accept`, `read_stream`) that goes on.
    pub fn is_last(&self) -> bool {
        self.last
    }

    /// The size, or the error.
    ///
    /// # Errors
    /// The [`error`](OpResult::error), if there is one.
    pub fn result(&self) -> Result<usize> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(self.size),
        }
    }

    /// The new connection, if this is a successful accept.
    pub fn accepted(&self) -> Option<Conn> {
        (self.accepted != Conn::NONE).then_some(self.accepted)
    }
}

/// A batch of results. Keep one and pass it to every `wait_io`. Each call drops the results that were
/// left in it, then fills it. In the long run it does not allocate.
///
/// Read all results. If a result of `accept` is dropped unread, its connection has no
/// handle any more, and stays open until the watcher is closed.
///
/// ```
/// use gaio::{Results, Watcher};
/// use std::time::Duration;
///
/// # fn main() -> gaio::Result<()> {
/// let mut watcher = Watcher::new()?;
/// for number in 0..3 {
///     watcher.timer(number, Duration::ZERO)?;
/// }
/// let mut results = Results::with_capacity(2);
/// assert_eq!(watcher.wait_io(&mut results)?, 2); // two a turn
/// for res in &results {
///     println!("{:?}", res.context); // look
/// }
/// while let Some(res) = results.pop() {
///     println!("{:?}", res.context); // take, and submit the next requests
/// }
/// assert_eq!(watcher.wait_io(&mut results)?, 1);
/// assert_eq!(results.drain().map(|res| res.context).count(), 1);
/// # Ok(())
/// # }
/// ```
pub struct Results<C = ()> {
    queue: ResultQueue<OpResult<C>>,
    max: usize,
}

impl<C> Results<C> {
    /// A container for at most 256 results a turn.
    pub fn new() -> Self {
        Results {
            queue: ResultQueue::new(),
            max: MAX_DEFAULT,
        }
    }

    /// A container for at most `max` results a turn, at least one.
    pub fn with_capacity(max: usize) -> Self {
        let max = max.max(1);
        Results {
            queue: ResultQueue::with_capacity(max.min(MAX_DEFAULT)),
            max,
        }
    }

    /// The number of results that were not taken yet.
    pub fn len(&self) -> usize {
        self.queue.len()
    }

    /// Whether all results were taken.
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Looks at the results without taking them, oldest first.
    pub fn iter(&self) -> slice::Iter<'_, OpResult<C>> {
        self.queue.as_slice().iter()
    }

    /// Takes the results one by one, oldest first. If the iterator is dropped early, the rest stays.
    pub fn drain(&mut self) -> Drain<'_, C> {
        Drain { results: self }
    }

    /// Takes the oldest result.
    #[inline]
    pub fn pop(&mut self) -> Option<OpResult<C>> {
        self.queue.pop()
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    pub(crate) fn clear(&mut self) {
        self.queue.clear();
    }

    /// Takes over the results in `from`, at most `max`, and exchanges the containers if it can. This
    /// one must be empty. A container that a flood has enlarged is not exchanged, so that it can
    /// shrink.
    pub(crate) fn fill(&mut self, from: &mut ResultQueue<OpResult<C>>) {
        if from.len() <= self.max && !from.is_overgrown() {
            std::mem::swap(&mut self.queue, from);
            return;
        }
        for _ in 0..self.max {
            let Some(result) = from.pop() else {
                break;
            };
            self.queue.push_with(|| result);
        }
        from.shrink_overgrown();
    }
}

impl<C> Default for Results<C> {
    fn default() -> Self {
        Results::new()
    }
}

impl<C> fmt::Debug for Results<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Results({} of at most {})", self.len(), self.max)
    }
}

impl<'a, C> IntoIterator for &'a Results<C> {
    type Item = &'a OpResult<C>;
    type IntoIter = slice::Iter<'a, OpResult<C>>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

/// The iterator of [`Results::drain`].
#[derive(Debug)]
pub struct Drain<'a, C> {
    results: &'a mut Results<C>,
}

impl<C> Iterator for Drain<'_, C> {
    type Item = OpResult<C>;

    #[inline]
    fn next(&mut self) -> Option<OpResult<C>> {
        self.results.pop()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.results.len(), Some(self.results.len()))
    }
}

impl<C> ExactSizeIterator for Drain<'_, C> {}
