//! What was asked, what came of it, and whether the contract allows that.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use gaio::{Conn, ErrorKind, OpId, OpResult, Operation};
use gaio_backends::sim::Peer;

use crate::{byte, bytes};

/// A deadline may be late by what the kernel's delays add up to.
const LATE_MAX: Duration = Duration::from_millis(2);

/// Errors of the system that a program may see: EPIPE, EMFILE, ECONNRESET, ECONNREFUSED.
const TOLD: [i32; 4] = [32, 24, 104, 111];

/// A request that has had no last result.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) op: Option<OpId>,
    pub(crate) what: What,
    pub(crate) line: Option<usize>,
    pub(crate) deadline: Option<Instant>,
    pub(crate) cancelled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    ReadSwap,
    Read(usize),
    ReadFull(usize),
    ReadStream,
    /// From where in the outgoing stream, and how much.
    Write(usize, usize),
    Accept,
    Connect,
    Shutdown,
    Ready,
    Timer,
    Post,
}

/// A connection, from both ends.
pub(crate) struct Line {
    pub(crate) conn: Conn,
    pub(crate) peer: Option<Peer>,
    /// Bytes that the peer has sent, and that reads have brought.
    pub(crate) sent: usize,
    read: usize,
    /// Where the next write begins.
    pub(crate) write_at: usize,
    /// What the results of writes say that the peer gets, and what it got.
    written: Vec<u8>,
    got: Vec<u8>,
    /// How much of that was compared.
    checked: usize,
    /// How connecting it failed.
    unconnected: Option<ErrorKind>,
    /// The peer sends no more.
    pub(crate) ended: bool,
    pub(crate) reset: bool,
    pub(crate) freed: bool,
    /// The last request, by number, of which a result came that moved bytes: read, written.
    moved: [u64; 2],
    /// The same of results that say that the connection was freed.
    closed: u64,
}

#[derive(Default)]
pub(crate) struct Model {
    /// By context: every request has its own number, in the order of acceptance.
    pub(crate) asked: BTreeMap<u64, Asked>,
    pub(crate) lines: Vec<Line>,
    pub(crate) closed: bool,
    pub(crate) write_limit: usize,
    /// A hash of all that came, in order.
    pub(crate) trace: u64,
    pub(crate) results: usize,
}

impl Line {
    pub(crate) fn new(conn: Conn, peer: Option<Peer>) -> Self {
        Line {
            conn,
            peer,
            sent: 0,
            read: 0,
            write_at: 0,
            written: Vec::new(),
            got: Vec::new(),
            checked: 0,
            unconnected: None,
            ended: false,
            reset: false,
            freed: false,
            moved: [0; 2],
            closed: 0,
        }
    }

    /// The peer takes what has arrived, which must be what was written, in order.
    pub(crate) fn receive(&mut self) {
        let Some(peer) = &self.peer else {
            return;
        };
        self.got.extend(peer.receive());
        let known = self.got.len().min(self.written.len());
        let fresh = self.checked..known.max(self.checked);
        assert!(
            self.got[fresh.clone()] == self.written[fresh],
            "other bytes arrived"
        );
        self.checked = known;
    }

    /// Nothing is on its way: what arrived is what the results said, no more and no less.
    pub(crate) fn assert_settled(&mut self) {
        self.receive();
        if self.peer.is_some() && !self.reset {
            assert_eq!(
                self.got.len(),
                self.written.len(),
                "bytes that no result tells of"
            );
        }
    }
}

impl Model {
    /// Checks one result. `now` is the time of the world.
    pub(crate) fn check(&mut self, res: &OpResult<u64>, now: Instant, start: Instant) {
        let number = res.context;
        let asked = self.asked.get(&number);
        let asked = asked.unwrap_or_else(|| panic!("nobody asked for {res:?}, or it was twice"));
        let what = asked.what;
        assert_eq!(res.operation, what.operation(), "{res:?}");
        assert!(asked.op.is_none_or(|op| op == res.op), "{res:?}");
        self.note(res, now, start);
        if let (Some(error), What::Connect) = (res.error, what) {
            let line = self.asked[&number].line.unwrap();
            self.lines[line].unconnected = Some(error.kind());
        }
        if let Some(error) = res.error {
            self.check_error(res, error.kind(), now);
        }
        match self.asked[&number].line {
            Some(line) => self.check_transfer(line, res, what),
            None => assert_eq!(res.conn, Conn::NONE),
        }
        if res.is_last() {
            self.asked.remove(&number);
        }
    }

    fn note(&mut self, res: &OpResult<u64>, now: Instant, start: Instant) {
        let error = res.error.map_or(0, |error| error.kind() as u64 + 1);
        let passed = now.duration_since(start).as_nanos() as u64;
        for part in [
            res.context,
            res.size as u64,
            error,
            u64::from(res.is_last()),
            passed,
        ] {
            self.trace = (self.trace ^ part).wrapping_mul(1_099_511_628_211);
        }
        self.results += 1;
    }

