//! Bad input: a call that is refused says why, and gives back everything that was handed in. (A `Conn` that is
//! stale or another watcher's: see `free.rs`. A closed watcher: see `closing.rs`.)

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};

use common::{
    PATIENCE, backends, builder, connected, error_kind, listener, next, pair, read_pattern,
    watcher, write_pattern,
};
use gaio::{BackendKind, Builder, ErrorKind, Rejected};

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
