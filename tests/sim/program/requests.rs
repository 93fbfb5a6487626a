//! What a program asks of the watcher, and what its peers do.

use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use gaio::{Buffer, Conn, Deadline, ErrorKind, Interest, OpId, Rejected};

use super::{LINES_MAX, Program};
use crate::bytes;
use crate::model::{Asked, Line, What};

impl Program {
    pub(super) fn act(&mut self) {
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
            let most = self.random.pick(&[1, 10, 1_000, 30_000]);
            let len = self.random.below(most);
            let from = self.model.lines[line].write_at;
            let deadline = self.deadline();
            let until = deadline.map_or(Deadline::NEVER, Deadline::from);
            let data = bytes(line + 1, from, len);
            let queued = self.watcher.queued_bytes(conn);
            let op = match self.random.below(3) {
                0 => {
                    let parts = self.in_parts(data);
                    let op = self.watcher.write_vectored(number, conn, parts, until);
                    op.map_err(|rejected| {
                        let (error, (context, parts)) = rejected.into_parts();
                        let len = parts.iter().map(|part| part.len()).sum();
                        (error, context, len)
                    })
                }
                _ => {
                    let op = self.watcher.write_timeout(number, conn, data, until);
                    op.map_err(|rejected| {
                        let (error, (context, buffer)) = rejected.into_parts();
                        (error, context, buffer.len())
                    })
                }
            };
            if len > 0 && queued > 0 && queued + len > self.model.write_limit {
                let (error, context, came_back) = op.unwrap_err();
                assert_eq!(error.kind(), ErrorKind::WriteLimit);
                assert_eq!((context, came_back), (number, len));
                continue;
            }
            assert_eq!(self.watcher.queued_bytes(conn), queued + len);
            self.model.lines[line].write_at += len;
            self.ask(
                number,
                What::Write(from, len),
                Some(line),
                op.ok(),
                deadline,
            );
        }
    }

    /// Cuts data into a few parts, or into more than one call takes.
    fn in_parts(&mut self, data: Vec<u8>) -> Vec<Buffer> {
        let most = self.random.pick(&[2, 50, 5_000]);
        let mut rest = &data[..];
        let mut parts = Vec::new();
        while !rest.is_empty() {
            let (part, behind) = rest.split_at(self.random.below(most).min(rest.len()));
            parts.push(part.to_vec().into());
            rest = behind;
        }
        parts
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

    pub(super) fn free(&mut self, conn: Conn) {
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
        let Some((_, id)) = self.listener else {
            let (socket, id) = self.world.listen().unwrap();
            let conn = self.watcher.listen(socket).unwrap();
            self.listener = Some((conn, id));
            self.model.lines.push(Line::new(conn, None));
            self.model.lines.last_mut().unwrap().freed = true;
            self.accept_limit = self.random.pick(&[1, 3, usize::MAX]);
            self.watcher.accept_limit(conn, self.accept_limit).unwrap();
            let number = self.number();
            let op = self.watcher.accept(number, conn).unwrap();
            let line = self.model.lines.len() - 1;
            return self.ask(number, What::Accept, Some(line), Some(op), None);
        };
        drop(self.world.dial(id));
        match self.random.below(8) {
            0 => self.free_listener(),
            1..=4 => self.serve_one(),
            _ => {}
        }
    }

    pub(super) fn serve_one(&mut self) {
        if let Some(conn) = self.unserved.pop() {
            if self.random.below(2) == 0 {
                // This serves nobody.
                let error = self.watcher.read(0, conn, vec![]).unwrap_err().error();
                assert_eq!(error.kind(), ErrorKind::EmptyBuffer);
            }
            assert!(self.watcher.free(conn));
        }
    }

    pub(super) fn free_listener(&mut self) {
        if let Some((conn, _)) = self.listener.take() {
            assert!(self.watcher.free(conn));
        }
        for conn in self.unserved.drain(..) {
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

    pub(super) fn open_lines(&self) -> Vec<usize> {
        let lines = self.model.lines.iter().enumerate();
        let open = lines.filter(|(_, line)| !line.freed);
        open.map(|(index, _)| index).collect()
    }

    fn some_line(&mut self) -> Option<(usize, Conn)> {
        let open = self.open_lines();
        let &line = open.get(self.random.below(open.len().max(1)))?;
        Some((line, self.model.lines[line].conn))
    }
}

/// Whatever is asked of a connection that is open is accepted.
fn accepted<T>(op: Result<OpId, Rejected<T>>) -> Option<OpId> {
    Some(op.unwrap())
}