    fn check_error(&self, res: &OpResult<u64>, kind: ErrorKind, now: Instant) {
        let asked = &self.asked[&res.context];
        let line = asked.line.map(|line| &self.lines[line]);
        let freed = line.is_some_and(|line| line.freed);
        // What waited for the connection ends as it did.
        let unconnected = line.is_some_and(|line| line.unconnected == Some(kind));
        let allowed = match kind {
            ErrorKind::Deadline => asked.deadline.is_some_and(|at| now >= at),
            ErrorKind::Cancelled => asked.cancelled,
            ErrorKind::ConnClosed => freed,
            ErrorKind::WatcherClosed => self.closed,
            ErrorKind::UnexpectedEof => matches!(asked.what, What::ReadFull(_)),
            // Of a remote; the watcher's own calls are refused.
            ErrorKind::WriteLimit => {
                matches!(asked.what, What::Write(..)) && self.write_limit < usize::MAX
            }
            // What the system says is told, but not what only means: again.
            ErrorKind::Os => {
                let errno = res.error.and_then(|error| error.raw_os_error());
                errno.is_some_and(|errno| TOLD.contains(&errno))
            }
            _ => false,
        };
        assert!(
            allowed || unconnected,
            "an error that nothing explains: {res:?} for {asked:?}"
        );
    }

    fn check_transfer(&mut self, index: usize, res: &OpResult<u64>, what: What) {
        let line = &mut self.lines[index];
        assert_eq!(res.conn, line.conn, "{res:?}");
        if res
            .error
            .is_some_and(|error| error.kind() == ErrorKind::ConnClosed)
        {
            assert!(line.closed < res.context, "freed out of order: {res:?}");
            line.closed = res.context;
        }
        let direction = match what {
            What::ReadSwap | What::Read(_) | What::ReadFull(_) | What::ReadStream => 0,
            What::Write(..) => 1,
            _ => return,
        };
        if res.size > 0 {
            assert!(
                line.moved[direction] <= res.context,
                "out of order: {res:?}"
            );
            line.moved[direction] = res.context;
        }
        match what {
            What::Write(from, len) => {
                assert_eq!(res.buffer.len_bytes(), len, "the buffer comes back whole");
                assert!(
                    res.size <= len && (res.size == len || res.error.is_some()),
                    "{res:?}"
                );
                line.written.extend(bytes(index + 1, from, res.size));
            }
            _ => {
                let room = match what {
                    What::Read(room) | What::ReadFull(room) => room,
                    _ => usize::MAX,
                };
                assert_eq!(res.buffer.len(), res.size, "{res:?}");
                assert!(res.size <= room, "{res:?}");
                if let What::ReadFull(room) = what {
                    assert!(res.error.is_some() || res.size == room, "{res:?}");
                }
                for (at, &got) in res.data().iter().enumerate() {
                    assert_eq!(got, byte(index, line.read + at), "{res:?} at {at}");
                }
                line.read += res.size;
                assert!(
                    line.read <= line.sent,
                    "bytes that were never sent: {res:?}"
                );
                if res.is_eof() {
                    assert!(
                        line.reset || line.read == line.sent,
                        "an end with data behind it"
                    );
                }
            }
        }
    }

    /// No more bytes are queued than the writes that are asked for have.
    pub(crate) fn assert_queued(&self, queued_bytes: impl Fn(Conn) -> usize) {
        for (index, line) in self.lines.iter().enumerate() {
            let asked = self.asked.values().filter(|it| it.line == Some(index));
            let asked = asked.map(|asked| match asked.what {
                What::Write(_, len) => len,
                _ => 0,
            });
            let queued = queued_bytes(line.conn);
            assert!(queued <= asked.sum(), "{queued} bytes queued");
            assert!(queued == 0 || !line.freed, "bytes of a freed connection");
        }
    }

    /// No request is kept beyond its time.
    pub(crate) fn assert_punctual(&self, now: Instant) {
        for asked in self.asked.values() {
            let late = asked.deadline.is_some_and(|at| now > at + LATE_MAX);
            assert!(!late, "its time is over: {asked:?}");
        }
    }
}

impl What {
    fn operation(self) -> Operation {
        match self {
            What::ReadSwap | What::Read(_) | What::ReadFull(_) | What::ReadStream => {
                Operation::Read
            }
            What::Write(..) => Operation::Write,
            What::Accept => Operation::Accept,
            What::Connect => Operation::Connect,
            What::Shutdown => Operation::Shutdown,
            What::Ready => Operation::Ready,
            What::Timer => Operation::Timer,
            What::Post => Operation::Post,
        }
    }
}
