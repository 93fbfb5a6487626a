//! How much a stream holds at most: its window, and less while little is left of the pool. What makes it go
//! on, and what does not.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::VecDeque;
use std::io::Write;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use common::{
    GLANCE, PATIENCE, backends, builder, connect_to, is_pattern, next, pattern, quiet,
    reads_at_once, turn, until, write_pattern,
};
use gaio::{BackendKind, Conn, OpResult, Results, Watcher};

const KIB: usize = 1 << 10;
const MESSAGE: usize = KIB;
const BUFFER: usize = 4 * KIB;
const POOL: usize = 64 * BUFFER;
/// So little of the pool is left that streams hold less.
const SCARCE: usize = POOL / 4;
/// What a stream may hold then.
const LITTLE: usize = 16 * KIB;
/// What it holds when it has given most of that back.
const LEAST: usize = 4 * KIB;

/// A stream of messages whose leases are kept, on a pool of which others keep a part.
struct Stream {
    watcher: Watcher<Conn>,
    conn: Conn,
    peer: TcpStream,
    sent: usize,
    seen: usize,
    /// How much it may take before it has stopped.
    late: usize,
    held: VecDeque<OpResult<Conn>>,
    kept_by_others: Vec<OpResult<Conn>>,
}

impl Stream {
    /// One that has begun when so much of the pool is left.
    fn new(kind: BackendKind, window: usize, left: usize) -> Self {
        let builder = builder(kind).swap_buffer_size(BUFFER);
        let builder = builder.swap_buffers(POOL / BUFFER).stream_window(window);
        let mut watcher = builder.build().unwrap();
        let (other, mut other_peer) = connect_to(&mut watcher);
        let mut kept_by_others = Vec::new();
        let mut kept = 0;
        while kept < POOL - left {
            other_peer.write_all(&[0; MESSAGE]).unwrap();
            watcher.read(other, other, None).unwrap();
            let res = next(&mut watcher);
            kept += res.size;
            kept_by_others.push(res);
        }
        let (conn, peer) = connect_to(&mut watcher);
        watcher.read_stream(conn, conn).unwrap();
        let late = if reads_at_once(&watcher) { MESSAGE } else { 0 };
        Stream {
            watcher,
            late,
            conn,
            peer,
            sent: 0,
            seen: 0,
            held: VecDeque::new(),
            kept_by_others,
        }
    }

    /// Sends one more message.
    fn send(&mut self) {
        self.peer.write_all(pattern(self.sent, MESSAGE)).unwrap();
        self.sent += MESSAGE;
    }

    /// Takes one result, if there is one in this time: how many bytes.
    fn take(&mut self, within: Duration) -> usize {
        let mut results = Results::with_capacity(1);
        self.watcher.wait_io_timeout(&mut results, within).unwrap();
        let Some(res) = results.pop() else { return 0 };
        assert!(res.error.is_none() && is_pattern(self.seen, res.data()));
        let size = res.size;
        self.seen += size;
        self.held.push_back(res);
        size
    }

    fn unread(&self) -> usize {
        unread(&self.watcher, self.conn)
    }

    /// Waits until every byte was taken, or waits in the socket.
    fn arrive(&mut self) {
        until("all is there", || {
            self.take(GLANCE / 10);
            self.seen + self.unread() == self.sent
        });
    }

    /// Sends message by message until one is not taken. What the stream holds then.
    fn until_it_stops(&mut self) -> usize {
        while self.sent < 2 * POOL {
            self.send();
            self.arrive();
            if self.unread() > 0 && self.take(GLANCE) == 0 {
                return self.held_bytes();
            }
        }
        panic!("it never stops");
    }

    fn held_bytes(&self) -> usize {
        self.held.iter().map(|res| res.size).sum()
    }

    /// Gives back leases, the oldest first, until no more than so much is left. Only then it goes on.
    fn give_back_to(&mut self, least: usize) {
        while self.held_bytes() > least {
            assert_eq!(
                self.take(Duration::ZERO),
                0,
                "with {} held",
                self.held_bytes()
            );
            self.held.pop_front();
        }
        assert!(self.take(PATIENCE) > 0, "it does not go on");
    }
}

