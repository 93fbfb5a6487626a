//! Processes that a test starts: this test binary again, for one test alone. What is counted per
//! process (descriptors, threads, memory) is counted there, and clients that need descriptors of
//! their own live there. Each ends with the test that started it.

use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::iter;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::panic;
use std::process::{Child, Command, Stdio};

use gaio::BackendKind;

use super::{in_time, name, pattern, read_pattern};

/// The longest that a process of a test may live, in seconds: the bound against a hang.
const LIFE_SECONDS: u32 = 240 * super::SLOWNESS;

/// Set in a process that runs one test alone.
const ALONE: &str = "GAIO_TEST_ALONE";

/// Set in a client process: what it has to do.
const CLIENT: &str = "GAIO_TEST_CLIENT";

/// Runs `body` in a process where no other test runs.
///
/// To be called in a case of `backends!`, which must do nothing else, as
/// `in_child(module_path!(), kind, || { .. })`.
pub fn in_child(module: &str, kind: BackendKind, body: impl FnOnce()) {
    if env::var_os(ALONE).is_some() {
        end_with_parent();
        return body();
    }
    let (_, case) = module.split_once("::").expect("a case has a module");
    let test = format!("{case}::{}", name(kind));
    let output = this_binary(&test)
        .env(ALONE, "1")
        .stdin(Stdio::null())
        .output()
        .expect("a child process");
    let said = String::from_utf8_lossy(&output.stdout);
    let complained = String::from_utf8_lossy(&output.stderr);
    let passed = output.status.success() && said.contains("1 passed");
    assert!(
        passed,
        "{test} alone: {}\n{said}\n{complained}",
        output.status
    );
    print!("{said}");
}

/// A child that this process forked. Only of use where no other test runs: [`in_child`].
pub struct Forked(libc::pid_t);

impl Forked {
    /// Forks a child that does this and ends.
    pub fn start(body: impl FnOnce()) -> Self {
        // SAFETY: the child goes on with this thread alone. It takes no lock that one of the others
        // may have held: they only use what is tested here.
        Forked::start_by(|| unsafe { libc::fork() }, body)
    }

    /// The same by another call than `fork(2)`.
    pub fn start_by(fork: impl FnOnce() -> libc::pid_t, body: impl FnOnce()) -> Self {
        match fork() {
            0 => {
                end_with_parent();
                let passed = panic::catch_unwind(panic::AssertUnwindSafe(body)).is_ok();
                // SAFETY: it ends this process, and nothing else of the test runs here.
                unsafe { libc::_exit(i32::from(!passed)) }
            }
            child => {
                assert!(child > 0, "fork: {}", io::Error::last_os_error());
                Forked(child)
            }
        }
    }

    /// Waits for its end: it must have passed.
    pub fn join(self) {
        let mut status = 0;
        // SAFETY: `status` is valid for the call.
        let mut ended = || unsafe { libc::waitpid(self.0, &mut status, libc::WNOHANG) } == self.0;
        if !in_time(&mut ended) {
            // SAFETY: the child is not waited for yet, so the number is its own.
            unsafe { libc::kill(self.0, libc::SIGKILL) };
            assert!(in_time(ended));
            panic!("the forked child hangs");
        }
        assert_eq!(
            status, 0,
            "status of the forked child: its signal, or 256 if it failed"
        );
    }
}

/// Forks a child that does this, and waits for it.
pub fn in_fork(body: impl FnOnce()) {
    Forked::start(body).join();
}

/// Sets the variable that overrides `Choice::Auto`. Only for a process of its own.
pub fn set_environment(value: &str) {
    set_variable("GAIO_BACKEND", value);
}

/// Rules out features of the kernel's io_uring. Only for a process of its own.
pub fn set_ring_without(features: &str) {
    set_variable("GAIO_URING_WITHOUT", features);
}

fn set_variable(variable: &str, value: &str) {
    // SAFETY: in a process that runs one test alone, no other thread reads the environment.
    unsafe { env::set_var(variable, value) };
}

/// This binary again, to run the one test of that name and nothing else.
fn this_binary(test: &str) -> Command {
    let mut command = Command::new(env::current_exe().expect("the path of this binary"));
    command.args([test, "--exact", "--include-ignored", "--nocapture"]);
    command.arg("--test-threads=1");
    command
}

