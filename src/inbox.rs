//! The queue from `Remote`s to their watcher, and its wake-up.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gaio_backends::{Errno, SocketKind, Waker};

use crate::conn::{Conn, ConnIds};
use crate::request::{OpId, OpIds, Order};

/// Shared by a watcher and its `Remote`s.
#[derive(Debug)]
pub(crate) struct Inbox<C> {
    queue: Mutex<Queue<C>>,
    /// Something is in the queue, or it was closed: saves the watcher the lock.
    pending: AtomicBool,
    pub(crate) waker: Arc<Waker>,
    pub(crate) conns: Arc<ConnIds>,
}

#[derive(Debug)]
struct Queue<C> {
    messages: Vec<Message<C>>,
    ops: OpIds,
    closed: bool,
}

#[derive(Debug)]
pub(crate) enum Message<C> {
    Submit {
        op: OpId,
        conn: Conn,
        order: Order<C>,
    },
    Connect {
        op: OpId,
        conn: Conn,
        socket: Result<OwnedFd, Errno>,
        order: Order<C>,
    },
    Delegate {
        conn: Conn,
        socket: OwnedFd,
        kind: SocketKind,
    },
    Post {
        op: OpId,
        context: C,
    },
    Cancel(OpId),
    Free(Conn),
}

impl<C> Inbox<C> {
    pub(crate) fn new(waker: Arc<Waker>, conns: Arc<ConnIds>) -> Self {
        Inbox {
            queue: Mutex::new(Queue {
                messages: Vec::new(),
                ops: OpIds::new(),
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
    /// What went into `make`, if the watcher is closed or this is a forked child.
    pub(crate) fn send<T>(
        &self,
        what: T,
        make: impl FnOnce(OpId, T) -> Message<C>,
    ) -> Result<OpId, T> {
        if self.is_forked() {
            return Err(what);
        }
        let mut queue = self.lock();
        if queue.closed {
            return Err(what);
        }
        let op = queue.ops.next();
        queue.messages.push(make(op, what));
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

    /// Whether this is a forked child: another thread of the parent may have held a lock at the fork.
    pub(crate) fn is_forked(&self) -> bool {
        !self.waker.process().is_current()
    }

    /// Whether a look is worth it.
    #[inline]
    pub(crate) fn is_pending(&self) -> bool {
        self.pending.load(Ordering::Acquire)
    }

    /// Swaps all messages into `into`, which is empty, and says whether it was closed.
    pub(crate) fn take(&self, into: &mut Vec<Message<C>>) -> bool {
        self.pending.store(false, Ordering::Relaxed);
        let mut queue = self.lock();
        std::mem::swap(&mut queue.messages, into);
        queue.closed
    }

    fn notify(&self) {
        self.pending.store(true, Ordering::Release);
        self.waker.wake();
    }

    fn lock(&self) -> MutexGuard<'_, Queue<C>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
