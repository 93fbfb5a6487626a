//! Builds a ring. Setup flags are dropped step by step until the kernel takes them, sizes are
//! halved until they fit the memory limit, and real operations prove that the rest will work.
//!
//! A successful `io_uring_setup(2)` proves nothing: a seccomp filter may refuse the other two
//! calls, and some kernels accept flags that they do not support. So a small ring runs the
//! operations that the backend needs.

use std::io::{self, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use io_uring::types::{Fd, SubmitArgs, Timespec};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::buffer_ring::BufferRing;
use super::entries;
use super::features::Features;
use crate::error::Errno;
use crate::error::SetupError;
use crate::swap::Pool;
use crate::wake::Waker;

/// The size of the proof's rings. They are small, because they exist for a moment only.
const PROOF_ENTRIES: u32 = 8;
/// The time limit of the proof. A kernel that does not answer by then is declined.
const PROOF_TIMEOUT: Duration = Duration::from_secs(2);
/// The number of completion entries for each submission entry.
const CQ_PER_SQ: u32 = 4;
/// The least number of completion entries, if there is memory for them: 16 KiB. The kernel sizes by
/// it the table in which it searches for operations to cancel. With 9,000 operations in flight and
/// a submission queue of one, closing a watcher takes 0.1 s with this table, 0.7 s without, and no
/// less with a larger one.
const CQ_MIN: u32 = 1024;

/// A combination of setup flags. The ladder lists them, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rung {
    no_sqarray: bool,
    defer_taskrun: bool,
    single_issuer: bool,
    coop_taskrun: bool,
}

const LADDER: [Rung; 5] = [
    Rung::new([true, true, true, false]),
    Rung::new([false, true, true, false]),
    Rung::new([false, false, true, true]),
    Rung::new([false, false, false, true]),
    Rung::new([false, false, false, false]),
];

/// Finds the features that work here, by using them.
pub(super) fn prove() -> Result<Features, SetupError> {
    let allowed = Features::allowed()?;
    let (ring, rung) = first_rung(allowed)?;
    require_features(&ring)?;
    let (nop, _) = run(&ring, opcode::Nop::new().build())
        .map_err(|error| setup_error("io_uring_enter", &error))?;
    nop.map_err(|errno| setup_error("a no-op", &io::Error::from_raw_os_error(errno)))?;
    let mut features = Features {
        no_sqarray: rung.no_sqarray,
        defer_taskrun: rung.defer_taskrun,
        single_issuer: rung.single_issuer,
        coop_taskrun: rung.coop_taskrun,
        no_iowait: allowed.no_iowait && ring.params().is_feature_no_iowait(),
        ..allowed
    };
    prove_receives(&ring, &mut features)
        .map_err(|error| setup_error("receiving into a buffer ring", &error))?;
    Ok(features)
}

/// The ring for the watcher: disabled until its thread enables it.
pub(super) fn build(features: Features, entries: u32) -> Result<IoUring, SetupError> {
    let rung = Rung {
        no_sqarray: features.no_sqarray,
        defer_taskrun: features.defer_taskrun,
        single_issuer: features.single_issuer,
        coop_taskrun: features.coop_taskrun,
    };
    let mut entries = entries.next_power_of_two().max(PROOF_ENTRIES);
    let mut completions = (entries * CQ_PER_SQ).max(CQ_MIN);
    loop {
        let error = match rung.build(entries, completions, true) {
            Ok(ring) => return Ok(ring),
            Err(error) => error,
        };
        let is_least = completions == PROOF_ENTRIES * CQ_PER_SQ;
        if error.raw_os_error() != Some(libc::ENOMEM) || is_least {
            return Err(setup_error("io_uring_setup", &error));
        }
        // Lockable memory is limited for each user: ask for less.
        if completions == entries * CQ_PER_SQ {
            entries /= 2;
        }
        completions = entries * CQ_PER_SQ;
    }
}

impl Rung {
    const fn new(flags: [bool; 4]) -> Self {
        let [no_sqarray, defer_taskrun, single_issuer, coop_taskrun] = flags;
        Rung {
            no_sqarray,
            defer_taskrun,
            single_issuer,
            coop_taskrun,
        }
    }

    /// The rung without the flags that are not allowed, and without those that the kernel takes
    /// only together with them.
    fn within(self, allowed: Features) -> Self {
        let single_issuer = self.single_issuer && allowed.single_issuer;
        let defer_taskrun = self.defer_taskrun && allowed.defer_taskrun && single_issuer;
        let wants_coop = self.coop_taskrun || self.defer_taskrun && !defer_taskrun;
        Rung {
            no_sqarray: self.no_sqarray && allowed.no_sqarray,
            defer_taskrun,
            single_issuer,
            coop_taskrun: wants_coop && allowed.coop_taskrun,
        }
    }

    fn build(self, entries: u32, completions: u32, disabled: bool) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_clamp()
            .setup_submit_all()
            .setup_cqsize(completions);
        if disabled {
            builder.setup_r_disabled();
        }
        if self.single_issuer {
            builder.setup_single_issuer();
        }
        if self.defer_taskrun {
            builder.setup_defer_taskrun().setup_taskrun_flag();
        }
        if self.coop_taskrun {
            builder.setup_coop_taskrun().setup_taskrun_flag();
        }
        if self.no_sqarray {
            builder.setup_no_sqarray();
        }
        builder.build(entries)
    }
}