/// Lets this process end when the one that started it does, or when it takes far too long.
fn end_with_parent() {
    // SAFETY: both calls take plain numbers and touch no memory of ours.
    unsafe {
        libc::alarm(LIFE_SECONDS);
        #[cfg(target_os = "linux")]
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
}

/// A process with the client ends of many connections.
///
/// The test file that uses it has an ignored test `client_process` that calls [`client`].
pub struct Clients(Child);

impl Clients {
    /// Connects `count` times to `address`. Then, `rounds` times: sends `size` bytes on every
    /// connection, and only then expects them back on every connection. Then keeps them open.
    pub fn start(address: SocketAddr, count: usize, rounds: usize, size: usize) -> Self {
        let child = this_binary("client_process")
            .env(CLIENT, format!("{address} {count} {rounds} {size}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn();
        Clients(child.expect("a client process"))
    }

    /// Lets the process close its connections once it is through with its rounds.
    pub fn may_end(&mut self) {
        drop(self.0.stdin.take());
    }

    /// Waits for the end of the process, which must have seen what it expected.
    pub fn join(mut self) {
        self.may_end();
        let status = self.0.wait().expect("the client process");
        assert!(status.success(), "the client process: {status}");
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What a client process does; nothing in any other process.
pub fn client() {
    let Ok(task) = env::var(CLIENT) else { return };
    end_with_parent();
    raise_descriptor_limit();
    let task: Vec<&str> = task.split(' ').collect();
    let [count, rounds, size] = [1, 2, 3].map(|at| task[at].parse::<usize>().expect("a number"));
    let mut streams: Vec<TcpStream> = (0..count)
        .map(|_| TcpStream::connect(task[0]).expect("the client connects"))
        .collect();
    for round in 0..rounds {
        // Each connection and round has its own bytes: those of another are noticed.
        let at = |index: usize| index * 7 + round * 13;
        for (index, stream) in streams.iter_mut().enumerate() {
            let message = pattern(at(index), size);
            stream.write_all(message).expect("the client writes");
        }
        for (index, stream) in streams.iter_mut().enumerate() {
            read_pattern(stream, at(index), size);
        }
    }
    let _ = io::stdin().read(&mut [0]);
}

/// Raises the limit of open descriptors as far as this process may, and returns it.
pub fn raise_descriptor_limit() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid for both calls, which read or write nothing else.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = limit.rlim_max;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
    usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX)
}

/// Lowers this process's limit, and opens all descriptors that are left.
pub fn take_all_descriptors() -> Vec<OwnedFd> {
    limit_descriptors(64);
    iter::from_fn(|| File::open("/dev/null").ok())
        .map(OwnedFd::from)
        .collect()
}

/// From now on this process can have no descriptor from this number on.
pub fn limit_descriptors(end: u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid for both calls.
    unsafe {
        assert_eq!(libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit), 0);
        limit.rlim_cur = end as _;
        assert_eq!(libc::setrlimit(libc::RLIMIT_NOFILE, &limit), 0);
    }
}

/// How many of `wanted` connections this process can have. Says so if they are fewer.
pub fn affordable(wanted: usize) -> usize {
    let spare = 100; // For all that is not a connection.
    let count = wanted.min(raise_descriptor_limit() - spare);
    if count < wanted {
        println!("scaled down by RLIMIT_NOFILE: {count} connections instead of {wanted}");
    }
    count
}

/// How many descriptors this process has open.
pub fn descriptors() -> usize {
    Held::now().descriptors
}

/// What a process holds that can leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    descriptors: usize,
    threads: usize,
}

impl Held {
    fn now() -> Self {
        let count = |path| fs::read_dir(path).map_or(0, Iterator::count);
        Held {
            descriptors: count("/proc/self/fd").max(count("/dev/fd")),
            threads: count("/proc/self/task"),
        }
    }
}

/// Asserts that all descriptors and threads that come up in `body` are gone soon after it.
/// Only of use where no other test runs: [`in_child`].
pub fn no_leak(body: impl FnOnce()) {
    let before = Held::now();
    body();
    let clean = in_time(|| Held::now() == before);
    assert!(clean, "leaked: {:?} now, {before:?} before", Held::now());
}
