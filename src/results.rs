//! What `wait_io` hands out: results, and the container that is filled again and again.

use std::fmt;
use std::slice;

use gaio_backends::{Buffer, Error, Result, Tray};

use crate::conn::Conn;
use crate::request::{OpId, Operation};

/// How many results a turn gives at most, unless the program says otherwise.
const MAX_DEFAULT: usize = 256;

/// One finished operation, or one step of a stream.
#[derive(Debug)]
#[non_exhaustive]
pub struct OpResult<C = ()> {
    /// What it was.
    pub operation: Operation,
    /// Which one it was: what the submitting call returned. `connect` and `post` return something
    /// else; theirs is a number that nothing else has.
    pub op: OpId,
    /// The connection; the listener for [`Operation::Accept`]; [`Conn::NONE`] for timers and
    /// messages.
    pub conn: Conn,
    /// What the program handed in with the request.
    pub context: C,
    /// What was read, or was to be written; empty where the operation has none.
    pub buffer: Buffer,
    /// Bytes transferred, also when there is an error.
    pub size: usize,
    /// Why it failed, if it did.
    pub error: Option<Error>,
    /// `Conn::NONE` if there is none: half the size.
    pub(crate) accepted: Conn,
    pub(crate) last: bool,
}

impl<C> OpResult<C> {
    /// The last result of a request.
    #[inline(always)]
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

    /// The transferred bytes.
    pub fn data(&self) -> &[u8] {
        &self.buffer[..self.size.min(self.buffer.len())]
    }

    /// Whether the bytes lie in a swap buffer.
    pub fn is_swap_buffer(&self) -> bool {
        self.buffer.is_swap()
    }

    /// Whether the peer has closed its sending side: a read that ended with nothing and no error.
    pub fn is_eof(&self) -> bool {
        self.operation == Operation::Read && self.size == 0 && self.error.is_none()
    }

    /// Whether this is the request's last result. Always true but for streams
    /// (`accept`, `read_stream`) that go on.
    pub fn is_last(&self) -> bool {
        self.last
    }

    /// The size, or the error.
    ///
    /// # Errors
    /// [`error`](OpResult::error), if there is one.
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

/// A batch of results. Keep one and hand it to every `wait_io`: each call drops what was left
/// unread and fills it anew, without allocating in the long run.
///
/// Read all of them: with a result of `accept` that is dropped unread, the only handle of its
/// connection is gone, which stays open until the watcher is closed.
pub struct Results<C = ()> {
    tray: Tray<OpResult<C>>,
    max: usize,
}

impl<C> Results<C> {
    /// For at most 256 results a turn.
    pub fn new() -> Self {
        Results {
            tray: Tray::new(),
            max: MAX_DEFAULT,
        }
    }

    /// For at most `max` results a turn (at least one).
    pub fn with_capacity(max: usize) -> Self {
        let max = max.max(1);
        Results {
            tray: Tray::with_capacity(max.min(MAX_DEFAULT)),
            max,
        }
    }

    /// Results that were not taken yet.
    pub fn len(&self) -> usize {
        self.tray.len()
    }

    /// Whether none are left.
    pub fn is_empty(&self) -> bool {
        self.tray.is_empty()
    }

    /// Looks at the results without taking them, oldest first.
    pub fn iter(&self) -> slice::Iter<'_, OpResult<C>> {
        self.tray.as_slice().iter()
    }

    /// Takes the results one by one, oldest first. Dropped early, it leaves the rest.
    pub fn drain(&mut self) -> Drain<'_, C> {
        Drain { results: self }
    }

    /// Takes the oldest result.
    #[inline]
    pub fn pop(&mut self) -> Option<OpResult<C>> {
        self.tray.pop()
    }

    pub(crate) fn max(&self) -> usize {
        self.max
    }

    pub(crate) fn clear(&mut self) {
        self.tray.clear();
    }

    /// Takes over what `from` has, at most `max` of it; by an exchange of the containers where
    /// possible. There must be nothing left. What a flood has made of `from` is not handed on.
    pub(crate) fn fill(&mut self, from: &mut Tray<OpResult<C>>) {
        if from.len() <= self.max && !from.is_overgrown() {
            std::mem::swap(&mut self.tray, from);
            return;
        }
        for _ in 0..self.max {
            let Some(result) = from.pop() else {
                break;
            };
            self.tray.push_with(|| result);
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

/// Takes results out of a [`Results`].
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
