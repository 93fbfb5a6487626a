//! The load: connections that send messages and check every byte that comes back. It runs on
//! io_uring, which costs less for each message than readiness, or on readiness where that is not to
//! be had.

mod clients;
mod connect;
mod ready;
mod ring;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::Fallible;
use crate::load::clients::Clients;
pub use crate::load::connect::idle;
use crate::load::ready::Ready;
use crate::load::ring::Ring;

/// Before anything is counted.
const WARM_UP: Duration = Duration::from_millis(300);
/// Nothing comes back for so long: something was lost.
const PATIENCE: Duration = Duration::from_secs(10);

/// What the clients do.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub connections: usize,
    pub size: usize,
    /// Messages that each connection has on the way at a time.
    pub outstanding: usize,
}

/// The loads by name; they differ in what dominates.
pub const WORKLOADS: &[(&str, Shape)] = &[
    ("W1", shape(1, 64, 1)),
    ("W2", shape(100, 128, 1)),
    ("W3", shape(1_000, 512, 1)),
    ("W3b", shape(10_000, 128, 1)),
    ("W4", shape(50, 64 * 1024, 1)),
    ("W5", shape(100, 128, 16)),
];

const fn shape(connections: usize, size: usize, outstanding: usize) -> Shape {
    Shape {
        connections,
        size,
        outstanding,
    }
}

/// How long a load goes on.
#[derive(Clone, Copy, Debug)]
pub enum Length {
    Time(Duration),
    Messages(u64),
}

/// What moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Driver {
    /// io_uring, else readiness.
    Best,
    Uring,
    /// io_uring, looking again and again instead of sleeping.
    Spinning,
    Epoll,
}

/// What a load that may choose runs on here: where it is not io_uring, it costs more, and the servers
/// wait for it.
pub fn means() -> &'static str {
    if Ring::new().is_ok() {
        "io_uring"
    } else {
        "epoll, because io_uring is not to be had"
    }
}

/// What came of it.
pub struct Outcome {
    pub messages: u64,
    pub seconds: f64,
    pub latency_ns: Histogram<u32>,
    /// What the probe said before and after.
    pub probes: (u64, u64),
}

impl Outcome {
    pub fn latency_us(&self, quantile: f64) -> f64 {
        self.latency_ns.value_at_quantile(quantile) as f64 / 1e3
    }

    /// Of what the probe counts, how much there was for each message.
    pub fn each(&self) -> f64 {
        (self.probes.1 - self.probes.0) as f64 / self.messages.max(1) as f64
    }
}

/// Moves bytes for clients: sends what they owe, gives them what came.
trait Drive {
    fn turn(&mut self, clients: &mut Clients) -> Fallible<()>;
}

/// All clients of one load.
pub struct Load {
    clients: Clients,
    driver: Box<dyn Drive>,
}

impl Load {
    pub fn connect(to: SocketAddr, shape: Shape, driver: Driver) -> Fallible<Self> {
        let sockets = connect::connect(to, shape.connections)?;
        let clients = Clients::new(shape)?;
        let ring = match driver {
            Driver::Epoll => None,
            Driver::Uring | Driver::Spinning => Some(Ring::new()?),
            Driver::Best => Ring::new().ok(),
        };
        let driver: Box<dyn Drive> = match ring {
            Some(ring) => Box::new(ring.with(sockets, driver == Driver::Spinning)),
            None => Box::new(Ready::new(sockets)?),
        };
        Ok(Load { clients, driver })
    }

    /// Keeps the messages going. The probe is asked when counting starts and ends. What is on the
    /// way then is waited for, and checked too.
    pub fn run(&mut self, length: Length, mut probe: impl FnMut() -> u64) -> Fallible<Outcome> {
        self.clients.go(true);
        let time = match length {
            Length::Time(time) => {
                self.drive_for(WARM_UP)?;
                time
            }
            Length::Messages(count) => {
                self.clients.limit(count);
                Duration::MAX
            }
        };
        self.clients.reset();
        let (start, before) = (Instant::now(), probe());
        self.drive_for(time)?;
        let outcome = Outcome {
            messages: self.clients.messages,
            seconds: start.elapsed().as_secs_f64(),
            probes: (before, probe()),
            latency_ns: self.clients.latency_ns.clone(),
        };
        self.clients.go(false);
        self.drive_for(PATIENCE)?;
        Ok(outcome)
    }

    /// Sends one message on each connection and waits until all are back.
    pub fn once(&mut self) -> Fallible<Duration> {
        let start = Instant::now();
        self.clients.go(false);
        self.clients.owe_all(1);
        self.drive_for(PATIENCE)?;
        Ok(start.elapsed())
    }

    /// Goes on for a time, or until nothing is on the way.
    fn drive_for(&mut self, time: Duration) -> Fallible<()> {
        let start = Instant::now();
        while start.elapsed() < time && self.clients.busy() {
            self.driver.turn(&mut self.clients)?;
        }
        if self.clients.busy() && time == PATIENCE {
            return Err("not everything came back".into());
        }
        Ok(())
    }
}
