//! Drives the backend through the trait, as the watcher does, over real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
#[cfg(target_os = "linux")]
use std::os::unix::net::UnixListener;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use socket2::SockRef;

#[cfg(not(gaio_kqueue))]
use super::epoll::Epoll as System;
#[cfg(gaio_kqueue)]
use super::kqueue::Kqueue as System;
use super::*;
use crate::{Address, Buffer, Completion, Credit, Interest, Lane, Load, Payload, SwapBuf};

const BLOCK: usize = Options::SMALL.swap_buffer_size;

/// Long enough for anything that is going to happen.
const SOON: Duration = Duration::from_secs(5);

/// A completion, and what it brought.
#[derive(Debug)]
struct Completed {
    at: Place,
    more: bool,
    result: Result<u32, Errno>,
    payload: Payload,
}

/// Takes completions as the watcher does.
#[derive(Default)]
struct Gathered(Vec<Completed>);

impl Sink<Emulated<System>> for Gathered {
    fn received(&mut self, backend: &mut Emulated<System>, at: Place, lease: SwapBuf) {
        let last = Completion::last(at, Ok(lease.len() as u32));
        self.completed(backend, last, Payload::Lease(lease));
    }

    fn streamed(&mut self, backend: &mut Emulated<System>, at: Place, lease: SwapBuf) {
        let step = Completion {
            more: true,
            ..Completion::last(at, Ok(lease.len() as u32))
        };
        self.completed(backend, step, Payload::Lease(lease));
    }

    /// The buffer goes back, to be looked at.
    fn wrote(&mut self, backend: &mut Emulated<System>, at: Place, buffer: Buffer, size: usize) {
        backend.loads().put_buffer(at, buffer, 0);
        self.completed(
            backend,
            Completion::last(at, Ok(size as u32)),
            Payload::None,
        );
    }

    fn completed(&mut self, _: &mut Emulated<System>, completion: Completion, payload: Payload) {
        let Completion { at, more, result } = completion;
        self.0.push(Completed {
            at,
            more,
            result,
            payload,
        });
    }
}

struct Rig {
    backend: Emulated<System>,
    /// Writes that were over when they were started.
    at_once: Gathered,
    /// What the last `wait` returned.
    more: bool,
}

impl Rig {
    fn new() -> Self {
        Rig::with_blocks(4)
    }

    fn with_blocks(swap_buffers: usize) -> Self {
        let options = Options {
            swap_buffers,
            ..Options::SMALL
        };
        Rig {
            backend: Emulated::new(&options).expect("a poller"),
            at_once: Gathered::default(),
            more: false,
        }
    }

    /// A connection in `slot`, and its peer.
    fn pair(&mut self, slot: u32) -> TcpStream {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (ours, _) = listener.accept().unwrap();
        peer.set_read_timeout(Some(SOON)).unwrap();
        self.attach(slot, ours, SocketKind::Stream);
        peer
    }

    fn attach(&mut self, slot: u32, socket: impl Into<OwnedFd>, kind: SocketKind) {
        self.backend.attach(slot, socket.into(), kind).unwrap();
    }

    fn start(&mut self, slot: u32, lane: Lane, request: Request) {
        self.backend.start(Place::new(slot, lane), request);
    }

    /// Opens the account of a connection.
    fn open_credit(&mut self, slot: u32) {
        let thresholds = self.backend.pool().thresholds(0);
        self.backend.loads().open_credit(slot, thresholds);
    }

    /// What that account is charged with.
    fn leased_bytes(&mut self, slot: u32) -> u64 {
        let credit = self.backend.loads().credit(slot);
        credit.map_or(0, Credit::leased_bytes)
    }

    fn start_with(&mut self, slot: u32, lane: Lane, request: Request, load: Load) {
        self.backend.loads().put(Place::new(slot, lane), load);
        self.start(slot, lane, request);
    }

    fn read_own(&mut self, slot: u32, len: usize) {
        let load = Load::Buffer(vec![0; len].into());
        self.start_with(slot, Lane::Read, Request::Read, load);
    }

    fn write(&mut self, slot: u32, bytes: impl Into<Buffer>) {
        self.take(slot, Lane::Write);
        let at = Place::new(slot, Lane::Write);
        self.backend.loads().put(at, Load::Buffer(bytes.into()));
        if let Some((buffer, size)) = self.backend.start_write(at) {
            self.at_once.wrote(&mut self.backend, at, buffer, size);
        }
    }

    fn cancel(&mut self, slot: u32, lane: Lane, last_try: bool) {
        self.backend.cancel(Place::new(slot, lane), last_try);
    }

    /// What the lane's request carries, and how much of it the watcher counted as transferred.
    fn take(&mut self, slot: u32, lane: Lane) -> (Buffer, usize) {
        let (load, done) = self.backend.loads().take(Place::new(slot, lane));
        (load.into_buffer(), done)
    }

