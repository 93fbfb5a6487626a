//! Ends: what is seen when a connection ends, from either side, in order or not, and that nothing
//! of it reaches the next one (scenarios 13 to 19, 21, 22). The end of a watcher is in `closing.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use common::process::in_child;
use common::refusal::refuses;
use common::*;
use gaio::{BackendKind, Conn, Deadline, ErrorKind, OpResult, Operation, Results, Watcher};
use socket2::SockRef;

/// More than the sockets between two ends can hold: its write stays pending.
const HUGE: usize = 16 << 20;

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
        watcher.write((), conn, vec![1; HUGE]).unwrap();
        watcher.read((), conn, None).unwrap();
        quiet(&mut watcher);
        reset(peer);
        for res in collect(&mut watcher, 2) {
            let error = res
                .error
                .unwrap_or_else(|| panic!("{:?} without an error", res.operation));
            assert_eq!(error.kind(), ErrorKind::Os, "{error}");
            assert!(res.size < HUGE && !res.is_eof());
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
                watcher.write(1, conn, vec![1; HUGE]).unwrap();
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
        watcher.write(1, conn, vec![1; HUGE]).unwrap();
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

    fn free_with_pending(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.read(0, conn, None).unwrap();
        watcher
            .read_full(1, conn, vec![0; 10], Deadline::NEVER)
            .unwrap();
        watcher
            .read_timeout(2, conn, vec![0; 10], Duration::from_secs(3600))
            .unwrap();
        watcher.write(10, conn, pattern_vec(0, HUGE)).unwrap();
        watcher.write(11, conn, b"queued").unwrap();
        watcher.shutdown(12, conn, Shutdown::Write).unwrap();
        quiet(&mut watcher);
        assert!(watcher.free(conn));
        assert!(!watcher.contains(conn));
        let results = collect(&mut watcher, 6);
        assert!(results.iter().all(|res| res.conn == conn));
        assert!(
            results
                .iter()
                .all(|res| error_kind(res) == Some(ErrorKind::ConnClosed))
        );
        let (reads, others): (Vec<_>, Vec<_>) = results.iter().partition(|res| res.context < 10);
        assert_eq!(contexts(&reads), [0, 1, 2]);
        assert_eq!(contexts(&others), [10, 11, 12]);
        // What the write says to have sent, neither more nor less, and then the end.
        read_pattern(&mut peer, 0, others[0].size);
        assert_closed(&mut peer);
        quiet(&mut watcher);
    }

    fn free_ends_in_the_order_of_acceptance(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let remote = watcher.remote();
        let huge = || vec![0; 16 << 20];
        // From both sides of the inbox, each accepted before the next is made.
        for first in (0..12).step_by(4) {
            remote.write(first, conn, huge()).unwrap();
            quiet(&mut watcher);
            watcher.read(first + 1, conn, None).unwrap();
            watcher.write(first + 2, conn, huge()).unwrap();
            remote.read(first + 3, conn, None).unwrap();
            quiet(&mut watcher);
        }
        watcher.free(conn);
        let order = collect(&mut watcher, 12).into_iter().map(|res| res.context);
        assert_eq!(order.collect::<Vec<_>>(), (0..12).collect::<Vec<_>>());
    }

    fn free_never_used(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected::<()>(kind);
        assert!(watcher.contains(conn));
        assert!(watcher.free(conn));
        quiet(&mut watcher);
        assert_closed(&mut peer);
        assert_eq!(watcher.stats().connections, 0);
    }

    fn free_twice(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        watcher.read((), conn, None).unwrap();
        assert!(watcher.free(conn));
        assert!(!watcher.free(conn));
        assert_eq!(error_kind(&next(&mut watcher)), Some(ErrorKind::ConnClosed));
        assert!(!watcher.free(conn));
        quiet(&mut watcher);
    }

    fn free_keeps_a_duplicate_open(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (mut ours, mut peer) = pair();
        let conn = watcher.delegate(ours.try_clone().unwrap()).unwrap();
        watcher.read((), conn, None).unwrap();
        quiet(&mut watcher);
        assert!(watcher.free(conn));
        next(&mut watcher);
        quiet(&mut watcher);
        // Closed, not shut down; and what comes now is no longer taken by the watcher.
        ours.set_nonblocking(false).unwrap();
        peer.write_all(b"there").unwrap();
        read_exactly(&mut ours, b"there");
        ours.write_all(b"back").unwrap();
        read_exactly(&mut peer, b"back");
    }

    fn stale_conn_after_index_reuse(kind: BackendKind) {
        let (mut watcher, first, _peer) = connected(kind);
        let (mut last, mut reused) = (first, 0);
        for _ in 0..1000 {
            assert!(watcher.free(last));
            quickly(&mut watcher);
            let (conn, mut peer) = connect_to(&mut watcher);
            assert!(conn != first && conn != last);
            assert!(conn.index() < 4, "indices are dense");
            reused += usize::from(conn.index() == first.index());
            is_stale(&mut watcher, first);
            is_stale(&mut watcher, last);
            // The new one does not feel any of it.
            peer.write_all(b"ok").unwrap();
            watcher.read(1, conn, None).unwrap();
            let res = next(&mut watcher);
            assert_eq!((res.conn, res.context, res.data()), (conn, 1, &b"ok"[..]));
            last = conn;
        }
        assert!(reused > 0, "nothing was tested");
    }

    fn index_kept_while_results_are_unread(kind: BackendKind) {
        let (mut watcher, old, _peer) = connected(kind);
        for _ in 0..2 {
            watcher.read((), old, None).unwrap();
        }
        assert!(watcher.free(old));
        let mut others = vec![connect_to(&mut watcher)];
        next(&mut watcher);
        others.push(connect_to(&mut watcher));
        next(&mut watcher);
        others.push(connect_to(&mut watcher));
        let reused = |conn: Conn| conn.index() == old.index();
        assert!(
            !others.iter().any(|(conn, _)| reused(*conn)),
            "reused too early"
        );
        quickly(&mut watcher);
        assert!(reused(connect_to(&mut watcher).0), "indices are dense");
    }

    fn conn_of_another_watcher(kind: BackendKind) {
        let (mut watcher, own, _peer) = connected(kind);
        let (other, foreign, _other_peer) = connected::<u8>(kind);
        assert_ne!(own, foreign);
        is_stale(&mut watcher, foreign);
        is_stale(&mut watcher, Conn::NONE);
        assert!(watcher.contains(own) && other.contains(foreign));
    }

    fn fd_reuse_no_crosstalk(kind: BackendKind) {
        const ROUNDS: usize = 10_000;
        let (listener, _) = listener();
        let mut random = Random::new(21);
        let mut rounds = Rounds::new(kind);
        let mut before: Option<TcpStream> = None;
        for round in 0..ROUNDS {
            let number = round.to_ne_bytes();
            let (ours, mut peer) = pair_from(&listener);
            let conn = rounds.start(ours, random.below(2) == 0);
            if random.below(2) == 0 {
                rounds.turn();
            }
            // The read is met by its bytes, by the free, or by both at once.
            if random.below(2) == 0 {
                peer.write_all(&number).unwrap();
            }
            if random.below(2) == 0 {
                rounds.turn();
            }
            assert!(rounds.watcher.free(conn));
            let _ = peer.write_all(&number);
            // The next connection comes while this one is still being ended.
            if let Some(peer) = before.replace(peer) {
                rounds.finish(round - 1, peer);
            }
        }
        rounds.finish(ROUNDS - 1, before.unwrap());
        quiet(&mut rounds.watcher);
    }

    fn reclaim(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        peer.write_all(b"first").unwrap();
        watcher.read(0, conn, None).unwrap();
        assert_eq!(next(&mut watcher).data(), b"first");

        let op = watcher.read(1, conn, None).unwrap();
        let refused = watcher.reclaim(conn).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Busy);
        quiet(&mut watcher);
        assert_eq!(watcher.reclaim(conn).unwrap_err().kind(), ErrorKind::Busy);
        assert!(watcher.cancel(op));
        assert_eq!(error_kind(&next(&mut watcher)), Some(ErrorKind::Cancelled));

        let mut stream = TcpStream::from(watcher.reclaim(conn).unwrap());
        is_stale(&mut watcher, conn);
        assert_eq!(watcher.stats().connections, 0);
        // A blocking socket as it was: this read finds nothing at first.
        let answer = thread::spawn(move || {
            read_exactly(&mut stream, b"second");
            stream.write_all(b"third").unwrap();
        });
        quiet(&mut watcher);
        peer.write_all(b"second").unwrap();
        read_exactly(&mut peer, b"third");
        answer.join().unwrap();
    }

    fn reclaim_keeps_the_blocking_mode(kind: BackendKind) {
        let mut watcher = watcher::<()>(kind);
        for nonblocking in [true, false] {
            let (ours, mut peer) = pair();
            ours.set_nonblocking(nonblocking).unwrap();
            let conn = watcher.delegate(ours).unwrap();
            peer.write_all(b"x").unwrap();
            watcher.read((), conn, None).unwrap();
            next(&mut watcher);
            let socket = watcher.reclaim(conn).unwrap();
            assert_eq!(SockRef::from(&socket).nonblocking().unwrap(), nonblocking);
        }
    }
}

