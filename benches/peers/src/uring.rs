//! What the hand-written io_uring programs here, the floor and the load, have in common: a ring for
//! one thread, and incremental buffers (Linux 6.12) that are lent to it. Both are made once and
//! never freed, so that the kernel has nothing to outlive.
#![expect(unsafe_code, reason = "the io-uring crate trusts its callers")]

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, SubmitArgs, Timespec};
use io_uring::{CompletionQueue, IoUring, SubmissionQueue, Submitter, cqueue, squeue};

use crate::Fallible;

/// Few, so that they stay in the cache: a turn with more of them submits in between.
const SUBMISSIONS: u32 = 512;
const COMPLETIONS: u32 = 4096;
/// A power of two.
const BUFFERS: u16 = 16;
const BUFFER_BYTES: u32 = 64 * 1024;
/// `IOU_PBUF_RING_INC`: the kernel fills a buffer bit by bit.
const INCREMENTAL: u16 = 2;

/// The queues of one ring.
pub struct Ring {
    submitter: Submitter<'static>,
    submissions: SubmissionQueue<'static>,
    completions: CompletionQueue<'static>,
}

impl Ring {
    pub fn new() -> Fallible<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_cqsize(COMPLETIONS)
            .build(SUBMISSIONS)
            .map_err(|error| format!("io_uring_setup: {error}"))?;
        let ring: &'static IoUring = Box::leak(Box::new(ring));
        let mut submitter = ring.submitter();
        submitter.register_ring_fd()?;
        Ok(Ring {
            submitter,
            // SAFETY: these are the only views of the queues, for the life of the ring.
            submissions: unsafe { ring.submission_shared() },
            // SAFETY: as above.
            completions: unsafe { ring.completion_shared() },
        })
    }

    /// Puts an entry into the queue. What it points to must live as long as this process: only
    /// [`Buffers`] and what was leaked do.
    #[inline]
    pub fn push(&mut self, entry: &squeue::Entry) {
        // SAFETY: as said above; a ring has no entries that point elsewhere.
        while unsafe { self.submissions.push(entry) }.is_err() {
            self.enter(0);
        }
    }

    /// Submits what was pushed and waits until there are so many completions.
    pub fn enter(&mut self, want: usize) {
        self.submissions.sync();
        // What fails here is tried again by the next call: the entries stay in the queue.
        let _ = self.submitter.submit_and_wait(want);
        self.submissions.sync();
        self.completions.sync();
    }

    /// Submits, and lets the kernel do what is due, without sleeping.
    pub fn look(&mut self) {
        self.submissions.sync();
        let no_time = Timespec::new();
        let args = SubmitArgs::new().timespec(&no_time);
        // As above. That the time is over is no failure.
        let _ = self.submitter.submit_with_args(1, &args);
        self.submissions.sync();
        self.completions.sync();
    }

    /// The next completion, if there is one.
    #[inline]
    pub fn next(&mut self) -> Option<cqueue::Entry> {
        self.completions.next()
    }

    /// Whether there is no completion.
    pub fn is_empty(&self) -> bool {
        self.completions.is_empty()
    }

    /// Whether the kernel holds completions for which there was no room.
    pub fn overflowed(&self) -> bool {
        self.submissions.cq_overflow()
    }
}

/// Some bytes in a lent buffer.
#[derive(Clone, Copy)]
pub struct Chunk {
    pub buffer: u16,
    pub at: *const u8,
    pub len: u32,
}

impl Chunk {
    /// Without the first bytes.
    pub fn rest(self, done: u32) -> Self {
        Chunk {
            at: self.at.wrapping_add(done as usize),
            len: self.len - done,
            ..self
        }
    }
}

/// The buffers of group 0. The kernel puts what it receives one behind the other; a buffer that is
/// used up goes back when the last of its chunks does.
pub struct Buffers {
    entries: *mut BufRingEntry,
    tail: u16,
    /// How many the kernel has.
    pub lent: usize,
    states: [State; BUFFERS as usize],
}

#[derive(Clone, Copy)]
struct State {
    memory: *mut u8,
    used: u32,
    /// Living chunks, and one while the kernel has the buffer.
    holders: u32,
}

impl Buffers {
    pub fn new(ring: &Ring) -> io::Result<Self> {
        let page = Box::leak(Box::new(Page([0; 4096])));
        let entries: *mut BufRingEntry = page.0.as_mut_ptr().cast();
        let register = |at: u64| {
            // SAFETY: the page has room for the entries, is aligned, and is never freed.
            unsafe {
                ring.submitter
                    .register_buf_ring_with_flags(at, BUFFERS, 0, INCREMENTAL)
            }
        };
        register(entries as u64)?;
        let state = |_| State {
            memory: Vec::leak(vec![0; BUFFER_BYTES as usize]).as_mut_ptr(),
            used: 0,
            holders: 0,
        };
        let mut buffers = Buffers {
            entries,
            tail: 0,
            lent: 0,
            states: std::array::from_fn(state),
        };
        (0..BUFFERS).for_each(|id| buffers.lend(id));
        Ok(buffers)
    }

    fn lend(&mut self, id: u16) {
        let state = &mut self.states[usize::from(id % BUFFERS)];
        (state.used, state.holders) = (0, 1);
        self.lent += 1;
        // SAFETY: the index is in the ring, of which the kernel has only the entries before the
        // tail; it reads the new one after the tail is stored.
        unsafe {
            let entry = &mut *self.entries.add(usize::from(self.tail % BUFFERS));
            entry.set_addr(state.memory as u64);
            entry.set_len(BUFFER_BYTES);
            entry.set_bid(id);
            self.tail = self.tail.wrapping_add(1);
            let tail = BufRingEntry::tail(self.entries).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }

    /// What a receive with this result and these flags has put where.
    #[inline]
    pub fn take(&mut self, len: u32, flags: u32) -> Chunk {
        let buffer = cqueue::buffer_select(flags).unwrap_or_default();
        let state = &mut self.states[usize::from(buffer % BUFFERS)];
        let at = state.memory.wrapping_add(state.used as usize).cast_const();
        state.used += len;
        state.holders += 1;
        if !cqueue::buffer_more(flags) {
            // The kernel's own hold ends; the chunk has one.
            state.holders -= 1;
            self.lent -= 1;
        }
        Chunk { buffer, at, len }
    }

    /// The bytes of a chunk.
    pub fn bytes(&self, chunk: &Chunk) -> &[u8] {
        // SAFETY: chunks are made by `take` alone, from memory that is never freed, and the kernel
        // writes there no more until the chunk was given back, after which nobody asks.
        unsafe { std::slice::from_raw_parts(chunk.at, chunk.len as usize) }
    }

    /// One more holder of this buffer: it is given back once more.
    pub fn hold(&mut self, buffer: u16) {
        self.states[usize::from(buffer % BUFFERS)].holders += 1;
    }

    #[inline]
    pub fn give_back(&mut self, buffer: u16) {
        let holders = &mut self.states[usize::from(buffer % BUFFERS)].holders;
        *holders -= 1;
        if *holders == 0 {
            self.lend(buffer);
        }
    }
}

#[repr(align(4096))]
struct Page([u8; 4096]);
