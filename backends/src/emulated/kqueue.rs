//! The poller of the BSDs and macOS: `kqueue(2)`, edge-triggered.
//!
//! Each change is a call of its own and is made at once. A registration that the system refuses is
//! the caller's error, so its receipt cannot wait. A descriptor that is given up may be closed, and
//! its number reused, before the next wait.

use std::fmt;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::poller::{Poller, Readiness, Watch};
use crate::Until;
use crate::error::{Errno, SetupError};
use crate::sys;
use crate::sys::kqueue::{Event, Filter, Kqueue as Queue};
use crate::wake::Notifier;

/// The identifiers of filters without a descriptor. They need not be unique across filters.
const NOTIFIER: usize = 1;
const ALARM: usize = 1;

/// A kqueue.
pub(crate) struct Kqueue {
    /// The notifier shares it, because it may be called when the poller is gone.
    queue: Arc<Queue>,
    events: Vec<Event>,
    /// A notifier that has to be cleared when its event is seen.
    pipe: Option<(u64, Arc<PipeNotifier>)>,
}

impl Poller for Kqueue {
    /// A flag of `send(2)` would save this on some systems, but macOS and NetBSD heed it only for
    /// receiving.
    const NEEDS_NONBLOCKING: bool = true;

    /// The buffer for as many takes 32 KiB of memory, 64 KiB on FreeBSD.
    const EVENTS_MAX: usize = 1024;

    fn new() -> Result<Self, SetupError> {
        let queue = Queue::new().map_err(|errno| SetupError {
            step: "kqueue",
            errno,
            advice: "raise the limit of open descriptors (ulimit -n), or of kqueues",
        })?;
        Ok(Kqueue {
            queue: Arc::new(queue),
            events: Vec::with_capacity(Self::EVENTS_MAX),
            pipe: None,
        })
    }

    fn add(&self, fd: BorrowedFd<'_>, token: u64, watch: Watch) -> Result<(), Errno> {
        let fd = fd.as_raw_fd();
        let read = Event::watch(Filter::Read, fd, token);
        if watch == Watch::Incoming {
            let [added] = self.queue.apply([read])?;
            return added;
        }
        let write = Event::watch(Filter::Write, fd, token);
        match self.queue.apply([read, write])? {
            [Ok(()), Ok(())] => Ok(()),
            // It is never writable. A first write says so, without waiting.
            [Ok(()), Err(errno)] if is_for_reading_only(errno) => Ok(()),
            [read, write] => {
                self.forget(fd);
                read.and(write)
            }
        }
    }

    fn remove(&self, fd: BorrowedFd<'_>) {
        self.forget(fd.as_raw_fd());
    }

    fn notifier(&mut self, token: u64) -> Result<Arc<dyn Notifier>, Errno> {
        if let [Ok(())] = self.queue.apply([Event::user(NOTIFIER, token)])? {
            let queue = Arc::clone(&self.queue);
            return Ok(Arc::new(UserNotifier { queue, token }));
        }
        // NetBSD before 10 and OpenBSD before 7.8 have no user events.
        let notifier = Arc::new(PipeNotifier::new()?);
        self.add(notifier.descriptor(), token, Watch::Incoming)?;
        self.pipe = Some((token, Arc::clone(&notifier)));
        Ok(notifier)
    }

    fn alarm(&mut self, token: u64, at: Option<Instant>) -> Result<(), Errno> {
        // Stopped first: not every system restarts a running timer, or takes back an event of one
        // that has fired.
        let stop = Event::forget(Filter::Timer, ALARM);
        let Some(at) = at else {
            return self.queue.apply([stop]).map(drop);
        };
        let left = at.saturating_duration_since(Instant::now());
        // Rounded up: a timer that is early costs a look at the clock. Those of NetBSD before 10
        // are early by a tick at most. Not zero, which some systems refuse.
        let ms = left.as_nanos().div_ceil(1_000_000).max(1);
        let ms = u32::try_from(ms).unwrap_or(u32::MAX);
        let [_, started] = self.queue.apply([stop, Event::timer(ALARM, token, ms)])?;
        started
    }

    fn wait(&mut self, until: Until) -> Result<usize, Errno> {
        let timeout = match until {
            Until::Now => Some(Duration::ZERO),
            Until::Time(at) => Some(at.saturating_duration_since(Instant::now())),
            Until::Done => None,
        };
        match self.queue.wait(&mut self.events, timeout) {
            Err(Errno(libc::EINTR)) => return Ok(0),
            collected => collected?,
        }
        if let Some((notifier, pipe)) = &self.pipe
            && self.events.iter().any(|event| event.token() == *notifier)
        {
            pipe.clear();
        }
        Ok(self.events.len())
    }

    #[inline]
    fn event(&self, index: usize) -> Option<(u64, Readiness)> {
        let event = self.events.get(index)?;
        Some((event.token(), readiness(event)))
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

impl Kqueue {
    fn forget(&self, fd: RawFd) {
        let [read, write] = [Filter::Read, Filter::Write].map(|it| Event::forget(it, fd as usize));
        // Either filter may never have been registered.
        let _ = self.queue.apply([read, write]);
    }
}

/// Whether a system says by this error that a descriptor can be watched for reading only. Each
/// system has its own: for another kqueue, for some devices (macOS: `ENODEV`), for a pipe that
/// nobody reads, and for either end of a pipe whose other end is gone (NetBSD: `EBADF`). The
/// descriptor was watched for reading a moment ago, so it is open.
fn is_for_reading_only(errno: Errno) -> bool {
    matches!(
        errno.0,
        libc::EINVAL | libc::EOPNOTSUPP | libc::EPERM | libc::EPIPE | libc::EBADF | libc::ENODEV
    )
}

#[inline]
fn readiness(event: &Event) -> Readiness {
    match (event.is_end(), event.is_write()) {
        (true, _) => Readiness::OVER,
        (false, true) => Readiness::WRITABLE,
        (false, false) => Readiness::READABLE,
    }
}

/// A user event of the poller's own queue.
#[derive(Debug)]
struct UserNotifier {
    queue: Arc<Queue>,
    token: u64,
}

impl Notifier for UserNotifier {
    fn notify(&self) {
        self.queue.trigger(NOTIFIER, self.token);
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

/// A pipe that the queue watches.
#[derive(Debug)]
struct PipeNotifier {
    reader: PipeReader,
    writer: PipeWriter,
}

impl PipeNotifier {
    fn new() -> Result<Self, Errno> {
        let (reader, writer) = pipe()?;
        sys::set_nonblocking(reader.as_fd(), true)?;
        sys::set_nonblocking(writer.as_fd(), true)?;
        Ok(PipeNotifier { reader, writer })
    }

    /// Empties the pipe, so that the next wake-up is a change again.
    fn clear(&self) {
        while matches!((&self.reader).read(&mut [0; 64]), Ok(64)) {}
    }
}

impl Notifier for PipeNotifier {
    fn notify(&self) {
        // A full pipe is readable already.
        let _ = (&self.writer).write(&[1]);
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }
}

impl fmt::Debug for Kqueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Kqueue").field(&self.queue).finish()
    }
}