fn first_rung(allowed: Features) -> Result<(IoUring, Rung), SetupError> {
    let mut last = io::Error::from_raw_os_error(libc::EINVAL);
    for rung in LADDER.map(|rung| rung.within(allowed)) {
        match rung.build(PROOF_ENTRIES, PROOF_ENTRIES * CQ_PER_SQ, false) {
            Ok(ring) => return Ok((ring, rung)),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = error,
            Err(error) => return Err(setup_error("io_uring_setup", &error)),
        }
    }
    Err(setup_error("io_uring_setup", &last))
}

fn require_features(ring: &IoUring) -> Result<(), SetupError> {
    let params = ring.params();
    let complete = params.is_feature_nodrop()
        && params.is_feature_submit_stable()
        && params.is_feature_ext_arg()
        && params.is_feature_fast_poll()
        && params.is_feature_skip_cqe_on_success();
    if complete {
        Ok(())
    } else {
        let old = io::Error::from_raw_os_error(libc::ENOSYS);
        Err(setup_error("features of io_uring_setup", &old))
    }
}

/// Finds out which receives into a buffer ring work here.
fn prove_receives(ring: &IoUring, features: &mut Features) -> io::Result<()> {
    if !features.buffer_rings {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    if features.incremental && receive(ring, *features).is_ok() {
        return Ok(());
    }
    features.incremental = false;
    receive(ring, *features)
}

/// Receives once, and in a stream, into a buffer ring, and checks the bytes.
fn receive(ring: &IoUring, features: Features) -> io::Result<()> {
    let waker = std::sync::Arc::new(Waker::new()?);
    let pool = Pool::new(4096, 2, waker);
    // Everything that can fail for want of descriptors comes first, because the next attempt
    // registers again.
    let (mut here, there) = UnixStream::pair()?;
    let mut buffers = BufferRing::register(&ring.submitter(), 2, features.incremental)?;
    buffers.refill(&pool);
    let fd = Fd(std::os::fd::AsRawFd::as_raw_fd(&there));
    let once = entries::receive(fd, false);
    let stream = if features.multishot {
        opcode::RecvMulti::new(fd, super::BUFFER_GROUP).build()
    } else {
        once.clone()
    };
    let mut armed = false;
    let mut proof = [(once, b"once"), (stream, b"many")].into_iter();
    let result = proof.try_for_each(|(entry, bytes)| {
        here.write_all(bytes)?;
        armed = true;
        let (result, flags) = run(ring, entry)?;
        armed = cqueue::more(flags);
        let received = result.and_then(|len| {
            let id = cqueue::buffer_select(flags).ok_or(libc::EINVAL)?;
            buffers.take(id, len, flags, None).ok_or(libc::EINVAL)
        });
        match received {
            Ok(lease) if lease[..] == bytes[..] => Ok(()),
            Ok(_) => Err(io::Error::from_raw_os_error(libc::EIO)),
            Err(errno) => Err(io::Error::from_raw_os_error(errno)),
        }
    });
    // A receive that is still armed ends with its socket, before its buffers are taken away. If the
    // shutdown fails, the receive does not end, and the wait for it fails.
    drop(here);
    let _ = there.shutdown(std::net::Shutdown::Both);
    while armed {
        match wait_one(ring) {
            Ok((_, flags)) => armed = cqueue::more(flags),
            Err(error) => {
                // The kernel may still write: leave the buffers to it.
                buffers.leak();
                return Err(error);
            }
        }
    }
    ring.submitter().unregister_buf_ring(super::BUFFER_GROUP)?;
    result
}

type Outcome = (Result<usize, i32>, u32);

fn run(ring: &IoUring, entry: squeue::Entry) -> io::Result<Outcome> {
    // SAFETY: the entries of the proof name no memory; the memory that their buffer ring names
    // outlives them. There is no other `SubmissionQueue` of this ring.
    unsafe { ring.submission_shared().push(&entry) }
        .map_err(|_| io::Error::from_raw_os_error(libc::EBUSY))?;
    wait_one(ring)
}

fn wait_one(ring: &IoUring) -> io::Result<Outcome> {
    let timeout = Timespec::from(PROOF_TIMEOUT);
    let args = SubmitArgs::new().timespec(&timeout);
    // SAFETY: there is no other `CompletionQueue` of this ring.
    let next = || unsafe { ring.completion_shared() }.next();
    let cqe = match next() {
        Some(cqe) => cqe,
        None => {
            ring.submitter().submit_with_args(1, &args)?;
            next().ok_or_else(|| io::Error::from_raw_os_error(libc::ETIME))?
        }
    };
    let result = usize::try_from(cqe.result()).map_err(|_| -cqe.result());
    Ok((result, cqe.flags()))
}

pub(super) fn setup_error(step: &'static str, error: &io::Error) -> SetupError {
    let errno = Errno(error.raw_os_error().unwrap_or(libc::EIO));
    SetupError {
        step,
        errno,
        advice: errno.advice(),
    }
}
