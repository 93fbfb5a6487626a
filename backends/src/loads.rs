//! What the operation of each lane carries: buffers to read into or to write, the address to connect
//! to; and the accounts of connections. A table by place, owned by the backend, so that what the
//! kernel uses stays where it is until the kernel is done with it.
//!
//! The watcher puts a load in before it starts an operation and takes it out for the result. In
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
use crate::swap::{Credit, Thresholds};
use crate::{Lane, Place};

/// Empty batches that are kept for later; more than are in use at a time in most programs.
const BATCHES_KEPT: usize = 64;

/// What one operation carries.
#[derive(Debug, Default)]
pub enum Load {
    /// Nothing: a swap read, an accept.
    #[default]
    None,
    /// The bytes to write, or the room to read into.
    Buffer(Buffer),
    /// Where to connect to.
    Address(Box<Address>),
}

/// The loads of all operations that carry something. A lane that never carried anything has no
/// entry: idle connections with a swap read are many.
#[derive(Default)]
pub(crate) struct LoadTable {
    lanes: [Vec<Entry>; 2],
    extras: Slab<Extra>,
    /// The accounts of connections that have one, by slot: apart, so that an idle connection is small.
    /// The kernel does not use them.
    credits: Vec<Option<Credit>>,
    /// Kept for the next vectored write.
    #[expect(
        clippy::vec_box,
        reason = "the boxes travel; the kernel has their address"
    )]
    idle_batches: Vec<Box<Batch>>,
}

/// What the watcher may do with the loads of a backend: put them in and take them out, one by one. The
/// table itself is out of its reach, or it could be dropped, or exchanged for another backend's, while
/// the kernel writes to it.
///
/// ```compile_fail,E0614
/// fn lose(backend: &mut impl gaio_backends::Backend) {
///     drop(std::mem::take(&mut *backend.loads()));
/// }
/// ```
#[derive(Debug)]
pub struct Loads<'a>(&'a mut LoadTable);

/// Laid out for what nearly all operations carry: a buffer.
struct Entry {
    buffer: Buffer,
    /// Bytes transferred so far.
    done: usize,
    /// Bytes to transfer in total.
    total: usize,
    /// What is carried if it is no buffer.
    extra: u32,
    /// An operation runs that may use the load.
    busy: bool,
}

/// Loads that are no buffers.
enum Extra {
    Address(Box<Address>),
    /// Where to connect to, as the kernel reads it.
    RawAddress(Box<SockAddr>),
    Batch(Box<Batch>),
}

/// No extra.
const NONE: u32 = u32::MAX;

const _: () = assert!(size_of::<usize>() != 8 || size_of::<Entry>() == 64);

