//! `Watcher`, the type that programs call: sockets in and results out (`life.rs`), what can be
//! asked of a connection (`inspect.rs`), requests in (`requests/`), the turn behind `wait_io` (`turn.rs`), and the thread and process that may call
//! (`owner.rs`).

// First, because rustdoc lists the methods in this order.
mod life;

mod inspect;

mod owner;
mod requests;
mod turn;

use std::cell::Cell;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

use gaio_backends::BackendInfo;

use self::owner::Owner;
use crate::engine::Engine;
use crate::inbox::{Inbox, Message};

/// Takes requests for connections and returns their results.
///
/// A program hands sockets in ([`delegate`](Watcher::delegate), [`listen`](Watcher::listen),
/// [`connect`](Watcher::connect)), submits requests for them, and calls
/// [`wait_io`](Watcher::wait_io) in a loop. `C` is the type of the program's *context*: a value
/// that goes in with each request and comes back with its result.
///
/// A watcher can be built on one thread and moved to another. The first `wait_io` binds it to the
/// calling thread. On any other, calls are refused from then on with
/// [`WrongThread`](crate::ErrorKind::WrongThread), and those without an error return false or 0 and do
/// nothing; use a [`Remote`](crate::Remote) there. A watcher can be closed and dropped on any thread, but a
/// drop on its own thread is quicker. It belongs to the process that built it: in a
/// forked child every call is refused with [`Forked`](crate::ErrorKind::Forked).
/// [`guide::threads`](crate::guide::threads) has more.
///
/// With io_uring, the kernel may interrupt other system calls of the watcher's thread that wait
/// with a timeout. They fail with `EINTR` ([`Interrupted`](std::io::ErrorKind::Interrupted)) although
/// no signal came. Repeat them; `read_exact` and `write_all` do so by themselves.
///
/// ```
/// use gaio::{Operation, Results, Watcher};
/// use std::io::Write;
/// use std::os::unix::net::UnixStream;
///
/// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
/// let (ours, mut peer) = UnixStream::pair()?;
/// let mut watcher = Watcher::new()?;
/// let conn = watcher.delegate(ours)?;
/// watcher.read("first", conn, None)?; // the context is a &str here
/// peer.write_all(b"hello")?;
///
/// let mut results = Results::new();
/// watcher.wait_io(&mut results)?;
/// for res in results.drain() {
///     assert_eq!((res.operation, res.context), (Operation::Read, "first"));
///     assert_eq!(res.data(), b"hello");
/// }
/// # Ok(())
/// # }
/// ```
pub struct Watcher<C = ()> {
    engine: Engine<C>,
    inbox: Arc<Inbox<C>>,
    /// Messages taken from the inbox; kept for its memory.
    messages: Vec<Message<C>>,
    info: BackendInfo,
    /// A `Remote` woke the turn that runs, or the next one.
    woken: bool,
    /// The time to look for results before sleeping.
    spin: Duration,
    owner: Owner,
    /// The program has the watcher's descriptor for another event loop.
    nested: bool,
    not_sync: PhantomData<Cell<()>>,
}

impl<C> Drop for Watcher<C> {
    fn drop(&mut self) {
        if self.owner.is_forked() {
            // Only copies are dropped here, the inbox and its messages among them.
            return;
        }
        // No message can come and be lost after this. The messages that are there are dropped outside
        // the lock, because a context may do anything when it is dropped.
        self.inbox.close();
        let engine = &mut self.engine;
        let keep = |post| engine.receive_post(post);
        self.inbox.take(usize::MAX, &mut self.messages, keep);
    }
}

impl<C> fmt::Debug for Watcher<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watcher")
            .field("backend", &self.info)
            .field("connections", &self.engine.conns.open_count())
            .field("pending", &self.engine.pending_count())
            .finish_non_exhaustive()
    }
}
