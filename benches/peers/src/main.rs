//! gaio beside what one would use instead: echo servers under one load, and what they cost. See
//! README.md for how to read what comes out.

mod calls;
mod instructions;
mod load;
mod memory;
mod net;
mod options;
mod plot;
mod process;
mod record;
mod report;
mod scale;
mod seed;
mod servers;
mod smoke;
mod spin;
mod stats;
mod table;
mod uring;

use std::io::Write;
use std::process::ExitCode;

use crate::load::Load;
use crate::options::{Options, USAGE};
use crate::servers::Kind;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const BAD_ARGUMENTS: u8 = 2;

fn main() -> ExitCode {
    let options = match Options::parse() {
        Ok(Some(options)) => options,
        Ok(None) => {
            println!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        Err(error) => return bad_arguments(&error.to_string()),
    };
    process::raise_limits();
    let done = match options.command.as_str() {
        "smoke" => smoke::run(),
        "table" => table::run(&options),
        "scale" => scale::run(&options),
        "seed" => seed::run(&options),
        "memory" => memory::run(&options),
        "instructions" => instructions::run(&options),
        "spin" => spin::run(&options),
        "plot" => plot::run(&options),
        "report" => report::run(&options),
        "serve" => serve(&options),
        "load" => load(&options),
        other => return bad_arguments(&format!("there is no command {other}")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn bad_arguments(error: &str) -> ExitCode {
    eprintln!("{error}\n\n{USAGE}");
    ExitCode::from(BAD_ARGUMENTS)
}

/// Runs one server until its standard input ends, or a signal ends it.
fn serve(options: &Options) -> Fallible<()> {
    let [server] = options.servers[..] else {
        return Err("serve needs one --server".into());
    };
    if let Some(cpu) = options.pin {
        process::pin(cpu)?;
    }
    if server.kind == Kind::Uring {
        // What the kernel denies is to be told before a client connects.
        io_uring::IoUring::new(8).map_err(|error| format!("{DENIED}: {error}"))?;
    }
    let listener = net::listen(options.addr)?;
    println!("listening on {}", listener.local_addr()?);
    std::io::stdout().flush()?;
    process::end_with_stdin();
    servers::end_after(options.closes);
    (server.run)(listener)
}

/// How the message of a server begins that the kernel denies.
const DENIED: &str = "io_uring_setup";

/// One load on a server that runs elsewhere.
fn load(options: &Options) -> Fallible<()> {
    if let Some(cpu) = options.pin {
        process::pin(cpu)?;
    }
    let _idle = load::idle(options.addr, options.idle)?;
    let mut load = Load::connect(options.addr, options.shape, options.driver)?;
    let outcome = load.run(options.length(), process::own_cpu_ns)?;
    println!(
        "{} messages in {:.3} s, {:.0}/s, p50 {:.0} µs, p99 {:.0} µs, p99.9 {:.0} µs, \
         {:.2} µs of CPU each for the load",
        outcome.messages,
        outcome.seconds,
        outcome.messages as f64 / outcome.seconds,
        outcome.latency_us(0.5),
        outcome.latency_us(0.99),
        outcome.latency_us(0.999),
        outcome.each() / 1e3,
    );
    Ok(())
}
