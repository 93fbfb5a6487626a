//! The choice of a backend: the backends of this build, the best one that works on this machine,
//! and the reasons against the others.
//!
//! All backends are listed here and nowhere else: in `PREFERENCE`, `build_one`, and [`Selected`].

use std::fmt;
use std::net::Shutdown;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Instant;

use crate::emulated::Emulated;
#[cfg(gaio_epoll)]
use crate::emulated::epoll::Epoll;
#[cfg(gaio_kqueue)]
use crate::emulated::kqueue::Kqueue;
use crate::error::{Errno, Error, ErrorContext, ErrorKind, Result, SetupError};
#[cfg(feature = "sim")]
use crate::sim::{Sim, World};
#[cfg(gaio_uring)]
use crate::uring::Uring;
use crate::{
    Backend, Completion, Counts, LaneId, OpTableView, Options, Pool, Request, SocketKind, SwapRoom,
    Until, Waker,
};

/// The environment variable that overrides [`Choice::Auto`].
pub(crate) const ENVIRONMENT: &str = "GAIO_BACKEND";

/// The backends, best first.
const PREFERENCE: &[BackendKind] = &[
    BackendKind::IoUring,
    BackendKind::Epoll,
    BackendKind::Kqueue,
];

/// The backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendKind {
    /// io_uring, on Linux 6.0 and later: the kernel does the reads and writes.
    IoUring,
    /// epoll, on Linux: the library does the reads and writes, when the kernel says that they will
    /// not block.
    Epoll,
    /// kqueue, on the BSDs and macOS: the library does the reads and writes, as with epoll.
    Kqueue,
    /// The simulated kernel.
    #[cfg(feature = "sim")]
    #[doc(hidden)]
    Sim,
}

/// The choice of a backend.
///
/// ```
/// use gaio::{BackendKind, Choice, Watcher};
///
/// # fn main() -> gaio::Result<()> {
/// let only = Choice::Only(BackendKind::Epoll);
/// match Watcher::<()>::builder().backend(only).build() {
///     Ok(watcher) => assert_eq!(watcher.backend().kind(), BackendKind::Epoll),
///     Err(error) => println!("{error}"), // not on this system
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Choice {
    /// The best one that works on this machine, or the one that `GAIO_BACKEND` in the environment names
    /// (`io_uring`, `epoll`, `kqueue`).
    #[default]
    Auto,
    /// This one, or an error. The environment is ignored.
    Only(BackendKind),
}

/// The backend in use, the kernel's features that it uses, and the better backends that were declined.
/// The text is one line: log it.
///
/// ```
/// use gaio::{BackendKind, Watcher};
///
/// # fn main() -> gaio::Result<()> {
/// let watcher = Watcher::<()>::new()?;
/// let backend = watcher.backend();
/// println!("backend={backend}");
/// if backend.kind() != BackendKind::IoUring {
///     for declined in backend.declined() {
///         eprintln!("{declined}"); // the reason, and what to do
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct BackendInfo {
    kind: BackendKind,
    features: Vec<&'static str>,
    declined: Vec<Declined>,
}

/// A backend that this machine refused, and the reason. The text also says what to do.
#[derive(Clone, Debug)]
pub struct Declined {
    kind: BackendKind,
    error: Error,
    step: &'static str,
    advice: &'static str,
}

/// The chosen backend.
#[derive(Debug)]
pub struct Selected(Kind);

/// The variants are stored in place: a watcher has only one, and a box would add an indirection to
/// every call.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)]
enum Kind {
    /// The native backend.
    #[cfg(gaio_uring)]
    Uring(Uring),
    /// The emulated backend over epoll.
    #[cfg(gaio_epoll)]
    Epoll(Emulated<Epoll>),
    /// The emulated backend over kqueue.
    #[cfg(gaio_kqueue)]
    Kqueue(Emulated<Kqueue>),
    /// A kernel in memory.
    #[cfg(feature = "sim")]
    Sim(Sim),
}

