//! The table of operation data. It has an entry for each lane: a buffer to read into or to write,
//! several buffers, or the address to connect to. It also holds the accounts of connections.
//!
//! The backend owns the table, so that memory in use by the kernel stays in place until the kernel
//! is done with it. The watcher puts data in before it starts an operation, and takes it out for
//! the result. While the operation runs it can do neither. So memory that the kernel may read or
//! write is never dropped or moved out of reach.

use std::fmt;

use slab::Slab;
use socket2::SockAddr;

use crate::address::Address;
use crate::batch::Batch;
use crate::buffer::Buffer;
use crate::error::Errno;
use crate::slots::grow_gently;
use crate::swap::{Credit, Thresholds};
use crate::{Lane, LaneId};

/// The number of empty batches that are kept for later. Most programs use fewer at a time.
const BATCHES_KEPT: usize = 64;

/// The data of one operation.
#[derive(Debug, Default)]
pub enum OpData {
    /// No data: a swap read, an accept.
    #[default]
    None,
    /// The bytes to write, or the room to read into.
    Buffer(Buffer),
    /// The address to connect to.
    Address(Box<Address>),
}

/// The data of all operations, by lane, and the accounts of connections. Each direction has a
/// vector as long as its highest slot with data. The read lanes of idle connections usually have
/// none, because swap reads carry no data.
#[derive(Default)]
pub(crate) struct OpTable {
    lanes: [Vec<Entry>; 2],
    extras: Slab<Extra>,
    /// The accounts of connections, by slot. They are apart from the lanes, so that an idle
    /// connection is small. The kernel does not use them.
    credits: Vec<Option<Credit>>,
    /// Batches kept for the next vectored write.
    #[expect(
        clippy::vec_box,
        reason = "the boxes travel; the kernel has their address"
    )]
    idle_batches: Vec<Box<Batch>>,
}

/// The watcher's view of a backend's operation data. Data is put in and taken out, lane by lane.
/// The table itself is out of reach. Otherwise it could be dropped, or exchanged for another
/// backend's, while the kernel writes to its buffers.
///
/// ```compile_fail,E0614
/// fn lose(backend: &mut impl gaio_backends::Backend) {
///     drop(std::mem::take(&mut *backend.op_table()));
/// }
/// ```
#[derive(Debug)]
pub struct OpTableView<'a>(&'a mut OpTable);

/// The data of one lane, laid out for the common case, a buffer.
struct Entry {
    buffer: Buffer,
    /// Bytes transferred so far.
    done: usize,
    /// Bytes to transfer in total.
    total: usize,
    /// The key of data that is not one buffer, else [`NONE`].
    extra: u32,
    /// Whether an operation runs that may use the data.
    busy: bool,
}

/// Data that is not one buffer.
enum Extra {
    Address(Box<Address>),
    /// The address to connect to, in the kernel's form.
    RawAddress(Box<SockAddr>),
    Batch(Box<Batch>),
}

/// The key that stands for no [`Extra`].
const NONE: u32 = u32::MAX;

const _: () = assert!(size_of::<usize>() != 8 || size_of::<Entry>() == 64);

const EMPTY: Entry = Entry {
    buffer: Buffer::EMPTY,
    done: 0,
    total: 0,
    extra: NONE,
    busy: false,
};

impl OpData {
    /// The buffer, or an empty one if the data is none.
    #[inline]
    pub fn into_buffer(self) -> Buffer {
        match self {
            OpData::Buffer(buffer) => buffer,
            _ => Buffer::EMPTY,
        }
    }
}

impl<'a> OpTableView<'a> {
    /// Gives a lane its data. Ignored while its operation runs.
    #[inline]
    pub fn put(&mut self, at: LaneId, data: OpData) {
        match data {
            OpData::None => {}
            OpData::Buffer(buffer) => self.put_buffer(at, buffer, 0),
            OpData::Address(address) => self.0.put_extra(at, Extra::Address(address), 0),
        }
    }

    /// Gives a lane a buffer of which `done` bytes were transferred before.
    #[inline]
    pub fn put_buffer(&mut self, at: LaneId, buffer: Buffer, done: usize) {
        let total = buffer.len_bytes();
        self.put_part(at, buffer, done, total);
    }

