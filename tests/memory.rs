//! Memory and system calls, counted: an idle connection costs little, nothing is allocated or copied per
//! message, contexts are dropped exactly once, and a turn enters the kernel once.
//!
//! All allocations of a process are counted, so these cases run in a process of their own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stdout)]

mod common;
#[path = "common/heap.rs"]
mod heap;

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::rc::Rc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use common::process::{Clients, affordable, client, in_child};
use common::*;
use gaio::{BackendKind, Conn, Deadline, Interest, OpId, Operation, Results, Watcher};
use heap::Heap;

/// The most that an idle connection with a pending swap read may cost.
const IDLE_BYTES_MAX: usize = 160;

const MESSAGE: usize = 1024;

backends! {
    fn idle_connection(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let count = affordable(10_000);
            let (listener, address) = listener();
            let clients = Clients::start(address, count, 0, 0);
            let mut sockets = Vec::with_capacity(count);
            sockets.extend((0..count).map(|_| listener.accept().unwrap().0));
            // One echo first: what the watcher needs anyway is no cost of the others.
            let mut echo = Echo::new(kind, 1, Own::No);
            echo.rounds(10);
            let before = Heap::now();
            for socket in sockets.drain(..) {
                let conn = echo.watcher.delegate(socket).unwrap();
                echo.watcher.read((), conn, None).unwrap();
            }
            quiet(&mut echo.watcher);
            quiet(&mut echo.watcher);
            let bytes = Heap::now().bytes.saturating_sub(before.bytes);
            assert!(echo.watcher.stats().pending >= count);
            println!(
                "{} bytes for each of {count} idle connections",
                bytes / count
            );
            assert!(
                bytes <= count * IDLE_BYTES_MAX,
                "{bytes} bytes for {count} connections"
            );
            clients.join();
        });
    }

    fn echo_allocates_nothing(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            for own in [Own::Yes, Own::No] {
                let mut echo = Echo::new(kind, 20, own);
                echo.rounds(200);
                let before = Heap::now();
                echo.rounds(200);
                let count = Heap::now().allocations - before.allocations;
                assert_eq!(
                    count, 0,
                    "allocations for 4,000 messages, own buffers: {own:?}"
                );
            }
        });
    }

    /// A stream's idle time, which every result moves.
    fn moved_deadline_allocates_nothing(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let (mut watcher, conn, mut peer) = connected(kind);
            let stream = watcher.read_stream((), conn).unwrap();
            let mut results = Results::new();
            // The queues reach their sizes when they do: the least of several batches counts.
            let least = (0..6).map(|_| {
                let before = Heap::now().allocations;
                for _ in 0..100 {
                    peer.write_all(b"step").unwrap();
                    let mut seen = 0;
                    while seen < 4 {
                        watcher.wait_io_timeout(&mut results, PATIENCE).unwrap();
                        seen += results.drain().map(|res| res.size).sum::<usize>();
                        assert!(watcher.set_deadline(stream, PATIENCE));
                    }
                }
                Heap::now().allocations - before
            });
            assert_eq!(least.min(), Some(0), "for 100 moves");
        });
    }

    fn lease_forwarded(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let mut relay = Relay::new(kind);
            // Until the pool has as many blocks as the ring goes through.
            relay.rounds(3_000);
            let before = Heap::now();
            relay.rounds(500);
            let count = Heap::now().allocations - before.allocations;
            assert_eq!(count, 0, "allocations for 500 forwarded messages");
        });
    }

    fn lease_as_bytes(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let (mut watcher, conn, mut peer) = connected(kind);
            peer.write_all(pattern(0, MESSAGE)).unwrap();
            watcher.read((), conn, None).unwrap();
            let lease = next(&mut watcher).buffer.into_swap().unwrap();
            let before = Heap::now();
            let bytes = Bytes::from(lease);
            let after = Heap::now();
            assert!(
                after.allocations - before.allocations <= 1,
                "one small allocation"
            );
            assert!(after.bytes - before.bytes <= 128, "one small allocation");
            assert!(is_pattern(0, &bytes));
        });
    }

    /// A program that takes fewer results than there are, for ever, costs no memory for those that
    /// it took.
    fn never_quite_empty(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let mut watcher: Watcher = watcher(kind);
            let remote = watcher.remote();
            let mut results = Results::with_capacity(1);
            remote.post(()).unwrap();
            let mut rounds = |count| {
                for _ in 0..count {
                    remote.post(()).unwrap();
                    assert_eq!(watcher.wait_io(&mut results).unwrap(), 1);
                }
            };
            rounds(100);
            let before = Heap::now();
            rounds(10_000);
            let bytes = Heap::now().bytes.saturating_sub(before.bytes);
            assert!(bytes < 10_000, "{bytes} bytes more");
        });
    }

    /// What a flood of requests needed is given back once it is over, though some of them still wait.
    fn floods_are_given_back(kind: BackendKind) {
        const FLOOD: usize = 100_000;
        /// Of tables that are kept for the next requests.
        const KEPT_BYTES: usize = 100 << 10;
        in_child(module_path!(), kind, || {
            let (mut watcher, conn, mut peer) = connected(kind);
            let remote = watcher.remote();
            let never = watcher.timer((), PATIENCE * 10).unwrap();
            assert!(!watcher.cancel(gone(kind)), "now there is an index of all requests");
            let floods: [(_, &dyn Fn(&mut Watcher)); 4] = [
                ("posts", &|_| remote.post(()).unwrap()),
                ("timers", &|watcher| drop(watcher.timer((), Duration::ZERO))),
                ("writes", &|watcher| drop(watcher.write((), conn, "0123456789"))),
                ("cancels", &|watcher| {
                    let op = watcher.timer((), PATIENCE).unwrap();
                    remote.cancel(op).unwrap();
                }),
            ];
            thread::spawn(move || io::copy(&mut peer, &mut io::sink()));
            quiet(&mut watcher); // What the backend needs anyway is there.
            for (name, request) in floods {
                let before = Heap::now().bytes;
                (0..FLOOD / 2).for_each(|_| request(&mut watcher));
                // It stands in the middle of them, and is there when they are gone.
                let amid = watcher.timer((), PATIENCE * 10).unwrap();
                (0..FLOOD / 2).for_each(|_| request(&mut watcher));
                let most = Heap::now().bytes - before;
                let mut results = Results::new();
                let mut left = FLOOD;
                while left > 0 {
                    turn(&mut watcher, &mut results);
                    left -= results.drain().count();
                }
                quiet(&mut watcher);
                let bytes = Heap::now().bytes.saturating_sub(before);
                println!("{name}: {bytes} of {most} bytes are left");
                assert!(most > 10 * KEPT_BYTES && bytes < KEPT_BYTES, "{name}: {bytes} of {most}");
                assert!(watcher.cancel(amid));
                assert_eq!(next(&mut watcher).op, amid);
            }
            assert!(watcher.cancel(never));
            assert_eq!(next(&mut watcher).op, never);
            assert_eq!(watcher.stats().pending, 0);
        });
    }

    fn one_kernel_call_per_turn(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            for connections in [1, 100] {
                let mut echo = Echo::new(kind, connections, Own::No);
                echo.rounds(20);
                let before = (echo.calls(), echo.turns, echo.messages);
                echo.rounds(100);
                let calls = echo.calls() - before.0;
                let turns = echo.turns - before.1;
                let messages = echo.messages - before.2;
                println!("{calls} calls for {messages} messages in {turns} turns");
                match kind {
                    BackendKind::IoUring => assert_eq!(calls, turns),
                    // One read and one write for each message, one wait for each turn.
                    _ => assert!(calls > 0 && calls <= 2 * messages + turns, "{calls} calls"),
                }
            }
        });
    }

    fn contexts_dropped_once(kind: BackendKind) {
        type Ending = fn(Watcher<Tracker>);
        let endings: [Ending; 3] = [
            drop,
            |mut watcher| watcher.close(),
            |mut watcher| drop(close_and_collect(&mut watcher)),
        ];
        for ending in endings {
            for with_turn in [false, true] {
                let drops = Drops::default();
                let mut watcher = watcher(kind);
                let mut results = Results::new();
                let others = start_everything(&mut watcher, &drops);
                if with_turn {
                    turn(&mut watcher, &mut results);
                }
                ending(watcher);
                drop((results, others));
                assert!(drops.0.borrow().len() >= 17);
                assert!(
                    drops.0.borrow().iter().all(|count| *count == 1),
                    "{drops:?}"
                );
            }
        }
    }

    fn memory_returns(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let cycle = || {
                let mut watcher = watcher(kind);
                let others = start_everything(&mut watcher, &Drops::default());
                turn(&mut watcher, &mut Results::new());
                drop((watcher, others));
                let mut echo = Echo::new(kind, 20, Own::No);
                echo.rounds(20);
                drop(echo);
                Heap::now().bytes
            };
            cycle(); // What stays for good is there after the first ones.
            let once = cycle();
            let again = [cycle(), cycle(), cycle()];
            assert!(
                again.contains(&once),
                "{once} bytes at first, then {again:?}"
            );
        });
    }
}

