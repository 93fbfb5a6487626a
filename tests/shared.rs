//! Descriptors that others have, too: other watchers, this program, other programs. Nobody else's mode
//! makes a watcher block, and what ends in one watcher ends nothing in another.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
#[cfg(gaio_epoll)]
use std::os::fd::FromRawFd;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::mpsc;
use std::thread;

use common::*;
use gaio::{BackendKind, Conn, Results, Watcher};
use socket2::SockRef;

/// How one of two watchers gives up what both have.
#[derive(Clone, Copy, Debug)]
enum Ending {
    Free,
    Drop,
    /// The descriptor is closed when it is back.
    Reclaim,
    /// It is not given up: somebody else puts it into blocking mode.
    Switch,
}

const ENDINGS: [Ending; 4] = [Ending::Free, Ending::Drop, Ending::Reclaim, Ending::Switch];

backends! {
    fn listener_of_two_watchers(kind: BackendKind) {
        for ending in ENDINGS {
            returns(move || {
                let (listener, address) = listener();
                let [mut first, mut second] = [(); 2].map(|()| watcher::<()>(kind));
                let [one, other] = [&mut first, &mut second].map(|watcher| {
                    let conn = watcher.listen(listener.try_clone().unwrap()).unwrap();
                    let accept = watcher.accept((), conn).unwrap();
                    quiet(watcher);
                    (conn, accept)
                });
                // What is reclaimed must be idle.
                first.cancel(one.1);
                next(&mut first);
                let _kept = end(first, one.0, &listener, ending);
                let _client = TcpStream::connect(address).unwrap();
                let accepted = next(&mut second);
                assert_eq!(accepted.conn, other.0);
                assert!(accepted.accepted().is_some(), "{accepted:?}");
                // There is no other.
                quiet(&mut second);
            });
        }
    }

    /// One watcher's write end is full, and it does not block in another's mode.
    fn full_for_two_watchers(kind: BackendKind) {
        for (name, make) in CHANNELS {
            for ending in ENDINGS {
                println!("{name}, {ending:?}");
                returns(move || {
                    let (mut reader, writer) = make();
                    let [one, other] = [(); 2].map(|()| {
                        let mut watcher = watcher::<()>(kind);
                        let conn = watcher.delegate(writer.try_clone().unwrap()).unwrap();
                        watcher.write((), conn, "12345").unwrap();
                        assert_eq!(next(&mut watcher).size, 5);
                        read_exactly(&mut reader, b"12345");
                        (watcher, conn)
                    });
                    let _kept = end(one.0, one.1, &writer, ending);
                    let (mut watcher, conn) = other;
                    watcher.write((), conn, vec![b'x'; SOME]).unwrap();
                    quiet(&mut watcher);
                    let drain = thread::spawn(move || read_exactly(&mut reader, &vec![b'x'; SOME]));
                    let wrote = next(&mut watcher);
                    assert_eq!((wrote.size, wrote.error), (SOME, None));
                    drain.join().unwrap();
                });
            }
        }
    }

    /// A socket of two watchers, likewise.
    fn full_socket_of_two_watchers(kind: BackendKind) {
        for ending in [Ending::Free, Ending::Drop] {
            returns(move || {
                let (ours, mut peer) = pair();
                let [one, other] = [(); 2].map(|()| {
                    let mut watcher = watcher::<()>(kind);
                    let conn = watcher.delegate(ours.try_clone().unwrap()).unwrap();
                    (watcher, conn)
                });
                let _kept = end(one.0, one.1, &ours, ending);
                let (mut watcher, conn) = other;
                watcher.write((), conn, vec![0; MUCH]).unwrap();
                quiet(&mut watcher);
                let drain = thread::spawn(move || peer.read_exact(&mut vec![0; MUCH]).unwrap());
                let wrote = next(&mut watcher);
                assert_eq!((wrote.size, wrote.error), (MUCH, None));
                drain.join().unwrap();
            });
        }
    }

    /// Both are told that there is something to read; one gets it, and the other waits.
    fn empty_for_one_of_two_watchers(kind: BackendKind) {
        returns(move || {
            let (reader, mut writer) = std::io::pipe().unwrap();
            let mut both = [(); 2].map(|()| {
                let mut watcher = watcher::<()>(kind);
                let conn = watcher.delegate(reader.try_clone().unwrap()).unwrap();
                watcher.read((), conn, None).unwrap();
                quiet(&mut watcher);
                watcher
            });
            SockRef::from(&reader).set_nonblocking(false).unwrap();
            writer.write_all(b"once").unwrap();
            let mut got = Vec::new();
            for watcher in &mut both {
                let mut results = Results::new();
                watcher.wait_io_timeout(&mut results, GLANCE).unwrap();
                got.extend(results.drain().flat_map(|res| res.data().to_vec()));
            }
            assert_eq!(got, b"once");
        });
    }

    /// Pipes and terminals are others', and go back as they came.
    fn borrowed_goes_back_as_it_came(kind: BackendKind) {
        for (name, make) in CHANNELS {
            for came_blocking in [true, false] {
                for ending in ["free", "drop", "drop, reading", "close", "reclaim"] {
                    println!("{name}, blocking: {came_blocking}, {ending}");
                    let (mut reader, writer) = make();
                    let writer = writer.try_clone().unwrap();
                    SockRef::from(&writer).set_nonblocking(!came_blocking).unwrap();
                    let mut watcher = watcher::<()>(kind);
                    let conn = watcher.delegate(writer.try_clone().unwrap()).unwrap();
                    watcher.write((), conn, "12345").unwrap();
                    assert_eq!(next(&mut watcher).size, 5);
                    read_exactly(&mut reader, b"12345");
                    match ending {
                        "free" => assert!(watcher.free(conn)),
                        "close" => watcher.close(),
                        "reclaim" => drop(watcher.reclaim(conn).unwrap()),
                        "drop, reading" => {
                            watcher.write((), conn, vec![b'x'; SOME]).unwrap();
                            quiet(&mut watcher);
                            drop(watcher);
                        }
                        _ => drop(watcher),
                    }
                    assert_eq!(is_blocking(&writer), came_blocking, "{name}, {ending}");
                }
            }
        }
    }

    /// Whichever of two ends first, and whether or not the other is used after that.
    fn borrowed_by_two_goes_back_as_it_came(kind: BackendKind) {
        for (name, make) in CHANNELS {
            for [first, uses] in [[0, 0], [0, 1], [1, 0], [1, 1]] {
                println!("{name}, {first} ends first, the other one is used: {uses}");
                let (mut reader, writer) = make();
                let mut use_it = |it: &mut (Watcher<()>, Conn)| {
                    it.0.write((), it.1, "12345").unwrap();
                    assert_eq!(next(&mut it.0).size, 5);
                    read_exactly(&mut reader, b"12345");
                };
                let both = [(); 2].map(|()| {
                    let mut watcher = watcher::<()>(kind);
                    let conn = watcher.delegate(writer.try_clone().unwrap()).unwrap();
                    let mut it = (watcher, conn);
                    use_it(&mut it);
                    it
                });
                let [mut one, mut other] = both;
                if first == 1 {
                    std::mem::swap(&mut one, &mut other);
                }
                assert!(one.0.free(one.1));
                if uses == 1 {
                    use_it(&mut other);
                }
                drop(other);
                assert!(is_blocking(&writer), "{name}");
            }
        }
    }

    /// An eventfd takes the flag for reads alone.
    #[cfg(gaio_epoll)]
    fn eventfd_goes_back_as_it_came(kind: BackendKind) {
        // SAFETY: the call takes numbers, and makes the descriptor that is owned then.
        let event = unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_CLOEXEC)) };
        let mut watcher = watcher::<()>(kind);
        let conn = watcher.delegate(event.try_clone().unwrap()).unwrap();
        for _ in 0..2 {
            watcher.write((), conn, vec![1; 8]).unwrap();
            assert_eq!(next(&mut watcher).size, 8);
            watcher.read((), conn, None).unwrap();
            assert_eq!(next(&mut watcher).data(), [1; 8]);
            let waits = watcher.read((), conn, None).unwrap();
            quiet(&mut watcher);
            assert!(watcher.cancel(waits));
            next(&mut watcher);
        }
        drop(watcher);
        assert!(is_blocking(&event));
    }

    /// A socket comes back as it came, by `reclaim`.
    fn reclaimed_listener_is_as_it_came(kind: BackendKind) {
        for came_blocking in [true, false] {
            let (listener, address) = listener();
            listener.set_nonblocking(!came_blocking).unwrap();
            let mut watcher = watcher::<()>(kind);
            let conn = watcher.listen(listener).unwrap();
            watcher.accept_one((), conn).unwrap();
            let _client = TcpStream::connect(address).unwrap();
            assert!(next(&mut watcher).accepted().is_some());
            let back = watcher.reclaim(conn).unwrap();
            assert_eq!(is_blocking(&back), came_blocking);
        }
    }
}