    /// Like [`put_buffer`](Self::put_buffer), for a caller that knows the length of the buffer.
    #[inline]
    pub fn put_part(&mut self, at: LaneId, buffer: Buffer, done: usize, total: usize) {
        debug_assert_eq!(total, buffer.len_bytes());
        if let Some(entry) = self.0.entry_or_grow(at) {
            entry.done = done;
            entry.total = total;
            entry.buffer.replace_with(buffer);
        }
    }

    /// Gives a lane several buffers to write as one, at most [`WRITES_MAX`](crate::WRITES_MAX).
    /// They are taken out of `buffers`. Of the first one, `done` bytes were written before.
    pub fn put_many(&mut self, at: LaneId, buffers: &mut Vec<Buffer>, done: usize) {
        let mut batch = self.0.idle_batches.pop().unwrap_or_default();
        batch.fill(buffers, done);
        self.0.put_extra(at, Extra::Batch(batch), done);
    }

    /// Prepares the write of a lane's buffer, which is in parts: names the next ones for one call. Does
    /// nothing while the write runs.
    pub fn prepare_parts(&mut self, at: LaneId) {
        let mut batch = match self.0.take_extra(at) {
            Some(Extra::Batch(batch)) => batch,
            _ => self.0.idle_batches.pop().unwrap_or_default(),
        };
        let Some(entry) = self.0.entry_mut(at).filter(|entry| !entry.busy) else {
            return;
        };
        if let Some(parts) = entry.buffer.parts_mut() {
            batch.refer_to(parts, entry.done);
        }
        self.0.refer(at, batch);
    }

    /// Prepares the next write of a lane's file: reads a block of it, unless bytes of the last one are
    /// left. Returns false if the file ends before its range does, or if the write runs.
    ///
    /// # Errors
    /// The system's error for the read of the file.
    pub fn prepare_file(&mut self, at: LaneId) -> Result<bool, Errno> {
        let mut batch = match self.0.take_extra(at) {
            Some(Extra::Batch(batch)) => batch,
            _ => self.0.idle_batches.pop().unwrap_or_default(),
        };
        let Some(entry) = self.0.entry_mut(at).filter(|entry| !entry.busy) else {
            return Ok(false);
        };
        let Some(file) = entry.buffer.file_mut() else {
            return Ok(false);
        };
        let rest = file.rest(entry.done)?;
        if rest.is_empty() {
            return Ok(false);
        }
        batch.refer_to_bytes(rest);
        self.0.refer(at, batch);
        Ok(true)
    }

    /// Takes a lane's data and the number of bytes transferred. Takes nothing while its operation
    /// runs.
    #[cfg(test)]
    pub(crate) fn take(&mut self, at: LaneId) -> (OpData, usize) {
        let (buffer, done) = self.take_buffer(at);
        let data = match self.0.take_extra(at) {
            Some(Extra::Address(address)) => OpData::Address(address),
            Some(Extra::RawAddress(_) | Extra::Batch(_)) => OpData::None,
            None if buffer.is_empty() => OpData::None,
            None => OpData::Buffer(buffer),
        };
        (data, done)
    }

    /// Takes a lane's buffer, if it has one, and the number of bytes transferred. Takes nothing
    /// while its operation runs.
    #[inline]
    pub fn take_buffer(&mut self, at: LaneId) -> (Buffer, usize) {
        match self.0.entry_mut(at) {
            Some(entry) if !entry.busy => {
                let buffer = std::mem::take(&mut entry.buffer);
                (buffer, std::mem::take(&mut entry.done))
            }
            _ => (Buffer::EMPTY, 0),
        }
    }

    /// Drops a lane's data, except a buffer. Does nothing while its operation runs.
    #[inline]
    pub fn clear(&mut self, at: LaneId) {
        if self.0.entry(at).is_some_and(|entry| entry.extra != NONE) {
            let extra = self.0.take_extra(at);
            self.0.keep_batch(extra);
        }
    }

