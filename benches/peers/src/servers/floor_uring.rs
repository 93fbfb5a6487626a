//! The floor for completions: io_uring by hand. Receives into shared incremental buffers, one-shot
//! or multishot; sends straight from where the kernel put the bytes.
//!
//! A send that does not wait (`MSG_DONTWAIT`) is over when the call that submits it returns, so that
//! its success needs no completion. If the socket did not take all, there is one that says so, and
//! the rest goes with a send that waits.

use std::collections::VecDeque;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::types::Fd;
use io_uring::{cqueue, opcode, squeue};

use super::closed;
use crate::Fallible;
use crate::uring::{Buffers, Chunk, Ring};

const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;
const CLOSE: u64 = 3;

pub fn run(listener: TcpListener, stream: bool) -> Fallible<()> {
    let mut server = Server::new(listener, stream)?;
    server.accept();
    loop {
        server.turn()?;
    }
}

struct Server {
    ring: Ring,
    buffers: Buffers,
    listener: TcpListener,
    stream: bool,
    turn: u64,
    /// By descriptor.
    connections: Vec<Connection>,
    /// Buffers of the sends that were pushed in this turn, and of those before, which are over.
    pushed: Vec<u16>,
    over: Vec<u16>,
    /// Connections that go on when what was pushed is submitted.
    later: Vec<RawFd>,
    /// Connections whose receive found no buffer.
    starved: VecDeque<RawFd>,
}

#[derive(Default)]
struct Connection {
    /// What was last sent, and when.
    sent: Option<Chunk>,
    sent_turn: u64,
    /// The socket is full: a send that waits is on its way.
    full: bool,
    /// Nothing more will come.
    ended: bool,
    /// Nothing more can be sent.
    broken: bool,
    /// What waits for the send before it.
    chunks: VecDeque<Chunk>,
}

impl Server {
    fn new(listener: TcpListener, stream: bool) -> Fallible<Self> {
        let ring = Ring::new()?;
        Ok(Server {
            buffers: Buffers::new(&ring)
                .map_err(|error| format!("incremental buffers (Linux 6.12): {error}"))?,
            ring,
            listener,
            stream,
            turn: 1,
            connections: Vec::new(),
            pushed: Vec::new(),
            over: Vec::new(),
            later: Vec::new(),
            starved: VecDeque::new(),
        })
    }

    fn turn(&mut self) -> Fallible<()> {
        // A send that succeeds does not wake: what waits for one, or for its buffer, must not sleep.
        let starved = !self.starved.is_empty() && !self.pushed.is_empty();
        let idle = self.later.is_empty() && !starved;
        self.ring.enter(usize::from(idle));
        self.turn += 1;
        std::mem::swap(&mut self.pushed, &mut self.over);
        while let Some(entry) = self.ring.next() {
            let fd = (entry.user_data() >> 2) as RawFd;
            match entry.user_data() & 3 {
                RECEIVE => self.received(fd, entry.result(), entry.flags()),
                SEND => self.send_ended(fd, entry.result()),
                ACCEPT => self.accepted(entry.result(), entry.flags())?,
                _ => {}
            }
        }
        if self.ring.overflowed() {
            // Sends that failed may not have said so yet.
            self.pushed.append(&mut self.over);
            return Ok(());
        }
        for buffer in self.over.drain(..) {
            self.buffers.give_back(buffer);
        }
        self.go_on();
        Ok(())
    }

    /// What had to wait for this turn's end.
    fn go_on(&mut self) {
        for fd in std::mem::take(&mut self.later) {
            self.send_next(fd);
        }
        // About as many as the buffers will serve: the others would only fail again.
        for _ in 0..self.starved.len().min(self.buffers.lent) {
            if let Some(fd) = self.starved.pop_front() {
                self.receive(fd);
            }
        }
    }

    fn accept(&mut self) {
        let entry = opcode::AcceptMulti::new(Fd(self.listener.as_raw_fd())).build();
        self.ring.push(&entry.user_data(ACCEPT));
    }

    fn accepted(&mut self, result: i32, flags: u32) -> Fallible<()> {
        let Ok(place) = usize::try_from(result) else {
            let error = std::io::Error::from_raw_os_error(-result);
            return Err(format!("accept: {error}").into());
        };
        if place >= self.connections.len() {
            self.connections.resize_with(place + 1, Connection::default);
        }
        self.connections[place] = Connection::default();
        self.receive(result);
        if !cqueue::more(flags) {
            self.accept();
        }
        Ok(())
    }

