//! What the tests share: every case on every backend, waits that come to an end, connected
//! sockets, and bytes that are easy to check. Processes of their own are in [`process`], calls that
//! must be refused in [`refusal`], systems that refuse in [`denial`], watchers in another loop in
//! [`nested`], what deadlines and timers share in [`timing`].
//!
//! A test file says `mod common;` and wraps its cases in [`backends!`]. Nothing here waits for
//! luck: each wait is for a condition, and gives up with a clear text after [`PATIENCE`].

#![allow(dead_code, unreachable_pub)] // Each test file uses its part.
#![allow(clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[cfg(gaio_uring)]
pub mod denial;
pub mod nested;
pub mod process;
pub mod refusal;
pub mod timing;

use std::io::{ErrorKind as IoErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;
use std::thread;
use std::time::{Duration, Instant};

use gaio::{BackendKind, Builder, Choice, Conn, ErrorKind, OpResult, Results, Watcher};
use socket2::{Domain, Socket, Type};

/// How much slower than usual the machine may be: `.ci/kernels` builds the tests for an emulated one.
const SLOWNESS: u32 = if option_env!("GAIO_SLOW_MACHINE").is_some() {
    20
} else {
    1
};

/// How long a test waits for what must happen. Only a hang takes that long.
pub const PATIENCE: Duration = Duration::from_secs(30 * SLOWNESS as u64);

/// More bytes than the sockets of one connection take.
pub const MUCH: usize = 64 << 20;

/// How long a test looks for what must not happen.
pub const GLANCE: Duration = Duration::from_millis(30);

/// Makes of each `fn name(kind: BackendKind) { .. }` a module with one test per backend:
/// `name::io_uring`, `name::epoll`.
macro_rules! backends {
    ($($(#[$meta:meta])* fn $name:ident($kind:ident: $type:ty) $body:block)*) => {$(
        $(#[$meta])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn case($kind: $type) $body

            #[cfg(gaio_uring)]
            #[test]
            fn io_uring() {
                crate::common::on(gaio::BackendKind::IoUring, case);
            }

            #[cfg(gaio_epoll)]
            #[test]
            fn epoll() {
                crate::common::on(gaio::BackendKind::Epoll, case);
            }

            #[cfg(gaio_kqueue)]
            #[test]
            fn kqueue() {
                crate::common::on(gaio::BackendKind::Kqueue, case);
            }
        }
    )*};
}
pub(crate) use backends;

/// Runs `case` if this machine has the backend, else says why not. The backends named in
/// `GAIO_REQUIRE` (`io_uring,epoll`) must be there.
pub fn on(kind: BackendKind, case: fn(BackendKind)) {
    let Err(error) = builder::<()>(kind).build() else {
        return case(kind);
    };
    let required = std::env::var("GAIO_REQUIRE").unwrap_or_default();
    let required = required.split(',').any(|it| it.trim() == name(kind));
    assert!(!required, "{} is required: {error}", name(kind));
    println!("skipped: {error}");
}

/// What the environment and the tests' names call the backend.
pub fn name(kind: BackendKind) -> &'static str {
    match kind {
        BackendKind::IoUring => "io_uring",
        BackendKind::Epoll => "epoll",
        BackendKind::Kqueue => "kqueue",
        _ => "unknown",
    }
}

/// A builder for this backend and no other.
pub fn builder<C>(kind: BackendKind) -> Builder<C> {
    Watcher::builder().backend(Choice::Only(kind))
}

/// A watcher on this backend.
pub fn watcher<C>(kind: BackendKind) -> Watcher<C> {
    builder(kind).build().expect("a watcher")
}

/// A watcher with one connection, and the peer's end of it.
pub fn connected<C>(kind: BackendKind) -> (Watcher<C>, Conn, TcpStream) {
    let mut watcher = watcher(kind);
    let (conn, peer) = connect_to(&mut watcher);
    (watcher, conn, peer)
}

/// One more connection for the watcher, and the peer's end of it.
pub fn connect_to<C>(watcher: &mut Watcher<C>) -> (Conn, TcpStream) {
    let (ours, peer) = pair();
    (watcher.delegate(ours).expect("delegate"), peer)
}

/// A listener on a free port of the loopback, and its address.
pub fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    // Thousands may connect at once; what does not fit would be tried again a second later.
    socket2::SockRef::from(&listener)
        .listen(4096)
        .expect("listen");
    let address = listener.local_addr().expect("local address");
    (listener, address)
}

/// The two ends of a TCP connection. The second is for the peer: its calls do not hang for ever.
pub fn pair() -> (TcpStream, TcpStream) {
    pair_from(&listener().0)
}

