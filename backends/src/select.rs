//! Which backends this build has, which one this machine gets, and why not the others.
//!
//! The one place that lists the backends: `PREFERENCE`, `build_one`, and [`Selected`].

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::emulated::Emulated;
#[cfg(gaio_epoll)]
use crate::emulated::epoll::Epoll;
#[cfg(gaio_kqueue)]
use crate::emulated::kqueue::Kqueue;
use crate::error::{Doing, Errno, Error, ErrorKind, Refusal, Result};
#[cfg(feature = "sim")]
use crate::sim::{Sim, World};
#[cfg(gaio_uring)]
use crate::uring::Uring;
use crate::{Backend, Options};

/// The environment variable that overrides [`Choice::Auto`].
pub const ENVIRONMENT: &str = "GAIO_BACKEND";

/// From the most wanted to the least.
const PREFERENCE: &[BackendKind] = &[
    BackendKind::IoUring,
    BackendKind::Epoll,
    BackendKind::Kqueue,
];

/// The backends there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendKind {
    /// Linux 6.0 and later: the kernel does the reads and writes.
    IoUring,
    /// Linux: the library does them when the kernel says that they will not block.
    Epoll,
    /// The BSDs and macOS: likewise.
    Kqueue,
    /// Simulated.
    #[cfg(feature = "sim")]
    #[doc(hidden)]
    Sim,
}

/// Which backend to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Choice {
    /// The best one that works here, or what `GAIO_BACKEND` in the environment names
    /// (`io_uring`, `epoll`, `kqueue`).
    #[default]
    Auto,
    /// This one or an error; the environment is not asked.
    Only(BackendKind),
}

/// What was chosen, with which features, and what was declined.
#[derive(Clone, Debug)]
pub struct BackendInfo {
    kind: BackendKind,
    features: Vec<&'static str>,
    declined: Vec<Declined>,
}

/// A backend that was tried, or ruled out, and why.
#[derive(Clone, Debug)]
pub struct Declined {
    kind: BackendKind,
    error: Error,
    step: &'static str,
    advice: &'static str,
}

/// The backend that was chosen. In place: there is one a watcher, and a box would be one more thing to
/// follow in every call.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)]
pub enum Selected {
    /// The native one.
    #[cfg(gaio_uring)]
    Uring(Uring),
    /// The emulated one, over epoll.
    #[cfg(gaio_epoll)]
    Epoll(Emulated<Epoll>),
    /// The emulated one, over kqueue.
    #[cfg(gaio_kqueue)]
    Kqueue(Emulated<Kqueue>),
    /// A kernel in memory.
    #[cfg(feature = "sim")]
    Sim(Sim),
}

/// Builds the backend that `choice` and the environment ask for.
///
/// # Errors
/// `Unsupported` if the build lacks it, or the name in the environment is none; otherwise what
/// the system said to the last one tried.
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
            Err(Refused::NotBuilt) => {}
            Err(Refused::ByMachine(refusal)) => declined.push(Declined {
                kind,
                error: Error::os(Doing::ChooseBackend, refusal.errno),
                step: refusal.step,
                advice: refusal.advice,
            }),
        }
    }
    let unsupported = Error::new(Doing::ChooseBackend, ErrorKind::Unsupported);
    Err(match declined.last() {
        Some(last) => last.error.raw_os_error().map_or(unsupported, |errno| {
            if only.is_some() {
                unsupported.with_errno(Errno(errno))
            } else {
                Error::os(Doing::Build, Errno(errno))
            }
        }),
        None => unsupported,
    })
}

/// A simulated backend in this world.
///
/// # Errors
/// The real system refuses a descriptor for the waker.
#[cfg(feature = "sim")]
pub fn simulate(world: World, options: &Options) -> Result<(Selected, BackendInfo)> {
    let sim = Sim::new(world, options).map_err(|refusal| Error::os(Doing::Build, refusal.errno))?;
    let info = BackendInfo {
        kind: BackendKind::Sim,
        features: Vec::new(),
        declined: Vec::new(),
    };
    Ok((Selected::Sim(sim), info))
}

enum Refused {
    /// This target has no such backend.
    NotBuilt,
    ByMachine(Refusal),
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Refused::ByMachine(refusal)
    }
}

fn build_one(
    kind: BackendKind,
    options: &Options,
) -> Result<(Selected, Vec<&'static str>), Refused> {
    match kind {
        #[cfg(gaio_uring)]
        BackendKind::IoUring => {
            let (uring, features) = Uring::new(options)?;
            Ok((Selected::Uring(uring), features))
        }
        #[cfg(gaio_epoll)]
        BackendKind::Epoll => {
            let emulated = Emulated::<Epoll>::new(options)?;
            Ok((Selected::Epoll(emulated), vec!["edge-triggered"]))
        }
        #[cfg(gaio_kqueue)]
        BackendKind::Kqueue => {
            let emulated = Emulated::<Kqueue>::new(options)?;
            Ok((Selected::Kqueue(emulated), vec!["edge-triggered"]))
        }
        #[allow(unreachable_patterns)] // All are built on some targets.
        _ => Err(Refused::NotBuilt),
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
            .ok_or_else(|| Error::unknown_backend(name)),
    }
}

impl BackendKind {
    /// The name used in texts and in the environment.
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
    /// Which backend it is.
    pub fn kind(&self) -> BackendKind {
        self.kind
    }

    /// What of the kernel's optional features is in use.
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

    /// What the system said.
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

/// Something to do with whichever backend it is, compiled for each of them.
pub trait Task {
    /// What comes of it.
    type Output;

    /// Does it.
    fn run<B: Backend>(self, backend: &mut B) -> Self::Output;
}

/// Does the same with whichever backend it is.
macro_rules! whichever {
    ($self:expr, $backend:ident => $what:expr) => {
        match $self {
            #[cfg(gaio_uring)]
            Selected::Uring($backend) => $what,
            #[cfg(gaio_epoll)]
            Selected::Epoll($backend) => $what,
            #[cfg(gaio_kqueue)]
            Selected::Kqueue($backend) => $what,
            #[cfg(feature = "sim")]
            Selected::Sim($backend) => $what,
        }
    };
}

impl Selected {
    /// Does many things at once with the backend, without asking at each which it is.
    #[inline]
    pub fn run<T: Task>(&mut self, task: T) -> T::Output {
        whichever!(self, backend => task.run(backend))
    }
}

impl Deref for Selected {
    type Target = dyn Backend;

    fn deref(&self) -> &Self::Target {
        whichever!(self, backend => backend)
    }
}

impl DerefMut for Selected {
    fn deref_mut(&mut self) -> &mut Self::Target {
        whichever!(self, backend => backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_name_is_told_the_known_ones() {
        let text = Error::unknown_backend("iouring").to_string();
        for kind in PREFERENCE {
            assert!(text.contains(kind.name()), "{text}");
        }
    }
}
