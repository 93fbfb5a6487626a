//! Connections that the program gives up, with `free` or `reclaim`: what is pending ends in order, their
//! handles are refused for ever, and nothing of them reaches the next connection.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use common::refusal::refuses;
use common::*;
use gaio::{BackendKind, Conn, Deadline, ErrorKind, OpResult, Results, Watcher};
use socket2::SockRef;

backends! {
    fn free_with_pending(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.read(0, conn, None).unwrap();
        watcher
            .read_full(1, conn, vec![0; 10], Deadline::NEVER)
            .unwrap();
        watcher
            .read_timeout(2, conn, vec![0; 10], Duration::from_secs(3600))
            .unwrap();
        watcher.write(10, conn, pattern_vec(0, MUCH)).unwrap();
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
