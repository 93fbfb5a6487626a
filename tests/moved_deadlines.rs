//! Deadlines that are set, moved and taken away while their requests are pending.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;
use std::time::{Duration, Instant};

use common::timing::ms;
use common::{
    GLANCE, MUCH, PATIENCE, backends, connected, elsewhere, error_kind, listener, next, quiet,
    watcher,
};
use gaio::{BackendKind, Conn, Deadline, ErrorKind, OpResult, Results, Watcher};

const HOUR: Duration = Duration::from_secs(3600);

/// The next result is of a request that ran out of time, and not before.
fn runs_out(watcher: &mut Watcher<u8>, not_before: Instant) -> OpResult<u8> {
    let res = next(watcher);
    assert_eq!(error_kind(&res), Some(ErrorKind::Deadline));
    assert!(Instant::now() >= not_before, "early");
    assert!(res.is_last());
    res
}

backends! {
    /// A request of each kind gets a deadline, which is moved before it ends the request.
    fn each_kind(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let (listener, _) = listener();
        let listener = watcher.listen(listener).unwrap();
        let requests: [fn(&mut Watcher<u8>, Conn, Conn) -> gaio::OpId; 6] = [
            |watcher, conn, _| watcher.read(0, conn, None).unwrap(),
            |watcher, conn, _| watcher.read_full(0, conn, vec![0; 5], HOUR).unwrap(),
            |watcher, conn, _| watcher.read_stream(0, conn).unwrap(),
            |watcher, conn, _| watcher.ready(0, conn, gaio::Interest::Readable).unwrap(),
            |watcher, conn, _| watcher.write(0, conn, vec![0; MUCH]).unwrap(),
            |watcher, _, listener| watcher.accept(0, listener).unwrap(),
        ];
        for request in requests {
            for runs in [false, true] {
                let op = request(&mut watcher, conn, listener);
                if runs {
                    quiet(&mut watcher);
                }
                let end = Instant::now() + ms(20);
                for deadline in [Deadline::from(HOUR), Deadline::NEVER, Deadline::from(end)] {
                    assert!(watcher.set_deadline(op, deadline));
                }
                assert_eq!(runs_out(&mut watcher, end).op, op);
                assert!(!watcher.set_deadline(op, HOUR), "it has ended");
            }
        }
    }

    /// Taken away, it ends nothing.
    fn taken_away(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let op = watcher.read_timeout(0, conn, None, GLANCE / 3).unwrap();
        assert!(watcher.set_deadline(op, Deadline::NEVER));
        quiet(&mut watcher);
        peer.write_all(b"late").unwrap();
        assert_eq!(next(&mut watcher).data(), b"late");
    }

    /// A timer is put off, and brought forward.
    fn timers(kind: BackendKind) {
        let mut watcher: Watcher<u8> = watcher(kind);
        let put_off = watcher.timer(1, GLANCE / 3).unwrap();
        let sooner = watcher.timer(2, HOUR).unwrap();
        let begin = Instant::now();
        assert!(watcher.set_deadline(put_off, HOUR));
        assert!(watcher.set_deadline(sooner, begin + GLANCE));
        let res = next(&mut watcher);
        assert_eq!((res.context, res.error), (2, None));
        assert!(begin.elapsed() >= GLANCE);
        assert!(watcher.set_deadline(put_off, Duration::ZERO));
        assert_eq!(next(&mut watcher).context, 1);
    }

    /// One that waits behind others ends alone. One that has moved up keeps its deadline.
    fn queued(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.read(0, conn, vec![0; 1]).unwrap();
        let second = watcher.read(1, conn, vec![0; 1]).unwrap();
        let third = watcher.read(2, conn, vec![0; 1]).unwrap();
        let end = Instant::now() + ms(10);
        assert!(watcher.set_deadline(second, end));
        assert_eq!(runs_out(&mut watcher, end).context, 1);
        assert!(watcher.set_deadline(third, HOUR));
        peer.write_all(b"x").unwrap();
        assert_eq!(next(&mut watcher).context, 0);
        let end = Instant::now() + ms(10);
        assert!(watcher.set_deadline(third, end));
        assert_eq!(runs_out(&mut watcher, end).context, 2);
    }

    /// A deadline in the past leaves the one attempt that every request has.
    fn in_the_past(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        peer.write_all(b"there").unwrap();
        let op = watcher.read(0, conn, None).unwrap();
        assert!(watcher.set_deadline(op, Instant::now() - ms(1)));
        assert_eq!(next(&mut watcher).data(), b"there");
    }

    /// A stream lives as long as bytes come. Not one of them is lost.
    fn idle_time(kind: BackendKind) {
        let idle = 2 * GLANCE;
        let (mut watcher, conn, mut peer) = connected(kind);
        let stream = watcher.read_stream(0, conn).unwrap();
        assert!(watcher.set_deadline(stream, idle));
        let mut results = Results::new();
        let (mut seen, mut end, mut since) = (0, None, Instant::now());
        let begin = Instant::now();
        while end.is_none() {
            if begin.elapsed() < 2 * idle {
                peer.write_all(b"x").unwrap();
            }
            watcher.wait_io_timeout(&mut results, ms(5)).unwrap();
            assert!(begin.elapsed() < PATIENCE);
            for res in results.drain() {
                if res.is_last() {
                    end = res.error;
                } else {
                    since = Instant::now();
                    seen += res.size;
                    assert!(watcher.set_deadline(stream, idle));
                }
            }
        }
        assert_eq!(end.map(|error| error.kind()), Some(ErrorKind::Deadline));
        assert!(begin.elapsed() > 2 * idle && since.elapsed() >= idle);
        peer.write_all(b"end").unwrap();
        watcher.read(1, conn, None).unwrap();
        assert_eq!(next(&mut watcher).data(), b"end", "after {seen} bytes");
    }

    /// Others' numbers, and requests that are ending.
    fn not_there(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let (mut other, foreign, _other_peer) = connected::<u8>(kind);
        let op = other.read(0, foreign, None).unwrap();
        assert!(!watcher.set_deadline(op, Duration::ZERO));
        let ending = watcher.read(0, conn, None).unwrap();
        quiet(&mut watcher);
        assert!(watcher.cancel(ending));
        assert!(!watcher.set_deadline(ending, HOUR));
        assert_eq!(error_kind(&next(&mut watcher)), Some(ErrorKind::Cancelled));
        quiet(&mut other);
    }

    fn from_elsewhere(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let remote = watcher.remote();
        let end = Instant::now() + ms(10);
        elsewhere(|| {
            let op = remote.read(7, conn, None).unwrap();
            remote.set_deadline(op, end).unwrap();
        });
        assert_eq!(runs_out(&mut watcher, end).context, 7);
        watcher.close();
        let op = watcher.timer(0, HOUR);
        assert!(op.is_err());
        let kind = remote.set_deadline(other_op(kind), HOUR).unwrap_err().kind();
        assert_eq!(kind, ErrorKind::WatcherClosed);
    }
}

fn other_op(kind: BackendKind) -> gaio::OpId {
    let mut watcher: Watcher = watcher(kind);
    watcher.timer((), HOUR).unwrap()
}
