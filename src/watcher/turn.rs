//! One turn of the loop: take what other threads sent, start what can be started, let the kernel
//! work, take what is complete. How long it sleeps, and who wakes it.

use std::time::{Duration, Instant};

use gaio_backends::{
    Backend, Doing, Errno, Error, ErrorKind, Result, Task, Until, shrink_overgrown,
};

use super::Watcher;
use crate::engine::Engine;
use crate::results::Results;

/// Rounds after the time is over, while there is still something to do that may give a result: so many
/// in any case, so many at most, and no more than take so long in between.
const ROUNDS_OVER_MIN: u32 = 16;
const ROUNDS_OVER_MAX: u32 = 1000;
const OVER_MAX: Duration = Duration::from_millis(20);
/// Rounds until the backend has got used to being nested, at most; it takes two.
const ROUNDS_TO_SETTLE: u32 = 8;

impl<C> Watcher<C> {
    pub(super) fn wait_until(&mut self, results: &mut Results<C>, limit: Until) -> Result<usize> {
        self.own()?;
        results.clear();
        self.engine.begin_turn();
        let ran = self.run(results.max(), limit);
        if ran.is_ok() {
            results.fill(&mut self.engine.out);
            self.engine.note_handed_out(results.len());
        }
        if self.nested {
            self.lie_down();
        }
        ran.map(|()| results.len())
    }

    /// Turns round until there are results, or the time is over.
    fn run(&mut self, max: usize, limit: Until) -> Result<()> {
        let refused = |errno| Error::os(Doing::Wait, errno);
        let mut over = Over::default();
        let mut spin = Spin::new(self.spin);
        loop {
            let again = self.turn(max, limit, &mut spin).map_err(refused)?;
            if !self.engine.out.is_empty() {
                return Ok(());
            }
            if self.engine.is_over() {
                return Err(Error::new(Doing::Wait, ErrorKind::WatcherClosed));
            }
            let is_over = match limit {
                Until::Now => true,
                Until::Time(at) => self.backend.now() >= at,
                Until::Done => false,
            };
            let quiet = !again && !self.engine.has_dirty();
            if is_over && (quiet || over.has_lasted(&*self.backend)) {
                return Ok(());
            }
        }
    }

    /// One round: take messages, start requests, let the kernel work, take completions. A part of the
    /// loop around it: a call of its own costs each message 15 instructions.
    #[inline(always)]
    fn turn(&mut self, max: usize, limit: Until, spin: &mut Spin) -> Result<bool, Errno> {
        self.prepare(max);
        let until = self.patience(limit, spin);
        let waited = self.backend.wait(until);
        self.inbox.waker.awake();
        let room = self.room(max);
        self.backend.run(Collect(&mut self.engine, room));
        waited?;
        let room = self.room(max);
        // What ran out of time is still to be taken back from the kernel.
        let expired = self.engine.expire(&mut *self.backend, room);
        Ok(self.backend.has_work() || expired)
    }

    /// How many more results this turn can hand out. What would find no room is left where it is: at
    /// the kernel, or among the deadlines.
    fn room(&self, max: usize) -> usize {
        max.saturating_sub(self.engine.out.len())
    }

    /// Some rounds that hand out next to nothing, for what they do besides.
    #[cold]
    pub(super) fn settle(&mut self) -> Result<(), Errno> {
        let mut rounds = 0;
        while rounds < ROUNDS_TO_SETTLE && self.turn(1, Until::Now, &mut Spin::Off)? {
            rounds += 1;
        }
        Ok(())
    }

    fn prepare(&mut self, max: usize) {
        if self.inbox.is_pending() {
            self.absorb();
        }
        self.engine.wake_waiting(&mut *self.backend);
        self.backend.run(Start(&mut self.engine));
        // Half of the room is for what ran out of time, however much that is, and half for what the
        // kernel has completed. They take turns if it is one place.
        let room = self.room(max);
        let odd = (self.engine.counts.turns % 2) as usize;
        self.engine
            .expire(&mut *self.backend, room / 2 + room % 2 * odd);
    }

