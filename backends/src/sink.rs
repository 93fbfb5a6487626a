//! Where a backend puts completions.

use crate::Completion;

/// Receives completions during [`Backend::wait`](crate::Backend::wait).
pub trait Sink {
    /// Takes one completion.
    fn complete(&mut self, completion: Completion);

    /// Whether to go on; a backend keeps further completions for the next `wait`.
    fn wants_more(&self) -> bool;
}

/// A sink that knows whether it got anything.
pub(crate) struct Counting<'a, S> {
    sink: &'a mut S,
    pub(crate) count: usize,
}

impl<'a, S> Counting<'a, S> {
    pub(crate) fn new(sink: &'a mut S) -> Self {
        Counting { sink, count: 0 }
    }
}

impl<S: Sink> Sink for Counting<'_, S> {
    #[inline]
    fn complete(&mut self, completion: Completion) {
        self.count += 1;
        self.sink.complete(completion);
    }

    #[inline]
    fn wants_more(&self) -> bool {
        self.sink.wants_more()
    }
}
