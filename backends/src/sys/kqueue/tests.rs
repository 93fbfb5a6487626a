//! Tests of the properties of kqueue that `emulated/kqueue.rs` relies on, with the real system or
//! the model.

#![allow(clippy::unwrap_used)]

use std::io::{Read, Write, pipe};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Instant;

use super::*;

const TOKEN: u64 = 7 << 32 | 3;

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (listener.accept().unwrap().0, peer)
}

/// The time for which a test waits for an event. Only a hang takes that long.
const PATIENCE: Duration = Duration::from_secs(30);

/// The time for which a test makes sure that there is no event.
const GLANCE: Duration = Duration::from_millis(20);

/// The first event: filter, token, and whether it is the end.
fn happened(queue: &Kqueue) -> Vec<(bool, u64, bool)> {
    within(queue, PATIENCE)
}

fn within(queue: &Kqueue, time: Duration) -> Vec<(bool, u64, bool)> {
    let mut events = Vec::with_capacity(16);
    queue.wait(&mut events, Some(time)).unwrap();
    let tell = |it: &Event| (it.is_write(), it.token(), it.is_end());
    events.iter().map(tell).collect()
}

/// Asserts that nothing happens.
fn silent(queue: &Kqueue, why: &str) {
    assert_eq!(within(queue, GLANCE), [], "{why}");
}

/// Waits until there is something to read.
fn arrived(socket: &impl AsFd) {
    let fd = socket.as_fd().as_raw_fd();
    let end = Instant::now() + PATIENCE;
    while !crate::sys::is_ready(fd, crate::Interest::Readable).unwrap() {
        assert!(Instant::now() < end, "nothing arrived");
    }
}

/// A queue that watches one end of a connection for what can be read, and the other end.
fn watching() -> (Kqueue, TcpStream, TcpStream) {
    let (ours, peer) = pair();
    let queue = Kqueue::new().unwrap();
    let watch = Event::watch(Filter::Read, ours.as_raw_fd(), TOKEN);
    assert_eq!(queue.apply([watch]).unwrap(), [Ok(())]);
    (queue, ours, peer)
}

const DATA: (bool, u64, bool) = (false, TOKEN, false);
const END: (bool, u64, bool) = (false, TOKEN, true);

#[test]
fn only_changes_are_told() {
    let (queue, mut ours, mut peer) = watching();
    silent(&queue, "nothing is new");
    peer.write_all(b"ab").unwrap();
    assert_eq!(happened(&queue), [DATA]);
    silent(&queue, "it is not told again");
    ours.read_exact(&mut [0]).unwrap();
    silent(&queue, "reading a part is no change");
    peer.write_all(b"c").unwrap();
    assert_eq!(happened(&queue), [DATA]);
    peer.shutdown(Shutdown::Write).unwrap();
    assert_eq!(happened(&queue), [END]);
    silent(&queue, "nothing is new");
}

#[test]
fn a_state_that_holds_is_told_at_the_registration() {
    let (ours, mut peer) = pair();
    peer.write_all(b"x").unwrap();
    arrived(&ours);
    let queue = Kqueue::new().unwrap();
    let fd = ours.as_raw_fd();
    let read = Event::watch(Filter::Read, fd, TOKEN);
    let write = Event::watch(Filter::Write, fd, TOKEN);
    assert_eq!(queue.apply([read, write]).unwrap(), [Ok(()), Ok(())]);
    let mut both = happened(&queue);
    both.sort_unstable();
    assert_eq!(both, [DATA, (true, TOKEN, false)]);
    silent(&queue, "nothing is new");
}

#[test]
fn what_is_forgotten_is_silent() {
    let (queue, ours, mut peer) = watching();
    let duplicate = ours.try_clone().unwrap();
    peer.write_all(b"x").unwrap();
    arrived(&ours);
    let forget = Event::forget(Filter::Read, ours.as_raw_fd() as usize);
    assert_eq!(queue.apply([forget]).unwrap(), [Ok(())]);
    silent(&queue, "not collected is gone, too");
    peer.write_all(b"x").unwrap();
    silent(&queue, "nothing is new");
    assert_eq!(queue.apply([forget]).unwrap(), [Err(Errno(libc::ENOENT))]);
    drop(duplicate);
}

