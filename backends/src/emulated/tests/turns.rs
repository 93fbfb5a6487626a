//! Turns with little room: no event is lost, none is reported twice, and no operation overtakes
//! another.

use super::*;

#[test]
fn never_skips_events_twice() {
    let mut rig = Rig::new();
    let _peer = rig.pair(0);
    rig.quiet();
    for expected in [0, 1, 0, 1] {
        let before = rig.backend.counts().waits;
        rig.write(0, b"x");
        assert_eq!(rig.turn(Until::Now, 99).len(), 1);
        assert_eq!(rig.backend.counts().waits - before, expected);
    }
}

#[test]
fn what_nobody_asks_for_stays() {
    let mut rig = Rig::new();
    let mut peers: Vec<_> = (0..9).map(|slot| rig.pair(slot)).collect();
    for slot in 0..9 {
        rig.start(slot, Lane::Read, Request::ReadSwap);
        rig.write(slot, b"x");
    }
    for peer in &mut peers {
        peer.write_all(b"y").unwrap();
    }
    std::thread::sleep(Duration::from_millis(20));
    let mut total = 0;
    for _ in 0..30 {
        total += rig.turn(Until::Now, 2).len();
        assert!(total == 18 || rig.more || total <= 9 + 2);
    }
    assert_eq!(total, 18);
    assert!(!rig.more);
}

/// A caller that takes one completion a turn, and starts a new operation that is complete at once,
/// still gets the completions of the others.
#[test]
fn events_without_room_come_before_what_is_started_since() {
    const TALKERS: u32 = 4;
    let mut rig = Rig::new();
    let mut peers: Vec<TcpStream> = (0..=TALKERS).map(|slot| rig.pair(slot)).collect();
    peers[0].write_all(&[0; 1024]).unwrap();
    for (slot, peer) in (0..).zip(&mut peers) {
        peer.write_all(b"x").unwrap();
        rig.read_own(slot, 1);
    }
    let mut waiting: Vec<LaneId> = (1..=TALKERS)
        .map(|slot| LaneId::new(slot, Lane::Read))
        .collect();
    for _ in 0..100 {
        for completion in rig.turn(Until::Time(Instant::now() + SOON), 1) {
            waiting.retain(|&at| at != completion.at);
            if completion.at == LaneId::new(0, Lane::Read) {
                rig.take(0, Lane::Read);
                rig.read_own(0, 1);
            }
        }
    }
    assert_eq!(waiting, []);
}

/// An event that found no room belongs to an old life of a slot that is handed to another socket
/// meanwhile. It says nothing of the new socket, and makes nothing try.
#[test]
fn events_of_an_old_life_say_nothing_of_the_next() {
    const SLOTS: u32 = 4;
    let mut rig = Rig::new();
    let mut peers: Vec<TcpStream> = (0..SLOTS).map(|slot| rig.pair(slot)).collect();
    for (slot, peer) in (0..).zip(&mut peers) {
        peer.write_all(b"data").unwrap();
        until_arrived(rig.backend.socket(slot).unwrap(), 4);
    }
    rig.start(0, Lane::Read, Request::ReadSwap);
    // There is room for one completion: the events behind it are left over.
    let first = rig.turn(Until::Time(Instant::now() + SOON), 1);
    assert_eq!(first.len(), 1);
    for slot in 1..SLOTS {
        drop(rig.backend.release(slot));
        peers.push(rig.pair(slot));
        rig.start(slot, Lane::Read, Request::ReadSwap);
    }
    let reads_before = rig.backend.counts().reads;
    rig.quiet();
    assert_eq!(rig.backend.counts().reads, reads_before);
}

#[test]
fn writes_that_never_wait_let_events_go_first() {
    let mut rig = Rig::new();
    let _taker = rig.pair(0);
    let mut peer = rig.pair(1);
    rig.start(1, Lane::Read, Request::ReadSwap);
    peer.write_all(b"y").unwrap();
    let reader = LaneId::new(1, Lane::Read);
    // Each turn has room for one result, and a write that is done already.
    let heard = (0..20).any(|_| {
        rig.write(0, b"x");
        let all = rig.turn(Until::Now, 1);
        let heard = all.iter().any(|done| done.at == reader);
        if heard {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
        false
    });
    assert!(heard);
}