    /// Counts a transfer, as the watcher does; whether that was all.
    fn advance(&mut self, completion: &Completed) -> bool {
        let len = completion.result.unwrap() as usize;
        self.backend.loads().advance(completion.at, len)
    }

    /// One turn.
    fn turn(&mut self, until: Until, max: usize) -> Vec<Completed> {
        self.backend.wait(until).unwrap();
        let mut gathered = std::mem::take(&mut self.at_once);
        // As the watcher, which always has room for one more.
        let room = max.saturating_sub(gathered.0.len()).max(1);
        self.backend.collect(room, &mut gathered);
        let all = gathered.0;
        self.more = self.backend.has_work();
        all
    }

    /// Turns until something is complete.
    fn completions(&mut self) -> Vec<Completed> {
        let at = Instant::now() + SOON;
        loop {
            let all = self.turn(Until::Time(at), usize::MAX);
            if !all.is_empty() {
                return all;
            }
            assert!(Instant::now() < at, "nothing completes");
        }
    }

    fn one(&mut self) -> Completed {
        let mut all = self.completions();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    /// Turns until nothing is left to do now; nothing must complete.
    fn quiet(&mut self) {
        for _ in 0..3 {
            let all = self.turn(Until::Time(Instant::now() + Duration::from_millis(5)), 99);
            assert!(all.is_empty(), "{all:?}");
        }
    }
}

fn lease(completion: Completed) -> SwapBuf {
    match completion.payload {
        Payload::Lease(lease) => lease,
        other => panic!("no lease: {other:?}"),
    }
}

fn errno(completion: &Completed) -> i32 {
    completion.result.expect_err("an error").0
}

fn is_nonblocking(fd: &impl AsFd) -> bool {
    let on = sys::set_nonblocking(fd.as_fd(), true).unwrap();
    sys::set_nonblocking(fd.as_fd(), on).unwrap();
    on
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    use std::os::fd::AsRawFd;
    sys::is_ready(fd.as_raw_fd(), Interest::Readable).unwrap()
}

#[test]
fn echo_costs_three_calls() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    rig.quiet();
    let before = *rig.backend.counts();
    for round in 0..100u8 {
        rig.start(0, Lane::Read, Request::ReadSwap);
        peer.write_all(&[round; 100]).unwrap();
        let read = rig.one();
        assert_eq!((read.at, read.more), (Place::new(0, Lane::Read), false));
        assert_eq!(read.result, Ok(100));
        rig.write(0, lease(read));
        assert_eq!(rig.one().result, Ok(100));
        assert_eq!(rig.take(0, Lane::Write).0[..], [round; 100]);
        let mut echoed = [0; 100];
        peer.read_exact(&mut echoed).unwrap();
        assert_eq!(echoed, [round; 100]);
    }
    let after = *rig.backend.counts();
    assert_eq!(after.waits - before.waits, 100);
    assert_eq!(after.reads - before.reads, 100);
    assert_eq!(after.writes - before.writes, 100);
    assert_eq!(after.others, before.others);
}

#[test]
fn never_skips_events_twice() {
    let mut rig = Rig::new();
    let _peer = rig.pair(0);
    rig.quiet();
    for expected in [0, 1, 0, 1] {
        let before = rig.backend.counts().waits;
        rig.write(0, b"x");
        assert_eq!(rig.turn(Until::Now, 99).len(), 1);
        assert_eq!(rig.backend.counts().waits - before, expected);
    }
}

#[test]
fn small_reads_lie_side_by_side() {
    let mut rig = Rig::new();
    let mut peers: Vec<_> = (0..10).map(|slot| rig.pair(slot)).collect();
    for slot in 0..10 {
        rig.start(slot, Lane::Read, Request::ReadSwap);
    }
    for peer in &mut peers {
        peer.write_all(b"0123456789").unwrap();
    }
    let mut leases = Vec::new();
    while leases.len() < 10 {
        leases.extend(rig.completions().into_iter().map(lease));
    }
    let usage = rig.backend.pool().usage();
    assert_eq!((usage.blocks_out, usage.leases), (1, 10));
    assert!(leases.iter().all(|lease| **lease == *b"0123456789"));
}

#[test]
fn own_vector_is_filled_behind_its_head() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    rig.read_own(0, 10);
    for (part, all) in [(b"abcd", false), (b"efgh", false)] {
        peer.write_all(part).unwrap();
        let read = rig.one();
        assert_eq!(read.result, Ok(4));
        assert_eq!(rig.advance(&read), all);
        rig.start(0, Lane::Read, Request::Read);
    }
    peer.write_all(b"ijk").unwrap();
    let read = rig.one();
    assert!(rig.advance(&read));
    let (buffer, done) = rig.take(0, Lane::Read);
    assert_eq!((&buffer[..], done), (&b"abcdefghij"[..], 10));
}

