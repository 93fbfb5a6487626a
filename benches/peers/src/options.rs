//! The arguments.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::prelude::*;

use crate::load::{Driver, Length, Shape, WORKLOADS};
use crate::servers::{self, Server};

pub const USAGE: &str = "\
peers smoke
peers table  [--servers A,B] [--workloads W1,W2] [--pairs 9] [--seconds 1] [--json FILE]
peers scale  [--servers A,B] [--pairs 5] [--seconds 1] [--json FILE]
peers seed   [--servers A,B] [--pairs 3] [--json FILE]
peers memory [--servers A,B] [--connections 10000] [--pairs 3] [--json FILE]
peers serve  --server NAME [--addr 127.0.0.1:0] [--pin CPU] [--closes N]
peers spin   [--pairs 5] [--seconds 1] [--json FILE]
peers instructions [--servers A,B] [--workload W2] [--json FILE]
peers plot   [--from DIR] [--out DIR]
peers report [--parts table,scale,sweep,seed,memory,instructions,spin] [--document FILE]
             [--out DIR]
peers load   --addr HOST:PORT [--workload W2 | --connections 100 --size 128 --outstanding 1]
             [--seconds 1 | --messages N] [--idle 0] [--driver io_uring|epoll|spin] [--pin CPU]

A workload is one of W1 W2 W3 W3b W4 W5, CONNECTIONSxSIZE, CONNECTIONSxSIZExOUTSTANDING, or sweep: 128
bytes on 1 to 10,000 connections.";

const SWEEP: [usize; 5] = [1, 10, 100, 1_000, 10_000];

/// Where the report's lines and plots are.
const MEASURED: &str = "docs/measured";

pub struct Options {
    pub command: String,
    pub servers: Vec<&'static Server>,
    pub workloads: Vec<(String, Shape)>,
    pub rounds: usize,
    pub time: Duration,
    pub messages: Option<u64>,
    pub json: Option<String>,
    pub from: PathBuf,
    pub out: PathBuf,
    pub document: PathBuf,
    pub parts: Vec<String>,
    pub addr: SocketAddr,
    pub shape: Shape,
    pub idle: usize,
    pub driver: Driver,
    pub pin: Option<usize>,
    pub closes: usize,
}

impl Options {
    /// `None` asks for the usage.
    pub fn parse() -> Result<Option<Self>, lexopt::Error> {
        let mut args = lexopt::Parser::from_env();
        let command = match args.next()? {
            Some(Value(command)) => command.string()?,
            Some(Long("help") | Short('h')) => return Ok(None),
            Some(other) => return Err(other.unexpected()),
            None => return Err("a command is missing".into()),
        };
        let mut options = Options::of(command);
        while let Some(arg) = args.next()? {
            match arg {
                Long("help") | Short('h') => return Ok(None),
                Long("server" | "servers") => {
                    options.servers = args.value()?.parse_with(|names| {
                        names.split(',').map(server).collect::<Result<_, _>>()
                    })?;
                }
                Long("workload" | "workloads") => {
                    let names = args.value()?.string()?;
                    options.workloads.clear();
                    for name in names.split(',') {
                        options.workloads.extend(workloads(name)?);
                    }
                    options.shape = options.workloads[0].1;
                }
                Long("pairs" | "rounds") => options.rounds = args.value()?.parse_with(count)?,
                Long("seconds") => options.time = args.value()?.parse_with(seconds)?,
                Long("messages") => options.messages = Some(args.value()?.parse()?),
                Long("json") => options.json = Some(args.value()?.string()?),
                Long("from") => options.from = args.value()?.into(),
                Long("out") => options.out = args.value()?.into(),
                Long("document") => options.document = args.value()?.into(),
                Long("parts") => {
                    let names = args.value()?.string()?;
                    options.parts = names.split(',').map(String::from).collect();
                }
                Long("addr") => options.addr = args.value()?.parse()?,
                Long("connections") => {
                    options.shape.connections = args.value()?.parse_with(count)?
                }
                Long("size") => options.shape.size = args.value()?.parse_with(count)?,
                Long("outstanding") => {
                    options.shape.outstanding = args.value()?.parse_with(count)?
                }
                Long("idle") => options.idle = args.value()?.parse()?,
                Long("driver") => options.driver = args.value()?.parse_with(driver)?,
                Long("closes") => options.closes = args.value()?.parse_with(count)?,
                Long("pin") => options.pin = Some(args.value()?.parse()?),
                _ => return Err(arg.unexpected()),
            }
        }
        Ok(Some(options))
    }

    fn of(command: String) -> Self {
        Options {
            rounds: match command.as_str() {
                "table" => 9,
                "scale" | "spin" => 5,
                _ => 3,
            },
            shape: Shape {
                connections: if command == "memory" { 10_000 } else { 100 },
                size: 128,
                outstanding: 1,
            },
            command,
            servers: servers::ALL.iter().collect(),
            workloads: WORKLOADS
                .iter()
                .map(|(name, shape)| (String::from(*name), *shape))
                .collect(),
            time: Duration::from_secs(1),
            messages: None,
            json: None,
            from: MEASURED.into(),
            out: MEASURED.into(),
            document: "docs/performance.md".into(),
            parts: Vec::new(),
            addr: SocketAddr::from(([127, 0, 0, 1], 0)),
            idle: 0,
            driver: Driver::Best,
            pin: None,
            closes: 0,
        }
    }

    /// How long the load goes on.
    pub fn length(&self) -> Length {
        match self.messages {
            Some(count) => Length::Messages(count),
            None => Length::Time(self.time),
        }
    }
}

fn server(name: &str) -> Result<&'static Server, String> {
    let names: Vec<_> = servers::ALL.iter().map(|server| server.name).collect();
    servers::find(name).ok_or(format!("no such server; there are {}", names.join(", ")))
}

fn workloads(name: &str) -> Result<Vec<(String, Shape)>, String> {
    if name == "sweep" {
        let all: Result<Vec<_>, _> = SWEEP
            .iter()
            .map(|count| workloads(&format!("{count}x128")))
            .collect();
        return Ok(all?.concat());
    }
    if let Some((name, shape)) = WORKLOADS.iter().find(|workload| workload.0 == name) {
        return Ok(vec![(String::from(*name), *shape)]);
    }
    let numbers: Result<Vec<usize>, _> = name.split('x').map(count).collect();
    let (connections, size, outstanding) = match numbers.as_deref() {
        Ok(&[connections, size]) => (connections, size, 1),
        Ok(&[connections, size, outstanding]) => (connections, size, outstanding),
        _ => return Err(format!("no such workload: {name}")),
    };
    let shape = Shape {
        connections,
        size,
        outstanding,
    };
    Ok(vec![(name.into(), shape)])
}

fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number @ 1..) => Ok(number),
        _ => Err(format!("{text} is no number from 1 on")),
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: Option<f64> = text
        .parse()
        .ok()
        .filter(|number| (0.01..=3600.0).contains(number));
    let number = number.ok_or(format!("{text} is no number from 0.01 to 3600"))?;
    Ok(Duration::from_secs_f64(number))
}

fn driver(text: &str) -> Result<Driver, String> {
    match text {
        "io_uring" => Ok(Driver::Uring),
        "epoll" => Ok(Driver::Epoll),
        "spin" => Ok(Driver::Spinning),
        _ => Err("io_uring, epoll or spin is expected".into()),
    }
}
