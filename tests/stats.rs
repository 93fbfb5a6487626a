//! What a watcher says that it has done, in numbers.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::{backends, connect_to, watcher};
use gaio::{BackendKind, Watcher};

backends! {
    /// What it takes to take a connection in, and to close it: nothing is left out.
    fn kernel_calls_of_a_connection(kind: BackendKind) {
        const CONNECTIONS: u64 = 50;
        let mut watcher: Watcher = watcher(kind);
        let calls = |watcher: &Watcher| watcher.stats().kernel_calls;
        // In and out. A ring needs no registration; a poller needs one, and a look at the address.
        // With a kqueue the socket changes its mode, too, which is two calls.
        let [taken, freed] = match kind {
            BackendKind::IoUring => [0, 1],
            BackendKind::Epoll => [2, 2],
            _ => [4, 2],
        };
        let before = calls(&watcher);
        let pairs: Vec<_> = (0..CONNECTIONS).map(|_| connect_to(&mut watcher)).collect();
        assert_eq!(calls(&watcher) - before, CONNECTIONS * taken);
        let before = calls(&watcher);
        for (conn, _) in &pairs {
            assert!(watcher.free(*conn));
        }
        assert_eq!(calls(&watcher) - before, CONNECTIONS * freed);
    }
}
