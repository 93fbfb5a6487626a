//! Bad input and bad luck: whatever a program hands in or a peer does, the answer is a typed
//! error that gives everything back, and the watcher goes on. (A `Conn` that is stale or another
//! watcher's: see `ends`. A closed watcher: see `closing`.)

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream, UdpSocket};
use std::thread;
use std::time::Duration;

use common::process::{in_child, take_all_descriptors};
use common::{
    GLANCE, PATIENCE, backends, builder, close_and_collect, collect, connect_to, connected,
    error_kind, is_pattern, listener, next, pair, pattern_vec, quiet, read_pattern, reset, turn,
    watcher, write_pattern,
};
use gaio::{
    BackendKind, Buffer, Builder, Conn, Error, ErrorKind, OpId, Operation, Rejected, Remote,
    Results, SwapBuf, Watcher,
};

// What a refused call gives back

/// Asserts that a call was refused for this reason, and returns what was handed in.
fn refused<S: std::fmt::Debug, T>(call: Result<S, Rejected<T>>, kind: ErrorKind) -> T {
    let (error, given_back) = call.expect_err("a refusal").into_parts();
    assert_eq!(error.kind(), kind, "{error}");
    given_back
}

backends! {
    fn empty_buffer(kind: BackendKind) {
        const EMPTY: ErrorKind = ErrorKind::EmptyBuffer;
        let (mut watcher, conn, mut peer) = connected(kind);
        let own = || Vec::with_capacity(64);
        for (context, buffer) in [
            refused(watcher.read("mine", conn, own()), EMPTY),
            refused(watcher.read_timeout("mine", conn, own(), PATIENCE), EMPTY),
        ] {
            assert_eq!((context, buffer.unwrap().capacity()), ("mine", 64));
        }
        let (context, buffer) = refused(watcher.read_full("mine", conn, own(), PATIENCE), EMPTY);
        assert_eq!((context, buffer.capacity()), ("mine", 64));
        for (context, buffer) in [
            refused(watcher.write("mine", conn, own()), EMPTY),
            refused(watcher.write_timeout("mine", conn, own(), PATIENCE), EMPTY),
        ] {
            assert_eq!((context, buffer.into_vec().capacity()), ("mine", 64));
        }
        assert_eq!(watcher.stats().pending, 0);
        peer.write_all(b"fine").unwrap();
        watcher.read("mine", conn, None).unwrap();
        assert_eq!(next(&mut watcher).data(), b"fine");
    }

    fn refused_connect_from_gives_the_socket_back(kind: BackendKind) {
        let mut watcher = watcher(kind);
        watcher.close();
        let (ours, mut peer) = pair();
        let call = watcher.connect_from("mine", ours, listener().1, PATIENCE);
        let (context, ours) = refused(call, ErrorKind::WatcherClosed);
        assert_eq!(context, "mine");
        write_pattern(&mut TcpStream::from(ours), 0, 100);
        read_pattern(&mut peer, 0, 100);
    }
}

// Descriptors of the wrong kind

backends! {
    fn regular_file(kind: BackendKind) {
        let mut watcher = watcher::<()>(kind);
        let file = File::open(std::env::current_exe().unwrap()).unwrap();
        let file = refused(watcher.delegate(file), ErrorKind::Unsupported);
        assert!(watcher.listen(file.try_clone().unwrap()).is_err());
        let mut magic = [0; 4];
        File::from(file).read_exact(&mut magic).unwrap();
        assert_eq!(watcher.stats().connections, 0);
    }

    fn directory(kind: BackendKind) {
        let mut watcher = watcher::<()>(kind);
        let directory = File::open(std::env::temp_dir()).unwrap();
        let directory = refused(watcher.delegate(directory), ErrorKind::Unsupported);
        assert!(File::from(directory).metadata().unwrap().is_dir());
    }

    /// Other systems can wait for this one; none can for every device.
    #[cfg(target_os = "linux")]
    fn device_without_events(kind: BackendKind) {
        let mut watcher = watcher::<()>(kind);
        let device = File::open("/dev/null").unwrap();
        let device = refused(watcher.delegate(device), ErrorKind::Unsupported);
        assert_eq!(File::from(device).read(&mut [0; 4]).unwrap(), 0);
    }

    fn wrong_kind(kind: BackendKind) {
        const WRONG: ErrorKind = ErrorKind::WrongKind;
        let (mut watcher, conn, _peer) = connected(kind);
        let (listener, addr) = listener();
        let listener = refused(watcher.delegate(listener), WRONG);
        let listener = watcher.listen(listener).unwrap();
        let ours = refused(watcher.listen(pair().0), WRONG);
        assert!(TcpStream::from(ours).peer_addr().is_ok(), "it stays open");

        refused(watcher.read((), listener, None), WRONG);
        refused(watcher.read_timeout((), listener, None, PATIENCE), WRONG);
        refused(watcher.read_stream((), listener), WRONG);
        let (_, own) = refused(watcher.read_full((), listener, vec![9; 5], PATIENCE), WRONG);
        assert_eq!(own, [9; 5]);
        let (_, text) = refused(watcher.write((), listener, "text"), WRONG);
        assert_eq!(&*text, b"text");
        refused(watcher.accept((), conn), WRONG);
        refused(watcher.accept_one((), conn), WRONG);
        assert_eq!(watcher.stats().pending, 0);

        // Both are of use still, each for what it is.
        watcher.accept_one((), listener).unwrap();
        let _client = TcpStream::connect(addr).unwrap();
        assert!(next(&mut watcher).accepted().is_some());
        watcher.write((), conn, "text").unwrap();
        assert_eq!(next(&mut watcher).error, None);
    }

    fn requests_after_shutdown(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.shutdown("shutdown", conn, Shutdown::Both).unwrap();
        assert_eq!(next(&mut watcher).error, None);
        for own in [None, Some(vec![0; 4])] {
            watcher.read("read", conn, own).unwrap();
            assert!(
                next(&mut watcher).is_eof(),
                "and again, as often as it is asked"
            );
        }
        watcher
            .read_full("full", conn, vec![0; 4], PATIENCE)
            .unwrap();
        assert_eq!(
            error_kind(&next(&mut watcher)),
            Some(ErrorKind::UnexpectedEof)
        );
        watcher.write("write", conn, "late").unwrap();
        let res = next(&mut watcher);
        assert_eq!(
            (res.error.unwrap().raw_os_error(), res.size),
            (Some(libc::EPIPE), 0)
        );
        assert_eq!(peer.read(&mut [0]).unwrap(), 0);
        assert!(watcher.free(conn));
    }
}

