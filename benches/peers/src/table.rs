//! The table: all servers under one load after the other, in turn, round after round, so that what
//! changes with time changes for all.

use std::time::Duration;

use crate::Fallible;
use crate::load::{Driver, Length};
use crate::options::Options;
use crate::process::{LOAD_CPU, pin};
use crate::record::{Case, Echo, Log, Record, calls, echo};
use crate::servers::Server;
use crate::stats::Spread;

/// System calls are counted in a run of their own.
const COUNTING: Length = Length::Time(Duration::from_millis(200));

/// The command.
pub fn run(options: &Options) -> Fallible<()> {
    pin(LOAD_CPU)?;
    let mut log = Log::to(options.json.as_ref())?;
    for (workload, shape) in &options.workloads {
        let case = Case {
            workload: workload.clone(),
            shape: *shape,
            idle: 0,
            driver: Driver::Best,
        };
        let samples = measure(options, &options.servers, &case, &mut log)?;
        println!(
            "\n### {workload}: {} connections, {} bytes, {} on the way each; {} rounds\n",
            shape.connections, shape.size, shape.outstanding, options.rounds
        );
        let rows = Rows {
            samples: &samples,
            case: &case,
        };
        rows.print(&options.servers, &mut log)?;
    }
    Ok(())
}

/// All servers under one load, in turn. One that fails is named, and missing from the table.
pub fn measure(
    options: &Options,
    servers: &[&'static Server],
    case: &Case,
    log: &mut Log,
) -> Fallible<Vec<Echo>> {
    let mut samples = Vec::new();
    for round in 0..options.rounds {
        for place in 0..servers.len() {
            // Nobody always comes after the same one: the order turns, and every other round
            // backwards.
            let turned = (place + round / 2) % servers.len();
            let server = servers[if round % 2 == 0 {
                turned
            } else {
                servers.len() - 1 - turned
            }];
            match echo(server, case, round, Length::Time(options.time)) {
                Ok(sample) => {
                    log.write(&Record::Echo(sample.clone()))?;
                    samples.push(sample);
                }
                Err(error) => eprintln!("{}: {}: {error}", case.workload, server.name),
            }
        }
    }
    Ok(samples)
}

/// The samples of one load.
struct Rows<'a> {
    samples: &'a [Echo],
    case: &'a Case,
}

impl Rows<'_> {
    fn print(&self, servers: &[&'static Server], log: &mut Log) -> Fallible<()> {
        let best = self.floor(servers, |_| true);
        let name = best.map_or("no floor ran", |floor| floor.name);
        println!(
            "| server | messages/s | CPU µs/message | to its floor | to the best ({name}) \
             | calls/message | p50 µs | p99 µs | p99.9 µs |"
        );
        println!("|---|---|---|---|---|---|---|---|---|");
        for server in servers {
            let own = |of: fn(&Echo) -> f64| Spread::of(self.of(server).map(of));
            let kin = self.floor(servers, |floor| floor.kind == server.kind);
            let counted = calls(server, self.case, COUNTING).ok().flatten();
            if let Some(counted) = &counted {
                log.write(&Record::Calls(counted.clone()))?;
            }
            println!(
                "| {} | {:.0} | {} | {} | {} | {} | {:.0} | {:.0} | {:.0} |",
                server.name,
                own(|sample| sample.per_second).median,
                own(|sample| sample.cpu_us),
                self.ratio(server, kin),
                self.ratio(server, best),
                counted.map_or("–".into(), |counted| format!("{:.3}", counted.calls)),
                own(|sample| sample.p50_us).median,
                own(|sample| sample.p99_us).median,
                own(|sample| sample.p999_us).median,
            );
        }
        Ok(())
    }

    fn of(&self, server: &Server) -> impl Iterator<Item = &Echo> {
        let samples = self.samples.iter();
        samples.filter(|sample| sample.server == server.name)
    }

    /// The floor that took the least CPU, of those asked for.
    fn floor(
        &self,
        servers: &[&'static Server],
        among: impl Fn(&Server) -> bool,
    ) -> Option<&'static Server> {
        let cpu = |server: &Server| Spread::of(self.of(server).map(|sample| sample.cpu_us)).median;
        let floors = servers.iter().copied();
        floors
            .filter(|server| server.floor && among(server) && !cpu(server).is_nan())
            .min_by(|one, other| cpu(one).total_cmp(&cpu(other)))
    }

    /// CPU for each message, by that of a floor in the same round.
    fn ratio(&self, server: &Server, floor: Option<&'static Server>) -> Spread {
        let ratios = self.of(server).filter_map(|own| {
            let floor = self.of(floor?).find(|floor| floor.round == own.round)?;
            Some(own.cpu_us / floor.cpu_us)
        });
        Spread::of(ratios)
    }
}
