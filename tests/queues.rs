//! Long queues: what a request costs does not depend on how many others wait behind it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::{Duration, Instant};

use common::{MUCH, PATIENCE, backends, collect, connected, error_kind, next};
use gaio::{BackendKind, ErrorKind, OpId, Results};

/// Writes that wait for a peer that does not read.
const QUEUED: usize = 400_000;

/// Writes that are cancelled while they run, one by one: enough to take minutes if all that are queued
/// were looked at each time.
const CANCELLED: usize = 2_000;

backends! {
    fn many_queued_writes(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        watcher.write(0, conn, vec![0; MUCH]).unwrap();
        let ops: Vec<OpId> = (1..=QUEUED)
            .map(|number| watcher.write(number, conn, "0123456789").unwrap())
            .collect();
        let start = Instant::now();
        for (op, number) in ops.iter().take(CANCELLED).zip(1..) {
            // They run from now on, as many at once as there may be.
            let count = watcher.wait_io_timeout(&mut Results::new(), Duration::ZERO);
            assert_eq!(count, Ok(0));
            assert!(watcher.cancel(*op));
            let res = next(&mut watcher);
            assert_eq!((res.context, error_kind(&res)), (number, Some(ErrorKind::Cancelled)));
            assert!(start.elapsed() < PATIENCE, "{number} of {CANCELLED} in {PATIENCE:?}");
        }
        // One far behind ends without a wait.
        assert!(watcher.cancel(ops[QUEUED - 1]));
        assert_eq!(next(&mut watcher).context, QUEUED);
        assert!(watcher.free(conn));
        let rest = collect(&mut watcher, QUEUED - CANCELLED);
        for (res, number) in rest.iter().zip([0].into_iter().chain(CANCELLED + 1..)) {
            assert_eq!((res.context, error_kind(res)), (number, Some(ErrorKind::ConnClosed)));
        }
        assert_eq!(watcher.stats().pending, 0);
    }
}
