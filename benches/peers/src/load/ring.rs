//! The load's driver on io_uring: one multishot receive for each connection, and sends that do not
//! wait, whose success needs no completion (see the floor). One ring serves all loads of a process,
//! one after the other: a thread can register only sixteen.

use std::cell::RefCell;
use std::net::{Shutdown, TcpStream};
use std::ops::{Deref, DerefMut};
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

/// How long the last operations of a load may take to end.
const TICKS_MAX: u32 = 5;

thread_local! {
    /// The ring of the load before, on which nothing runs but the tick.
    static IDLE: RefCell<Option<Queues>> = const { RefCell::new(None) };
}

struct Queues {
    ring: uring::Ring,
    buffers: uring::Buffers,
}

/// Queues that are idle again after the drop.
struct Lent(Option<Queues>);

pub struct Ring {
    queues: Lent,
    connections: Vec<Connection>,
    spinning: bool,
}

struct Connection {
    socket: TcpStream,
    /// Bytes of the last send.
    sent: u32,
    /// The socket is full: a send that waits is on its way.
    full: bool,
    receiving: bool,
}

impl Queues {
    fn new() -> Fallible<Self> {
        if let Some(idle) = IDLE.take() {
            return Ok(idle);
        }
        let mut ring = uring::Ring::new()?;
        // So that a server that sends nothing back is noticed.
        let second: &'static Timespec = Box::leak(Box::new(Timespec::new().sec(1)));
        let tick = opcode::Timeout::new(second).flags(TimeoutFlags::MULTISHOT);
        ring.push(&tick.build().user_data(TICK));
        let buffers = uring::Buffers::new(&ring)?;
        Ok(Queues { ring, buffers })
    }
}

impl Ring {
    pub fn new() -> Fallible<Self> {
        Ok(Ring {
            queues: Lent(Some(Queues::new()?)),
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
            receiving: false,
        };
        self.connections = sockets.into_iter().map(connection).collect();
        (0..self.connections.len()).for_each(|index| self.receive(index));
        self
    }

    fn receive(&mut self, index: usize) {
        self.connections[index].receiving = true;
        let fd = Fd(self.connections[index].socket.as_raw_fd());
        let entry = opcode::RecvMulti::new(fd, 0).build();
        self.queues
            .ring
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
        self.queues
            .ring
            .push(&entry.user_data((index as u64) << 1 | SEND));
    }

    fn received(
        &mut self,
        clients: &mut Clients,
        index: usize,
        entry: &cqueue::Entry,
    ) -> Fallible<()> {
        self.connections[index].receiving = cqueue::more(entry.flags());
        match u32::try_from(entry.result()) {
            Ok(0) => return Err("the server closed a connection".into()),
            Ok(len) => {
                let chunk = self.queues.buffers.take(len, entry.flags());
                let checked = clients.came(index, self.queues.buffers.bytes(&chunk));
                // Whatever came: the next load wants the buffer.
                self.queues.buffers.give_back(chunk.buffer);
                checked?;
            }
            // It has buffers again by now.
            Err(_) if entry.result() == -libc::ENOBUFS => {}
            Err(_) => return Err(error("receive", entry.result())),
        }
        if !self.connections[index].receiving {
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
        if !self.queues.ring.overflowed() {
            clients.begin_sending();
            while let Some(index) = clients.next_dirty() {
                self.send(clients, index);
            }
        }
        if self.spinning {
            loop {
                self.queues.ring.look();
                if !self.queues.ring.is_empty() {
                    break;
                }
            }
        } else {
            self.queues.ring.enter(1);
        }
        clients.tick();
        while let Some(entry) = self.queues.ring.next() {
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

impl Drop for Ring {
    /// Ends what runs, so that the ring can serve another load.
    fn drop(&mut self) {
        for connection in &self.connections {
            // One that the server has closed is as good.
            let _ = connection.socket.shutdown(Shutdown::Both);
        }
        let mut ticks = 0;
        loop {
            // Also what was pushed and not submitted: it names sockets that are about to close.
            self.queues.ring.look();
            while let Some(entry) = self.queues.ring.next() {
                if entry.user_data() == TICK {
                    ticks += 1;
                } else {
                    self.end(&entry);
                }
            }
            let running = |connection: &Connection| connection.receiving || connection.full;
            if !self.connections.iter().any(running) {
                return;
            }
            if ticks > TICKS_MAX {
                // Left alone for good: something still runs there.
                std::mem::forget(self.queues.0.take());
                return;
            }
        }
    }
}

impl Ring {
    /// Takes a completion that nobody waits for any more.
    fn end(&mut self, entry: &cqueue::Entry) {
        let connection = &mut self.connections[(entry.user_data() >> 1) as usize];
        if entry.user_data() & 1 == SEND {
            connection.full = false;
            return;
        }
        connection.receiving = cqueue::more(entry.flags());
        if let Ok(len @ 1..) = u32::try_from(entry.result()) {
            let chunk = self.queues.buffers.take(len, entry.flags());
            self.queues.buffers.give_back(chunk.buffer);
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        IDLE.set(self.0.take());
    }
}

impl Deref for Lent {
    type Target = Queues;

    fn deref(&self) -> &Queues {
        self.0.as_ref().expect("there until the drop")
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut Queues {
        self.0.as_mut().expect("there until the drop")
    }
}
