//! Features of newer kernels that the backend uses where it can. Each can be switched off through
//! the environment, so that a new kernel can test the code for an old one:
//! `GAIO_URING_WITHOUT=no_sqarray,incremental,no_iowait` leaves the features of Linux 6.1.

use crate::error::{Errno, SetupError};

/// A variable for tests. It holds names of [`NAMES`], with commas between.
const ENVIRONMENT: &str = "GAIO_URING_WITHOUT";

/// The features in use, or allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Features {
    /// The submission queue has no array of indices (6.6).
    pub(super) no_sqarray: bool,
    /// Completions are processed when the ring is entered (6.1).
    pub(super) defer_taskrun: bool,
    /// One thread submits (6.0).
    pub(super) single_issuer: bool,
    /// Completions do not interrupt the thread (5.19); only without `defer_taskrun`.
    pub(super) coop_taskrun: bool,
    /// Lent buffers (5.19). The backend cannot do without them. The switch tests that it says so.
    pub(super) buffer_rings: bool,
    /// Lent buffers that several receives fill one after the other (6.12).
    pub(super) incremental: bool,
    /// Receives (6.0) and accepts (5.19) that go on after a completion.
    pub(super) multishot: bool,
    /// Sleeping in the ring does not count as waiting for a disk (6.15).
    pub(super) no_iowait: bool,
}

type Field = fn(&mut Features) -> &mut bool;

/// The name of each feature in the environment, its words for the user (none if the feature says
/// nothing to them), and its field.
const NAMES: [(&str, &str, Field); 8] = [
    ("single_issuer", "single issuer", |f| &mut f.single_issuer),
    ("defer_taskrun", "deferred task work", |f| {
        &mut f.defer_taskrun
    }),
    ("coop_taskrun", "cooperative task work", |f| {
        &mut f.coop_taskrun
    }),
    ("no_sqarray", "no index array", |f| &mut f.no_sqarray),
    ("buffer_rings", "", |f| &mut f.buffer_rings),
    ("incremental", "incremental buffers", |f| &mut f.incremental),
    ("multishot", "multishot", |f| &mut f.multishot),
    ("no_iowait", "no iowait", |f| &mut f.no_iowait),
];

impl Features {
    const ALL: Features = Features {
        no_sqarray: true,
        defer_taskrun: true,
        single_issuer: true,
        coop_taskrun: true,
        buffer_rings: true,
        incremental: true,
        multishot: true,
        no_iowait: true,
    };

    /// The allowed features: all except those that the environment rules out.
    pub(super) fn allowed() -> Result<Self, SetupError> {
        let mut features = Features::ALL;
        let without = std::env::var(ENVIRONMENT).unwrap_or_default();
        for name in without.split(',').filter(|name| !name.is_empty()) {
            let known = NAMES.iter().find(|(known, ..)| *known == name);
            let (.., field) = known.ok_or(SetupError {
                step: ENVIRONMENT,
                errno: Errno(libc::EINVAL),
                advice: "it names features, with commas between: single_issuer, defer_taskrun, \
                         coop_taskrun, no_sqarray, buffer_rings, incremental, multishot, \
                         no_iowait",
            })?;
            *field(&mut features) = false;
        }
        Ok(features)
    }

    /// The features in words, for the user.
    pub(super) fn words(mut self) -> Vec<&'static str> {
        let words = NAMES.iter().filter_map(|(_, words, field)| {
            let has = *field(&mut self) && !words.is_empty();
            has.then_some(*words)
        });
        words.collect()
    }
}
