//! The contract on a simulated kernel, which does what real ones do rarely, often.
//!
//! A seed that fails prints itself; `GAIO_SIM_SEED=123 cargo test -p gaio-sim` replays it, and
//! `GAIO_SIM_SEEDS=100000` tries more of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr
)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use gaio_sim::{Ending, Program};

/// How many seeds each test tries, unless the environment says otherwise.
const SEEDS: u64 = 100;
/// Rounds of one program.
const ROUNDS: usize = 150;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect("a number in the environment"))
}

fn try_seeds(ending: Ending) {
    let seeds = match number("GAIO_SIM_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("GAIO_SIM_SEEDS").unwrap_or(SEEDS),
    };
    let mut results = 0;
    for seed in seeds {
        let run = || Program::new(seed).run(ROUNDS, ending);
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok((_, count)) => results += count,
            Err(panic) => {
                eprintln!("replay with GAIO_SIM_SEED={seed}");
                resume_unwind(panic);
            }
        }
    }
    assert!(results > 0, "programs that ask for nothing prove nothing");
}

#[test]
fn everything_comes_to_its_end() {
    try_seeds(Ending::Settle);
}

#[test]
fn closing_hands_out_the_rest() {
    try_seeds(Ending::Close);
}

#[test]
fn dropping_is_always_possible() {
    try_seeds(Ending::Drop);
}

#[test]
fn a_seed_replays() {
    for seed in 0..20 {
        let run = || Program::new(seed).run(ROUNDS, Ending::Settle);
        assert_eq!(run(), run(), "seed {seed}");
    }
}
