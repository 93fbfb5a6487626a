//! gaio beside what one would use instead: echo servers under one load, and what they cost. See
//! README.md for how to read what comes out.

mod load;
mod net;
mod process;
mod servers;
mod table;

use std::fs::File;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use lexopt::prelude::*;

use crate::load::{Load, Shape};
use crate::process::{LOAD_CPU, Running, SERVER_CPU, kernel_bytes, pin, raise_limits};
use crate::servers::Server;
use crate::table::{WORKLOADS, measure, print, spread};

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "\
peers table  [--servers A,B] [--workloads W1,W2] [--rounds 9] [--seconds 1] [--json FILE]
peers scale  [--servers A,B] [--rounds 5] [--seconds 1] [--json FILE]
peers seed   [--servers A,B] [--rounds 3] [--json FILE]
peers memory [--servers A,B] [--connections 10000]
peers smoke
peers serve  --server NAME [--addr 127.0.0.1:0]";

fn main() -> ExitCode {
    let options = match Options::parse() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    raise_limits();
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: &Options) -> Fallible<()> {
    match options.command.as_str() {
        "serve" => serve(options),
        "smoke" => smoke(),
        "table" => run_table(options),
        "scale" => scale(options),
        "seed" => seed(options),
        "memory" => memory(options),
        other => Err(format!("no such command: {other}").into()),
    }
}

/// Runs one server until its standard input ends.
fn serve(options: &Options) -> Fallible<()> {
    let [server] = options.servers[..] else {
        return Err("serve needs one --server".into());
    };
    pin(SERVER_CPU)?;
    let listener = net::listen(options.addr)?;
    println!("listening on {}", listener.local_addr()?);
    std::io::stdout().flush()?;
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    (server.run)(listener)
}

/// Every server, for a moment: whether it runs at all, and sends back what it gets.
fn smoke() -> Fallible<()> {
    let mut failed = 0;
    for server in servers::ALL {
        let shape = Shape {
            connections: 20,
            size: 3_000,
            outstanding: 4,
        };
        match table::sample(server, "smoke", shape, 0, Duration::from_millis(300)) {
            Ok(sample) => println!("{}: {:.0} messages/s", server.name, sample.per_second),
            Err(error) => {
                failed += 1;
                println!("{}: FAILED: {error}", server.name);
            }
        }
    }
    match failed {
        0 => Ok(()),
        count => Err(format!("{count} servers failed").into()),
    }
}

fn run_table(options: &Options) -> Fallible<()> {
    pin(LOAD_CPU)?;
    let mut json = options.json()?;
    for &(name, shape) in WORKLOADS {
        if !options.workloads.is_empty() && !options.workloads.iter().any(|w| w == name) {
            continue;
        }
        let samples = measure(&options.servers, name, shape, options.rounds, options.time);
        for sample in &samples {
            writeln!(json, "{}", sample.json())?;
        }
        print(&options.servers, name, shape, &samples);
    }
    Ok(())
}

/// 100 busy connections beside more and more idle ones.
fn scale(options: &Options) -> Fallible<()> {
    pin(LOAD_CPU)?;
    let mut json = options.json()?;
    let (_, shape) = WORKLOADS[1];
    println!("| server | idle connections | CPU µs/message | p99 µs |\n|---|---|---|---|");
    for server in &options.servers {
        for idle in [10, 100, 1_000, 10_000, 15_000] {
            let (mut cpu_us, mut p99_us) = (Vec::new(), Vec::new());
            for _ in 0..options.rounds {
                let running = Running::start(server)?;
                let _idle = load::idle(running.addr, idle)?;
                let mut load = Load::connect(running.addr, shape)?;
                let outcome = load.run(options.time, || running.cpu_ns())?;
                let used = (outcome.probes.1 - outcome.probes.0) as f64;
                cpu_us.push(used / outcome.messages as f64 / 1e3);
                p99_us.push(outcome.latency_ns.value_at_quantile(0.99) as f64 / 1e3);
            }
            let (cpu, p99) = (spread(cpu_us), spread(p99_us));
            println!("| {} | {idle} | {cpu} | {:.0} |", server.name, p99.median);
            let (name, cpu_us) = (server.name, cpu.median);
            writeln!(
                json,
                "{{\"server\":\"{name}\",\"idle\":{idle},\"cpu_us\":{cpu_us:.4}}}"
            )?;
        }
    }
    Ok(())
}

