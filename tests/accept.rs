//! Accepting connections.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
#[cfg(target_os = "linux")]
use std::time::Duration;

use common::process::{in_child, take_all_descriptors};
use common::*;
use gaio::{BackendKind, Conn, ErrorKind, OpResult, Operation, Results, Watcher};
use socket2::SockRef;

fn listening<C>(watcher: &mut Watcher<C>) -> (Conn, SocketAddr) {
    let (listener, addr) = listener();
    (watcher.listen(listener).unwrap(), addr)
}

backends! {
    /// Another accepts from the same listener, and is always faster: no thread of the kernel waits for one
    /// that is left over.
    #[cfg(target_os = "linux")]
    fn accept_beside_a_rival(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let mut watcher = watcher(kind);
            let (rival, addr) = listener();
            let conn = watcher.listen(rival.try_clone().unwrap()).unwrap();
            rival.set_nonblocking(true).unwrap();
            let threads = || std::fs::read_dir("/proc/self/task").unwrap().count();
            let before = threads();
            watcher.accept_one((), conn).unwrap();
            for _ in 0..300 {
                let _peer = TcpStream::connect(addr).unwrap();
                drop(rival.accept());
                let mut results = Results::new();
                let now = Duration::ZERO;
                if watcher.wait_io_timeout(&mut results, now).unwrap() > 0 {
                    watcher.accept_one((), conn).unwrap();
                }
            }
            quiet(&mut watcher);
            assert_eq!(threads(), before);
            let _peer = TcpStream::connect(addr).unwrap();
            assert!(next(&mut watcher).accepted().is_some());
        });
    }

    /// 5,000 clients come, say a byte, hear it back and go, while one connection talks all the time.
    fn accept_many(kind: BackendKind) {
        const CLIENTS: usize = 5_000;
        let mut watcher = watcher(kind);
        let (listener, addr) = listening(&mut watcher);
        watcher.accept((), listener).unwrap();
        let (talker, mut peer) = connect_to(&mut watcher);
        watcher.read((), talker, None).unwrap();
        peer.write_all(b"t").unwrap();
        let clients = thread::spawn(move || clients_in_waves(addr, CLIENTS, 250));
        let (mut accepted, mut ended, mut talked) = (0, 0, 0);
        let mut results = Results::new();
        while ended < CLIENTS {
            turn(&mut watcher, &mut results);
            for res in results.drain() {
                assert_eq!(res.error, None);
                if let Some(conn) = res.accepted() {
                    assert!(!res.is_last() && res.conn == listener);
                    watcher.read((), conn, None).unwrap();
                    accepted += 1;
                } else if res.is_eof() {
                    assert!(watcher.free(res.conn));
                    ended += 1;
                } else if res.operation == Operation::Read {
                    watcher.write((), res.conn, res.buffer).unwrap();
                } else {
                    watcher.read((), res.conn, None).unwrap();
                    if res.conn == talker {
                        talked += 1;
                        peer.read_exact(&mut [0]).unwrap();
                        peer.write_all(b"t").unwrap();
                    }
                }
            }
        }
        clients.join().unwrap();
        assert_eq!(accepted, CLIENTS);
        assert!(talked > 20, "the talker was heard {talked} times");
    }
}

fn clients_in_waves(addr: SocketAddr, clients: usize, at_once: usize) {
    for wave in 0..clients / at_once {
        let mut streams: Vec<_> = (0..at_once)
            .map(|_| TcpStream::connect(addr).unwrap())
            .collect();
        for (i, stream) in streams.iter_mut().enumerate() {
            stream.write_all(&[(wave + i) as u8]).unwrap();
        }
        for (i, stream) in streams.iter_mut().enumerate() {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            assert_eq!(byte[0], (wave + i) as u8);
        }
    }
}