/// More than a pipe or a terminal takes.
const SOME: usize = 1 << 20;

type Make = fn() -> (File, OwnedFd);

/// Where bytes are written at one end, here the second, and come out of the other.
const CHANNELS: [(&str, Make); 2] = [
    ("pipe", || {
        let (reader, writer) = std::io::pipe().unwrap();
        (File::from(OwnedFd::from(reader)), writer.into())
    }),
    ("terminal", || {
        let (control, terminal) = terminal();
        (File::from(control), terminal)
    }),
];

/// Ends one watcher's part in a descriptor of which this is another duplicate. What must live on comes
/// back.
fn end(mut watcher: Watcher, conn: Conn, duplicate: &impl AsFd, ending: Ending) -> Option<Watcher> {
    match ending {
        Ending::Free => assert!(watcher.free(conn)),
        Ending::Drop => {
            drop(watcher);
            return None;
        }
        Ending::Reclaim => drop(watcher.reclaim(conn).unwrap()),
        Ending::Switch => SockRef::from(duplicate).set_nonblocking(false).unwrap(),
    }
    Some(watcher)
}

fn is_blocking(fd: &impl AsFd) -> bool {
    !SockRef::from(fd).nonblocking().unwrap()
}

/// Does this, which must not block for ever.
fn returns(body: impl FnOnce() + Send + 'static) {
    let (give, take) = mpsc::channel();
    thread::spawn(move || {
        body();
        give.send(())
    });
    take.recv_timeout(PATIENCE).unwrap();
}
