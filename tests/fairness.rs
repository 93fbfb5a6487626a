//! Fairness: one busy connection among many quiet ones delays none of them.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use common::{backends, close_and_collect, connect_to, turn, watcher};
use gaio::{BackendKind, Results, Watcher};

const TALKERS: usize = 50;

backends! {
    /// One connection sends without an end; fifty others say a byte now and then.
    fn fairness(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (hog, hog_peer) = connect_to(&mut watcher);
        watcher.read(0, hog, None).unwrap();
        fair(&mut watcher, hog_peer, &mut Results::new(), 20);
    }

    fn fairness_of_a_stream(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (hog, hog_peer) = connect_to(&mut watcher);
        watcher.read_stream(0, hog).unwrap();
        fair(&mut watcher, hog_peer, &mut Results::new(), 20);
    }

    fn fairness_with_one_result_a_turn(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (hog, hog_peer) = connect_to(&mut watcher);
        watcher.read(0, hog, None).unwrap();
        fair(
            &mut watcher,
            hog_peer,
            &mut Results::with_capacity(1),
            20 * TALKERS,
        );
    }
}

/// While the hog talks, each talker that says a byte is heard within so many turns. The context
/// is 0 for the hog, else the talker's number. Talkers use Unix sockets: what they have said is
/// there at once, so that turns can be counted from then.
fn fair(watcher: &mut Watcher<usize>, hog: TcpStream, results: &mut Results<usize>, turns: usize) {
    let enough = Arc::new(AtomicBool::new(false));
    let hog = thread::spawn({
        let enough = enough.clone();
        move || flood(hog, &enough)
    });
    let mut talkers = Vec::new();
    for at in 0..TALKERS {
        let (ours, peer) = UnixStream::pair().unwrap();
        let conn = watcher.delegate(ours).unwrap();
        watcher.read(at + 1, conn, None).unwrap();
        talkers.push(peer);
    }
    let (mut rounds, mut hog_bytes) = (0, 0);
    while rounds < 20 || hog_bytes < 32 << 20 {
        rounds += 1;
        assert!(rounds < 1_000_000, "the hog is served as well");
        talkers
            .iter_mut()
            .for_each(|peer| peer.write_all(b"t").unwrap());
        let mut waiting = [true; TALKERS];
        for _ in 0..turns {
            turn(watcher, results);
            for res in results.drain() {
                assert_eq!(res.error, None);
                match res.context.checked_sub(1) {
                    Some(at) => waiting[at] = false,
                    None => hog_bytes += res.size,
                }
                if res.is_last() {
                    watcher.read(res.context, res.conn, None).unwrap();
                }
            }
            if waiting == [false; TALKERS] {
                break;
            }
        }
        assert_eq!(waiting, [false; TALKERS], "not heard within {turns} turns");
    }
    enough.store(true, Ordering::Relaxed);
    close_and_collect(watcher);
    hog.join().unwrap();
}

/// Sends as fast as it can, until it is enough or the other side closes.
fn flood(mut peer: TcpStream, enough: &AtomicBool) {
    let block = vec![0; 256 << 10];
    while !enough.load(Ordering::Relaxed) && peer.write_all(&block).is_ok() {}
}