#[test]
fn full_read_leaves_the_rest_readable() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    peer.write_all(b"abcdef").unwrap();
    for part in [b"abc", b"def"] {
        rig.read_own(0, 3);
        assert_eq!(rig.one().result, Ok(3));
        assert_eq!(rig.take(0, Lane::Read).0[..], part[..]);
    }
    rig.start(0, Lane::Read, Request::ReadSwap);
    rig.quiet();
}

#[test]
fn short_write_then_rest() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    let data: Vec<u8> = (0..8 << 20).map(|i| (i % 251) as u8).collect();
    let expected = data.clone();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; expected.len()];
        peer.read_exact(&mut got).unwrap();
        assert!(got == expected);
    });
    rig.write(0, data);
    let mut steps = 1;
    loop {
        let written = rig.one();
        if rig.advance(&written) {
            break;
        }
        rig.start(0, Lane::Write, Request::Write);
        steps += 1;
    }
    assert!(steps > 1);
    reader.join().unwrap();
}

#[test]
fn batch_is_one_call() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    let at = Place::new(0, Lane::Write);
    let all = ["__one ", "two ", "three"];
    let mut buffers = all.map(Buffer::from).into();
    rig.backend.loads().put_many(at, &mut buffers, 2);
    assert!(buffers.is_empty());
    rig.start(0, Lane::Write, Request::WriteMany);
    let written = rig.one();
    assert_eq!((written.at, written.result), (at, Ok(13)));
    assert_eq!(rig.backend.loads().take_many(at, &mut buffers), 2);
    assert!(
        buffers
            .iter()
            .map(|buffer| &buffer[..])
            .eq(all.map(str::as_bytes))
    );
    assert_eq!(rig.backend.counts().writes, 1);
    let mut got = [0; 13];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"one two three");
}

#[test]
fn data_and_end_together() {
    for round in 0..200 {
        let mut rig = Rig::new();
        let (mut peer, ours) = UnixStream::pair().unwrap();
        rig.attach(0, ours, SocketKind::Stream);
        if round % 2 == 0 {
            rig.start(0, Lane::Read, Request::ReadSwap);
        }
        peer.write_all(b"last").unwrap();
        drop(peer);
        if round % 2 == 1 {
            rig.start(0, Lane::Read, Request::ReadSwap);
        }
        assert_eq!(&*lease(rig.one()), b"last");
        for _ in 0..2 {
            rig.start(0, Lane::Read, Request::ReadSwap);
            assert_eq!(rig.one().result, Ok(0));
        }
    }
}

/// The end comes in the same event as the data, and a short read would hide it.
#[test]
fn data_and_end_in_one_event() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    peer.write_all(b"last").unwrap();
    drop(peer);
    std::thread::sleep(Duration::from_millis(20));
    rig.start(0, Lane::Read, Request::ReadSwap);
    assert_eq!(&*lease(rig.one()), b"last");
    rig.start(0, Lane::Read, Request::ReadSwap);
    assert_eq!(rig.one().result, Ok(0));
}

#[test]
fn reset_ends_both_lanes() {
    let mut rig = Rig::new();
    let peer = rig.pair(0);
    rig.write(0, vec![0; 16 << 20]);
    let written = rig.one();
    rig.advance(&written);
    rig.start(0, Lane::Write, Request::Write);
    rig.start(0, Lane::Read, Request::ReadSwap);
    SockRef::from(&peer)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(peer);
    let mut ended = Vec::new();
    while ended.len() < 2 {
        for completion in rig.completions() {
            match completion.result {
                Err(Errno(errno)) => ended.push(errno),
                // The peer has taken some more before.
                Ok(_) => {
                    rig.advance(&completion);
                    rig.start(0, Lane::Write, Request::Write);
                }
            }
        }
    }
    assert!(ended.contains(&libc::ECONNRESET), "{ended:?}");
}

#[test]
fn dry_pool_consumes_nothing() {
    let mut rig = Rig::with_blocks(1);
    let mut peer = rig.pair(0);
    peer.write_all(&[1; BLOCK]).unwrap();
    rig.start(0, Lane::Read, Request::ReadSwap);
    let kept = lease(rig.one());
    assert_eq!((kept.len(), rig.backend.swap_room().bytes), (BLOCK, 0));
    rig.start(0, Lane::Read, Request::ReadSwap);
    peer.write_all(b"more").unwrap();
    let read = rig.one();
    assert_eq!(errno(&read), libc::ENOBUFS);
    drop(kept);
    assert_eq!(rig.backend.swap_room().bytes, BLOCK);
    rig.start(0, Lane::Read, Request::ReadSwap);
    assert_eq!(&*lease(rig.one()), b"more");
}

