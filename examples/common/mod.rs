//! What the examples share: their beginning and their end. None of it is needed to use gaio.
//!
//! All of them keep the same conventions. The first line on stdout says where the server listens
//! and on which backend. SIGINT and SIGTERM end it with exit code 0. Bad arguments: a sentence
//! and exit code 2; anything else that goes wrong: a sentence and exit code 1.

#![allow(dead_code, unreachable_pub)] // Each example uses its part.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::fmt::Display;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;
use std::thread;

use gaio::{BackendInfo, BackendKind, Choice, Conn, ListenOptions, OpResult};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// The name of the example.
const NAME: &str = env!("CARGO_BIN_NAME");

/// A result with any error, from any thread.
pub type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// What `main` does: looks at the arguments, serves, and says what went wrong.
///
/// `parsed` is `None` where the user asked for the usage.
pub fn run<O>(
    usage: &str,
    parsed: Result<Option<O>, lexopt::Error>,
    serve: impl FnOnce(O) -> Fallible<()>,
) -> ExitCode {
    let options = match parsed {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{usage}");
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(2, format!("{error}\n{usage}")),
    };
    match serve(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(1, error),
    }
}

fn fail(code: u8, text: impl Display) -> ExitCode {
    eprintln!("{NAME}: {text}");
    ExitCode::from(code)
}

/// The address of `--addr` when there is none.
pub fn default_addr() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 7000))
}

/// The value of `--backend`.
pub fn backend(name: &str) -> Result<Choice, String> {
    match name {
        "auto" => Ok(Choice::Auto),
        "io_uring" => Ok(Choice::Only(BackendKind::IoUring)),
        "epoll" => Ok(Choice::Only(BackendKind::Epoll)),
        "kqueue" => Ok(Choice::Only(BackendKind::Kqueue)),
        _ => Err("auto, io_uring, epoll or kqueue is expected".into()),
    }
}

/// The value of an option that counts something.
pub fn at_least_one<T: TryFrom<usize>>(text: &str) -> Result<T, String> {
    let number = text.parse().ok().filter(|&number| number > 0);
    number
        .and_then(|number: usize| T::try_from(number).ok())
        .ok_or("a number from 1 on is expected".into())
}

/// A listening socket. With `share_port`, others may listen on the same address.
pub fn listen(addr: SocketAddr, share_port: bool) -> Fallible<TcpListener> {
    let listener = ListenOptions::new().reuse_port(share_port).bind(addr);
    listener.map_err(|error| format!("cannot listen on {addr}: {error}").into())
}

/// The first line on stdout, flushed: whoever started the server may wait for it.
pub fn announce(addr: SocketAddr, backend: &BackendInfo) -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "listening on {addr} backend={backend}")?;
    stdout.flush()
}

/// Calls `stop`, on a thread of its own, when the process is asked to end.
pub fn on_signal(stop: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    thread::spawn(move || {
        if signals.forever().next().is_some() {
            stop();
        }
    });
    Ok(())
}

/// The connection that a result of `accept` brings, if any.
///
/// # Errors
/// Nothing will be accepted any more. An error that passes (no descriptors are left) is only told.
pub fn accepted(result: &OpResult) -> gaio::Result<Option<Conn>> {
    match result.error {
        Some(error) if result.is_last() => return Err(error),
        Some(error) => eprintln!("{NAME}: {error}"),
        None => {}
    }
    Ok(result.accepted())
}
