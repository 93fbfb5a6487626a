//! Peers that send and do not read, streams without an end, programs that keep leases: whoever holds
//! little is served all the same, soon, on the default options as with tiny pools.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
#[cfg(target_os = "linux")]
use std::time::Duration;
use std::time::Instant;

use common::process::{in_child, raise_descriptor_limit};
use common::*;
use gaio::{BackendKind, Conn, OpResult, Operation, Results, Watcher};
use socket2::SockRef;

backends! {
    fn never_readers(kind: BackendKind) {
        in_child(module_path!(), kind, || besieged(kind, false));
    }

    fn never_readers_of_streams(kind: BackendKind) {
        in_child(module_path!(), kind, || besieged(kind, true));
    }

    /// One flooded stream and many talkers share a few small buffers. No talker waits for more than a
    /// few turns of the loop.
    fn talkers_beside_a_flood(kind: BackendKind) {
        const TALKERS: usize = 20;
        for (buffers, size) in [(256, 1024), (2, 4096)] {
            let builder = builder(kind).swap_buffers(buffers).swap_buffer_size(size);
            let mut watcher = builder.build().unwrap();
            let flood = Flood::of_streams(&mut watcher, 1, usize::MAX);
            let mut talkers: Vec<_> = (0..TALKERS)
                .map(|index| {
                    let (conn, peer) = connect_to(&mut watcher);
                    watcher.read(index, conn, None).unwrap();
                    (peer, None)
                })
                .collect();
            let mut results = Results::new();
            let (mut heard, mut worst) = (0, 0);
            for turn in 0..3_000 {
                for (peer, sent_at) in &mut talkers {
                    if sent_at.is_none() {
                        peer.write_all(b"t").unwrap();
                        *sent_at = Some(turn);
                    }
                }
                watcher.wait_io_timeout(&mut results, GLANCE).unwrap();
                for res in results.drain().filter(|res| res.context < TALKERS) {
                    assert_eq!((res.size, res.error), (1, None));
                    let sent_at = talkers[res.context].1.take().unwrap();
                    worst = worst.max(turn - sent_at);
                    heard += 1;
                    watcher.read(res.context, res.conn, None).unwrap();
                }
            }
            assert!(heard >= 1_000, "{heard} heard");
            // Loopback delivers at once; what a turn of a budget may put off is a few.
            assert!(worst <= 50, "{worst} turns");
            flood.end(watcher);
        }
    }

    /// Streams that always have more get the same share of few small buffers.
    fn streams_share(kind: BackendKind) {
        const STREAMS: usize = 4;
        let builder = builder(kind).swap_buffers(64).swap_buffer_size(2048);
        let mut watcher = builder.build().unwrap();
        let flood = Flood::of_streams(&mut watcher, STREAMS, 0);
        let mut shares = [0; STREAMS];
        let mut results = Results::new();
        while shares.iter().sum::<usize>() < 64 << 20 {
            turn(&mut watcher, &mut results);
            for res in results.drain() {
                shares[res.context] += res.size;
            }
        }
        let [least, most] = [shares.iter().min(), shares.iter().max()].map(|it| *it.unwrap());
        assert!(most < 4 * least, "{shares:?}");
        flood.end(watcher);
    }

    /// Tasks that keep what they read and wait for the rest of a request all get it.
    fn keep_and_read_on(kind: BackendKind) {
        let builder = builder(kind).swap_buffers(2).swap_buffer_size(1024);
        let mut watcher = builder.build().unwrap();
        let mut peers = Vec::new();
        for index in 0..6 {
            let (conn, mut peer) = connect_to(&mut watcher);
            watcher.read(index, conn, None).unwrap();
            write_pattern(&mut peer, index, 600);
            peers.push(peer);
        }
        let mut kept: Vec<OpResult<usize>> = Vec::new();
        let mut seen = [0; 6];
        for half in 1..=2 {
            while seen.iter().any(|&seen| seen < 600 * half) {
                let res = next(&mut watcher);
                assert!(res.error.is_none() && is_pattern(res.context + seen[res.context], res.data()));
                seen[res.context] += res.size;
                watcher.read(res.context, res.conn, None).unwrap();
                kept.push(res);
            }
            if half == 1 {
                for (index, peer) in peers.iter_mut().enumerate() {
                    write_pattern(peer, index + 600, 600);
                }
            }
        }
    }

    /// Many connections become readable at once while one lease is out, or comes back: the work is
    /// that of each once, not of all again and again.
    fn readers_of_a_dry_pool(kind: BackendKind) {
        const READERS: usize = 1_000;
        raise_descriptor_limit();
        let builder = builder(kind).swap_buffers(1).swap_buffer_size(65_536);
        let mut watcher = builder.build().unwrap();
        let (hog, mut hog_peer) = connect_to(&mut watcher);
        watcher.read(READERS, hog, None).unwrap();
        hog_peer.write_all(&[0; 65_536]).unwrap();
        let lease = next(&mut watcher);
        let (listener, _) = listener();
        let mut peers = Vec::new();
        for index in 0..READERS {
            let (ours, peer) = pair_from(&listener);
            let conn = watcher.delegate(ours).unwrap();
            watcher.read(index, conn, None).unwrap();
            peers.push(peer);
        }
        quiet(&mut watcher);
        let calls_before = watcher.stats().kernel_calls;
        for peer in &mut peers {
            peer.write_all(b"8 bytes.").unwrap();
        }
        drop(lease);
        for res in collect(&mut watcher, READERS) {
            assert_eq!((res.data(), res.error), (&b"8 bytes."[..], None));
        }
        let calls = watcher.stats().kernel_calls - calls_before;
        assert!(calls <= 6 * READERS as u64, "{calls} system calls");
    }

    /// More streams wait for buffers than can go on at once when buffers come back: all get on, in turn.
    fn streams_wait_for_their_turn(kind: BackendKind) {
        const POOL: usize = 16 << 10;
        const STREAMS: usize = 40;
        const EACH: usize = 8_000;
        let builder = builder(kind).swap_buffers(16).swap_buffer_size(1024);
        let mut watcher = builder.build().unwrap();
        let (hog, mut hog_peer) = connect_to(&mut watcher);
        hog_peer.write_all(&[0; POOL]).unwrap();
        let mut hoard = Vec::new();
        while hoard.iter().map(|res: &OpResult<usize>| res.size).sum::<usize>() < POOL {
            watcher.read(STREAMS, hog, None).unwrap();
            hoard.push(next(&mut watcher));
        }
        let mut peers = Vec::new();
        for index in 0..STREAMS {
            let (conn, mut peer) = connect_to(&mut watcher);
            watcher.read_stream(index, conn).unwrap();
            write_pattern(&mut peer, index, EACH);
            peers.push(peer);
        }
        let mut seen = [0; STREAMS];
        let mut take = |res: &OpResult<usize>| {
            assert!(res.error.is_none() && is_pattern(res.context + seen[res.context], res.data()));
            seen[res.context] += res.size;
            seen.iter().sum::<usize>()
        };
        let (mut kept, mut results) = (Vec::new(), Results::new());
        while watcher.wait_io_timeout(&mut results, GLANCE).unwrap() > 0 {
            kept.extend(results.drain().inspect(|res| {
                take(res);
            }));
        }
        hoard.clear();
        while take(&next(&mut watcher)) < STREAMS * EACH {}
    }

    /// Without memory for another buffer, reads wait as if the pool were used up: without work.
    #[cfg(target_os = "linux")]
    fn no_memory(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let (mut watcher, held, taken) = without_memory(kind);
            let calls_before = watcher.stats().kernel_calls;
            let count = watcher.wait_io_timeout(&mut Results::new(), 10 * GLANCE);
            let calls = watcher.stats().kernel_calls - calls_before;
            assert_eq!(count, Ok(0));
            assert!(calls <= 50, "{calls} system calls without memory");
            drop(held);
            assert!(next(&mut watcher).size > 0);
            drop(taken);
        });
    }

    /// There may be memory again although no lease came back: nobody tells, but it is found out.
    #[cfg(target_os = "linux")]
    fn memory_again(kind: BackendKind) {
        in_child(module_path!(), kind, || {
            let (mut watcher, held, taken) = without_memory(kind);
            // It has just been asked for in vain: the next time is only after a while.
            for _ in 0..5 {
                let count = watcher.wait_io_timeout(&mut Results::new(), Duration::ZERO);
                assert_eq!(count, Ok(0));
            }
            drop(taken);
            assert!(next(&mut watcher).size > 0);
            drop(held);
        });
    }

    /// A stream of a pipe goes over its window, and on once the leases are back, wherever they were
    /// dropped.
    fn pipe_goes_over_its_window(kind: BackendKind) {
        const ALL: usize = 1 << 20;
        for window in [1, 4096, 512 << 10] {
            let mut watcher = builder(kind).stream_window(window).build().unwrap();
            let (reader, mut writer) = io::pipe().unwrap();
            let conn = watcher.delegate(reader).unwrap();
            watcher.read_stream((), conn).unwrap();
            let sender = thread::spawn(move || write_pattern(&mut writer, 0, ALL));
            let (drop_elsewhere, to_drop) = mpsc::channel::<Vec<OpResult>>();
            let dropper = thread::spawn(move || to_drop.into_iter().for_each(drop));
            let (mut seen, mut held) = (0, Vec::new());
            let mut results = Results::new();
            let end = Instant::now() + PATIENCE;
            while seen < ALL {
                assert!(Instant::now() < end, "{seen} bytes of {ALL}, window {window}");
                if watcher.wait_io_timeout(&mut results, GLANCE / 10).unwrap() == 0 {
                    drop_elsewhere.send(std::mem::take(&mut held)).unwrap();
                }
                for res in results.drain() {
                    assert!(res.error.is_none() && is_pattern(seen, res.data()));
                    seen += res.size;
                    held.push(res);
                }
            }
            drop(drop_elsewhere);
            sender.join().unwrap();
            dropper.join().unwrap();
        }
    }
}

