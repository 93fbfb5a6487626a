//! The other requests: readiness, shutting down, and descriptors that are not TCP sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::thread;

use common::process::in_child;
use common::{
    GLANCE, MUCH, PATIENCE, backends, collect, connected, error_kind, is_pattern, next, pair,
    pattern_vec, quiet, read_pattern, watcher, writable, write_pattern,
};
use gaio::{BackendKind, ErrorKind, Interest, Operation};

// Readiness

backends! {
    fn ready_readable(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.ready("ready", conn, Interest::Readable).unwrap();
        quiet(&mut watcher);
        peer.write_all(b"data").unwrap();
        for _ in 0..2 {
            let res = next(&mut watcher);
            assert_eq!((res.operation, res.context), (Operation::Ready, "ready"));
            assert_eq!((res.size, res.error, res.conn == conn), (0, None, true));
            assert!(res.is_last() && !res.is_eof() && res.buffer.is_empty());
            // Ready still, as nothing was read.
            watcher.ready("ready", conn, Interest::Readable).unwrap();
        }
        next(&mut watcher);
        watcher.read("read", conn, None).unwrap();
        assert_eq!(next(&mut watcher).data(), b"data");
        watcher.ready("ready", conn, Interest::Readable).unwrap();
        quiet(&mut watcher);
        drop(peer);
        assert_eq!(
            next(&mut watcher).error,
            None,
            "the end is something to read"
        );
        watcher.read("end", conn, None).unwrap();
        assert!(next(&mut watcher).is_eof());
    }

    fn ready_writable(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (ours, mut peer) = pair();
        ours.set_nonblocking(true).unwrap();
        let block = vec![0; 1 << 20];
        let mut sent = 0;
        // Full for good: the system may still be moving bytes to the other side, which makes room.
        while writable(&ours, 10 * GLANCE) {
            while let Ok(n) = (&ours).write(&block) {
                sent += n;
            }
        }
        let conn = watcher.delegate(ours).unwrap();
        watcher.ready((), conn, Interest::Writable).unwrap();
        quiet(&mut watcher);
        let reader = thread::spawn(move || {
            peer.read_exact(&mut vec![0; sent]).unwrap();
            peer
        });
        let res = next(&mut watcher);
        assert_eq!((res.operation, res.error), (Operation::Ready, None));
        drop(reader.join().unwrap());
    }

    fn ready_ends(kind: BackendKind) {
        let (mut watcher, conn, _peer) = connected(kind);
        let op = watcher
            .ready("cancelled", conn, Interest::Readable)
            .unwrap();
        quiet(&mut watcher);
        assert!(watcher.cancel(op));
        assert_eq!(error_kind(&next(&mut watcher)), Some(ErrorKind::Cancelled));
        watcher.ready("freed", conn, Interest::Readable).unwrap();
        assert!(watcher.free(conn));
        assert_eq!(error_kind(&next(&mut watcher)), Some(ErrorKind::ConnClosed));
    }
}

// Shutdown

backends! {
    fn shutdown_after_queued_writes(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.write("big", conn, pattern_vec(0, MUCH)).unwrap();
        watcher.write("small", conn, "tail").unwrap();
        watcher.shutdown("shutdown", conn, Shutdown::Write).unwrap();
        watcher.write("late", conn, "never").unwrap();
        watcher.read("read", conn, None).unwrap();
        let reader = thread::spawn(move || {
            read_pattern(&mut peer, 0, MUCH);
            let mut rest = String::new();
            peer.read_to_string(&mut rest).unwrap();
            assert_eq!(rest, "tail");
            peer.write_all(b"got it").unwrap();
        });
        let results = collect(&mut watcher, 5);
        // The answer to the end may arrive before the last write is refused.
        let (reads, writes): (Vec<_>, Vec<_>) =
            results.iter().partition(|res| res.context == "read");
        let order: Vec<_> = writes.iter().map(|res| res.context).collect();
        assert_eq!(order, ["big", "small", "shutdown", "late"]);
        assert_eq!(writes[2].operation, Operation::Shutdown);
        assert_eq!((writes[2].error, writes[2].conn == conn), (None, true));
        let errno = writes[3].error.unwrap().raw_os_error();
        assert_eq!((errno, writes[3].size), (Some(libc::EPIPE), 0));
        assert_eq!(reads[0].data(), b"got it");
        reader.join().unwrap();
    }

    fn shutdown_read_ends_reads(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher.read("read", conn, None).unwrap();
        quiet(&mut watcher);
        watcher.shutdown("shutdown", conn, Shutdown::Read).unwrap();
        for res in collect(&mut watcher, 2) {
            assert_eq!(res.error, None, "{}", res.context);
            assert_eq!(res.is_eof(), res.context == "read");
        }
        watcher.write("write", conn, "still").unwrap();
        assert_eq!(next(&mut watcher).error, None);
        let mut arrived = [0; 5];
        peer.read_exact(&mut arrived).unwrap();
        assert_eq!(&arrived, b"still");
    }
}

// Other descriptors

