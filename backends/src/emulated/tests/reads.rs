//! Reads of every kind: their sizes, their buffers, and the effects of the end and of urgent data.

use super::*;

#[test]
fn echo_costs_three_calls() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    rig.quiet();
    let before = *rig.backend.counts();
    for round in 0..100u8 {
        rig.start(0, Lane::Read, Request::ReadSwap);
        peer.write_all(&[round; 100]).unwrap();
        let read = rig.one();
        assert_eq!((read.at, read.more), (LaneId::new(0, Lane::Read), false));
        assert_eq!(read.result(), Ok(100));
        rig.write(0, lease(read));
        assert_eq!(rig.one().result(), Ok(100));
        assert_eq!(rig.take(0, Lane::Write).0[..], [round; 100]);
        let mut echoed = [0; 100];
        peer.read_exact(&mut echoed).unwrap();
        assert_eq!(echoed, [round; 100]);
    }
    let after = *rig.backend.counts();
    assert_eq!(after.waits - before.waits, 100);
    assert_eq!(after.reads - before.reads, 100);
    assert_eq!(after.writes - before.writes, 100);
    assert_eq!(after.others, before.others);
}

#[test]
fn small_reads_lie_side_by_side() {
    let mut rig = Rig::new();
    let mut peers: Vec<_> = (0..10).map(|slot| rig.pair(slot)).collect();
    for slot in 0..10 {
        rig.start(slot, Lane::Read, Request::ReadSwap);
    }
    for peer in &mut peers {
        peer.write_all(b"0123456789").unwrap();
    }
    let mut leases = Vec::new();
    while leases.len() < 10 {
        leases.extend(rig.completions().into_iter().map(lease));
    }
    let usage = rig.backend.pool().usage();
    assert_eq!((usage.blocks_out, usage.leases), (1, 10));
    assert!(leases.iter().all(|lease| **lease == *b"0123456789"));
}

#[test]
fn own_vector_is_filled_behind_its_head() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    rig.read_own(0, 10);
    for (part, all) in [(b"abcd", false), (b"efgh", false)] {
        peer.write_all(part).unwrap();
        let read = rig.one();
        assert_eq!(read.result(), Ok(4));
        assert_eq!(rig.advance(&read), all);
        rig.start(0, Lane::Read, Request::Read);
    }
    peer.write_all(b"ijk").unwrap();
    let read = rig.one();
    assert!(rig.advance(&read));
    let (buffer, done) = rig.take(0, Lane::Read);
    assert_eq!((&buffer[..], done), (&b"abcdefghij"[..], 10));
}

#[test]
fn full_read_leaves_the_rest_readable() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    peer.write_all(b"abcdef").unwrap();
    for part in [b"abc", b"def"] {
        rig.read_own(0, 3);
        assert_eq!(rig.one().result(), Ok(3));
        assert_eq!(rig.take(0, Lane::Read).0[..], part[..]);
    }
    rig.start(0, Lane::Read, Request::ReadSwap);
    rig.quiet();
}

#[test]
fn data_and_end_together() {
    for round in 0..200 {
        let mut rig = Rig::new();
        let (mut peer, ours) = UnixStream::pair().unwrap();
        rig.attach(0, ours, SocketKind::Stream);
        if round % 2 == 0 {
            rig.start(0, Lane::Read, Request::ReadSwap);
        }
        peer.write_all(b"last").unwrap();
        drop(peer);
        if round % 2 == 1 {
            rig.start(0, Lane::Read, Request::ReadSwap);
        }
        assert_eq!(&*lease(rig.one()), b"last");
        for _ in 0..2 {
            rig.start(0, Lane::Read, Request::ReadSwap);
            assert_eq!(rig.one().result(), Ok(0));
        }
    }
}

/// The end comes in the same event as the data, and a short read would hide it.
#[test]
fn data_and_end_in_one_event() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    peer.write_all(b"last").unwrap();
    drop(peer);
    std::thread::sleep(Duration::from_millis(20));
    rig.start(0, Lane::Read, Request::ReadSwap);
    assert_eq!(&*lease(rig.one()), b"last");
    rig.start(0, Lane::Read, Request::ReadSwap);
    assert_eq!(rig.one().result(), Ok(0));
}

