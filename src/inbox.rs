//! The queues from `Remote`s to their watcher, and its wake-up. The next turn takes all requests. It
//! takes posted messages only as far as it has room for their results.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use gaio_backends::{Errno, Lane, SocketKind, Waker, is_overgrown};

use crate::conn::{Conn, ConnIds};
use crate::request::{OpId, OpIds, Submission};

/// Shared by a watcher and its `Remote`s.
#[derive(Debug)]
pub(crate) struct Inbox<C> {
    queue: Mutex<Queue<C>>,
    /// Whether something is in the queue, or it was closed. Spares the watcher the lock.
    pending: AtomicBool,
    pub(crate) waker: Arc<Waker>,
    pub(crate) conns: Arc<ConnIds>,
}

#[derive(Debug)]
struct Queue<C> {
    messages: Vec<Message<C>>,
    posts: VecDeque<Post<C>>,
    ops: OpIds,
    /// The next turn is to return, even without a result.
    woken: bool,
    closed: bool,
}

#[derive(Debug)]
pub(crate) enum Message<C> {
    Submit {
        op: OpId,
        conn: Conn,
        submission: Submission<C>,
    },
    Connect {
        op: OpId,
        conn: Conn,
        socket: Result<OwnedFd, Errno>,
        submission: Submission<C>,
    },
    Delegate {
        conn: Conn,
        socket: OwnedFd,
        kind: SocketKind,
    },
    Cancel(OpId),
    CancelLane(Conn, Lane),
    SetDeadline(OpId, Option<Instant>),
    Free(Conn),
}

/// A message from the program to itself.
#[derive(Debug)]
pub(crate) struct Post<C> {
    pub(crate) op: OpId,
    pub(crate) context: C,
}

/// What else the inbox tells the watcher.
#[derive(Debug)]
pub(crate) struct Signals {
    /// The turn is to return, even without a result.
    pub(crate) woken: bool,
    /// The inbox was closed, and nothing is left.
    pub(crate) closed: bool,
}

impl<C> Inbox<C> {
    pub(crate) fn new(waker: Arc<Waker>, conns: Arc<ConnIds>) -> Self {
        Inbox {
            queue: Mutex::new(Queue {
                messages: Vec::new(),
                posts: VecDeque::new(),
                ops: OpIds::new(),
                woken: false,
                closed: false,
            }),
            pending: AtomicBool::new(false),
            waker,
            conns,
        }
    }

    /// Appends the message that `make` makes of a fresh number.
    ///
    /// # Errors
    /// The `parts` come back if the watcher is closed, or in a forked child.
    pub(crate) fn send<T>(
        &self,
        parts: T,
        make: impl FnOnce(OpId, T) -> Message<C>,
    ) -> Result<OpId, T> {
        self.add(parts, |queue, op, parts| {
            queue.messages.push(make(op, parts))
        })
    }

    /// Appends a message that becomes a result.
    ///
    /// # Errors
    /// As [`send`](Inbox::send).
    pub(crate) fn post(&self, context: C) -> Result<OpId, C> {
        self.add(context, |queue, op, context| {
            queue.posts.push_back(Post { op, context });
        })
    }

    /// Ends the watcher's next turn, or the present one, without a message.
    ///
    /// # Errors
    /// As [`send`](Inbox::send).
    pub(crate) fn wake(&self) -> Result<(), ()> {
        self.add((), |queue, _, ()| queue.woken = true).map(drop)
    }

    fn add<T>(&self, parts: T, add: impl FnOnce(&mut Queue<C>, OpId, T)) -> Result<OpId, T> {
        if self.is_forked() {
            return Err(parts);
        }
        let mut queue = self.lock();
        if queue.closed {
            return Err(parts);
        }
        let op = queue.ops.next();
        add(&mut queue, op, parts);
        drop(queue);
        self.notify();
        Ok(op)
    }

    /// Takes no more messages. The watcher finds out at its next turn.
    pub(crate) fn close(&self) {
        if !self.is_forked() {
            self.lock().closed = true;
            self.notify();
        }
    }

    /// Whether this is a forked child. It must not take the lock, which another thread of the parent
    /// may have held at the fork.
    pub(crate) fn is_forked(&self) -> bool {
        !self.waker.process().is_current()
    }

    /// Whether there may be something to take.
    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// Takes all requests into `messages`, which is empty, and hands at most `posts_max` posted
    /// messages to `give`, under the lock.
    pub(crate) fn take(
        &self,
        posts_max: usize,
        messages: &mut Vec<Message<C>>,
        give: impl FnMut(Post<C>),
    ) -> Signals {
        debug_assert!(messages.is_empty());
        let mut queue = self.lock();
        std::mem::swap(&mut queue.messages, messages);
        let posts = &mut queue.posts;
        posts.drain(..posts_max.min(posts.len())).for_each(give);
        if is_overgrown(posts.len(), posts.capacity()) {
            posts.shrink_to_fit();
        }
        let is_empty = posts.is_empty();
        self.pending.store(!is_empty, Ordering::Relaxed);
        Signals {
            woken: std::mem::take(&mut queue.woken),
            closed: queue.closed && is_empty,
        }
    }

    fn notify(&self) {
        self.pending.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn lock(&self) -> MutexGuard<'_, Queue<C>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
