//! The ring of provided buffers: blocks of the swap pool that the kernel fills as data arrives,
//! so that a waiting receive holds no memory.
//!
//! Newer kernels fill a buffer bit by bit (*incremental*). For older kernels this file does the
//! same: the part of a buffer that a receive left unused goes back into the ring as a buffer of its
//! own.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use io_uring::{Submitter, cqueue};

use super::BUFFER_GROUP;
use crate::SwapRoom;
use crate::swap::{Credit, OpenBlock, Pool, SwapBuf};

/// `IOU_PBUF_RING_INC` of io_uring_register_buf_ring(3), since Linux 6.12.
const INCREMENTAL: u16 = 2;
const PAGE: usize = 4096;

pub(super) struct BufferRing {
    entries: NonNull<BufRingEntry>,
    layout: Layout,
    mask: u16,
    /// The next free entry, before masking. The kernel reads a shared copy of it.
    tail: u16,
    incremental: bool,
    /// The blocks that the kernel may write to, by buffer id.
    lent: Vec<Option<OpenBlock>>,
    idle_ids: Vec<u16>,
    /// The bytes that are left in the lent blocks.
    room_bytes: usize,
    leaked: bool,
}

// SAFETY: this value owns the memory. Only this value and the kernel reach it.
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
        // dropped. Its owner drops it only after the ring is gone or the group unregistered.
        unsafe { submitter.register_buf_ring_with_flags(address, len, BUFFER_GROUP, flags) }?;
        Ok(ring)
    }

    /// Whether more blocks can be lent.
    #[inline]
    pub(super) fn can_take(&self) -> bool {
        !self.idle_ids.is_empty()
    }

    /// Lends blocks to the kernel until the ring is full or the pool is empty.
    pub(super) fn refill(&mut self, pool: &Pool) {
        let before = self.tail;
        while let Some(&id) = self.idle_ids.last() {
            let Some(open_block) = pool.checkout() else {
                break;
            };
            self.idle_ids.pop();
            self.room_bytes += open_block.left();
            self.lent[usize::from(id)] = Some(open_block);
            self.push(id);
        }
        if self.tail != before {
            self.publish();
        }
    }

    /// Cuts a lease of the bytes that the kernel received into buffer `id`. `None` if there is no
    /// such buffer, or not that much room in it. A working kernel reports neither.
    #[inline]
    pub(super) fn take(
        &mut self,
        id: u16,
        len: usize,
        flags: u32,
        credit: Option<&Credit>,
    ) -> Option<SwapBuf> {
        let entry = self.lent.get_mut(usize::from(id))?;
        let open_block = entry.as_mut()?;
        if len > open_block.left() {
            return None;
        }
        // SAFETY: the kernel wrote `len` bytes at the tail, because completions of one buffer come
        // in the order in which its bytes were used. It writes these bytes once.
        let lease = unsafe { open_block.lease(len, credit) };
        self.room_bytes -= len;
        let is_worth_lending = open_block.left() > pool_tail_min(open_block);
        self.advance(id, flags, is_worth_lending);
        Some(lease)
    }

    /// Takes buffer `id` back from a receive that had taken it and put nothing into it. Such a
    /// receive waited in a thread of the kernel's.
    #[cold]
    pub(super) fn untake(&mut self, id: u16, flags: u32) {
        if let Some(Some(_)) = self.lent.get(usize::from(id)) {
            self.advance(id, flags, true);
        }
    }

    /// Advances buffer `id` after a receive. The flags say whether the kernel still uses the
    /// buffer. If it does not, the rest is lent again, or the buffer is retired.
    #[inline]
    fn advance(&mut self, id: u16, flags: u32, is_worth_lending: bool) {
        if self.incremental {
            if !cqueue::buffer_more(flags) {
                self.retire(id);
            }
        } else if is_worth_lending {
            self.push(id);
            self.publish();
        } else {
            self.retire(id);
        }
    }

    /// Whether the kernel has no buffer to receive into.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.room_bytes == 0
    }

    /// The room for reads in the lent blocks and in `available` more.
    pub(super) fn room(&self, available: usize, block_size: usize) -> SwapRoom {
        let idle = self.idle_ids.len();
        // The other blocks are lent in later turns.
        let next = available.min(idle);
        let reads = match self.incremental {
            true => usize::MAX,
            // A buffer serves one receive a turn. Its rest goes back into the ring in the next
            // turn.
            false => self.lent.len() - idle + next,
        };
        SwapRoom {
            bytes: self.room_bytes + available * block_size,
            at_hand: self.room_bytes + next * block_size,
            reads,
        }
    }

    /// Leaves the lent blocks and the ring itself to the kernel.
    pub(super) fn leak(&mut self) {
        std::mem::forget(std::mem::take(&mut self.lent));
        self.leaked = true;
    }

    #[cold]
    fn retire(&mut self, id: u16) {
        let used_up = self.lent[usize::from(id)].take();
        self.room_bytes -= used_up.as_ref().map_or(0, OpenBlock::left);
        self.idle_ids.push(id);
    }

    /// Writes the entry for the unused rest of a lent block. The kernel sees it after `publish`.
    fn push(&mut self, id: u16) {
        let Some(open_block) = &mut self.lent[usize::from(id)] else {
            return;
        };
        let (at, len) = open_block.tail();
        let index = usize::from(self.tail & self.mask);
        // SAFETY: the index is within the ring. The kernel does not read this entry before
        // `publish`, because there are never more entries published than ids, and each id is in the
        // ring once. The fields are written one by one, because the tail lies in the first entry.
        unsafe {
            let entry = self.entries.add(index).as_mut();
            entry.set_addr(at as u64);
            entry.set_len(len as u32);
            entry.set_bid(id);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    fn publish(&self) {
        // SAFETY: the tail lies in the first entry, which is valid memory, and the kernel reads it
        // atomically.
        unsafe {
            let tail = BufRingEntry::tail(self.entries.as_ptr())
                .cast_mut()
                .cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }
}

/// The size up to which a rest is not worth lending.
fn pool_tail_min(open_block: &OpenBlock) -> usize {
    open_block.size() / 16
}

impl Drop for BufferRing {
    fn drop(&mut self) {
        if self.leaked {
            return;
        }
        // SAFETY: the memory was allocated with this layout; the kernel no longer uses it, as
        // `register` says.
        unsafe { dealloc(self.entries.as_ptr().cast(), self.layout) };
    }
}
