//! The ring of provided buffers: blocks of the swap pool that the kernel fills as data arrives,
//! so that a waiting receive holds no memory.
//!
//! Newer kernels fill a buffer bit by bit (*incremental*). For others the same is done here: what
//! a receive left of its buffer goes back into the ring as a buffer of its own.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use io_uring::{Submitter, cqueue};

use super::BUFFER_GROUP;
use crate::SwapRoom;
use crate::swap::{Credit, Filling, Pool, SwapBuf};

/// `IOU_PBUF_RING_INC` of io_uring_register_buf_ring(3), since Linux 6.12.
const INCREMENTAL: u16 = 2;
const PAGE: usize = 4096;

pub(super) struct BufferRing {
    entries: NonNull<BufRingEntry>,
    layout: Layout,
    mask: u16,
    /// The kernel reads the shared copy of this; it is ours to advance.
    tail: u16,
    incremental: bool,
    /// By buffer id: the blocks that the kernel may write to.
    lent: Vec<Option<Filling>>,
    idle_ids: Vec<u16>,
    /// Bytes that are left in the lent blocks.
    room_bytes: usize,
    leaked: bool,
}

// SAFETY: the memory is owned by this value and reached through it alone (and by the kernel).
unsafe impl Send for BufferRing {}

impl BufferRing {
    /// Registers a ring for so many buffers, up to 32,768.
    pub(super) fn register(
        submitter: &Submitter<'_>,
        buffers: u16,
        incremental: bool,
    ) -> io::Result<Self> {
        let len = buffers.next_power_of_two();
        let size = usize::from(len) * size_of::<BufRingEntry>();
        let layout = Layout::from_size_align(size, PAGE).map_err(io::Error::other)?;
        // SAFETY: the size is not zero.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) })
            .ok_or(io::Error::from(io::ErrorKind::OutOfMemory))?;
        let ring = BufferRing {
            entries: memory.cast(),
            layout,
            mask: len - 1,
            tail: 0,
            incremental,
            lent: (0..buffers).map(|_| None).collect(),
            idle_ids: (0..buffers).rev().collect(),
            room_bytes: 0,
            leaked: false,
        };
        let flags = if incremental { INCREMENTAL } else { 0 };
        let address = memory.as_ptr() as u64;
        // SAFETY: the memory has `len` entries, starts on a page and lives until this value is
        // dropped, which its owner does after the ring is gone or the group unregistered.
        unsafe { submitter.register_buf_ring_with_flags(address, len, BUFFER_GROUP, flags) }?;
        Ok(ring)
    }

    /// Lends blocks to the kernel until the ring is full or the pool dry.
    #[inline]
    pub(super) fn refill(&mut self, pool: &Pool) {
        if self.idle_ids.is_empty() {
            return;
        }
        let before = self.tail;
        while let Some(&id) = self.idle_ids.last() {
            let Some(filling) = pool.checkout() else {
                break;
            };
            self.idle_ids.pop();
            self.room_bytes += filling.left();
            self.lent[usize::from(id)] = Some(filling);
            self.push(id);
        }
        if self.tail != before {
            self.publish();
        }
    }

    /// Cuts the lease of what the kernel received into buffer `id`. `None` if there is no such
    /// buffer, or not that much of it: nothing that a working kernel says.
    #[inline(always)]
    pub(super) fn take(
        &mut self,
        id: u16,
        len: usize,
        flags: u32,
        credit: Option<&Credit>,
    ) -> Option<SwapBuf> {
        let entry = self.lent.get_mut(usize::from(id))?;
        let filling = entry.as_mut()?;
        if len > filling.left() {
            return None;
        }
        // SAFETY: the kernel wrote `len` bytes at the tail: completions of one buffer come in the
        // order in which its bytes were used. It writes them once.
        let lease = unsafe { filling.lease(len, credit) };
        self.room_bytes -= len;
        if self.incremental {
            if !cqueue::buffer_more(flags) {
                self.retire(id);
            }
        } else if filling.left() > pool_tail_min(filling) {
            self.push(id);
            self.publish();
        } else {
            self.retire(id);
        }
        Some(lease)
    }

    /// Whether the kernel has no buffer to receive into.
    #[inline(always)]
    pub(super) fn is_empty(&self) -> bool {
        self.room_bytes == 0
    }

    /// What the kernel can receive with the buffers that it has, and so many more blocks.
    pub(super) fn room(&self, available: usize, block_size: usize) -> SwapRoom {
        let bytes = self.room_bytes + available * block_size;
        if self.incremental {
            return SwapRoom::packed(bytes);
        }
        // A buffer serves one receive. What that leaves of it goes back in the next turn.
        let idle = self.idle_ids.len();
        let reads = self.lent.len() - idle + available.min(idle);
        SwapRoom { bytes, reads }
    }

    /// Leaves the lent blocks and the ring itself to the kernel.
    pub(super) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.lent));
        self.leaked = true;
    }

    #[cold]
    fn retire(&mut self, id: u16) {
        let used_up = self.lent[usize::from(id)].take();
        self.room_bytes -= used_up.as_ref().map_or(0, Filling::left);
        self.idle_ids.push(id);
    }

    /// Writes the entry for the unused rest of a lent block; the kernel sees it after `publish`.
    fn push(&mut self, id: u16) {
        let Some(filling) = &mut self.lent[usize::from(id)] else {
            return;
        };
        let (at, len) = filling.tail();
        let index = usize::from(self.tail & self.mask);
        // SAFETY: the index is within the ring. The kernel does not read this entry before
        // `publish`: there are never more entries published than ids, and each id is in the ring
        // once. The fields are written one by one, because the tail lies in the first entry.
        unsafe {
            let entry = self.entries.add(index).as_mut();
            entry.set_addr(at as u64);
            entry.set_len(len as u32);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&self) {
        // SAFETY: the tail is in the first entry, valid memory, and read by the kernel atomically.
        unsafe {
            let tail = BufRingEntry::tail(self.entries.as_ptr())
                .cast_mut()
                .cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}

/// What is too little to be worth a buffer of its own.
fn pool_tail_min(filling: &Filling) -> usize {
    filling.size() / 16
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        if self.leaked {
            return;
        }
        // SAFETY: allocated with this layout; the kernel no longer uses it, as `register` says.
        unsafe { dealloc(self.entries.as_ptr().cast(), self.layout) };
    }
}
