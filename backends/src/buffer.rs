//! `Buffer`: the one type in which bytes enter and leave the library, whoever owns them.

use std::fmt;
use std::ops::Deref;

use bytes::Bytes;

use crate::swap::SwapBuf;

/// Bytes on their way in or out: an own `Vec<u8>`, shared `Bytes`, a lease of a swap buffer, or
/// static data.
///
/// Dereferences to what was read, or to what is to be written. 40 bytes; moving it moves no data.
///
/// ```
/// use gaio::Buffer;
///
/// let mut buffer = Buffer::from(vec![1, 2, 3]);
/// buffer.advance(1);
/// assert_eq!(buffer[..], [2, 3]);
/// assert_eq!(buffer.recycle(), Some(vec![1, 2, 3]));
/// ```
pub struct Buffer(Repr);

enum Repr {
    /// The vector at its full length, and the part of it that counts.
    Vec {
        vec: Vec<u8>,
        start: usize,
        end: usize,
    },
    Bytes(Bytes),
    Swap(SwapBuf),
    Static(&'static [u8]),
}

const _: () = assert!(size_of::<usize>() != 8 || size_of::<Buffer>() == 40);

impl Repr {
    /// The bytes, whatever it is. Apart from the one question that loops ask all the time, so that
    /// this stays one comparison.
    #[inline(never)]
    fn bytes(&self) -> &[u8] {
        match self {
            Repr::Vec { vec, start, end } => &vec[*start..*end],
            Repr::Bytes(bytes) => bytes,
            Repr::Swap(lease) => lease,
            Repr::Static(bytes) => bytes,
        }
    }
}

impl Buffer {
    /// A buffer of no bytes.
    pub const EMPTY: Buffer = Buffer(Repr::Static(&[]));

    /// Whether the bytes lie in a swap buffer.
    pub fn is_swap(&self) -> bool {
        matches!(self.0, Repr::Swap(_))
    }

    /// Forgets the first `n` bytes (all, if there are fewer).
    pub fn advance(&mut self, n: usize) {
        let n = n.min(self.len());
        match &mut self.0 {
            Repr::Vec { start, .. } => *start += n,
            Repr::Bytes(bytes) => bytes::Buf::advance(bytes, n),
            Repr::Swap(lease) => lease.advance(n),
            Repr::Static(bytes) => *bytes = &bytes[n..],
        }
    }

    /// Forgets all but the first `n` bytes.
    pub fn truncate(&mut self, n: usize) {
        match &mut self.0 {
            Repr::Vec { start, end, .. } => *end = (*end).min(start.saturating_add(n)),
            Repr::Bytes(bytes) => bytes.truncate(n),
            Repr::Swap(lease) => lease.truncate(n),
            Repr::Static(bytes) => *bytes = &bytes[..n.min(bytes.len())],
        }
    }

    /// The bytes as a vector: without a copy if the program's own vector is inside.
    pub fn into_vec(self) -> Vec<u8> {
        match self.0 {
            Repr::Vec {
                mut vec,
                start,
                end,
            } => {
                vec.truncate(end);
                vec.drain(..start);
                vec
            }
            other => Buffer(other).to_vec(),
        }
    }

    /// The bytes as shared `Bytes`, without a copy.
    pub fn into_bytes(self) -> Bytes {
        match self.0 {
            Repr::Vec { vec, start, end } => Bytes::from(vec).slice(start..end),
            Repr::Bytes(bytes) => bytes,
            Repr::Swap(lease) => lease.into(),
            Repr::Static(bytes) => Bytes::from_static(bytes),
        }
    }

    /// The lease, if the bytes lie in a swap buffer.
    ///
    /// # Errors
    /// The buffer itself, if they do not.
    pub fn into_swap(self) -> Result<SwapBuf, Buffer> {
        match self.0 {
            Repr::Swap(lease) => Ok(lease),
            other => Err(Buffer(other)),
        }
    }

    /// What a next read can use: the program's own vector at the length it had when it was handed
    /// in, with nothing cleared; `None` for everything else (a lease goes back to its pool).
    pub fn recycle(self) -> Option<Vec<u8>> {
        match self.0 {
            Repr::Vec { vec, .. } => Some(vec),
            _ => None,
        }
    }

    /// Where a read may put bytes: the program's own vector past its first `from` bytes.
    /// `None` if the buffer cannot be read into.
    pub(crate) fn spare(&mut self, from: usize) -> Option<&mut [u8]> {
        match &mut self.0 {
            Repr::Vec { vec, .. } => vec.get_mut(from..),
            _ => None,
        }
    }

    /// Puts a buffer in the place of one that nearly always is none: cheaper than to look which of
    /// all it is.
    #[inline(always)]
    pub(crate) fn replace_with(&mut self, buffer: Buffer) {
        #[cold]
        fn assign(place: &mut Buffer, buffer: Buffer) {
            *place = buffer;
        }
        match self.0 {
            Repr::Static(_) => std::mem::forget(std::mem::replace(self, buffer)),
            _ => assign(self, buffer),
        }
    }

    /// Sets how much of the vector was filled by reads, counted from its start.
    #[doc(hidden)]
    pub fn set_filled(&mut self, len: usize) {
        if let Repr::Vec { vec, start, end } = &mut self.0 {
            *start = 0;
            *end = len.min(vec.len());
        }
    }
}

impl Default for Buffer {
    fn default() -> Self {
        Buffer::EMPTY
    }
}

impl Deref for Buffer {
    type Target = [u8];

    #[inline]
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Swap(lease) => lease,
            other => other.bytes(),
        }
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Repr::Vec { .. } => "Vec",
            Repr::Bytes(_) => "Bytes",
            Repr::Swap(_) => "Swap",
            Repr::Static(_) => "Static",
        };
        write!(f, "Buffer::{kind}({} bytes)", self.len())
    }
}

impl From<Vec<u8>> for Buffer {
    #[inline]
    fn from(vec: Vec<u8>) -> Self {
        let end = vec.len();
        Buffer(Repr::Vec { vec, start: 0, end })
    }
}

impl From<String> for Buffer {
    fn from(text: String) -> Self {
        text.into_bytes().into()
    }
}

impl From<Bytes> for Buffer {
    fn from(bytes: Bytes) -> Self {
        Buffer(Repr::Bytes(bytes))
    }
}

impl From<SwapBuf> for Buffer {
    #[inline]
    fn from(lease: SwapBuf) -> Self {
        Buffer(Repr::Swap(lease))
    }
}

impl From<&'static [u8]> for Buffer {
    fn from(bytes: &'static [u8]) -> Self {
        Buffer(Repr::Static(bytes))
    }
}

impl<const N: usize> From<&'static [u8; N]> for Buffer {
    fn from(bytes: &'static [u8; N]) -> Self {
        Buffer(Repr::Static(bytes))
    }
}

impl From<&'static str> for Buffer {
    fn from(text: &'static str) -> Self {
        text.as_bytes().into()
    }
}

impl From<Buffer> for Option<Vec<u8>> {
    /// [`Buffer::recycle`]: a finished read's buffer asks for the same kind of read again.
    fn from(buffer: Buffer) -> Self {
        buffer.recycle()
    }
}