#[test]
fn refusals_are_answers_and_not_events() {
    let (queue, ours, mut peer) = watching();
    peer.write_all(b"x").unwrap();
    arrived(&ours);
    let good = Event::timer(9, TOKEN, FAR_MS);
    let bad = Event::watch(Filter::Read, 1 << 20, TOKEN);
    let answers = queue.apply([bad, good]).unwrap();
    assert_eq!(answers, [Err(Errno(libc::EBADF)), Ok(())]);
    assert_eq!(happened(&queue), [DATA], "no answer took its place");
}

#[test]
fn a_pipe_that_nobody_reads_ends() {
    let (reader, writer) = pipe().unwrap();
    let queue = Kqueue::new().unwrap();
    let watch = Event::watch(Filter::Write, writer.as_raw_fd(), TOKEN);
    assert_eq!(queue.apply([watch]).unwrap(), [Ok(())]);
    assert_eq!(happened(&queue), [(true, TOKEN, false)]);
    drop(reader);
    assert_eq!(happened(&queue), [(true, TOKEN, true)]);
}

#[test]
fn a_timer_fires_once_and_starts_anew() {
    let queue = Kqueue::new().unwrap();
    for _ in 0..2 {
        let stop = Event::forget(Filter::Timer, 1);
        // The second one would come too late, were it not for the stop.
        for ms in [FAR_MS, 1] {
            let start = Event::timer(1, TOKEN, ms);
            assert_eq!(queue.apply([stop, start]).unwrap()[1], Ok(()));
        }
        assert_eq!(happened(&queue), [DATA]);
        silent(&queue, "nothing is new");
    }
}

/// Systems without user events have nothing to ask here.
#[test]
fn a_user_event_is_seen_once_and_can_be_triggered_again() {
    let queue = Kqueue::new().unwrap();
    if queue.apply([Event::user(1, TOKEN)]).unwrap() != [Ok(())] {
        return;
    }
    silent(&queue, "nothing is new");
    for _ in 0..3 {
        queue.trigger(1, TOKEN);
        queue.trigger(1, TOKEN);
        assert_eq!(happened(&queue), [DATA], "two triggers are one event");
        silent(&queue, "nothing is new");
    }
}

/// A queue is a descriptor that can be waited for, too.
#[test]
fn is_readable_while_there_are_events() {
    let readable = |queue: &Kqueue| {
        let fd = queue.as_fd().as_raw_fd();
        crate::sys::is_ready(fd, crate::Interest::Readable).unwrap()
    };
    let (queue, ours, mut peer) = watching();
    assert!(!readable(&queue));
    peer.write_all(b"x").unwrap();
    // The queue is readable once the byte is reported, not once it is there.
    let end = Instant::now() + PATIENCE;
    while !readable(&queue) {
        assert!(Instant::now() < end, "nobody tells");
    }
    assert_eq!(happened(&queue), [DATA]);
    assert!(!readable(&queue));
    drop(ours);
}

/// Another queue can watch it, for reading only.
#[test]
fn is_watched_by_another_queue() {
    let (inner, ours, mut peer) = watching();
    let outer = Kqueue::new().unwrap();
    let fd = inner.as_fd().as_raw_fd();
    let read = Event::watch(Filter::Read, fd, TOKEN);
    let write = Event::watch(Filter::Write, fd, TOKEN);
    let [read, write] = outer.apply([read, write]).unwrap();
    assert_eq!(read, Ok(()));
    let words = [libc::EINVAL, libc::EOPNOTSUPP, libc::EPERM].map(|it| Err(Errno(it)));
    assert!(words.contains(&write), "{write:?}");
    for _ in 0..2 {
        silent(&outer, "nothing is new");
        peer.write_all(b"x").unwrap();
        assert_eq!(happened(&outer), [DATA]);
        assert_eq!(happened(&inner), [DATA]);
        (&ours).read_exact(&mut [0]).unwrap();
    }
}