/// The number of a request that another watcher had.
fn gone(kind: BackendKind) -> OpId {
    watcher(kind).timer((), PATIENCE).unwrap()
}

/// The peers of `idle_connection`, in a process of their own.
#[test]
#[ignore = "started by the cases"]
fn client_process() {
    client();
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Own {
    Yes,
    No,
}

/// An echo server and its peers on one thread, so that every run does the same.
struct Echo {
    watcher: Watcher,
    results: Results,
    peers: Vec<TcpStream>,
    turns: u64,
    messages: u64,
}

impl Echo {
    fn new(kind: BackendKind, connections: usize, own: Own) -> Self {
        let mut watcher = watcher(kind);
        let mut peers = Vec::new();
        for _ in 0..connections {
            let (conn, peer) = connect_to(&mut watcher);
            let buffer = (own == Own::Yes).then(|| vec![0; MESSAGE]);
            watcher.read((), conn, buffer).unwrap();
            peers.push(peer);
        }
        Echo {
            watcher,
            results: Results::new(),
            peers,
            turns: 0,
            messages: 0,
        }
    }

    fn calls(&self) -> u64 {
        self.watcher.stats().kernel_calls
    }

    /// In each round, every peer gets one message echoed.
    fn rounds(&mut self, rounds: usize) {
        for round in 0..rounds {
            for (peer, index) in self.peers.iter_mut().zip(0..) {
                peer.write_all(pattern(round + index, MESSAGE)).unwrap();
            }
            let mut missing = self.peers.len();
            while missing > 0 {
                missing -= self.turn();
            }
            for (peer, index) in self.peers.iter_mut().zip(0..) {
                expect(peer, pattern(round + index, MESSAGE));
            }
        }
    }

    /// One turn of the loop; returns how many messages it finished.
    fn turn(&mut self) -> usize {
        self.watcher.wait_io(&mut self.results).unwrap();
        self.turns += 1;
        let mut echoed = 0;
        for res in self.results.drain() {
            assert_eq!((res.size, res.error), (MESSAGE, None));
            if res.operation == Operation::Read {
                self.watcher.write((), res.conn, res.buffer).unwrap();
            } else {
                echoed += 1;
                self.watcher.read((), res.conn, res.buffer).unwrap();
            }
        }
        self.messages += echoed as u64;
        echoed
    }
}

/// Reads from one connection and writes the lease to two.
struct Relay {
    watcher: Watcher,
    results: Results,
    from: (Conn, TcpStream),
    to: (Conn, TcpStream),
}

impl Relay {
    fn new(kind: BackendKind) -> Self {
        let mut watcher = watcher(kind);
        let from = connect_to(&mut watcher);
        let to = connect_to(&mut watcher);
        Relay {
            watcher,
            results: Results::new(),
            from,
            to,
        }
    }

    fn rounds(&mut self, rounds: usize) {
        for at in 0..rounds {
            let message = pattern(at, MESSAGE);
            self.from.1.write_all(message).unwrap();
            self.watcher.read((), self.from.0, None).unwrap();
            turn(&mut self.watcher, &mut self.results);
            let res = self.results.pop().unwrap();
            let lease = res.buffer.into_swap().unwrap();
            self.watcher
                .write((), self.from.0, lease.slice(..8))
                .unwrap();
            self.watcher.write((), self.to.0, lease).unwrap();
            let mut written = 0;
            while written < 2 {
                turn(&mut self.watcher, &mut self.results);
                written += self.results.drain().count();
            }
            expect(&mut self.from.1, &message[..8]);
            expect(&mut self.to.1, message);
        }
    }
}

/// Receives exactly this message, without an allocation.
fn expect(peer: &mut TcpStream, message: &[u8]) {
    let mut got = [0; MESSAGE];
    let got = &mut got[..message.len()];
    peer.read_exact(got).unwrap();
    assert!(*got == *message, "wrong bytes");
}

/// How often each tracker was dropped.
#[derive(Clone, Debug, Default)]
struct Drops(Rc<RefCell<Vec<usize>>>);

/// A context that owns memory. Clones count on their own.
struct Tracker {
    index: Box<usize>,
    drops: Drops,
}

impl Drops {
    fn tracker(&self) -> Tracker {
        let mut counts = self.0.borrow_mut();
        counts.push(0);
        Tracker {
            index: Box::new(counts.len() - 1),
            drops: self.clone(),
        }
    }
}

impl Clone for Tracker {
    fn clone(&self) -> Self {
        self.drops.tracker()
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.drops.0.borrow_mut()[*self.index] += 1;
    }
}

/// Starts requests of every kind: some finish at once, some stay, some are refused. Returns what
/// must live as long.
fn start_everything(watcher: &mut Watcher<Tracker>, drops: &Drops) -> impl Sized + use<> {
    let track = || drops.tracker();
    let far = Duration::from_secs(3600);
    let (conn, mut peer) = connect_to(watcher);
    watcher.read(track(), conn, None).unwrap();
    watcher
        .read_full(track(), conn, vec![0; 99], Deadline::NEVER)
        .unwrap();
    watcher.read_timeout(track(), conn, None, far).unwrap();
    watcher.write(track(), conn, vec![0; 16 << 20]).unwrap();
    watcher.write_timeout(track(), conn, b"x", far).unwrap();
    watcher.shutdown(track(), conn, Shutdown::Write).unwrap();
    peer.write_all(b"some").unwrap();

    let (streaming, mut stream_peer) = connect_to(watcher);
    watcher.read_stream(track(), streaming).unwrap();
    watcher
        .ready(track(), streaming, Interest::Writable)
        .unwrap();
    stream_peer.write_all(b"some").unwrap();

    let (freed, freed_peer) = connect_to(watcher);
    watcher.read(track(), freed, None).unwrap();
    watcher.free(freed);
    assert!(watcher.read(track(), freed, None).is_err());

    let (socket, address) = listener();
    let listener = watcher.listen(socket).unwrap();
    watcher.accept(track(), listener).unwrap();
    watcher.connect(track(), address, Deadline::NEVER).unwrap();
    let (full, taken) = full_backlog();
    let unreachable = full.local_addr().unwrap();
    watcher
        .connect(track(), unreachable, Deadline::NEVER)
        .unwrap();
    let cancelled = watcher.timer(track(), far).unwrap();
    watcher.timer(track(), far).unwrap();
    watcher.cancel(cancelled);

    let remote = watcher.remote();
    remote.read(track(), conn, None).unwrap();
    remote.post(track()).unwrap();
    assert!(remote.post(track()).is_ok());
    (peer, stream_peer, freed_peer, full, taken, remote)
}
