//! mio: the loop of its examples, with one buffer for all connections, reading until a read is
//! short and writing at once.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpListener;

use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use super::{BUFFER_BYTES, closed};
use crate::Fallible;

const LISTENER: Token = Token(usize::MAX);

/// A connection, and what its socket did not take yet.
struct Connection {
    stream: TcpStream,
    unsent: Vec<u8>,
}

pub fn run(listener: TcpListener) -> Fallible<()> {
    listener.set_nonblocking(true)?;
    let mut listener = mio::net::TcpListener::from_std(listener);
    let mut poll = Poll::new()?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    let mut events = Events::with_capacity(1024);
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut idle = Vec::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, &mut connections, &mut idle)?;
                continue;
            }
            let place = event.token().0;
            let Some(connection) = connections[place].as_mut() else {
                continue;
            };
            if !connection.echo(&mut buffer) {
                connections[place] = None;
                idle.push(place);
                closed();
            }
        }
    }
}

fn accept(
    listener: &mio::net::TcpListener,
    poll: &Poll,
    connections: &mut Vec<Option<Connection>>,
    idle: &mut Vec<usize>,
) -> io::Result<()> {
    while let Ok((mut stream, _)) = listener.accept() {
        let place = idle.pop().unwrap_or_else(|| {
            connections.push(None);
            connections.len() - 1
        });
        let both = Interest::READABLE | Interest::WRITABLE;
        poll.registry().register(&mut stream, Token(place), both)?;
        connections[place] = Some(Connection {
            stream,
            unsent: Vec::new(),
        });
    }
    Ok(())
}

impl Connection {
    /// Sends back what there is. False when the connection has ended.
    fn echo(&mut self, buffer: &mut [u8]) -> bool {
        loop {
            while !self.unsent.is_empty() {
                match self.stream.write(&self.unsent) {
                    Ok(len) => drop(self.unsent.drain(..len)),
                    Err(error) => return error.kind() == ErrorKind::WouldBlock,
                }
            }
            let len = match self.stream.read(buffer) {
                Ok(0) => return false,
                Ok(len) => len,
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            };
            match self.stream.write(&buffer[..len]) {
                Ok(sent) if sent == len && len < buffer.len() => return true,
                Ok(sent) => self.unsent.extend(&buffer[sent..len]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.unsent.extend(&buffer[..len]);
                }
                Err(_) => return false,
            }
        }
    }
}
