//! `Buffer`: the one type in which bytes enter and leave the library, whoever owns them.

use std::fmt;
use std::fs::File;
use std::ops::{Deref, Range};
use std::sync::Arc;

use bytes::Bytes;

use crate::file_block::FileBlock;
use crate::parts::Parts;
use crate::swap::SwapBuf;

/// Bytes that enter or leave the library: the program's own `Vec<u8>`, shared `Bytes`, a lease of a
/// swap buffer, or static data. A vectored write's buffer is the list of its parts.
///
/// It dereferences to the bytes that were read or are to be written; a list of parts has no bytes in one
/// place, and dereferences to none. It is 40 bytes large; moving it copies no data.
///
/// ```
/// use gaio::Buffer;
///
/// let mut buffer = Buffer::from(vec![1, 2, 3, 4]);
/// buffer.advance(1);
/// buffer.truncate(2);
/// assert_eq!(buffer[..], [2, 3]);
/// assert_eq!(buffer.recycle(), Some(vec![1, 2, 3, 4])); // the vector as it was handed in
///
/// let text = Buffer::from("static data");
/// assert!(!text.is_swap());
/// assert_eq!(text.into_vec(), b"static data"); // a copy
/// ```
///
/// A finished read's buffer can be passed to the next read. A vector is used again; a lease goes back to
/// its pool and the read takes a swap buffer again:
///
/// ```
/// use gaio::{OpResult, Watcher};
///
/// fn read_again(watcher: &mut Watcher, res: OpResult) {
///     println!("{:?}", res.data());
///     let _ = watcher.read((), res.conn, res.buffer);
/// }
/// ```
pub struct Buffer(Repr);

enum Repr {
    /// The vector at its full length, and the range of it in view.
    Vec {
        vec: Vec<u8>,
        start: usize,
        end: usize,
    },
    Bytes(Bytes),
    Swap(SwapBuf),
    Static(&'static [u8]),
    Parts(Box<Parts>),
    /// A range of a file to send. The program never sees it.
    File(Box<FileBlock>),
}

const _: () = assert!(size_of::<usize>() != 8 || size_of::<Buffer>() == 40);

impl Repr {
    /// The bytes of any variant. This is out of line, so that the frequent case, a lease, costs one
    /// comparison.
    #[inline(never)]
    fn bytes(&self) -> &[u8] {
        match self {
            Repr::Vec { vec, start, end } => &vec[*start..*end],
            Repr::Bytes(bytes) => bytes,
            Repr::Swap(lease) => lease,
            Repr::Static(bytes) => bytes,
            Repr::Parts(_) | Repr::File(_) => &[],
        }
    }
}

impl Buffer {
    /// A buffer of no bytes.
    pub const EMPTY: Buffer = Buffer(Repr::Static(&[]));

    /// Whether the bytes are a lease of a swap buffer.
    pub fn is_swap(&self) -> bool {
        matches!(self.0, Repr::Swap(_))
    }

    /// Removes the first `n` bytes from view, or all if there are fewer. Changes nothing in a list of parts.
    pub fn advance(&mut self, n: usize) {
        let n = n.min(self.len());
        match &mut self.0 {
            Repr::Vec { start, .. } => *start += n,
            Repr::Bytes(bytes) => bytes::Buf::advance(bytes, n),
            Repr::Swap(lease) => lease.advance(n),
            Repr::Static(bytes) => *bytes = &bytes[n..],
            Repr::Parts(_) | Repr::File(_) => {}
        }
    }

    /// Removes all but the first `n` bytes from view. Changes nothing in a list of parts.
    pub fn truncate(&mut self, n: usize) {
        match &mut self.0 {
            Repr::Vec { start, end, .. } => *end = (*end).min(start.saturating_add(n)),
            Repr::Bytes(bytes) => bytes.truncate(n),
            Repr::Swap(lease) => lease.truncate(n),
            Repr::Static(bytes) => *bytes = &bytes[..n.min(bytes.len())],
            Repr::Parts(_) | Repr::File(_) => {}
        }
    }

