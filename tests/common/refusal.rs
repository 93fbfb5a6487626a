//! Calls that must be refused, all of them: nothing is started, and what was handed in comes back.

use std::net::{Shutdown, TcpListener};
use std::time::Duration;

use gaio::{Conn, Deadline, ErrorKind, Interest, Watcher};

use super::{listener, pair};

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
    assert_eq!(
        watcher
            .remote()
            .post(7)
            .expect_err("a refusal")
            .into_parts()
            .1,
        7
    );
}
