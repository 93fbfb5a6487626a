//! A program that a seed decides: what it asks of the watcher, what the peers do, what it does with
//! the results.

use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use gaio::{
    Buffer, Conn, Deadline, ErrorKind, Interest, OpId, OpResult, Operation, Rejected, Remote,
    Results, Watcher,
};
use gaio_backends::select::simulate;
use gaio_backends::sim::World;

use crate::model::{Asked, Line, Model, What};
use crate::{Random, bytes};

/// Connections at a time.
const LINES_MAX: usize = 12;
/// Turns in which everything must end once the kernel is calm and the peers are done.
const TURNS_MAX: usize = 2_000;

/// How a program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The peers end, and everything comes to its end.
    Settle,
    /// The watcher is closed and hands out the rest.
    Close,
    /// The watcher is dropped as it is.
    Drop,
}

#[expect(missing_debug_implementations, reason = "it runs, or it panics")]
pub struct Program {
    world: World,
    start: Instant,
    random: Random,
    watcher: Watcher<u64>,
    remote: Remote<u64>,
    results: Results<u64>,
    model: Model,
    listener: Option<(Conn, usize)>,
    /// Leases that are kept for a while.
    kept: Vec<Buffer>,
    next: u64,
}

impl Program {
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);
        let world = World::new(seed);
        let size = random.pick(&[1 << 10, 4 << 10, 64 << 10]);
        let watcher = Watcher::builder()
            .swap_buffer_size(size)
            .swap_buffers(random.pick(&[1, 2, 8, 64]))
            .stream_window(random.pick(&[1, 3_000, 100_000]))
            .build_with(|options| simulate(world.clone(), options))
            .unwrap();
        let max = random.pick(&[1, 3, 256]);
        Program {
            start: world.now(),
            remote: watcher.remote(),
            watcher,
            world,
            random,
            results: Results::with_capacity(max),
            model: Model::default(),
            listener: None,
            kept: Vec::new(),
            next: 1,
        }
    }

    /// Runs it, checks all that comes, and gives a hash of it and how much it was.
    pub fn run(mut self, rounds: usize, ending: Ending) -> (u64, usize) {
        for _ in 0..rounds {
            for _ in 0..self.random.below(6) {
                self.act();
            }
            let micros = self.random.pick(&[0, 1, 50, 10_000]);
            self.turn(Duration::from_micros(micros));
        }
        match ending {
            Ending::Settle => self.settle(),
            Ending::Close => self.close(),
            Ending::Drop => {
                let kept: Vec<Vec<u8>> = self.kept.iter().map(|lease| lease.to_vec()).collect();
                drop(self.watcher);
                for (lease, before) in self.kept.iter().zip(&kept) {
                    assert_eq!(&lease[..], &before[..], "a lease changed with its watcher");
                }
            }
        }
        (self.model.trace, self.model.results)
    }

    fn turn(&mut self, timeout: Duration) {
        let Ok(count) = self.watcher.wait_io_timeout(&mut self.results, timeout) else {
            panic!("the watcher is not closed");
        };
        assert_eq!(count, self.results.len());
        let now = self.world.now();
        while let Some(res) = self.results.pop() {
            self.model.check(&res, now, self.start);
            self.react(res);
        }
        self.model.assert_punctual(now);
    }

    fn react(&mut self, res: OpResult<u64>) {
        if res.operation == Operation::Connect && res.error.is_some() {
            // Its requests have ended with it.
            self.free(res.conn);
        }
        if let Some(conn) = res.accepted() {
            // The peers of a listener come one after the other; which one this is does not show.
            self.watcher.free(conn);
        }
        if res.is_swap_buffer() && self.random.below(4) == 0 {
            self.kept.push(res.buffer);
        }
        if self.kept.len() > 3 {
            let place = self.random.below(self.kept.len());
            self.kept.swap_remove(place);
        }
    }

    fn act(&mut self) {
        match self.random.below(30) {
            0..=1 => self.open(),
            2..=8 => self.read(),
            9..=13 => self.write(),
            14..=18 => self.peer_acts(),
            19..=20 => self.cancel(),
            21 => self.free_one(),
            22 => self.timer(),
            23 => self.through_remote(),
            24 => self.listen_and_dial(),
            25 => self.connect(),
            26 => self.ready(),
            27 => self.shutdown(),
            28 => self.reclaim(),
            _ => self.kept.clear(),
        }
    }

    fn open(&mut self) {
        if self.open_lines().len() < LINES_MAX {
            let (socket, peer) = self.world.connect().unwrap();
            let conn = match self.random.below(3) {
                0 => self.remote.delegate(socket).unwrap(),
                _ => self.watcher.delegate(socket).unwrap(),
            };
            self.assert_fresh(conn);
            self.model.lines.push(Line::new(conn, Some(peer)));
        }
    }

    /// An index comes again only after the last result of its old life.
    fn assert_fresh(&self, conn: Conn) {
        for asked in self.model.asked.values() {
            let other = asked.line.map(|line| self.model.lines[line].conn);
            assert!(other.is_none_or(|other| other.index() != conn.index()));
        }
    }

    fn read(&mut self) {
        let Some((line, conn)) = self.some_line() else {
            return;
        };
        let number = self.number();
        let room = 1 + self.random.below(5_000);
        let deadline = self.deadline();
        let until = deadline.map_or(Deadline::NEVER, Deadline::from);
        let (what, op) = match self.random.below(6) {
            0 => {
                let op = self
                    .watcher
                    .read_timeout(number, conn, vec![0; room], until);
                (What::Read(room), accepted(op))
            }
            1 => {
                let op = self.watcher.read_full(number, conn, vec![0; room], until);
                (What::ReadFull(room), accepted(op))
            }
            2 => {
                let op = self.watcher.read_stream(number, conn);
                return self.ask(number, What::ReadStream, Some(line), accepted(op), None);
            }
            _ => {
                let op = self.watcher.read_timeout(number, conn, None, until);
                (What::ReadSwap, accepted(op))
            }
        };
        self.ask(number, what, Some(line), op, deadline);
    }

    fn write(&mut self) {
        let Some((line, conn)) = self.some_line() else {
            return;
        };
        for _ in 0..1 + self.random.below(4) {
            let number = self.number();
            let most = self.random.pick(&[10, 1_000, 30_000]);
            let len = 1 + self.random.below(most);
            let from = self.model.lines[line].write_at;
            self.model.lines[line].write_at += len;
            let deadline = self.deadline();
            let until = deadline.map_or(Deadline::NEVER, Deadline::from);
            let data = bytes(line + 1, from, len);
            let op = self.watcher.write_timeout(number, conn, data, until);
            self.ask(
                number,
                What::Write(from, len),
                Some(line),
                accepted(op),
                deadline,
            );
        }
    }

    fn peer_acts(&mut self) {
        let Some((index, _)) = self.some_line() else {
            return;
        };
        let most = self.random.pick(&[50, 2_000, 20_000]);
        let len = self.random.below(most);
        let choice = self.random.below(40);
        let window = self.random.below(200_000);
        let line = &mut self.model.lines[index];
        let Some(peer) = &line.peer else {
            return;
        };
        match choice {
            0 => {
                peer.end();
                line.ended = true;
            }
            1 => {
                peer.reset();
                line.reset = true;
            }
            2..=4 => peer.set_window(window),
            5..=20 => line.receive(),
            _ if line.ended || line.reset => {}
            _ => {
                peer.send(&bytes(index, line.sent, len));
                line.sent += len;
            }
        }
    }

    fn cancel(&mut self) {
        let count = self.model.asked.len();
        if count == 0 {
            return;
        }
        let place = self.random.below(count);
        let by_remote = self.random.below(4) == 0;
        let asked = self.model.asked.values_mut().nth(place).unwrap();
        if let Some(op) = asked.op {
            if by_remote {
                asked.cancelled = true;
                self.remote.cancel(op).unwrap();
            } else if self.watcher.cancel(op) {
                asked.cancelled = true;
            }
        }
    }

    fn free_one(&mut self) {
        if let Some((_, conn)) = self.some_line() {
            self.free(conn);
        }
    }

    fn free(&mut self, conn: Conn) {
        let line = self.model.lines.iter_mut().find(|line| line.conn == conn);
        let was_open = line.is_some_and(|line| !std::mem::replace(&mut line.freed, true));
        assert_eq!(self.watcher.free(conn), was_open);
        assert!(!self.watcher.contains(conn));
    }

    fn timer(&mut self) {
        let number = self.number();
        let at = self.world.now() + Duration::from_micros(self.random.next() % 20_000);
        let op = self.watcher.timer(number, at).unwrap();
        self.ask(number, What::Timer, None, Some(op), Some(at));
    }

    fn through_remote(&mut self) {
        let number = self.number();
        let Some((line, conn)) = self.some_line() else {
            self.remote.post(number).unwrap();
            return self.ask(number, What::Post, None, None, None);
        };
        if self.random.below(2) == 0 {
            let op = self.remote.read(number, conn, None).unwrap();
            self.ask(number, What::ReadSwap, Some(line), Some(op), None);
        } else {
            let from = self.model.lines[line].write_at;
            self.model.lines[line].write_at += 100;
            let data = bytes(line + 1, from, 100);
            let op = self.remote.write(number, conn, data).unwrap();
            self.ask(number, What::Write(from, 100), Some(line), Some(op), None);
        }
        // Accepted before anything else is asked, so that numbers are in order of acceptance.
        self.turn(Duration::ZERO);
    }

    fn listen_and_dial(&mut self) {
        let Some((conn, id)) = self.listener else {
            let (socket, id) = self.world.listen().unwrap();
            let conn = self.watcher.listen(socket).unwrap();
            self.listener = Some((conn, id));
            self.model.lines.push(Line::new(conn, None));
            self.model.lines.last_mut().unwrap().freed = true;
            let number = self.number();
            let op = self.watcher.accept(number, conn).unwrap();
            let line = self.model.lines.len() - 1;
            return self.ask(number, What::Accept, Some(line), Some(op), None);
        };
        drop(self.world.dial(id));
        if self.random.below(8) == 0 {
            self.listener = None;
            assert!(self.watcher.free(conn));
        }
    }

    fn connect(&mut self) {
        if self.open_lines().len() >= LINES_MAX {
            return;
        }
        let number = self.number();
        let deadline = self.deadline();
        let until = deadline.map_or(Deadline::NEVER, Deadline::from);
        let to = SocketAddr::from(([127, 0, 0, 1], 9));
        let conn = self.watcher.connect(number, to, until).unwrap();
        self.assert_fresh(conn);
        self.model.lines.push(Line::new(conn, None));
        let line = self.model.lines.len() - 1;
        self.ask(number, What::Connect, Some(line), None, deadline);
        // Waits for the connection, as do reads that other rounds may ask for.
        let number = self.number();
        let op = self.watcher.ready(number, conn, Interest::Writable);
        self.ask(number, What::Ready, Some(line), accepted(op), None);
    }

    fn ready(&mut self) {
        let Some((line, conn)) = self.some_line() else {
            return;
        };
        let number = self.number();
        let interest = self.random.pick(&[Interest::Readable, Interest::Writable]);
        let op = self.watcher.ready(number, conn, interest);
        self.ask(number, What::Ready, Some(line), accepted(op), None);
    }

    fn shutdown(&mut self) {
        let Some((line, conn)) = self.some_line() else {
            return;
        };
        if self.random.below(4) == 0 {
            let number = self.number();
            let op = self.watcher.shutdown(number, conn, Shutdown::Write);
            self.ask(number, What::Shutdown, Some(line), accepted(op), None);
        }
    }

    /// Takes an idle connection back, and gives it in again under another handle.
    fn reclaim(&mut self) {
        let Some((index, conn)) = self.some_line() else {
            return;
        };
        let mut asked = self.model.asked.values();
        if asked.any(|asked| asked.line == Some(index)) {
            return;
        }
        let socket = self.watcher.reclaim(conn).unwrap();
        self.model.lines[index].conn = self.watcher.delegate(socket).unwrap();
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn ask(
        &mut self,
        number: u64,
        what: What,
        line: Option<usize>,
        op: Option<OpId>,
        deadline: Option<Instant>,
    ) {
        let asked = Asked {
            op,
            what,
            line,
            deadline,
            cancelled: false,
        };
        self.model.asked.insert(number, asked);
    }

    fn deadline(&mut self) -> Option<Instant> {
        let micros = self.random.next() % 10_000;
        let now = self.world.now();
        match self.random.below(5) {
            0 => Some(now + Duration::from_micros(micros)),
            // In the past.
            1 if micros < 2_000 => Some(now),
            _ => None,
        }
    }

    fn open_lines(&self) -> Vec<usize> {
        let lines = self.model.lines.iter().enumerate();
        let open = lines.filter(|(_, line)| !line.freed);
        open.map(|(index, _)| index).collect()
    }

    fn some_line(&mut self) -> Option<(usize, Conn)> {
        let open = self.open_lines();
        let &line = open.get(self.random.below(open.len().max(1)))?;
        Some((line, self.model.lines[line].conn))
    }

    /// The peers end, the kernel is calm: everything must come to its end, and in few turns.
    fn settle(&mut self) {
        self.world.calm();
        self.kept.clear();
        for _ in 0..TURNS_MAX {
            for line in &mut self.model.lines {
                if let Some(peer) = &line.peer {
                    peer.set_window(usize::MAX);
                    peer.end();
                    line.receive();
                }
            }
            self.end_what_has_no_peer();
            if self.model.asked.is_empty() {
                break;
            }
            self.turn(Duration::from_millis(1));
            self.kept.clear();
        }
        assert!(
            self.model.asked.is_empty(),
            "never ended: {:?}",
            self.model.asked
        );
        for line in &mut self.model.lines {
            line.assert_settled();
        }
        assert_eq!(self.watcher.stats().pending, 0);
        assert_eq!(self.watcher.stats().leases, 0);
    }

    /// Connections that the watcher made itself, and its listener, end by being freed.
    fn end_what_has_no_peer(&mut self) {
        if let Some((conn, _)) = self.listener.take() {
            self.watcher.free(conn);
        }
        for index in self.open_lines() {
            let line = &self.model.lines[index];
            if line.peer.is_none() {
                let conn = line.conn;
                self.free(conn);
            }
        }
    }

    /// Everything ends with the watcher, which says so once more and then no more.
    fn close(&mut self) {
        self.model.closed = true;
        self.watcher.close();
        for _ in 0..TURNS_MAX {
            match self.watcher.wait_io(&mut self.results) {
                Ok(_) => {
                    let now = self.world.now();
                    while let Some(res) = self.results.pop() {
                        self.model.check(&res, now, self.start);
                    }
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WatcherClosed);
                    let left = &self.model.asked;
                    assert!(left.is_empty(), "closed without a result: {left:?}");
                    return;
                }
            }
        }
        panic!("a closed watcher goes on and on");
    }
}

/// Whatever is asked of a connection that is open is accepted.
fn accepted<T>(op: Result<OpId, Rejected<T>>) -> Option<OpId> {
    Some(op.unwrap())
}
