//! Choosing a backend, and the options that matter.
//!
//! | System | Backend | Who reads and writes |
//! |---|---|---|
//! | Linux 6.0 and later, where io_uring is allowed | io_uring | the kernel, many operations in one system call |
//! | any other Linux, Android | epoll | the library, when the kernel says that a call would not block |
//! | macOS, FreeBSD, NetBSD, OpenBSD, DragonFly | kqueue | likewise |
//!
//! The results are the same on every backend, down to the errors. Programs need no code for one
//! of them.
//!
//! # The choice
//!
//! By default, a watcher gets the best backend that works. It finds out when it is built, by
//! running real operations: version numbers say little about containers and sandboxes.
//! [`backend`](crate::Watcher::backend) returns the outcome. Log it: the line says which features of
//! the kernel are used, and why a better backend was declined.
//!
//! ```
//! use gaio::{BackendKind, Choice, ErrorKind, Watcher};
//!
//! # fn main() -> gaio::Result<()> {
//! let watcher = Watcher::<()>::new()?;
//! println!("backend={}", watcher.backend());
//! for declined in watcher.backend().declined() {
//!     println!("{declined}"); // what refused it, and what to do
//! }
//!
//! // Insist on one.
//! let insists = Choice::Only(BackendKind::IoUring);
//! match Watcher::<()>::builder().backend(insists).build() {
//!     Ok(watcher) => assert_eq!(watcher.backend().kind(), BackendKind::IoUring),
//!     Err(error) => assert_eq!(error.kind(), ErrorKind::Unsupported),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! `GAIO_BACKEND=io_uring`, `epoll` or `kqueue` in the environment decides for a program that does
//! not insist. Backends that are ruled out are not tried at all: with `GAIO_BACKEND=epoll`, no call
//! of io_uring is made, so a sandbox that kills a process for one does not.
//!
//! # When io_uring is declined
//!
//! - *The system forbids it*: a seccomp profile (the default in many container runtimes) or the
//!   sysctl `kernel.io_uring_disabled`. Allow it there, or use epoll.
//! - *Too little memory may be locked* (`RLIMIT_MEMLOCK`): raise the limit, or set a smaller
//!   [`queue_depth`](crate::Builder::queue_depth). The watcher tries smaller queues by itself and
//!   says so among the features.
//! - *The kernel is too old*: io_uring needs Linux 6.0.
//!
//! # Options
//!
//! The defaults suit a server with thousands of connections.
//!
//! - [`swap_buffer_size`](crate::Builder::swap_buffer_size), 64 KiB: the most that one swap read
//!   returns. Larger ones suit bulk data. Smaller ones suit many peers whose leases are kept.
//! - [`swap_buffers`](crate::Builder::swap_buffers), 256: how many there may be. See
//!   [`leases`](super::leases).
//! - [`stream_window`](crate::Builder::stream_window), 512 KiB: how much one `read_stream` runs ahead.
//! - [`queue_depth`](crate::Builder::queue_depth), 1024: operations that one turn can start. If
//!   [`completion_overflows`](crate::Stats::completion_overflows) grows, take more.
//! - [`spin`](crate::Builder::spin), off: lower latency for a CPU that is always busy.
//! - [`restricted`](crate::Builder::restricted), off: a ring that can do nothing but what this library
//!   does.
//!
//! # Differences that remain
//!
//! - The speed.
//! - The number of results in one turn, and the order of results of different connections.
//! - io_uring may interrupt other system calls of the watcher's thread (`EINTR`). The page of
//!   [`Watcher`](crate::Watcher) has more.
//! - On macOS and the BSDs, a socket is non-blocking while a watcher has it, and so are its
//!   duplicates.
