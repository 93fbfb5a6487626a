//! What requests carry: buffers to read into or to write, the address to connect to, a stream's
//! account. A table by the watcher's number of the request (its *key*), owned by the backend, so
//! that what the kernel uses stays where it is until the kernel is done with it.
//!
//! The watcher puts a load in when it accepts a request and takes it out for the result. In
//! between it can do neither while the operation runs: nothing that the kernel may write to or
//! read from is ever dropped or moved out of reach.

use std::fmt;

use slab::Slab;
use socket2::SockAddr;

use crate::address::Address;
use crate::batch::Batch;
use crate::buffer::Buffer;
use crate::error::Errno;
use crate::slots::grow_gently;
use crate::swap::Credit;

/// No batch.
const NONE: u32 = u32::MAX;

/// Empty batches that are kept for later; more than are in use at a time in most programs.
const BATCHES_KEPT: usize = 64;

/// What one request carries.
#[derive(Debug, Default)]
pub enum Load {
    /// Nothing: a swap read, an accept.
    #[default]
    None,
    /// The bytes to write, or the room to read into.
    Buffer(Buffer),
    /// What the leases of a stream are charged to.
    Credit(Credit),
    /// Where to connect to.
    Address(Box<Address>),
    /// The same in the form that the kernel reads.
    #[doc(hidden)]
    RawAddress(Box<SockAddr>),
}

/// The loads of all requests that carry something.
#[derive(Default)]
pub struct Loads {
    entries: Vec<Entry>,
    batches: Slab<Box<Batch>>,
    /// Empty batches, kept for the next vectored write.
    #[expect(
        clippy::vec_box,
        reason = "the boxes travel; the kernel has their address"
    )]
    idle_batches: Vec<Box<Batch>>,
}

struct Entry {
    load: Load,
    /// Bytes to transfer in total.
    total: usize,
    /// Bytes transferred so far.
    done: usize,
    /// For the first request of a batch that runs: which.
    batch: u32,
    /// An operation runs that may use the load.
    busy: bool,
}

const _: () = assert!(size_of::<usize>() != 8 || size_of::<Entry>() == 64);

const EMPTY: Entry = Entry {
    load: Load::None,
    total: 0,
    done: 0,
    batch: NONE,
    busy: false,
};

impl Load {
    /// The buffer, if it is one; else an empty one.
    #[inline]
    pub fn into_buffer(self) -> Buffer {
        match self {
            Load::Buffer(buffer) => buffer,
            _ => Buffer::EMPTY,
        }
    }
}

impl Loads {
    /// Gives a request its load. Ignored for a request whose operation runs.
    #[inline(always)]
    pub fn put(&mut self, key: u32, load: Load) {
        let index = key as usize;
        if index >= self.entries.len() {
            grow_gently(&mut self.entries, index, || EMPTY);
        }
        let Some(entry) = self.entries.get_mut(index) else {
            return load.discard();
        };
        debug_assert!(!entry.busy, "{key} runs");
        if entry.busy {
            return load.discard();
        }
        entry.total = load.size();
        std::mem::replace(&mut entry.load, load).discard();
    }

    /// Takes the load of a request that ends, and how many bytes were transferred. Nothing while
    /// its operation runs.
    #[inline]
    pub fn take(&mut self, key: u32) -> (Load, usize) {
        match self.entries.get_mut(key as usize) {
            Some(entry) if !entry.busy => (
                std::mem::take(&mut entry.load),
                std::mem::take(&mut entry.done),
            ),
            _ => (Load::None, 0),
        }
    }

    /// The same for a request that carries a buffer or nothing.
    #[inline(always)]
    pub fn take_buffer(&mut self, key: u32) -> (Buffer, usize) {
        match self.entries.get_mut(key as usize) {
            Some(entry) if !entry.busy => {
                let done = std::mem::take(&mut entry.done);
                match std::mem::take(&mut entry.load) {
                    Load::Buffer(buffer) => (buffer, done),
                    other => {
                        other.discard();
                        (Buffer::EMPTY, done)
                    }
                }
            }
            _ => (Buffer::EMPTY, 0),
        }
    }

    fn get(&self, key: u32) -> &Load {
        self.entries
            .get(key as usize)
            .map_or(&Load::None, |entry| &entry.load)
    }

    /// Notes that `len` more bytes were transferred. Returns whether that was all there was.
    #[inline]
    pub fn advance(&mut self, key: u32, len: usize) -> bool {
        let Some(entry) = self.entries.get_mut(key as usize) else {
            return true;
        };
        entry.done += len;
        entry.done >= entry.total
    }

