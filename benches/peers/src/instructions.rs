//! User-space instructions for each message, counted by valgrind: the difference of two loads, so
//! that neither start nor end count. Unlike times, they are the same on a busy machine, but for how
//! many messages happen to come in one turn.

use std::process::Command;

use crate::Fallible;
use crate::load::{Driver, Length, Load};
use crate::options::Options;
use crate::process::Running;
use crate::record::{Instructions, Log, Record};
use crate::servers::Server;

const MESSAGES: [u64; 2] = [20_000, 60_000];

/// The command.
pub fn run(options: &Options) -> Fallible<()> {
    let mut log = Log::to(options.json.as_ref())?;
    println!("| server | instructions/message |\n|---|---|");
    for server in &options.servers {
        let [few, many] = MESSAGES.map(|count| total(server, options, count));
        let each = (many? as f64 - few? as f64) / (MESSAGES[1] - MESSAGES[0]) as f64;
        println!("| {} | {each:.0} |", server.name);
        log.write(&Record::Instructions(Instructions {
            server: server.name.into(),
            instructions: each,
        }))?;
    }
    Ok(())
}

/// All instructions of a server that answers so many messages.
fn total(server: &Server, options: &Options, messages: u64) -> Fallible<u64> {
    let out = std::env::temp_dir().join(format!("peers.{}.callgrind", std::process::id()));
    let mut command = Command::new("valgrind");
    command
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?);
    let running = Running::start_under(server, command, options.shape.connections)?;
    let mut load = Load::connect(running.addr, options.shape, Driver::Best)?;
    load.run(Length::Messages(messages), || 0)?;
    drop(load);
    running.wait()?;
    let text = std::fs::read_to_string(&out)?;
    std::fs::remove_file(&out)?;
    let total = text.lines().find_map(|line| line.strip_prefix("totals: "));
    Ok(total.ok_or("valgrind told no total")?.trim().parse()?)
}