    /// Moves the buffers of a vectored write into `buffers`, in order. Returns how many bytes of
    /// the first one were written before. Does nothing while the write runs, or if it is not
    /// vectored.
    pub fn take_many(&mut self, at: LaneId, buffers: &mut Vec<Buffer>) -> usize {
        let Some(Extra::Batch(mut batch)) = self.0.take_extra(at) else {
            return 0;
        };
        batch.empty(buffers);
        self.0.keep_batch(Some(Extra::Batch(batch)));
        let done = self.0.entry_mut(at).map(|entry| &mut entry.done);
        done.map_or(0, std::mem::take)
    }

    /// Notes that `len` more bytes of a single buffer were transferred. If that completes the
    /// buffer, takes it, and returns its length, too. Does nothing while the operation runs.
    #[inline]
    pub fn take_whole(&mut self, at: LaneId, len: usize) -> Option<(Buffer, usize)> {
        let entry = self.0.entry_mut(at).filter(|entry| !entry.busy)?;
        entry.done += len;
        if entry.done != entry.total {
            return None;
        }
        let done = std::mem::take(&mut entry.done);
        Some((std::mem::take(&mut entry.buffer), done))
    }

    /// Notes that `len` more bytes were transferred. Returns whether that completes the transfer.
    #[inline]
    pub fn advance(&mut self, at: LaneId, len: usize) -> bool {
        match self.0.entry_mut(at) {
            Some(entry) => {
                entry.done += len;
                entry.done >= entry.total
            }
            None => true,
        }
    }

    /// Opens the account of a connection, unless it has one.
    pub fn open_credit(&mut self, slot: u32, thresholds: Thresholds) {
        let index = slot as usize;
        if index >= self.0.credits.len() {
            grow_gently(&mut self.0.credits, index, || None);
        }
        if let Some(place) = self.0.credits.get_mut(index) {
            place.get_or_insert_with(|| Credit::new(slot, thresholds));
        }
    }

    /// Gives up the account of a connection that is gone. Leases that are charged to it may live
    /// on.
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

impl OpTable {
    /// The watcher's view of the table.
    #[inline]
    pub(crate) fn view(&mut self) -> OpTableView<'_> {
        OpTableView(self)
    }

    fn put_extra(&mut self, at: LaneId, extra: Extra, done: usize) {
        let extra = self.extras.insert(extra) as u32;
        let Some(entry) = self.entry_or_grow(at) else {
            self.extras.remove(extra as usize);
            return;
        };
        entry.done = done;
        // Out of reach: only a single buffer is complete by its number of bytes.
        entry.total = usize::MAX;
        let before = std::mem::replace(&mut entry.extra, extra);
        self.extras.try_remove(before as usize);
    }

