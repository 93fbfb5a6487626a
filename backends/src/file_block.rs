//! `FileBlock`: a range of a file that is being sent, of which one block is in memory at a time. The same
//! code serves all backends: a block is read by a plain call, and written like any other bytes.

use std::fs::File;
use std::io::ErrorKind;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use crate::error::Errno;

/// The bytes that are read at a time. A disk that is slow holds up the loop for one such read.
const BLOCK_SIZE: u64 = 128 * 1024;

/// A range of a file, and the block of it that is in memory.
pub(crate) struct FileBlock {
    file: Arc<File>,
    range: Range<u64>,
    /// None before the first read, so that a range that waits takes no memory.
    block: Vec<u8>,
    /// The position of the block in the range.
    at: usize,
}

impl FileBlock {
    pub(crate) fn new(file: Arc<File>, range: Range<u64>) -> Self {
        FileBlock {
            file,
            range,
            block: Vec::new(),
            at: 0,
        }
    }

    /// The length of the range. It fits, as the caller of `send_file` is told otherwise.
    pub(crate) fn len_bytes(&self) -> usize {
        (self.range.end - self.range.start) as usize
    }

    /// The bytes behind the first `done` of the range that are in memory. If there are none, the next
    /// block is read. Nothing means that the file ends here.
    ///
    /// # Errors
    /// The system's error for the read.
    pub(crate) fn rest(&mut self, done: usize) -> Result<&[u8], Errno> {
        let here = done.checked_sub(self.at);
        match here.filter(|&skip| skip < self.block.len()) {
            Some(skip) => Ok(&self.block[skip..]),
            None => {
                self.read(done)?;
                Ok(&self.block)
            }
        }
    }

    fn read(&mut self, done: usize) -> Result<(), Errno> {
        let from = self.range.start + done as u64;
        let len = self.range.end.saturating_sub(from).min(BLOCK_SIZE) as usize;
        self.at = done;
        self.block.resize(len, 0);
        let read = loop {
            match self.file.read_at(&mut self.block, from) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.block.truncate(*read.as_ref().unwrap_or(&0));
        read.map(drop).map_err(Errno::from)
    }
}
