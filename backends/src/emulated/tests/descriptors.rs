//! Descriptors that are not sockets, descriptors that cannot be watched, and requests that move no
//! byte.

use super::*;

#[test]
fn ready_transfers_nothing() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    rig.start(0, Lane::Write, Request::Ready(Interest::Writable));
    assert_eq!(rig.one().result(), Ok(0));
    rig.start(0, Lane::Read, Request::Ready(Interest::Readable));
    rig.quiet();
    peer.write_all(b"x").unwrap();
    assert_eq!(rig.one().result(), Ok(0));
    rig.start(0, Lane::Read, Request::Ready(Interest::Readable));
    assert_eq!(rig.one().result(), Ok(0));
    rig.start(0, Lane::Read, Request::ReadSwap);
    assert_eq!(&*lease(rig.one()), b"x");
    assert_eq!(rig.backend.counts().reads, 1);
}

#[test]
fn pipes_work_and_go_back_as_they_came() {
    let mut rig = Rig::new();
    let (from, to) = std::io::pipe().unwrap();
    rig.attach(0, from, SocketKind::Other);
    rig.attach(1, to, SocketKind::Other);
    rig.start(0, Lane::Read, Request::ReadSwap);
    rig.write(1, b"through");
    let mut results = rig.completions();
    while results.len() < 2 {
        results.extend(rig.completions());
    }
    assert_eq!(&*lease(results.pop().unwrap()), b"through");
    // Full: a short write, then waiting; emptied: going on.
    rig.write(1, vec![0; 1 << 20]);
    let sent = rig.one().result().unwrap();
    assert!(sent < 1 << 20);
    rig.write(1, b"tail");
    rig.quiet();
    let (mut got, mut tail) = (0, None);
    while got < sent + 4 {
        rig.start(0, Lane::Read, Request::ReadSwap);
        for completion in rig.completions() {
            if completion.at == LaneId::new(0, Lane::Read) {
                got += completion.result().unwrap();
            } else {
                tail = Some(completion.result());
            }
        }
    }
    assert_eq!(tail, Some(Ok(4)));
    // Nobody reads any more: an error, not a signal.
    let from = rig.backend.detach(0).unwrap();
    assert!(!is_nonblocking(&from));
    drop(from);
    rig.write(1, b"lost");
    assert_eq!(errno(&rig.one()), libc::EPIPE);
}

/// Some systems refuse to watch it.
#[test]
fn pipe_without_a_reader_is_taken() {
    let mut rig = Rig::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    rig.attach(0, writer, SocketKind::Other);
    rig.write(0, b"lost");
    assert_eq!(errno(&rig.one()), libc::EPIPE);
}

/// A kqueue takes files; they are refused before they come here.
#[cfg(not(gaio_kqueue))]
#[test]
fn refused_descriptors_come_back() {
    let mut rig = Rig::new();
    let file = std::fs::File::open(std::env::current_exe().unwrap()).unwrap();
    let (errno, file) = rig
        .backend
        .attach(0, file.into(), SocketKind::Other)
        .unwrap_err();
    assert_eq!(errno.0, libc::EPERM);
    assert!(!is_nonblocking(&file));
    assert!(rig.backend.socket(0).is_none());
    let _peer = rig.pair(0);
}
