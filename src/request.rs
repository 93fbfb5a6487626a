//! New and pending requests, and the keys that identify them.

use std::fs::File;
use std::net::Shutdown;
use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use gaio_backends::{
    Buffer, Errno, Error, ErrorContext, ErrorKind, Interest, Lane, LaneId, OpData,
};
use slab::Slab;

/// The kind of request that a result belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Operation {
    /// [`read`](crate::Watcher::read), `read_timeout`, `read_full`, `read_stream`.
    Read,
    /// [`write`](crate::Watcher::write), `write_timeout`,
    /// [`write_vectored`](crate::Watcher::write_vectored).
    Write,
    /// [`send_file`](crate::Watcher::send_file).
    SendFile,
    /// [`accept`](crate::Watcher::accept), `accept_one`.
    Accept,
    /// [`connect`](crate::Watcher::connect), `connect_from`.
    Connect,
    /// [`shutdown`](crate::Watcher::shutdown).
    Shutdown,
    /// [`ready`](crate::Watcher::ready).
    Ready,
    /// [`timer`](crate::Watcher::timer).
    Timer,
    /// [`Remote::post`](crate::Remote::post).
    Post,
}

/// The number of a request. It is unique in the process, across watchers, and never used again.
///
/// ```
/// use gaio::{OpId, Results, Watcher};
/// use std::time::Duration;
///
/// # fn main() -> gaio::Result<()> {
/// let mut watcher = Watcher::new()?;
/// let soon: OpId = watcher.timer((), Duration::ZERO)?;
/// let late: OpId = watcher.timer((), Duration::from_secs(3600))?;
/// let mut results = Results::new();
/// watcher.wait_io(&mut results)?;
/// assert_eq!(results.pop().expect("a result").op, soon);
/// assert!(watcher.cancel(late));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct OpId(NonZeroU64);

impl OpId {
    /// The number without the bit that all have in common: consecutive requests differ by one.
    #[inline]
    pub(crate) fn count(self) -> u64 {
        self.0.get() >> 1
    }
}

/// Gives out the numbers of requests. They come in blocks, so that taking one costs an addition.
#[derive(Debug)]
pub(crate) struct OpIds {
    next: u64,
    end: u64,
}

impl OpIds {
    const BLOCK: u64 = 1 << 32;

    #[inline]
    pub(crate) fn new() -> Self {
        OpIds { next: 0, end: 0 }
    }

    #[inline]
    pub(crate) fn next(&mut self) -> OpId {
        if self.next == self.end {
            static NEXT_BLOCK: AtomicU64 = AtomicU64::new(0);
            let block = NEXT_BLOCK.fetch_add(1, Ordering::Relaxed);
            self.next = block * Self::BLOCK;
            self.end = self.next + Self::BLOCK;
        }
        self.next += 2;
        // All numbers are odd, so none is zero.
        OpId(NonZeroU64::MIN | self.next)
    }
}

/// The kind of a request: everything but its context, its data and its deadline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestKind {
    ReadSwap,
    Read,
    ReadFull,
    ReadStream,
    Write,
    /// A write of a buffer in parts.
    WriteParts,
    SendFile,
    /// A write of no bytes. It waits its turn and is not handed to the backend.
    EmptyWrite,
    Accept,
    AcceptOne,
    Connect,
    Shutdown(Shutdown),
    Ready(Interest),
    Timer,
}

impl RequestKind {
    /// A write of a buffer that has no bytes in one place.
    #[cold]
    pub(crate) fn write_in_parts(buffer: &Buffer) -> Self {
        match buffer.len_bytes() {
            0 => RequestKind::EmptyWrite,
            _ => RequestKind::WriteParts,
        }
    }

    /// A write of this buffer.
    #[inline]
    pub(crate) fn write(buffer: &Buffer) -> Self {
        match buffer.is_empty() {
            true => Self::write_in_parts(buffer),
            false => RequestKind::Write,
        }
    }

    /// Whether it is a write of bytes.
    #[inline]
    pub(crate) fn writes(self) -> bool {
        matches!(self, RequestKind::Write | RequestKind::WriteParts)
    }