/// Builds the backend that `choice` and the environment ask for.
///
/// # Errors
/// `Unsupported` if the build or the machine lacks the one backend that is asked for, or if the
/// environment names none; otherwise the system's error for the last backend tried.
pub fn select(choice: Choice, options: &Options) -> Result<(Selected, BackendInfo)> {
    let only = match choice {
        Choice::Only(kind) => Some(kind),
        Choice::Auto => from_environment()?,
    };
    let mut declined = Vec::new();
    for &kind in PREFERENCE {
        if only.is_some_and(|only| only != kind) {
            continue;
        }
        match build_one(kind, options) {
            Ok((selected, features)) => {
                let info = BackendInfo {
                    kind,
                    features,
                    declined,
                };
                return Ok((selected, info));
            }
            Err(Unavailable::NotBuilt) => {}
            Err(Unavailable::Refused(error)) => declined.push(Declined {
                kind,
                error: ErrorContext::ChooseBackend.os_error(error.errno),
                step: error.step,
                advice: error.advice,
            }),
        }
    }
    let unsupported = ErrorContext::ChooseBackend.error(ErrorKind::Unsupported);
    Err(match declined.last() {
        Some(last) => last.error.raw_os_error().map_or(unsupported, |errno| {
            if only.is_some() {
                ErrorContext::refused_backend(Errno(errno))
            } else {
                ErrorContext::Build.os_error(Errno(errno))
            }
        }),
        None => unsupported,
    })
}

/// Builds a simulated backend in this world.
///
/// # Errors
/// The real system refuses a descriptor for the waker.
#[cfg(feature = "sim")]
pub fn simulate(world: World, options: &Options) -> Result<(Selected, BackendInfo)> {
    let sim =
        Sim::new(world, options).map_err(|error| ErrorContext::Build.os_error(error.errno))?;
    let info = BackendInfo {
        kind: BackendKind::Sim,
        features: Vec::new(),
        declined: Vec::new(),
    };
    Ok((Selected(Kind::Sim(sim)), info))
}

enum Unavailable {
    /// The build has no such backend.
    NotBuilt,
    /// The machine refuses the backend.
    Refused(SetupError),
}

impl From<SetupError> for Unavailable {
    fn from(error: SetupError) -> Self {
        Unavailable::Refused(error)
    }
}

fn build_one(
    kind: BackendKind,
    options: &Options,
) -> Result<(Selected, Vec<&'static str>), Unavailable> {
    match kind {
        #[cfg(gaio_uring)]
        BackendKind::IoUring => {
            let (uring, features) = Uring::new(options)?;
            Ok((Selected(Kind::Uring(uring)), features))
        }
        #[cfg(gaio_epoll)]
        BackendKind::Epoll => {
            let emulated = Emulated::<Epoll>::new(options)?;
            Ok((Selected(Kind::Epoll(emulated)), vec!["edge-triggered"]))
        }
        #[cfg(gaio_kqueue)]
        BackendKind::Kqueue => {
            let emulated = Emulated::<Kqueue>::new(options)?;
            Ok((Selected(Kind::Kqueue(emulated)), vec!["edge-triggered"]))
        }
        #[allow(unreachable_patterns)] // Some targets build all backends.
        _ => Err(Unavailable::NotBuilt),
    }
}

fn from_environment() -> Result<Option<BackendKind>> {
    let name = std::env::var_os(ENVIRONMENT).unwrap_or_default();
    match name.to_string_lossy().as_ref() {
        "" | "auto" => Ok(None),
        name => PREFERENCE
            .iter()
            .copied()
            .find(|kind| kind.name() == name)
            .map(Some)
            .ok_or_else(|| ErrorContext::unknown_backend(name)),
    }
}

impl BackendKind {
    /// The name that texts and the environment use.
    pub fn name(self) -> &'static str {
        match self {
            BackendKind::IoUring => "io_uring",
            BackendKind::Epoll => "epoll",
            BackendKind::Kqueue => "kqueue",
            #[cfg(feature = "sim")]
            BackendKind::Sim => "sim",
        }
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl BackendInfo {
    /// The kind of the backend in use.
    pub fn kind(&self) -> BackendKind {
        self.kind
    }

    /// The optional features of the kernel that are in use.
    pub fn features(&self) -> &[&'static str] {
        &self.features
    }

    /// The better backends that this machine refused.
    pub fn declined(&self) -> &[Declined] {
        &self.declined
    }
}

impl fmt::Display for BackendInfo {
    /// One line: `io_uring (single issuer, ...)`, or `epoll (edge-triggered); io_uring declined:
    /// ...`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.kind, self.features.join(", "))?;
        for declined in &self.declined {
            write!(f, "; {declined}")?;
        }
        Ok(())
    }
}

