//! What only a ring does, and is counted or measured: how its sleep shows, completions that find no room,
//! and data for which too few buffers are lent.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout
)]
#![cfg(target_os = "linux")]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use common::process::{in_child, raise_descriptor_limit};
use common::*;
use gaio::{BackendKind, Results, Watcher};

backends! {
    /// More completions at once than a small queue holds: none is lost, and it is told.
    fn more_completions_than_room(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            const COUNT: usize = 1_200;
            raise_descriptor_limit();
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
        });
    }

    /// More data comes at once than the buffers at hand take. The pool has enough: nobody gets it in small
    /// pieces.
    fn burst_is_read_whole(kind: BackendKind) {
        const COUNT: usize = 200;
        const EACH: usize = 16 << 10;
        let mut watcher = watcher(kind);
        let packs = watcher.backend().features().contains(&"incremental buffers");
        if kind == BackendKind::IoUring && !packs {
            return println!("skipped: a buffer serves one read a turn");
        }
        let mut peers = Vec::new();
        for index in 0..COUNT {
            let (conn, mut peer) = connect_to(&mut watcher);
            peer.write_all(&[7; EACH]).unwrap();
            watcher.read(index, conn, None).unwrap();
            peers.push(peer);
        }
        let (mut seen, mut reads) = (0, 0);
        while seen < COUNT * EACH {
            let res = next(&mut watcher);
            reads += 1;
            seen += res.size;
            watcher.read(res.context, res.conn, None).unwrap();
        }
        assert!(reads <= COUNT + COUNT / 4, "{reads} reads");
    }

    /// Reads are woken in vain again and again, because somebody else takes the data of a socket that they
    /// share, and end then. The buffers that they might have used are there for others.
    fn woken_in_vain(kind: BackendKind) {
        // The next one of a read on io_uring may find it in a thread of the kernel's.
        const WAKES: usize = 127;
        let mut watcher = watcher(kind);
        if reads_at_once(&watcher) {
            // It is never woken in vain.
            return;
        }
        let mut results = Results::new();
        let mut nothing_within = |watcher: &mut Watcher<_>, time| {
            assert_eq!(watcher.wait_io_timeout(&mut results, time), Ok(0));
        };
        for index in 0..64 {
            let (ours, mut peer) = UnixStream::pair().unwrap();
            let mut other = ours.try_clone().unwrap();
            let conn = watcher.delegate(ours).unwrap();
            let op = watcher.read(index, conn, None).unwrap();
            nothing_within(&mut watcher, Duration::ZERO);
            for _ in 0..WAKES {
                peer.write_all(b"x").unwrap();
                other.read_exact(&mut [0]).unwrap();
                nothing_within(&mut watcher, Duration::ZERO);
            }
            // What a thread of the kernel's does, if there is one, needs a moment.
            nothing_within(&mut watcher, GLANCE / 10);
            match index % 3 {
                0 => assert!(watcher.cancel(op)),
                1 => assert!(watcher.free(conn)),
                _ => drop(peer),
            }
            assert_eq!(next(&mut watcher).is_eof(), index % 3 == 2);
        }
        let (conn, mut peer) = connect_to(&mut watcher);
        peer.write_all(&[7; 32 << 10]).unwrap();
        watcher.read(64, conn, None).unwrap();
        let res = next(&mut watcher);
        assert!(res.size > 8 << 10, "{} bytes", res.size);
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
