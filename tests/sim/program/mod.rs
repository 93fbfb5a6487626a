//! A program that a seed decides: how it runs, what it does with the results, and how it ends. What it
//! asks of the watcher is in `requests`.

mod requests;

use std::time::{Duration, Instant};

use gaio::{Buffer, Conn, ErrorKind, OpResult, Operation, Remote, Results, Watcher};
use gaio_backends::sim::World;
use gaio_backends::simulate;

use crate::Random;
use crate::model::Model;

/// Connections at a time.
const LINES_MAX: usize = 12;
/// Turns in which everything must end once the kernel is calm and the peers are done.
const TURNS_MAX: usize = 2_000;

/// How a program ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The peers end, and everything comes to its end.
    Settle,
    /// The watcher is closed and hands out the rest.
    Close,
    /// The watcher is dropped as it is.
    Drop,
}

#[expect(missing_debug_implementations, reason = "it runs, or it panics")]
pub struct Program {
    world: World,
    start: Instant,
    random: Random,
    watcher: Watcher<u64>,
    remote: Remote<u64>,
    results: Results<u64>,
    model: Model,
    listener: Option<(Conn, usize)>,
    /// Connections that it accepted and that are not served yet, and the most that there may be.
    unserved: Vec<Conn>,
    accept_limit: usize,
    /// Leases that are kept for a while.
    kept: Vec<Buffer>,
    next: u64,
}

impl Program {
    pub fn new(seed: u64) -> Self {
        let mut random = Random(seed.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1);
        let world = World::new(seed);
        let size = random.pick(&[1 << 10, 4 << 10, 64 << 10]);
        let write_limit = random.pick(&[1, 10_000, usize::MAX]);
        let watcher = Watcher::builder()
            .write_limit(write_limit)
            .swap_buffer_size(size)
            .swap_buffers(random.pick(&[1, 2, 8, 64]))
            .stream_window(random.pick(&[1, 3_000, 100_000]))
            .build_with(|options| simulate(world.clone(), options))
            .unwrap();
        let max = random.pick(&[1, 3, 256]);
        let model = Model {
            write_limit,
            ..Model::default()
        };
        Program {
            start: world.now(),
            remote: watcher.remote(),
            watcher,
            world,
            random,
            results: Results::with_capacity(max),
            model,
            listener: None,
            unserved: Vec::new(),
            accept_limit: usize::MAX,
            kept: Vec::new(),
            next: 1,
        }
    }

    /// Runs it, checks all that comes, and gives a hash of it and how much it was.
    pub fn run(mut self, rounds: usize, ending: Ending) -> (u64, usize) {
        for _ in 0..rounds {
            for _ in 0..self.random.below(6) {
                self.act();
            }
            let micros = self.random.pick(&[0, 1, 50, 10_000]);
            self.turn(Duration::from_micros(micros));
        }
        match ending {
            Ending::Settle => self.settle(),
            Ending::Close => self.close(),
            Ending::Drop => {
                let kept: Vec<Vec<u8>> = self.kept.iter().map(|lease| lease.to_vec()).collect();
                drop(self.watcher);
                for (lease, before) in self.kept.iter().zip(&kept) {
                    assert_eq!(&lease[..], &before[..], "a lease changed with its watcher");
                }
            }
        }
        (self.model.trace, self.model.results)
    }

    fn turn(&mut self, timeout: Duration) {
        let Ok(count) = self.watcher.wait_io_timeout(&mut self.results, timeout) else {
            panic!("the watcher is not closed");
        };
        assert_eq!(count, self.results.len());
        let now = self.world.now();
        while let Some(res) = self.results.pop() {
            self.model.check(&res, now, self.start);
            self.react(res);
        }
        self.model.assert_punctual(now);
        self.model
            .assert_queued(|conn| self.watcher.queued_bytes(conn));
    }

    fn react(&mut self, res: OpResult<u64>) {
        if res.operation == Operation::Connect && res.error.is_some() {
            // Its requests have ended with it.
            self.free(res.conn);
        }
        if let Some(conn) = res.accepted() {
            // The peers of a listener come one after the other; which one this is does not show.
            match self.listener {
                Some((listener, _)) if listener == res.conn => self.unserved.push(conn),
                _ => assert!(self.watcher.free(conn)),
            }
            assert!(self.unserved.len() <= self.accept_limit, "too many");
            if self.random.below(2) == 0 {
                self.serve_one();
            }
        }
        if res.is_swap_buffer() && self.random.below(4) == 0 {
            self.kept.push(res.buffer);
        }
        if self.kept.len() > 3 {
            let place = self.random.below(self.kept.len());
            self.kept.swap_remove(place);
        }
    }

    /// The peers end, the kernel is calm: everything must come to its end, and in few turns.
    fn settle(&mut self) {
        self.world.calm();
        self.kept.clear();
        for _ in 0..TURNS_MAX {
            for line in &mut self.model.lines {
                if let Some(peer) = &line.peer {
                    peer.set_window(usize::MAX);
                    peer.end();
                    line.receive();
                }
            }
            self.end_what_has_no_peer();
            if self.model.asked.is_empty() {
                break;
            }
            self.turn(Duration::from_millis(1));
            self.kept.clear();
        }
        assert!(
            self.model.asked.is_empty(),
            "never ended: {:?}",
            self.model.asked
        );
        for line in &mut self.model.lines {
            line.assert_settled();
        }
        assert_eq!(self.watcher.stats().pending, 0);
        assert_eq!(self.watcher.stats().leases, 0);
    }

    /// Connections that the watcher made itself, and its listener, end by being freed.
    fn end_what_has_no_peer(&mut self) {
        self.free_listener();
        for index in self.open_lines() {
            let line = &self.model.lines[index];
            if line.peer.is_none() {
                let conn = line.conn;
                self.free(conn);
            }
        }
    }

    /// Everything ends with the watcher, which says so once more and then no more.
    fn close(&mut self) {
        self.model.closed = true;
        self.watcher.close();
        for _ in 0..TURNS_MAX {
            match self.watcher.wait_io(&mut self.results) {
                Ok(_) => {
                    let now = self.world.now();
                    while let Some(res) = self.results.pop() {
                        self.model.check(&res, now, self.start);
                    }
                }
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::WatcherClosed);
                    let left = &self.model.asked;
                    assert!(left.is_empty(), "closed without a result: {left:?}");
                    return;
                }
            }
        }
        panic!("a closed watcher goes on and on");
    }
}