    /// The bytes as a vector, of all parts in order. There is no copy if they are the program's own vector.
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
            Repr::Parts(parts) => parts.to_vec(),
            other => Buffer(other).to_vec(),
        }
    }

    /// The bytes as `Bytes`, without a copy, unless they are in several parts.
    pub fn into_bytes(self) -> Bytes {
        match self.0 {
            Repr::Vec { vec, start, end } => Bytes::from(vec).slice(start..end),
            Repr::Bytes(bytes) => bytes,
            Repr::Swap(lease) => lease.into(),
            Repr::Static(bytes) => Bytes::from_static(bytes),
            Repr::Parts(parts) => parts.to_vec().into(),
            Repr::File(_) => Bytes::new(),
        }
    }

    /// The parts of a vectored write, in the order in which they were handed in, empty ones too. Any other
    /// buffer is the only part.
    ///
    /// ```
    /// use gaio::{Deadline, Results, Watcher};
    /// use std::os::unix::net::UnixStream;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (ours, _peer) = UnixStream::pair()?;
    /// let mut watcher = Watcher::new()?;
    /// let conn = watcher.delegate(ours)?;
    /// watcher.write_vectored((), conn, vec!["head ".into(), vec![b'b'; 4].into()], Deadline::NEVER)?;
    ///
    /// let mut results = Results::new();
    /// watcher.wait_io(&mut results)?;
    /// let parts = results.pop().expect("a result").buffer.into_parts();
    /// assert_eq!(parts.len(), 2);
    /// assert_eq!(parts[1][..], *b"bbbb");
    /// # Ok(())
    /// # }
    /// ```
    pub fn into_parts(self) -> Vec<Buffer> {
        match self.0 {
            Repr::Parts(parts) => parts.into_buffers(),
            other => vec![Buffer(other)],
        }
    }

    /// A buffer of several parts. The parts of a part are parts of their own.
    #[doc(hidden)]
    pub fn from_parts(parts: Vec<Buffer>) -> Self {
        let nested = parts.iter().any(|part| matches!(part.0, Repr::Parts(_)));
        let parts = match nested {
            true => parts.into_iter().flat_map(Buffer::into_parts).collect(),
            false => parts,
        };
        Buffer(Repr::Parts(Box::new(Parts::new(parts))))
    }

    /// A range of a file that is to be sent.
    #[doc(hidden)]
    pub fn from_file(file: Arc<File>, range: Range<u64>) -> Self {
        Buffer(Repr::File(Box::new(FileBlock::new(file, range))))
    }

    /// The file to send, if it is one.
    pub(crate) fn file_mut(&mut self) -> Option<&mut FileBlock> {
        match &mut self.0 {
            Repr::File(block) => Some(block),
            _ => None,
        }
    }

    /// Whether it is a range of a file, whose bytes take no memory.
    pub(crate) fn is_file(&self) -> bool {
        matches!(self.0, Repr::File(_))
    }

    /// The parts, if it is a list of them.
    pub(crate) fn parts_mut(&mut self) -> Option<&mut Parts> {
        match &mut self.0 {
            Repr::Parts(parts) => Some(parts),
            _ => None,
        }
    }

    /// The number of bytes, of all parts.
    #[doc(hidden)]
    #[inline]
    pub fn len_bytes(&self) -> usize {
        #[cold]
        fn sum(parts: &Parts) -> usize {
            parts.len_bytes()
        }
        match &self.0 {
            Repr::Parts(parts) => sum(parts),
            Repr::File(block) => block.len_bytes(),
            _ => self.len(),
        }
    }

    /// The lease, if the bytes are one.
    ///
    /// # Errors
    /// The buffer itself, if they are not.
    pub fn into_swap(self) -> Result<SwapBuf, Buffer> {
        match self.0 {
            Repr::Swap(lease) => Ok(lease),
            other => Err(Buffer(other)),
        }
    }

    /// The memory for the next read: the program's own vector, at the length at which it was handed
    /// in, with nothing cleared. `None` for everything else; a lease goes back to its pool.
    pub fn recycle(self) -> Option<Vec<u8>> {
        match self.0 {
            Repr::Vec { vec, .. } => Some(vec),
            _ => None,
        }
    }

    /// The room for the bytes of a read: the program's own vector past its first `from` bytes.
    /// `None` if the buffer cannot be read into.
    pub(crate) fn spare(&mut self, from: usize) -> Option<&mut [u8]> {
        match &mut self.0 {
            Repr::Vec { vec, .. } => vec.get_mut(from..),
            _ => None,
        }
    }

    /// Replaces this buffer, which is nearly always [`EMPTY`](Buffer::EMPTY). The comparison costs
    /// less than the drop of any variant.
    #[inline]
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

    /// Sets the length of the part that reads filled, counted from the vector's start.
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
            Repr::Parts(_) => "Parts",
            Repr::File(_) => "File",
        };
        write!(f, "Buffer::{kind}({} bytes)", self.len_bytes())
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
