//! The poller of the BSDs and macOS: `kqueue(2)`, edge-triggered.
//!
//! All changes are made at once, by calls of their own: a registration that the system refuses is
//! the caller's error, so its receipt cannot wait, and a descriptor that is given up may be closed
//! and its number used again before the next wait.

use std::fmt;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::poller::{Poller, Readiness, Watch};
use crate::Until;
use crate::error::{Errno, Refusal};
use crate::sys;
use crate::sys::kqueue::{Event, Filter, Kqueue as Queue};
use crate::wake::Bell;

/// Names of what is not a descriptor. They need not be unique across filters.
const BELL: usize = 1;
const ALARM: usize = 1;

/// A kqueue.
pub struct Kqueue {
    /// The bell has a share in it: it may ring when the poller is gone.
    queue: Arc<Queue>,
    events: Vec<Event>,
    /// A bell that has to be cleared when its event is seen.
    pipe: Option<(u64, Arc<PipeBell>)>,
}

impl Poller for Kqueue {
    /// Some systems have the flag of `send(2)` that would save this, but macOS and NetBSD only heed it
    /// for receiving.
    const NEEDS_NONBLOCKING: bool = true;

    /// Takes 32 KiB of memory, 64 on FreeBSD.
    const EVENTS_MAX: usize = 1024;

    fn new() -> Result<Self, Refusal> {
        let queue = Queue::new().map_err(|errno| Refusal {
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
            // Never writable: a first write says so, without waiting.
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

    fn bell(&mut self, token: u64) -> Result<Arc<dyn Bell>, Errno> {
        if let [Ok(())] = self.queue.apply([Event::user(BELL, token)])? {
            let queue = Arc::clone(&self.queue);
            return Ok(Arc::new(UserBell { queue, token }));
        }
        // NetBSD before 10 and OpenBSD before 7.8 have no user events.
        let bell = Arc::new(PipeBell::new()?);
        self.add(bell.descriptor(), token, Watch::Incoming)?;
        self.pipe = Some((token, Arc::clone(&bell)));
        Ok(bell)
    }

    fn alarm(&mut self, token: u64, at: Option<Instant>) -> Result<(), Errno> {
        // Not every system sets a running timer anew, or takes back that it has fired.
        let stop = Event::forget(Filter::Timer, ALARM);
        let Some(at) = at else {
            return self.queue.apply([stop]).map(drop);
        };
        let left = at.saturating_duration_since(Instant::now());
        // Up: a timer that is early costs a look at the clock. NetBSD's are, before 10, by a tick at
        // most. Not zero, which some systems refuse.
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
        if let Some((bell, pipe)) = &self.pipe
            && self.events.iter().any(|event| event.token() == *bell)
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
        // Either may never have been there.
        let _ = self.queue.apply([read, write]);
    }
}

/// Whether this is what systems say, each in its own way, of what can be watched for reading only:
/// another kqueue, some devices (macOS: `ENODEV`), a pipe that nobody reads, and either end of a pipe
/// whose other end is gone (NetBSD: `EBADF`). It was watched for reading a moment ago, so it is open.
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
struct UserBell {
    queue: Arc<Queue>,
    token: u64,
}

impl Bell for UserBell {
    fn ring(&self) {
        self.queue.trigger(BELL, self.token);
    }

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.queue.as_fd()
    }
}

/// A pipe that the queue watches.
#[derive(Debug)]
struct PipeBell {
    reader: PipeReader,
    writer: PipeWriter,
}

impl PipeBell {
    fn new() -> Result<Self, Errno> {
        let (reader, writer) = pipe()?;
        sys::set_nonblocking(reader.as_fd(), true)?;
        sys::set_nonblocking(writer.as_fd(), true)?;
        Ok(PipeBell { reader, writer })
    }

    /// Makes room, so that the next ring is a change again.
    fn clear(&self) {
        while matches!((&self.reader).read(&mut [0; 64]), Ok(64)) {}
    }
}

impl Bell for PipeBell {
    fn ring(&self) {
        // A full pipe has rung.
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
