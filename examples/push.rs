//! A push server: every client gets one line a second, the same bytes for all of them. A client
//! that falls too far behind is dropped, and nobody waits for it. Listen with `nc 127.0.0.1 7000`.

#![allow(clippy::print_stderr)]

mod common;

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use common::Fallible;
use gaio::{Choice, ConnMap, ErrorKind, Operation, Results, Watcher};
use socket2::SockRef;

const USAGE: &str = "\
push [--addr 127.0.0.1:7000] [--backend auto|io_uring|epoll|kqueue] [--interval-ms 1000]
     [--behind-max 10]";

/// What the kernel may hold back for a client: little, so that it soon shows who is behind.
const SEND_BUFFER_BYTES: usize = 4096;

/// About the length of a line.
const LINE_BYTES: usize = 32;

fn main() -> ExitCode {
    common::run(USAGE, Options::parse(), serve)
}

fn serve(options: Options) -> Fallible<()> {
    let listener = common::listen(options.addr, false)?;
    // Accepted connections inherit it.
    SockRef::from(&listener).set_send_buffer_size(SEND_BUFFER_BYTES)?;
    let addr = listener.local_addr()?;

    let mut watcher = Watcher::builder()
        .backend(options.backend)
        .write_limit(options.behind_max * LINE_BYTES)
        .build()?;
    let listener = watcher.listen(listener)?;
    watcher.accept((), listener)?;
    let remote = watcher.remote();
    common::on_signal(move || {
        // If the watcher is closed already, there is nothing to stop.
        let _ = remote.post(());
    })?;
    common::announce(addr, watcher.backend())?;
    Server {
        watcher,
        options,
        clients: ConnMap::new(),
        lines: 0,
    }
    .run()
}

struct Server {
    watcher: Watcher,
    options: Options,
    clients: ConnMap<()>,
    /// Lines pushed so far.
    lines: u64,
}

impl Server {
    fn run(mut self) -> Fallible<()> {
        let mut results = Results::new();
        let mut tick = Instant::now();
        self.watcher.timer((), tick)?;
        loop {
            self.watcher.wait_io(&mut results)?;
            for result in results.drain() {
                match result.operation {
                    Operation::Timer => {
                        self.push();
                        // From tick to tick, so that it does not drift; but never into the past.
                        tick = (tick + self.options.interval).max(Instant::now());
                        self.watcher.timer((), tick)?;
                    }
                    Operation::Accept => {
                        if let Some(conn) = common::accepted(&result)? {
                            self.clients.insert(conn, ());
                        }
                    }
                    // A client is gone.
                    Operation::Write if result.error.is_some() => {
                        self.clients.remove(result.conn);
                        self.watcher.free(result.conn);
                    }
                    // The signal's message.
                    Operation::Post => return Ok(()),
                    _ => {}
                }
            }
        }
    }

    /// One line for everybody. A clone of `Bytes` is a count that goes up, not a copy.
    fn push(&mut self) {
        self.lines += 1;
        let line = Bytes::from(format!("line {} at {}\n", self.lines, unix_time()));
        let watcher = &mut self.watcher;
        self.clients.retain(|conn, ()| {
            let refused = watcher.write((), conn, line.clone()).err();
            if refused.as_ref().map(|it| it.error().kind()) == Some(ErrorKind::WriteLimit) {
                let behind = watcher.queued_bytes(conn);
                eprintln!("push: a client was {behind} bytes behind and is dropped");
                watcher.free(conn);
            }
            refused.is_none()
        });
    }
}

/// Seconds since 1970, to the millisecond.
fn unix_time() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    format!("{:.3}", since.unwrap_or_default().as_secs_f64())
}

struct Options {
    addr: SocketAddr,
    backend: Choice,
    interval: Duration,
    behind_max: usize,
}

impl Options {
    /// `None` asks for the usage.
    fn parse() -> Result<Option<Self>, lexopt::Error> {
        use lexopt::prelude::*;
        let mut options = Options {
            addr: common::default_addr(),
            backend: Choice::Auto,
            interval: Duration::from_secs(1),
            behind_max: 10,
        };
        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            match arg {
                Long("addr") => options.addr = args.value()?.parse()?,
                Long("backend") => options.backend = args.value()?.parse_with(common::backend)?,
                Long("interval-ms") => {
                    let ms = args.value()?.parse_with(common::at_least_one::<u32>)?;
                    options.interval = Duration::from_millis(ms.into());
                }
                Long("behind-max") => {
                    options.behind_max = args.value()?.parse_with(common::at_least_one)?;
                }
                Long("help") | Short('h') => return Ok(None),
                _ => return Err(arg.unexpected()),
            }
        }
        Ok(Some(options))
    }
}
