//! The world of the simulated kernel: the other ends of all connections, the clock, and the
//! generator of all faults. The test holds one handle of it, the backend another.

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::Errno;

/// The bytes that a peer takes before its reader has to take them.
const WINDOW_BYTES: usize = 64 * 1024;

/// The world of one simulated watcher. Clones are handles of the same world.
#[derive(Clone, Debug)]
pub struct World {
    state: Arc<Mutex<State>>,
}

/// The other end of a connection.
#[derive(Debug)]
pub struct Peer {
    world: World,
    end: usize,
}

#[derive(Debug)]
pub(super) struct State {
    random: Random,
    now: Instant,
    pub(super) ends: Vec<End>,
    /// Sockets that were handed out and are in no slot, by their inodes. A socket only names an
    /// end.
    names: HashMap<u64, usize>,
    /// The ends of connections that the watcher made itself.
    dialed: VecDeque<usize>,
    /// Whether faults are drawn.
    faults: bool,
}

/// One connection, or a listener, as the kernel sees it.
#[derive(Debug, Default)]
pub(super) struct End {
    /// Bytes from the peer.
    pub(super) incoming: VecDeque<u8>,
    pub(super) ended: bool,
    /// Bytes to the peer.
    pub(super) outgoing: Vec<u8>,
    pub(super) window: usize,
    pub(super) shut: bool,
    pub(super) reset: bool,
    pub(super) attached: bool,
    /// The ends that want to connect, for a listener.
    pub(super) backlog: VecDeque<usize>,
}

impl World {
    /// A world in which the seed decides everything that the test does not.
    pub fn new(seed: u64) -> Self {
        World {
            state: Arc::new(Mutex::new(State {
                random: Random(seed),
                now: Instant::now(),
                ends: Vec::new(),
                names: HashMap::new(),
                dialed: VecDeque::new(),
                faults: true,
            })),
        }
    }

    /// The time in this world; it passes only while a watcher waits.
    pub fn now(&self) -> Instant {
        self.lock().now
    }

    /// Stops the faults: from now on the kernel does everything at once and in whole.
    pub fn calm(&self) {
        self.lock().faults = false;
    }

    /// Makes a connection: a descriptor to delegate, and the other end.
    ///
    /// # Errors
    /// The real system has no descriptors left to serve as names.
    pub fn connect(&self) -> std::io::Result<(OwnedFd, Peer)> {
        let socket: OwnedFd = UnixStream::pair()?.0.into();
        let mut state = self.lock();
        let end = state.open();
        state.names.insert(inode(&socket), end);
        Ok((socket, self.peer(end)))
    }

    /// Makes a listener: a descriptor, and a number for [`dial`](World::dial).
    ///
    /// # Errors
    /// As [`connect`](World::connect).
    pub fn listen(&self) -> std::io::Result<(OwnedFd, usize)> {
        let socket: OwnedFd = TcpListener::bind("127.0.0.1:0")?.into();
        let mut state = self.lock();
        let end = state.open();
        state.names.insert(inode(&socket), end);
        Ok((socket, end))
    }

    /// Connects to a listener.
    pub fn dial(&self, listener: usize) -> Peer {
        let mut state = self.lock();
        let end = state.open();
        state.ends[listener].backlog.push_back(end);
        self.peer(end)
    }

    /// The other end of a connection that the watcher made. The oldest comes first.
    pub fn dialed(&self) -> Option<Peer> {
        let end = self.lock().dialed.pop_front()?;
        Some(self.peer(end))
    }

    fn peer(&self, end: usize) -> Peer {
        Peer {
            world: self.clone(),
            end,
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Peer {
    /// Sends bytes.
    pub fn send(&self, bytes: &[u8]) {
        self.world.lock().ends[self.end].incoming.extend(bytes);
    }

    /// Takes what has arrived.
    pub fn receive(&self) -> Vec<u8> {
        std::mem::take(&mut self.world.lock().ends[self.end].outgoing)
    }

    /// Sets the number of bytes that can arrive before they have to be received.
    pub fn set_window(&self, bytes: usize) {
        self.world.lock().ends[self.end].window = bytes;
    }

    /// Ends the sending.
    pub fn end(&self) {
        self.world.lock().ends[self.end].ended = true;
    }

    /// Resets the connection. Bytes on their way to the watcher are lost.
    pub fn reset(&self) {
        let mut state = self.world.lock();
        let end = &mut state.ends[self.end];
        end.reset = true;
        end.incoming.clear();
    }

    /// Whether the watcher has the socket.
    pub fn is_attached(&self) -> bool {
        self.world.lock().ends[self.end].attached
    }

    /// Whether the watcher has ended its sending.
    pub fn is_shut(&self) -> bool {
        self.world.lock().ends[self.end].shut
    }
}

impl State {
    fn open(&mut self) -> usize {
        self.ends.push(End {
            window: WINDOW_BYTES,
            ..End::default()
        });
        self.ends.len() - 1
    }

    /// The end that a descriptor names. A descriptor that the watcher made itself names a new one.
    pub(super) fn enter(&mut self, socket: &OwnedFd) -> usize {
        let named = self.names.remove(&inode(socket));
        let end = named.unwrap_or_else(|| self.open());
        self.ends[end].attached = true;
        end
    }

    pub(super) fn leave(&mut self, socket: &OwnedFd, end: usize) {
        self.ends[end].attached = false;
        self.names.insert(inode(socket), end);
    }

    /// A descriptor for a connection that a listener accepted.
    pub(super) fn accepted(&mut self, end: usize) -> Result<OwnedFd, Errno> {
        let socket: OwnedFd = UnixStream::pair()?.0.into();
        self.names.insert(inode(&socket), end);
        Ok(socket)
    }

    pub(super) fn connected(&mut self, end: usize) {
        self.dialed.push_back(end);
    }

    pub(super) fn now(&self) -> Instant {
        self.now
    }

    pub(super) fn advance(&mut self, to: Instant) {
        self.now = self.now.max(to);
    }

    pub(super) fn tick(&mut self) -> Instant {
        self.now + Duration::from_nanos(1 + self.random.next() % 5_000)
    }

    /// True once in so many times, never in a calm world.
    pub(super) fn fault(&mut self, once_in: u64) -> bool {
        self.random.next().is_multiple_of(once_in) && self.faults
    }

    /// A number from 1 to `most`, more often than not the greatest.
    pub(super) fn part(&mut self, most: usize) -> usize {
        if self.fault(3) {
            1 + self.below(most)
        } else {
            most
        }
    }

    /// A number under `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.random.next() % end.max(1) as u64) as usize
    }
}

/// A number that tells a socket from all others, even from a later one with the same descriptor.
fn inode(socket: &OwnedFd) -> u64 {
    let metadata = socket
        .try_clone()
        .and_then(|copy| File::from(copy).metadata());
    metadata.map_or(0, |metadata| metadata.ino())
}

/// SplitMix64.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}