/// An echo server with the default options, clients that send all they can and never read, and an
/// honest one.
fn besieged(kind: BackendKind, streams: bool) {
    const CLIENTS: usize = 320;
    raise_descriptor_limit();
    let (listener, address) = listener();
    // Accepted sockets inherit it. What all that is stuck takes of the system's memory for TCP must leave
    // some for the honest one.
    small_buffers(&SockRef::from(&listener));
    let watcher = watcher(kind);
    let remote = watcher.remote();
    let server = thread::spawn(move || {
        let mut watcher = echo(watcher, listener, streams);
        // All that is left is stuck: soon there is nothing to do, and it holds no more than the pool
        // and a little for each.
        let mut results = Results::new();
        until("it is idle", || {
            let calls_before = watcher.stats().kernel_calls;
            watcher.wait_io_timeout(&mut results, 10 * GLANCE).unwrap();
            watcher.stats().kernel_calls - calls_before <= 20
        });
        let stats = watcher.stats();
        assert!(stats.swap_starved > 0, "the pool was never used up");
        assert!(stats.swap_bytes <= (16 << 20) + (CLIENTS + 20) * 2 * 4096);
    });
    let stuck: Vec<TcpStream> = (0..CLIENTS)
        .map(|_| {
            let peer = TcpStream::connect(address).unwrap();
            small_buffers(&SockRef::from(&peer));
            peer.set_nonblocking(true).unwrap();
            peer
        })
        .collect();
    // Until the server takes no more of any of them.
    let chunk = vec![7; 256 << 10];
    let mut quiet_since = Instant::now();
    let end = Instant::now() + PATIENCE;
    while quiet_since.elapsed() < 10 * GLANCE && Instant::now() < end {
        for mut peer in &stuck {
            if peer.write(&chunk).is_ok() {
                quiet_since = Instant::now();
            }
        }
    }
    for round in 0..20 {
        let mut honest = TcpStream::connect(address).unwrap();
        honest.set_read_timeout(Some(PATIENCE)).unwrap();
        let len = if round % 2 == 0 { 5 } else { 100_000 };
        let sent = pattern_vec(round, len);
        let writer = honest.try_clone().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                (&writer).write_all(&sent).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            let mut back = Vec::new();
            honest.read_to_end(&mut back).unwrap();
            assert!(back == sent, "{} of {len} bytes came back", back.len());
        });
    }
    remote.post(()).unwrap();
    server.join().unwrap();
    drop(stuck);
}

