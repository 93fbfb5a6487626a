//! What is measured, as lines of JSON.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Fallible;
use crate::load::{Driver, Length, Load, Shape, idle};
use crate::process::Running;
use crate::servers::Server;

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    Echo(Echo),
    Calls(Calls),
    Seed(Seed),
    Memory(Memory),
    Instructions(Instructions),
}

/// One server under one load, once.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Echo {
    pub workload: String,
    pub server: String,
    pub round: usize,
    pub connections: usize,
    pub size: usize,
    pub outstanding: usize,
    /// Connections beside them that did nothing.
    pub idle: usize,
    pub per_second: f64,
    pub cpu_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
}

/// System calls for each message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Calls {
    pub workload: String,
    pub server: String,
    pub calls: f64,
}

/// The time until a message was echoed on each of so many connections.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Seed {
    pub server: String,
    pub connections: usize,
    pub ms: f64,
}

/// Bytes for each idle connection.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Memory {
    pub server: String,
    pub connections: usize,
    pub resident: f64,
    pub heap: f64,
    pub kernel: f64,
}

/// User-space instructions for each message.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Instructions {
    pub server: String,
    pub instructions: f64,
}

/// Which load it is, and beside how many idle connections.
#[derive(Clone, Debug)]
pub struct Case {
    pub workload: String,
    pub shape: Shape,
    pub idle: usize,
    pub driver: Driver,
}

/// Runs one server under one load.
pub fn echo(server: &Server, case: &Case, round: usize, length: Length) -> Fallible<Echo> {
    let running = Running::start(server)?;
    let _idle = idle(running.addr, case.idle)?;
    let mut load = Load::connect(running.addr, case.shape, case.driver)?;
    let outcome = load.run(length, || running.cpu_ns())?;
    Ok(Echo {
        workload: case.workload.clone(),
        server: server.name.into(),
        round,
        connections: case.shape.connections,
        size: case.shape.size,
        outstanding: case.shape.outstanding,
        idle: case.idle,
        per_second: outcome.messages as f64 / outcome.seconds,
        cpu_us: outcome.each() / 1e3,
        p50_us: outcome.latency_us(0.5),
        p99_us: outcome.latency_us(0.99),
        p999_us: outcome.latency_us(0.999),
    })
}

/// Counts the system calls of one server under one load, if the kernel lets us.
pub fn calls(server: &Server, case: &Case, length: Length) -> Fallible<Option<Calls>> {
    let running = Running::start(server)?;
    let mut load = Load::connect(running.addr, case.shape, case.driver)?;
    let Some(calls) = crate::calls::Calls::of(&running) else {
        return Ok(None);
    };
    let outcome = load.run(length, || calls.count())?;
    Ok(Some(Calls {
        workload: case.workload.clone(),
        server: server.name.into(),
        calls: outcome.each(),
    }))
}

/// The lines of a file, if there is one.
pub fn read(path: &Path) -> Fallible<Vec<Record>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let lines = BufReader::new(File::open(path)?).lines();
    lines
        .map(|line| Ok(serde_json::from_str(&line?)?))
        .collect()
}

/// Where lines go: a file, or nowhere.
pub struct Log(Option<File>);

impl Log {
    pub fn to(path: Option<&String>) -> Fallible<Self> {
        let create = |path: &String| {
            File::create(path).map_err(|error| format!("{path} cannot be written: {error}"))
        };
        Ok(Log(path.map(create).transpose()?))
    }

    pub fn write(&mut self, record: &Record) -> Fallible<()> {
        if let Some(file) = &mut self.0 {
            writeln!(file, "{}", serde_json::to_string(record)?)?;
        }
        Ok(())
    }
}
