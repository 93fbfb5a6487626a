//! Machines that refuse: sandboxes that forbid io_uring or one of its calls, little memory to lock,
//! few descriptors. A program works all the same, or is told what is missing and what to do.
//!
//! Whoever denies does so for a whole process, so each case runs in one of its own.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

mod common;

#[cfg(gaio_uring)]
use std::io::Write;

use common::process::{in_child, limit_descriptors, no_leak, set_environment};
use common::{assert_works, backends, builder};
#[cfg(gaio_uring)]
use common::{in_time, next};
use gaio::{BackendKind, Watcher};

#[cfg(gaio_uring)]
use common::denial::{
    ENTER, REGISTER, SETUP, deny, deny_younger_than_4_19, filter, limit_locked_memory,
    signal_of_setup,
};
#[cfg(gaio_uring)]
use gaio::ErrorKind;

/// The lowest number that a descriptor could have now.
fn next_descriptor() -> u64 {
    use std::os::fd::AsRawFd;
    let file = std::fs::File::open("/dev/null").unwrap();
    file.as_raw_fd() as u64
}

backends! {
    /// However few they are: it works, or says so, and what it had taken is free again.
    fn few_descriptors(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let start = next_descriptor();
            no_leak(|| {
                let mut built = 0;
                for spare in 0..24 {
                    limit_descriptors(start + spare);
                    let outcome = builder::<()>(kind).build();
                    limit_descriptors(1024);
                    match outcome {
                        Ok(watcher) => {
                            built += 1;
                            assert_works(watcher);
                        }
                        Err(error) => {
                            assert_eq!(built, 0, "{spare}: it was enough before: {error}");
                            assert_eq!(error.raw_os_error(), Some(libc::EMFILE));
                            assert!(error.to_string().contains("ulimit -n"), "{error}");
                        }
                    }
                }
                assert!(built > 0, "24 descriptors are enough");
            });
        });
    }

    /// Without a choice, too few for the best backend may still be enough for the next.
    fn few_descriptors_for_any(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            set_environment("");
            let start = next_descriptor();
            for spare in 0..24 {
                limit_descriptors(start + spare);
                let outcome = Watcher::new();
                limit_descriptors(1024);
                match outcome {
                    Ok(watcher) => assert_works(watcher),
                    Err(error) => assert_eq!(error.raw_os_error(), Some(libc::EMFILE)),
                }
            }
        });
    }
}

