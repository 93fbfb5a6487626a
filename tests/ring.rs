//! What only a ring does, and is counted or measured: how its sleep shows, and completions that find no
//! room.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![cfg(target_os = "linux")]

mod common;

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use common::process::in_child;
use common::{backends, builder, collect, listener};
use gaio::{BackendKind, Results, Watcher};

backends! {
    /// More completions at once than a small queue holds: none is lost, and it is told.
    fn more_completions_than_room(kind: BackendKind) {
        const COUNT: usize = 200;
        let (listener, address) = listener();
        let connect = |_| TcpStream::connect(address).unwrap();
        let _peers: Vec<_> = (0..COUNT).map(connect).collect();
        let mut watcher: Watcher = builder(kind).queue_depth(8).build().unwrap();
        let listener = watcher.listen(listener).unwrap();
        watcher.accept((), listener).unwrap();
        for res in collect(&mut watcher, COUNT) {
            assert!(res.accepted().is_some(), "{:?}", res.error);
        }
        let overflows = watcher.stats().completion_overflows;
        // Without multishot they come one by one.
        if watcher.backend().features().contains(&"multishot") {
            assert!(overflows > 0);
        } else if kind != BackendKind::IoUring {
            assert_eq!(overflows, 0);
        }
    }

    /// Threads that sleep in `wait_io` wait for no disk. Others come and go in what the system counts, so
    /// there are many of them.
    fn sleep_is_not_iowait(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            const COUNT: u64 = 200;
            let sample: Watcher = builder(kind).queue_depth(8).build().unwrap();
            let old = !sample.backend().features().contains(&"no iowait");
            if kind == BackendKind::IoUring && old {
                return;
            }
            let before = blocked();
            let end = Instant::now() + Duration::from_secs(4);
            let sleepers: Vec<_> = (0..COUNT)
                .map(|_| {
                    thread::spawn(move || {
                        let mut watcher: Watcher =
                            builder(kind).queue_depth(8).build().unwrap();
                        let mut results = Results::new();
                        while let left = end.saturating_duration_since(Instant::now())
                            && !left.is_zero()
                        {
                            watcher.wait_io_timeout(&mut results, left).unwrap();
                        }
                    })
                })
                .collect();
            thread::sleep(Duration::from_millis(500));
            let during = blocked();
            assert!(during < before + COUNT / 2, "{before} before, {during} with {COUNT} idle");
            for sleeper in sleepers {
                sleeper.join().unwrap();
            }
        });
    }
}

/// How many threads of the machine wait for a disk, as the system sees it: the least of some looks.
fn blocked() -> u64 {
    let look = |_| {
        thread::sleep(Duration::from_millis(20));
        let stat = std::fs::read_to_string("/proc/stat").unwrap();
        let line = stat
            .lines()
            .find_map(|line| line.strip_prefix("procs_blocked "));
        line.unwrap().trim().parse().unwrap()
    };
    (0..20).map(look).min().unwrap_or(0)
}