/// One turn that does not wait.
fn quickly<C>(watcher: &mut Watcher<C>) -> Results<C> {
    let mut results = Results::new();
    watcher
        .wait_io_timeout(&mut results, Duration::ZERO)
        .unwrap();
    results
}

/// Asserts that nothing can be done any more with this connection while the watcher lives.
fn is_stale(watcher: &mut Watcher<u8>, conn: Conn) {
    let closed = ErrorKind::ConnClosed;
    refuses(watcher, conn, closed);
    assert!(!watcher.contains(conn));
    assert!(!watcher.free(conn));
    assert_eq!(watcher.socket(conn).unwrap_err().kind(), closed);
    assert_eq!(watcher.peer_addr(conn).unwrap_err().kind(), closed);
    assert_eq!(watcher.reclaim(conn).unwrap_err().kind(), closed);
}

fn contexts<C: Copy>(results: &[&OpResult<C>]) -> Vec<C> {
    results.iter().map(|res| res.context).collect()
}

/// The rounds of `fd_reuse_no_crosstalk`: whose connection was whose, and how many results came.
/// All bytes of a round are its number.
struct Rounds {
    watcher: Watcher<usize>,
    conns: Vec<Conn>,
    results: Vec<usize>,
}

impl Rounds {
    fn new(kind: BackendKind) -> Self {
        Rounds {
            watcher: watcher(kind),
            conns: Vec::new(),
            results: Vec::new(),
        }
    }