    /// Bytes of a request that are still to be transferred.
    pub fn left(&self, key: u32) -> usize {
        let entry = self.entries.get(key as usize);
        entry.map_or(0, |entry| entry.total.saturating_sub(entry.done))
    }

    fn get_mut(&mut self, key: u32) -> Option<&mut Entry> {
        self.entries.get_mut(key as usize)
    }

    /// An operation starts that uses the load.
    #[inline]
    pub(crate) fn begin(&mut self, key: u32) {
        if let Some(entry) = self.entries.get_mut(key as usize) {
            entry.busy = true;
        }
    }

    /// The operation has ended; a batch comes back, too.
    #[inline]
    pub(crate) fn end(&mut self, key: u32) {
        let Some(entry) = self.entries.get_mut(key as usize) else {
            return;
        };
        entry.busy = false;
        if entry.batch != NONE {
            self.end_batch(key);
        }
    }

    /// What a write has still to write.
    #[inline]
    pub(crate) fn unwritten(&self, key: u32) -> &[u8] {
        match self.entries.get(key as usize) {
            Some(Entry {
                load: Load::Buffer(buffer),
                done,
                ..
            }) => buffer.get(*done..).unwrap_or_default(),
            _ => &[],
        }
    }

    /// Where a read may put bytes. Empty if the buffer cannot be read into.
    #[inline]
    pub(crate) fn unread(&mut self, key: u32) -> &mut [u8] {
        match self.entries.get_mut(key as usize) {
            Some(Entry {
                load: Load::Buffer(buffer),
                done,
                ..
            }) => buffer.spare(*done).unwrap_or_default(),
            _ => &mut [],
        }
    }

    /// The account of a stream.
    pub fn credit(&self, key: u32) -> Option<&Credit> {
        match self.get(key) {
            Load::Credit(credit) => Some(credit),
            _ => None,
        }
    }

    /// Where to connect to, at an address in memory that stays until the load is taken.
    pub(crate) fn address(&mut self, key: u32) -> Result<&SockAddr, Errno> {
        let entry = self.get_mut(key).ok_or(Errno(libc::EDESTADDRREQ))?;
        if let Load::Address(to) = &entry.load {
            let raw = to.to_raw()?;
            entry.load = Load::RawAddress(Box::new(raw));
        }
        match &entry.load {
            Load::RawAddress(raw) => Ok(raw),
            _ => Err(Errno(libc::EDESTADDRREQ)),
        }
    }

    /// Makes one vectored write of several, which are all busy until the [`end`](Loads::end) of
    /// the first.
    pub(crate) fn begin_batch(&mut self, keys: &[u32]) -> Option<&mut Batch> {
        let &first = keys.first()?;
        let mut batch = self.idle_batches.pop().unwrap_or_default();
        for &key in keys {
            self.begin(key);
            batch.push(key, self.unwritten(key));
        }
        let place = self.batches.insert(batch);
        self.get_mut(first)?.batch = place as u32;
        Some(&mut self.batches[place])
    }

    /// The vectored write that runs under its first request's key.
    pub(crate) fn batch(&mut self, first: u32) -> Option<&mut Batch> {
        let place = self.get_mut(first)?.batch;
        self.batches
            .get_mut(place as usize)
            .map(|batch| &mut **batch)
    }

    #[cold]
    fn end_batch(&mut self, first: u32) {
        let place = self
            .get_mut(first)
            .map_or(NONE, |entry| std::mem::replace(&mut entry.batch, NONE));
        let Some(mut batch) = self.batches.try_remove(place as usize) else {
            return;
        };
        for key in batch.drain() {
            if let Some(entry) = self.entries.get_mut(key as usize) {
                entry.busy = false;
            }
        }
        if self.idle_batches.len() < BATCHES_KEPT {
            self.idle_batches.push(batch);
        }
    }
}

impl Load {
    /// Drops a load that nearly always is nothing: cheaper than to look which of all it is.
    #[inline(always)]
    pub fn discard(self) {
        #[cold]
        fn drop_it(load: Load) {
            drop(load);
        }
        match self {
            Load::None => std::mem::forget(self),
            load => drop_it(load),
        }
    }

    /// Bytes to transfer.
    #[inline]
    fn size(&self) -> usize {
        match self {
            Load::Buffer(buffer) => buffer.len(),
            _ => 0,
        }
    }
}

impl fmt::Debug for Loads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let busy = self.entries.iter().filter(|entry| entry.busy).count();
        write!(f, "Loads({busy} busy)")
    }
}
