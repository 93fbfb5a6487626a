//! `Batch`: several writes of one connection that go to the kernel in one vectored call.

use std::fmt;

/// The requests in a batch, where their bytes are, and the message header that names them. Kept
/// and used again, so that queued writes allocate nothing in the long run.
pub(crate) struct Batch {
    keys: Vec<u32>,
    iovecs: Vec<libc::iovec>,
    header: libc::msghdr,
}

// SAFETY: the pointers in `iovecs` and `header` are read by the kernel only, and lead to memory
// of `Loads`, which owns this batch, and of `iovecs`; neither is bound to a thread.
unsafe impl Send for Batch {}

impl Batch {
    /// The most writes in one batch; well under the system's `IOV_MAX` of 1024.
    pub(crate) const LEN_MAX: usize = 256;

    /// Adds what a request has still to write. The bytes must stay where they are until `drain`.
    pub(crate) fn push(&mut self, key: u32, rest: &[u8]) {
        self.iovecs.push(libc::iovec {
            iov_base: rest.as_ptr().cast_mut().cast(),
            iov_len: rest.len(),
        });
        self.keys.push(key);
    }

    /// Empties the batch; gives the requests that were in it.
    pub(crate) fn drain(&mut self) -> impl Iterator<Item = u32> + '_ {
        self.iovecs.clear();
        self.keys.drain(..)
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

    /// The same for `writev(2)`.
    pub(crate) fn iovecs(&self) -> &[libc::iovec] {
        &self.iovecs
    }
}

impl Default for Batch {
    fn default() -> Self {
        Batch {
            keys: Vec::new(),
            iovecs: Vec::new(),
            // SAFETY: a header of zeros is valid: no name, no data, no control messages.
            header: unsafe { std::mem::zeroed() },
        }
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} writes)", self.keys.len())
    }
}
