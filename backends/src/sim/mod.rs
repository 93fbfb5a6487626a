//! A deterministic backend for tests: a kernel in memory, with a clock of its own. It often does
//! what real kernels do rarely. Transfers are short, completions are late and (on different
//! connections) in another order, calls are interrupted, buffers are gone for a moment, queues are
//! full, cancellations come too late or half way. A seed decides all of this.
//!
//! Descriptors only name what is connected in memory. The bytes lie in the [`World`], whose other
//! ends the test holds. This file is the kernel's loop, `attempt.rs` is one attempt at an
//! operation, and `world.rs` is the rest of the world.

mod attempt;
mod world;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Instant;

pub use world::{Peer, World};

use crate::error::{Errno, SetupError};
use crate::swap::{OpenBlock, Pool};
use crate::wake::{Notifier, Waker};
use crate::{
    Backend, Completion, Counts, LaneId, OpTable, OpTableView, Options, Request, SocketKind,
    SwapRoom, Until,
};

/// The number of times that the kernel runs within one sleep before nothing is expected to happen
/// any more. It is larger than any delay of a completion.
const STEPS_MAX: usize = 64;
/// The longest delay of an operation, in steps.
const DELAY_MAX: usize = 8;

/// The simulated kernel.
pub struct Sim {
    world: World,
    slots: Vec<Option<Attached>>,
    op_table: OpTable,
    pool: Pool,
    open_block: Option<OpenBlock>,
    /// The running operations, in order, so that a seed replays.
    running: BTreeMap<LaneId, Running>,
    /// Completions that were not handed out yet.
    done: VecDeque<Completion>,
    /// The number of completions that this turn may still hand out.
    left: usize,
    waker: Arc<Waker>,
    counts: Counts,
}

struct Attached {
    socket: OwnedFd,
    end: usize,
}

/// A notifier that does nothing, because nobody really sleeps here.
#[derive(Debug)]
struct Quiet(UnixStream);

impl Notifier for Quiet {
    fn notify(&self) {}

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A running operation.
struct Running {
    request: Request,
    /// The number of steps before it is attempted.
    delay: usize,
    cancelled: bool,
    /// The checksum of the bytes to write. It shows whether they change while the kernel may read
    /// them.
    checksum: u64,
}

impl Sim {
    /// Builds a kernel for this world.
    ///
    /// # Errors
    /// The real system refuses a descriptor.
    pub fn new(world: World, options: &Options) -> Result<Self, SetupError> {
        let refused = |errno| SetupError {
            step: "socketpair",
            errno,
            advice: "raise the limit of open descriptors (ulimit -n)",
        };
        let (quiet, _) = UnixStream::pair().map_err(|error| refused(error.into()))?;
        let waker = Waker::with(Arc::new(Quiet(quiet))).map_err(refused)?;
        let waker = Arc::new(waker);
        Ok(Sim {
            world,
            slots: Vec::new(),
            op_table: OpTable::default(),
            pool: options.pool(&waker),
            open_block: None,
            running: BTreeMap::new(),
            done: VecDeque::new(),
            left: 0,
            waker,
            counts: Counts::default(),
        })
    }

    fn end(&self, slot: u32) -> Option<usize> {
        Some(self.slots.get(slot as usize)?.as_ref()?.end)
    }

    /// The checksum of every sixteenth byte to write, which is enough to notice other bytes.
    fn checksum(&self, at: LaneId) -> u64 {
        let parts = self.op_table.parts(at);
        let bytes = parts.iter().flat_map(|part| part.iter().step_by(16));
        bytes.fold(0, |sum: u64, &byte| {
            sum.wrapping_mul(1_099_511_628_211)
                .wrapping_add(u64::from(byte) + 1)
        })
    }

    /// Runs the kernel once: it attempts every operation, in a random order.
    fn step(&mut self) {
        let mut lanes: Vec<LaneId> = self.running.keys().copied().collect();
        while !lanes.is_empty() {
            let index = self.world.lock().below(lanes.len());
            let at = lanes.swap_remove(index);
            let Some(running) = self.running.get_mut(&at) else {
                continue;
            };
            if running.delay > 0 {
                running.delay -= 1;
                continue;
            }
            let cancelled = running.cancelled;
            // Now and then an operation is quicker than its cancellation.
            if !cancelled || self.world.lock().fault(4) {
                self.attempt(at);
            }
            if cancelled && self.running.contains_key(&at) {
                self.finish(at, Err(Errno(libc::ECANCELED)));
            }
        }
    }

    /// Ends an operation.
    fn finish(&mut self, at: LaneId, result: Result<u32, Errno>) {
        self.complete(Completion::last(at, result));
    }

    /// Queues a completion: behind the earlier completions of the same slot, otherwise anywhere.
    fn complete(&mut self, completion: Completion) {
        let at = completion.at;
        if !completion.more {
            self.op_table.end(at);
            self.running.remove(&at);
        }
        let of_slot = |done: &Completion| done.at.slot() == at.slot();
        let first = self.done.iter().rposition(of_slot);
        let first = first.map_or(0, |last| last + 1);
        let position = first + self.world.lock().below(self.done.len() - first + 1);
        self.done.insert(position, completion);
    }

