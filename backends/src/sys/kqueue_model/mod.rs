//! A model of `kqueue(2)` over `epoll(7)`, so that tests on Linux run the code for the BSDs and
//! macOS. No user's build has it: it takes `--cfg gaio_kqueue_model`.
//!
//! It does what the manuals say. Where systems differ, it does what is hardest on its user:
//! - registering again reports a state that holds (NetBSD);
//! - a user event that is added again without `EV_CLEAR` stays triggered (macOS), one that is
//!   triggered with `EV_CLEAR` does not (FreeBSD, DragonFly, NetBSD);
//! - a timer that is added again keeps its time, and no timer takes a time of zero (older NetBSD);
//! - the write end of a pipe without a reader is refused (FreeBSD, macOS);
//! - a device without events is refused with an error of its own (macOS);
//! - a listener that was shut down reports a lost connection for ever (OpenBSD, DragonFly);
//! - another kqueue can be watched for reading only, and has no non-blocking mode (all).
//!
//! With `GAIO_KQUEUE_MODEL=old` there is neither `EV_RECEIPT` nor `EVFILT_USER` (older NetBSD and
//! OpenBSD). With `netbsd` there is neither of them, and besides:
//! - a pipe is refused for writing, at either end, once the other end is gone;
//! - timers run by ticks of 10 ms and may fire a tick early;
//! - `send(2)` waits in spite of `MSG_DONTWAIT`, unless the socket is in non-blocking mode;
//! - writability is reported before readability, and so is the end of a connection;
//! - a listener that was shut down reports nothing.
//!
//! The model is not faithful in some points. Files are refused instead of taken. A socket that was
//! never connected reports an end. Timers fire once only. `fflags` of events are empty. All reads
//! come before all writes (or behind them), whatever their order in time. When a descriptor is
//! closed, its events go; if it has duplicates, they go only once its number means something else.
//! Sockets and pipes are Linux's own: their buffers are larger, bytes on the loopback arrive at
//! once, a connection that was reset keeps its address, and a pipe is writable when a page of it is
//! free.

#![allow(non_camel_case_types)] // The names are the system's.

mod files;
mod ways;

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use libc::{EPOLLERR, EPOLLET, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLRDHUP, c_int, epoll_event};

use self::files::{File, Files, amount, identify};
use self::ways::Ways;
pub(super) use self::ways::{accept_says, heeded, is_queue, listener_reads, may_set_flags};
use super::{check, epoll_add, epoll_create, epoll_del, eventfd, signal_event, timerfd};
use crate::error::Errno;

pub(super) const EVFILT_READ: i16 = -1;
pub(super) const EVFILT_WRITE: i16 = -2;
pub(super) const EVFILT_TIMER: i16 = -7;
pub(super) const EVFILT_USER: i16 = -11;
pub(super) const EV_ADD: u16 = 0x1;
pub(super) const EV_DELETE: u16 = 0x2;
pub(super) const EV_ONESHOT: u16 = 0x10;
pub(super) const EV_CLEAR: u16 = 0x20;
pub(super) const EV_RECEIPT: u16 = 0x40;
pub(super) const EV_ERROR: u16 = 0x4000;
pub(super) const EV_EOF: u16 = 0x8000;
pub(super) const NOTE_TRIGGER: u32 = 0x0100_0000;

/// A change, or an event.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct kevent {
    pub(super) ident: usize,
    pub(super) filter: i16,
    pub(super) flags: u16,
    pub(super) fflags: u32,
    pub(super) data: i64,
    pub(super) udata: *mut c_void,
}

/// All queues, by descriptor.
static QUEUES: Mutex<BTreeMap<RawFd, Arc<Queue>>> = Mutex::new(BTreeMap::new());

/// The number of events fetched from epoll at a time. It is at least the room that callers have,
/// since a queue that gives fewer events than that has no more.
const BATCH: usize = 1024;

