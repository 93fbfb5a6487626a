//! A deterministic backend for tests: a kernel in memory, with a clock of its own, that does what
//! real ones do rarely, often. All follows from a seed: transfers are short, completions late and
//! in another order (of different connections), calls interrupted, buffers gone for a moment,
//! queues full, cancellations too late or half way.
//!
//! Descriptors are only names here: what is read and written lies in the [`World`], whose other
//! ends the test holds. This file is the kernel's loop, `attempt.rs` what one attempt at an
//! operation does, `world.rs` the rest of the world.

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

use crate::error::{Errno, Refusal};
use crate::swap::{Filling, Pool};
use crate::wake::{Bell, Waker};
use crate::{
    Backend, Buffer, Completion, Counts, Lane, LoadTable, Loads, Options, Payload, Place, Request,
    Sink, SocketKind, SwapRoom, Until,
};

/// How often the kernel runs within one sleep before nothing is expected to happen any more: more
/// often than any completion can be late.
const STEPS_MAX: usize = 64;
/// The longest delay of an operation, in steps.
const DELAY_MAX: usize = 8;

/// The simulated kernel.
pub struct Sim {
    world: World,
    slots: Vec<Option<Seat>>,
    loads: LoadTable,
    pool: Pool,
    filling: Option<Filling>,
    /// In order, so that a seed replays.
    running: BTreeMap<Place, Running>,
    done: VecDeque<Done>,
    /// What the last completion brought.
    brought: Payload,
    /// The last completion was of a read into a swap buffer.
    of_swap_read: bool,
    /// How many completions this turn may give out.
    left: usize,
    waker: Arc<Waker>,
    counts: Counts,
}

/// A completion that is not handed out yet.
struct Done {
    completion: Completion,
    payload: Payload,
    /// It is of a read into a swap buffer.
    of_swap_read: bool,
}

struct Seat {
    socket: OwnedFd,
    end: usize,
}

/// Rings nothing: nobody really sleeps here.
#[derive(Debug)]
struct Quiet(UnixStream);

impl Bell for Quiet {
    fn ring(&self) {}

    fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// One operation.
struct Running {
    request: Request,
    /// Steps before it is looked at.
    delay: usize,
    cancelled: bool,
    /// Of the bytes to write, so that a change while the kernel may read them is seen.
    checksum: u64,
}

impl Sim {
    /// A kernel for this world.
    ///
    /// # Errors
    /// The real system refuses a descriptor.
    pub fn new(world: World, options: &Options) -> Result<Self, Refusal> {
        let refused = |errno| Refusal {
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
            loads: LoadTable::default(),
            pool: options.pool(&waker),
            filling: None,
            running: BTreeMap::new(),
            done: VecDeque::new(),
            brought: Payload::None,
            of_swap_read: false,
            left: 0,
            waker,
            counts: Counts::default(),
        })
    }

    fn end(&self, slot: u32) -> Option<usize> {
        Some(self.slots.get(slot as usize)?.as_ref()?.end)
    }

    /// Of every sixteenth byte, which is enough to see that they are others.
    fn checksum(&self, at: Place) -> u64 {
        let parts = self.loads.parts(at);
        let bytes = parts.iter().flat_map(|part| part.iter().step_by(16));
        bytes.fold(0, |sum: u64, &byte| {
            sum.wrapping_mul(1_099_511_628_211)
                .wrapping_add(u64::from(byte) + 1)
        })
    }

    /// The kernel looks at every operation, in any order.
    fn step(&mut self) {
        let mut places: Vec<Place> = self.running.keys().copied().collect();
        while !places.is_empty() {
            let index = self.world.lock().below(places.len());
            let at = places.swap_remove(index);
            let Some(running) = self.running.get_mut(&at) else {
                continue;
            };
            if running.delay > 0 {
                running.delay -= 1;
                continue;
            }
            let cancelled = running.cancelled;
            // Now and then it was quicker than its cancellation.
            if !cancelled || self.world.lock().fault(4) {
                self.attempt(at);
            }
            if cancelled && self.running.contains_key(&at) {
                self.finish(at, Err(Errno(libc::ECANCELED)));
            }
        }
    }

    /// Ends an operation.
    fn finish(&mut self, at: Place, result: Result<u32, Errno>) {
        self.complete(Completion::last(at, result), Payload::None);
    }