/// As [`pair`], with a listener that is used again.
pub fn pair_from(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let address = listener.local_addr().expect("local address");
    let peer = TcpStream::connect(address).expect("connect");
    let (ours, _) = listener.accept().expect("accept");
    ours.set_nodelay(true).expect("nodelay");
    peer.set_nodelay(true).expect("nodelay");
    peer.set_read_timeout(Some(PATIENCE)).expect("read timeout");
    peer.set_write_timeout(Some(PATIENCE))
        .expect("write timeout");
    (ours, peer)
}

/// The two ends of a terminal: who controls it reads what was written to the other end.
pub fn terminal() -> (OwnedFd, OwnedFd) {
    let (mut control, mut terminal) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: the two numbers are borrowed for the call, which asks for nothing else.
    let made =
        unsafe { libc::openpty(&mut control, &mut terminal, none, none.cast(), none.cast()) };
    assert_eq!(made, 0, "openpty: {}", std::io::Error::last_os_error());
    // SAFETY: the call just made these.
    unsafe {
        (
            OwnedFd::from_raw_fd(control),
            OwnedFd::from_raw_fd(terminal),
        )
    }
}

/// A listener that takes no more connections, and those it took: the next one waits in vain. Some
/// systems take every one, and throw it away: there it does not wait.
pub fn full_backlog() -> (TcpListener, Vec<TcpStream>) {
    let (listener, address) = listener();
    socket2::SockRef::from(&listener).listen(0).expect("listen");
    let mut taken = Vec::new();
    while taken.len() < 256
        && let Ok(stream) = TcpStream::connect_timeout(&address, 10 * GLANCE)
    {
        taken.push(stream);
    }
    (listener, taken)
}

/// An address that refuses connections, and what keeps it so: a connection holds the port, so that
/// nobody else gets it. (Some systems do not answer at all if a socket has the port that neither
/// listens nor is connected.)
pub fn refusing() -> ([TcpStream; 2], SocketAddr) {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    // Not to be shared: the standard library's listeners allow others to bind what is left of them.
    listener.bind(&any.into()).expect("bind");
    listener.listen(1).expect("listen");
    let listener = TcpListener::from(listener);
    let (ours, peer) = pair_from(&listener);
    let address = listener.local_addr().expect("local address");
    ([ours, peer], address)
}

/// Asserts that this watcher moves bytes.
pub fn assert_works(mut watcher: Watcher) {
    let (conn, mut peer) = connect_to(&mut watcher);
    watcher.read((), conn, None).expect("read");
    peer.write_all(b"data").expect("the peer writes");
    assert_eq!(next(&mut watcher).data(), b"data");
}

/// Closes with a reset instead of an orderly end.
pub fn reset(peer: TcpStream) {
    let linger = Some(Duration::ZERO);
    socket2::SockRef::from(&peer)
        .set_linger(linger)
        .expect("linger");
}

/// One turn of a loop: waits until there is a result.
pub fn turn<C>(watcher: &mut Watcher<C>, results: &mut Results<C>) {
    let end = Instant::now() + PATIENCE;
    while watcher
        .wait_io_timeout(results, PATIENCE)
        .expect("wait_io_timeout")
        == 0
    {
        assert!(Instant::now() < end, "no result within {PATIENCE:?}");
    }
}

/// Waits for exactly this many results.
pub fn collect<C>(watcher: &mut Watcher<C>, count: usize) -> Vec<OpResult<C>> {
    let end = Instant::now() + PATIENCE;
    let mut all = Vec::with_capacity(count);
    while all.len() < count {
        let left = end.saturating_duration_since(Instant::now());
        let have = all.len();
        assert!(
            !left.is_zero(),
            "{have} of {count} results within {PATIENCE:?}"
        );
        let mut results = Results::with_capacity(count - have);
        watcher
            .wait_io_timeout(&mut results, left)
            .expect("wait_io_timeout");
        all.extend(results.drain());
    }
    all
}

/// Waits for the next result, which must be the only one so far.
pub fn next<C>(watcher: &mut Watcher<C>) -> OpResult<C> {
    collect(watcher, 1).pop().expect("one result")
}

/// Looks whether a result comes that must not come: nothing was left to do.
pub fn quiet<C>(watcher: &mut Watcher<C>) {
    let mut results = Results::new();
    let count = watcher
        .wait_io_timeout(&mut results, GLANCE)
        .expect("wait_io_timeout");
    assert_eq!(count, 0, "a result that nobody asked for");
}

/// Whether this watcher's ring works during any system call of its thread, as rings before Linux 6.1 do. A
/// receive that it has then takes what comes at once, not at the next turn.
pub fn reads_at_once<C>(watcher: &Watcher<C>) -> bool {
    let info = watcher.backend();
    info.kind() == BackendKind::IoUring && !info.features().contains(&"deferred task work")
}

/// Closes the watcher and gives what it still hands out, up to the error that says it is closed.
pub fn close_and_collect<C>(watcher: &mut Watcher<C>) -> Vec<OpResult<C>> {
    watcher.close();
    let end = Instant::now() + PATIENCE;
    let mut all = Vec::new();
    let mut results = Results::new();
    loop {
        match watcher.wait_io_timeout(&mut results, PATIENCE) {
            Ok(_) => all.extend(results.drain()),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::WatcherClosed);
                return all;
            }
        }
        assert!(Instant::now() < end, "not closed within {PATIENCE:?}");
    }
}

