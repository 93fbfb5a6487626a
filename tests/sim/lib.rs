//! Random programs: a watcher on a simulated kernel, a seed that decides what is asked and what the
//! kernel and the peers do, and a model that knows what the contract allows as a result.
//!
//! `program` makes the requests, `model.rs` checks the results.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod model;
mod program;

pub use program::{Ending, Program};

/// The byte at a place of a stream; different streams differ.
pub(crate) fn byte(stream: usize, at: usize) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 8) ^ stream.wrapping_mul(7)) as u8
}

pub(crate) fn bytes(stream: usize, from: usize, len: usize) -> Vec<u8> {
    (from..from + len).map(|at| byte(stream, at)).collect()
}

/// What decides for the program; the kernel has a generator of its own.
#[derive(Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) ^ self.0.rotate_left(17) >> 40
    }

    /// A number under `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}
