//! A watcher belongs to the process that built it. In a forked child every call but a drop is
//! refused, the drop harms nobody, and the parent goes on as if there were no child.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use common::process::{Forked, descriptors, in_child, in_fork};
use common::refusal::refuses_all;
use common::{
    GLANCE, MUCH, assert_closed, assert_works, backends, builder, close_and_collect, collect,
    connect_to, connected, listener, next, pair, quiet, readable, watcher,
};
use gaio::{BackendKind, Conn, Deadline, ErrorKind, OpId, Remote, Results, Watcher};
use socket2::SockRef;

backends! {
    fn child_is_refused(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            for used in [false, true] {
                let mut busy = Busy::new(kind, used);
                let remote = busy.watcher.remote();
                in_fork(|| busy.refuses(&remote));
                busy.goes_on();
            }
        });
    }

    fn child_drops(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            for used in [false, true] {
                let before = descriptors();
                let busy = Busy::new(kind, used);
                let remote = busy.watcher.remote();
                let (copy, remote_copy) = (&raw const busy, &raw const remote);
                in_fork(|| {
                    // SAFETY: in this process, nobody else drops them.
                    drop(unsafe { copy.read() });
                    remote.post(7).unwrap_err();
                    // SAFETY: likewise.
                    drop(unsafe { remote_copy.read() });
                    // The queue itself is not inherited, and there is nothing else to close; the
                    // model's parts are.
                    if kind != BackendKind::Kqueue {
                        assert_eq!(descriptors(), before);
                    }
                });
                busy.goes_on();
            }
        });
    }

    /// What the child closed is no longer kept open by it.
    fn child_outlives_the_connection(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let (mut watcher, conn, mut peer) = connected::<()>(kind);
            watcher.read((), conn, None).unwrap();
            quiet(&mut watcher);
            let (mut ready, mut child_ready) = io::pipe().unwrap();
            let (mut child_end, end) = io::pipe().unwrap();
            let copy = &raw const watcher;
            let writer = end.try_clone().unwrap();
            let child = Forked::start(move || {
                drop((end, writer));
                // SAFETY: in this process, nobody else drops it.
                drop(unsafe { copy.read() });
                child_ready.write_all(b"!").unwrap();
                child_end.read_exact(&mut [0]).unwrap_err();
            });
            ready.read_exact(&mut [0]).unwrap();
            drop(watcher);
            assert_closed(&mut peer);
            child.join();
        });
    }

    fn child_builds_its_own(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let (mut watcher, conn, mut peer) = connected(kind);
            watcher.read((), conn, None).unwrap();
            quiet(&mut watcher);
            in_fork(|| {
                assert_works(builder(kind).build().unwrap());
                let mut own = builder::<()>(kind).build().unwrap();
                quiet(&mut own);
                forked(&mut watcher);
                in_fork(|| {
                    forked(&mut watcher);
                    forked(&mut own);
                    assert_works(builder(kind).build().unwrap());
                    // Numbers of processes do not come back.
                    forked(&mut watcher);
                    forked(&mut own);
                });
                assert_works(own);
            });
            peer.write_all(b"data").unwrap();
            assert_eq!(next(&mut watcher).data(), b"data");
        });
    }

    /// Leases and results, which need no watcher to be dropped.
    fn child_drops_leases(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            // So few that the parent waits for them.
            let mut watcher = builder(kind).swap_buffers(1).swap_buffer_size(1024).build().unwrap();
            let (conn, mut peer) = connect_to(&mut watcher);
            peer.write_all(&[1; 1024]).unwrap();
            watcher.read_full("own", conn, vec![0; 512], Deadline::NEVER).unwrap();
            watcher.read("leased", conn, None).unwrap();
            let mut results = collect(&mut watcher, 2);
            watcher.read("starved", conn, None).unwrap();
            let fd = watcher.poll_fd().unwrap();
            quiet(&mut watcher);
            let lease = results.pop().unwrap();
            let copy = &raw const lease;
            in_fork(|| {
                // SAFETY: in this process, nobody else drops it.
                let res = unsafe { copy.read() };
                assert_eq!(res.data().to_vec(), [1; 512]);
                drop(res);
            });
            // Nobody was woken by what came back in the child.
            assert!(!readable(&fd, GLANCE));
            peer.write_all(b"data").unwrap();
            drop(lease);
            let res = next(&mut watcher);
            assert_eq!((res.context, res.data()), ("starved", &b"data"[..]));
        });
    }

    /// At the fork another thread may hold any lock that it takes; it never lets go in the child.
    fn child_waits_for_no_lock(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let (mut watcher, conn, mut peer) = connected(kind);
            watcher.read(1, conn, None).unwrap();
            let stop = AtomicBool::new(false);
            thread::scope(|scope| {
                for _ in 0..2 {
                    let (remote, stop) = (watcher.remote(), &stop);
                    scope.spawn(move || {
                        while !stop.load(Ordering::Relaxed) {
                            remote.free(Conn::NONE).unwrap();
                        }
                    });
                }
                for _ in 0..FORKS {
                    let remote = watcher.remote();
                    let copy = &raw const watcher;
                    in_fork(|| {
                        remote_refuses(&remote, conn);
                        // SAFETY: in this process, nobody else drops it.
                        drop(unsafe { copy.read() });
                        assert_works(builder(kind).build().unwrap());
                    });
                    watcher.wait_io_timeout(&mut Results::new(), Duration::ZERO).unwrap();
                }
                stop.store(true, Ordering::Relaxed);
            });
            peer.write_all(b"data").unwrap();
            assert_eq!(next(&mut watcher).data(), b"data");
        });
    }

    #[cfg(all(target_os = "linux", not(gaio_kqueue_model)))]
    fn child_of_a_bare_system_call(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let mut busy = Busy::new(kind, true);
            let remote = busy.watcher.remote();
            // SAFETY: without flags it is a fork.
            let clone = || unsafe { libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) };
            Forked::start_by(|| clone() as libc::pid_t, || busy.refuses(&remote)).join();
            busy.goes_on();
        });
    }
}

