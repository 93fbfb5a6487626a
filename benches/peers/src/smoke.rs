//! Every server, for a second: whether it runs at all, and sends back what it gets.

use std::time::Duration;

use crate::load::{Driver, Length, Shape};
use crate::record::{Case, echo};
use crate::{DENIED, Fallible, servers};

/// Enough in size and number that sends end short and buffers run out.
const SHAPE: Shape = Shape {
    connections: 40,
    size: 30_000,
    outstanding: 4,
};
/// With the warm-up a second.
const LENGTH: Length = Length::Time(Duration::from_millis(700));

/// The command.
pub fn run() -> Fallible<()> {
    let case = Case {
        workload: "smoke".into(),
        shape: SHAPE,
        idle: 10,
        driver: Driver::Best,
    };
    let mut failed = 0;
    for server in servers::ALL.iter().chain(servers::SPINNING) {
        match echo(server, &case, 0, LENGTH).map_err(|error| error.to_string()) {
            Ok(sample) => println!("{}: {:.0} messages/s", server.name, sample.per_second),
            Err(error) if error.starts_with(DENIED) => {
                println!("{}: skipped: {error}", server.name)
            }
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