/// One kqueue. Its descriptor is an epoll instance that is readable when one of the following is:
/// two other instances, so that a change of one direction is no event of the other, an `eventfd(2)`
/// for all user events, and a `timerfd(2)` for each timer.
struct Queue {
    all: RawFd,
    readers: OwnedFd,
    writers: OwnedFd,
    triggered: OwnedFd,
    ways: Ways,
    notes: Mutex<Notes>,
}

/// The watched filters.
struct Notes {
    files: Files,
    users: BTreeMap<usize, User>,
    timers: BTreeMap<usize, Timer>,
}

struct User {
    change: kevent,
    triggered: bool,
}

struct Timer {
    change: kevent,
    fd: OwnedFd,
}

// SAFETY: the pointers inside are the caller's tokens, which nobody follows, and a table that
// nobody else knows.
unsafe impl Send for Notes {}

/// `kqueue(2)`.
///
/// # Safety
/// None is needed; the system's call is unsafe to make.
pub(super) unsafe fn kqueue() -> c_int {
    Queue::open().unwrap_or_else(fail)
}

/// `kevent(2)`.
///
/// # Safety
/// `changes` is valid for reads of as many changes as said, `events` for writes, `timeout` for a
/// read if it is not null.
pub(super) unsafe fn kevent(
    queue: c_int,
    changes: *const kevent,
    changes_len: c_int,
    events: *mut kevent,
    events_len: c_int,
    timeout: *const libc::timespec,
) -> c_int {
    let Some(queue) = queues().get(&queue).cloned() else {
        return fail(Errno(libc::EBADF));
    };
    // SAFETY: the caller vouches for it.
    let timeout = unsafe { timeout.as_ref() };
    let timeout = timeout.map(|it| Duration::new(it.tv_sec as u64, it.tv_nsec as u32));
    let room = events_len as usize;
    let mut count = 0;
    for at in 0..changes_len as usize {
        // SAFETY: within the list of changes.
        let mut change = unsafe { *changes.add(at) };
        let result = queue.apply(change);
        if result.is_err() || change.flags & EV_RECEIPT != 0 && queue.ways.has_user_events() {
            if count == room {
                return result.map_or_else(fail, |()| 0);
            }
            change.flags = EV_ERROR;
            change.data = result.map_or_else(|errno| errno.0.into(), |()| 0);
            // SAFETY: within the list of events.
            unsafe { *events.add(count) = change };
            count += 1;
        }
    }
    if count > 0 || room == 0 {
        return count as c_int;
    }
    // SAFETY: the caller vouches for the list, and lends it for the call.
    let list = unsafe { std::slice::from_raw_parts_mut(events.cast(), room) };
    queue
        .wait(Out(list.iter_mut()), timeout)
        .unwrap_or_else(fail)
}

/// Forgets a queue whose descriptor is about to be closed.
pub(super) fn closing(queue: RawFd) {
    queues().remove(&queue);
}

fn queues() -> MutexGuard<'static, BTreeMap<RawFd, Arc<Queue>>> {
    QUEUES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn fail(errno: Errno) -> c_int {
    // SAFETY: the location is this thread's own.
    unsafe { *libc::__errno_location() = errno.0 };
    -1
}

