//! The end of a connection as each side sees it, orderly or not. `free.rs` has connections that the program
//! gives up, `closing.rs` the end of a watcher.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;

use common::process::in_child;
use common::*;
use gaio::{BackendKind, Deadline, ErrorKind, OpResult, Operation};
use socket2::SockRef;

backends! {
    fn eof_once(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        for index in 0..3 {
            watcher.read(index, conn, None).unwrap();
        }
        peer.write_all(b"bye").unwrap();
        drop(peer);
        let results = collect(&mut watcher, 3);
        assert_eq!((results[0].context, results[0].data()), (0, &b"bye"[..]));
        for (index, res) in results.iter().enumerate().skip(1) {
            assert_eq!((res.context, res.size, res.error), (index, 0, None));
            assert!(res.is_eof() && res.buffer.is_empty());
        }
        quiet(&mut watcher);
        assert!(
            watcher.contains(conn),
            "the connection is ours until it is freed"
        );
        watcher.read(3, conn, vec![0; 9]).unwrap();
        assert!(next(&mut watcher).is_eof(), "the end stays the end");
    }

    fn half_close(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        peer.shutdown(Shutdown::Write).unwrap();
        watcher.read((), conn, None).unwrap();
        assert!(next(&mut watcher).is_eof());
        watcher.write((), conn, pattern_vec(0, 8 << 20)).unwrap();
        let reader = thread::spawn(move || read_pattern(&mut peer, 0, 8 << 20));
        assert_eq!(next(&mut watcher).result(), Ok(8 << 20));
        reader.join().unwrap();
    }

    fn shutdown_after_write(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.write((), conn, pattern_vec(0, 8 << 20)).unwrap();
        watcher.write((), conn, b"last").unwrap();
        watcher.shutdown((), conn, Shutdown::Write).unwrap();
        quiet(&mut watcher);
        let reader = thread::spawn(move || {
            read_pattern(&mut peer, 0, 8 << 20);
            read_exactly(&mut peer, b"last");
            assert_closed(&mut peer);
            peer
        });
        let results = collect(&mut watcher, 3);
        let order: Vec<_> = results
            .iter()
            .map(|res| (res.operation, res.error))
            .collect();
        let (write, shutdown) = ((Operation::Write, None), (Operation::Shutdown, None));
        assert_eq!(order, [write, write, shutdown]);
        // Only our half is closed.
        reader.join().unwrap().write_all(b"answer").unwrap();
        watcher.read((), conn, None).unwrap();
        assert_eq!(next(&mut watcher).data(), b"answer");
        watcher.write((), conn, b"too late").unwrap();
        assert_eq!(
            next(&mut watcher).error.unwrap().raw_os_error(),
            Some(libc::EPIPE)
        );
    }

    fn write_on_closed(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            // SAFETY: installs no function; the process is this test's alone.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            let (tcp, peer) = pair();
            until("the peer's reset is here", {
                reset(peer);
                let tcp = tcp.try_clone().unwrap();
                move || tcp.take_error().unwrap().is_some()
            });
            let (unix, peer) = UnixStream::pair().unwrap();
            drop(peer);
            let (reader, pipe) = std::io::pipe().unwrap();
            drop(reader);
            let mut watcher = watcher(kind);
            for socket in [OwnedFd::from(tcp), unix.into(), pipe.into()] {
                let conn = watcher.delegate(socket).unwrap();
                watcher.write((), conn, b"nobody reads this").unwrap();
                let res = next(&mut watcher);
                let error = res.error.expect("an error");
                assert_eq!((res.size, error.kind()), (0, ErrorKind::Os));
                assert_eq!(error.raw_os_error(), Some(libc::EPIPE), "{error}");
                assert_eq!(&*res.buffer, b"nobody reads this");
            }
        });
    }

    fn reset_wakes_both(kind: BackendKind) {
        let (mut watcher, conn, peer) = connected(kind);
        watcher.write((), conn, vec![1; MUCH]).unwrap();
        watcher.read((), conn, None).unwrap();
        quiet(&mut watcher);
        reset(peer);
        for res in collect(&mut watcher, 2) {
            let error = res
                .error
                .unwrap_or_else(|| panic!("{:?} without an error", res.operation));
            assert_eq!(error.kind(), ErrorKind::Os, "{error}");
            assert!(res.size < MUCH && !res.is_eof());
        }
        quiet(&mut watcher);
    }

    /// The system tells a reset once, to whoever comes first: the read learns it all the same.
    fn reset_learnt_by_the_write(kind: BackendKind) {
        for started_before in [false, true] {
            let (mut watcher, conn, mut peer) = connected(kind);
            let own = watcher.socket(conn).unwrap().try_clone_to_owned().unwrap();
            peer.write_all(b"last words").unwrap();
            if started_before {
                watcher.read(0, conn, None).unwrap();
                assert_eq!(next(&mut watcher).data(), b"last words");
                watcher.read(0, conn, vec![0; 10]).unwrap();
                watcher.write(1, conn, vec![1; MUCH]).unwrap();
                quiet(&mut watcher);
            }
            reset(peer);
            until("the reset is here", move || has_ended(&own));
            if !started_before {
                watcher.write(1, conn, b"nobody reads this").unwrap();
                // The BSDs say that of all connections that have ended, whatever the reason.
                let said = os_error(&next(&mut watcher));
                assert!(said == Some(libc::ECONNRESET) || said == Some(libc::EPIPE), "{said:?}");
                // What came before it is not lost, and then it is no orderly end.
                watcher.read(0, conn, None).unwrap();
                assert_eq!(next(&mut watcher).data(), b"last words");
                watcher.read(0, conn, None).unwrap();
            }
            let results = collect(&mut watcher, if started_before { 2 } else { 1 });
            let read = results.iter().find(|res| res.context == 0).unwrap();
            assert_eq!(os_error(read), Some(libc::ECONNRESET), "{started_before}");
            // However one reads, and however often.
            watcher.read_stream(0, conn).unwrap();
            assert_eq!(os_error(&next(&mut watcher)), Some(libc::ECONNRESET));
            watcher.read_full(0, conn, vec![0; 5], Deadline::NEVER).unwrap();
            assert_eq!(os_error(&next(&mut watcher)), Some(libc::ECONNRESET));
            quiet(&mut watcher);
        }
    }

    /// An orderly end stays one, whatever becomes of writes after it. The BSDs forget the end that
    /// nobody has read yet.
    #[cfg(target_os = "linux")]
    fn reset_after_an_orderly_end(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        let own = watcher.socket(conn).unwrap().try_clone_to_owned().unwrap();
        watcher.write(1, conn, vec![1; MUCH]).unwrap();
        quiet(&mut watcher);
        peer.write_all(b"last words").unwrap();
        peer.shutdown(Shutdown::Write).unwrap();
        reset(peer);
        until("the reset is here", move || has_ended(&own));
        let res = next(&mut watcher);
        assert_eq!((res.context, os_error(&res)), (1, Some(libc::EPIPE)));
        watcher.read(0, conn, None).unwrap();
        assert_eq!(next(&mut watcher).data(), b"last words");
        for _ in 0..2 {
            watcher.read(0, conn, None).unwrap();
            let res = next(&mut watcher);
            assert!(res.is_eof(), "{:?}", res.error);
        }
    }

    /// Nor is it a reset if the program itself gave up reading and writing.
    fn shut_down_both_ways(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        watcher.shutdown(2, conn, Shutdown::Both).unwrap();
        assert_eq!(next(&mut watcher).error, None);
        watcher.write(1, conn, b"too late").unwrap();
        assert_eq!(os_error(&next(&mut watcher)), Some(libc::EPIPE));
        watcher.read(0, conn, None).unwrap();
        assert!(next(&mut watcher).is_eof());
    }
}

