//! The table: all servers under one load after the other, in turn, round after round, so that what
//! changes with time changes for all.

use std::time::Duration;

use crate::Fallible;
use crate::load::{Load, Shape};
use crate::process::Running;
use crate::servers::Server;

/// The loads by name; W1 to W5 differ in what dominates.
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

/// One server under one load, once.
#[derive(Clone, Debug)]
pub struct Sample {
    pub workload: String,
    pub server: &'static str,
    pub round: usize,
    pub shape: Shape,
    pub per_second: f64,
    pub cpu_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
}

impl Sample {
    /// One line of JSON.
    pub fn json(&self) -> String {
        format!(
            "{{\"workload\":\"{}\",\"server\":\"{}\",\"round\":{},\"connections\":{},\"size\":{},\
             \"outstanding\":{},\"per_second\":{:.0},\"cpu_us\":{:.4},\"p50_us\":{:.1},\
             \"p99_us\":{:.1},\"p999_us\":{:.1}}}",
            self.workload,
            self.server,
            self.round,
            self.shape.connections,
            self.shape.size,
            self.shape.outstanding,
            self.per_second,
            self.cpu_us,
            self.p50_us,
            self.p99_us,
            self.p999_us,
        )
    }
}

/// Runs one server under one load.
pub fn sample(
    server: &'static Server,
    workload: &str,
    shape: Shape,
    round: usize,
    time: Duration,
) -> Fallible<Sample> {
    let running = Running::start(server)?;
    let outcome = Load::connect(running.addr, shape)?.run(time, || running.cpu_ns())?;
    let messages = outcome.messages.max(1) as f64;
    let latency_us = |quantile| outcome.latency_ns.value_at_quantile(quantile) as f64 / 1e3;
    Ok(Sample {
        workload: workload.into(),
        server: server.name,
        round,
        shape,
        per_second: messages / outcome.seconds,
        cpu_us: (outcome.probes.1 - outcome.probes.0) as f64 / messages / 1e3,
        p50_us: latency_us(0.5),
        p99_us: latency_us(0.99),
        p999_us: latency_us(0.999),
    })
}

/// All servers under one load, in turn.
pub fn measure(
    servers: &[&'static Server],
    workload: &str,
    shape: Shape,
    rounds: usize,
    time: Duration,
) -> Vec<Sample> {
    let mut samples = Vec::new();
    for round in 0..rounds {
        for place in 0..servers.len() {
            // Nobody always comes after the same one.
            let server = servers[(place + round) % servers.len()];
            match sample(server, workload, shape, round, time) {
                Ok(sample) => samples.push(sample),
                Err(error) => eprintln!("{workload}: {}: {error}", server.name),
            }
        }
    }
    samples
}

/// The table of one load.
pub fn print(servers: &[&'static Server], workload: &str, shape: Shape, samples: &[Sample]) {
    println!(
        "\n{workload}: {} connections, {} bytes, {} on the way each\n",
        shape.connections, shape.size, shape.outstanding
    );
    println!(
        "| server | messages/s | CPU µs/message | to the floor | p50 µs | p99 µs | p99.9 µs |"
    );
    println!("|---|---|---|---|---|---|---|");
    for server in servers {
        let own = |of: fn(&Sample) -> f64| {
            let own = samples.iter().filter(|sample| sample.server == server.name);
            spread(own.map(of).collect())
        };
        let ratio = spread(ratios(server.name, samples));
        println!(
            "| {} | {:.0} | {} | {} | {:.0} | {:.0} | {:.0} |",
            server.name,
            own(|sample| sample.per_second).median,
            own(|sample| sample.cpu_us),
            ratio,
            own(|sample| sample.p50_us).median,
            own(|sample| sample.p99_us).median,
            own(|sample| sample.p999_us).median,
        );
    }
}

/// CPU per message against the best floor of the same round; against the floors of its own kind,
/// for a server that says which kind it is.
fn ratios(server: &str, samples: &[Sample]) -> Vec<f64> {
    let kind = if server.contains("epoll") {
        "floor-epoll"
    } else {
        "floor-uring"
    };
    let own = samples.iter().filter(|sample| sample.server == server);
    own.filter_map(|own| {
        let floors = samples
            .iter()
            .filter(|sample| sample.round == own.round && sample.server.starts_with(kind));
        let floor = floors.map(|sample| sample.cpu_us).reduce(f64::min)?;
        Some(own.cpu_us / floor)
    })
    .collect()
}

/// A median and its range.
pub struct Spread {
    pub median: f64,
    least: f64,
    most: f64,
}

pub fn spread(mut values: Vec<f64>) -> Spread {
    values.sort_by(f64::total_cmp);
    let at = |place: usize| values.get(place).copied().unwrap_or(f64::NAN);
    Spread {
        median: at(values.len() / 2),
        least: at(0),
        most: at(values.len().saturating_sub(1)),
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:.2} [{:.2}..{:.2}]",
            self.median, self.least, self.most
        )
    }
}
