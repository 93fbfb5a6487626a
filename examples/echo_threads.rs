//! An echo server that accepts in one thread, with nothing but the standard library, and hands
//! the connections to watchers in other threads, each in turn. `nc 127.0.0.1 7000` talks to it.

#![allow(clippy::print_stderr)]

mod common;

use std::net::{Shutdown, SocketAddr, TcpListener};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use common::Fallible;
use gaio::{Choice, ErrorKind, Operation, Remote, Results, Watcher};

const USAGE: &str = "\
echo_threads [--addr 127.0.0.1:7000] [--backend auto|io_uring|epoll|kqueue] [--threads 2]";

/// How long to wait when no connection can be accepted (no descriptors are left).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    common::run(USAGE, Options::parse(), serve)
}

fn serve(options: Options) -> Fallible<()> {
    let watchers = (0..options.threads)
        .map(|_| Watcher::builder().backend(options.backend).build())
        .collect::<gaio::Result<Vec<Watcher>>>()?;
    let remotes: Vec<Remote> = watchers.iter().map(Watcher::remote).collect();
    let listener = common::listen(options.addr, false)?;
    let closers = remotes.clone();
    common::on_signal(move || closers.iter().for_each(Remote::close))?;
    common::announce(listener.local_addr()?, watchers[0].backend())?;

    // Never joined: it ends with the process.
    thread::spawn(move || accept(&listener, &remotes));
    let threads: Vec<_> = watchers
        .into_iter()
        .map(|watcher| thread::spawn(move || echo(watcher)))
        .collect();
    for thread in threads {
        match thread.join().map_err(|_| "a watcher's thread panicked")? {
            // The only clean way out: see `on_signal` above.
            Err(error) if error.kind() == ErrorKind::WatcherClosed => {}
            ended => ended?,
        }
    }
    Ok(())
}

/// Hands each connection to the next watcher, with its first read, until the watchers are closed.
fn accept(listener: &TcpListener, remotes: &[Remote]) -> gaio::Result<()> {
    for (socket, remote) in listener.incoming().zip(remotes.iter().cycle()) {
        match socket {
            Ok(socket) => {
                let conn = remote.delegate(socket)?;
                remote.read((), conn, None)?;
            }
            Err(error) => {
                eprintln!("echo_threads: accepting: {error}");
                thread::sleep(ACCEPT_RETRY);
            }
        }
    }
    Ok(())
}

/// Sends everything back, until the watcher is closed. A request that is refused finds its connection
/// freed, which is no reason to stop serving the others.
fn echo(mut watcher: Watcher) -> gaio::Result<()> {
    let mut results = Results::new();
    loop {
        watcher.wait_io(&mut results)?;
        for res in results.drain() {
            match res.operation {
                _ if res.error.is_some() => {
                    watcher.free(res.conn);
                }
                Operation::Read if res.is_eof() => {
                    let _ = watcher.shutdown((), res.conn, Shutdown::Write);
                }
                Operation::Read => {
                    let _ = watcher.write((), res.conn, res.buffer);
                }
                Operation::Write => {
                    let _ = watcher.read((), res.conn, None);
                }
                Operation::Shutdown => {
                    watcher.free(res.conn);
                }
                _ => {}
            }
        }
    }
}

struct Options {
    addr: SocketAddr,
    backend: Choice,
    threads: usize,
}

impl Options {
    /// `None` asks for the usage.
    fn parse() -> Result<Option<Self>, lexopt::Error> {
        use lexopt::prelude::*;
        let mut options = Options {
            addr: common::default_addr(),
            backend: Choice::Auto,
            threads: 2,
        };
        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            match arg {
                Long("addr") => options.addr = args.value()?.parse()?,
                Long("backend") => options.backend = args.value()?.parse_with(common::backend)?,
                Long("threads") => {
                    options.threads = args.value()?.parse_with(common::at_least_one)?;
                }
                Long("help") | Short('h') => return Ok(None),
                _ => return Err(arg.unexpected()),
            }
        }
        Ok(Some(options))
    }
}
