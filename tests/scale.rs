//! Scale: 10,000 connections at once, all busy, none mixed up with another. The peers live in a process
//! of their own and check what they receive: one process may lack the descriptors for both ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::process::{Clients, affordable, client, in_child};
use common::*;
use gaio::{BackendKind, Conn, OpResult, Operation, Results, Watcher};

const CONNECTIONS: usize = 10_000;
const ROUNDS: usize = 3;
const MESSAGE: usize = 1024;

backends! {
    fn echo_10k(kind: BackendKind) {
        in_child(module_path!(), kind, || serve(kind, false, |_| None));
    }

    fn swap_data_intact_10k(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            serve(kind, true, |random| {
                (random.below(2) == 0).then(|| vec![0; 1 + random.below(2 * MESSAGE)])
            });
        });
    }
}

/// The other half of the cases here, in a process of its own.
#[test]
#[ignore = "started by the cases"]
fn client_process() {
    client();
}

/// Which buffer the next read gets.
type Buffers = fn(&mut Random) -> Option<Vec<u8>>;

/// Echoes until all connections came, were served, and ended. If `hold`, what a turn has read is
/// written only after the next turn, so that others are read while it waits.
fn serve(kind: BackendKind, hold: bool, buffers: Buffers) {
    let count = affordable(CONNECTIONS);
    let mut server = Server::new(kind, buffers);
    let (socket, address) = listener();
    let listener = server.watcher.listen(socket).unwrap();
    server.watcher.accept((), listener).unwrap();
    let mut clients = Clients::start(address, count, ROUNDS, MESSAGE);
    clients.may_end();
    let mut results = Results::new();
    let mut held: Vec<OpResult> = Vec::new();
    while server.ended < count {
        let due = std::mem::take(&mut held);
        if due.is_empty() {
            turn(&mut server.watcher, &mut results);
        } else {
            let now = Duration::ZERO;
            server.watcher.wait_io_timeout(&mut results, now).unwrap();
        }
        for res in results.drain() {
            let is_data = res.operation == Operation::Read && !res.is_eof();
            if hold && is_data {
                held.push(res);
            } else {
                server.go_on(res);
            }
        }
        due.into_iter().for_each(|res| server.go_on(res));
    }
    clients.join();
    assert_eq!(server.most, count, "not all were there at once");
    assert_eq!(server.echoed, count * ROUNDS * MESSAGE);
}

/// An echo server.
struct Server {
    watcher: Watcher,
    buffers: Buffers,
    random: Random,
    accepted: usize,
    ended: usize,
    most: usize,
    echoed: usize,
}

impl Server {
    fn new(kind: BackendKind, buffers: Buffers) -> Self {
        Server {
            watcher: watcher(kind),
            buffers,
            random: Random::new(8),
            accepted: 0,
            ended: 0,
            most: 0,
            echoed: 0,
        }
    }

    /// Does what follows from a result.
    fn go_on(&mut self, res: OpResult) {
        assert_eq!(res.error, None, "{:?}", res.operation);
        match res.operation {
            Operation::Accept => {
                self.accepted += 1;
                self.most = self.most.max(self.accepted - self.ended);
                self.read(res.accepted().unwrap());
            }
            Operation::Read if res.is_eof() => {
                self.ended += 1;
                assert!(self.watcher.free(res.conn));
            }
            Operation::Read => {
                self.watcher.write((), res.conn, res.buffer).unwrap();
            }
            _ => {
                self.echoed += res.size;
                self.read(res.conn);
            }
        }
    }

    fn read(&mut self, conn: Conn) {
        let buffer = (self.buffers)(&mut self.random);
        self.watcher.read((), conn, buffer).unwrap();
    }
}
