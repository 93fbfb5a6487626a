//! The test of Go's gaio: 1 KiB on each of many connections, and the time until all of it is back.

use crate::Fallible;
use crate::load::{Driver, Load, Shape};
use crate::options::Options;
use crate::process::{LOAD_CPU, Running, pin};
use crate::record::{Log, Record, Seed};
use crate::stats::{Spread, fit};

pub const CONNECTIONS: [usize; 6] = [1_000, 2_000, 4_000, 6_000, 8_192, 12_000];
const SIZE: usize = 1024;

/// The command.
pub fn run(options: &Options) -> Fallible<()> {
    pin(LOAD_CPU)?;
    let mut log = Log::to(options.json.as_ref())?;
    let mut seeds = Vec::new();
    for connections in CONNECTIONS {
        for _ in 0..options.rounds {
            for server in &options.servers {
                let running = Running::start(server)?;
                let shape = Shape {
                    connections,
                    size: SIZE,
                    outstanding: 1,
                };
                let time = Load::connect(running.addr, shape, Driver::Best)?.once()?;
                let seed = Seed {
                    server: server.name.into(),
                    connections,
                    ms: time.as_secs_f64() * 1e3,
                };
                log.write(&Record::Seed(seed.clone()))?;
                seeds.push(seed);
            }
        }
    }
    println!("milliseconds until 1 KiB is back on each of so many connections\n");
    println!(
        "| server | {} | µs for one more |",
        CONNECTIONS.map(|count| count.to_string()).join(" | ")
    );
    println!("|---|{}---|", "---|".repeat(CONNECTIONS.len()));
    for server in &options.servers {
        let times = CONNECTIONS.map(|count| format!("{:.1}", spread(&seeds, server.name, count)));
        let (_, slope) = fit(&medians(&seeds, server.name));
        println!(
            "| {} | {} | {:.2} |",
            server.name,
            times.join(" | "),
            slope * 1e3
        );
    }
    Ok(())
}

fn spread(seeds: &[Seed], server: &str, connections: usize) -> Spread {
    let own = seeds
        .iter()
        .filter(|seed| seed.server == server && seed.connections == connections);
    Spread::of(own.map(|seed| seed.ms))
}

/// For each number of connections, the median time in milliseconds.
pub fn medians(seeds: &[Seed], server: &str) -> Vec<(f64, f64)> {
    let points = CONNECTIONS.map(|count| (count as f64, spread(seeds, server, count).median));
    points
        .into_iter()
        .filter(|point| !point.1.is_nan())
        .collect()
}
