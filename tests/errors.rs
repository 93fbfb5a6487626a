//! Errors as a program meets them: what they say, and what they can be turned into.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashSet;
use std::io;
use std::net::{Shutdown, UdpSocket};
use std::thread;
use std::time::Duration;

use common::{PATIENCE, backends, builder, close_and_collect, collect, connected, listener, next};
use gaio::{BackendKind, Conn, Error, ErrorKind, Results};

/// Each kind of error, as a program meets it.
fn one_error_of_each_kind(kind: BackendKind) -> Vec<Error> {
    let (mut watcher, conn, peer) = connected(kind);
    let (listener, _) = listener();
    let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut errors = vec![
        watcher.read((), conn, vec![]).unwrap_err().error(),
        watcher.read((), Conn::NONE, None).unwrap_err().error(),
        watcher.accept((), conn).unwrap_err().error(),
        watcher.delegate(listener).unwrap_err().error(),
        watcher.delegate(datagrams).unwrap_err().error(),
        builder::<()>(kind)
            .queue_depth(0)
            .build()
            .map(drop)
            .unwrap_err(),
    ];
    let op = watcher.read((), conn, None).unwrap();
    errors.push(watcher.reclaim(conn).map(drop).unwrap_err());
    watcher.cancel(op);
    errors.extend(next(&mut watcher).error);
    watcher
        .read_timeout((), conn, None, Duration::ZERO)
        .unwrap();
    errors.extend(next(&mut watcher).error);
    drop(peer);
    watcher.read_full((), conn, vec![0; 4], PATIENCE).unwrap();
    errors.extend(next(&mut watcher).error);
    watcher.shutdown((), conn, Shutdown::Write).unwrap();
    watcher.write((), conn, "late").unwrap();
    errors.extend(collect(&mut watcher, 2)[1].error);
    let (mut watcher, wrong) = thread::spawn(move || {
        let error = watcher.wait_io(&mut Results::new()).unwrap_err();
        (watcher, error)
    })
    .join()
    .unwrap();
    errors.push(wrong);
    close_and_collect(&mut watcher);
    errors.push(watcher.timer((), PATIENCE).unwrap_err().error());
    errors
}

backends! {
    fn error_says_what_to_do(kind: BackendKind) {
        let errors = one_error_of_each_kind(kind);
        let kinds: HashSet<_> = errors.iter().map(|error| error.kind()).collect();
        assert_eq!(kinds.len(), 12, "all kinds: {kinds:?}");
        for error in errors {
            let text = error.to_string();
            assert!(text.len() > 20 && text.lines().count() == 1, "{text}");
            assert!(
                error.kind() != ErrorKind::Os || error.raw_os_error().is_some(),
                "{text}"
            );
            let io = io::Error::from(error);
            assert!(
                io.to_string().contains(&text) || io.raw_os_error().is_some(),
                "{io}"
            );
            let expected = match error.kind() {
                ErrorKind::Deadline => io::ErrorKind::TimedOut,
                ErrorKind::UnexpectedEof => io::ErrorKind::UnexpectedEof,
                ErrorKind::Unsupported => io::ErrorKind::Unsupported,
                _ => continue,
            };
            assert_eq!(io.kind(), expected, "{text}");
        }
    }

    fn rejected_is_an_error(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let mut refuse = || watcher.read("context", conn, vec![]).unwrap_err();
        let error = refuse().error();
        assert_eq!(error.kind(), ErrorKind::EmptyBuffer);
        assert!(Error::from(refuse()) == error);
        assert_eq!(refuse().to_string(), error.to_string());
        assert_eq!(io::Error::from(refuse()).to_string(), error.to_string());
        let boxed: Box<dyn std::error::Error> = refuse().into();
        assert_eq!(boxed.to_string(), error.to_string());
    }
}
