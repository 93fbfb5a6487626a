//! Threads: one watcher for each, and `Remote` for the others.
//!
//! A watcher has no thread of its own. The first [`wait_io`](crate::Watcher::wait_io) binds it to the
//! calling thread. From then on its calls on another thread are refused with
//! [`WrongThread`](crate::ErrorKind::WrongThread), questions too; those without an error return false
//! or 0 and do nothing. Only `backend`, `remote`, `stats`, `close` and a drop work everywhere. So a program that uses several CPUs has a watcher
//! for each thread. Watchers share nothing: a connection belongs to one of them for its whole life,
//! and the others refuse its handle.
//!
//! # Dealing out connections
//!
//! One thread accepts and hands each connection to one of the watchers through its
//! [`Remote`](crate::Remote):
//!
//! ```
//! use gaio::{ErrorKind, Operation, Results, Watcher};
//! use std::io::{Read, Write};
//! use std::net::{TcpListener, TcpStream};
//! use std::thread;
//!
//! fn echo(mut watcher: Watcher) -> gaio::Result<()> {
//!     let mut results = Results::new();
//!     loop {
//!         watcher.wait_io(&mut results)?;
//!         for res in results.drain() {
//!             if res.error.is_some() || res.is_eof() {
//!                 watcher.free(res.conn);
//!             } else if res.operation == Operation::Read {
//!                 let _ = watcher.write((), res.conn, res.buffer);
//!             } else {
//!                 let _ = watcher.read((), res.conn, None);
//!             }
//!         }
//!     }
//! }
//!
//! # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
//! let watchers = [Watcher::new()?, Watcher::new()?];
//! let remotes = watchers.each_ref().map(Watcher::remote);
//! let threads = watchers.map(|watcher| thread::spawn(move || echo(watcher)));
//!
//! let listener = TcpListener::bind("127.0.0.1:0")?;
//! for remote in &remotes {
//!     let mut client = TcpStream::connect(listener.local_addr()?)?;
//!     let (socket, _) = listener.accept()?;
//!     let conn = remote.delegate(socket)?;
//!     remote.read((), conn, None)?;
//!
//!     client.write_all(b"hello")?;
//!     let mut answer = [0; 5];
//!     client.read_exact(&mut answer)?;
//!     assert_eq!(&answer, b"hello");
//! }
//!
//! remotes.each_ref().map(|remote| remote.close()); // ends the loops
//! for thread in threads {
//!     let ended = thread.join().expect("no panic");
//!     assert_eq!(ended.unwrap_err().kind(), ErrorKind::WatcherClosed);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Alternatively, each thread listens on the same address with a socket of its own (`SO_REUSEPORT`)
//! and accepts through its watcher. The kernel then deals out the connections.
//!
//! # What a Remote does
//!
//! Its calls never wait. Each puts a message into a queue; the watcher takes the whole queue at its
//! next turn. A sleeping watcher is woken, which costs a system call; a running one is not. Messages
//! that one thread sends to one watcher keep their order. [`delegate`](crate::Remote::delegate) and
//! [`connect`](crate::Remote::connect) return a handle that can be used at once, in any thread.
//!
//! [`wake`](crate::Remote::wake) sends nothing: `wait_io` just returns. It is for programs that have a queue
//! of their own beside the watcher.
//!
//! All results come to the watcher's own thread. So does an error that
//! the call could not know: for a freed connection, the result has
//! [`ConnClosed`](crate::ErrorKind::ConnClosed).
//!
//! # Work for other threads
//!
//! Buffers and leases are [`Send`]. A thread pool can take the lease of a request, work on it
//! without a copy, and answer on the connection or [`post`](crate::Remote::post) a message back:
//!
//! ```
//! use gaio::{Operation, Results, Watcher};
//! use std::io::{Read, Write};
//! use std::os::unix::net::UnixStream;
//! use std::thread;
//!
//! # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
//! let (ours, mut peer) = UnixStream::pair()?;
//! let mut watcher = Watcher::new()?;
//! let conn = watcher.delegate(ours)?;
//! watcher.read((), conn, None)?;
//! peer.write_all(b"hello")?;
//!
//! let mut results = Results::new();
//! 'answered: loop {
//!     watcher.wait_io(&mut results)?;
//!     for res in results.drain() {
//!         if res.operation == Operation::Write {
//!             break 'answered;
//!         }
//!         let remote = watcher.remote();
//!         thread::spawn(move || {
//!             let answer = res.data().to_ascii_uppercase();
//!             remote.write((), res.conn, answer)
//!         });
//!     }
//! }
//! let mut answer = [0; 5];
//! peer.read_exact(&mut answer)?;
//! assert_eq!(&answer, b"HELLO");
//! # Ok(())
//! # }
//! ```
//!
//! # Ending
//!
//! [`Watcher::close`](crate::Watcher::close) and [`Remote::close`](crate::Remote::close) end all
//! requests. `wait_io` returns their results, then fails with
//! [`WatcherClosed`](crate::ErrorKind::WatcherClosed): leave the loop then. A watcher can also simply
//! be dropped. Either way, writes that wait are lost.
//!
//! To end without loss: free the listener, cancel the reads that wait, submit a
//! [`shutdown`](crate::Watcher::shutdown) for each connection, and free each on its result. Close the
//! watcher when [`Stats::connections`](crate::Stats::connections) is zero, or when a timer says that
//! it took too long.
//!
//! # Processes
//!
//! A watcher belongs to the process that built it. In a child made by `fork(2)`, every call of the
//! watcher and its remotes is refused with [`Forked`](crate::ErrorKind::Forked); calls without an
//! error return false or do nothing. A drop there closes the child's copies of the descriptors and
//! does not disturb the parent. So a daemon forks first and then builds its watcher. Other programs can be
//! started at any time, for instance with [`Command`](std::process::Command), because all descriptors are
//! close-on-exec.
