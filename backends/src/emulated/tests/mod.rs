//! Tests that drive the backend through its trait, as the watcher does, over real sockets. This
//! file has the parts that all cases share.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cancel;
mod connections;
mod descriptors;
mod reads;
mod sleeping;
mod turns;
mod writes;

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
use crate::{Address, Buffer, Credit, Interest, Lane, OpData, Outcome, SwapBuf};

const BLOCK: usize = Options::SMALL.swap_buffer_size;

/// Long enough for anything that is going to happen.
const SOON: Duration = Duration::from_secs(5);

struct Rig {
    backend: Emulated<System>,
    /// Operations that completed when they were started.
    at_once: Vec<Completion>,
    /// The result of the last `wait`.
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
            at_once: Vec::new(),
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
        let completion = self.backend.start(LaneId::new(slot, lane), request);
        self.at_once.extend(completion);
    }

    /// Opens the account of a connection.
    fn open_credit(&mut self, slot: u32) {
        let thresholds = self.backend.pool().thresholds(0);
        self.backend.op_table().open_credit(slot, thresholds);
    }

    /// The bytes charged to the account of a connection.
    fn leased_bytes(&mut self, slot: u32) -> u64 {
        let credit = self.backend.op_table().credit(slot);
        credit.map_or(0, Credit::leased_bytes)
    }

    fn start_with(&mut self, slot: u32, lane: Lane, request: Request, data: OpData) {
        self.backend.op_table().put(LaneId::new(slot, lane), data);
        self.start(slot, lane, request);
    }

    fn read_own(&mut self, slot: u32, len: usize) {
        let data = OpData::Buffer(vec![0; len].into());
        self.start_with(slot, Lane::Read, Request::Read, data);
    }

    fn write(&mut self, slot: u32, bytes: impl Into<Buffer>) {
        self.take(slot, Lane::Write);
        self.start_with(
            slot,
            Lane::Write,
            Request::Write,
            OpData::Buffer(bytes.into()),
        );
    }

    fn cancel(&mut self, slot: u32, lane: Lane, last_try: bool) {
        self.backend.cancel(LaneId::new(slot, lane), last_try);
    }

    /// The data of the lane's request, and the number of bytes that the watcher counted as
    /// transferred.
    fn take(&mut self, slot: u32, lane: Lane) -> (Buffer, usize) {
        let (data, done) = self.backend.op_table().take(LaneId::new(slot, lane));
        (data.into_buffer(), done)
    }

    /// Counts a transfer, as the watcher does. Returns whether that completes it.
    fn advance(&mut self, completion: &Completion) -> bool {
        let len = completion.result().unwrap() as usize;
        self.backend.op_table().advance(completion.at, len)
    }

    /// One turn.
    fn turn(&mut self, until: Until, max: usize) -> Vec<Completion> {
        self.backend.wait(until).unwrap();
        let mut all = std::mem::take(&mut self.at_once);
        // Like the watcher, which always has room for one more.
        let room = max.saturating_sub(all.len()).max(1);
        all.extend(std::iter::from_fn(|| self.backend.next()).take(room));
        self.more = self.backend.has_work();
        all
    }

    /// Takes turns until an operation is complete.
    fn completions(&mut self) -> Vec<Completion> {
        let at = Instant::now() + SOON;
        loop {
            let all = self.turn(Until::Time(at), usize::MAX);
            if !all.is_empty() {
                return all;
            }
            assert!(Instant::now() < at, "nothing completes");
        }
    }

    fn one(&mut self) -> Completion {
        let mut all = self.completions();
        assert_eq!(all.len(), 1, "{all:?}");
        all.remove(0)
    }

    /// Takes turns until nothing is left to do now. Nothing may complete.
    fn quiet(&mut self) {
        for _ in 0..3 {
            let all = self.turn(Until::Time(Instant::now() + Duration::from_millis(5)), 99);
            assert!(all.is_empty(), "{all:?}");
        }
    }
}

fn lease(completion: Completion) -> SwapBuf {
    match completion.outcome {
        Outcome::Leased(lease) => lease,
        other => panic!("no lease: {other:?}"),
    }
}

fn errno(completion: &Completion) -> i32 {
    completion.result().expect_err("an error").0
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

/// Waits until this many bytes can be read.
fn until_arrived(socket: BorrowedFd<'_>, len: usize) {
    let end = Instant::now() + SOON;
    let mut room = vec![std::mem::MaybeUninit::uninit(); len];
    while SockRef::from(&socket).peek(&mut room).unwrap_or(0) < len {
        assert!(Instant::now() < end, "{len} bytes do not arrive");
    }
}
