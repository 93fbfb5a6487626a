//! Ending a ring without the kernel writing into memory that was freed.
//!
//! Closing a ring is asynchronous: the kernel was seen to write into buffers after `close(2)`
//! returned. So everything is cancelled and waited for first. Where that is impossible, because
//! another thread than the ring's drops it, the *tombstone* tells: a pipe whose write end only
//! the ring holds, so that its read end hangs up when the last operation is gone. If it does not
//! in time, the memory is kept aside until it has.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use io_uring::IoUring;

use super::Uring;
use super::buffer_ring::BufferRing;
use crate::error::Errno;
use crate::sys;
use crate::{Backend, Interest, Lane, LoadTable};

/// How long the end may take. It takes microseconds unless something is wrong.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// How long a closed ring may take: its owner's thread may keep it alive for good.
const HANGUP_MAX: Duration = Duration::from_millis(500);

/// The read end of a pipe that hangs up when the ring is gone.
pub(super) struct Tombstone(OwnedFd);

impl Tombstone {
    /// Registers the write end with the ring and keeps no other copy.
    pub(super) fn bury(ring: &IoUring) -> Result<Self, Errno> {
        let (read, write) = std::io::pipe()?;
        ring.submitter().register_files(&[write.as_raw_fd()])?;
        Ok(Tombstone(read.into()))
    }

    fn has_hung_up(&self) -> bool {
        sys::is_ready(self.0.as_raw_fd(), Interest::Readable) == Ok(true)
    }

    /// Whether the ring is gone, after waiting a bounded time.
    fn hangs_up(&self) -> bool {
        let until = Instant::now() + HANGUP_MAX;
        loop {
            if self.has_hung_up() {
                return true;
            }
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// What the kernel may still write to, or read from, after its ring was closed.
struct Remains {
    tombstone: Tombstone,
    _loads: LoadTable,
    _buffers: BufferRing,
    _wake_count: Box<u64>,
}

/// Remains of rings that did not end in time: their threads kept them.
static GRAVEYARD: Mutex<Vec<Remains>> = Mutex::new(Vec::new());

/// Frees the remains of rings that have ended since.
pub(super) fn sweep_graveyard() {
    let mut graves = GRAVEYARD.lock().unwrap_or_else(PoisonError::into_inner);
    graves.retain(|remains| !remains.tombstone.has_hung_up());
}

impl Uring {
    fn in_flight(&self) -> usize {
        self.in_flight.all().count() + usize::from(self.wake_armed)
    }

    /// Cancels everything and collects it. False if that did not succeed.
    fn drain(&mut self) -> bool {
        for place in self.in_flight.all().collect::<Vec<_>>() {
            self.cancel(place, false);
        }
        self.disarm_wake();
        let until = Instant::now() + DRAIN_MAX;
        while self.in_flight() > 0 {
            self.push_deferred();
            // Only what is in flight is asked for, so this ends as soon as it has ended.
            self.sync();
            let want = self.completion.len() + self.in_flight();
            let most = self.ring.params().cq_entries() as usize;
            let slice = io_uring::types::Timespec::new().nsec(10_000_000);
            let entered = self.enter_for(slice, want.min(most));
            let failed = entered.is_err_and(|error| {
                let expected = [libc::ETIME, libc::EINTR, libc::EBUSY, libc::EAGAIN];
                !error.raw_os_error().is_some_and(|e| expected.contains(&e))
            });
            self.sync();
            while self.next().is_some() {}
            if failed || Instant::now() > until {
                return self.in_flight() == 0;
            }
        }
        true
    }

    /// Wakes up peers of connections that a ring which will not end keeps open.
    fn shut_down_running(&mut self) {
        for place in self.in_flight.all() {
            if let Some(socket) = self.in_flight.socket(place.slot())
                && place.lane() == Lane::Read
            {
                let _ = sys::shutdown(socket, std::net::Shutdown::Both);
            }
        }
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The registered index means another ring on another thread.
        self.submitter = self.ring.submitter();
        let drained = !self.bound || self.drain();
        let ring: *const IoUring = self.ring;
        // SAFETY: `Uring::new` leaked this box. `submitter` and the queues refer to it, but no drop
        // code of theirs runs and they are not used again; nor is `ring`.
        drop(unsafe { Box::from_raw(ring.cast_mut()) });
        let ended = drained || self.tombstone.hangs_up();
        if !ended {
            self.shut_down_running();
        }
        // SAFETY: taken once, here, and not used afterwards.
        let (tombstone, loads, buffers) = unsafe {
            (
                ManuallyDrop::take(&mut self.tombstone),
                ManuallyDrop::take(&mut self.loads),
                ManuallyDrop::take(&mut self.buffers),
            )
        };
        let remains = Remains {
            tombstone,
            _loads: loads,
            _buffers: buffers,
            _wake_count: std::mem::take(&mut self.wake_count),
        };
        if !ended {
            let mut graves = GRAVEYARD.lock().unwrap_or_else(PoisonError::into_inner);
            graves.push(remains);
        }
    }
}