impl Declined {
    /// The backend that was declined.
    pub fn kind(&self) -> BackendKind {
        self.kind
    }

    /// The system's error.
    pub fn error(&self) -> Error {
        self.error
    }
}

impl fmt::Display for Declined {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errno = self.error.raw_os_error().unwrap_or(0);
        write!(
            f,
            "{} declined: {}: {}; {}",
            self.kind,
            self.step,
            std::io::Error::from_raw_os_error(errno),
            self.advice
        )
    }
}

/// Evaluates one expression with the backend of any variant.
macro_rules! whichever {
    ($kind:expr, $backend:ident => $what:expr) => {
        match $kind {
            #[cfg(gaio_uring)]
            Kind::Uring($backend) => $what,
            #[cfg(gaio_epoll)]
            Kind::Epoll($backend) => $what,
            #[cfg(gaio_kqueue)]
            Kind::Kqueue($backend) => $what,
            #[cfg(feature = "sim")]
            Kind::Sim($backend) => $what,
        }
    };
}

impl crate::sealed::Backend for Selected {}

/// Forwards each call to the chosen backend.
impl Backend for Selected {
    fn attach(
        &mut self,
        slot: u32,
        socket: OwnedFd,
        kind: SocketKind,
    ) -> Result<(), (Errno, OwnedFd)> {
        whichever!(&mut self.0, backend => backend.attach(slot, socket, kind))
    }

    fn detach(&mut self, slot: u32) -> Option<OwnedFd> {
        whichever!(&mut self.0, backend => backend.detach(slot))
    }

    fn release(&mut self, slot: u32) -> Option<OwnedFd> {
        whichever!(&mut self.0, backend => backend.release(slot))
    }

    fn socket(&self, slot: u32) -> Option<BorrowedFd<'_>> {
        whichever!(&self.0, backend => backend.socket(slot))
    }

    fn room(&self) -> usize {
        whichever!(&self.0, backend => backend.room())
    }

    #[inline]
    fn op_table(&mut self) -> OpTableView<'_> {
        whichever!(&mut self.0, backend => backend.op_table())
    }

    fn unwritten(&self, at: LaneId) -> usize {
        whichever!(&self.0, backend => backend.unwritten(at))
    }

    #[inline]
    fn start(&mut self, at: LaneId, request: Request) -> Option<Completion> {
        whichever!(&mut self.0, backend => backend.start(at, request))
    }

    fn cancel(&mut self, at: LaneId, last_try: bool) {
        whichever!(&mut self.0, backend => backend.cancel(at, last_try))
    }

    fn shutdown(&mut self, slot: u32, how: Shutdown) -> Result<(), Errno> {
        whichever!(&mut self.0, backend => backend.shutdown(slot, how))
    }

    fn bind(&mut self) -> Result<(), Errno> {
        whichever!(&mut self.0, backend => backend.bind())
    }

    fn wait(&mut self, until: Until) -> Result<(), Errno> {
        whichever!(&mut self.0, backend => backend.wait(until))
    }

    #[inline]
    fn next(&mut self) -> Option<Completion> {
        whichever!(&mut self.0, backend => backend.next())
    }

    fn has_work(&mut self) -> bool {
        whichever!(&mut self.0, backend => backend.has_work())
    }

    fn readiness(&mut self) -> Result<OwnedFd, Errno> {
        whichever!(&mut self.0, backend => backend.readiness())
    }

    fn arm(&mut self, at: Option<Instant>) {
        whichever!(&mut self.0, backend => backend.arm(at))
    }

    fn now(&self) -> Instant {
        whichever!(&self.0, backend => backend.now())
    }

    fn waker(&self) -> &Arc<Waker> {
        whichever!(&self.0, backend => backend.waker())
    }

    #[inline]
    fn pool(&self) -> &Pool {
        whichever!(&self.0, backend => backend.pool())
    }

    fn swap_room(&mut self) -> SwapRoom {
        whichever!(&mut self.0, backend => backend.swap_room())
    }

    fn counts(&self) -> &Counts {
        whichever!(&self.0, backend => backend.counts())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_told_the_known_ones() {
        let text = ErrorContext::unknown_backend("iouring").to_string();
        for kind in PREFERENCE {
            assert!(text.contains(kind.name()), "{text}");
        }
    }
}