const EMPTY: Entry = Entry {
    buffer: Buffer::EMPTY,
    done: 0,
    total: 0,
    extra: NONE,
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

impl<'a> Loads<'a> {
    /// Gives a lane its load. Ignored while its operation runs.
    pub fn put(&mut self, at: Place, load: Load) {
        match load {
            Load::None => {}
            Load::Buffer(buffer) => self.put_buffer(at, buffer, 0),
            Load::Address(address) => self.0.put_extra(at, Extra::Address(address), 0),
        }
    }

    /// The same for a buffer of which `done` bytes were transferred before.
    pub fn put_buffer(&mut self, at: Place, buffer: Buffer, done: usize) {
        let total = buffer.len();
        self.put_part(at, buffer, done, total);
    }

    /// The same; the caller says how long the buffer is.
    #[inline(always)]
    pub fn put_part(&mut self, at: Place, buffer: Buffer, done: usize, total: usize) {
        debug_assert_eq!(total, buffer.len());
        if let Some(entry) = self.0.reach(at) {
            entry.done = done;
            entry.total = total;
            entry.buffer.replace_with(buffer);
        }
    }

    /// Gives a lane several buffers to write as one, of the first of which `done` bytes were written
    /// before; at most [`WRITES_MAX`](crate::WRITES_MAX). They are taken out of `buffers`.
    pub fn put_many(&mut self, at: Place, buffers: &mut Vec<Buffer>, done: usize) {
        let mut batch = self.0.idle_batches.pop().unwrap_or_default();
        batch.fill(buffers, done);
        self.0.put_extra(at, Extra::Batch(batch), done);
    }

    /// Takes a lane's load, and how many bytes were transferred. Nothing while its operation runs.
    #[cfg(test)]
    pub(crate) fn take(&mut self, at: Place) -> (Load, usize) {
        let (buffer, done) = self.take_buffer(at);
        let load = match self.0.take_extra(at) {
            Some(Extra::Address(address)) => Load::Address(address),
            Some(Extra::RawAddress(_) | Extra::Batch(_)) => Load::None,
            None if buffer.is_empty() => Load::None,
            None => Load::Buffer(buffer),
        };
        (load, done)
    }

    /// Takes a lane's buffer, if it carries one, and how many bytes were transferred. Nothing while its
    /// operation runs.
    #[inline(always)]
    pub fn take_buffer(&mut self, at: Place) -> (Buffer, usize) {
        match self.0.entry_mut(at) {
            Some(entry) if !entry.busy => {
                let buffer = std::mem::take(&mut entry.buffer);
                (buffer, std::mem::take(&mut entry.done))
            }
            _ => (Buffer::EMPTY, 0),
        }
    }

    /// Drops what a lane carries beside a buffer. Nothing while its operation runs.
    #[inline(always)]
    pub fn clear(&mut self, at: Place) {
        if self.0.entry(at).is_some_and(|entry| entry.extra != NONE) {
            drop(self.0.take_extra(at));
        }
    }

    /// Takes the buffers of a vectored write into `buffers`, in order; how many bytes of the first
    /// were written before it. Nothing while it runs, or if it is none.
    pub fn take_many(&mut self, at: Place, buffers: &mut Vec<Buffer>) -> usize {
        let Some(Extra::Batch(mut batch)) = self.0.take_extra(at) else {
            return 0;
        };
        batch.empty(buffers);
        if self.0.idle_batches.len() < BATCHES_KEPT {
            self.0.idle_batches.push(batch);
        }
        let done = self.0.entry_mut(at).map(|entry| &mut entry.done);
        done.map_or(0, std::mem::take)
    }

    /// Notes that `len` more bytes were transferred. Returns whether that was all there was.
    #[inline(always)]
    pub fn advance(&mut self, at: Place, len: usize) -> bool {
        match self.0.entry_mut(at) {
            Some(entry) => {
                entry.done += len;
                entry.done >= entry.total
            }
            None => true,
        }
    }

    /// The account of a connection, which is opened if there is none.
    pub fn open_credit(&mut self, slot: u32, thresholds: Thresholds) {
        let index = slot as usize;
        if index >= self.0.credits.len() {
            grow_gently(&mut self.0.credits, index, || None);
        }
        if let Some(place) = self.0.credits.get_mut(index) {
            place.get_or_insert_with(|| Credit::new(slot, thresholds));
        }
    }

    /// The connection is gone. Its leases may be there still.
    #[inline]
    pub fn close_credit(&mut self, slot: u32) {
        if let Some(place) = self.0.credits.get_mut(slot as usize) {
            *place = None;
        }
    }

    /// The account of a connection, if it has one.
    #[inline]
    pub fn credit(self, slot: u32) -> Option<&'a Credit> {
        self.0.credit(slot)
    }
}