backends! {
    fn accept_one(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (listener, addr) = listening(&mut watcher);
        let op = watcher.accept_one("one", listener).unwrap();
        let first = TcpStream::connect(addr).unwrap();
        let _second = TcpStream::connect(addr).unwrap();
        let res = next(&mut watcher);
        assert_eq!(
            (res.operation, res.op, res.context),
            (Operation::Accept, op, "one")
        );
        assert!(res.is_last() && res.conn == listener);
        let conn = res.accepted().unwrap();
        assert_eq!(
            watcher.peer_addr(conn).unwrap().to_string(),
            first.local_addr().unwrap().to_string()
        );
        quiet(&mut watcher);
        watcher.accept_one("two", listener).unwrap();
        assert!(next(&mut watcher).accepted().is_some());
    }

    fn accept_cancel(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (listener, addr) = listening(&mut watcher);
        let op = watcher.accept(String::from("each"), listener).unwrap();
        let _first = TcpStream::connect(addr).unwrap();
        let res = next(&mut watcher);
        assert!(res.op == op && !res.is_last() && res.accepted().is_some());
        assert!(watcher.cancel(op));
        let res = next(&mut watcher);
        assert!(res.op == op && res.is_last() && res.accepted().is_none());
        assert_eq!(
            (res.context.as_str(), error_kind(&res)),
            ("each", Some(ErrorKind::Cancelled))
        );
        assert!(!watcher.cancel(op));
        let _second = TcpStream::connect(addr).unwrap();
        quiet(&mut watcher);
        watcher.accept(String::from("anew"), listener).unwrap();
        assert_eq!(next(&mut watcher).context, "anew");
    }

    fn listener_freed(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (listener, addr) = listening(&mut watcher);
        watcher.accept("stream", listener).unwrap();
        watcher.accept_one("queued", listener).unwrap();
        quiet(&mut watcher);
        assert!(watcher.free(listener));
        for context in ["stream", "queued"] {
            let res = next(&mut watcher);
            assert_eq!(
                (res.context, error_kind(&res)),
                (context, Some(ErrorKind::ConnClosed))
            );
            assert!(res.is_last() && res.conn == listener);
        }
        quiet(&mut watcher);
        let error = TcpStream::connect(addr).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    /// The program shuts down what it listens with: no connection will come any more, and whoever
    /// waits for one learns it, once for each request.
    fn listener_shut_down(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (listener, _addr) = listening(&mut watcher);
        let stream = watcher.accept("stream", listener).unwrap();
        watcher.accept_one("queued", listener).unwrap();
        quiet(&mut watcher);
        let socket = watcher.socket(listener).unwrap();
        let shut_down = SockRef::from(&socket).shutdown(Shutdown::Both);
        if says_nothing_of_a_shutdown(kind) {
            quiet(&mut watcher);
            assert!(watcher.cancel(stream) && watcher.free(listener));
            assert!(collect(&mut watcher, 2).iter().all(OpResult::is_last));
            return;
        }
        shut_down.unwrap();
        let calls = watcher.stats().kernel_calls;
        for context in ["stream", "queued"] {
            let res = next(&mut watcher);
            let errno = res.error.unwrap().raw_os_error();
            assert_eq!((res.context, errno), (context, Some(libc::EINVAL)));
            assert!(res.is_last() && res.accepted().is_none());
        }
        quiet(&mut watcher);
        watcher.accept("late", listener).unwrap();
        let res = next(&mut watcher);
        let errno = res.error.unwrap().raw_os_error();
        assert_eq!((errno, res.is_last()), (Some(libc::EINVAL), true));
        quiet(&mut watcher);
        let calls = watcher.stats().kernel_calls - calls;
        assert!(calls < 50, "{calls} system calls for three answers");
        assert!(watcher.free(listener));
    }
}

/// NetBSD and macOS let the accept wait for ever, and so does FreeBSD, which refuses the shutdown.
fn says_nothing_of_a_shutdown(kind: BackendKind) -> bool {
    let modelled = cfg!(gaio_kqueue_model)
        && kind != BackendKind::IoUring
        && std::env::var("GAIO_KQUEUE_MODEL").is_ok_and(|model| model == "netbsd");
    modelled
        || cfg!(any(
            target_vendor = "apple",
            target_os = "netbsd",
            target_os = "freebsd"
        ))
}

backends! {
    /// Descriptors run out while clients wait: one error says so, nothing spins, and accepting goes
    /// on as descriptors come back, whoever closed them.
    fn accept_emfile(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let mut watcher = watcher(kind);
            let (listener, addr) = listener();
            let listener = watcher.listen(listener).unwrap();
            let clients: Vec<_> = (0..6).map(|_| TcpStream::connect(addr).unwrap()).collect();
            let mut fillers = take_all_descriptors();
            fillers.truncate(fillers.len() - 2);
            watcher.accept((), listener).unwrap();
            let (mut accepted, mut errors) = (Vec::new(), 0);
            while errors == 0 {
                take_accept(&mut watcher, &mut accepted, &mut errors);
            }
            assert_eq!(accepted.len(), 2, "as many as there were descriptors");
            let before = watcher.stats().kernel_calls;
            let more = watcher.wait_io_timeout(&mut Results::new(), GLANCE * 10);
            assert_eq!(more, Ok(0), "it was said already");
            let calls = watcher.stats().kernel_calls - before;
            assert!(
                calls < 100,
                "{calls} system calls while there was nothing to do"
            );

            // One comes back through the watcher, then all through the program.
            assert!(watcher.free(accepted[0]));
            while accepted.len() < 3 {
                take_accept(&mut watcher, &mut accepted, &mut errors);
            }
            fillers.clear();
            while accepted.len() < clients.len() {
                take_accept(&mut watcher, &mut accepted, &mut errors);
            }
            assert!(errors <= 4, "{errors} errors");
        });
    }
}

/// One result of accepting: a connection, or the error that there are no descriptors.
fn take_accept(watcher: &mut Watcher, accepted: &mut Vec<Conn>, errors: &mut usize) {
    let res = next(watcher);
    assert!(res.operation == Operation::Accept && !res.is_last());
    match res.accepted() {
        Some(conn) => accepted.push(conn),
        None => {
            assert_eq!(res.error.unwrap().raw_os_error(), Some(libc::EMFILE));
            *errors += 1;
        }
    }
}