impl Queue {
    fn open() -> Result<c_int, Errno> {
        let all = epoll_create()?;
        let queue = Queue {
            all: all.as_raw_fd(),
            readers: epoll_create()?,
            writers: epoll_create()?,
            triggered: eventfd()?,
            ways: Ways::choose()?,
            notes: Mutex::new(Notes {
                files: Files::new()?,
                users: BTreeMap::new(),
                timers: BTreeMap::new(),
            }),
        };
        for part in [&queue.readers, &queue.writers, &queue.triggered] {
            epoll_add(all.as_fd(), part.as_fd(), EPOLLIN, 0)?;
        }
        let all = all.into_raw_fd();
        queues().insert(all, Arc::new(queue));
        Ok(all)
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn apply(&self, change: kevent) -> Result<(), Errno> {
        let notes = &mut *self.notes();
        match change.filter {
            EVFILT_READ | EVFILT_WRITE => self.apply_to_file(&mut notes.files, change),
            EVFILT_TIMER => self.apply_to_timer(&mut notes.timers, change),
            EVFILT_USER if self.ways.has_user_events() => {
                self.apply_to_user(&mut notes.users, change)
            }
            _ => Err(Errno(libc::EINVAL)),
        }
    }

    fn apply_to_file(&self, files: &mut Files, change: kevent) -> Result<(), Errno> {
        let fd = RawFd::try_from(change.ident).map_err(|_| Errno(libc::EBADF))?;
        let (inode, file_type) = identify(fd)?;
        let (instance, mask) = match change.filter {
            EVFILT_READ => (&self.readers, EPOLLIN | EPOLLRDHUP),
            _ => (&self.writers, EPOLLOUT),
        };
        let file = files.get(fd, change.filter).ok_or(Errno(libc::ENOMEM))?;
        let is_known = file.inode == inode;
        // SAFETY: the descriptor was open a moment ago; if it is not, the calls say so.
        let what = unsafe { BorrowedFd::borrow_raw(fd) };
        if change.flags & EV_ADD != 0 {
            if change.filter == EVFILT_WRITE {
                self.ways.may_watch_writing(what, file_type)?;
            }
            if is_known {
                epoll_del(instance.as_fd(), what)?;
            }
            let edge = if change.flags & EV_CLEAR != 0 {
                EPOLLET
            } else {
                0
            };
            epoll_add(instance.as_fd(), what, mask | edge, fd as u64)
                .map_err(|errno| ways::refused(errno, file_type))?;
            *file = File {
                flags: change.flags,
                inode,
                udata: change.udata,
            };
        } else if !is_known {
            return Err(Errno(libc::ENOENT));
        } else if change.flags & EV_DELETE != 0 {
            file.inode = 0;
            epoll_del(instance.as_fd(), what)?;
        }
        Ok(())
    }

    fn apply_to_timer(
        &self,
        timers: &mut BTreeMap<usize, Timer>,
        change: kevent,
    ) -> Result<(), Errno> {
        if change.flags & EV_DELETE != 0 {
            let timer = timers.remove(&change.ident);
            return timer.map(drop).ok_or(Errno(libc::ENOENT));
        }
        if timers.contains_key(&change.ident) {
            return Ok(());
        }
        let ms = u64::try_from(change.data).map_err(|_| Errno(libc::EINVAL))?;
        if change.flags & EV_ADD == 0 || change.flags & EV_ONESHOT == 0 || ms == 0 {
            return Err(Errno(libc::EINVAL));
        }
        let fd = timerfd()?;
        super::arm_timerfd(fd.as_fd(), Some(self.ways.fires_at(ms)));
        // SAFETY: the queue's owner keeps it open while it makes calls.
        let all = unsafe { BorrowedFd::borrow_raw(self.all) };
        epoll_add(all, fd.as_fd(), EPOLLIN, 0)?;
        timers.insert(change.ident, Timer { change, fd });
        Ok(())
    }

    fn apply_to_user(
        &self,
        users: &mut BTreeMap<usize, User>,
        change: kevent,
    ) -> Result<(), Errno> {
        if change.flags & EV_DELETE != 0 {
            return users
                .remove(&change.ident)
                .map(drop)
                .ok_or(Errno(libc::ENOENT));
        }
        let is_new = !users.contains_key(&change.ident);
        if is_new && change.flags & EV_ADD == 0 {
            return Err(Errno(libc::ENOENT));
        }
        let triggered = false;
        let user = users
            .entry(change.ident)
            .or_insert(User { change, triggered });
        user.change.udata = change.udata;
        if change.flags & EV_ADD != 0 {
            user.change.flags = change.flags;
        }
        user.triggered |= change.fflags & NOTE_TRIGGER != 0;
        if !is_new && change.flags & EV_CLEAR != 0 {
            user.triggered = false;
        }
        if user.triggered {
            signal_event(self.triggered.as_fd());
        }
        Ok(())
    }

    fn wait(&self, mut out: Out<'_>, timeout: Option<Duration>) -> Result<c_int, Errno> {
        let room = out.room();
        let end = timeout.map(|timeout| Instant::now() + timeout);
        loop {
            self.collect(&mut out)?;
            let count = room - out.room();
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            if count > 0 || left.is_some_and(|left| left.is_zero()) {
                return Ok(count as c_int);
            }
            let left = left.map(super::timespec);
            let left = left.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
            let mut poll = polled(self.all);
            // SAFETY: one entry and the timeout, borrowed for the call; no signal mask.
            check(unsafe { libc::ppoll(&raw mut poll, 1, left, std::ptr::null()) })?;
        }
    }

    fn collect(&self, out: &mut Out<'_>) -> Result<(), Errno> {
        let Notes {
            files,
            users,
            timers,
        } = &mut *self.notes();
        for user in users.values_mut().filter(|user| user.triggered) {
            user.triggered = user.change.flags & EV_CLEAR == 0;
            out.put(user.change);
        }
        if !users.values().any(|user| user.triggered) {
            super::clear_event(self.triggered.as_fd());
        }
        timers.retain(|_, timer| {
            let fired = poll(timer.fd.as_raw_fd()) & libc::POLLIN != 0;
            if fired {
                out.put(kevent {
                    data: 1,
                    ..timer.change
                });
            }
            !fired
        });
        let mut both = [(&self.readers, EVFILT_READ), (&self.writers, EVFILT_WRITE)];
        if self.ways == Ways::NetBsd {
            both.reverse();
        }
        for (instance, filter) in both {
            collect_files(instance, filter, files, out)?;
        }
        Ok(())
    }
}

fn collect_files(
    instance: &OwnedFd,
    filter: i16,
    files: &mut Files,
    out: &mut Out<'_>,
) -> Result<(), Errno> {
    let mut ready = [epoll_event { events: 0, u64: 0 }; BATCH];
    let room = BATCH.min(out.room()) as c_int;
    if room == 0 {
        return Ok(());
    }
    // SAFETY: the array has room for as many events, and is borrowed for the call.
    let count =
        check(unsafe { libc::epoll_wait(instance.as_raw_fd(), ready.as_mut_ptr(), room, 0) })?;
    for event in &ready[..count as usize] {
        let (fd, events) = (event.u64 as RawFd, event.events as c_int);
        let Some(file) = files.get(fd, filter) else {
            continue;
        };
        if identify(fd).map(|(inode, _)| inode) != Ok(file.inode) {
            file.inode = 0; // The descriptor was closed.
            continue;
        }
        let is_end = events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR) != 0;
        out.put(kevent {
            ident: fd as usize,
            filter,
            flags: file.flags | if is_end { EV_EOF } else { 0 },
            fflags: 0,
            data: amount(fd, filter),
            udata: file.udata,
        });
    }
    Ok(())
}

/// The empty rest of the caller's list of events.
struct Out<'a>(std::slice::IterMut<'a, MaybeUninit<kevent>>);

impl Out<'_> {
    fn room(&self) -> usize {
        self.0.len()
    }

    /// Adds an event. Without room it is lost; the callers of this model have plenty.
    fn put(&mut self, event: kevent) {
        if let Some(slot) = self.0.next() {
            slot.write(event);
        }
    }
}

fn polled(fd: RawFd) -> libc::pollfd {
    libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    }
}

/// The present events of `poll(2)`.
fn poll(fd: RawFd) -> libc::c_short {
    let mut poll = polled(fd);
    // SAFETY: one entry, borrowed for the call.
    unsafe { libc::poll(&raw mut poll, 1, 0) };
    poll.revents
}
