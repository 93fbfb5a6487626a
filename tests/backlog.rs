//! Connects to a Unix listener whose backlog is full: the watcher tries again until there is room, a few at
//! a time however many wait, and the system keeps no thread waiting for it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Read;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use std::{iter, thread};

use common::process::in_child;
use common::{GLANCE, PATIENCE, backends, collect, error_kind, next, quiet, watcher};
use gaio::{BackendKind, Deadline, ErrorKind, Operation, Results, Watcher};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

/// A Unix listener whose queue is full, and who filled it. The path goes with it.
struct FullUnix {
    listener: UnixListener,
    fillers: Vec<Socket>,
    path: PathBuf,
}

impl FullUnix {
    fn new(kind: BackendKind, test: &str) -> Self {
        let name = format!("gaio-{test}-{}-{}", common::name(kind), std::process::id());
        let path = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        SockRef::from(&listener).listen(0).unwrap();
        let to = SockAddr::unix(&path).unwrap();
        let fillers = iter::repeat_with(nonblocking_unix)
            .take_while(|socket| socket.connect(&to).is_ok())
            .collect();
        FullUnix {
            listener,
            fillers,
            path,
        }
    }
}

impl Drop for FullUnix {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn nonblocking_unix() -> Socket {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

backends! {
    /// The kernel does not wait for a non-blocking Unix socket: the watcher does, and not by
    /// asking all the time.
    fn connect_to_full_unix_backlog(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let full = FullUnix::new(kind, "full");
        let to = full.listener.local_addr().unwrap();
        let start = Instant::now();
        let conn = watcher
            .connect_from((), nonblocking_unix(), to, GLANCE * 10)
            .unwrap();
        let res = next(&mut watcher);
        assert_eq!((res.operation, res.conn), (Operation::Connect, conn));
        assert_eq!(error_kind(&res), Some(ErrorKind::Deadline));
        assert!(start.elapsed() >= GLANCE * 10);
        let calls = watcher.stats().kernel_calls;
        assert!(calls < 200, "{calls} system calls");
    }

    fn connect_when_unix_backlog_has_room(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let full = FullUnix::new(kind, "room");
        let to = full.listener.local_addr().unwrap();
        let conn = watcher
            .connect_from("connect", nonblocking_unix(), to, PATIENCE)
            .unwrap();
        watcher.write("write", conn, "at last").unwrap();
        quiet(&mut watcher);
        for _ in &full.fillers {
            full.listener.accept().unwrap();
        }
        for (res, context) in collect(&mut watcher, 2).iter().zip(["connect", "write"]) {
            assert_eq!((res.context, res.error), (context, None));
        }
        let mut arrived = [0; 7];
        let (mut peer, _) = full.listener.accept().unwrap();
        peer.read_exact(&mut arrived).unwrap();
        assert_eq!(&arrived, b"at last");
    }

    /// So many that each attempt of them all would be felt.
    fn many_connects_to_full_unix_backlog(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            const COUNT: usize = 300;
            let mut watcher: Watcher<usize> = watcher(kind);
            let full = FullUnix::new(kind, "many");
            let to = full.listener.local_addr().unwrap();
            let before = threads();
            let connect = |watcher: &mut Watcher<usize>, context| {
                let to = to.clone();
                watcher.connect(context, to, Deadline::NEVER).unwrap()
            };
            let conns: Vec<_> = (0..COUNT).map(|i| connect(&mut watcher, i)).collect();
            quiet(&mut watcher);
            assert_eq!(threads(), before, "{COUNT} connects wait");
            let calls = watcher.stats().kernel_calls;
            let start = Instant::now();
            while start.elapsed() < 10 * GLANCE {
                quiet(&mut watcher);
            }
            // Some 30 each millisecond; thousands, if all tried all the time.
            let calls = watcher.stats().kernel_calls - calls;
            let limit = 100 * start.elapsed().as_millis() as u64;
            assert!(calls < limit, "{calls} system calls in {:?}", start.elapsed());
            // A freed one no longer tries.
            assert!(watcher.free(conns[0]));
            assert_eq!(error_kind(&next(&mut watcher)), Some(ErrorKind::ConnClosed));
            let listener = full.listener.try_clone().unwrap();
            let taken = full.fillers.len() + COUNT - 1;
            let acceptor = thread::spawn(move || {
                let accept = |_| listener.accept().unwrap().0;
                (0..taken).map(accept).collect::<Vec<_>>()
            });
            let mut contexts: Vec<_> = collect(&mut watcher, COUNT - 1)
                .iter()
                .map(|res| res.result().map(|_| res.context).unwrap())
                .collect();
            contexts.sort_unstable();
            assert!(contexts.into_iter().eq(1..COUNT));
            acceptor.join().unwrap();
            assert_eq!(threads(), before);
        });
    }

    /// However many wait: a wait ends when its time is over, and messages get through.
    fn full_unix_backlog_stops_nobody(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let full = FullUnix::new(kind, "nobody");
        let to = full.listener.local_addr().unwrap();
        for _ in 0..300 {
            watcher.connect(0, to.clone(), Deadline::NEVER).unwrap();
        }
        quiet(&mut watcher);
        let remote = watcher.remote();
        for _ in 0..20 {
            remote.post(1).unwrap();
            assert_eq!(next(&mut watcher).context, 1);
            let mut results = Results::new();
            let none = watcher.wait_io_timeout(&mut results, Duration::ZERO);
            assert_eq!(none, Ok(0));
        }
        let closed = common::close_and_collect(&mut watcher);
        assert_eq!(closed.len(), 300);
    }
}

/// Threads of this process, the kernel's for it included; where the system tells.
fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").map_or(0, Iterator::count)
}