/// The two ends of a terminal: what its user sees and types into, and what programs are given.
fn terminal() -> (File, OwnedFd) {
    let (mut screen, mut terminal) = (-1, -1);
    let null = std::ptr::null_mut();
    // SAFETY: two numbers, borrowed for the call; no name and no settings are asked for or given.
    let made = unsafe {
        libc::openpty(
            &raw mut screen,
            &raw mut terminal,
            null,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    assert_eq!(made, 0, "no terminal: {}", io::Error::last_os_error());
    // SAFETY: the call made both, and nobody else has them.
    unsafe { (File::from_raw_fd(screen), OwnedFd::from_raw_fd(terminal)) }
}

backends! {
    fn pipe_works(kind: BackendKind) {
        const ALL: usize = 1 << 20; // More than a pipe holds.
        let mut watcher = watcher(kind);
        let (reader, writer) = io::pipe().unwrap();
        let reader = watcher.delegate(reader).unwrap();
        let writer = watcher.delegate(writer).unwrap();
        watcher.write((), writer, pattern_vec(0, ALL)).unwrap();
        watcher
            .read_full((), reader, vec![0; ALL / 2], PATIENCE)
            .unwrap();
        let (mut arrived, mut written) = (Vec::new(), 0);
        while arrived.len() < ALL || written == 0 {
            let res = next(&mut watcher);
            assert_eq!(res.error, None);
            if res.operation == Operation::Write {
                written = res.size;
                continue;
            }
            arrived.extend_from_slice(res.data());
            if arrived.len() < ALL {
                watcher.read((), reader, None).unwrap();
            }
        }
        assert_eq!((written, arrived.len()), (ALL, ALL));
        assert!(is_pattern(0, &arrived));
        watcher.read((), reader, None).unwrap();
        assert!(watcher.free(writer));
        assert!(next(&mut watcher).is_eof());
    }

    fn pipe_write_on_closed(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            // SAFETY: the default action, which would end this process, touches no memory of ours.
            unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
            let mut watcher = watcher(kind);
            let (reader, writer) = io::pipe().unwrap();
            let writer = watcher.delegate(writer).unwrap();
            drop(reader);
            watcher.write((), writer, "nobody").unwrap();
            let res = next(&mut watcher);
            assert_eq!(res.error.unwrap().raw_os_error(), Some(libc::EPIPE));
            assert_eq!((res.size, &*res.buffer), (0, &b"nobody"[..]));
        });
    }

    /// Some systems do not want to watch what has ended already for writing, and say so each in its
    /// own way: that is no reason to lose what was sent, or to refuse the descriptor.
    fn pipe_whose_other_end_is_gone(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (reader, mut writer) = io::pipe().unwrap();
        writer.write_all(b"last words").unwrap();
        drop(writer);
        let conn = watcher.delegate(reader).unwrap();
        watcher.read((), conn, None).unwrap();
        assert_eq!(next(&mut watcher).data(), b"last words");
        watcher.read((), conn, None).unwrap();
        assert!(next(&mut watcher).is_eof());
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let conn = watcher.delegate(writer).unwrap();
        watcher.write((), conn, "nobody").unwrap();
        let errno = next(&mut watcher).error.unwrap().raw_os_error();
        assert_eq!(errno, Some(libc::EPIPE));
    }

    /// What is typed is read by lines, what is written is shown, and nothing of it waits for the other.
    fn terminal_works(kind: BackendKind) {
        const ALL: usize = 256 << 10; // More than a terminal holds.
        let mut watcher = watcher(kind);
        let (mut screen, terminal) = terminal();
        let conn = watcher.delegate(terminal).unwrap();
        watcher.read("line", conn, None).unwrap();
        screen.write_all(b"half ").unwrap();
        quiet(&mut watcher);
        screen.write_all(b"a line\n").unwrap();
        assert_eq!(next(&mut watcher).data(), b"half a line\n");
        watcher.write("shown", conn, vec![b'.'; ALL]).unwrap();
        quiet(&mut watcher);
        let reader = thread::spawn(move || {
            // What was typed is shown, too.
            let (mut dots, mut some) = (0, [0; 4096]);
            while dots < ALL {
                let len = screen.read(&mut some).unwrap();
                dots += some[..len].iter().filter(|&&it| it == b'.').count();
            }
            screen
        });
        let res = next(&mut watcher);
        assert_eq!((res.context, res.size, res.error), ("shown", ALL, None));
        watcher.read("end", conn, vec![0; 10]).unwrap();
        quiet(&mut watcher);
        drop(reader.join().unwrap());
        let res = next(&mut watcher);
        let error = res.error.map(|error| error.raw_os_error());
        assert!(res.is_eof() || error == Some(Some(libc::EIO)), "{error:?}");
    }

    fn unix_stream_works(kind: BackendKind) {
        const ALL: usize = 4 << 20;
        let mut watcher = watcher(kind);
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let conn = watcher.delegate(ours).unwrap();
        watcher.write((), conn, pattern_vec(0, ALL)).unwrap();
        watcher.read_full((), conn, vec![0; ALL], PATIENCE).unwrap();
        let friend = thread::spawn(move || {
            read_pattern(&mut peer, 0, ALL);
            write_pattern(&mut peer, 7, ALL);
        });
        let results = collect(&mut watcher, 2);
        assert_eq!((results[0].size, results[1].size), (ALL, ALL));
        assert!(is_pattern(7, results[1].data()));
        watcher.read((), conn, None).unwrap();
        friend.join().unwrap();
        assert!(next(&mut watcher).is_eof());
    }
}
