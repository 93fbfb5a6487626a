//! Descriptors as a queue sees them: the watched ones, the file behind each, and the amount of data
//! there.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::{c_int, c_void};
use std::os::fd::RawFd;
use std::ptr::NonNull;

use super::{EVFILT_READ, EVFILT_WRITE, check};
use crate::error::Errno;

/// The number of descriptors that a queue can watch.
const DESCRIPTORS_MAX: usize = 1 << 18;

/// One entry for each descriptor and direction. They are not on the heap that tests count: the
/// tests measure the library, and on a real system the kernel has these entries.
pub(super) struct Files(NonNull<[File; 2]>);

impl Files {
    const LAYOUT: Layout = Layout::new::<[[File; 2]; DESCRIPTORS_MAX]>();

    pub(super) fn new() -> Result<Self, Errno> {
        // SAFETY: the layout is not empty.
        let table = unsafe { System.alloc_zeroed(Files::LAYOUT) };
        // Zeros are empty entries.
        NonNull::new(table.cast())
            .map(Files)
            .ok_or(Errno(libc::ENOMEM))
    }

    pub(super) fn get(&mut self, fd: RawFd, filter: i16) -> Option<&mut File> {
        let at = usize::try_from(fd)
            .ok()
            .filter(|&at| at < DESCRIPTORS_MAX)?;
        // SAFETY: within the table, which is initialised and borrowed as a whole.
        let entry = unsafe { self.0.add(at).as_mut() };
        Some(&mut entry[usize::from(filter == EVFILT_WRITE)])
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and not used any more.
        unsafe { System.dealloc(self.0.as_ptr().cast(), Files::LAYOUT) };
    }
}

/// A descriptor that is watched for one filter.
#[derive(Clone, Copy)]
pub(super) struct File {
    pub(super) flags: u16,
    /// The inode behind the descriptor when it was registered; zero if nothing is watched.
    pub(super) inode: u64,
    pub(super) udata: *mut c_void,
}

/// The inode behind a descriptor, and its type.
pub(super) fn identify(fd: RawFd) -> Result<(u64, libc::mode_t), Errno> {
    // SAFETY: for this structure of numbers, zeros are valid.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `status` is borrowed for the call.
    check(unsafe { libc::fstat(fd, &raw mut status) })?;
    Ok((status.st_ino, status.st_mode & libc::S_IFMT))
}

/// The number of bytes that can be read or written, as far as Linux tells.
pub(super) fn amount(fd: RawFd, filter: i16) -> i64 {
    let mut len: c_int = 0;
    let question = match filter {
        EVFILT_READ => libc::FIONREAD,
        _ => libc::TIOCOUTQ,
    };
    // SAFETY: both questions are answered with one integer.
    let known = unsafe { libc::ioctl(fd, question, &raw mut len) } == 0;
    match filter {
        EVFILT_READ if known => len.into(),
        _ => 1,
    }
}