    /// The lane in which a request waits its turn.
    #[inline]
    pub(crate) fn lane(self) -> Lane {
        match self {
            RequestKind::Write
            | RequestKind::WriteParts
            | RequestKind::SendFile
            | RequestKind::EmptyWrite
            | RequestKind::Connect
            | RequestKind::Shutdown(_)
            | RequestKind::Ready(Interest::Writable)
            | RequestKind::Timer => Lane::Write,
            RequestKind::ReadSwap
            | RequestKind::Read
            | RequestKind::ReadFull
            | RequestKind::ReadStream
            | RequestKind::Accept
            | RequestKind::AcceptOne
            | RequestKind::Ready(Interest::Readable) => Lane::Read,
        }
    }

    #[inline]
    pub(crate) fn operation(self) -> Operation {
        match self {
            RequestKind::ReadSwap
            | RequestKind::Read
            | RequestKind::ReadFull
            | RequestKind::ReadStream => Operation::Read,
            RequestKind::Write | RequestKind::WriteParts | RequestKind::EmptyWrite => {
                Operation::Write
            }
            RequestKind::SendFile => Operation::SendFile,
            RequestKind::Accept | RequestKind::AcceptOne => Operation::Accept,
            RequestKind::Connect => Operation::Connect,
            RequestKind::Shutdown(_) => Operation::Shutdown,
            RequestKind::Ready(_) => Operation::Ready,
            RequestKind::Timer => Operation::Timer,
        }
    }

    pub(crate) fn error_context(self) -> ErrorContext {
        match self.operation() {
            Operation::Read => ErrorContext::Read,
            Operation::Write => ErrorContext::Write,
            Operation::SendFile => ErrorContext::SendFile,
            Operation::Accept => ErrorContext::Accept,
            Operation::Connect => ErrorContext::Connect,
            Operation::Shutdown => ErrorContext::Shutdown,
            Operation::Ready => ErrorContext::Ready,
            Operation::Timer => ErrorContext::Timer,
            Operation::Post => ErrorContext::Post,
        }
    }
}

/// A new request that the engine has not taken yet.
#[derive(Debug)]
pub(crate) struct Submission<C> {
    /// Copies the context of a stream for each result.
    pub(crate) clone_context: Option<fn(&C) -> C>,
    pub(crate) kind: RequestKind,
    pub(crate) context: C,
    pub(crate) data: OpData,
    pub(crate) deadline: Option<Instant>,
}

impl<C> Submission<C> {
    #[inline]
    pub(crate) fn new(
        kind: RequestKind,
        context: C,
        data: OpData,
        deadline: Option<Instant>,
    ) -> Self {
        Submission {
            clone_context: None,
            kind,
            context,
            data,
            deadline,
        }
    }

    /// A request with many results.
    pub(crate) fn stream(kind: RequestKind, context: C, data: OpData) -> Self
    where
        C: Clone,
    {
        Submission {
            clone_context: Some(C::clone),
            ..Submission::new(kind, context, data, None)
        }
    }

    /// A range of a file to send.
    pub(crate) fn file(
        context: C,
        file: Arc<File>,
        range: Range<u64>,
        deadline: Option<Instant>,
    ) -> Self {
        let data = OpData::Buffer(Buffer::from_file(file, range));
        Submission::new(RequestKind::SendFile, context, data, deadline)
    }

    /// A read into a vector, or into a swap buffer.
    #[inline]
    pub(crate) fn read(context: C, buf: Option<Vec<u8>>, deadline: Option<Instant>) -> Self {
        match buf {
            Some(vec) => Submission::new(
                RequestKind::Read,
                context,
                OpData::Buffer(vec.into()),
                deadline,
            ),
            None => Submission::new(RequestKind::ReadSwap, context, OpData::None, deadline),
        }
    }

    /// The arguments of `read`.
    pub(crate) fn into_read(self) -> (C, Option<Vec<u8>>) {
        (self.context, self.data.into_buffer().recycle())
    }

    /// The arguments of `write`.
    pub(crate) fn into_write(self) -> (C, Buffer) {
        (self.context, self.data.into_buffer())
    }
}

/// The reason why a range of a file cannot be sent, if there is one.
pub(crate) fn refuses_file(file: &File, range: &Range<u64>) -> Option<Error> {
    let refused = |why| Some(ErrorContext::SendFile.error(why));
    match file.metadata() {
        Ok(metadata) if !metadata.is_file() => refused(ErrorKind::Unsupported),
        Ok(metadata) => {
            let len = range.end.checked_sub(range.start);
            let fits =
                range.end <= metadata.len() && len.is_some_and(|it| usize::try_from(it).is_ok());
            if fits {
                None
            } else {
                refused(ErrorKind::InvalidInput)
            }
        }
        Err(error) => Some(match error.raw_os_error() {
            Some(errno) => ErrorContext::SendFile.os_error(Errno(errno)),
            None => ErrorContext::SendFile.error(ErrorKind::Unsupported),
        }),
    }
}