#[cfg(gaio_uring)]
backends! {
    /// A sandbox that kills at the first call of io_uring: whoever chose epoll never makes it.
    fn epoll_makes_no_io_uring_call(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            if kind != BackendKind::Epoll {
                return;
            }
            filter(&[SETUP, ENTER, REGISTER], libc::SECCOMP_RET_KILL_PROCESS);
            assert_eq!(signal_of_setup(), Some(libc::SIGSYS), "the filter works");
            set_environment("epoll");
            assert_works(Watcher::new().unwrap());
            assert_works(common::watcher(kind));
        });
    }

    /// A container that forbids all of io_uring.
    fn all_calls_denied(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            deny(&[SETUP, ENTER, REGISTER], libc::EPERM);
            falls_back(libc::EPERM, "io_uring_setup", "seccomp");
        });
    }

    /// A security module.
    fn setup_denied(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            deny(&[SETUP], libc::EACCES);
            falls_back(libc::EACCES, "io_uring_setup", "seccomp");
        });
    }

    /// A kernel that was built without it, or is older than it.
    fn setup_unknown(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            deny(&[SETUP], libc::ENOSYS);
            falls_back(libc::ENOSYS, "io_uring_setup", "Linux 6.0");
        });
    }

    /// What can be had of Linux 4.19 on a newer one.
    fn calls_of_linux_4_19(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            deny_younger_than_4_19();
            falls_back(libc::ENOSYS, "io_uring_setup", "Linux 6.0");
            if kind != BackendKind::IoUring {
                assert_works(common::watcher(kind));
            }
        });
    }

    /// Before 6.0 there is an io_uring, but it does not know what it is asked for.
    fn setup_below_the_floor(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            deny(&[SETUP], libc::EINVAL);
            falls_back(libc::EINVAL, "io_uring_setup", "Linux 6.0");
        });
    }

    fn register_below_the_floor(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            deny(&[REGISTER], libc::EINVAL);
            falls_back(libc::EINVAL, "", "Linux 6.0");
        });
    }

    /// Setting up succeeds, and is worth nothing.
    fn enter_denied(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            deny(&[ENTER], libc::EPERM);
            falls_back_from(libc::EPERM, "seccomp");
        });
    }

    fn register_denied(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            deny(&[REGISTER], libc::EPERM);
            falls_back_from(libc::EPERM, "seccomp");
        });
    }

    fn enter_unknown(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            deny(&[ENTER], libc::ENOSYS);
            falls_back_from(libc::ENOSYS, "Linux 6.0");
        });
    }

    /// 64 KiB, as Linux allowed for long: where there is room for a small ring, whoever asked for a
    /// large one gets that.
    fn smaller_rings(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            if kind != BackendKind::IoUring {
                return;
            }
            if let Err(error) = limit_locked_memory(64 << 10) {
                return println!("skipped: the limit cannot be set: {error}");
            }
            // What a ring had locked is free again some time after it is gone.
            let mut line = String::new();
            let mut fits = |depth| {
                in_time(|| match builder::<()>(kind).queue_depth(depth).build() {
                    Ok(watcher) => {
                        line = watcher.backend().to_string();
                        true
                    }
                    Err(_) => false,
                })
            };
            if !fits(1) {
                return println!("skipped: others of this user have locked too much");
            }
            assert!(fits(32_768), "the large ring has not become a small one");
            let many: Vec<_> = (0..64).map(|_| builder::<()>(kind).build()).collect();
            if many.iter().all(Result::is_ok) {
                return println!("skipped: this kernel does not count what rings lock");
            }
            assert!(line.contains("smaller queue"), "{line}");
        });
    }

    /// A thread that builds, uses and drops watchers, one after the other, keeps nothing of them.
    fn dropped_rings_lock_nothing(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            if kind != BackendKind::IoUring {
                return;
            }
            // What the rings of this one lock is counted by user.
            // SAFETY: the call takes a number, and this process runs one test alone.
            let alone = unsafe { libc::setuid(0x6761_696f) } == 0;
            if let Err(error) = limit_locked_memory(512 << 10) {
                return println!("skipped: the limit cannot be set: {error}");
            }
            // At most three of this size at a time.
            let large = || builder::<()>(kind).queue_depth(1024).build().ok();
            let is_large = |it: &Watcher| !it.backend().to_string().contains("smaller queue");
            if !alone && !large().as_ref().is_some_and(is_large) {
                return println!("skipped: others of this user have locked too much");
            }
            for round in 0..24 {
                let mut next = None;
                let fits = in_time(|| {
                    next = large().filter(is_large);
                    next.is_some()
                });
                assert!(fits, "after {round} rings there is no memory for another");
                assert_works(next.unwrap());
            }
        });
    }

    /// With rings that many, they run out.
    fn little_memory_to_lock(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            set_environment("");
            let native = builder::<()>(BackendKind::IoUring).build().is_ok();
            if let Err(error) = limit_locked_memory(64 << 10) {
                return println!("skipped: the limit cannot be set: {error}");
            }
            let watchers: Vec<Watcher> = (0..64).map(|_| Watcher::new().unwrap()).collect();
            let rings = watchers.iter().filter(|it| it.backend().kind() == BackendKind::IoUring);
            let rings = rings.count();
            println!("{rings} of 64 watchers have a ring");
            if native && rings == 64 {
                println!("skipped: this kernel does not count what rings lock");
            }
            for watcher in watchers {
                if native && watcher.backend().kind() != BackendKind::IoUring {
                    let declined = watcher.backend().declined()[0].clone();
                    assert_eq!(declined.error().raw_os_error(), Some(libc::ENOMEM));
                    assert!(declined.to_string().contains("RLIMIT_MEMLOCK"), "{declined}");
                }
                assert_works(watcher);
            }
        });
    }

    /// Where a socket that was reset does not know its own address any more, as on some BSDs.
    fn no_local_address(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let mut watcher = common::watcher(kind);
            let (ours, mut peer) = common::pair();
            deny(&[libc::SYS_getsockname], libc::EINVAL);
            let conn = watcher.delegate(ours).unwrap();
            watcher.read((), conn, None).unwrap();
            peer.write_all(b"data").unwrap();
            assert_eq!(next(&mut watcher).data(), b"data");
            common::reset(peer);
            watcher.read((), conn, None).unwrap();
            let error = next(&mut watcher).error.unwrap();
            assert_eq!(error.raw_os_error(), Some(libc::ECONNRESET));
        });
    }

    fn no_memory_to_lock(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let native = builder::<()>(BackendKind::IoUring).build().is_ok();
            if let Err(error) = limit_locked_memory(0) {
                return println!("skipped: the limit cannot be set: {error}");
            }
            if native && builder::<()>(BackendKind::IoUring).build().is_err() {
                falls_back_from(libc::ENOMEM, "RLIMIT_MEMLOCK");
            } else {
                println!("skipped: this kernel does not count what rings lock");
                set_environment("");
                assert_works(Watcher::new().unwrap());
            }
        });
    }
}

/// Asserts that the next backend serves, that the refusal is told, and that whoever insists gets an
/// error that says what to do.
#[cfg(gaio_uring)]
fn falls_back(errno: i32, step: &str, advice: &str) {
    set_environment("");
    let watcher = Watcher::new().unwrap();
    let info = watcher.backend().clone();
    assert_eq!(info.kind(), BackendKind::Epoll);
    let declined = &info.declined()[0];
    assert_eq!(declined.kind(), BackendKind::IoUring);
    assert_eq!(declined.error().raw_os_error(), Some(errno));
    let line = info.to_string();
    assert!(line.lines().count() == 1, "{line}");
    for part in [&declined.to_string(), "io_uring declined", step, advice] {
        assert!(line.contains(part), "{part:?} is not in {line:?}");
    }
    assert_works(watcher);

    let insisted = builder::<()>(BackendKind::IoUring).build().map(drop);
    set_environment("io_uring");
    for error in [insisted, Watcher::<()>::new().map(drop)].map(Result::unwrap_err) {
        assert_eq!(error.kind(), ErrorKind::Unsupported);
        assert_eq!(error.raw_os_error(), Some(errno));
        assert!(error.to_string().contains(advice), "{error}");
    }
}

/// [`falls_back`] where the step depends on the kernel; one without a backend worth having refuses
/// in its own way.
#[cfg(gaio_uring)]
fn falls_back_from(errno: i32, advice: &str) {
    set_environment("");
    let watcher = Watcher::<()>::new().unwrap();
    let refused = watcher.backend().declined()[0].error().raw_os_error();
    if refused == Some(libc::EINVAL) {
        return println!("skipped: this kernel has no io_uring to deny");
    }
    falls_back(errno, "", advice);
}
