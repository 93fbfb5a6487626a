//! An echo of one message on each connection, client and server in one watcher, so that the whole
//! cost is on one thread.

use std::hint::black_box;
use std::net::{TcpListener, TcpStream};

use criterion::{BenchmarkId, Criterion, Throughput};
use gaio::bytes::Bytes;
use gaio::{BackendKind, Conn, Operation, Results, Watcher};

use crate::{KINDS, watcher};

const SIZES: [usize; 6] = [64, 128, 1 << 10, 4 << 10, 64 << 10, 128 << 10];
const CONNECTIONS: [usize; 3] = [1, 100, 1_000];
/// What the server reads into, if not into swap buffers.
const OWN_BYTES: usize = 64 << 10;

/// How the server reads.
#[derive(Clone, Copy, PartialEq)]
enum Mode {
    /// Once, into a swap buffer.
    Once,
    /// Once, into a vector of its own.
    Own,
    /// A stream of swap buffers.
    Stream,
}

const MODES: [(&str, Mode); 3] = [
    ("once", Mode::Once),
    ("own", Mode::Own),
    ("stream", Mode::Stream),
];

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
    mode: Mode,
}

impl Echo {
    fn new(kind: BackendKind, connections: usize, mode: Mode) -> Option<Self> {
        let mut echo = Echo {
            watcher: watcher(kind)?,
            results: Results::new(),
            clients: Vec::new(),
            mode,
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        for _ in 0..connections {
            let client = TcpStream::connect(addr).unwrap();
            let (server, _) = listener.accept().unwrap();
            for socket in [&client, &server] {
                socket.set_nodelay(true).unwrap();
            }
            let server = echo.watcher.delegate(server).unwrap();
            match mode {
                Mode::Stream => drop(echo.watcher.read_stream(Side::Server, server).unwrap()),
                _ => echo.serve(server, mode.buffer()),
            }
            echo.clients.push(echo.watcher.delegate(client).unwrap());
        }
        Some(echo)
    }

    /// The server's next read.
    fn serve(&mut self, conn: Conn, buffer: Option<Vec<u8>>) {
        self.watcher.read(Side::Server, conn, buffer).unwrap();
    }

    /// One message there and back on each connection.
    fn round(&mut self, message: &Bytes) {
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
            while let Some(res) = self.results.pop() {
                match (res.context, res.operation) {
                    (Side::Server, Operation::Read) => {
                        self.watcher
                            .write(Side::Server, res.conn, res.buffer)
                            .unwrap();
                        if self.mode == Mode::Once {
                            self.serve(res.conn, None);
                        }
                    }
                    // Its vector comes back with the write.
                    (Side::Server, Operation::Write) if self.mode == Mode::Own => {
                        self.serve(res.conn, res.buffer.recycle());
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

impl Mode {
    fn buffer(self) -> Option<Vec<u8>> {
        (self == Mode::Own).then(|| vec![0; OWN_BYTES])
    }
}

pub(crate) fn echo(criterion: &mut Criterion) {
    for connections in CONNECTIONS {
        for (name, mode) in MODES {
            let mut group = criterion.benchmark_group(format!("echo {name} on {connections}"));
            group.throughput(Throughput::Elements(connections as u64));
            for (size, kind) in SIZES
                .into_iter()
                .flat_map(|size| KINDS.map(|kind| (size, kind)))
            {
                let Some(mut echo) = Echo::new(kind, connections, mode) else {
                    continue;
                };
                let message = Bytes::from(vec![7; size]);
                group.bench_function(BenchmarkId::new(kind.name(), size), |bencher| {
                    bencher.iter(|| echo.round(&message));
                });
            }
        }
    }
}