/// How often a lock is likely to be met.
const FORKS: usize = 50;

/// Asserts that the watcher says that this is a child.
fn forked(watcher: &mut Watcher<()>) {
    let error = watcher.wait_io(&mut Results::new()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Forked);
}

/// A watcher with something of everything pending, and the other ends.
struct Busy {
    watcher: Watcher<u8>,
    listener: Conn,
    conns: [Conn; 4],
    peers: [TcpStream; 4],
    terminal: Conn,
    /// Of the terminal, to see its mode.
    duplicate: OwnedFd,
    used: bool,
    writer: File,
    address: SocketAddr,
    op: OpId,
}

/// Its connections, by what is pending there.
const SWAP: usize = 0;
const VECTOR: usize = 1;
const STREAM: usize = 2;
const FULL: usize = 3;

impl Busy {
    /// Used: it has run, so that what was submitted is with the system.
    fn new(kind: BackendKind, used: bool) -> Self {
        let mut watcher = watcher(kind);
        let (reader, writer) = common::terminal();
        let duplicate = reader.try_clone().unwrap();
        let terminal = watcher.delegate(reader).unwrap();
        let mut writer = File::from(writer);
        if used {
            // Its mode is switched for that.
            writer.write_all(b"first").unwrap();
            watcher.read(11, terminal, None).unwrap();
            assert_eq!(next(&mut watcher).data(), b"first");
        }
        let (socket, address) = listener();
        let listener = watcher.listen(socket).unwrap();
        watcher.accept(10, listener).unwrap();
        let [(a, pa), (b, pb), (c, pc), (d, pd)] = [(); 4].map(|()| connect_to(&mut watcher));
        let conns = [a, b, c, d];
        let op = watcher.read(SWAP as u8, conns[SWAP], None).unwrap();
        watcher
            .read(VECTOR as u8, conns[VECTOR], vec![0; 64])
            .unwrap();
        watcher.read_stream(STREAM as u8, conns[STREAM]).unwrap();
        watcher
            .write(FULL as u8, conns[FULL], vec![7; MUCH])
            .unwrap();
        watcher.read(11, terminal, None).unwrap();
        watcher.timer(12, Deadline::NEVER).unwrap();
        if used {
            quiet(&mut watcher);
        }
        let peers = [pa, pb, pc, pd];
        Busy {
            watcher,
            listener,
            conns,
            peers,
            terminal,
            duplicate,
            used,
            writer,
            address,
            op,
        }
    }

