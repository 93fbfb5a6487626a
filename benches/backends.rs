//! Backend against backend through the same `Watcher`: an echo of one message, client and server
//! in one watcher, so that the whole cost is on one thread. Run it with `cargo bench`.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

use std::hint::black_box;
use std::net::{TcpListener, TcpStream};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use gaio::{BackendKind, Choice, Conn, Operation, Results, Watcher};

const SIZES: [usize; 4] = [64, 1 << 10, 4 << 10, 64 << 10];
const CONNECTIONS: [usize; 2] = [1, 100];

/// Who a result belongs to.
#[derive(Clone, Copy, PartialEq)]
enum Side {
    Client,
    Server,
}

/// Pairs of connections in one watcher.
struct Echo {
    watcher: Watcher<Side>,
    results: Results<Side>,
    clients: Vec<Conn>,
}

impl Echo {
    fn new(kind: BackendKind, connections: usize) -> Option<Self> {
        let builder = Watcher::builder().backend(Choice::Only(kind));
        let mut watcher = match builder.build() {
            Ok(watcher) => watcher,
            Err(error) => {
                eprintln!("skipped: {kind}: {error}");
                return None;
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let clients = (0..connections).map(|_| {
            let client = TcpStream::connect(addr).unwrap();
            let (server, _) = listener.accept().unwrap();
            for socket in [&client, &server] {
                socket.set_nodelay(true).unwrap();
            }
            let server = watcher.delegate(server).unwrap();
            watcher.read(Side::Server, server, None).unwrap();
            watcher.delegate(client).unwrap()
        });
        let clients = clients.collect();
        Some(Echo {
            watcher,
            results: Results::new(),
            clients,
        })
    }

    /// One message there and back on each connection.
    fn round(&mut self, message: &bytes::Bytes) {
        let mut missing = Vec::new();
        for &client in &self.clients {
            self.watcher
                .write(Side::Client, client, message.clone())
                .unwrap();
            self.watcher.read(Side::Client, client, None).unwrap();
            missing.resize(missing.len().max(client.index() + 1), message.len());
        }
        let mut left = self.clients.len();
        while left > 0 {
            self.watcher.wait_io(&mut self.results).unwrap();
            for res in self.results.drain() {
                match (res.context, res.operation) {
                    (Side::Server, Operation::Read) => {
                        self.watcher
                            .write(Side::Server, res.conn, res.buffer)
                            .unwrap();
                        self.watcher.read(Side::Server, res.conn, None).unwrap();
                    }
                    (Side::Client, Operation::Read) => {
                        black_box(res.data());
                        let missing = &mut missing[res.conn.index()];
                        *missing -= res.size;
                        if *missing == 0 {
                            left -= 1;
                        } else {
                            self.watcher.read(Side::Client, res.conn, None).unwrap();
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

fn echo(criterion: &mut Criterion) {
    for connections in CONNECTIONS {
        let mut group = criterion.benchmark_group(format!("echo on {connections}"));
        for size in SIZES {
            group.throughput(Throughput::Elements(connections as u64));
            for kind in [BackendKind::IoUring, BackendKind::Epoll] {
                let Some(mut echo) = Echo::new(kind, connections) else {
                    continue;
                };
                let message = bytes::Bytes::from(vec![7; size]);
                group.bench_function(BenchmarkId::new(kind.name(), size), |bencher| {
                    bencher.iter(|| echo.round(&message));
                });
            }
        }
    }
}

criterion_group!(benches, echo);
criterion_main!(benches);
