//! An echo server: whatever a client sends comes back. Talk to it with `nc 127.0.0.1 7000`.

#![allow(clippy::print_stdout)]

mod common;

use std::net::{Shutdown, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;

use common::Fallible;
use gaio::{Choice, Conn, OpResult, Operation, Remote, Results, Watcher};

const USAGE: &str = "\
echo [--addr 127.0.0.1:7000] [--backend auto|io_uring|epoll|kqueue] [--threads 1]
     [--mode once|stream] [--buffer swap|owned] [--pin CPU] [--stats] [--exit-after N]";

/// The size of a connection's own buffer (`--buffer owned`).
const OWNED_BYTES: usize = 64 * 1024;

fn main() -> ExitCode {
    common::run(USAGE, Options::parse(), serve)
}

/// Starts the servers, waits for a signal (or for all connections asked for), stops them.
fn serve(options: Options) -> Fallible<()> {
    let shared = Arc::new(Shared::default());
    let mut servers = Vec::new();
    let mut addr = options.addr;
    for thread in 0..options.threads {
        let listener = common::listen(addr, options.threads > 1)?;
        addr = listener.local_addr()?;
        servers.push(Server::new(&options, &shared, listener, thread)?);
    }
    let remotes = servers.iter().map(|server| server.watcher.remote());
    let _ = shared.remotes.set(remotes.collect());
    let stopper = Arc::clone(&shared);
    common::on_signal(move || stopper.stop())?;
    common::announce(addr, servers[0].watcher.backend())?;

    let threads: Vec<_> = servers
        .into_iter()
        .map(|server| thread::spawn(move || server.run()))
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "a server thread panicked")??;
    }
    Ok(())
}

/// What the threads have in common.
#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    closed: AtomicUsize,
    remotes: OnceLock<Vec<Remote>>,
}

impl Shared {
    /// A message to every server says: stop.
    fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for remote in self.remotes.get().into_iter().flatten() {
            // One that has stopped already needs no message.
            let _ = remote.post(());
        }
    }
}

/// One watcher and its loop.
struct Server {
    watcher: Watcher,
    options: Options,
    shared: Arc<Shared>,
    thread: usize,
}

impl Server {
    fn new(
        options: &Options,
        shared: &Arc<Shared>,
        listener: TcpListener,
        thread: usize,
    ) -> Fallible<Self> {
        let mut watcher = Watcher::builder().backend(options.backend).build()?;
        let listener = watcher.listen(listener)?;
        watcher.accept((), listener)?;
        Ok(Server {
            watcher,
            options: options.clone(),
            shared: Arc::clone(shared),
            thread,
        })
    }

    fn run(mut self) -> Fallible<()> {
        if let Some(cpu) = self.options.pin {
            self.watcher.pin(cpu + self.thread)?;
        }
        let mut results = Results::new();
        while !self.shared.stopping.load(Ordering::Relaxed) {
            self.watcher.wait_io(&mut results)?;
            for result in results.drain() {
                self.handle(result)?;
            }
        }
        if self.options.stats {
            println!("{:#?}", self.watcher.stats());
        }
        self.watcher.close();
        Ok(())
    }

    /// A request that is refused finds its connection freed: nothing is left to do for it, and it is
    /// no reason to stop serving the others.
    fn handle(&mut self, result: OpResult) -> Fallible<()> {
        let conn = result.conn;
        match result.operation {
            Operation::Accept => {
                if let Some(conn) = common::accepted(&result)? {
                    let own = self.options.owned.then(|| vec![0; OWNED_BYTES]);
                    self.read(conn, own);
                }
            }
            Operation::Post => {}
            _ if result.error.is_some() => self.close(conn),
            // The peer may still read: its end comes after everything that it sent.
            Operation::Read if result.is_eof() => {
                let _ = self.watcher.shutdown((), conn, Shutdown::Write);
            }
            Operation::Read => {
                // No copy: the bytes go out from where they came in.
                let _ = self.watcher.write((), conn, result.buffer);
            }
            // A stream goes on by itself. Otherwise, own buffers read again; a swap buffer goes back.
            Operation::Write if !self.options.stream => self.read(conn, result.buffer.recycle()),
            Operation::Shutdown => self.close(conn),
            _ => {}
        }
        Ok(())
    }

    /// What a slow peer can make us hold is bounded: one buffer, or the window of the stream.
    fn read(&mut self, conn: Conn, own: Option<Vec<u8>>) {
        if self.options.stream {
            let _ = self.watcher.read_stream((), conn);
        } else {
            let _ = self.watcher.read((), conn, own);
        }
    }

    fn close(&mut self, conn: Conn) {
        // The other direction's result may come after the connection was freed.
        if self.watcher.free(conn) {
            let closed = self.shared.closed.fetch_add(1, Ordering::SeqCst) + 1;
            if Some(closed) == self.options.exit_after {
                self.shared.stop();
            }
        }
    }
}

#[derive(Clone)]
struct Options {
    addr: SocketAddr,
    backend: Choice,
    threads: usize,
    stream: bool,
    owned: bool,
    pin: Option<usize>,
    stats: bool,
    exit_after: Option<usize>,
}

impl Options {
    /// `None` asks for the usage.
    fn parse() -> Result<Option<Self>, lexopt::Error> {
        use common::at_least_one;
        use lexopt::prelude::*;
        let mut options = Options {
            addr: common::default_addr(),
            backend: Choice::Auto,
            threads: 1,
            stream: false,
            owned: false,
            pin: None,
            stats: false,
            exit_after: None,
        };
        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            match arg {
                Long("addr") => options.addr = args.value()?.parse()?,
                Long("backend") => options.backend = args.value()?.parse_with(common::backend)?,
                Long("threads") => options.threads = args.value()?.parse_with(at_least_one)?,
                Long("mode") => {
                    options.stream = args.value()?.parse_with(|v| either(v, "once", "stream"))?;
                }
                Long("buffer") => {
                    options.owned = args.value()?.parse_with(|v| either(v, "swap", "owned"))?;
                }
                Long("pin") => options.pin = Some(args.value()?.parse()?),
                Long("stats") => options.stats = true,
                Long("exit-after") => {
                    options.exit_after = Some(args.value()?.parse_with(at_least_one)?);
                }
                Long("help") | Short('h') => return Ok(None),
                _ => return Err(arg.unexpected()),
            }
        }
        Ok(Some(options))
    }
}

/// Whether it is the second of two words.
fn either(word: &str, first: &str, second: &str) -> Result<bool, String> {
    match word {
        _ if word == first => Ok(false),
        _ if word == second => Ok(true),
        _ => Err(format!("{first} or {second} is expected")),
    }
}