impl LoadTable {
    /// What the watcher gets to see.
    #[inline(always)]
    pub(crate) fn as_loads(&mut self) -> Loads<'_> {
        Loads(self)
    }

    fn put_extra(&mut self, at: Place, extra: Extra, done: usize) {
        let extra = self.extras.insert(extra) as u32;
        let Some(entry) = self.reach(at) else {
            self.extras.remove(extra as usize);
            return;
        };
        entry.done = done;
        // It is never whole by what one step transfers.
        entry.total = usize::MAX;
        let before = std::mem::replace(&mut entry.extra, extra);
        self.extras.try_remove(before as usize);
    }

    /// The entry of an idle lane, which may be new.
    #[inline(always)]
    fn reach(&mut self, at: Place) -> Option<&mut Entry> {
        let index = at.slot() as usize;
        let lane = &mut self.lanes[at.lane() as usize];
        if index >= lane.len() {
            grow_gently(lane, index, || EMPTY);
        }
        let entry = lane.get_mut(index)?;
        debug_assert!(!entry.busy, "{at:?} is busy");
        (!entry.busy).then_some(entry)
    }

    #[cold]
    fn take_extra(&mut self, at: Place) -> Option<Extra> {
        let entry = self.entry_mut(at).filter(|entry| !entry.busy)?;
        let extra = std::mem::replace(&mut entry.extra, NONE);
        self.extras.try_remove(extra as usize)
    }

    /// The account of a connection, if it has one.
    #[inline]
    pub(crate) fn credit(&self, slot: u32) -> Option<&Credit> {
        self.credits.get(slot as usize)?.as_ref()
    }

    /// An operation starts that uses the load.
    #[inline(always)]
    pub(crate) fn begin(&mut self, at: Place) {
        if let Some(entry) = self.entry_mut(at) {
            entry.busy = true;
        }
    }

    /// The operation has ended.
    #[inline(always)]
    pub(crate) fn end(&mut self, at: Place) {
        if let Some(entry) = self.entry_mut(at) {
            entry.busy = false;
        }
    }

    /// The operation has ended, and transferred so many bytes: if that was all, takes the buffer, and
    /// says how long it is.
    #[inline(always)]
    pub(crate) fn end_whole(&mut self, at: Place, len: u32) -> Option<(Buffer, usize)> {
        let entry = self.entry_mut(at)?;
        entry.busy = false;
        let done = entry.done + len as usize;
        if done != entry.total {
            return None;
        }
        entry.done = 0;
        Some((std::mem::take(&mut entry.buffer), done))
    }

    /// What a write has still to write.
    #[inline(always)]
    pub(crate) fn unwritten(&self, at: Place) -> &[u8] {
        match self.entry(at) {
            Some(entry) => entry.buffer.get(entry.done..).unwrap_or_default(),
            None => &[],
        }
    }

    /// How much that is, be it one write or several.
    #[cfg(gaio_uring)]
    pub(crate) fn unwritten_len(&mut self, at: Place) -> usize {
        match self.batch(at) {
            Some(batch) => batch.len_bytes(),
            None => self.unwritten(at).len(),
        }
    }

    /// What a write has still to write, and the operation starts that writes it.
    #[cfg(gaio_uring)]
    #[inline(always)]
    pub(crate) fn begin_write(&mut self, at: Place) -> &[u8] {
        match self.entry_mut(at) {
            Some(entry) => {
                entry.busy = true;
                entry.buffer.get(entry.done..).unwrap_or_default()
            }
            None => &[],
        }
    }

    /// Where a read may put bytes. Empty if the buffer cannot be read into.
    #[inline]
    pub(crate) fn unread(&mut self, at: Place) -> &mut [u8] {
        match self.entry_mut(at) {
            Some(entry) => entry.buffer.spare(entry.done).unwrap_or_default(),
            None => &mut [],
        }
    }

    /// The buffers of a vectored write.
    #[inline]
    pub(crate) fn batch(&mut self, at: Place) -> Option<&mut Batch> {
        match self.extra_mut(at)? {
            Extra::Batch(batch) => Some(batch),
            _ => None,
        }
    }

    /// What a write has still to write, be it one or several, as the simulated kernel sees it.
    #[cfg(feature = "sim")]
    pub(crate) fn parts(&self, at: Place) -> Vec<&[u8]> {
        let extra = self.entry(at).map(|entry| entry.extra as usize);
        match extra.and_then(|extra| self.extras.get(extra)) {
            Some(Extra::Batch(batch)) => batch.parts().collect(),
            _ => vec![self.unwritten(at)],
        }
    }

    /// Whether that is where to connect to: a Unix socket.
    #[cfg(gaio_uring)]
    pub(crate) fn is_to_unix(&mut self, at: Place) -> bool {
        self.address(at).is_ok_and(SockAddr::is_unix)
    }

    /// Where to connect to, at an address in memory that stays until the load is taken.
    pub(crate) fn address(&mut self, at: Place) -> Result<&SockAddr, Errno> {
        let extra = self.extra_mut(at).ok_or(Errno(libc::EDESTADDRREQ))?;
        if let Extra::Address(to) = extra {
            *extra = Extra::RawAddress(Box::new(to.to_raw()?));
        }
        match extra {
            Extra::RawAddress(raw) => Ok(raw),
            _ => Err(Errno(libc::EDESTADDRREQ)),
        }
    }

    #[inline(always)]
    fn extra_mut(&mut self, at: Place) -> Option<&mut Extra> {
        let extra = self.entry(at)?.extra;
        self.extras.get_mut(extra as usize)
    }

    #[inline(always)]
    fn entry(&self, at: Place) -> Option<&Entry> {
        self.lanes[at.lane() as usize].get(at.slot() as usize)
    }

    #[inline(always)]
    fn entry_mut(&mut self, at: Place) -> Option<&mut Entry> {
        self.lanes[at.lane() as usize].get_mut(at.slot() as usize)
    }

    fn busy_count(&self) -> usize {
        let count = |lane: Lane| self.lanes[lane as usize].iter().filter(|e| e.busy).count();
        Lane::BOTH.into_iter().map(count).sum()
    }
}

impl fmt::Debug for LoadTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Loads({} busy)", self.busy_count())
    }
}