// Too much, and too little

backends! {
    fn builder_refuses_zero_and_absurd_sizes(kind: BackendKind) {
        type Option = (&'static str, fn(Builder, usize) -> Builder);
        let options: [Option; 4] = [
            ("swap_buffer_size", Builder::swap_buffer_size),
            ("swap_buffers", Builder::swap_buffers),
            ("queue_depth", Builder::queue_depth),
            ("stream_window", Builder::stream_window),
        ];
        for (name, set) in options {
            let absurd = (name != "stream_window").then_some(usize::MAX);
            for value in [Some(0), absurd].into_iter().flatten() {
                let error = set(builder(kind), value).build().map(drop).unwrap_err();
                assert_eq!(
                    error.kind(),
                    ErrorKind::InvalidInput,
                    "{name} = {value}: {error}"
                );
                let text = error.to_string();
                assert!(text.contains(name), "it names the option: {error}");
                assert!(text.contains(" 1"), "and the least that is allowed: {error}");
                let io = io::Error::from(error);
                assert_eq!((io.kind(), io.to_string()), (io::ErrorKind::InvalidInput, text));
            }
        }
    }

    fn pin_to_a_cpu_that_does_not_exist(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        // SAFETY: the call takes a number and touches no memory of ours.
        let cpus = unsafe { libc::sysconf(libc::_SC_NPROCESSORS_CONF) } as usize;
        for cpu in [cpus, 1 << 20, usize::MAX] {
            let error = watcher.pin(cpu).unwrap_err();
            assert!(error.to_string().contains("pin"), "{error}");
        }
        watcher.read((), conn, None).unwrap();
        peer.write_all(b"fine").unwrap();
        assert_eq!(next(&mut watcher).data(), b"fine");
    }
}

const MANY: usize = 100_000;

backends! {
    fn reads_100k_queued(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        for number in 0..MANY {
            let own = vec![0; 1 + number % 2];
            watcher.read_full(number, conn, own, PATIENCE).unwrap();
        }
        assert_eq!(watcher.stats().pending, MANY);
        let all = MANY / 2 * 3;
        let sender = thread::spawn(move || write_pattern(&mut peer, 0, all));
        let (mut count, mut at) = (0, 0);
        let mut results = Results::new();
        while count < MANY {
            turn(&mut watcher, &mut results);
            for res in results.drain() {
                assert_eq!((res.context, res.error), (count, None));
                assert_eq!(res.size, 1 + count % 2);
                assert!(is_pattern(at, res.data()), "read {count}");
                at += res.size;
                count += 1;
            }
        }
        sender.join().unwrap();
        quiet(&mut watcher);
    }

    fn requests_100k_freed_at_once(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        for number in 0..MANY {
            watcher.read(number, conn, None).unwrap();
        }
        quiet(&mut watcher);
        assert!(watcher.free(conn));
        for (number, res) in collect(&mut watcher, MANY).into_iter().enumerate() {
            assert_eq!(res.context, number);
            assert_eq!(error_kind(&res), Some(ErrorKind::ConnClosed));
        }
        assert_eq!(watcher.stats().pending, 0);
    }

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

// Small options

backends! {
    /// A queue with room for less than a turn needs: all goes on, only slower, and time passes.
    fn smallest_queue_depth(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            for depth in [1, 2] {
                let mut watcher = builder(kind).queue_depth(depth).build().unwrap();
                let mut pairs: Vec<_> = (0..4).map(|_| connect_to(&mut watcher)).collect();
                for round in 0..3 {
                    for (conn, _) in &pairs {
                        watcher.read((), *conn, None).unwrap();
                    }
                    assert_eq!(
                        watcher.wait_io_timeout(&mut Results::new(), GLANCE * 7),
                        Ok(0),
                        "nothing was sent"
                    );
                    for (at, (_, peer)) in pairs.iter_mut().enumerate() {
                        write_pattern(peer, at + round, 10);
                    }
                    for res in collect(&mut watcher, pairs.len()) {
                        watcher.write((), res.conn, res.buffer).unwrap();
                    }
                    collect(&mut watcher, pairs.len());
                    for (at, (_, peer)) in pairs.iter_mut().enumerate() {
                        read_pattern(peer, at + round, 10);
                    }
                }
            }
        });
    }
}

