//! Abilities that only newer kernels have and that the backend uses where it can. Each can be
//! switched off through the environment, to test on a new kernel what runs on an old one:
//! `GAIO_URING_WITHOUT=no_sqarray,incremental,no_iowait` is what Linux 6.1 has.

use crate::error::{Errno, Refusal};

/// For tests; names as in [`NAMES`], with commas between.
const ENVIRONMENT: &str = "GAIO_URING_WITHOUT";

/// What is used, or may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Features {
    /// The submission queue has no array of indices (6.6).
    pub(super) no_sqarray: bool,
    /// Completions are worked out when the ring is entered (6.1).
    pub(super) defer_taskrun: bool,
    /// One thread submits (6.0).
    pub(super) single_issuer: bool,
    /// Completions do not interrupt the thread (5.19); only without `defer_taskrun`.
    pub(super) coop_taskrun: bool,
    /// Lent buffers (5.19). The backend cannot do without; to test that it says so.
    pub(super) buffer_rings: bool,
    /// Lent buffers that several receives fill one after the other (6.12).
    pub(super) incremental: bool,
    /// Receives (6.0) and accepts (5.19) that go on.
    pub(super) multishot: bool,
    /// Sleeping in the ring does not count as waiting for a disk (6.15).
    pub(super) no_iowait: bool,
}

type Field = fn(&mut Features) -> &mut bool;

/// Each feature's name in the environment, its words for the user (none if they say nothing), and
/// where it is.
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

    /// What may be used: all, but for what the environment rules out.
    pub(super) fn allowed() -> Result<Self, Refusal> {
        let mut features = Features::ALL;
        let without = std::env::var(ENVIRONMENT).unwrap_or_default();
        for name in without.split(',').filter(|name| !name.is_empty()) {
            let known = NAMES.iter().find(|(known, ..)| *known == name);
            let (.., field) = known.ok_or(Refusal {
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

    /// In words, for the user.
    pub(super) fn words(mut self) -> Vec<&'static str> {
        let words = NAMES.iter().filter_map(|(_, words, field)| {
            let has = *field(&mut self) && !words.is_empty();
            has.then_some(*words)
        });
        words.collect()
    }
}
