//! The round trip of one connection, with sleeping servers and with servers that look again for a
//! millisecond first (`Builder::spin`). Half of a sleeping round trip is the load's own wake-up, so
//! the load is run both ways, too.

use crate::Fallible;
use crate::load::{Driver, WORKLOADS};
use crate::options::Options;
use crate::process::{LOAD_CPU, pin};
use crate::record::{Case, Echo, Log};
use crate::servers;
use crate::stats::Spread;
use crate::table::measure;

const SERVERS: [&str; 5] = [
    "floor-epoll",
    "gaio-uring-once",
    "gaio-epoll-once",
    "gaio-uring-spin",
    "gaio-epoll-spin",
];

/// The command.
pub fn run(options: &Options) -> Fallible<()> {
    pin(LOAD_CPU)?;
    let mut log = Log::to(options.json.as_ref())?;
    let servers: Vec<_> = SERVERS.into_iter().filter_map(servers::find).collect();
    println!("| server | load | p50 µs | p99 µs | CPU µs/message |\n|---|---|---|---|---|");
    for (load, driver) in [("sleeps", Driver::Best), ("spins", Driver::Spinning)] {
        let (name, shape) = WORKLOADS[0];
        let case = Case {
            workload: format!("{name}, load {load}"),
            shape,
            idle: 0,
            driver,
        };
        let samples = measure(options, &servers, &case, &mut log)?;
        for server in &servers {
            let own = samples.iter().filter(|sample| sample.server == server.name);
            let of = |of: fn(&Echo) -> f64| Spread::of(own.clone().map(of));
            println!(
                "| {} | {load} | {:.1} | {:.1} | {} |",
                server.name,
                of(|sample| sample.p50_us),
                of(|sample| sample.p99_us),
                of(|sample| sample.cpu_us)
            );
        }
    }
    Ok(())
}