#[test]
fn cancel_with_a_last_try() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    // There is data that no event has announced yet.
    peer.write_all(b"here").unwrap();
    until_arrived(rig.backend.socket(0).unwrap(), 4);
    rig.start(0, Lane::Read, Request::ReadSwap);
    rig.cancel(0, Lane::Read, true);
    assert_eq!(&*lease(rig.one()), b"here");
    // There is none.
    rig.start(0, Lane::Read, Request::ReadSwap);
    rig.cancel(0, Lane::Read, true);
    assert_eq!(errno(&rig.one()), libc::ECANCELED);
    // A write that was never attempted is made.
    rig.write(0, b"out");
    rig.cancel(0, Lane::Write, true);
    assert_eq!(rig.one().result, Ok(3));
    // Nothing of that comes again.
    rig.quiet();
}

#[test]
fn cancel_gives_back() {
    let mut rig = Rig::new();
    let _peer = rig.pair(0);
    rig.read_own(0, 7);
    rig.quiet();
    let (nothing, _) = rig.take(0, Lane::Read);
    assert!(nothing.is_empty(), "taken while the operation runs");
    rig.cancel(0, Lane::Read, false);
    assert_eq!(errno(&rig.one()), libc::ECANCELED);
    let (buffer, done) = rig.take(0, Lane::Read);
    assert_eq!((buffer.len(), done), (7, 0));
    // The account of a connection stays until it is closed.
    rig.open_credit(0);
    rig.start(0, Lane::Read, Request::ReadStream);
    rig.cancel(0, Lane::Read, false);
    assert_eq!(errno(&rig.one()), libc::ECANCELED);
    assert!(rig.backend.loads().credit(0).is_some());
    rig.backend.loads().close_credit(0);
    assert!(rig.backend.loads().credit(0).is_none());
}

/// What a last try brings comes before the end.
#[test]
fn cancelled_stream_ends_last() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    rig.start(0, Lane::Read, Request::ReadStream);
    rig.quiet();
    peer.write_all(b"last words").unwrap();
    until_arrived(rig.backend.socket(0).unwrap(), 10);
    rig.cancel(0, Lane::Read, true);
    let [step, end] = <[Completed; 2]>::try_from(rig.completions()).unwrap();
    assert_eq!((step.more, end.more), (true, false));
    assert_eq!(errno(&end), libc::ECANCELED);
    assert_eq!(lease(step)[..], *b"last words");
}

#[test]
fn cancelled_slot_serves_its_next_life() {
    let mut rig = Rig::new();
    let peer = rig.pair(0);
    rig.write(0, b"never queued twice");
    rig.cancel(0, Lane::Write, true);
    // The queue still names the lane when the slot changes hands.
    let old = rig.backend.detach(0).unwrap();
    let _next = rig.pair(0);
    rig.write(0, b"new");
    let sizes: Vec<_> = rig.completions().iter().map(|done| done.result).collect();
    assert_eq!(sizes, [Ok(18), Ok(3)]);
    drop((peer, old));
}

#[test]
fn duplicates_of_a_detached_socket_are_silent() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    let duplicate = rig.backend.socket(0).unwrap().try_clone_to_owned().unwrap();
    drop(rig.backend.detach(0));
    let _next = rig.pair(0);
    rig.quiet();
    rig.start(0, Lane::Read, Request::ReadSwap);
    let before = rig.backend.counts().reads;
    peer.write_all(b"for the duplicate").unwrap();
    rig.quiet();
    assert_eq!(rig.backend.counts().reads, before);
    drop(duplicate);
}

#[test]
fn stream_goes_on_until_the_end() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    rig.open_credit(0);
    rig.start(0, Lane::Read, Request::ReadStream);
    let (mut got, mut expected) = (Vec::<u8>::new(), Vec::new());
    for round in 0..50u8 {
        peer.write_all(&[round; 333]).unwrap();
        expected.extend([round; 333]);
        while got.len() < expected.len() {
            for completion in rig.completions() {
                assert!(completion.more);
                let lease = lease(completion);
                assert!(rig.leased_bytes(0) >= lease.len() as u64);
                got.extend(lease.iter());
            }
        }
    }
    assert!(got == expected);
    assert_eq!(rig.leased_bytes(0), 0);
    drop(peer);
    let end = rig.one();
    assert_eq!((end.more, end.result), (false, Ok(0)));
}

/// A private read takes what is there, at once, and is charged to the connection; or it ends.
#[test]
fn private_read_does_not_wait() {
    let mut rig = Rig::with_blocks(1);
    let mut peer = rig.pair(0);
    rig.open_credit(0);
    rig.start(0, Lane::Read, Request::ReadPrivate);
    assert_eq!(errno(&rig.one()), libc::EAGAIN);
    assert_eq!(rig.leased_bytes(0), 0);
    peer.write_all(b"mine").unwrap();
    rig.start(0, Lane::Read, Request::ReadPrivate);
    let lease = lease(rig.one());
    assert_eq!(lease[..], *b"mine");
    assert_eq!(
        rig.leased_bytes(0),
        rig.backend.pool().private_size() as u64
    );
    assert_eq!(rig.backend.pool().usage().blocks_out, 0);
    drop(lease);
    assert_eq!(rig.leased_bytes(0), 0);
    drop(peer);
    rig.start(0, Lane::Read, Request::ReadPrivate);
    assert_eq!(rig.one().result, Ok(0));
}