    /// Everything that was pending at the fork ends as if there had been none.
    fn goes_on(mut self) {
        let mode = SockRef::from(&self.duplicate).nonblocking().unwrap();
        assert_eq!(mode, self.used, "the terminal's mode");
        for peer in &mut self.peers {
            peer.write_all(b"data").unwrap();
        }
        self.writer.write_all(b"data").unwrap();
        let _client = TcpStream::connect(self.address).unwrap();
        let results = collect(&mut self.watcher, 5);
        for res in &results {
            assert_eq!(res.error, None);
            match res.context {
                10 => assert!(res.accepted().is_some()),
                _ => assert_eq!(res.data(), b"data", "{}", res.context),
            }
        }
        let full = &mut self.peers[FULL];
        let drain = full.try_clone().unwrap();
        let drain = thread::spawn(move || io::copy(&mut drain.take(MUCH as u64), &mut io::sink()));
        let written = next(&mut self.watcher);
        assert_eq!((written.error, written.size), (None, MUCH));
        assert_eq!(drain.join().unwrap().unwrap(), MUCH as u64);
        // And anew.
        for at in [SWAP, VECTOR, FULL] {
            self.watcher.read(at as u8, self.conns[at], None).unwrap();
        }
        self.watcher.read(11, self.terminal, None).unwrap();
        for peer in &mut self.peers[..FULL] {
            peer.write_all(b"more").unwrap();
        }
        self.writer.write_all(b"more").unwrap();
        for res in collect(&mut self.watcher, 5) {
            assert!(matches!(res.data(), b"more" | b"data"), "{}", res.context);
        }
        for conn in self.conns {
            assert!(self.watcher.free(conn));
        }
        close_and_collect(&mut self.watcher);
        for peer in &mut self.peers {
            assert_closed(peer);
        }
    }

    /// As every call in a child must.
    fn refuses(&mut self, remote: &Remote<u8>) {
        let forked = ErrorKind::Forked;
        let Busy { watcher, conns, .. } = self;
        let mut all = conns.to_vec();
        all.extend([self.listener, self.terminal, Conn::NONE]);
        refuses_all(watcher, &all, self.op, forked);
        assert!(watcher.stats().pending > 0);
        assert_eq!(remote.cancel(self.op).unwrap_err().kind(), forked);
        watcher.close();
        remote_refuses(remote, conns[0]);
    }
}

fn remote_refuses(remote: &Remote<u8>, conn: Conn) {
    let (never, buffer) = (Deadline::NEVER, || vec![1, 2, 3]);
    let kinds = [
        remote.read(7, conn, None).unwrap_err().error(),
        remote
            .read_timeout(7, conn, buffer(), never)
            .unwrap_err()
            .error(),
        remote
            .read_full(7, conn, buffer(), never)
            .unwrap_err()
            .error(),
        remote.read_stream(7, conn).unwrap_err().error(),
        remote.write(7, conn, buffer()).unwrap_err().error(),
        remote
            .write_timeout(7, conn, buffer(), never)
            .unwrap_err()
            .error(),
        remote.connect(7, listener().1, never).unwrap_err().error(),
        remote.delegate(pair().0).unwrap_err().error(),
        remote
            .shutdown(7, conn, Shutdown::Both)
            .unwrap_err()
            .error(),
        remote.post(7).unwrap_err().error(),
        remote.free(conn).unwrap_err(),
    ]
    .map(|error| error.kind());
    assert_eq!(kinds, [ErrorKind::Forked; 11]);
    remote.close();
}
