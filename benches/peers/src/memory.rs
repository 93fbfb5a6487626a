//! What an idle connection with a pending read costs: resident memory of the server, its heap, and
//! the kernel's.

use std::fs;

use crate::Fallible;
use crate::load::{Driver, Load, Shape};
use crate::options::Options;
use crate::process::{LOAD_CPU, Running, kib_line, pin};
use crate::record::{Log, Memory, Record};
use crate::servers::Server;
use crate::stats::Spread;

/// What the first connections make for good is not theirs.
const WARM: usize = 200;

/// The command.
pub fn run(options: &Options) -> Fallible<()> {
    pin(LOAD_CPU)?;
    let mut log = Log::to(options.json.as_ref())?;
    let count = options.shape.connections;
    println!("{count} idle connections, each after one message, bytes for each of them\n");
    println!("| server | resident | of this private and written | kernel, both ends |");
    println!("|---|---|---|---|");
    for server in &options.servers {
        let samples: Fallible<Vec<Memory>> = (0..options.rounds)
            .map(|_| sample(server, options.shape))
            .collect();
        let samples = samples?;
        for sample in &samples {
            log.write(&Record::Memory(sample.clone()))?;
        }
        let of = |of: fn(&Memory) -> f64| Spread::of(samples.iter().map(of));
        println!(
            "| {} | {:.0} | {:.0} | {:.0} |",
            server.name,
            of(|sample| sample.resident),
            of(|sample| sample.heap),
            of(|sample| sample.kernel)
        );
    }
    Ok(())
}

fn sample(server: &Server, shape: Shape) -> Fallible<Memory> {
    let running = Running::start(server)?;
    let warm = Shape {
        connections: WARM,
        ..shape
    };
    let mut warm = Load::connect(running.addr, warm, Driver::Best)?;
    for _ in 0..20 {
        warm.once()?;
    }
    let now = || -> Fallible<[u64; 3]> {
        let resident = running.memory_bytes("Rss:")?;
        Ok([
            resident,
            running.memory_bytes("Private_Dirty:")?,
            kernel_bytes()?,
        ])
    };
    let before = now()?;
    let mut load = Load::connect(running.addr, shape, Driver::Best)?;
    load.once()?;
    let after = now()?;
    let each = |kind: usize| (after[kind] as f64 - before[kind] as f64) / shape.connections as f64;
    Ok(Memory {
        server: server.name.into(),
        connections: shape.connections,
        resident: each(0),
        heap: each(1),
        kernel: each(2),
    })
}

/// Bytes of the kernel's own objects: those in use, by kind, if it tells (that takes root), else
/// the pages that hold them.
fn kernel_bytes() -> Fallible<u64> {
    if let Ok(text) = fs::read_to_string("/proc/slabinfo") {
        let in_use = |line: &str| -> Option<u64> {
            let mut words = line.split_whitespace().skip(1);
            let active: u64 = words.next()?.parse().ok()?;
            let size: u64 = words.nth(1)?.parse().ok()?;
            Some(active * size)
        };
        return Ok(text.lines().skip(2).filter_map(in_use).sum());
    }
    kib_line(&fs::read_to_string("/proc/meminfo")?, "SUnreclaim:")
}
