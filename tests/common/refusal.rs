//! Calls that must be refused, all of them: nothing is started, and what was handed in comes back.

use std::net::{Shutdown, TcpListener};
use std::time::Duration;

use gaio::{Conn, Deadline, ErrorKind, Interest, OpId, Remote, Results, Watcher};

use super::{PATIENCE, listener, pair};

/// Asserts that every request for this connection is refused, and gives back what it was given.
pub fn refuses(watcher: &mut Watcher<u8>, conn: Conn, kind: ErrorKind) {
    let never = Deadline::NEVER;
    let buffer = || vec![1, 2, 3];
    let (error, back) = watcher
        .read(7, conn, buffer())
        .expect_err("a refusal")
        .into_parts();
    assert_eq!((error.kind(), back), (kind, (7, Some(buffer()))));
    let refused = watcher
        .read_timeout(7, conn, None, never)
        .expect_err("a refusal");
    assert_eq!(refused.error().kind(), kind);
    assert_eq!(refused.into_inner(), (7, None));
    let refused = watcher
        .read_full(7, conn, buffer(), never)
        .expect_err("a refusal");
    assert_eq!(refused.error().kind(), kind);
    assert_eq!(refused.into_inner(), (7, buffer()));
    for refused in [
        watcher.write(7, conn, buffer()),
        watcher.write_timeout(7, conn, buffer(), never),
    ] {
        let (error, (context, back)) = refused.expect_err("a refusal").into_parts();
        assert_eq!(
            (error.kind(), context, back.into_vec()),
            (kind, 7, buffer())
        );
    }
    for refused in [
        watcher.read_stream(7, conn),
        watcher.shutdown(7, conn, Shutdown::Both),
        watcher.ready(7, conn, Interest::Readable),
        watcher.accept(7, conn),
        watcher.accept_one(7, conn),
    ] {
        let (error, context) = refused.expect_err("a refusal").into_parts();
        assert_eq!((error.kind(), context), (kind, 7));
    }
}

/// As [`refuses`], for the calls that need no connection yet.
pub fn refuses_new(watcher: &mut Watcher<u8>, kind: ErrorKind) {
    let (listener, address) = listener();
    let refused = watcher.timer(7, Duration::ZERO).expect_err("a refusal");
    assert_eq!((refused.error().kind(), refused.into_inner()), (kind, 7));
    let refused = watcher
        .connect(7, address, Deadline::NEVER)
        .expect_err("a refusal");
    assert_eq!((refused.error().kind(), refused.into_inner()), (kind, 7));
    let refused = watcher.delegate(pair().0).expect_err("a refusal");
    assert_eq!(refused.error().kind(), kind);
    let refused = watcher.listen(listener).expect_err("a refusal");
    assert_eq!(refused.error().kind(), kind);
    TcpListener::from(refused.into_inner())
        .local_addr()
        .expect("still open");
    let refused = watcher
        .connect_from(7, pair().0, address, Deadline::NEVER)
        .expect_err("a refusal");
    assert_eq!((refused.error().kind(), refused.into_inner().0), (kind, 7));
}

/// Asserts that a remote refuses a message, and gives it back.
pub fn refuses_post(remote: &Remote<u8>) {
    let (_, context) = remote.post(7).expect_err("a refusal").into_parts();
    assert_eq!(context, 7);
}

/// Asserts that every call but `close` and a drop is refused, for these connections and this request.
pub fn refuses_all(watcher: &mut Watcher<u8>, conns: &[Conn], op: OpId, kind: ErrorKind) {
    for &conn in conns {
        refuses(watcher, conn, kind);
        for refused in [
            watcher.reclaim(conn).map(drop),
            watcher.socket(conn).map(drop),
            watcher.peer_addr(conn).map(drop),
            watcher.local_addr(conn).map(drop),
            watcher.peer_cred(conn).map(drop),
            watcher.accept_limit(conn, 1),
        ] {
            assert_eq!(refused.expect_err("a refusal").kind(), kind);
        }
        assert!(!watcher.contains(conn));
        assert_eq!(watcher.queued_bytes(conn), 0);
        assert_eq!(watcher.cancel_reads(conn), 0);
        assert_eq!(watcher.cancel_writes(conn), 0);
        assert!(!watcher.free(conn));
    }
    refuses_new(watcher, kind);
    assert!(!watcher.cancel(op));
    assert!(!watcher.set_deadline(op, Duration::ZERO));
    let mut results = Results::new();
    for refused in [
        watcher.wait_io(&mut results).map(drop),
        watcher.wait_io_timeout(&mut results, PATIENCE).map(drop),
        watcher.pin(0),
        watcher.poll_fd().map(drop),
    ] {
        assert_eq!(refused.expect_err("a refusal").kind(), kind);
    }
}
