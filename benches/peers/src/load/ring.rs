//! The load's driver on io_uring: one multishot receive for each connection, and sends that do not
//! wait, whose success needs no completion (see the floor).

use std::net::TcpStream;
use std::os::fd::AsRawFd;

use io_uring::types::{Fd, TimeoutFlags, Timespec};
use io_uring::{cqueue, opcode, squeue};

use super::Drive;
use super::clients::Clients;
use crate::Fallible;
use crate::uring;

const RECEIVE: u64 = 0;
const SEND: u64 = 1;
/// Not an index.
const TICK: u64 = u64::MAX;

pub struct Ring {
    ring: uring::Ring,
    buffers: uring::Buffers,
    connections: Vec<Connection>,
    spinning: bool,
}

struct Connection {
    socket: TcpStream,
    /// Bytes of the last send.
    sent: u32,
    /// The socket is full: a send that waits is on its way.
    full: bool,
}

impl Ring {
    pub fn new() -> Fallible<Self> {
        let ring = uring::Ring::new()?;
        Ok(Ring {
            buffers: uring::Buffers::new(&ring)?,
            ring,
            connections: Vec::new(),
            spinning: false,
        })
    }

    /// Takes the clients' sockets. Spinning, a turn does not sleep but looks until there is something.
    pub fn with(mut self, sockets: Vec<TcpStream>, spinning: bool) -> Self {
        self.spinning = spinning;
        let connection = |socket| Connection {
            socket,
            sent: 0,
            full: false,
        };
        self.connections = sockets.into_iter().map(connection).collect();
        (0..self.connections.len()).for_each(|index| self.receive(index));
        // So that a server that sends nothing back is noticed.
        let second: &'static Timespec = Box::leak(Box::new(Timespec::new().sec(1)));
        let tick = opcode::Timeout::new(second).flags(TimeoutFlags::MULTISHOT);
        self.ring.push(&tick.build().user_data(TICK));
        self
    }

    fn receive(&mut self, index: usize) {
        let fd = Fd(self.connections[index].socket.as_raw_fd());
        let entry = opcode::RecvMulti::new(fd, 0).build();
        self.ring
            .push(&entry.user_data((index as u64) << 1 | RECEIVE));
    }

    fn send(&mut self, clients: &mut Clients, index: usize) {
        let connection = &mut self.connections[index];
        let bytes = clients.take_unsent(index);
        if connection.full || bytes.is_empty() {
            return;
        }
        connection.sent = bytes.len() as u32;
        // More than one piece goes one by one, a turn each.
        clients.sent(index, bytes.len());
        self.push_send(index, bytes, libc::MSG_DONTWAIT);
    }

    fn push_send(&mut self, index: usize, bytes: &'static [u8], wait: i32) {
        let fd = Fd(self.connections[index].socket.as_raw_fd());
        let entry = opcode::Send::new(fd, bytes.as_ptr(), bytes.len() as u32)
            .flags(libc::MSG_WAITALL | libc::MSG_NOSIGNAL | wait)
            .build();
        let entry = match wait {
            0 => entry,
            _ => entry.flags(squeue::Flags::SKIP_SUCCESS),
        };
        self.ring.push(&entry.user_data((index as u64) << 1 | SEND));
    }

    fn received(
        &mut self,
        clients: &mut Clients,
        index: usize,
        entry: &cqueue::Entry,
    ) -> Fallible<()> {
        match u32::try_from(entry.result()) {
            Ok(0) => return Err("the server closed a connection".into()),
            Ok(len) => {
                let chunk = self.buffers.take(len, entry.flags());
                clients.came(index, self.buffers.bytes(&chunk))?;
                self.buffers.give_back(chunk.buffer);
            }
            // It has buffers again by now.
            Err(_) if entry.result() == -libc::ENOBUFS => {}
            Err(_) => return Err(error("receive", entry.result())),
        }
        if !cqueue::more(entry.flags()) {
            self.receive(index);
        }
        Ok(())
    }

    /// The socket did not take all that was sent at once, or it took the rest by now.
    fn send_ended(&mut self, clients: &mut Clients, index: usize, result: i32) -> Fallible<()> {
        let sent = match u32::try_from(result) {
            Ok(sent) => sent,
            Err(_) if result == -libc::EAGAIN => 0,
            Err(_) => return Err(error("send", result)),
        };
        let connection = &mut self.connections[index];
        let rest = connection.sent - sent;
        connection.sent = rest;
        connection.full = rest > 0;
        if rest > 0 {
            let bytes = clients.unsent(index, rest as usize);
            self.push_send(index, bytes, 0);
        } else {
            self.send(clients, index);
        }
        Ok(())
    }
}

fn error(what: &str, result: i32) -> Box<dyn std::error::Error> {
    format!("{what}: {}", std::io::Error::from_raw_os_error(-result)).into()
}

impl Drive for Ring {
    fn turn(&mut self, clients: &mut Clients) -> Fallible<()> {
        clients.tick();
        // Else sends that failed may not have said so yet.
        if !self.ring.overflowed() {
            clients.begin_sending();
            while let Some(index) = clients.next_dirty() {
                self.send(clients, index);
            }
        }
        if self.spinning {
            self.ring.look();
            while self.ring.is_empty() {
                self.ring.look();
            }
        } else {
            self.ring.enter(1);
        }
        clients.tick();
        while let Some(entry) = self.ring.next() {
            let index = (entry.user_data() >> 1) as usize;
            match entry.user_data() & 1 {
                _ if entry.user_data() == TICK => {}
                RECEIVE => self.received(clients, index, &entry)?,
                _ => self.send_ended(clients, index, entry.result())?,
            }
        }
        Ok(())
    }
}
