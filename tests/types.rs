//! Types: how big they are, which may cross threads, and numbers that no two requests share.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashSet;
use std::thread;

use common::{PATIENCE, backends, connected};
use gaio::{BackendKind, Buffer, Conn, Error, OpId, Rejected, Remote, Results, SwapBuf, Watcher};

backends! {
    fn op_ids_are_unique_across_watchers(kind: BackendKind) {
        let threads: Vec<_> = (0..4)
            .map(|_| thread::spawn(move || some_ops(kind)))
            .collect();
        let ops: Vec<OpId> = threads
            .into_iter()
            .flat_map(|it| it.join().unwrap())
            .collect();
        let different: HashSet<_> = ops.iter().collect();
        assert_eq!(different.len(), ops.len());
    }
}

/// The ids of requests made here and through a handle, over several watchers' lives.
fn some_ops(kind: BackendKind) -> Vec<OpId> {
    let mut ops = Vec::new();
    for _ in 0..4 {
        let (mut watcher, conn, _peer) = connected(kind);
        let remote = watcher.remote();
        for _ in 0..500 {
            ops.push(watcher.read((), conn, None).unwrap());
            ops.push(remote.read((), conn, None).unwrap());
            ops.push(watcher.timer((), PATIENCE).unwrap());
        }
    }
    ops
}

#[test]
fn sizes() {
    assert_eq!(size_of::<Error>(), 8);
    assert_eq!(size_of::<Buffer>(), 40);
    assert_eq!(size_of::<Conn>(), 8);
    assert_eq!(size_of::<Option<OpId>>(), 8);
    assert_eq!(size_of::<Rejected<[u8; 100]>>(), size_of::<usize>());
}

#[test]
fn what_may_cross_threads() {
    fn sent<T: Send>() {}
    fn shared<T: Send + Sync>() {}
    sent::<Watcher<Box<u8>>>();
    sent::<Results<Box<u8>>>();
    sent::<Buffer>();
    shared::<Remote<std::cell::Cell<u8>>>();
    shared::<SwapBuf>();
    shared::<Error>();
    shared::<Conn>();
}