fn small_buffers(socket: &SockRef<'_>) {
    socket.set_recv_buffer_size(128 << 10).unwrap();
    socket.set_send_buffer_size(128 << 10).unwrap();
}

/// Sends back what comes, to the end, until a message says stop.
fn echo(mut watcher: Watcher, listener: TcpListener, streams: bool) -> Watcher {
    let listener = watcher.listen(listener).unwrap();
    watcher.accept((), listener).unwrap();
    let mut results = Results::new();
    let read = |watcher: &mut Watcher, conn: Conn| match streams {
        true => drop(watcher.read_stream((), conn)),
        false => drop(watcher.read((), conn, None)),
    };
    loop {
        watcher.wait_io(&mut results).unwrap();
        for res in results.drain() {
            match res.operation {
                Operation::Post => return watcher,
                Operation::Accept => read(&mut watcher, res.accepted().unwrap()),
                _ if res.error.is_some() => drop(watcher.free(res.conn)),
                Operation::Read if res.is_eof() => {
                    drop(watcher.shutdown((), res.conn, Shutdown::Write));
                }
                Operation::Read => drop(watcher.write((), res.conn, res.buffer)),
                Operation::Write if !streams => read(&mut watcher, res.conn),
                Operation::Shutdown => drop(watcher.free(res.conn)),
                _ => {}
            }
        }
    }
}