    /// The entry of an idle lane. The table grows if there is none.
    #[inline]
    fn entry_or_grow(&mut self, at: LaneId) -> Option<&mut Entry> {
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
    fn take_extra(&mut self, at: LaneId) -> Option<Extra> {
        let entry = self.entry_mut(at).filter(|entry| !entry.busy)?;
        let extra = std::mem::replace(&mut entry.extra, NONE);
        self.extras.try_remove(extra as usize)
    }

    /// Puts a batch beside the lane's buffer, to which it refers.
    fn refer(&mut self, at: LaneId, batch: Box<Batch>) {
        let extra = self.extras.insert(Extra::Batch(batch)) as u32;
        if let Some(entry) = self.entry_mut(at) {
            entry.extra = extra;
        }
    }

    /// Keeps a batch for the next vectored write, without the vectors. Drops other data.
    fn keep_batch(&mut self, extra: Option<Extra>) {
        if let Some(Extra::Batch(mut batch)) = extra
            && self.idle_batches.len() < BATCHES_KEPT
        {
            batch.forget();
            self.idle_batches.push(batch);
        }
    }

    /// The account of a connection, if it has one.
    #[inline]
    pub(crate) fn credit(&self, slot: u32) -> Option<&Credit> {
        self.credits.get(slot as usize)?.as_ref()
    }

    /// Marks a lane's data as used by an operation that starts.
    #[inline]
    pub(crate) fn begin(&mut self, at: LaneId) {
        if let Some(entry) = self.entry_mut(at) {
            entry.busy = true;
        }
    }

    /// Marks a lane's data as free: the operation has ended.
    #[inline]
    pub(crate) fn end(&mut self, at: LaneId) {
        if let Some(entry) = self.entry_mut(at) {
            entry.busy = false;
        }
    }

    /// The bytes that a write has still to write.
    #[inline]
    pub(crate) fn unwritten(&self, at: LaneId) -> &[u8] {
        match self.entry(at) {
            Some(entry) => entry.buffer.get(entry.done..).unwrap_or_default(),
            None => &[],
        }
    }

    /// The number of bytes that one attempt at a write hands over. It is less than what is left to write
    /// if one call does not take all parts.
    #[inline]
    pub(crate) fn offered_len(&self, at: LaneId) -> usize {
        match self.entry(at) {
            None => 0,
            Some(entry) if entry.extra == NONE => entry.buffer.len().saturating_sub(entry.done),
            Some(entry) => match self.extras.get(entry.extra as usize) {
                Some(Extra::Batch(batch)) => batch.len_bytes(),
                _ => 0,
            },
        }
    }

    /// The number of bytes that a write has still to write, from one buffer or several. A file's do not
    /// count.
    #[inline]
    pub(crate) fn unwritten_len(&self, at: LaneId) -> usize {
        match self.entry(at) {
            None => 0,
            Some(entry) if entry.buffer.is_file() => 0,
            Some(entry) if entry.extra == NONE || entry.buffer.len_bytes() > 0 => {
                entry.buffer.len_bytes().saturating_sub(entry.done)
            }
            Some(_) => self.offered_len(at),
        }
    }

    /// The room for the bytes of a read. Empty if the buffer cannot be read into.
    #[inline]
    pub(crate) fn unread(&mut self, at: LaneId) -> &mut [u8] {
        match self.entry_mut(at) {
            Some(entry) => entry.buffer.spare(entry.done).unwrap_or_default(),
            None => &mut [],
        }
    }

    /// The buffers of a vectored write.
    #[inline]
    pub(crate) fn batch(&mut self, at: LaneId) -> Option<&mut Batch> {
        match self.extra_mut(at)? {
            Extra::Batch(batch) => Some(batch),
            _ => None,
        }
    }

    /// The bytes that a write has still to write, from one buffer or several, for the simulated
    /// kernel.
    #[cfg(feature = "sim")]
    pub(crate) fn parts(&self, at: LaneId) -> Vec<&[u8]> {
        let extra = self.entry(at).map(|entry| entry.extra as usize);
        match extra.and_then(|extra| self.extras.get(extra)) {
            Some(Extra::Batch(batch)) => batch.vectors().collect(),
            _ => vec![self.unwritten(at)],
        }
    }

    /// Whether the address to connect to is that of a Unix socket.
    #[cfg(gaio_uring)]
    pub(crate) fn is_to_unix(&mut self, at: LaneId) -> bool {
        self.address(at).is_ok_and(SockAddr::is_unix)
    }

    /// The address to connect to. Its memory stays in place until the data is taken.
    pub(crate) fn address(&mut self, at: LaneId) -> Result<&SockAddr, Errno> {
        let extra = self.extra_mut(at).ok_or(Errno(libc::EDESTADDRREQ))?;
        if let Extra::Address(to) = extra {
            *extra = Extra::RawAddress(Box::new(to.to_raw()?));
        }
        match extra {
            Extra::RawAddress(raw) => Ok(raw),
            _ => Err(Errno(libc::EDESTADDRREQ)),
        }
    }

    #[inline]
    fn extra_mut(&mut self, at: LaneId) -> Option<&mut Extra> {
        let extra = self.entry(at)?.extra;
        self.extras.get_mut(extra as usize)
    }

    #[inline]
    fn entry(&self, at: LaneId) -> Option<&Entry> {
        self.lanes[at.lane() as usize].get(at.slot() as usize)
    }

    #[inline]
    fn entry_mut(&mut self, at: LaneId) -> Option<&mut Entry> {
        self.lanes[at.lane() as usize].get_mut(at.slot() as usize)
    }

    fn busy_count(&self) -> usize {
        let count = |lane: Lane| self.lanes[lane as usize].iter().filter(|e| e.busy).count();
        Lane::BOTH.into_iter().map(count).sum()
    }
}

impl fmt::Debug for OpTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OpTable({} busy)", self.busy_count())
    }
}
