//! Backend against backend through the same `Watcher`: `cargo bench -p gaio-benches`. A part of a name
//! behind `--` picks the benches that have it in theirs:
//! `cargo bench -p gaio-benches -- "echo once on 100/"`.

#![allow(missing_docs, clippy::unwrap_used, clippy::print_stderr)]

mod calls;
mod connections;
mod echo;

use criterion::{criterion_group, criterion_main};
use gaio::{BackendKind, Choice, Watcher};

/// What is compared.
const KINDS: [BackendKind; 2] = [BackendKind::IoUring, BackendKind::Epoll];

/// A watcher on this backend, if the machine has it.
fn watcher<C>(kind: BackendKind) -> Option<Watcher<C>> {
    match Watcher::builder().backend(Choice::Only(kind)).build() {
        Ok(watcher) => Some(watcher),
        Err(error) => {
            eprintln!("skipped: {kind}: {error}");
            None
        }
    }
}

criterion_group!(
    benches,
    echo::echo,
    calls::remote,
    calls::wake_up,
    calls::deadlines,
    connections::accept,
    connections::free
);
criterion_main!(benches);
