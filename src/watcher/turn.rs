//! The turn behind `wait_io`, in rounds: take messages, start requests, let the kernel work, take
//! completions. Also how long a round sleeps, and what wakes it.

use std::time::{Duration, Instant};

use gaio_backends::{Backend, Errno, ErrorContext, ErrorKind, Result, Until, shrink_overgrown};

use super::Watcher;
use crate::results::Results;

/// Limits of the rounds after the time is over. `wait_io_timeout` with zero must return what is there,
/// but one round can leave work that gives a result at once, for instance a read that tries again. So
/// rounds go on while there is such work: at least the first number of them, at most the second, and in
/// between no longer than the time.
const ROUNDS_OVER_MIN: u32 = 16;
const ROUNDS_OVER_MAX: u32 = 1000;
const OVER_MAX: Duration = Duration::from_millis(20);
/// The most rounds until the backend has adapted to being nested. It takes two.
const ROUNDS_TO_SETTLE: u32 = 8;

impl<C> Watcher<C> {
    /// One turn. If the system refuses to wait, results that are there stay for the next turn.
    pub(super) fn wait_until(&mut self, results: &mut Results<C>, limit: Until) -> Result<usize> {
        self.own()?;
        results.clear();
        self.engine.begin_turn();
        let ran = self.run(results.max(), limit);
        self.woken = false;
        if ran.is_ok() {
            results.fill(&mut self.engine.out);
            self.engine.note_handed_out(results.len());
        }
        if self.nested {
            self.sleep_polled();
        }
        ran.map(|()| results.len())
    }

    /// Runs rounds until there are results, a `Remote` wakes the turn, or the time is over and nothing is
    /// left to do.
    fn run(&mut self, max: usize, limit: Until) -> Result<()> {
        let refused = |errno| ErrorContext::Wait.os_error(errno);
        let mut over = Over::default();
        let mut spin = Spin::new(self.spin);
        loop {
            let again = self.round(max, limit, &mut spin).map_err(refused)?;
            if !self.engine.out.is_empty() {
                return Ok(());
            }
            if self.engine.is_over() {
                return Err(ErrorContext::Wait.error(ErrorKind::WatcherClosed));
            }
            let is_over = match limit {
                Until::Now => true,
                Until::Time(at) => self.engine.backend.now() >= at,
                Until::Done => false,
            };
            let quiet = !again && !self.engine.has_dirty() && !self.inbox.is_pending();
            if self.woken || is_over && (quiet || over.has_lasted(&self.engine.backend)) {
                return Ok(());
            }
        }
    }

    /// One round. Returns whether another one may give results without a sleep. It is part of the loop
    /// around it, because a call of its own costs each message 15 instructions.
    #[inline]
    fn round(&mut self, max: usize, limit: Until, spin: &mut Spin) -> Result<bool, Errno> {
        let mut max = max;
        if self.inbox.is_pending() {
            max = max.saturating_add(self.receive(max));
        }
        if self.engine.has_waiting() {
            self.engine.wake_waiting();
        }
        max = max.saturating_add(self.start());
        if self.engine.has_deadlines() {
            self.expire_before_wait(max);
        }
        let until = self.sleep_limit(limit, spin);
        let waited = self.engine.backend.wait(until);
        self.inbox.waker.awake();
        let room = self.room(max);
        self.engine.collect(room);
        waited?;
        // Requests that ran out of time while they ran were only cancelled. Their completions come in
        // the next round.
        let expired = self.engine.has_deadlines() && self.engine.expire(self.room(max));
        Ok(self.engine.backend.has_work() || expired)
    }

    /// The number of results that this turn can still hand out. Completions and deadlines beyond that
    /// stay where they are, at the kernel and in the queue.
    fn room(&self, max: usize) -> usize {
        max.saturating_sub(self.engine.out.len())
    }

    /// Runs a few rounds for their side effects, with hardly any results.
    #[cold]
    pub(super) fn settle(&mut self) -> Result<(), Errno> {
        let mut rounds = 0;
        while rounds < ROUNDS_TO_SETTLE && self.round(1, Until::Now, &mut Spin::Off)? {
            rounds += 1;
        }
        Ok(())
    }

    /// Takes the messages of other threads. Posted ones are taken only as far as there is room for
    /// their results, so a flood of them does not make the turn long. Returns the number of results, by
    /// which the caller raises the maximum: they take no room from the kernel's completions.
    fn receive(&mut self, max: usize) -> usize {
        let before = self.engine.out.len();
        self.receive_messages(self.room(max));
        self.engine.out.len() - before
    }

    /// Starts the requests that can start. Returns the number of results that came at once, by which
    /// the caller raises the maximum: otherwise a busy connection would keep the others out where the
    /// maximum is small.
    fn start(&mut self) -> usize {
        let before = self.engine.out.len();
        self.engine.start_dirty();
        self.engine.out.len() - before
    }

    /// Ends overdue requests. They come before the wait, so that it can submit their cancellations, but
    /// they get only half of the room: the other half is for the kernel's completions, so neither keeps
    /// the other out. A single place goes to each in every other turn.
    fn expire_before_wait(&mut self, max: usize) {
        let room = self.room(max);
        let odd = (self.engine.counts.turns % 2) as usize;
        self.engine.expire(room / 2 + room % 2 * odd);
    }

