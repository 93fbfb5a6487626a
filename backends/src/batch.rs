//! `Batch`: several writes of one connection that go to the kernel in one vectored call.

use std::fmt;

use crate::buffer::Buffer;

/// Buffers to be written in order, and the message header that names them. Kept and used again,
/// so that queued writes allocate nothing in the long run.
pub struct Batch {
    buffers: Vec<Buffer>,
    iovecs: Vec<libc::iovec>,
    header: libc::msghdr,
}

// SAFETY: the pointers in `iovecs` and `header` are read by the kernel only, and lead to memory
// that `buffers` and `iovecs` own, neither of which is bound to a thread.
unsafe impl Send for Batch {}

impl Batch {
    /// The most buffers in one batch; well under the system's `IOV_MAX` of 1024.
    pub const LEN_MAX: usize = 256;

    /// An empty batch.
    pub fn new() -> Self {
        Batch {
            buffers: Vec::new(),
            iovecs: Vec::new(),
            // SAFETY: a header of zeros is valid: no name, no data, no control messages.
            header: unsafe { std::mem::zeroed() },
        }
    }

    /// Adds a buffer, of which the first `from` bytes are written already.
    pub fn push(&mut self, buffer: Buffer, from: usize) {
        let rest = &buffer[from.min(buffer.len())..];
        self.iovecs.push(libc::iovec {
            iov_base: rest.as_ptr().cast_mut().cast(),
            iov_len: rest.len(),
        });
        self.buffers.push(buffer);
    }

    /// Takes the buffers out, in order.
    pub fn drain(&mut self) -> impl Iterator<Item = Buffer> + '_ {
        self.iovecs.clear();
        self.buffers.drain(..)
    }

    /// Bytes that are still to be written.
    pub(crate) fn len_bytes(&self) -> usize {
        self.iovecs.iter().map(|iovec| iovec.iov_len).sum()
    }

    /// The header for `sendmsg(2)`. It stays valid, and so do the bytes, until the batch is
    /// changed or dropped; moving the `Box` that holds it is harmless.
    pub(crate) fn header(&mut self) -> *mut libc::msghdr {
        self.header.msg_iov = self.iovecs.as_mut_ptr();
        self.header.msg_iovlen = self.iovecs.len() as _;
        &raw mut self.header
    }

    /// The same for `writev(2)`.
    pub(crate) fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }
}

impl Default for Batch {
    fn default() -> Self {
        Batch::new()
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} buffers)", self.buffers.len())
    }
}
