//! Accepting and connecting.

use super::*;

#[test]
fn accepts() {
    let mut rig = Rig::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = listener.local_addr().unwrap();
    let duplicate = listener.try_clone().unwrap();
    rig.attach(3, listener, SocketKind::Listener);
    rig.start(3, Lane::Read, Request::AcceptStream);
    rig.quiet();
    let peers: Vec<_> = (0..100).map(|_| TcpStream::connect(to).unwrap()).collect();
    let mut accepted = Vec::new();
    while accepted.len() < peers.len() {
        let all = rig.completions();
        assert!(all.len() <= 64);
        accepted.extend(all);
    }
    for completion in &accepted {
        assert!(completion.more);
        assert!(matches!(completion.outcome, Outcome::Accepted(_)));
    }
    rig.cancel(3, Lane::Read, false);
    assert_eq!(errno(&rig.one()), libc::ECANCELED);
    // One at a time.
    rig.start(3, Lane::Read, Request::Accept);
    let _two = (TcpStream::connect(to).unwrap(), TcpStream::connect(to));
    let one = rig.one();
    assert_eq!((one.more, one.result()), (false, Ok(0)));
    rig.quiet();
    rig.start(3, Lane::Read, Request::Accept);
    assert!(!rig.one().more);
    drop(rig.backend.detach(3));
    assert!(!is_nonblocking(&duplicate));
}

/// Another process that accepts from a listener may count on its mode. Only `detach` restores it.
#[test]
fn closed_listener_keeps_its_mode() {
    let endings: [fn(Rig); 2] = [|mut rig| drop(rig.backend.release(0)), drop];
    for end in endings {
        let mut rig = Rig::new();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let duplicate = listener.try_clone().unwrap();
        rig.attach(0, listener, SocketKind::Listener);
        rig.start(0, Lane::Read, Request::Accept);
        let _peer = TcpStream::connect(to).unwrap();
        assert_eq!(rig.one().result(), Ok(0));
        end(rig);
        assert!(is_nonblocking(&duplicate));
    }
}

fn start_connect(rig: &mut Rig, slot: u32, to: impl Into<Address>) {
    rig.take(slot, Lane::Write);
    let data = OpData::Address(Box::new(to.into()));
    rig.start_with(slot, Lane::Write, Request::Connect, data);
}

fn connect(rig: &mut Rig, slot: u32, to: impl Into<Address>) -> Completion {
    start_connect(rig, slot, to);
    rig.one()
}

#[test]
fn connects() {
    let mut rig = Rig::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to: Address = listener.local_addr().unwrap().into();
    rig.attach(0, crate::stream_socket(&to).unwrap(), SocketKind::Stream);
    // The event of the unconnected socket, which reports its end, comes first.
    rig.quiet();
    assert_eq!(connect(&mut rig, 0, to).result(), Ok(0));
    let nonblocking = is_nonblocking(&rig.backend.socket(0).unwrap());
    assert_eq!(nonblocking, System::NEEDS_NONBLOCKING);
    let (mut peer, _) = listener.accept().unwrap();
    rig.start(0, Lane::Read, Request::ReadSwap);
    rig.quiet();
    peer.write_all(b"hello").unwrap();
    assert_eq!(&*lease(rig.one()), b"hello");
    let reads = rig.backend.counts().reads;
    rig.start(0, Lane::Read, Request::ReadSwap);
    rig.quiet();
    assert_eq!(
        rig.backend.counts().reads,
        reads,
        "a short read means drained"
    );
}

#[test]
fn refused_connect_leaves_the_socket() {
    let mut rig = Rig::new();
    let nobody = {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap();
        gone.local_addr().unwrap()
    };
    let to: Address = nobody.into();
    rig.attach(0, crate::stream_socket(&to).unwrap(), SocketKind::Stream);
    assert_eq!(errno(&connect(&mut rig, 0, to)), libc::ECONNREFUSED);
    let nonblocking = is_nonblocking(&rig.backend.socket(0).unwrap());
    assert_eq!(nonblocking, System::NEEDS_NONBLOCKING);
    // No later operation hangs.
    rig.start(0, Lane::Read, Request::ReadSwap);
    rig.one();
    rig.write(0, b"x");
    assert_eq!(errno(&rig.one()), libc::EPIPE);
}

#[test]
fn unix_connect_fails_at_once() {
    let mut rig = Rig::new();
    let nobody = std::os::unix::net::SocketAddr::from_pathname("/nonexistent/gaio").unwrap();
    let to: Address = nobody.into();
    rig.attach(0, crate::stream_socket(&to).unwrap(), SocketKind::Stream);
    rig.quiet();
    assert_eq!(errno(&connect(&mut rig, 0, to)), libc::ENOENT);
    rig.start(0, Lane::Read, Request::ReadSwap);
    rig.write(0, b"x");
    let mut ended = rig.completions();
    while ended.len() < 2 {
        ended.extend(rig.completions());
    }
    assert!(ended.iter().all(|completion| completion.result().is_err()));
}

/// Elsewhere such a connect is refused, or backlogs are never that small. The backend does not
/// decide when it is tried again.
#[cfg(target_os = "linux")]
#[test]
fn connect_to_a_full_unix_backlog_ends() {
    let path = std::env::temp_dir().join(format!("gaio-emulated-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).unwrap();
    // SAFETY: the call touches no memory of ours.
    unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 0) };
    let to: Address = listener.local_addr().unwrap().into();
    let mut rig = Rig::new();
    for slot in 0..2 {
        rig.attach(slot, crate::stream_socket(&to).unwrap(), SocketKind::Stream);
    }
    assert_eq!(connect(&mut rig, 0, to.clone()).result(), Ok(0));
    assert_eq!(
        connect(&mut rig, 1, to.clone()).result(),
        Err(Errno(libc::EAGAIN))
    );
    let _first = listener.accept().unwrap();
    assert_eq!(connect(&mut rig, 1, to).result(), Ok(0));
    let (mut second, _) = listener.accept().unwrap();
    second.write_all(b"hi").unwrap();
    rig.start(1, Lane::Read, Request::ReadSwap);
    assert_eq!(&*lease(rig.one()), b"hi");
    std::fs::remove_file(&path).unwrap();
}
