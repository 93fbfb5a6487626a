//! Which backend a program gets: by `Choice`, by `GAIO_BACKEND`, by what the machine allows; and
//! what it is told about it. What depends on the whole process runs in one of its own. Machines that
//! refuse are in `denied.rs`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::net::Shutdown;
use std::thread;
use std::time::Duration;

#[cfg(gaio_uring)]
use common::process::set_ring_without;
use common::process::{in_child, set_environment};
use common::*;
use gaio::{BackendKind, Deadline, ErrorKind, Interest, Operation, Watcher};

backends! {
    fn only(kind: BackendKind) {
        let watcher = watcher(kind);
        assert_eq!(watcher.backend().kind(), kind);
        assert_works(watcher);
    }

    /// Every kind of request, through a ring that may do nothing else.
    fn restricted(kind: BackendKind) {
        let mut watcher = builder(kind).restricted(true).build().unwrap();
        let says_so = watcher.backend().features().contains(&"restricted");
        assert_eq!(says_so, kind == BackendKind::IoUring);
        let (server, addr) = listener();
        let server = watcher.listen(server).unwrap();
        watcher.accept(1, server).unwrap();
        let client = watcher.connect(2, addr, Deadline::NEVER).unwrap();
        watcher.ready(3, client, Interest::Writable).unwrap();
        watcher.write(4, client, "first ").unwrap();
        watcher.write(5, client, "second ").unwrap();
        watcher.shutdown(6, client, Shutdown::Write).unwrap();
        watcher.read(7, client, vec![0; 8]).unwrap();
        let accepted = collect(&mut watcher, 6);
        assert!(accepted.iter().all(|res| res.error.is_none()), "{accepted:?}");
        let peer = accepted.iter().find_map(|res| res.accepted()).unwrap();
        watcher.read(8, peer, None).unwrap();
        assert_eq!(next(&mut watcher).data(), b"first second ");
        watcher.read_stream(9, peer).unwrap();
        assert!(next(&mut watcher).is_eof());
        // Woken by a thread, by a timer, by another loop's poll.
        let remote = watcher.remote();
        let thread = thread::spawn(move || remote.post(10).unwrap());
        assert_eq!(next(&mut watcher).operation, Operation::Post);
        thread.join().unwrap();
        watcher.timer(11, Duration::from_millis(1)).unwrap();
        assert_eq!(next(&mut watcher).operation, Operation::Timer);
        let fd = watcher.poll_fd().unwrap();
        quiet(&mut watcher);
        watcher.write(12, peer, "back").unwrap();
        assert_eq!(collect(&mut watcher, 2).len(), 2);
        let endless = watcher.read(13, client, vec![0; 8]).unwrap();
        quiet(&mut watcher);
        assert!(!readable(&fd, Duration::ZERO), "nothing to say, and yet readable");
        watcher.cancel(endless);
        assert_eq!(error_kind(&next(&mut watcher)), Some(ErrorKind::Cancelled));
    }

    fn only_ignores_the_environment(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            for value in ["epoll", "io_uring", "kqueue", "nonsense"] {
                set_environment(value);
                assert_eq!(watcher::<()>(kind).backend().kind(), kind, "{value}");
            }
        });
    }

    fn environment_overrides_auto(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            set_environment(name(kind));
            let watcher = Watcher::<()>::new().unwrap();
            assert_eq!(watcher.backend().kind(), kind);
            assert!(
                watcher.backend().declined().is_empty(),
                "nothing else was tried"
            );
            assert_works(watcher);
        });
    }

    /// The first of what this machine has is the best one.
    fn auto_takes_the_best(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            set_environment("");
            let info = Watcher::<()>::new().unwrap().backend().clone();
            let native = builder::<()>(BackendKind::IoUring).build().is_ok();
            assert_eq!(info.kind() == BackendKind::IoUring, native);
            let declined = info
                .declined()
                .iter()
                .any(|it| it.kind() == BackendKind::IoUring);
            assert_eq!(declined, !native && cfg!(target_os = "linux"));
        });
    }

    fn bad_environment(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let mut earlier = Vec::new();
            for value in ["nonsense", "iouring", "epoll2", "io_uring,epoll", " epoll"] {
                set_environment(value);
                let error = Watcher::<()>::new().map(drop).unwrap_err();
                assert_eq!((error.kind(), error.raw_os_error()), (ErrorKind::Unsupported, None));
                earlier.push((error, value));
            }
            // Each quotes the value that was there, whatever came later.
            for (error, value) in earlier {
                let text = error.to_string();
                for part in ["GAIO_BACKEND", &format!("{value:?}"), "io_uring", "epoll", "kqueue"] {
                    assert!(text.contains(part), "{part} is not in: {text}");
                }
            }
        });
    }

    /// What the build does not have cannot be asked for.
    #[cfg(not(all(gaio_uring, gaio_kqueue)))]
    fn absent_backend(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let absent = if cfg!(gaio_uring) { BackendKind::Kqueue } else { BackendKind::IoUring };
            let error = builder::<()>(absent).build().map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            set_environment(name(absent));
            let error = Watcher::<()>::new().map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("GAIO_BACKEND"), "{error}");
        });
    }

    fn info_is_one_line(kind: BackendKind) {
        let watcher = watcher::<()>(kind);
        let line = watcher.backend().to_string();
        assert!(
            line.starts_with(name(kind)) && line.lines().count() == 1,
            "{line}"
        );
        let features = watcher.backend().features();
        assert!(
            features.iter().all(|it| line.contains(it)),
            "{line}: {features:?}"
        );
    }
}

#[cfg(gaio_uring)]
backends! {
    /// What newer kernels add can be ruled out, each by itself: only what builds on it goes, too.
    fn features_peel_off(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            if kind != BackendKind::IoUring {
                return;
            }
            set_ring_without("");
            let all = watcher::<()>(kind).backend().features().to_vec();
            for (name, words) in [
                ("no_sqarray", &["no index array"][..]),
                ("defer_taskrun", &["deferred task work"]),
                ("single_issuer", &["single issuer", "deferred task work"]),
                ("incremental", &["incremental buffers"]),
                ("multishot", &["multishot"]),
            ] {
                set_ring_without(name);
                let watcher = watcher(kind);
                let left = watcher.backend().features();
                for it in &all {
                    assert_eq!(left.contains(it), !words.contains(it), "{it} without {name}");
                }
                assert_works(watcher);
            }
        });
    }

    /// What it cannot do without.
    fn no_buffer_rings(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            set_environment("");
            set_ring_without("buffer_rings");
            let watcher = Watcher::new().unwrap();
            let line = watcher.backend().to_string();
            assert!(line.contains("io_uring declined: "), "{line}");
            assert!(line.contains("Linux 6.0"), "{line}");
            assert_works(watcher);
            let error = builder::<()>(BackendKind::IoUring).build().map(drop).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Unsupported);
            assert!(error.to_string().contains("Linux 6.0"), "{error}");
        });
    }

    /// A mistyped feature is not taken for a test that passed without it.
    fn unknown_feature(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            set_environment("");
            set_ring_without("incremental,multi_shot");
            let info = Watcher::<()>::new().unwrap().backend().clone();
            let line = info.to_string();
            assert_ne!(info.kind(), BackendKind::IoUring);
            assert!(line.contains("GAIO_URING_WITHOUT"), "{line}");
            assert!(line.contains("multishot"), "{line}");
        });
    }
}