#[test]
fn stream_has_a_budget() {
    // As much as every system's sockets take before it is read.
    const ALL: usize = 7 * BLOCK;
    let mut rig = Rig::with_blocks(64);
    let mut peer = rig.pair(0);
    peer.write_all(&[5; ALL]).unwrap();
    until_arrived(rig.backend.socket(0).unwrap(), ALL);
    rig.start(0, Lane::Read, Request::ReadStream);
    let all = rig.turn(Until::Done, 99);
    assert_eq!(all.len(), 4);
    assert!(rig.more);
    // So does whoever asks for no more.
    assert_eq!(rig.turn(Until::Done, 1).len(), 1);
    assert!(rig.more);
    let mut len = 5 * BLOCK;
    while len < ALL {
        let all = rig.completions();
        len += all
            .iter()
            .map(|done| done.result.unwrap() as usize)
            .sum::<usize>();
    }
    assert_eq!(len, ALL);
    rig.quiet();
    assert!(!rig.more);
}

/// Waits until so many bytes can be read.
fn until_arrived(socket: BorrowedFd<'_>, len: usize) {
    let end = Instant::now() + SOON;
    let mut room = vec![std::mem::MaybeUninit::uninit(); len];
    while SockRef::from(&socket).peek(&mut room).unwrap_or(0) < len {
        assert!(Instant::now() < end, "{len} bytes do not arrive");
    }
}

#[test]
fn what_nobody_asks_for_stays() {
    let mut rig = Rig::new();
    let mut peers: Vec<_> = (0..9).map(|slot| rig.pair(slot)).collect();
    for slot in 0..9 {
        rig.start(slot, Lane::Read, Request::ReadSwap);
        rig.write(slot, b"x");
    }
    for peer in &mut peers {
        peer.write_all(b"y").unwrap();
    }
    std::thread::sleep(Duration::from_millis(20));
    let mut total = 0;
    for _ in 0..30 {
        total += rig.turn(Until::Now, 2).len();
        assert!(total == 18 || rig.more || total <= 9 + 2);
    }
    assert_eq!(total, 18);
    assert!(!rig.more);
}

/// Whoever takes one completion a turn, and starts anew what is complete, hears the others all the
/// same.
#[test]
fn events_without_room_come_before_what_is_started_since() {
    const TALKERS: u32 = 4;
    let mut rig = Rig::new();
    let mut peers: Vec<TcpStream> = (0..=TALKERS).map(|slot| rig.pair(slot)).collect();
    peers[0].write_all(&[0; 1024]).unwrap();
    for (slot, peer) in (0..).zip(&mut peers) {
        peer.write_all(b"x").unwrap();
        rig.read_own(slot, 1);
    }
    let mut waiting: Vec<Place> = (1..=TALKERS)
        .map(|slot| Place::new(slot, Lane::Read))
        .collect();
    for _ in 0..100 {
        for completion in rig.turn(Until::Time(Instant::now() + SOON), 1) {
            waiting.retain(|&at| at != completion.at);
            if completion.at == Place::new(0, Lane::Read) {
                rig.take(0, Lane::Read);
                rig.read_own(0, 1);
            }
        }
    }
    assert_eq!(waiting, []);
}

/// An event that found no room is of a slot's old life when that is handed to another socket: it says
/// nothing of this one, and makes nobody try.
#[test]
fn events_of_an_old_life_say_nothing_of_the_next() {
    const SLOTS: u32 = 4;
    let mut rig = Rig::new();
    let mut peers: Vec<TcpStream> = (0..SLOTS).map(|slot| rig.pair(slot)).collect();
    for (slot, peer) in (0..).zip(&mut peers) {
        peer.write_all(b"data").unwrap();
        until_arrived(rig.backend.socket(slot).unwrap(), 4);
    }
    rig.start(0, Lane::Read, Request::ReadSwap);
    // Room for that one: the events behind it are left.
    let first = rig.turn(Until::Time(Instant::now() + SOON), 1);
    assert_eq!(first.len(), 1);
    for slot in 1..SLOTS {
        drop(rig.backend.release(slot));
        peers.push(rig.pair(slot));
        rig.start(slot, Lane::Read, Request::ReadSwap);
    }
    let reads_before = rig.backend.counts().reads;
    rig.quiet();
    assert_eq!(rig.backend.counts().reads, reads_before);
}