fn os_error<C>(res: &OpResult<C>) -> Option<i32> {
    res.error.and_then(|error| error.raw_os_error())
}

/// Whether a socket is connected no more, in either direction. Does not take its error.
fn has_ended(socket: &OwnedFd) -> bool {
    SockRef::from(socket).peer_addr().is_err()
}

backends! {
    fn peer_resets_mid_write(kind: BackendKind) {
        const ALL: usize = 32 << 20;
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.write("big", conn, pattern_vec(0, ALL)).unwrap();
        watcher.write("queued", conn, "tail").unwrap();
        let friend = thread::spawn(move || {
            read_pattern(&mut peer, 0, 1 << 20);
            reset(peer);
        });
        let results = collect(&mut watcher, 2);
        friend.join().unwrap();
        for (res, context) in results.iter().zip(["big", "queued"]) {
            let errno = res.error.expect(context).raw_os_error();
            let reset = [Some(libc::ECONNRESET), Some(libc::EPIPE)].contains(&errno);
            assert!(reset && res.context == context, "{context}: {errno:?}");
        }
        let big = &results[0];
        assert!(big.size >= 1 << 20 && big.size < ALL, "{} bytes", big.size);
        assert!(
            big.buffer.len() == ALL && is_pattern(0, &big.buffer),
            "it comes back whole"
        );
        assert_eq!((results[1].size, &*results[1].buffer), (0, &b"tail"[..]));
        assert!(watcher.free(conn));
    }
}