/// A request that the engine has taken. Its data lies in the backend's table of operations if it is the
/// first of its lane, and in [`QueuedRequests`] if it is not.
#[derive(Debug)]
pub(crate) struct Pending<C> {
    pub(crate) op: OpId,
    pub(crate) sequence: Sequence,
    pub(crate) kind: RequestKind,
    /// The reason, if it is to end before its time.
    pub(crate) end: Option<ErrorKind>,
    pub(crate) has_deadline: bool,
    pub(crate) context: C,
}

const _: () = assert!(size_of::<Option<Pending<()>>>() == 16);

impl<C> Pending<C> {
    #[inline]
    pub(crate) fn new(
        op: OpId,
        sequence: Sequence,
        kind: RequestKind,
        context: C,
        deadline: Option<Instant>,
    ) -> Self {
        Pending {
            op,
            sequence,
            kind,
            end: None,
            has_deadline: deadline.is_some(),
            context,
        }
    }
}

/// The position of a request in the order of submission. It is small and wraps around. Pending requests
/// get new ones before that matters ([`Sequence::LIFE`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sequence(u32);

impl Sequence {
    /// The number of requests after which the pending ones get new positions. Two positions compare
    /// correctly up to twice this distance.
    pub(crate) const LIFE: u64 = 1 << 30;

    /// The position of the last of so many requests.
    #[inline]
    pub(crate) fn last(accepted: u64) -> Self {
        Sequence(accepted as u32)
    }

    /// The number of requests after this one, up to `last`.
    pub(crate) fn age(self, last: Sequence) -> u32 {
        last.0.wrapping_sub(self.0)
    }

    /// The position that has this age.
    pub(crate) fn of_age(age: u32, last: Sequence) -> Self {
        Sequence(last.0.wrapping_sub(age))
    }

    pub(crate) fn is_before(self, other: Sequence) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }
}

/// The key that identifies a pending request: a lane for its first request, a number for a queued one
/// or a timer. It changes when a request becomes the first, and when the queued ones are moved
/// together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key(u32);

impl Key {
    const QUEUED: u32 = 1 << 31;
    /// The key of no request.
    pub(crate) const NONE: Key = Key(u32::MAX);

    #[inline]
    pub(crate) fn first(at: LaneId) -> Self {
        Key(at.number())
    }

    #[inline]
    pub(crate) fn queued(number: u32) -> Self {
        Key(number | Key::QUEUED)
    }

    pub(crate) fn kind(self) -> Position {
        if self.0 & Key::QUEUED == 0 {
            Position::First(LaneId::from_number(self.0))
        } else {
            Position::Queued(self.0 & !Key::QUEUED)
        }
    }
}

/// The position that a [`Key`] names: first of a lane, or a number among [`QueuedRequests`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Position {
    First(LaneId),
    Queued(u32),
}

/// A request that is not the first of its lane, or a timer.
#[derive(Debug)]
pub(crate) struct Queued<C> {
    pub(crate) pending: Pending<C>,
    /// Empty while it is part of a vectored write that runs.
    pub(crate) data: OpData,
    /// The number of its bytes that were written.
    pub(crate) done: usize,
    /// Its lane; none for a timer.
    pub(crate) at: Option<LaneId>,
    /// Neighbours in its lane.
    pub(crate) next: u32,
    pub(crate) prev: u32,
    /// It runs in one vectored write with the first.
    pub(crate) in_flight: bool,
}

impl<C> Queued<C> {
    /// The bytes that it has still to write. While it is part of a vectored write that runs, the backend
    /// has them.
    pub(crate) fn unwritten(&self) -> usize {
        match &self.data {
            OpData::Buffer(buffer) if self.pending.kind.writes() => {
                buffer.len_bytes().saturating_sub(self.done)
            }
            _ => 0,
        }
    }
}

/// All requests that wait behind others, and the timers, by number.
pub(crate) type QueuedRequests<C> = Slab<Queued<C>>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_two_watchers_differ() {
        assert_ne!(OpIds::new().next(), OpIds::new().next());
    }

    #[test]
    fn keys_say_where_a_request_stands() {
        let at = LaneId::new(77, Lane::Write);
        assert_eq!(Key::first(at).kind(), Position::First(at));
        assert_eq!(Key::queued(77).kind(), Position::Queued(77));
    }
}
