//! `ResultQueue`: the queue in which results reach the program.
//!
//! It is filled at the back, emptied at the front, and reused. A plain vector cannot be emptied in
//! order, and a ring buffer checks at each step where it wraps. A result is large, so it is
//! constructed in its final place.

use std::fmt;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ptr;

use crate::slots::{is_overgrown, shrink_overgrown};

/// A queue that is filled and emptied in turn. The room in front is free again when it is empty.
pub struct ResultQueue<T> {
    /// The items from `taken` on are initialised. The items before were moved out.
    items: Vec<MaybeUninit<T>>,
    taken: usize,
}

impl<T> ResultQueue<T> {
    /// An empty queue.
    pub const fn new() -> Self {
        ResultQueue {
            items: Vec::new(),
            taken: 0,
        }
    }

    /// An empty queue with room for so many items.
    pub fn with_capacity(count: usize) -> Self {
        ResultQueue {
            items: Vec::with_capacity(count),
            taken: 0,
        }
    }

    /// The number of items left.
    #[inline]
    pub fn len(&self) -> usize {
        self.items.len() - self.taken
    }

    /// Whether no items are left.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends the item that `make` returns, constructed in place.
    #[inline]
    pub fn push_with(&mut self, make: impl FnOnce() -> T) {
        // If growing panics, the captures of `make` are leaked, not dropped. So they need not lie
        // where unwinding would find them.
        let make = ManuallyDrop::new(make);
        if self.items.len() == self.items.capacity() {
            self.grow();
        }
        let len = self.items.len();
        let make = ManuallyDrop::into_inner(make);
        // SAFETY: there is room for one more item, and the length counts it only once it is
        // written.
        unsafe {
            let place = self.items.as_mut_ptr().add(len);
            place.write(MaybeUninit::new(make()));
            self.items.set_len(len + 1);
        }
    }

    /// Makes room for one more item: in front if at least half is free there, else at the back. So
    /// a queue that is never quite empty does not grow for ever, and moves each item at most once,
    /// on average.
    #[cold]
    fn grow(&mut self) {
        if self.taken > 0 && self.taken >= self.items.len() / 2 {
            // The items before `taken` were moved out: nothing is dropped here.
            self.items.drain(..std::mem::take(&mut self.taken));
        } else {
            self.items.reserve(1);
        }
    }

    /// Takes the oldest item.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let item = self.items.get(self.taken)?;
        self.taken += 1;
        // SAFETY: the item was initialised, and counts as moved out from now on.
        Some(unsafe { item.assume_init_read() })
    }

    /// The items left, oldest first.
    pub fn as_slice(&self) -> &[T] {
        let left = &self.items[self.taken..];
        // SAFETY: all items from `taken` on are initialised, and `MaybeUninit<T>` has the layout of
        // `T`.
        unsafe { &*(ptr::from_ref(left) as *const [T]) }
    }

    /// The items left, oldest first, mutable.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        let left = &mut self.items[self.taken..];
        // SAFETY: as above.
        unsafe { &mut *(ptr::from_mut(left) as *mut [T]) }
    }

    /// Whether the queue has far more room than its items need.
    #[inline]
    pub fn is_overgrown(&self) -> bool {
        is_overgrown(self.len(), self.items.capacity())
    }

    /// Gives back the room that a flood of items left behind.
    #[inline]
    pub fn shrink_overgrown(&mut self) {
        if self.is_overgrown() {
            // The items before `taken` were moved out: nothing is dropped here.
            self.items.drain(..std::mem::take(&mut self.taken));
            shrink_overgrown(&mut self.items);
        }
    }

    /// Drops the items left. All room is free afterwards.
    #[inline]
    pub fn clear(&mut self) {
        if !self.is_empty() {
            self.drop_rest();
        }
        self.items.clear();
        self.taken = 0;
    }

    #[cold]
    fn drop_rest(&mut self) {
        // One by one, so that a panic in the drop of one item loses no other.
        while self.pop().is_some() {}
    }
}

impl<T> Default for ResultQueue<T> {
    fn default() -> Self {
        ResultQueue::new()
    }
}

impl<T> Drop for ResultQueue<T> {
    fn drop(&mut self) {
        self.drop_rest();
    }
}

impl<T: fmt::Debug> fmt::Debug for ResultQueue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.as_slice()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn each_is_dropped_once() {
        let one = Rc::new(());
        let mut result_queue = ResultQueue::with_capacity(2);
        for round in 0..3 {
            for _ in 0..10 {
                result_queue.push_with(|| Rc::clone(&one));
            }
            for _ in 0..=round {
                assert!(result_queue.pop().is_some());
            }
            assert_eq!(result_queue.len(), 9 - round);
            assert_eq!(Rc::strong_count(&one), 10 - round);
            assert_eq!(result_queue.as_slice().len(), result_queue.len());
            if round < 2 {
                result_queue.clear();
                assert_eq!(Rc::strong_count(&one), 1);
                assert!(result_queue.pop().is_none());
            }
        }
        drop(result_queue);
        assert_eq!(Rc::strong_count(&one), 1);
    }

    #[test]
    fn does_not_grow_if_never_empty() {
        let mut result_queue = ResultQueue::new();
        result_queue.push_with(|| Rc::new(0));
        for number in 1..10_000 {
            result_queue.push_with(|| Rc::new(number));
            assert_eq!(result_queue.pop().as_deref(), Some(&(number - 1)));
        }
        assert_eq!(result_queue.as_slice(), [Rc::new(9_999)]);
        let room = result_queue.items.capacity();
        assert!(room < 100, "room for {room}, to hold two");
    }

    #[test]
    fn shrinks_after_a_flood() {
        let mut result_queue = ResultQueue::new();
        (0..100_000).for_each(|number| result_queue.push_with(|| Rc::new(number)));
        for number in 0..99_990 {
            assert_eq!(result_queue.pop().as_deref(), Some(&number));
            result_queue.shrink_overgrown();
            assert!(result_queue.items.capacity() < 2_000.max(5 * result_queue.len()));
        }
        let left: Vec<_> = result_queue
            .as_slice()
            .iter()
            .map(|number| **number)
            .collect();
        assert_eq!(left, Vec::from_iter(99_990..100_000));
    }

    #[test]
    fn of_nothing() {
        let mut result_queue = ResultQueue::new();
        (0..10).for_each(|_| result_queue.push_with(|| ()));
        assert_eq!(result_queue.pop(), Some(()));
        assert_eq!(result_queue.as_slice().len(), 9);
    }

    #[test]
    fn in_order() {
        let mut result_queue = ResultQueue::new();
        (0..5).for_each(|number| result_queue.push_with(|| number));
        assert_eq!(result_queue.pop(), Some(0));
        result_queue.push_with(|| 5);
        assert_eq!(result_queue.as_slice(), [1, 2, 3, 4, 5]);
        result_queue.as_mut_slice()[0] = 7;
        assert_eq!(result_queue.pop(), Some(7));
    }
}