backends! {
    /// While little is left, a stream stops soon. It goes on when it has given most of that back.
    fn little_while_little_is_left(kind: BackendKind) {
        let mut stream = Stream::new(kind, 2 * POOL, SCARCE - 4 * KIB);
        for round in 0..3 {
            let held = stream.until_it_stops();
            assert!(LITTLE < held && held <= LITTLE + MESSAGE + stream.late, "{held}, round {round}");
            quiet(&mut stream.watcher);
            stream.give_back_to(LEAST);
        }
    }

    /// A stream may hold more as long as that leaves a quarter of the pool.
    fn more_while_enough_is_left(kind: BackendKind) {
        const MORE: usize = 36 * KIB;
        let mut stream = Stream::new(kind, 2 * POOL, SCARCE + MORE);
        let held = stream.until_it_stops();
        assert!(MORE < held && held <= MORE + BUFFER, "{held}");
    }

    /// When others give back what they kept, on any thread, a stream goes on up to its window.
    fn others_give_back(kind: BackendKind) {
        let window = LITTLE + 8 * KIB;
        let mut stream = Stream::new(kind, window, SCARCE - 4 * KIB);
        stream.until_it_stops();
        let kept = std::mem::take(&mut stream.kept_by_others);
        thread::scope(|scope| {
            scope.spawn(|| {
                // Most likely, the watcher sleeps by then.
                thread::sleep(GLANCE);
                drop(kept);
            });
            assert!(stream.take(PATIENCE) > 0, "it does not go on");
        });
        let held = stream.until_it_stops();
        assert!(window < held && held <= window + MESSAGE + stream.late, "{held}");
    }

    /// A stream over its window goes on when half of that is back.
    fn half_of_the_window(kind: BackendKind) {
        const WINDOW: usize = 8 * KIB;
        let mut stream = Stream::new(kind, WINDOW, POOL);
        for _ in 0..3 {
            let held = stream.until_it_stops();
            assert!(WINDOW < held && held <= WINDOW + MESSAGE + stream.late, "{held}");
            quiet(&mut stream.watcher);
            stream.give_back_to(WINDOW / 2);
        }
    }

    /// That is so, too, if some came back before it had stopped.
    fn a_little_back_at_once(kind: BackendKind) {
        const WINDOW: usize = 8 * KIB;
        let mut stream = Stream::new(kind, WINDOW, POOL);
        if stream.late > 0 {
            // The message after that may be taken before the stream has stopped.
            return;
        }
        while stream.held_bytes() <= WINDOW {
            stream.send();
            until("it is taken", || stream.take(GLANCE) > 0);
        }
        while stream.held_bytes() > WINDOW - MESSAGE {
            stream.held.pop_front();
        }
        stream.send();
        stream.arrive();
        assert_eq!(stream.unread(), MESSAGE);
        stream.give_back_to(WINDOW / 2);
    }

    /// Streams that take turns stop at their windows, too: only the first could take much before.
    fn in_turns_each_keeps_its_window(kind: BackendKind) {
        const STREAMS: usize = 4;
        const SIZE: usize = 2 * KIB;
        const WINDOW: usize = 2 * SIZE;
        const EACH: usize = 48 * KIB;
        let builder = builder(kind).swap_buffer_size(SIZE).swap_buffers(256);
        let mut watcher = builder.stream_window(WINDOW).build().unwrap();
        let mut peers = Vec::new();
        for index in 0..STREAMS {
            let (conn, mut peer) = connect_to(&mut watcher);
            write_pattern(&mut peer, index, EACH);
            until("all is there", || unread(&watcher, conn) == EACH);
            peers.push((conn, peer));
        }
        for &(conn, _) in &peers {
            watcher.read_stream(conn, conn).unwrap();
        }
        let mut held = Vec::new();
        let mut results = Results::new();
        while watcher.wait_io_timeout(&mut results, GLANCE).unwrap() > 0 {
            held.extend(results.drain());
        }
        let of = |conn| held.iter().filter(move |res: &&OpResult<Conn>| res.conn == conn);
        let mut bytes: Vec<usize> = peers
            .iter()
            .map(|&(conn, _)| of(conn).map(|res| res.size).sum())
            .collect();
        bytes.sort();
        // What a ring has lent at a time is 16 buffers; some may be lent again meanwhile.
        assert!(bytes[STREAMS - 1] < EACH, "{bytes:?}");
        assert!(bytes[STREAMS - 2] <= WINDOW + 2 * SIZE, "{bytes:?}");
    }

    /// A stream that finds no buffer at hand, and is the only one, does not take turns with itself.
    fn alone_it_takes_all(kind: BackendKind) {
        const ALL: usize = 40 * KIB;
        let builder = builder(kind).swap_buffer_size(KIB).swap_buffers(64);
        let mut watcher = builder.build().unwrap();
        if kind == BackendKind::IoUring && !watcher.backend().features().contains(&"multishot") {
            // The ring reads one buffer a turn.
            return;
        }
        let (conn, mut peer) = connect_to(&mut watcher);
        write_pattern(&mut peer, 0, ALL);
        until("all is there", || unread(&watcher, conn) == ALL);
        watcher.read_stream(conn, conn).unwrap();
        let mut results = Results::new();
        let (mut seen, mut turns) = (0, 0);
        while seen < ALL {
            turn(&mut watcher, &mut results);
            turns += 1;
            for res in results.drain() {
                assert!(res.error.is_none() && is_pattern(seen, res.data()));
                seen += res.size;
            }
        }
        assert!(turns <= 15, "{turns} turns");
    }
}

/// Bytes that wait in the socket.
fn unread<C>(watcher: &Watcher<C>, conn: Conn) -> usize {
    let socket = watcher.socket(conn).unwrap();
    let mut count: libc::c_int = 0;
    // SAFETY: the call writes one number, there.
    let asked = unsafe { libc::ioctl(socket.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    assert_eq!(asked, 0);
    usize::try_from(count).unwrap()
}
