//! Connections coming and going.

use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput};
use gaio::{Conn, Results, Watcher};

use crate::{KINDS, watcher};

/// Connections that wait to be accepted; fewer than a listener's usual backlog.
const BACKLOG: usize = 100;
/// Connections that are freed, each with a read that the kernel waits for.
const FREED: usize = 10_000;

/// Accepting what waits in the backlog.
pub(crate) fn accept(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("accept");
    group.throughput(Throughput::Elements(BACKLOG as u64));
    for kind in KINDS {
        let Some(mut watcher) = watcher::<()>(kind) else {
            continue;
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let listener = watcher.listen(listener).unwrap();
        watcher.accept((), listener).unwrap();
        let mut results = Results::new();
        group.bench_function(kind.name(), |bencher| {
            let connect = || {
                let peers = (0..BACKLOG).map(|_| TcpStream::connect(addr).unwrap());
                peers.collect::<Vec<_>>()
            };
            let accept = |peers: Vec<TcpStream>| {
                let mut left = peers.len();
                while left > 0 {
                    watcher.wait_io(&mut results).unwrap();
                    for conn in results.drain().filter_map(|res| res.accepted()) {
                        watcher.free(conn);
                        left -= 1;
                    }
                }
                peers
            };
            bencher.iter_batched(connect, accept, BatchSize::PerIteration);
        });
    }
}

/// Freeing many connections at once, until the last one's result is there.
pub(crate) fn free(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("free 10,000 connections");
    group
        .throughput(Throughput::Elements(FREED as u64))
        .sample_size(10);
    for kind in KINDS {
        if watcher::<()>(kind).is_none() {
            continue;
        }
        group.bench_function(kind.name(), |bencher| {
            let free = |(watcher, conns, _): &mut (Watcher, Vec<Conn>, UnixStream)| {
                let mut results = Results::with_capacity(4_096);
                conns.iter().for_each(|&conn| assert!(watcher.free(conn)));
                let mut left = conns.len();
                while left > 0 {
                    left -= watcher.wait_io(&mut results).unwrap();
                }
            };
            let setup = || pending(watcher(kind).unwrap());
            bencher.iter_batched_ref(setup, free, BatchSize::PerIteration);
        });
    }
}

/// Connections that wait for data: one socket under many descriptors, because two for each would be
/// more than most processes may have.
fn pending(mut watcher: Watcher) -> (Watcher, Vec<Conn>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let conns = (0..FREED).map(|_| {
        let conn = watcher.delegate(ours.try_clone().unwrap()).unwrap();
        watcher.read((), conn, None).unwrap();
        conn
    });
    let conns = conns.collect();
    let mut results = Results::new();
    for _ in 0..100 {
        watcher
            .wait_io_timeout(&mut results, Duration::ZERO)
            .unwrap();
    }
    (watcher, conns, theirs)
}
