//! `Tray`: what results are handed out on. Filled behind, emptied in front, and used again and again;
//! a plain vector could not be emptied in order, and a ring buffer has to ask at each step where it
//! ends. A result is big: it is made where it will lie.

use std::fmt;
use std::mem::{ManuallyDrop, MaybeUninit};

use crate::slots::{is_overgrown, shrink_overgrown};

/// A queue that is filled, then emptied, in turn. Room in front comes back when it is empty.
pub struct Tray<T> {
    /// Those from `taken` on are there; those before were moved out.
    items: Vec<MaybeUninit<T>>,
    taken: usize,
}

impl<T> Tray<T> {
    /// An empty one.
    pub const fn new() -> Self {
        Tray {
            items: Vec::new(),
            taken: 0,
        }
    }

    /// An empty one with room for some.
    pub fn with_capacity(count: usize) -> Self {
        Tray {
            items: Vec::with_capacity(count),
            taken: 0,
        }
    }

    /// How many are left.
    #[inline]
    pub fn len(&self) -> usize {
        self.items.len() - self.taken
    }

    /// Whether none are left.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Appends what `make` makes, in its place.
    #[inline(always)]
    pub fn push_with(&mut self, make: impl FnOnce() -> T) {
        // Should growing panic, what `make` holds is leaked, not dropped: then it need not lie where
        // an unwinding stack would find it.
        let make = ManuallyDrop::new(make);
        if self.items.len() == self.items.capacity() {
            self.grow();
        }
        let len = self.items.len();
        let make = ManuallyDrop::into_inner(make);
        // SAFETY: there is room for one more, and it is there once it is made.
        unsafe {
            let place = self.items.as_mut_ptr().add(len);
            place.write(MaybeUninit::new(make()));
            self.items.set_len(len + 1);
        }
    }

    /// Makes room for one more: in front, if at least half is free there, else behind. One that is
    /// never quite empty does not grow for ever, and moves each item once at most, on average.
    #[cold]
    fn grow(&mut self) {
        if self.taken > 0 && self.taken >= self.items.len() / 2 {
            // They were moved out: nothing is dropped here.
            self.items.drain(..std::mem::take(&mut self.taken));
        } else {
            self.items.reserve(1);
        }
    }

    /// Takes the oldest.
    #[inline(always)]
    pub fn pop(&mut self) -> Option<T> {
        let item = self.items.get(self.taken)?;
        self.taken += 1;
        // SAFETY: it was there, and counts as moved out from now on.
        Some(unsafe { item.assume_init_read() })
    }

    /// Those that are left, oldest first.
    pub fn as_slice(&self) -> &[T] {
        // SAFETY: all from `taken` on are there.
        unsafe { self.items[self.taken..].assume_init_ref() }
    }

    /// The same, to be changed.
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: all from `taken` on are there.
        unsafe { self.items[self.taken..].assume_init_mut() }
    }

    /// Whether it has far more room than what is left wants.
    #[inline]
    pub fn is_overgrown(&self) -> bool {
        is_overgrown(self.len(), self.items.capacity())
    }

    /// Gives back the room that a flood has left behind.
    #[inline]
    pub fn shrink_overgrown(&mut self) {
        if self.is_overgrown() {
            // They were moved out: nothing is dropped here.
            self.items.drain(..std::mem::take(&mut self.taken));
            shrink_overgrown(&mut self.items);
        }
    }

    /// Drops what is left, and has all its room back.
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
        // One by one: a panic in a drop loses no more than that one.
        while self.pop().is_some() {}
    }
}

impl<T> Default for Tray<T> {
    fn default() -> Self {
        Tray::new()
    }
}

impl<T> Drop for Tray<T> {
    fn drop(&mut self) {
        self.drop_rest();
    }
}

impl<T: fmt::Debug> fmt::Debug for Tray<T> {
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
        let mut tray = Tray::with_capacity(2);
        for round in 0..3 {
            for _ in 0..10 {
                tray.push_with(|| Rc::clone(&one));
            }
            for _ in 0..=round {
                assert!(tray.pop().is_some());
            }
            assert_eq!(tray.len(), 9 - round);
            assert_eq!(Rc::strong_count(&one), 10 - round);
            assert_eq!(tray.as_slice().len(), tray.len());
            if round < 2 {
                tray.clear();
                assert_eq!(Rc::strong_count(&one), 1);
                assert!(tray.pop().is_none());
            }
        }
        drop(tray);
        assert_eq!(Rc::strong_count(&one), 1);
    }

    #[test]
    fn does_not_grow_if_never_empty() {
        let mut tray = Tray::new();
        tray.push_with(|| Rc::new(0));
        for number in 1..10_000 {
            tray.push_with(|| Rc::new(number));
            assert_eq!(tray.pop().as_deref(), Some(&(number - 1)));
        }
        assert_eq!(tray.as_slice(), [Rc::new(9_999)]);
        let room = tray.items.capacity();
        assert!(room < 100, "room for {room}, to hold two");
    }

    #[test]
    fn shrinks_after_a_flood() {
        let mut tray = Tray::new();
        (0..100_000).for_each(|number| tray.push_with(|| Rc::new(number)));
        for number in 0..99_990 {
            assert_eq!(tray.pop().as_deref(), Some(&number));
            tray.shrink_overgrown();
            assert!(tray.items.capacity() < 2_000.max(5 * tray.len()));
        }
        let left: Vec<_> = tray.as_slice().iter().map(|number| **number).collect();
        assert_eq!(left, Vec::from_iter(99_990..100_000));
    }

    #[test]
    fn of_nothing() {
        let mut tray = Tray::new();
        (0..10).for_each(|_| tray.push_with(|| ()));
        assert_eq!(tray.pop(), Some(()));
        assert_eq!(tray.as_slice().len(), 9);
    }

    #[test]
    fn in_order() {
        let mut tray = Tray::new();
        (0..5).for_each(|number| tray.push_with(|| number));
        assert_eq!(tray.pop(), Some(0));
        tray.push_with(|| 5);
        assert_eq!(tray.as_slice(), [1, 2, 3, 4, 5]);
        tray.as_mut_slice()[0] = 7;
        assert_eq!(tray.pop(), Some(7));
    }
}
