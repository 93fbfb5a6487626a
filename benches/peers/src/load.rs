//! The load: connections that send messages and check every byte that comes back. On mio, because
//! that costs less for each message than any server here.

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Token};

use crate::Fallible;

/// A second's worth of nanoseconds is the longest latency that is told apart.
const LATENCY_MAX_NS: u64 = 1_000_000_000;
const READ_BYTES: usize = 256 * 1024;
/// Before anything is counted.
const WARM_UP: Duration = Duration::from_millis(300);

/// What the clients do.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub connections: usize,
    pub size: usize,
    /// Messages that each connection has on the way at a time.
    pub outstanding: usize,
}

/// What came of it.
pub struct Outcome {
    pub messages: u64,
    pub seconds: f64,
    pub latency_ns: Histogram<u32>,
    /// What the probe said before and after.
    pub probes: (u64, u64),
}

struct Client {
    stream: TcpStream,
    /// Where in the pattern the next byte to come stands.
    at: usize,
    /// Bytes that are owed to the server.
    unsent: usize,
    /// Where in the pattern the next byte to go stands.
    sent: usize,
    /// When the messages on the way were sent.
    starts: VecDeque<Instant>,
}

/// All clients of one load.
pub struct Load {
    poll: Poll,
    clients: Vec<Client>,
    shape: Shape,
    pattern: Vec<u8>,
    buffer: Vec<u8>,
    latency_ns: Histogram<u32>,
}

/// Connections that do nothing.
pub fn idle(to: SocketAddr, count: usize) -> io::Result<Vec<std::net::TcpStream>> {
    (0..count)
        .map(|_| std::net::TcpStream::connect(to))
        .collect()
}

impl Load {
    pub fn connect(to: SocketAddr, shape: Shape) -> Fallible<Self> {
        let poll = Poll::new()?;
        let mut clients = Vec::with_capacity(shape.connections);
        for index in 0..shape.connections {
            let stream = std::net::TcpStream::connect(to)?;
            crate::net::tune(&stream)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            let both = Interest::READABLE | Interest::WRITABLE;
            poll.registry().register(&mut stream, Token(index), both)?;
            clients.push(Client {
                stream,
                at: 0,
                unsent: 0,
                sent: 0,
                starts: VecDeque::new(),
            });
        }
        // Long enough for any piece of a message to be one slice.
        let bytes = (0..2 * shape.size.max(READ_BYTES)).map(|at| (at % shape.size) as u8 ^ 0x5a);
        Ok(Load {
            poll,
            clients,
            shape,
            pattern: bytes.collect(),
            buffer: vec![0; READ_BYTES],
            latency_ns: Histogram::new_with_bounds(1, LATENCY_MAX_NS, 3)?,
        })
    }

    /// Keeps the messages going for a time. The probe is asked when counting starts and ends.
    pub fn run(&mut self, time: Duration, mut probe: impl FnMut() -> u64) -> Fallible<Outcome> {
        let mut messages = 0;
        for index in 0..self.clients.len() {
            self.send(index, self.shape.outstanding)?;
        }
        let mut start = Instant::now();
        while start.elapsed() < WARM_UP {
            messages += self.turn()?;
        }
        self.latency_ns.reset();
        start = Instant::now();
        let (before, warm) = (probe(), messages);
        while start.elapsed() < time {
            messages += self.turn()?;
        }
        Ok(Outcome {
            messages: messages - warm,
            seconds: start.elapsed().as_secs_f64(),
            probes: (before, probe()),
            latency_ns: self.latency_ns.clone(),
        })
    }

    /// Sends one message on each connection and waits until all are back.
    pub fn once(&mut self) -> Fallible<Duration> {
        let start = Instant::now();
        for index in 0..self.clients.len() {
            self.send(index, 1)?;
        }
        let mut left = self.clients.len();
        while left > 0 {
            left -= self.collect(false)? as usize;
        }
        Ok(start.elapsed())
    }

    fn turn(&mut self) -> Fallible<u64> {
        self.collect(true)
    }

    /// Takes what came; answers each message with another one if it is to go on.
    fn collect(&mut self, go_on: bool) -> Fallible<u64> {
        let mut events = Events::with_capacity(1024);
        self.poll.poll(&mut events, Some(Duration::from_secs(10)))?;
        if events.is_empty() {
            return Err("nothing came back for ten seconds".into());
        }
        let mut messages = 0;
        for event in &events {
            let index = event.token().0;
            let back = self.receive(index)?;
            messages += back as u64;
            self.send(index, if go_on { back } else { 0 })?;
        }
        Ok(messages)
    }

    /// Reads what is there and checks it; how many messages are whole.
    fn receive(&mut self, index: usize) -> Fallible<usize> {
        let client = &mut self.clients[index];
        let mut messages = 0;
        loop {
            let len = match client.stream.read(&mut self.buffer) {
                Ok(0) => return Err("the server closed a connection".into()),
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(messages),
                Err(error) => return Err(error.into()),
            };
            if self.buffer[..len] != self.pattern[client.at..client.at + len] {
                return Err("the server sent back something else".into());
            }
            let whole = (client.at + len) / self.shape.size;
            client.at = (client.at + len) % self.shape.size;
            messages += whole;
            let now = Instant::now();
            for start in client.starts.drain(..whole) {
                let taken = now.duration_since(start).as_nanos() as u64;
                self.latency_ns.saturating_record(taken.max(1));
            }
            if len < self.buffer.len() {
                return Ok(messages);
            }
        }
    }

    /// Owes the server so many more messages, and sends what its socket takes.
    fn send(&mut self, index: usize, messages: usize) -> Fallible<()> {
        let size = self.shape.size;
        let client = &mut self.clients[index];
        if messages > 0 {
            let now = Instant::now();
            client.starts.extend((0..messages).map(|_| now));
            client.unsent += messages * size;
        }
        while client.unsent > 0 {
            let len = client.unsent.min(self.pattern.len() - client.sent);
            match client
                .stream
                .write(&self.pattern[client.sent..client.sent + len])
            {
                Ok(len) => {
                    client.unsent -= len;
                    client.sent = (client.sent + len) % size;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
