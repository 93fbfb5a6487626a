//! Which backend a program gets: by `Choice`, by `GAIO_BACKEND`, by what the machine allows; and
//! what it is told about it. What depends on the whole process runs in one of its own.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::thread;
use std::time::Duration;

use common::process::in_child;
use common::*;
use gaio::{BackendKind, Choice, Deadline, ErrorKind, Interest, Operation, Watcher};

/// Sets the variable that overrides `Choice::Auto`. Only for a process of its own.
fn set_environment(value: &str) {
    // SAFETY: in a process that runs this test alone, no other thread reads the environment.
    unsafe { std::env::set_var("GAIO_BACKEND", value) };
}

/// Asserts that this watcher moves bytes.
fn assert_works(mut watcher: Watcher) {
    let (conn, mut peer) = connect_to(&mut watcher);
    watcher.read((), conn, None).unwrap();
    peer.write_all(b"data").unwrap();
    assert_eq!(next(&mut watcher).data(), b"data");
}

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
        watcher.as_fd();
        quiet(&mut watcher);
        watcher.write(12, peer, "back").unwrap();
        assert_eq!(collect(&mut watcher, 2).len(), 2);
        let endless = watcher.read(13, client, vec![0; 8]).unwrap();
        quiet(&mut watcher);
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
            // SAFETY: as in `set_environment`.
            unsafe { std::env::remove_var("GAIO_BACKEND") };
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
            for value in ["nonsense", "epoll2", "io_uring,epoll"] {
                set_environment(value);
                let error = Watcher::<()>::new().map(drop).unwrap_err();
                assert_eq!(error.kind(), ErrorKind::Unsupported, "{value}");
                assert!(error.to_string().contains("GAIO_BACKEND"), "{error}");
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

    /// A sandbox that kills at the first call of io_uring: whoever chose epoll never makes it.
    #[cfg(target_os = "linux")]
    fn epoll_makes_no_io_uring_call(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            if kind != BackendKind::Epoll {
                return;
            }
            filter_io_uring(libc::SECCOMP_RET_KILL_PROCESS);
            assert_eq!(
                signal_of_io_uring_setup(),
                Some(libc::SIGSYS),
                "the filter works"
            );
            set_environment("epoll");
            assert_works(Watcher::new().unwrap());
            assert_works(watcher(kind));
        });
    }

    /// A sandbox that denies io_uring: the next backend serves, and says why.
    #[cfg(target_os = "linux")]
    fn auto_falls_back(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            // SAFETY: as in `set_environment`.
            unsafe { std::env::remove_var("GAIO_BACKEND") };
            filter_io_uring(libc::SECCOMP_RET_ERRNO | libc::EPERM as u32);
            let watcher = Watcher::new().unwrap();
            let info = watcher.backend();
            assert_eq!(info.kind(), BackendKind::Epoll);
            let declined = &info.declined()[0];
            assert_eq!(declined.kind(), BackendKind::IoUring);
            assert_eq!(declined.error().raw_os_error(), Some(libc::EPERM));
            let line = info.to_string();
            assert!(
                line.lines().count() == 1 && line.contains("io_uring"),
                "{line}"
            );
            assert!(line.contains(&declined.to_string()), "{line}");
            assert_works(watcher);
            let refused = builder::<()>(BackendKind::IoUring).build().map(drop);
            assert!(refused.is_err(), "this one or an error");
        });
    }
}

/// From now on this process's calls of io_uring end so.
#[cfg(target_os = "linux")]
fn filter_io_uring(action: u32) {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    let mut program = [
        step(LOAD, 0, 0), // The number of the call is the first word.
        step(JUMP_IF_EQUAL, 3, libc::SYS_io_uring_setup as u32),
        step(JUMP_IF_EQUAL, 2, libc::SYS_io_uring_enter as u32),
        step(JUMP_IF_EQUAL, 1, libc::SYS_io_uring_register as u32),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
        step(RETURN, 0, action),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the filter and its program live through the calls, which copy them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter),
            0
        );
    }
}

/// The signal of which a copy of this process dies when it sets up a ring.
#[cfg(target_os = "linux")]
fn signal_of_io_uring_setup() -> Option<i32> {
    let mut status = 0;
    // SAFETY: the copy makes two plain system calls and ends; `status` is valid for the call.
    unsafe {
        let copy = libc::fork();
        if copy == 0 {
            libc::syscall(libc::SYS_io_uring_setup, 1, std::ptr::null_mut::<u8>());
            libc::_exit(0);
        }
        assert_eq!(libc::waitpid(copy, &raw mut status, 0), copy);
    }
    libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status))
}
