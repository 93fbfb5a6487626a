//! What idle connections cost the busy ones: 100 of them beside more and more that do nothing.

use crate::Fallible;
use crate::load::Driver;
use crate::options::Options;
use crate::process::{LOAD_CPU, pin};
use crate::record::{Case, Log};
use crate::stats::Spread;
use crate::table::measure;

const IDLE: [usize; 5] = [10, 100, 1_000, 10_000, 15_000];

/// The command.
pub fn run(options: &Options) -> Fallible<()> {
    pin(LOAD_CPU)?;
    let mut log = Log::to(options.json.as_ref())?;
    println!("| server | idle connections | CPU µs/message | p99 µs |\n|---|---|---|---|");
    for idle in IDLE {
        let case = Case {
            workload: format!("{idle} idle"),
            shape: options.shape,
            idle,
            driver: Driver::Best,
        };
        let samples = measure(options, &options.servers, &case, &mut log)?;
        for server in &options.servers {
            let own = samples.iter().filter(|sample| sample.server == server.name);
            let cpu = Spread::of(own.clone().map(|sample| sample.cpu_us));
            let p99 = Spread::of(own.map(|sample| sample.p99_us));
            println!("| {} | {idle} | {cpu} | {:.0} |", server.name, p99.median);
        }
    }
    Ok(())
}