    /// Lines a completion up: behind what came before of the same slot, else anywhere.
    fn complete(&mut self, completion: Completion, payload: Payload) {
        let at = completion.at;
        let running = self.running.get(&at);
        let of_swap_read = running.is_some_and(|it| it.request == Request::ReadSwap);
        if !completion.more {
            self.loads.end(at);
            self.running.remove(&at);
        }
        let of_slot = |done: &Done| done.completion.at.slot() == at.slot();
        let first = self.done.iter().rposition(of_slot);
        let first = first.map_or(0, |last| last + 1);
        let place = first + self.world.lock().below(self.done.len() - first + 1);
        let done = Done {
            completion,
            payload,
            of_swap_read,
        };
        self.done.insert(place, done);
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
            // Nothing will ever happen: a test that waits for something would hang.
            _ => Err(Errno(libc::EDEADLK)),
        }
    }
}

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
        self.slots[index] = Some(Seat { socket, end });
        Ok(())
    }

    fn detach(&mut self, slot: u32) -> Option<OwnedFd> {
        let busy = self.running.keys().any(|at| at.slot() == slot);
        assert!(!busy, "slot {slot} is detached while something runs on it");
        let pending = self.done.iter();
        let pending = pending
            .map(|done| done.completion.at.slot())
            .any(|other| other == slot);
        assert!(
            !pending,
            "slot {slot} is detached before its last completion"
        );
        let seat = self.slots.get_mut(slot as usize)?.take()?;
        self.world.lock().leave(&seat.socket, seat.end);
        Some(seat.socket)
    }

    fn socket(&self, slot: u32) -> Option<BorrowedFd<'_>> {
        let seat = self.slots.get(slot as usize)?.as_ref()?;
        Some(seat.socket.as_fd())
    }

    fn room(&self) -> usize {
        let mut state = self.world.lock();
        if state.fault(4) { state.below(4) } else { 64 }
    }

    fn loads(&mut self) -> Loads<'_> {
        self.loads.as_loads()
    }

    fn start(&mut self, at: Place, request: Request) {
        assert!(self.end(at.slot()).is_some(), "{at:?} is empty");
        assert!(!self.running.contains_key(&at), "{at:?} runs already");
        let delay = {
            let mut state = self.world.lock();
            if state.fault(4) {
                state.below(DELAY_MAX)
            } else {
                0
            }
        };
        let writes = matches!(request, Request::Write | Request::WriteMany);
        let checksum = if writes { self.checksum(at) } else { 0 };
        self.loads.begin(at);
        let running = Running {
            request,
            delay,
            cancelled: false,
            checksum,
        };
        self.running.insert(at, running);
    }

    /// Now and then it is done at once, as real systems do that write themselves.
    fn start_write(&mut self, at: Place) -> Option<(Buffer, usize)> {
        self.start(at, Request::Write);
        if !self.world.lock().fault(3) {
            return None;
        }
        match self.write(at, self.end(at.slot())?)? {
            Ok((len, _)) => {
                let whole = self.loads.end_whole(at, len);
                if whole.is_some() {
                    self.running.remove(&at);
                } else {
                    self.finish(at, Ok(len));
                }
                whole
            }
            Err(errno) => {
                self.finish(at, Err(errno));
                None
            }
        }
    }

    fn cancel(&mut self, at: Place, last_try: bool) {
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
        let done = self.done.pop_front()?;
        self.brought = done.payload;
        self.of_swap_read = done.of_swap_read;
        Some(done.completion)
    }

    /// What real systems tell apart comes one way or the other.
    fn collect(&mut self, most: usize, sink: &mut impl Sink<Self>) {
        for _ in 0..most {
            let Some(completion) = self.next() else {
                return;
            };
            let Completion { at, more, result } = completion;
            let payload = self.payload();
            let apart = self.world.lock().fault(2);
            match (at.lane(), result, payload) {
                (Lane::Read, Ok(_), Payload::Lease(lease)) if apart && more => {
                    sink.streamed(self, at, lease);
                }
                (Lane::Read, Ok(_), Payload::Lease(lease)) if apart && self.of_swap_read => {
                    sink.received(self, at, lease);
                }
                (Lane::Write, Ok(len @ 1..), Payload::None) if apart => {
                    match self.loads.end_whole(at, len) {
                        Some((buffer, size)) => sink.wrote(self, at, buffer, size),
                        None => sink.completed(self, completion, Payload::None),
                    }
                }
                (_, _, payload) => sink.completed(self, completion, payload),
            }
        }
    }

    fn payload(&mut self) -> Payload {
        self.brought.take()
    }

    fn has_work(&mut self) -> bool {
        !self.done.is_empty()
    }

    /// Nesting is not simulated.
    /// Nothing to poll: nobody sleeps here.
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
        let here = self.filling.as_ref().map_or(0, Filling::left);
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
