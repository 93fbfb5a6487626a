//! Options of a watcher, and the choice of its backend.

use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeInclusive;
use std::time::Duration;

use gaio_backends::Choice;
use gaio_backends::{BackendInfo, ErrorContext, ErrorKind, Options, Result, Selected, select};

use crate::watcher::Watcher;

const KIB: usize = 1 << 10;
const SWAP_BUFFER_SIZE: RangeInclusive<usize> = KIB..=KIB * KIB * KIB;
const SWAP_BUFFERS: RangeInclusive<usize> = 1..=1 << 20;
const QUEUE_DEPTH: RangeInclusive<usize> = 1..=32_768;

/// Options of a [`Watcher`]. The defaults suit a server with thousands of connections.
///
/// ```
/// use gaio::{Choice, Watcher};
///
/// # fn main() -> gaio::Result<()> {
/// let watcher = Watcher::<()>::builder()
///     .backend(Choice::Auto)
///     .swap_buffer_size(16 * 1024)
///     .swap_buffers(1024)
///     .build()?;
/// println!("{}", watcher.backend());
/// # Ok(())
/// # }
/// ```
///
/// An option out of its range is an error that says what is allowed:
///
/// ```
/// use gaio::{ErrorKind, Watcher};
///
/// let error = Watcher::<()>::builder().queue_depth(0).build().unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::InvalidInput);
/// assert_eq!(error.to_string(), "queue_depth: the depth must lie between 1 and 32,768");
/// ```
#[must_use]
pub struct Builder<C = ()> {
    choice: Choice,
    options: Options,
    stream_window: usize,
    write_limit: usize,
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
            write_limit: usize::MAX,
            spin: Duration::ZERO,
            context: PhantomData,
        }
    }

    /// The backend. Default: [`Choice::Auto`]. [`guide::backends`](crate::guide::backends) has more.
    pub fn backend(mut self, choice: Choice) -> Self {
        self.choice = choice;
        self
    }

    /// The size of a swap buffer, 1 KiB to 1 GiB. Default: 64 KiB. One swap read returns at most this much.
    pub fn swap_buffer_size(mut self, bytes: usize) -> Self {
        self.options.swap_buffer_size = bytes;
        self
    }

    /// The maximum number of swap buffers, 1 to 1,048,576. Default: 256. They are allocated as needed.
    ///
    /// When all are out, a connection that holds little reads into small buffers of its own, at most two
    /// of 4 KiB. One that holds more waits until some of it, or a swap buffer, comes back. So swap reads
    /// take at most `swap_buffers` × [`swap_buffer_size`](Builder::swap_buffer_size), and 8 KiB for each
    /// connection whose leases the program keeps.
    pub fn swap_buffers(mut self, count: usize) -> Self {
        self.options.swap_buffers = count;
        self
    }

    /// The leased bytes that one `read_stream` may have outstanding before it pauses, at least 1. Default:
    /// 512 KiB. What the kernel has received by then is still returned. While less than a quarter
    /// of the swap buffers is left, a stream pauses at 16 KiB, so that a few streams whose leases are
    /// kept leave room for the others.
    pub fn stream_window(mut self, bytes: usize) -> Self {
        self.stream_window = bytes;
        self
    }

    /// The bytes that the writes of one connection may have queued, at least 1. Default: no limit. A write
    /// that would exceed it is refused with [`WriteLimit`](crate::ErrorKind::WriteLimit), and
    /// everything comes back. Where nothing is queued, a single write may be as long as it likes, so that a
    /// long message can be sent at all.
    ///
    /// What is queued is what [`queued_bytes`](Watcher::queued_bytes) says: a write counts from the call
    /// on, and its bytes cease to count when the kernel has them, as of the last turn. A write of a
    /// [`Remote`](crate::Remote) is checked when the watcher takes it, and the refusal is its result.
    ///
    /// ```
    /// use gaio::{ErrorKind, Results, Watcher};
    /// use std::os::unix::net::UnixStream;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (ours, _peer) = UnixStream::pair()?; // a peer that never reads
    /// let mut watcher = Watcher::builder().write_limit(1 << 20).build()?;
    /// let mut results = Results::new();
    /// let conn = watcher.delegate(ours)?;
    /// loop {
    ///     match watcher.write((), conn, vec![0; 64 * 1024]) {
    ///         Ok(_) => watcher.wait_io_timeout(&mut results, std::time::Duration::ZERO)?,
    ///         Err(rejected) if rejected.error().kind() == ErrorKind::WriteLimit => break, // too slow
    ///         Err(rejected) => return Err(rejected.error().into()),
    ///     };
    /// }
    /// assert!(watcher.queued_bytes(conn) <= 1 << 20);
    /// watcher.free(conn);
    /// # Ok(())
    /// # }
    /// ```
    pub fn write_limit(mut self, bytes: usize) -> Self {
        self.write_limit = bytes;
        self
    }

    /// The number of operations that one turn can start, 1 to 32,768. Default: 1024. The others wait for
    /// the next turn. On io_uring this is the size of the submission queue. A larger queue needs more
    /// locked memory (`RLIMIT_MEMLOCK`): 140 KiB for the default, 30 KiB for a queue of 32. If the limit is
    /// too low, a smaller queue is used.
    pub fn queue_depth(mut self, operations: usize) -> Self {
        self.options.queue_depth = operations;
        self
    }

    /// Makes the kernel refuse everything on this watcher's ring that this library does not use
    /// (`IORING_REGISTER_RESTRICTIONS`). Code that takes over the process then finds no ring with
    /// which it could open files. It has no measurable cost. Default: off. Backends
    /// without a ring ignore it.
    pub fn restricted(mut self, on: bool) -> Self {
        self.options.restricted = on;
        self
    }

    /// How long [`wait_io`](Watcher::wait_io) looks for results again and again before it sleeps. Default:
    /// not at all. An answer that comes within this time is seen without the latency of a wake-up, but
    /// the thread keeps its CPU busy. Use it for few busy connections and a CPU of their own.
    pub fn spin(mut self, duration: Duration) -> Self {
        self.spin = duration;
        self
    }

    /// Builds the watcher.
    ///
    /// # Errors
    /// - `InvalidInput` for an option out of its range. The text says which one, and what is allowed.
    /// - `Unsupported` for a backend that this build or machine does not have, or a `GAIO_BACKEND` that
    ///   names no backend.
    /// - `Os` if the system refuses descriptors or memory.
    pub fn build(self) -> Result<Watcher<C>> {
        let choice = self.choice;
        self.build_with(|options| select(choice, options))
    }

    /// The same on a backend that the caller makes, for this project's own tests.
    #[doc(hidden)]
    pub fn build_with(
        self,
        make: impl FnOnce(&Options) -> Result<(Selected, BackendInfo)>,
    ) -> Result<Watcher<C>> {
        let options = &self.options;
        let in_range = [
            (
                SWAP_BUFFER_SIZE.contains(&options.swap_buffer_size),
                ErrorContext::SizeSwapBuffers,
            ),
            (
                SWAP_BUFFERS.contains(&options.swap_buffers),
                ErrorContext::CountSwapBuffers,
            ),
            (
                QUEUE_DEPTH.contains(&options.queue_depth),
                ErrorContext::SizeQueue,
            ),
            (self.stream_window > 0, ErrorContext::SizeStreamWindow),
            (self.write_limit > 0, ErrorContext::SizeWriteLimit),
        ];
        if let Some((_, error_context)) = in_range.into_iter().find(|(good, _)| !good) {
            return Err(error_context.error(ErrorKind::InvalidInput));
        }
        let (backend, info) = make(options)?;
        Ok(Watcher::assemble(
            backend,
            info,
            self.stream_window,
            self.write_limit,
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
            .field("write_limit", &self.write_limit)
            .finish_non_exhaustive()
    }
}
