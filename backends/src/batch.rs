//! `Batch`: several writes of one connection that go to the kernel in one vectored call.

use std::fmt;
use std::os::fd::RawFd;

use crate::buffer::Buffer;
use crate::error::Errno;
use crate::sys::{self, Calls};

/// Buffers to write, where their bytes are, and the message header that names them. Kept and used
/// again, so that queued writes allocate nothing in the long run.
pub(crate) struct Batch {
    buffers: Vec<Buffer>,
    iovecs: Vec<libc::iovec>,
    header: libc::msghdr,
}

// SAFETY: the pointers in `iovecs` and `header` are read by the kernel only, and lead to bytes that
// `buffers` owns, and to `iovecs`; neither is bound to a thread.
unsafe impl Send for Batch {}

impl Batch {
    /// The most writes in one batch; well under the system's `IOV_MAX` of 1024.
    pub(crate) const LEN_MAX: usize = 256;

    /// Takes all buffers out of `from`; of the first, `done` bytes were written before.
    pub(crate) fn fill(&mut self, from: &mut Vec<Buffer>, mut done: usize) {
        debug_assert!(self.buffers.is_empty());
        std::mem::swap(&mut self.buffers, from);
        for buffer in &self.buffers {
            // The bytes stay where they are when the vector of handles moves or is swapped.
            let rest = buffer.get(std::mem::take(&mut done)..).unwrap_or_default();
            self.iovecs.push(libc::iovec {
                iov_base: rest.as_ptr().cast_mut().cast(),
                iov_len: rest.len(),
            });
        }
    }

    /// Gives all buffers back.
    pub(crate) fn empty(&mut self, into: &mut Vec<Buffer>) {
        self.iovecs.clear();
        into.append(&mut self.buffers);
    }

    /// Bytes that are still to be written.
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

    /// Sends as much of it as goes without blocking, by `sendmsg(2)`.
    pub(crate) fn send(&mut self, fd: RawFd) -> Result<usize, Errno> {
        let header = self.header();
        // SAFETY: the header and the vectors are this value's, and so are the buffers that they name.
        unsafe { sys::send_message(fd, header) }
    }

    /// The same to what is no socket.
    pub(crate) fn write(&self, mut to: Calls<'_>) -> Result<usize, Errno> {
        // SAFETY: the vectors name buffers of this value.
        unsafe { to.write_vectors(&self.iovecs) }
    }

    /// What is to be written, as the simulated kernel sees it.
    #[cfg(feature = "sim")]
    pub(crate) fn parts(&self) -> impl Iterator<Item = &[u8]> {
        self.buffers
            .iter()
            .zip(&self.iovecs)
            .map(|(buffer, iovec)| {
                // Only the first may have been written in part.
                &buffer[buffer.len() - iovec.iov_len..]
            })
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
        write!(f, "Batch({} writes)", self.buffers.len())
    }
}