    /// How long this round may sleep: not if there is something to do.
    fn patience(&mut self, limit: Until, spin: &mut Spin) -> Until {
        let has_work =
            !self.engine.out.is_empty() || self.engine.has_dirty() || self.engine.is_over();
        if has_work || limit == Until::Now || spin.goes_on() {
            return Until::Now;
        }
        self.inbox.waker.sleep();
        if self.was_woken() || self.can_serve() {
            return Until::Now;
        }
        match (limit, self.engine.next_time()) {
            (Until::Time(limit), Some(next)) => Until::Time(limit.min(next)),
            (Until::Done, Some(next)) => Until::Time(next),
            (limit, None) => limit,
            (Until::Now, _) => Until::Now,
        }
    }

    /// Whether something came from another thread that makes no system event while we run.
    pub(super) fn was_woken(&self) -> bool {
        self.inbox.is_pending()
            || self.engine.wants_block(self.backend.pool())
            || self.engine.can_resume(self.backend.pool())
    }

    /// Whoever polls our descriptor is woken from now on, and at once if there is something to do.
    #[cold]
    pub(super) fn lie_down(&mut self) {
        self.backend.arm(self.engine.next_time());
        self.home.sleep();
        self.inbox.waker.sleep();
        let has_work = !self.engine.out.is_empty()
            || self.engine.has_dirty()
            || self.engine.is_over()
            || self.was_woken()
            || self.can_serve()
            || self.backend.has_work();
        if has_work {
            self.inbox.waker.wake();
        }
    }

    /// Why a call from here is refused, if it is. If not, what it asks for begins with the next turn, so
    /// whoever polls for that is woken.
    pub(super) fn admit(&mut self) -> Option<ErrorKind> {
        let refusal = self.home.refusal();
        if refusal.is_none() && self.home.awake() {
            self.inbox.waker.wake();
        }
        refusal
    }

    /// Whether reads wait for a buffer that is there: the kernel has it, for reads without data.
    fn can_serve(&mut self) -> bool {
        self.engine.can_serve(&mut *self.backend)
    }

    /// Takes the messages of other threads.
    #[cold]
    pub(super) fn absorb(&mut self) {
        let mut messages = std::mem::take(&mut self.messages);
        let closed = self.inbox.take(&mut messages);
        for message in messages.drain(..) {
            self.engine.receive(&mut *self.backend, message);
        }
        shrink_overgrown(&mut messages);
        self.messages = messages;
        if closed {
            self.engine.close(&mut *self.backend);
        }
    }

    /// The watcher runs on its thread, to which the first time binds it.
    #[inline]
    fn own(&mut self) -> Result<()> {
        if self.home.is_bound() && self.home.is_trusted() {
            return Ok(());
        }
        self.bind()
    }

    #[cold]
    fn bind(&mut self) -> Result<()> {
        self.check_here(Doing::Wait)?;
        self.home.awake();
        if !self.home.is_bound() {
            let refused = |errno| Error::os(Doing::Wait, errno);
            self.backend.bind().map_err(refused)?;
            self.home.bind();
        }
        Ok(())
    }

    pub(super) fn check_here(&self, doing: Doing) -> Result<()> {
        let refused = |kind| Err(Error::new(doing, kind));
        self.home.refusal().map_or(Ok(()), refused)
    }
}

/// The rounds after the time is over.
#[derive(Default)]
struct Over {
    rounds: u32,
    since: Option<Instant>,
}

impl Over {
    /// Counts one more. Whether they were enough, whatever there is to do.
    #[cold]
    fn has_lasted(&mut self, backend: &dyn Backend) -> bool {
        self.rounds += 1;
        let now = backend.now();
        let since = *self.since.get_or_insert(now);
        self.rounds > ROUNDS_OVER_MAX
            || self.rounds > ROUNDS_OVER_MIN && now.duration_since(since) > OVER_MAX
    }
}

/// Starts what can be started.
struct Start<'a, C>(&'a mut Engine<C>);

impl<C> Task for Start<'_, C> {
    type Output = ();

    fn run<B: Backend>(self, backend: &mut B) {
        self.0.start_dirty(backend);
    }
}

/// Takes completions, at most so many.
struct Collect<'a, C>(&'a mut Engine<C>, usize);

impl<C> Task for Collect<'_, C> {
    type Output = ();

    fn run<B: Backend>(self, backend: &mut B) {
        let Collect(engine, max) = self;
        backend.collect(max, engine);
    }
}

/// Looking again and again, for a while, before sleeping.
enum Spin {
    Off,
    /// For so long, from when there is nothing to do.
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
                // Longer than the clock reaches: until there is a result.
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
