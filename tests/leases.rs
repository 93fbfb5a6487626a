//! Leases of swap buffers: what one shows never changes, costs no copy, and may be kept and forwarded.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::VecDeque;
use std::io::Write;

use bytes::Bytes;
use common::*;
use gaio::{BackendKind, OpResult, Results};

backends! {
    fn swap_data_intact(kind: BackendKind) {
        const CONNECTIONS: usize = 250;
        let mut watcher = watcher(kind);
        let mut random = Random::new(8);
        let (listener, _) = listener();
        let mut peers = Vec::new();
        for index in 0..CONNECTIONS {
            let (ours, peer) = pair_from(&listener);
            let conn = watcher.delegate(ours).unwrap();
            watcher.read(index, conn, own_or_swap(&mut random)).unwrap();
            peers.push((peer, 0));
        }
        let mut seen = [0; CONNECTIONS];
        let mut kept = VecDeque::new();
        for _ in 0..40 {
            let mut expected = 0;
            for (index, (peer, sent)) in peers.iter_mut().enumerate() {
                let len = 1 + random.below(600);
                peer.write_all(pattern(index + *sent, len)).unwrap();
                *sent += len;
                expected += len;
            }
            while expected > 0 {
                let mut results = Results::new();
                turn(&mut watcher, &mut results);
                for res in results.drain() {
                    let at = res.context + seen[res.context];
                    assert_eq!((res.error, res.is_eof()), (None, false));
                    seen[res.context] += res.size;
                    expected -= res.size;
                    watcher
                        .read(res.context, res.conn, own_or_swap(&mut random))
                        .unwrap();
                    kept.push_back((at, res));
                }
                // Results are looked at long after others were read into the same memory.
                while kept.len() > 2 * CONNECTIONS {
                    check_kept(kept.pop_front());
                }
            }
        }
        while !kept.is_empty() {
            check_kept(kept.pop_front());
        }
    }

    fn lease_kept(kind: BackendKind) {
        const READS: usize = 100_000;
        let mut watcher = builder(kind)
            .swap_buffer_size(4096)
            .swap_buffers(4)
            .build()
            .unwrap();
        let (kept_conn, mut kept_peer) = connect_to(&mut watcher);
        let (conn, mut peer) = connect_to(&mut watcher);
        write_pattern(&mut kept_peer, 77, 500);
        watcher.read((), kept_conn, None).unwrap();
        let kept = next(&mut watcher).buffer.into_swap().unwrap();

        let mut results = Results::new();
        for index in 0..READS {
            peer.write_all(pattern(index, 40)).unwrap();
            watcher.read((), conn, None).unwrap();
            let mut got = 0;
            while got < 40 {
                // A read may end where a buffer ends; the rest comes with the next.
                turn(&mut watcher, &mut results);
                let res = results.pop().unwrap();
                assert!(is_pattern(index + got, res.data()), "read {index}");
                got += res.size;
                if got < 40 {
                    watcher.read((), conn, None).unwrap();
                }
            }
        }
        assert!(
            is_pattern(77, &kept),
            "a lease changed while others were read"
        );
        let part = kept.slice(100..=199);
        drop(watcher);
        drop(kept);
        assert!(
            part.len() == 100 && is_pattern(177, &part),
            "a lease outlives the watcher"
        );
    }

    fn lease_forwarded(kind: BackendKind) {
        let (mut watcher, from, mut sender) = connected(kind);
        let (to, mut receiver) = connect_to(&mut watcher);
        for at in 0..100 {
            sender.write_all(pattern(at, 1024)).unwrap();
            watcher.read((), from, None).unwrap();
            let read = next(&mut watcher);
            let place = read.data().as_ptr();
            let lease = read.buffer.into_swap().unwrap();
            assert_eq!(lease.as_ptr(), place, "taking a lease copies nothing");
            let bytes = Bytes::from(lease.clone());
            assert_eq!(bytes.as_ptr(), place, "nor does it as Bytes");
            watcher.write((), to, bytes).unwrap();
            watcher.write((), from, lease).unwrap();
            for write in collect(&mut watcher, 2) {
                assert_eq!((write.size, write.error), (1024, None));
                assert_eq!(write.buffer.as_ptr(), place, "nor does writing it");
            }
            read_pattern(&mut receiver, at, 1024);
            read_pattern(&mut sender, at, 1024);
        }
    }

    fn recycle_reads_again_the_same_way(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        for own in [Some(vec![0; 64]), None] {
            let swap = own.is_none();
            let mut buffer: Option<Vec<u8>> = own;
            for at in 0..50 {
                peer.write_all(pattern(at, 1 + at)).unwrap();
                watcher.read((), conn, buffer).unwrap();
                let res = next(&mut watcher);
                assert_eq!((res.size, res.is_swap_buffer()), (1 + at, swap));
                assert!(is_pattern(at, res.data()));
                buffer = res.buffer.into();
                assert_eq!(buffer.as_ref().map(Vec::len), (!swap).then_some(64));
            }
        }
    }
}

/// A buffer to read into: now a swap buffer, now an own one of any small size.
fn own_or_swap(random: &mut Random) -> Option<Vec<u8>> {
    (random.below(2) == 0).then(|| vec![0; 1 + random.below(700)])
}

fn check_kept(kept: Option<(usize, OpResult<usize>)>) {
    let (at, res) = kept.unwrap();
    assert!(
        is_pattern(at, res.data()),
        "changed after it was handed out"
    );
}
