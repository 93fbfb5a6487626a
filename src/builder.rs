//! Options of a watcher, and the choice of its backend.

use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::time::Duration;

use gaio_backends::select::Choice;
use gaio_backends::{BackendInfo, Doing, Error, ErrorKind, Options, Result, Selected, select};

use crate::watcher::Watcher;

const KIB: usize = 1 << 10;
const SWAP_BUFFER_SIZE: RangeInclusive<usize> = KIB..=KIB * KIB * KIB;
const SWAP_BUFFERS: RangeInclusive<usize> = 1..=1 << 20;
const QUEUE_DEPTH: RangeInclusive<usize> = 1..=32_768;

/// Options of a [`Watcher`]. The defaults suit a server with thousands of connections.
///
/// ```
/// use gaio::{BackendKind, Choice, Watcher};
///
/// # fn main() -> gaio::Result<()> {
/// let watcher = Watcher::<()>::builder()
///     .backend(Choice::Only(BackendKind::Epoll))
///     .swap_buffer_size(16 * 1024)
///     .build()?;
/// assert_eq!(watcher.backend().kind(), BackendKind::Epoll);
/// # Ok(())
/// # }
/// ```
#[must_use]
pub struct Builder<C = ()> {
    choice: Choice,
    options: Options,
    stream_window: usize,
    spin: Duration,
    context: PhantomData<fn() -> C>,
}

impl<C> Builder<C> {
    pub(crate) fn new() -> Self {
        Builder {
            choice: Choice::Auto,
            options: Options {
                swap_buffer_size: 64 * KIB,
                swap_buffers: 256,
                queue_depth: 1024,
                restricted: false,
            },
            stream_window: 512 * KIB,
            spin: Duration::ZERO,
            context: PhantomData,
        }
    }

    /// Which backend. Default: [`Choice::Auto`].
    pub fn backend(mut self, choice: Choice) -> Self {
        self.choice = choice;
        self
    }

    /// Bytes in one swap buffer, 1 KiB to 1 GiB. Default: 64 KiB. One read gives at most so much.
    pub fn swap_buffer_size(mut self, bytes: usize) -> Self {
        self.options.swap_buffer_size = bytes;
        self
    }

    /// The most swap buffers there may be, 1 to 1,048,576. Default: 256. They are allocated as
    /// needed.
    ///
    /// When all are out, a connection that holds little goes on in small buffers of its own, two of at
    /// most 4 KiB. So swap reads take at most `swap_buffers` times
    /// [`swap_buffer_size`](Builder::swap_buffer_size), and 8 KiB for each connection whose leases the
    /// program keeps. A connection that holds more than that waits until some of it comes back.
    pub fn swap_buffers(mut self, count: usize) -> Self {
        self.options.swap_buffers = count;
        self
    }

    /// Leased bytes that one `read_stream` may have outstanding before it pauses, at least 1.
    /// Default: 512 KiB. What the kernel has received by then is still handed out. While less than a
    /// quarter of the swap buffers is left, a stream pauses from 16 KiB on, so that a few streams whose
    /// leases are kept do not take what all others need.
    pub fn stream_window(mut self, bytes: usize) -> Self {
        self.stream_window = bytes;
        self
    }

    /// How many operations one turn can start, 1 to 32,768; more wait for the next turn.
    /// Default: 1024. On io_uring this is the size of the submission queue, of which memory that
    /// counts against `RLIMIT_MEMLOCK` grows; a smaller one is taken if that is too little.
    pub fn queue_depth(mut self, operations: usize) -> Self {
        self.options.queue_depth = operations;
        self
    }

    /// Lets the kernel refuse, through this watcher's ring, everything that this library does not
    /// use (`IORING_REGISTER_RESTRICTIONS`): whoever takes the process over finds no ring in it
    /// that opens files. Costs nothing that could be measured. Default: off. A backend without a
    /// ring has nothing to restrict and ignores it.
    pub fn restricted(mut self, on: bool) -> Self {
        self.options.restricted = on;
        self
    }

    /// How long [`wait_io`](Watcher::wait_io) looks for results again and again before it sleeps.
    /// Default: not at all. A request that is answered within this time is seen without the
    /// latency of being woken, for which this thread uses its CPU all the while: for few busy
    /// connections and a CPU of its own.
    pub fn spin(mut self, duration: Duration) -> Self {
        self.spin = duration;
        self
    }

    /// Builds the watcher.
    ///
    /// # Errors
    /// `InvalidInput` for an option out of its range (the text says which, and what is allowed);
    /// `Unsupported` for a backend that this build or machine does not have, or a `GAIO_BACKEND` that
    /// names none (the text quotes it); `Os` if the system refuses descriptors or memory.
    pub fn build(self) -> Result<Watcher<C>> {
        let choice = self.choice;
        self.build_with(|options| select::select(choice, options))
    }

    /// The same on a backend that the caller makes; for this project's own tests.
    #[doc(hidden)]
    pub fn build_with(
        self,
        make: impl FnOnce(&Options) -> Result<(Selected, BackendInfo)>,
    ) -> Result<Watcher<C>> {
        let options = &self.options;
        let in_range = [
            (
                SWAP_BUFFER_SIZE.contains(&options.swap_buffer_size),
                Doing::SizeSwapBuffers,
            ),
            (
                SWAP_BUFFERS.contains(&options.swap_buffers),
                Doing::CountSwapBuffers,
            ),
            (QUEUE_DEPTH.contains(&options.queue_depth), Doing::SizeQueue),
            (self.stream_window > 0, Doing::SizeStreamWindow),
        ];
        if let Some((_, doing)) = in_range.into_iter().find(|(good, _)| !good) {
            return Err(Error::new(doing, ErrorKind::InvalidInput));
        }
        let (backend, info) = make(options)?;
        Ok(Watcher::assemble(
            backend,
            info,
            self.stream_window,
            options.swap_buffer_size,
            self.spin,
        ))
    }
}

impl<C> fmt::Debug for Builder<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("choice", &self.choice)
            .field("options", &self.options)
            .field("stream_window", &self.stream_window)
            .finish_non_exhaustive()
    }
}