/// The test of Go's gaio: 1 KiB on each of many connections, all echoed.
fn seed(options: &Options) -> Fallible<()> {
    pin(LOAD_CPU)?;
    let mut json = options.json()?;
    println!("| server | connections | milliseconds |\n|---|---|---|");
    for server in &options.servers {
        for connections in [1_000, 2_000, 4_000, 6_000, 8_192, 12_000] {
            let mut times_ms = Vec::new();
            for _ in 0..options.rounds {
                let running = Running::start(server)?;
                let shape = Shape {
                    connections,
                    size: 1024,
                    outstanding: 1,
                };
                let time = Load::connect(running.addr, shape)?.once()?;
                times_ms.push(time.as_secs_f64() * 1e3);
            }
            let (name, time) = (server.name, spread(times_ms));
            println!("| {name} | {connections} | {time} |");
            let ms = time.median;
            writeln!(
                json,
                "{{\"server\":\"{name}\",\"connections\":{connections},\"ms\":{ms:.2}}}"
            )?;
        }
    }
    Ok(())
}

/// What an idle connection with a pending read costs.
fn memory(options: &Options) -> Fallible<()> {
    let count = options.connections;
    println!("{count} idle connections, each after one message, bytes for each of them\n");
    println!("| server | resident | kernel, both ends |\n|---|---|---|");
    for server in &options.servers {
        let running = Running::start(server)?;
        // What the first connections make for good is not theirs.
        let shape = Shape {
            connections: 100,
            size: 128,
            outstanding: 1,
        };
        let mut warm = Load::connect(running.addr, shape)?;
        warm.once()?;
        let before = (running.resident_bytes()?, kernel_bytes()?);
        let shape = Shape {
            connections: count,
            ..shape
        };
        let mut load = Load::connect(running.addr, shape)?;
        load.once()?;
        let after = (running.resident_bytes()?, kernel_bytes()?);
        let each = |after: u64, before: u64| (after as i64 - before as i64) / count as i64;
        println!(
            "| {} | {} | {} |",
            server.name,
            each(after.0, before.0),
            each(after.1, before.1)
        );
    }
    Ok(())
}

struct Options {
    command: String,
    servers: Vec<&'static Server>,
    workloads: Vec<String>,
    rounds: usize,
    time: Duration,
    json: Option<String>,
    addr: SocketAddr,
    connections: usize,
}

impl Options {
    fn parse() -> Result<Self, lexopt::Error> {
        let mut options = Options {
            command: String::new(),
            servers: servers::ALL.iter().collect(),
            workloads: Vec::new(),
            rounds: 9,
            time: Duration::from_secs(1),
            json: None,
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            connections: 10_000,
        };
        let mut args = lexopt::Parser::from_env();
        while let Some(arg) = args.next()? {
            match arg {
                Value(command) if options.command.is_empty() => {
                    options.command = command.string()?
                }
                Long("server" | "servers") => {
                    options.servers = args.value()?.parse_with(|names| {
                        let known = |name| servers::find(name).ok_or(format!("no server {name}"));
                        names.split(',').map(known).collect::<Result<_, _>>()
                    })?;
                }
                Long("workloads") => {
                    let names = args.value()?.string()?;
                    options.workloads = names.split(',').map(String::from).collect();
                }
                Long("rounds") => options.rounds = args.value()?.parse()?,
                Long("seconds") => {
                    options.time = Duration::from_secs_f64(args.value()?.parse::<f64>()?.max(0.1));
                }
                Long("json") => options.json = Some(args.value()?.string()?),
                Long("addr") => options.addr = args.value()?.parse()?,
                Long("connections") => options.connections = args.value()?.parse()?,
                _ => return Err(arg.unexpected()),
            }
        }
        Ok(options)
    }

    /// Where the machine-readable lines go.
    fn json(&self) -> Fallible<Box<dyn Write>> {
        Ok(match &self.json {
            Some(path) => Box::new(File::create(path)?),
            None => Box::new(std::io::sink()),
        })
    }
}