backends! {
    /// Connections that always have something to read, and are read again at once, could take all the
    /// room of a small queue for ever.
    fn small_queue_starves_nobody(kind: BackendKind) {
        const HOGS: usize = 40;
        const OTHERS: usize = 200;
        let mut watcher = builder(kind).queue_depth(8).build().unwrap();
        let (mut hogs, mut others) = (HashMap::new(), HashSet::new());
        for _ in 0..HOGS {
            let (conn, mut peer) = connect_to(&mut watcher);
            write_pattern(&mut peer, 0, 1);
            watcher.read((), conn, None).unwrap();
            hogs.insert(conn, peer);
        }
        let mut kept = Vec::new();
        for _ in 0..OTHERS {
            let (conn, mut peer) = connect_to(&mut watcher);
            write_pattern(&mut peer, 0, 1);
            watcher.read((), conn, None).unwrap();
            others.insert(conn);
            kept.push(peer);
        }
        let mut results = Results::new();
        let mut turns = 0;
        while !others.is_empty() {
            turns += 1;
            assert!(turns < 10 * (HOGS + OTHERS), "{} starve", others.len());
            turn(&mut watcher, &mut results);
            for res in results.drain() {
                assert!(is_pattern(0, res.data()), "{res:?}");
                if let Some(peer) = hogs.get_mut(&res.conn) {
                    write_pattern(peer, 0, 1);
                    watcher.read((), res.conn, None).unwrap();
                } else {
                    assert!(others.remove(&res.conn));
                }
            }
        }
    }
}

// Errors

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
        let mut refuse = || watcher.write("context", conn, "").unwrap_err();
        let error = refuse().error();
        assert_eq!(error.kind(), ErrorKind::EmptyBuffer);
        assert!(Error::from(refuse()) == error);
        assert_eq!(refuse().to_string(), error.to_string());
        assert_eq!(io::Error::from(refuse()).to_string(), error.to_string());
        let boxed: Box<dyn std::error::Error> = refuse().into();
        assert_eq!(boxed.to_string(), error.to_string());
    }
}

// Identities

backends! {
    fn op_ids_are_unique_across_watchers(kind: BackendKind) {
        let threads: Vec<_> = (0..4)
            .map(|_| thread::spawn(move || some_ops(kind)))
            .collect();
        let ops: Vec<OpId> = threads
            .into_iter()
            .flat_map(|it| it.join().unwrap())
            .collect();
        let different: HashSet<_> = ops.iter().collect();
        assert_eq!(different.len(), ops.len());
    }
}

/// The ids of requests made here and through a handle, over several watchers' lives.
fn some_ops(kind: BackendKind) -> Vec<OpId> {
    let mut ops = Vec::new();
    for _ in 0..4 {
        let (mut watcher, conn, _peer) = connected(kind);
        let remote = watcher.remote();
        for _ in 0..500 {
            ops.push(watcher.read((), conn, None).unwrap());
            ops.push(remote.read((), conn, None).unwrap());
            ops.push(watcher.timer((), PATIENCE).unwrap());
        }
    }
    ops
}

#[test]
fn sizes() {
    assert_eq!(size_of::<Error>(), 8);
    assert_eq!(size_of::<Buffer>(), 40);
    assert_eq!(size_of::<Conn>(), 8);
    assert_eq!(size_of::<Option<OpId>>(), 8);
    assert_eq!(size_of::<Rejected<[u8; 100]>>(), size_of::<usize>());
}

#[test]
fn what_may_cross_threads() {
    fn sent<T: Send>() {}
    fn shared<T: Send + Sync>() {}
    sent::<Watcher<Box<u8>>>();
    sent::<Results<Box<u8>>>();
    sent::<Buffer>();
    shared::<Remote<std::cell::Cell<u8>>>();
    shared::<SwapBuf>();
    shared::<Error>();
    shared::<Conn>();
}
