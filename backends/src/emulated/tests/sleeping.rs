//! Sleeping and being woken: deadlines, the waker, the descriptor for other event loops.

use super::*;

/// Lets a poller believe that the kernel is old.
#[cfg(not(gaio_kqueue))]
fn age(poller: &mut System) {
    poller.milliseconds_only = true;
}

/// There is one way to sleep.
#[cfg(gaio_kqueue)]
fn age(_: &mut System) {}

#[test]
fn sleeps_end_in_time_and_never_early() {
    let mut rig = Rig::new();
    for old_kernel in [false, true] {
        if old_kernel {
            age(&mut rig.backend.poller);
        }
        for micros in [0, 1, 50, 1_000, 10_300] {
            let at = Instant::now() + Duration::from_micros(micros);
            assert!(rig.turn(Until::Time(at), 99).is_empty());
            assert!(Instant::now() >= at);
        }
    }
}

#[test]
fn waker_ends_the_sleep() {
    let mut rig = Rig::new();
    for _ in 0..3 {
        let waker = Arc::clone(rig.backend.waker());
        waker.sleep();
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(10));
            waker.wake();
        });
        let at = Instant::now() + SOON;
        assert!(rig.turn(Until::Time(at), 99).is_empty());
        assert!(Instant::now() < at);
        thread.join().unwrap();
        rig.backend.waker().awake();
        // It is not seen again.
        let at = Instant::now() + Duration::from_millis(20);
        rig.turn(Until::Time(at), 99);
        assert!(Instant::now() >= at);
    }
}

#[test]
fn nested_descriptor_is_exact() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    let fd = rig.backend.readiness().unwrap();
    rig.start(0, Lane::Read, Request::ReadSwap);
    rig.quiet();
    assert!(!readable(fd.as_fd()));
    for _ in 0..3 {
        peer.write_all(b"x").unwrap();
        until_readable(&fd);
        assert_eq!(rig.turn(Until::Now, 99).len(), 1);
        assert!(!readable(fd.as_fd()));
        rig.start(0, Lane::Read, Request::ReadSwap);
        assert!(rig.turn(Until::Now, 99).is_empty());
        assert!(!readable(fd.as_fd()));
    }
    // The alarm; the second one replaces the first.
    rig.backend.arm(Some(Instant::now() + 100 * SOON));
    assert!(!readable(fd.as_fd()));
    let at = Instant::now() + Duration::from_millis(10);
    rig.backend.arm(Some(at));
    until_readable(&fd);
    // Some systems' timers are a tick early. A caller that is woken finds nothing then, and sleeps
    // again.
    let mut early = 0;
    while Instant::now() < at {
        early += 1;
        assert!(early <= 3, "woken again and again");
        assert!(rig.turn(Until::Now, 99).is_empty());
        rig.backend.arm(Some(at));
        until_readable(&fd);
    }
    rig.turn(Until::Now, 99);
    assert!(!readable(fd.as_fd()));
    rig.backend.arm(Some(Instant::now()));
    until_readable(&fd);
    rig.backend.arm(None);
    assert!(!readable(fd.as_fd()));
}

fn until_readable(fd: &OwnedFd) {
    let end = Instant::now() + SOON;
    while !readable(fd.as_fd()) {
        assert!(Instant::now() < end, "not readable");
    }
}

#[test]
fn backend_can_change_threads() {
    fn assert_send<T: Send>() {}
    assert_send::<Emulated<System>>();
}
