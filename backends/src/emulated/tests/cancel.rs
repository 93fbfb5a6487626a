//! Cancelled operations, and slots that change hands.

use super::*;

#[test]
fn cancel_with_a_last_try() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    // Data is there that no event has announced yet.
    peer.write_all(b"here").unwrap();
    until_arrived(rig.backend.socket(0).unwrap(), 4);
    rig.start(0, Lane::Read, Request::ReadSwap);
    rig.cancel(0, Lane::Read, true);
    assert_eq!(&*lease(rig.one()), b"here");
    // There is no data.
    rig.start(0, Lane::Read, Request::ReadSwap);
    rig.cancel(0, Lane::Read, true);
    assert_eq!(errno(&rig.one()), libc::ECANCELED);
    // A write that was never attempted is made.
    rig.write(0, b"out");
    rig.cancel(0, Lane::Write, true);
    assert_eq!(rig.one().result(), Ok(3));
    // None of these completions comes again.
    rig.quiet();
}

#[test]
fn cancel_gives_back() {
    let mut rig = Rig::new();
    let _peer = rig.pair(0);
    rig.read_own(0, 7);
    rig.quiet();
    let (nothing, _) = rig.take(0, Lane::Read);
    assert!(nothing.is_empty(), "taken while the operation runs");
    rig.cancel(0, Lane::Read, false);
    assert_eq!(errno(&rig.one()), libc::ECANCELED);
    let (buffer, done) = rig.take(0, Lane::Read);
    assert_eq!((buffer.len(), done), (7, 0));
    // The account of a connection stays until it is closed.
    rig.open_credit(0);
    rig.start(0, Lane::Read, Request::ReadStream);
    rig.cancel(0, Lane::Read, false);
    assert_eq!(errno(&rig.one()), libc::ECANCELED);
    assert!(rig.backend.op_table().credit(0).is_some());
    rig.backend.op_table().close_credit(0);
    assert!(rig.backend.op_table().credit(0).is_none());
}

/// The completion of a last try comes before the end.
#[test]
fn cancelled_stream_ends_last() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    rig.start(0, Lane::Read, Request::ReadStream);
    rig.quiet();
    peer.write_all(b"last words").unwrap();
    until_arrived(rig.backend.socket(0).unwrap(), 10);
    rig.cancel(0, Lane::Read, true);
    let [step, end] = <[Completion; 2]>::try_from(rig.completions()).unwrap();
    assert_eq!((step.more, end.more), (true, false));
    assert_eq!(errno(&end), libc::ECANCELED);
    assert_eq!(lease(step)[..], *b"last words");
}

#[test]
fn cancelled_slot_serves_its_next_life() {
    let mut rig = Rig::new();
    let peer = rig.pair(0);
    rig.write(0, b"never queued twice");
    rig.cancel(0, Lane::Write, true);
    // The queue still names the lane when the slot changes hands.
    let old = rig.backend.detach(0).unwrap();
    let _next = rig.pair(0);
    rig.write(0, b"new");
    let sizes: Vec<_> = rig.completions().iter().map(|done| done.result()).collect();
    assert_eq!(sizes, [Ok(18), Ok(3)]);
    drop((peer, old));
}

#[test]
fn duplicates_of_a_detached_socket_are_silent() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    let duplicate = rig.backend.socket(0).unwrap().try_clone_to_owned().unwrap();
    drop(rig.backend.detach(0));
    let _next = rig.pair(0);
    rig.quiet();
    rig.start(0, Lane::Read, Request::ReadSwap);
    let before = rig.backend.counts().reads;
    peer.write_all(b"for the duplicate").unwrap();
    rig.quiet();
    assert_eq!(rig.backend.counts().reads, before);
    drop(duplicate);
}
