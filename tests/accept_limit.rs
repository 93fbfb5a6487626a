//! A limit of accepted connections that the program does not serve yet.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;

use common::{
    backends, close_and_collect, connected, elsewhere, error_kind, listener, next, quiet, turn,
    watcher,
};
use gaio::{BackendKind, Conn, ErrorKind, Operation, Results, Watcher};

/// A watcher that listens with this limit.
fn limited(kind: BackendKind, most: usize) -> (Watcher, Conn, SocketAddr) {
    let mut watcher = watcher(kind);
    let (listener, address) = listener();
    let listener = watcher.listen(listener).unwrap();
    watcher.accept_limit(listener, most).unwrap();
    (watcher, listener, address)
}

fn connect(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    (0..count)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect()
}

/// The next result, which brings a connection.
fn accepted(watcher: &mut Watcher) -> Conn {
    next(watcher).accepted().expect("a connection")
}

backends! {
    /// All come at once and wait. Few are accepted that the program does not serve, at any time, and in the
    /// end all are served.
    fn five_hundred_clients(kind: BackendKind) {
        const CLIENTS: usize = 500;
        const LIMIT: usize = 10;
        let (mut watcher, listener, address) = limited(kind, LIMIT);
        watcher.accept((), listener).unwrap();
        let mut clients = connect(address, CLIENTS);
        let clients = thread::spawn(move || {
            for client in &mut clients {
                client.write_all(b"hello").unwrap();
            }
            for client in &mut clients {
                client.read_exact(&mut [0; 5]).unwrap();
            }
        });
        let mut results = Results::new();
        let mut program = Program::default();
        let (mut served, mut peak) = (0, 0);
        while program.ended < CLIENTS {
            turn(&mut watcher, &mut results);
            program.take(&mut watcher, &mut results);
            // Nobody was accepted beside those whose results came.
            let open = served - program.ended + program.waiting.len();
            assert_eq!(watcher.stats().connections, 1 + open);
            assert!(program.waiting.len() <= LIMIT);
            peak = peak.max(program.waiting.len());
            if program.waiting.len() == LIMIT || served + program.waiting.len() == CLIENTS {
                // Different numbers at a time.
                let count = (1 + served % LIMIT).min(program.waiting.len());
                for conn in program.waiting.drain(..count) {
                    watcher.read((), conn, None).unwrap();
                }
                served += count;
            }
        }
        assert_eq!(peak, LIMIT);
        clients.join().unwrap();
    }

    /// What is unread counts.
    fn unread_results(kind: BackendKind) {
        let (mut watcher, listener, address) = limited(kind, 3);
        watcher.accept((), listener).unwrap();
        let _clients = connect(address, 8);
        let mut results = Results::with_capacity(1);
        for _ in 0..3 {
            turn(&mut watcher, &mut results);
        }
        quiet(&mut watcher);
        assert_eq!(watcher.stats().connections, 1 + 3);
        // The last one was not read yet, and is not lost.
        let last = results.pop().unwrap().accepted().unwrap();
        assert!(watcher.free(last));
        accepted(&mut watcher);
        quiet(&mut watcher);
    }

    /// Each of these serves a connection. A refused call does not.
    fn what_serves(kind: BackendKind) {
        let (mut watcher, listener, address) = limited(kind, 1);
        watcher.accept((), listener).unwrap();
        let _clients = connect(address, 8);
        let conn = accepted(&mut watcher);
        assert!(watcher.read((), conn, vec![]).is_err());
        assert!(watcher.accept_one((), conn).is_err());
        watcher.socket(conn).unwrap();
        watcher.peer_addr(conn).unwrap();
        quiet(&mut watcher);
        watcher.read((), conn, vec![0]).unwrap();
        let conn = accepted(&mut watcher);
        watcher.write((), conn, "").unwrap();
        let conn = next_accepted(&mut watcher);
        let remote = watcher.remote();
        elsewhere(|| remote.read((), conn, None).unwrap());
        let conn = next_accepted(&mut watcher);
        watcher.shutdown((), conn, Shutdown::Write).unwrap();
        let conn = next_accepted(&mut watcher);
        drop(watcher.reclaim(conn).unwrap());
        let conn = next_accepted(&mut watcher);
        elsewhere(|| remote.free(conn).unwrap());
        let conn = next_accepted(&mut watcher);
        assert!(watcher.free(conn));
        next_accepted(&mut watcher);
    }

    fn accept_one_counts(kind: BackendKind) {
        let (mut watcher, listener, address) = limited(kind, 2);
        let _clients = connect(address, 4);
        for _ in 0..4 {
            watcher.accept_one((), listener).unwrap();
        }
        let first = accepted(&mut watcher);
        accepted(&mut watcher);
        quiet(&mut watcher);
        watcher.free(first);
        let third = accepted(&mut watcher);
        quiet(&mut watcher);
        // One that waits can be cancelled, and the listener freed.
        assert!(watcher.free(listener));
        let res = next(&mut watcher);
        assert_eq!((res.conn, error_kind(&res)), (listener, Some(ErrorKind::ConnClosed)));
        assert!(watcher.free(third));
    }

    fn cancelled_at_the_limit(kind: BackendKind) {
        let (mut watcher, listener, address) = limited(kind, 1);
        let op = watcher.accept((), listener).unwrap();
        let _clients = connect(address, 3);
        let first = accepted(&mut watcher);
        quiet(&mut watcher);
        assert!(watcher.cancel(op));
        let res = next(&mut watcher);
        assert_eq!((res.op, error_kind(&res), res.is_last()), (op, Some(ErrorKind::Cancelled), true));
        // The one that was accepted counts still.
        watcher.accept((), listener).unwrap();
        quiet(&mut watcher);
        watcher.read((), first, None).unwrap();
        accepted(&mut watcher);
        let all = close_and_collect(&mut watcher);
        assert!(all.iter().all(|res| error_kind(res) == Some(ErrorKind::WatcherClosed)));
        assert_eq!(all.len(), 2);
    }

    fn the_limit_moves(kind: BackendKind) {
        let (mut watcher, listener, address) = limited(kind, 1);
        watcher.accept((), listener).unwrap();
        let _clients = connect(address, 12);
        let mut all = vec![accepted(&mut watcher)];
        quiet(&mut watcher);
        watcher.accept_limit(listener, 3).unwrap();
        for _ in 0..2 {
            all.push(accepted(&mut watcher));
        }
        quiet(&mut watcher);
        // Fewer than there are: none until they are served.
        watcher.accept_limit(listener, 2).unwrap();
        watcher.read((), all[0], None).unwrap();
        quiet(&mut watcher);
        watcher.read((), all[1], None).unwrap();
        all.push(accepted(&mut watcher));
        quiet(&mut watcher);
        // No limit, and then one again.
        watcher.accept_limit(listener, usize::MAX).unwrap();
        while all.len() < 12 {
            all.push(accepted(&mut watcher));
        }
        watcher.accept_limit(listener, 3).unwrap();
        // The stream of accepts has ended after the next turn. Until then it would take what comes.
        quiet(&mut watcher);
        let _more = connect(address, 2);
        // The two that were accepted within a limit count still.
        accepted(&mut watcher);
        quiet(&mut watcher);
        assert!(watcher.free(all[2]));
        accepted(&mut watcher);
    }

    /// A stream of accepts runs already. It goes on within the limit.
    fn a_limit_for_a_stream_that_runs(kind: BackendKind) {
        let mut watcher: Watcher = watcher(kind);
        let (listener, address) = listener();
        let listener = watcher.listen(listener).unwrap();
        watcher.accept((), listener).unwrap();
        let _first = connect(address, 1);
        accepted(&mut watcher);
        watcher.accept_limit(listener, 2).unwrap();
        watcher.accept_limit(listener, 1).unwrap();
        quiet(&mut watcher);
        let _clients = connect(address, 3);
        let conn = accepted(&mut watcher);
        quiet(&mut watcher);
        assert!(watcher.free(conn));
        accepted(&mut watcher);
        quiet(&mut watcher);
    }

    /// Two listeners, each with a limit of its own.
    fn limits_are_apart(kind: BackendKind) {
        let (mut watcher, one, address) = limited(kind, 1);
        let (other, other_address) = listener();
        let other = watcher.listen(other).unwrap();
        watcher.accept_limit(other, 2).unwrap();
        watcher.accept((), one).unwrap();
        watcher.accept((), other).unwrap();
        let _clients = connect(address, 3);
        let _others = connect(other_address, 3);
        let all = common::collect(&mut watcher, 3);
        let of = |listener| all.iter().filter(|res| res.conn == listener).count();
        assert_eq!((of(one), of(other)), (1, 2));
        quiet(&mut watcher);
        let served = all.iter().find(|res| res.conn == one).unwrap().accepted().unwrap();
        watcher.read((), served, None).unwrap();
        assert_eq!(next(&mut watcher).conn, one);
        quiet(&mut watcher);
    }

    fn bad_limits(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected::<()>(kind);
        let (listener, _) = listener();
        let listener = watcher.listen(listener).unwrap();
        let error = watcher.accept_limit(listener, 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert!(error.to_string().starts_with("accept_limit: "), "{error}");
        let error = watcher.accept_limit(conn, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WrongKind);
        for stale in [Conn::NONE, listener] {
            watcher.free(stale);
            let error = watcher.accept_limit(stale, 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ConnClosed);
        }
        watcher.close();
        let error = watcher.accept_limit(listener, 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WatcherClosed);
    }

    /// Descriptors, too, are only those of the connections within the limit.
    fn the_backlog_holds_the_rest(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = socket.try_clone().unwrap();
        let address = socket.local_addr().unwrap();
        let listener = watcher.listen(socket).unwrap();
        watcher.accept_limit(listener, 2).unwrap();
        watcher.accept((), listener).unwrap();
        let clients = connect(address, 5);
        for _ in 0..2 {
            accepted(&mut watcher);
        }
        quiet(&mut watcher);
        // The program takes the others itself.
        let mut names: Vec<_> = (0..3).map(|_| own.accept().unwrap().1).collect();
        names.sort();
        let mut expected: Vec<_> = clients[2..].iter().map(|it| it.local_addr().unwrap()).collect();
        expected.sort();
        assert_eq!(names, expected);
    }
}

/// Keeps those who were accepted, echoes once to those that are served, and frees them.
#[derive(Default)]
struct Program {
    waiting: Vec<Conn>,
    ended: usize,
}

impl Program {
    fn take(&mut self, watcher: &mut Watcher, results: &mut Results) {
        for res in results.drain() {
            assert_eq!(res.error, None);
            match res.operation {
                Operation::Read => drop(watcher.write((), res.conn, res.buffer).unwrap()),
                Operation::Write => {
                    assert!(watcher.free(res.conn));
                    self.ended += 1;
                }
                _ => self.waiting.extend(res.accepted()),
            }
        }
    }
}

/// The next connection, whatever else comes before it.
fn next_accepted(watcher: &mut Watcher) -> Conn {
    loop {
        if let Some(conn) = next(watcher).accepted() {
            return conn;
        }
    }
}
