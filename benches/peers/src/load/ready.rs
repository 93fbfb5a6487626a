//! The load's driver on readiness, for machines that have no io_uring.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::Drive;
use super::clients::{Clients, PIECE_BYTES};
use crate::Fallible;

pub struct Ready {
    poll: Poll,
    events: Events,
    connections: Vec<TcpStream>,
    buffer: Vec<u8>,
}

impl Ready {
    pub fn new(sockets: Vec<std::net::TcpStream>) -> Fallible<Self> {
        let poll = Poll::new()?;
        let mut connections = Vec::new();
        for (index, socket) in sockets.into_iter().enumerate() {
            socket.set_nonblocking(true)?;
            let mut socket = TcpStream::from_std(socket);
            let both = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut socket, Token(index), both)?;
            connections.push(socket);
        }
        Ok(Ready {
            poll,
            events: Events::with_capacity(1024),
            connections,
            buffer: vec![0; PIECE_BYTES],
        })
    }

    fn send(&mut self, clients: &mut Clients, index: usize) -> Fallible<()> {
        loop {
            let bytes = clients.take_unsent(index);
            if bytes.is_empty() {
                return Ok(());
            }
            match self.connections[index].write(bytes) {
                Ok(len) => clients.sent(index, len),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(format!("send: {error}").into()),
            }
        }
    }

    fn receive(&mut self, clients: &mut Clients, index: usize) -> Fallible<()> {
        loop {
            let len = match self.connections[index].read(&mut self.buffer) {
                Ok(0) => return Err("the server closed a connection".into()),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(format!("receive: {error}").into()),
            };
            clients.came(index, &self.buffer[..len])?;
            if len < self.buffer.len() {
                return Ok(());
            }
        }
    }
}

impl Drive for Ready {
    fn turn(&mut self, clients: &mut Clients) -> Fallible<()> {
        clients.tick();
        clients.begin_sending();
        while let Some(index) = clients.next_dirty() {
            self.send(clients, index)?;
        }
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        self.poll.poll(&mut events, Some(Duration::from_secs(1)))?;
        clients.tick();
        for event in &events {
            let index = event.token().0;
            self.receive(clients, index)?;
            if event.is_writable() {
                self.send(clients, index)?;
            }
        }
        self.events = events;
        Ok(())
    }
}