#[test]
fn writes_that_never_wait_let_events_go_first() {
    let mut rig = Rig::new();
    let _taker = rig.pair(0);
    let mut peer = rig.pair(1);
    rig.start(1, Lane::Read, Request::ReadSwap);
    peer.write_all(b"y").unwrap();
    let reader = Place::new(1, Lane::Read);
    // Each turn has room for one result, and a write that is done already.
    let heard = (0..20).any(|_| {
        rig.write(0, b"x");
        let all = rig.turn(Until::Now, 1);
        let heard = all.iter().any(|done| done.at == reader);
        if heard {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
        false
    });
    assert!(heard);
}

#[test]
fn accepts() {
    let mut rig = Rig::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let duplicate = listener.try_clone().unwrap();
    rig.attach(3, listener, SocketKind::Listener);
    rig.start(3, Lane::Read, Request::AcceptStream);
    rig.quiet();
    let peers: Vec<_> = (0..100).map(|_| TcpStream::connect(to).unwrap()).collect();
    let mut accepted = Vec::new();
    while accepted.len() < peers.len() {
        let all = rig.completions();
        assert!(all.len() <= 64);
        accepted.extend(all);
    }
    for completion in &accepted {
        assert!(completion.more);
        assert!(matches!(completion.payload, Payload::Socket(_)));
    }
    rig.cancel(3, Lane::Read, false);
    assert_eq!(errno(&rig.one()), libc::ECANCELED);
    // One at a time.
    rig.start(3, Lane::Read, Request::Accept);
    let _two = (TcpStream::connect(to).unwrap(), TcpStream::connect(to));
    let one = rig.one();
    assert_eq!((one.more, one.result), (false, Ok(0)));
    rig.quiet();
    rig.start(3, Lane::Read, Request::Accept);
    assert!(!rig.one().more);
    drop(rig.backend.detach(3));
    assert!(!is_nonblocking(&duplicate));
}

/// Whoever else accepts from a listener may count on its mode; only `detach` restores it.
#[test]
fn closed_listener_keeps_its_mode() {
    let endings: [fn(Rig); 2] = [|mut rig| drop(rig.backend.release(0)), drop];
    for end in endings {
        let mut rig = Rig::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let duplicate = listener.try_clone().unwrap();
        rig.attach(0, listener, SocketKind::Listener);
        rig.start(0, Lane::Read, Request::Accept);
        let _peer = TcpStream::connect(to).unwrap();
        assert_eq!(rig.one().result, Ok(0));
        end(rig);
        assert!(is_nonblocking(&duplicate));
    }
}

fn start_connect(rig: &mut Rig, slot: u32, to: impl Into<Address>) {
    rig.take(slot, Lane::Write);
    let load = Load::Address(Box::new(to.into()));
    rig.start_with(slot, Lane::Write, Request::Connect, load);
}

fn connect(rig: &mut Rig, slot: u32, to: impl Into<Address>) -> Completed {
    start_connect(rig, slot, to);
    rig.one()
}

#[test]
fn connects() {
    let mut rig = Rig::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to: Address = listener.local_addr().unwrap().into();
    rig.attach(0, crate::stream_socket(&to).unwrap(), SocketKind::Stream);
    // The event of the unconnected socket, which says that it ended, comes before.
    rig.quiet();
    assert_eq!(connect(&mut rig, 0, to).result, Ok(0));
    let nonblocking = is_nonblocking(&rig.backend.socket(0).unwrap());
    assert_eq!(nonblocking, System::NEEDS_NONBLOCKING);
    let (mut peer, _) = listener.accept().unwrap();
    rig.start(0, Lane::Read, Request::ReadSwap);
    rig.quiet();
    peer.write_all(b"hello").unwrap();
    assert_eq!(&*lease(rig.one()), b"hello");
    let reads = rig.backend.counts().reads;
    rig.start(0, Lane::Read, Request::ReadSwap);
    rig.quiet();
    assert_eq!(
        rig.backend.counts().reads,
        reads,
        "a short read means drained"
    );
}

#[test]
fn refused_connect_leaves_the_socket() {
    let mut rig = Rig::new();
    let nobody = {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap();
        gone.local_addr().unwrap()
    };
    let to: Address = nobody.into();
    rig.attach(0, crate::stream_socket(&to).unwrap(), SocketKind::Stream);
    assert_eq!(errno(&connect(&mut rig, 0, to)), libc::ECONNREFUSED);
    let nonblocking = is_nonblocking(&rig.backend.socket(0).unwrap());
    assert_eq!(nonblocking, System::NEEDS_NONBLOCKING);
    // Nothing hangs on it.
    rig.start(0, Lane::Read, Request::ReadSwap);
    rig.one();
    rig.write(0, b"x");
    assert_eq!(errno(&rig.one()), libc::EPIPE);
}

#[test]
fn unix_connect_fails_at_once() {
    let mut rig = Rig::new();
    let nobody = std::os::unix::net::SocketAddr::from_pathname("/nonexistent/gaio").unwrap();
    let to: Address = nobody.into();
    rig.attach(0, crate::stream_socket(&to).unwrap(), SocketKind::Stream);
    rig.quiet();
    assert_eq!(errno(&connect(&mut rig, 0, to)), libc::ENOENT);
    rig.start(0, Lane::Read, Request::ReadSwap);
    rig.write(0, b"x");
    let mut ended = rig.completions();
    while ended.len() < 2 {
        ended.extend(rig.completions());
    }
    assert!(ended.iter().all(|completion| completion.result.is_err()));
}

/// Elsewhere such a connect is refused, or backlogs are never that small. When it is tried again is not
/// decided here.
#[cfg(target_os = "linux")]
#[test]
fn connect_to_a_full_unix_backlog_ends() {
    let path = std::env::temp_dir().join(format!("gaio-emulated-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    // SAFETY: the call touches no memory of ours.
    unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 0) };
    let to: Address = listener.local_addr().unwrap().into();
    let mut rig = Rig::new();
    for slot in 0..2 {
        rig.attach(slot, crate::stream_socket(&to).unwrap(), SocketKind::Stream);
    }
    assert_eq!(connect(&mut rig, 0, to.clone()).result, Ok(0));
    assert_eq!(
        connect(&mut rig, 1, to.clone()).result,
        Err(Errno(libc::EAGAIN))
    );
    let _first = listener.accept().unwrap();
    assert_eq!(connect(&mut rig, 1, to).result, Ok(0));
    let (mut second, _) = listener.accept().unwrap();
    second.write_all(b"hi").unwrap();
    rig.start(1, Lane::Read, Request::ReadSwap);
    assert_eq!(&*lease(rig.one()), b"hi");
    std::fs::remove_file(&path).unwrap();
}

/// Makes `send(2)` and `sendmsg(2)` say in this thread, from now on, that there is no memory for
/// buffers.
#[cfg(target_os = "linux")]
fn deny_sending() {
    let step = |code, jt, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf: 0,
        k,
    };
    let load = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let is = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let end = libc::BPF_RET | libc::BPF_K;
    let mut program = [
        step(load, 0, 0),
        step(is, 2, libc::SYS_sendto as u32),
        step(is, 1, libc::SYS_sendmsg as u32),
        step(end, 0, libc::SECCOMP_RET_ALLOW),
        step(end, 0, libc::SECCOMP_RET_ERRNO | libc::ENOBUFS as u32),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the filter and its program live through the calls, which copy them; they concern
    // this thread alone.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter),
            0
        );
    }
}