    /// Lets time pass until something is complete.
    fn sleep(&mut self, until: Until) -> Result<(), Errno> {
        for _ in 0..STEPS_MAX {
            {
                let mut state = self.world.lock();
                let next = state.tick();
                if let Until::Time(at) = until
                    && next >= at
                {
                    state.advance(at);
                    return Ok(());
                }
                state.advance(next);
            }
            self.step();
            if !self.done.is_empty() {
                return Ok(());
            }
        }
        match until {
            Until::Time(at) => {
                self.world.lock().advance(at);
                Ok(())
            }
            // Nothing will ever happen: a test that waited for something would hang.
            _ => Err(Errno(libc::EDEADLK)),
        }
    }
}

impl crate::sealed::Backend for Sim {}

impl Backend for Sim {
    fn attach(
        &mut self,
        slot: u32,
        socket: OwnedFd,
        _kind: SocketKind,
    ) -> Result<(), (Errno, OwnedFd)> {
        let index = slot as usize;
        let len = self.slots.len().max(index + 1);
        self.slots.resize_with(len, || None);
        assert!(self.slots[index].is_none(), "slot {slot} is taken");
        let end = self.world.lock().enter(&socket);
        self.slots[index] = Some(Attached { socket, end });
        Ok(())
    }

    fn detach(&mut self, slot: u32) -> Option<OwnedFd> {
        let busy = self.running.keys().any(|at| at.slot() == slot);
        assert!(!busy, "slot {slot} is detached while something runs on it");
        let pending = self.done.iter();
        let pending = pending
            .map(|done| done.at.slot())
            .any(|other| other == slot);
        assert!(
            !pending,
            "slot {slot} is detached before its last completion"
        );
        let attached = self.slots.get_mut(slot as usize)?.take()?;
        self.world.lock().leave(&attached.socket, attached.end);
        Some(attached.socket)
    }

    fn socket(&self, slot: u32) -> Option<BorrowedFd<'_>> {
        let attached = self.slots.get(slot as usize)?.as_ref()?;
        Some(attached.socket.as_fd())
    }

    fn room(&self) -> usize {
        let mut state = self.world.lock();
        if state.fault(4) { state.below(4) } else { 64 }
    }

    fn op_table(&mut self) -> OpTableView<'_> {
        self.op_table.view()
    }

    fn unwritten(&self, at: LaneId) -> usize {
        self.op_table.unwritten_len(at)
    }

    /// Now and then completes the operation at once, as real backends do that move bytes
    /// themselves.
    fn start(&mut self, at: LaneId, request: Request) -> Option<Completion> {
        assert!(self.end(at.slot()).is_some(), "{at:?} is empty");
        assert!(!self.running.contains_key(&at), "{at:?} runs already");
        let (delay, at_once) = {
            let mut state = self.world.lock();
            let late = state.fault(4);
            let delay = if late { state.below(DELAY_MAX) } else { 0 };
            (delay, !late && state.fault(3))
        };
        let writes = matches!(request, Request::Write | Request::WriteMany);
        let checksum = if writes { self.checksum(at) } else { 0 };
        self.op_table.begin(at);
        let running = Running {
            request,
            delay,
            cancelled: false,
            checksum,
        };
        self.running.insert(at, running);
        if !at_once {
            return None;
        }
        let before = std::mem::take(&mut self.done);
        self.attempt(at);
        let mut first = std::mem::replace(&mut self.done, before);
        debug_assert!(first.len() <= 1, "one attempt, one completion");
        first.pop_front()
    }

    fn cancel(&mut self, at: LaneId, last_try: bool) {
        if last_try && self.running.contains_key(&at) {
            self.attempt_plainly(at);
        }
        if let Some(running) = self.running.get_mut(&at) {
            running.cancelled = true;
            running.delay = self.world.lock().below(DELAY_MAX);
        }
    }

    fn shutdown(&mut self, slot: u32, how: Shutdown) -> Result<(), Errno> {
        let end = self.end(slot).ok_or(Errno(libc::EBADF))?;
        let mut state = self.world.lock();
        let end = &mut state.ends[end];
        end.shut |= how != Shutdown::Read;
        end.ended |= how != Shutdown::Write;
        Ok(())
    }

    fn bind(&mut self) -> Result<(), Errno> {
        Ok(())
    }

    fn wait(&mut self, until: Until) -> Result<(), Errno> {
        self.counts.waits += 1;
        self.left = 0;
        if self.world.lock().fault(16) {
            // A signal.
            return Ok(());
        }
        self.step();
        if self.done.is_empty() && until != Until::Now {
            self.sleep(until)?;
        }
        self.left = if self.world.lock().fault(3) {
            1
        } else {
            usize::MAX
        };
        Ok(())
    }

    fn next(&mut self) -> Option<Completion> {
        self.left = self.left.checked_sub(1)?;
        self.done.pop_front()
    }

    fn has_work(&mut self) -> bool {
        !self.done.is_empty()
    }

    /// Nesting is not simulated: there is no descriptor to poll.
    fn readiness(&mut self) -> Result<OwnedFd, Errno> {
        Err(Errno(libc::EOPNOTSUPP))
    }

    fn arm(&mut self, _at: Option<Instant>) {}

    fn now(&self) -> Instant {
        self.world.lock().now()
    }

    fn waker(&self) -> &Arc<Waker> {
        &self.waker
    }

    fn pool(&self) -> &Pool {
        &self.pool
    }

    fn swap_room(&mut self) -> SwapRoom {
        let here = self.open_block.as_ref().map_or(0, OpenBlock::left);
        SwapRoom::packed(here + self.pool.blocks_available() * self.pool.block_size())
    }

    fn counts(&self) -> &Counts {
        &self.counts
    }
}

impl fmt::Debug for Sim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Sim({} running, {} done)",
            self.running.len(),
            self.done.len()
        )
    }
}