    /// Begins a round with a read and a write in flight.
    fn start(&mut self, ours: TcpStream, own: bool) -> Conn {
        let round = self.conns.len();
        let conn = self.watcher.delegate(ours).unwrap();
        self.conns.push(conn);
        self.results.push(0);
        let buffer = own.then(|| vec![0; 64]);
        self.watcher.read(round, conn, buffer).unwrap();
        let number = round.to_ne_bytes().to_vec();
        self.watcher.write(round, conn, number).unwrap();
        conn
    }

    /// Checks that each result is of the connection whose request it was, and its bytes, too.
    fn turn(&mut self) {
        for res in quickly(&mut self.watcher).drain() {
            let round = res.context;
            assert_eq!(res.conn, self.conns[round]);
            self.results[round] += 1;
            assert!(self.results[round] <= 2, "more results than requests");
            match error_kind(&res) {
                None => assert!(!res.is_eof()),
                Some(kind) => assert_eq!(kind, ErrorKind::ConnClosed, "round {round}"),
            }
            assert!(only(round, res.data()), "another's bytes in round {round}");
        }
    }

    /// Waits for both results and for the end of the connection, which is free by now.
    fn finish(&mut self, round: usize, mut peer: TcpStream) {
        peer.set_nonblocking(true).unwrap();
        let mut got = Vec::new();
        until("a freed connection ends", || {
            self.turn();
            let end = peer.read_to_end(&mut got);
            // A reset may take away what was sent.
            let ended = !matches!(end, Err(error) if error.kind() == IoErrorKind::WouldBlock);
            ended && self.results[round] == 2
        });
        assert!(only(round, &got), "another's bytes at the peer of {round}");
    }
}

/// Whether there is nothing here but the number of the round.
fn only(round: usize, bytes: &[u8]) -> bool {
    bytes.chunks(8).all(|it| it == round.to_ne_bytes())
}

fn os_error<C>(res: &OpResult<C>) -> Option<i32> {
    res.error.and_then(|error| error.raw_os_error())
}

/// Whether a socket is connected no more, in either direction. Does not take its error.
fn has_ended(socket: &OwnedFd) -> bool {
    SockRef::from(socket).peer_addr().is_err()
}