/// No event tells when there is memory again: the write ends, and what was to be written stays.
#[cfg(target_os = "linux")]
#[test]
fn write_without_memory_ends() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    rig.quiet();
    let denied = std::thread::spawn(move || {
        deny_sending();
        rig.write(0, b"late");
        assert_eq!(rig.one().result, Err(Errno(libc::ENOBUFS)));
        rig
    });
    let mut rig = denied.join().unwrap();
    rig.write(0, b"late");
    assert_eq!(rig.one().result, Ok(4));
    let mut got = [0; 4];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"late");
}

#[test]
fn ready_transfers_nothing() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    rig.start(0, Lane::Write, Request::Ready(Interest::Writable));
    assert_eq!(rig.one().result, Ok(0));
    rig.start(0, Lane::Read, Request::Ready(Interest::Readable));
    rig.quiet();
    peer.write_all(b"x").unwrap();
    assert_eq!(rig.one().result, Ok(0));
    rig.start(0, Lane::Read, Request::Ready(Interest::Readable));
    assert_eq!(rig.one().result, Ok(0));
    rig.start(0, Lane::Read, Request::ReadSwap);
    assert_eq!(&*lease(rig.one()), b"x");
    assert_eq!(rig.backend.counts().reads, 1);
}

#[test]
fn pipes_work_and_go_back_as_they_came() {
    let mut rig = Rig::new();
    let (from, to) = std::io::pipe().unwrap();
    rig.attach(0, from, SocketKind::Other);
    rig.attach(1, to, SocketKind::Other);
    rig.start(0, Lane::Read, Request::ReadSwap);
    rig.write(1, b"through");
    let mut results = rig.completions();
    while results.len() < 2 {
        results.extend(rig.completions());
    }
    assert_eq!(&*lease(results.pop().unwrap()), b"through");
    // Full: a short write, then waiting; emptied: going on.
    rig.write(1, vec![0; 1 << 20]);
    let sent = rig.one().result.unwrap();
    assert!(sent < 1 << 20);
    rig.write(1, b"tail");
    rig.quiet();
    let (mut got, mut tail) = (0, None);
    while got < sent + 4 {
        rig.start(0, Lane::Read, Request::ReadSwap);
        for completion in rig.completions() {
            if completion.at == Place::new(0, Lane::Read) {
                got += completion.result.unwrap();
            } else {
                tail = Some(completion.result);
            }
        }
    }
    assert_eq!(tail, Some(Ok(4)));
    // Nobody reads any more: an error, not a signal.
    let from = rig.backend.detach(0).unwrap();
    assert!(!is_nonblocking(&from));
    drop(from);
    rig.write(1, b"lost");
    assert_eq!(errno(&rig.one()), libc::EPIPE);
}