/// Peers that write without an end.
struct Flood {
    stop: Arc<AtomicBool>,
    writers: Vec<thread::JoinHandle<()>>,
}

impl Flood {
    /// Streams of reads that always have more. The first has this context, the next the one after.
    fn of_streams(watcher: &mut Watcher<usize>, count: usize, first: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let writers = (0..count).map(|index| {
            let (conn, mut peer) = connect_to(watcher);
            peer.set_write_timeout(Some(GLANCE)).unwrap();
            watcher.read_stream(first + index, conn).unwrap();
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let _ = peer.write(&[1; 65_536]);
                }
            })
        });
        Flood {
            writers: writers.collect(),
            stop,
        }
    }

    fn end<C>(self, watcher: Watcher<C>) {
        self.stop.store(true, Ordering::Relaxed);
        drop(watcher);
        for writer in self.writers {
            writer.join().unwrap();
        }
    }
}

/// A watcher for which the system has no more memory: the one connection, whose peer writes without an
/// end, keeps what it got, and its read waits. Also what took the memory. For a process of its own.
#[cfg(target_os = "linux")]
fn without_memory(kind: BackendKind) -> (Watcher, Vec<OpResult>, Vec<Vec<u8>>) {
    const BUFFER: usize = 256 << 10;
    let builder = builder(kind).swap_buffer_size(BUFFER).swap_buffers(1 << 20);
    let mut watcher = builder.build().unwrap();
    let (conn, mut peer) = connect_to(&mut watcher);
    watcher.read((), conn, None).unwrap();
    thread::spawn(move || while peer.write_all(&[1; 65_536]).is_ok() {});
    // It has begun when something has come.
    let mut held = vec![next(&mut watcher)];
    let taken = take_all_memory(BUFFER / 2);
    watcher.read((), conn, None).unwrap();
    let mut results = Results::new();
    let end = Instant::now() + PATIENCE;
    loop {
        // Only a read that finds data can find no memory for it.
        let has_data = readable(&watcher.socket(conn).unwrap(), Duration::ZERO);
        let count = watcher.wait_io_timeout(&mut results, GLANCE).unwrap();
        let starved = watcher.stats().swap_starved;
        if count == 0 && has_data && starved > 0 {
            return (watcher, held, taken);
        }
        let reads = held.len();
        assert!(
            Instant::now() < end,
            "{reads} reads and memory for more, {starved} without it"
        );
        for res in results.drain() {
            assert_eq!(res.error, None);
            held.push(res);
            watcher.read((), conn, None).unwrap();
        }
    }
}

/// Takes the memory that this process may have from now on, all but pieces smaller than this.
#[cfg(target_os = "linux")]
fn take_all_memory(least: usize) -> Vec<Vec<u8>> {
    let limit = libc::rlimit {
        rlim_cur: 0, // Nothing beside what it has.
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: `limit` is valid for the call.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_AS, &limit) }, 0);
    let mut taken = Vec::new();
    let mut size = 64 << 20;
    while size >= least {
        let mut piece = Vec::new();
        match piece.try_reserve_exact(size) {
            Ok(()) => taken.push(piece),
            Err(_) => size /= 2,
        }
    }
    taken
}