/// The kind of a result's error.
pub fn error_kind<C>(res: &OpResult<C>) -> Option<ErrorKind> {
    res.error.map(|error| error.kind())
}

/// Waits until the condition holds.
pub fn until(what: &str, done: impl FnMut() -> bool) {
    assert!(in_time(done), "in vain for {PATIENCE:?}: until {what}");
}

/// Whether the condition comes to hold.
pub fn in_time(mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + PATIENCE;
    while !done() {
        if Instant::now() > end {
            return false;
        }
        thread::sleep(Duration::from_millis(1));
    }
    true
}

/// Whether `poll(2)` says, within this time, that there is something to read.
pub fn readable(what: &impl AsFd, within: Duration) -> bool {
    polls(what, libc::POLLIN, within)
}

/// Whether `poll(2)` says, within this time, that something can be written.
pub fn writable(what: &impl AsFd, within: Duration) -> bool {
    polls(what, libc::POLLOUT, within)
}

fn polls(what: &impl AsFd, events: libc::c_short, within: Duration) -> bool {
    let mut poll = libc::pollfd {
        fd: what.as_fd().as_raw_fd(),
        events,
        revents: 0,
    };
    let ms = i32::try_from(within.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `poll` is one valid entry, for the time of the call.
    let count = unsafe { libc::poll(&raw mut poll, 1, ms) };
    assert!(count >= 0, "poll: {}", std::io::Error::last_os_error());
    count == 1
}

/// After this many bytes the pattern repeats: a prime, so that a shift never goes unnoticed.
pub const PATTERN_PERIOD: usize = 65_521;

/// A piece of an endless pattern, at most [`PATTERN_PERIOD`] long: what every byte at `at` must be.
pub fn pattern(at: usize, len: usize) -> &'static [u8] {
    static TWICE: OnceLock<Vec<u8>> = OnceLock::new();
    let twice = TWICE.get_or_init(|| {
        let mut random = Random::new(1);
        let once: Vec<u8> = (0..PATTERN_PERIOD).map(|_| random.next() as u8).collect();
        once.repeat(2)
    });
    &twice[at % PATTERN_PERIOD..][..len]
}

/// A piece of the pattern of any length, owned.
pub fn pattern_vec(at: usize, len: usize) -> Vec<u8> {
    let mut all = Vec::with_capacity(len);
    write_pattern(&mut all, at, len);
    all
}

/// Whether `data` is the pattern from byte `at` on.
pub fn is_pattern(at: usize, data: &[u8]) -> bool {
    data.chunks(PATTERN_PERIOD)
        .all(|chunk| chunk == pattern(at, chunk.len())) // A whole period leads back to `at`.
}

/// Sends a piece of the pattern.
pub fn write_pattern(to: &mut impl Write, at: usize, len: usize) {
    for from in (0..len).step_by(PATTERN_PERIOD) {
        let chunk = pattern(at, PATTERN_PERIOD.min(len - from));
        to.write_all(chunk).expect("the peer writes");
    }
}

/// Receives exactly this piece of the pattern.
pub fn read_pattern(from: &mut impl Read, at: usize, len: usize) {
    let mut chunk = vec![0; PATTERN_PERIOD.min(len)];
    let mut done = 0;
    while done < len {
        let want = chunk.len().min(len - done);
        let got = match from.read(&mut chunk[..want]) {
            Err(error) if error.kind() == IoErrorKind::Interrupted => continue,
            other => other.expect("the peer reads"),
        };
        assert_ne!(got, 0, "the end came after {done} of {len} bytes");
        assert!(
            is_pattern(at + done, &chunk[..got]),
            "wrong bytes after {done}"
        );
        done += got;
    }
}

/// Receives exactly these bytes.
pub fn read_exactly(from: &mut impl Read, expected: &[u8]) {
    let mut got = vec![0; expected.len()];
    from.read_exact(&mut got).expect("the peer reads");
    assert_eq!(got, expected);
}

/// Asserts that the other side has closed: no more bytes, but an end or a reset.
pub fn assert_closed(peer: &mut impl Read) {
    match peer.read(&mut [0; 16]) {
        Ok(0) => {}
        Ok(count) => panic!("{count} bytes instead of the end"),
        Err(error) => assert_eq!(error.kind(), IoErrorKind::ConnectionReset, "{error}"),
    }
}

/// Runs this on a thread of its own, to the end.
pub fn elsewhere<T: Send>(task: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(task).join().unwrap())
}

/// Numbers that look random and are the same in every run.
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    pub fn new(seed: u64) -> Self {
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// The next number of the sequence.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 >> 8
    }

    /// The next number, below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}