/// Some systems refuse to watch it.
#[test]
fn pipe_without_a_reader_is_taken() {
    let mut rig = Rig::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    rig.attach(0, writer, SocketKind::Other);
    rig.write(0, b"lost");
    assert_eq!(errno(&rig.one()), libc::EPIPE);
}

/// No filter that all systems with a kqueue have tells of urgent data.
#[cfg(not(gaio_kqueue))]
#[test]
fn urgent_data_hides_nothing() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    rig.start(0, Lane::Read, Request::ReadSwap);
    peer.write_all(b"before").unwrap();
    SockRef::from(&peer).send_out_of_band(b"!").unwrap();
    peer.write_all(b"after").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let mut got: Vec<u8> = Vec::new();
    while got.len() < 11 {
        got.extend(lease(rig.one()).iter());
        rig.start(0, Lane::Read, Request::ReadSwap);
    }
    assert_eq!(got, b"beforeafter");
}

/// Lets a poller believe that the kernel is old.
#[cfg(not(gaio_kqueue))]
fn age(poller: &mut System) {
    poller.milliseconds_only = true;
}

/// There is one way to sleep.
#[cfg(gaio_kqueue)]
fn age(_: &mut System) {}

#[test]
fn sleeps_end_in_time_and_never_early() {
    let mut rig = Rig::new();
    for old_kernel in [false, true] {
        if old_kernel {
            age(&mut rig.backend.poller);
        }
        for micros in [0, 1, 50, 1_000, 10_300] {
            let at = Instant::now() + Duration::from_micros(micros);
            assert!(rig.turn(Until::Time(at), 99).is_empty());
            assert!(Instant::now() >= at);
        }
    }
}

#[test]
fn waker_ends_the_sleep() {
    let mut rig = Rig::new();
    for _ in 0..3 {
        let waker = Arc::clone(rig.backend.waker());
        waker.sleep();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            waker.wake();
        });
        let at = Instant::now() + SOON;
        assert!(rig.turn(Until::Time(at), 99).is_empty());
        assert!(Instant::now() < at);
        thread.join().unwrap();
        rig.backend.waker().awake();
        // It is not seen again.
        let at = Instant::now() + Duration::from_millis(20);
        rig.turn(Until::Time(at), 99);
        assert!(Instant::now() >= at);
    }
}

#[test]
fn nested_descriptor_is_exact() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    let fd = rig.backend.readiness().unwrap();
    rig.start(0, Lane::Read, Request::ReadSwap);
    rig.quiet();
    assert!(!readable(fd.as_fd()));
    for _ in 0..3 {
        peer.write_all(b"x").unwrap();
        until_readable(&fd);
        assert_eq!(rig.turn(Until::Now, 99).len(), 1);
        assert!(!readable(fd.as_fd()));
        rig.start(0, Lane::Read, Request::ReadSwap);
        assert!(rig.turn(Until::Now, 99).is_empty());
        assert!(!readable(fd.as_fd()));
    }
    // The alarm; the second one replaces the first.
    rig.backend.arm(Some(Instant::now() + 100 * SOON));
    assert!(!readable(fd.as_fd()));
    let at = Instant::now() + Duration::from_millis(10);
    rig.backend.arm(Some(at));
    until_readable(&fd);
    // Some systems' timers are a tick early. Whoever is woken finds nothing, and asks again.
    let mut early = 0;
    while Instant::now() < at {
        early += 1;
        assert!(early <= 3, "woken again and again");
        assert!(rig.turn(Until::Now, 99).is_empty());
        rig.backend.arm(Some(at));
        until_readable(&fd);
    }
    rig.turn(Until::Now, 99);
    assert!(!readable(fd.as_fd()));
    rig.backend.arm(Some(Instant::now()));
    until_readable(&fd);
    rig.backend.arm(None);
    assert!(!readable(fd.as_fd()));
}

fn until_readable(fd: &OwnedFd) {
    let end = Instant::now() + SOON;
    while !readable(fd.as_fd()) {
        assert!(Instant::now() < end, "not readable");
    }
}

/// A kqueue takes files; they are refused before they come here.
#[cfg(not(gaio_kqueue))]
#[test]
fn refused_descriptors_come_back() {
    let mut rig = Rig::new();
    let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
    let (errno, file) = rig
        .backend
        .attach(0, file.into(), SocketKind::Other)
        .unwrap_err();
    assert_eq!(errno.0, libc::EPERM);
    assert!(!is_nonblocking(&file));
    assert!(rig.backend.socket(0).is_none());
    let _peer = rig.pair(0);
}

#[test]
fn backend_can_change_threads() {
    fn assert_send<T: Send>() {}
    assert_send::<Emulated<System>>();
}