    /// The time until which this round may sleep. It does not sleep while there is something to do.
    fn sleep_limit(&mut self, limit: Until, spin: &mut Spin) -> Until {
        let has_work = !self.engine.out.is_empty()
            || self.engine.has_dirty()
            || self.engine.is_over()
            || self.woken;
        if has_work || limit == Until::Now || spin.goes_on() {
            return Until::Now;
        }
        // From here on, senders wake the watcher. Messages that came before are found by this last look.
        self.inbox.waker.sleep();
        if self.was_woken() {
            return Until::Now;
        }
        match (limit, self.engine.next_time()) {
            (Until::Time(limit), Some(next)) => Until::Time(limit.min(next)),
            (Until::Done, Some(next)) => Until::Time(next),
            (limit, None) => limit,
            (Until::Now, _) => Until::Now,
        }
    }

    /// Whether another thread sent something or dropped a lease, or a buffer that a read waits for is
    /// lent to the kernel for reads that have no data yet. While the watcher runs, none of that makes a
    /// system event, so it must look.
    pub(super) fn was_woken(&mut self) -> bool {
        self.inbox.is_pending()
            || self.engine.can_resume()
            || self.engine.reads_wait_for_buffer() && self.engine.buffer_is_there()
    }

    /// Ends the turn of a nested watcher. From now on its descriptor becomes readable when there is
    /// something to do, and at once if there is already.
    #[cold]
    pub(super) fn sleep_polled(&mut self) {
        self.engine.backend.arm(self.engine.next_time());
        self.owner.sleep();
        self.inbox.waker.sleep();
        let has_work = !self.engine.out.is_empty()
            || self.engine.has_dirty()
            || self.engine.is_over()
            || self.woken
            || self.was_woken()
            || self.engine.backend.has_work();
        if has_work {
            self.inbox.waker.wake();
        }
    }

    /// The reason to refuse a call from this thread, if there is one. Otherwise the call needs a turn,
    /// so the loop that polls the descriptor is woken.
    pub(super) fn admit(&mut self) -> Option<ErrorKind> {
        let rejection = self.owner.rejection();
        if rejection.is_none() && self.owner.awake() {
            self.inbox.waker.wake();
        }
        rejection
    }

    /// Takes the requests of other threads, which may have made the connection that a call names.
    pub(super) fn receive_requests(&mut self) {
        self.receive_messages(0);
    }

    /// Takes the requests of other threads, and at most `posts_max` of the messages that they posted.
    #[cold]
    pub(super) fn receive_messages(&mut self, posts_max: usize) {
        let mut messages = std::mem::take(&mut self.messages);
        let engine = &mut self.engine;
        let give = |post| engine.receive_post(post);
        let signals = self.inbox.take(posts_max, &mut messages, give);
        for message in messages.drain(..) {
            self.engine.receive(message);
        }
        shrink_overgrown(&mut messages);
        self.messages = messages;
        self.woken |= signals.woken;
        if signals.closed {
            self.engine.close();
        }
    }

    /// Checks that this is the watcher's thread. The first turn binds it.
    #[inline]
    fn own(&mut self) -> Result<()> {
        if self.owner.is_bound() && self.owner.is_trusted() {
            return Ok(());
        }
        self.bind()
    }

    #[cold]
    fn bind(&mut self) -> Result<()> {
        self.check_here(ErrorContext::Wait)?;
        self.owner.awake();
        if !self.owner.is_bound() {
            let refused = |errno| ErrorContext::Wait.os_error(errno);
            self.engine.backend.bind().map_err(refused)?;
            self.owner.bind();
        }
        Ok(())
    }

    /// Refuses a call from another thread, or in a forked child.
    pub(super) fn check_here(&self, error_context: ErrorContext) -> Result<()> {
        let refused = |kind| Err(error_context.error(kind));
        self.owner.rejection().map_or(Ok(()), refused)
    }
}

/// Counts the rounds after the time is over.
#[derive(Default)]
struct Over {
    rounds: u32,
    since: Option<Instant>,
}

impl Over {
    /// Counts one more. Returns whether the call must end now, even if there is more to do.
    #[cold]
    fn has_lasted(&mut self, backend: &dyn Backend) -> bool {
        self.rounds += 1;
        let now = backend.now();
        let since = *self.since.get_or_insert(now);
        self.rounds > ROUNDS_OVER_MAX
            || self.rounds > ROUNDS_OVER_MIN && now.duration_since(since) > OVER_MAX
    }
}

/// The time for which a turn looks for results again and again before it sleeps.
enum Spin {
    Off,
    /// This long, from the first round that has nothing to do.
    For(Duration),
    Until(Instant),
}

impl Spin {
    fn new(duration: Duration) -> Self {
        if duration.is_zero() {
            Spin::Off
        } else {
            Spin::For(duration)
        }
    }

    #[inline]
    fn goes_on(&mut self) -> bool {
        match *self {
            Spin::Off => false,
            Spin::For(duration) => {
                let end = Instant::now().checked_add(duration);
                // The end is beyond the clock's range, so it spins until there is a result.
                *self = end.map_or(Spin::For(duration), Spin::Until);
                true
            }
            Spin::Until(end) => {
                std::hint::spin_loop();
                let goes_on = Instant::now() < end;
                if !goes_on {
                    *self = Spin::Off;
                }
                goes_on
            }
        }
    }
}
