//! gaio: the loop of its README.

use std::net::TcpListener;
use std::time::Duration;

use gaio::{BackendKind, Choice, Operation, Results, Watcher};

use super::closed;
use crate::Fallible;

pub fn run(listener: TcpListener, kind: BackendKind, stream: bool, spin: Duration) -> Fallible<()> {
    let mut watcher = Watcher::<()>::builder()
        .backend(Choice::Only(kind))
        .spin(spin)
        .build()?;
    let listener = watcher.listen(listener)?;
    watcher.accept((), listener)?;
    let mut results = Results::new();
    loop {
        watcher.wait_io(&mut results)?;
        for res in results.drain() {
            match res.operation {
                Operation::Accept => match res.accepted() {
                    Some(conn) if stream => drop(watcher.read_stream((), conn)?),
                    Some(conn) => drop(watcher.read((), conn, None)?),
                    None => {}
                },
                _ if res.error.is_some() || res.is_eof() => {
                    watcher.free(res.conn).then(closed);
                }
                Operation::Read => drop(watcher.write((), res.conn, res.buffer)?),
                Operation::Write if !stream => drop(watcher.read((), res.conn, None)?),
                _ => {}
            }
        }
    }
}
