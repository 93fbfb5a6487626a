//! What does not move bytes: messages from another thread, waking a watcher that sleeps, deadlines.

use std::thread;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput};
use gaio::{Results, Watcher};

use crate::{KINDS, watcher};

const MESSAGES: u64 = 1_000;
const DEADLINES: u64 = 100_000;

/// Messages that are there when the watcher looks.
pub(crate) fn remote(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("remote messages");
    group.throughput(Throughput::Elements(MESSAGES));
    for kind in KINDS {
        let Some(mut watcher) = watcher::<u64>(kind) else {
            continue;
        };
        let remote = watcher.remote();
        let mut results = Results::new();
        group.bench_function(kind.name(), |bencher| {
            bencher.iter(|| {
                (0..MESSAGES).for_each(|message| remote.post(message).unwrap());
                let mut left = MESSAGES;
                while left > 0 {
                    left -= watcher.wait_io(&mut results).unwrap() as u64;
                }
            });
        });
    }
}

/// A message to a watcher that sleeps on another thread, and the answer to one that sleeps here.
pub(crate) fn wake_up(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("wake-up, there and back");
    for kind in KINDS {
        let (Some(mut here), Some(mut there)) = (watcher::<bool>(kind), watcher::<bool>(kind))
        else {
            continue;
        };
        let (to_here, to_there) = (here.remote(), there.remote());
        let echo = thread::spawn(move || {
            let mut results = Results::new();
            loop {
                there.wait_io(&mut results).unwrap();
                for res in results.drain() {
                    if !res.context {
                        return;
                    }
                    to_here.post(true).unwrap();
                }
            }
        });
        let mut results = Results::new();
        group.bench_function(kind.name(), |bencher| {
            bencher.iter(|| {
                to_there.post(true).unwrap();
                here.wait_io(&mut results).unwrap();
            });
        });
        to_there.post(false).unwrap();
        echo.join().unwrap();
    }
}

/// Setting many deadlines, and the same with all of them passing.
pub(crate) fn deadlines(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("deadlines, 100,000");
    group
        .throughput(Throughput::Elements(DEADLINES))
        .sample_size(10);
    for kind in KINDS {
        if watcher::<u64>(kind).is_none() {
            continue;
        }
        let fresh = || watcher::<u64>(kind).unwrap();
        let set = |watcher: &mut Watcher<u64>, seconds: u64| {
            for number in 0..DEADLINES {
                // In no order.
                let at = Duration::from_nanos(number.wrapping_mul(0x9e37_79b9) % 1_000_000);
                let later = Duration::from_secs(seconds);
                watcher.timer(number, at + later).unwrap();
            }
        };
        group.bench_function(BenchmarkId::new(kind.name(), "set"), |bencher| {
            let setup = fresh;
            bencher.iter_batched_ref(
                setup,
                |watcher| set(watcher, 3_600),
                BatchSize::PerIteration,
            );
        });
        group.bench_function(BenchmarkId::new(kind.name(), "set and fire"), |bencher| {
            let mut results = Results::with_capacity(4_096);
            let fire = |watcher: &mut Watcher<u64>| {
                set(watcher, 0);
                let mut left = DEADLINES;
                while left > 0 {
                    left -= watcher.wait_io(&mut results).unwrap() as u64;
                }
            };
            bencher.iter_batched_ref(fresh, fire, BatchSize::PerIteration);
        });
    }
}
