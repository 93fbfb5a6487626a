//! `Batch`: several writes of one connection, or the parts of one, that go to the kernel in one vectored
//! call.

use std::fmt;
use std::os::fd::RawFd;

use crate::buffer::Buffer;
use crate::error::Errno;
use crate::parts::Parts;
use crate::sys::{self, Calls, TRANSFER_MAX};

/// Buffers to write, the vectors that locate their bytes, and the message header that names the
/// vectors. A batch is reused, so that queued writes allocate nothing in the long run.
pub(crate) struct Batch {
    buffers: Vec<Buffer>,
    iovecs: Vec<libc::iovec>,
    header: libc::msghdr,
}

// SAFETY: only the kernel follows the pointers in `iovecs` and `header`, and only to read. They
// lead to bytes that `buffers` owns, or the buffer in the same entry of the table, and to `iovecs`; none
// is bound to a thread.
unsafe impl Send for Batch {}

impl Batch {
    /// The greatest number of writes in one batch, well below the system's `IOV_MAX` of 1024.
    pub(crate) const LEN_MAX: usize = 256;

    /// The greatest number of parts in one call: `IOV_MAX` of all systems.
    pub(crate) const PARTS_MAX: usize = 1024;

    /// Takes all buffers out of `from`. Of the first one, `done` bytes were written before.
    pub(crate) fn fill(&mut self, from: &mut Vec<Buffer>, mut done: usize) {
        debug_assert!(self.buffers.is_empty());
        std::mem::swap(&mut self.buffers, from);
        for buffer in &self.buffers {
            // The bytes stay in place when the vector of handles moves or is swapped.
            let rest = buffer.get(std::mem::take(&mut done)..).unwrap_or_default();
            self.iovecs.push(vector(rest));
        }
    }

    /// Names the next bytes of a write in parts, of which `done` were written before: as many as one
    /// call takes. They stay in `parts`, which lives and is not changed while the kernel uses this.
    pub(crate) fn refer_to(&mut self, parts: &mut Parts, done: usize) {
        debug_assert!(self.buffers.is_empty());
        self.iovecs.clear();
        let mut room = TRANSFER_MAX;
        for part in parts.rest(done).take(Self::PARTS_MAX) {
            let part = &part[..part.len().min(room)];
            room -= part.len();
            self.iovecs.push(vector(part));
            if room == 0 {
                break;
            }
        }
    }

    /// Names these bytes, which live and are not changed while the kernel uses this.
    pub(crate) fn refer_to_bytes(&mut self, bytes: &[u8]) {
        debug_assert!(self.buffers.is_empty());
        self.iovecs.clear();
        self.iovecs.push(vector(bytes));
    }

    /// Moves all buffers into `into`.
    pub(crate) fn empty(&mut self, into: &mut Vec<Buffer>) {
        self.iovecs.clear();
        into.append(&mut self.buffers);
    }

    /// The number of bytes still to be written.
    pub(crate) fn len_bytes(&self) -> usize {
        self.iovecs.iter().map(|iovec| iovec.iov_len).sum()
    }

    /// The header for `sendmsg(2)`. It stays valid until the batch is changed or dropped; moving
    /// the `Box` that holds it is harmless.
    pub(crate) fn header(&mut self) -> *mut libc::msghdr {
        self.header.msg_iov = self.iovecs.as_mut_ptr();
        self.header.msg_iovlen = self.iovecs.len() as _;
        &raw mut self.header
    }

    /// Sends as many bytes as possible without blocking, by `sendmsg(2)`.
    pub(crate) fn send(&mut self, fd: RawFd) -> Result<usize, Errno> {
        let header = self.header();
        // SAFETY: the header and the vectors belong to this value, and what they name does, too, or is
        // in the same entry of the table.
        unsafe { sys::send_message(fd, header) }
    }

    /// Writes the bytes to a descriptor that is not a socket.
    pub(crate) fn write(&self, mut to: Calls<'_>) -> Result<usize, Errno> {
        // SAFETY: the vectors name buffers of this value, or of the same entry of the table.
        unsafe { to.write_vectors(&self.iovecs) }
    }

    /// Forgets the vectors, whose bytes may be gone, and the buffers.
    pub(crate) fn forget(&mut self) {
        self.iovecs.clear();
        self.buffers.clear();
    }

    /// The bytes still to be written, for the simulated kernel.
    #[cfg(feature = "sim")]
    pub(crate) fn vectors(&self) -> impl Iterator<Item = &[u8]> {
        self.iovecs.iter().map(|vector| {
            // SAFETY: the vector names bytes of `buffers`, or of a buffer in the same entry of the table.
            // The table calls this, so it is borrowed together with that entry.
            unsafe { std::slice::from_raw_parts(vector.iov_base.cast(), vector.iov_len) }
        })
    }
}

fn vector(bytes: &[u8]) -> libc::iovec {
    libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    }
}

impl Default for Batch {
    fn default() -> Self {
        Batch {
            buffers: Vec::new(),
            iovecs: Vec::new(),
            // SAFETY: a header of zeros is valid: no name, no data, no control messages.
            header: unsafe { std::mem::zeroed() },
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} vectors)", self.iovecs.len())
    }
}
