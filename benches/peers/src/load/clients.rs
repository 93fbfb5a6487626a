//! What the clients of a load know: which bytes go next, which must come, and when each message was
//! sent. Nothing here touches a socket.
//!
//! All send pieces of one long pattern without a short period, each from a place of its own: bytes
//! of another connection, or in another order, do not fit.

use std::time::Instant;

use hdrhistogram::Histogram;

use super::Shape;
use crate::Fallible;

/// The pattern's period; a prime, so that no size of messages divides it.
const PERIOD: usize = 65_521;
/// As many bytes as can be asked for in one piece.
pub const PIECE_BYTES: usize = 256 * 1024;
/// The longest latency that is told apart.
const LATENCY_MAX_NS: u64 = 60_000_000_000;

/// One connection's account.
#[derive(Clone, Copy, Default)]
struct Client {
    /// Where in the pattern the next byte to go is, and the next to come.
    out: u32,
    back: u32,
    /// Messages that are to be sent, and bytes of those begun that are not with the socket.
    owed: u32,
    unsent: u32,
    /// Bytes of the message that is coming.
    part: u32,
    /// Messages that are on the way or owed, and where in `starts` the oldest is.
    open: u32,
    oldest: u32,
    /// It is in `dirty` already.
    dirty: bool,
}

/// All of them.
pub struct Clients {
    pub messages: u64,
    pub latency_ns: Histogram<u32>,
    list: Vec<Client>,
    /// When the messages of each client were sent, a ring for each, in nanoseconds.
    starts: Vec<u64>,
    /// Clients that have something to send: those that their driver takes now, and later ones.
    taken: Vec<u32>,
    dirty: Vec<u32>,
    pattern: &'static [u8],
    shape: Shape,
    epoch: Instant,
    now_ns: u64,
    /// Messages that may still be begun.
    left: u64,
    open: u64,
}

impl Clients {
    pub fn new(shape: Shape) -> Fallible<Self> {
        let client = |index: usize| Client {
            out: (index * 7919 % PERIOD) as u32,
            back: (index * 7919 % PERIOD) as u32,
            ..Client::default()
        };
        Ok(Clients {
            messages: 0,
            latency_ns: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)?,
            list: (0..shape.connections).map(client).collect(),
            starts: vec![0; shape.connections * shape.outstanding],
            taken: Vec::new(),
            dirty: Vec::new(),
            pattern: pattern(),
            shape,
            epoch: Instant::now(),
            now_ns: 0,
            left: 0,
            open: 0,
        })
    }

    /// Whether messages that come back are followed by others. To begin with, every client sends
    /// as many as it may have on the way.
    pub fn go(&mut self, on: bool) {
        self.left = if on { u64::MAX } else { 0 };
        if on {
            self.owe_all(self.shape.outstanding as u32);
        }
    }

    /// So many in all, those on the way included.
    pub fn limit(&mut self, count: u64) {
        self.left = count.saturating_sub(self.open);
    }

    /// Forgets what was counted.
    pub fn reset(&mut self) {
        self.messages = 0;
        self.latency_ns.reset();
    }

    /// Something is on the way.
    pub fn busy(&self) -> bool {
        self.open > 0
    }

    pub fn owe_all(&mut self, messages: u32) {
        self.tick();
        (0..self.list.len()).for_each(|index| self.owe(index, messages));
    }

    fn owe(&mut self, index: usize, messages: u32) {
        let client = &mut self.list[index];
        client.owed += messages;
        client.open += messages;
        self.open += u64::from(messages);
        if !client.dirty {
            client.dirty = true;
            self.dirty.push(index as u32);
        }
    }

    /// Looks at the clock: once for all that came together, and once for all that goes.
    pub fn tick(&mut self) {
        self.now_ns = self.epoch.elapsed().as_nanos() as u64;
    }

    /// The driver is about to take those that have something to send by now.
    pub fn begin_sending(&mut self) {
        std::mem::swap(&mut self.taken, &mut self.dirty);
    }

    /// One of them.
    pub fn next_dirty(&mut self) -> Option<usize> {
        let index = self.taken.pop()? as usize;
        self.list[index].dirty = false;
        Some(index)
    }

    /// What a client has to send, as far as it is one piece. Messages begin when it is asked for.
    pub fn take_unsent(&mut self, index: usize) -> &'static [u8] {
        let outstanding = self.shape.outstanding as u32;
        let client = &mut self.list[index];
        let ring = index * self.shape.outstanding;
        let end = client.oldest + client.open;
        for place in end - client.owed..end {
            self.starts[ring + (place % outstanding) as usize] = self.now_ns;
        }
        client.unsent += client.owed * self.shape.size as u32;
        client.owed = 0;
        let len = (client.unsent as usize).min(PIECE_BYTES);
        &self.pattern[client.out as usize..][..len]
    }

    /// The socket has so many bytes of it.
    pub fn sent(&mut self, index: usize, len: usize) {
        let client = &mut self.list[index];
        client.out = ((client.out as usize + len) % PERIOD) as u32;
        client.unsent -= len as u32;
        if client.unsent > 0 && !client.dirty {
            client.dirty = true;
            self.dirty.push(index as u32);
        }
    }

    /// The last bytes of those: the socket has not got them after all, but will.
    pub fn unsent(&self, index: usize, len: usize) -> &'static [u8] {
        let start = (self.list[index].out as usize + PERIOD * 8 - len) % PERIOD;
        &self.pattern[start..][..len]
    }

    /// Checks what came. Whole messages are answered with others, if it is to go on.
    pub fn came(&mut self, index: usize, bytes: &[u8]) -> Fallible<()> {
        let size = self.shape.size as u32;
        let client = &mut self.list[index];
        if bytes != &self.pattern[client.back as usize..][..bytes.len()] {
            return Err(format!("client {index} got other bytes than it sent").into());
        }
        client.back = ((client.back as usize + bytes.len()) % PERIOD) as u32;
        client.part += bytes.len() as u32;
        let mut whole = 0;
        while client.part >= size {
            client.part -= size;
            whole += 1;
        }
        if whole > client.open {
            return Err(format!("client {index} got more than it sent").into());
        }
        let ring = index * self.shape.outstanding;
        for _ in 0..whole {
            let start = self.starts[ring + client.oldest as usize];
            let taken_ns = self.now_ns.saturating_sub(start).max(1);
            self.latency_ns.saturating_record(taken_ns);
            client.oldest = (client.oldest + 1) % self.shape.outstanding as u32;
        }
        client.open -= whole;
        self.open -= u64::from(whole);
        self.messages += u64::from(whole);
        let more = u64::from(whole).min(self.left);
        self.left -= more;
        if more > 0 {
            self.owe(index, more as u32);
        }
        Ok(())
    }
}

/// Random bytes, again and again, as many as one piece from any place of the first ones takes.
fn pattern() -> &'static [u8] {
    let mut state = 0x2545_F491_4F6C_DD1D_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    let first: Vec<u8> = (0..PERIOD).map(|_| random()).collect();
    let all = first.iter().copied().cycle();
    all.take(PERIOD + PIECE_BYTES).collect::<Vec<_>>().leak()
}