#[test]
fn dry_pool_consumes_nothing() {
    let mut rig = Rig::with_blocks(1);
    let mut peer = rig.pair(0);
    peer.write_all(&[1; BLOCK]).unwrap();
    rig.start(0, Lane::Read, Request::ReadSwap);
    let kept = lease(rig.one());
    assert_eq!((kept.len(), rig.backend.swap_room().bytes), (BLOCK, 0));
    rig.start(0, Lane::Read, Request::ReadSwap);
    peer.write_all(b"more").unwrap();
    let read = rig.one();
    assert_eq!(errno(&read), libc::ENOBUFS);
    drop(kept);
    assert_eq!(rig.backend.swap_room().bytes, BLOCK);
    rig.start(0, Lane::Read, Request::ReadSwap);
    assert_eq!(&*lease(rig.one()), b"more");
}

#[test]
fn stream_goes_on_until_the_end() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    rig.open_credit(0);
    rig.start(0, Lane::Read, Request::ReadStream);
    let (mut got, mut expected) = (Vec::<u8>::new(), Vec::new());
    for round in 0..50u8 {
        peer.write_all(&[round; 333]).unwrap();
        expected.extend([round; 333]);
        while got.len() < expected.len() {
            for completion in rig.completions() {
                assert!(completion.more);
                let lease = lease(completion);
                assert!(rig.leased_bytes(0) >= lease.len() as u64);
                got.extend(lease.iter());
            }
        }
    }
    assert!(got == expected);
    assert_eq!(rig.leased_bytes(0), 0);
    drop(peer);
    let end = rig.one();
    assert_eq!((end.more, end.result()), (false, Ok(0)));
}

/// A private read takes what is there, at once, and is charged to the connection; or it ends.
#[test]
fn private_read_does_not_wait() {
    let mut rig = Rig::with_blocks(1);
    let mut peer = rig.pair(0);
    rig.open_credit(0);
    rig.start(0, Lane::Read, Request::ReadPrivate);
    assert_eq!(errno(&rig.one()), libc::EAGAIN);
    assert_eq!(rig.leased_bytes(0), 0);
    peer.write_all(b"mine").unwrap();
    rig.start(0, Lane::Read, Request::ReadPrivate);
    let lease = lease(rig.one());
    assert_eq!(lease[..], *b"mine");
    assert_eq!(
        rig.leased_bytes(0),
        rig.backend.pool().private_size() as u64
    );
    assert_eq!(rig.backend.pool().usage().blocks_out, 0);
    drop(lease);
    assert_eq!(rig.leased_bytes(0), 0);
    drop(peer);
    rig.start(0, Lane::Read, Request::ReadPrivate);
    assert_eq!(rig.one().result(), Ok(0));
}

#[test]
fn stream_has_a_budget() {
    // The number of bytes that every system's sockets take before any are read.
    const ALL: usize = 7 * BLOCK;
    let mut rig = Rig::with_blocks(64);
    let mut peer = rig.pair(0);
    peer.write_all(&[5; ALL]).unwrap();
    until_arrived(rig.backend.socket(0).unwrap(), ALL);
    rig.start(0, Lane::Read, Request::ReadStream);
    let all = rig.turn(Until::Done, 99);
    assert_eq!(all.len(), 4);
    assert!(rig.more);
    // A read that asks for no more does so, too.
    assert_eq!(rig.turn(Until::Done, 1).len(), 1);
    assert!(rig.more);
    let mut len = 5 * BLOCK;
    while len < ALL {
        let all = rig.completions();
        len += all
            .iter()
            .map(|done| done.result().unwrap() as usize)
            .sum::<usize>();
    }
    assert_eq!(len, ALL);
    rig.quiet();
    assert!(!rig.more);
}

/// Not on kqueue: no filter that all systems have reports urgent data.
#[cfg(not(gaio_kqueue))]
#[test]
fn urgent_data_hides_nothing() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    rig.start(0, Lane::Read, Request::ReadSwap);
    peer.write_all(b"before").unwrap();
    SockRef::from(&peer).send_out_of_band(b"!").unwrap();
    peer.write_all(b"after").unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let mut got: Vec<u8> = Vec::new();
    while got.len() < 11 {
        got.extend(lease(rig.one()).iter());
        rig.start(0, Lane::Read, Request::ReadSwap);
    }
    assert_eq!(got, b"beforeafter");
}