    #[inline]
    fn receive(&mut self, fd: RawFd) {
        let entry = if self.stream {
            opcode::RecvMulti::new(Fd(fd), 0).build()
        } else {
            opcode::Recv::new(Fd(fd), std::ptr::null_mut(), 0)
                .buf_group(0)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT)
        };
        self.ring.push(&entry.user_data((fd as u64) << 2 | RECEIVE));
    }

    #[inline]
    fn received(&mut self, fd: RawFd, result: i32, flags: u32) {
        if result > 0 {
            let chunk = self.buffers.take(result as u32, flags);
            self.echo(fd, chunk);
            if !cqueue::more(flags) {
                self.receive(fd);
            }
        } else if result == -libc::ENOBUFS {
            self.starved.push_back(fd);
        } else if !cqueue::more(flags) {
            self.connections[fd as usize].ended = true;
            self.later.push(fd);
        }
    }

    #[inline]
    fn echo(&mut self, fd: RawFd, chunk: Chunk) {
        let connection = &mut self.connections[fd as usize];
        if connection.full || !connection.chunks.is_empty() {
            connection.chunks.push_back(chunk);
        } else if connection.sent_turn == self.turn {
            // Whether that one goes through is not known before it is submitted.
            connection.chunks.push_back(chunk);
            self.later.push(fd);
        } else if connection.broken {
            self.buffers.give_back(chunk.buffer);
        } else {
            self.send(fd, chunk);
        }
    }

    /// Sends what the socket takes at once.
    #[inline]
    fn send(&mut self, fd: RawFd, chunk: Chunk) {
        let connection = &mut self.connections[fd as usize];
        connection.sent = Some(chunk);
        connection.sent_turn = self.turn;
        let entry = opcode::Send::new(Fd(fd), chunk.at, chunk.len)
            .flags(libc::MSG_WAITALL | libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
            .build()
            .flags(squeue::Flags::SKIP_SUCCESS);
        self.ring.push(&entry.user_data((fd as u64) << 2 | SEND));
        self.pushed.push(chunk.buffer);
    }

    /// The socket did not take all that was sent at once, or it took the rest by now.
    fn send_ended(&mut self, fd: RawFd, result: i32) {
        let connection = &mut self.connections[fd as usize];
        let Some(chunk) = connection.sent.take() else {
            return;
        };
        let first = !connection.full;
        connection.full = false;
        let rest = match u32::try_from(result) {
            Ok(sent) => chunk.rest(sent),
            Err(_) if result == -libc::EAGAIN => chunk,
            Err(_) => {
                connection.broken = true;
                chunk.rest(chunk.len)
            }
        };
        // The hold of the first send ends with its turn.
        match (first, rest.len) {
            (true, 1..) => self.buffers.hold(chunk.buffer),
            (false, 0) => self.buffers.give_back(chunk.buffer),
            _ => {}
        }
        if rest.len > 0 {
            self.send_waiting(fd, rest);
        } else {
            self.later.push(fd);
        }
    }

    fn send_waiting(&mut self, fd: RawFd, chunk: Chunk) {
        let connection = &mut self.connections[fd as usize];
        connection.sent = Some(chunk);
        connection.full = true;
        let entry = opcode::Send::new(Fd(fd), chunk.at, chunk.len)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL)
            .build();
        self.ring.push(&entry.user_data((fd as u64) << 2 | SEND));
    }

    /// Sends what waits, or closes the connection if nothing more is to be done.
    fn send_next(&mut self, fd: RawFd) {
        let connection = &mut self.connections[fd as usize];
        if connection.full {
            return;
        }
        if connection.sent_turn == self.turn {
            return self.later.push(fd);
        }
        if connection.broken {
            for chunk in connection.chunks.drain(..) {
                self.buffers.give_back(chunk.buffer);
            }
        }
        if let Some(chunk) = connection.chunks.pop_front() {
            if !connection.chunks.is_empty() || connection.ended {
                self.later.push(fd);
            }
            self.send(fd, chunk);
        } else if connection.ended {
            connection.ended = false;
            closed();
            self.ring
                .push(&opcode::Close::new(Fd(fd)).build().user_data(CLOSE));
        }
    }
}
