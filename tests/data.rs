//! Data: bytes move whole, unchanged and in order, through buffers of every kind, and contexts come back
//! as they were handed in. `swap.rs` and `leases.rs` have the swap buffers; `memory.rs` counts allocations.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::io::Write;
use std::mem::MaybeUninit;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use common::*;
use gaio::bytes::Bytes;
use gaio::{BackendKind, Buffer, Deadline, ErrorKind, Interest, OpResult, Operation, Results};
use socket2::SockRef;

const MIB: usize = 1 << 20;

backends! {
    fn echo_tiny(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        for own in [None, Some(vec![0; 8])] {
            let swap = own.is_none();
            peer.write_all(b"x").unwrap();
            let read_op = watcher.read((), conn, own).unwrap();
            let read = next(&mut watcher);
            assert_eq!((read.operation, read.op), (Operation::Read, read_op));
            assert_eq!((read.conn, read.size, read.error), (conn, 1, None));
            assert_eq!((read.data(), &*read.buffer), (&b"x"[..], &b"x"[..]));
            assert_eq!((read.is_swap_buffer(), read.buffer.is_swap()), (swap, swap));
            assert!(read.is_last() && !read.is_eof());

            let write_op = watcher.write((), conn, read.buffer).unwrap();
            let write = next(&mut watcher);
            assert_eq!((write.operation, write.op), (Operation::Write, write_op));
            assert_eq!((write.conn, write.size, write.error), (conn, 1, None));
            assert_eq!((write.data(), write.result()), (&b"x"[..], Ok(1)));
            assert_ne!(read_op, write_op);
            read_exactly(&mut peer, b"x");
        }
        quiet(&mut watcher);
    }

    fn echo_huge(kind: BackendKind) {
        let (ours, peer) = pair();
        // A write of half a MiB never fits into this send buffer at once.
        SockRef::from(&ours).set_send_buffer_size(64 << 10).unwrap();
        let mut watcher = watcher(kind);
        let conn = watcher.delegate(ours).unwrap();
        let client = thread::spawn(move || there_and_back(peer, 64 * MIB));
        let mut results = Results::new();
        let mut swap = true;
        watcher.read((), conn, None).unwrap();
        while watcher.contains(conn) {
            turn(&mut watcher, &mut results);
            for res in results.drain() {
                assert_eq!(res.error, None);
                if res.is_eof() {
                    assert!(watcher.free(conn));
                } else if res.operation == Operation::Read {
                    assert_eq!(res.size, res.buffer.len());
                    watcher.write((), conn, res.buffer).unwrap();
                } else {
                    assert_eq!(res.size, res.buffer.len(), "a write ends when all is sent");
                    swap = !swap;
                    let own = (!swap).then(|| vec![0; MIB / 2]);
                    watcher.read((), conn, own).unwrap();
                }
            }
        }
        client.join().unwrap();
    }

    fn write_larger_than_the_socket(kind: BackendKind) {
        let (ours, mut peer) = pair();
        SockRef::from(&ours).set_send_buffer_size(64 << 10).unwrap();
        let mut watcher = watcher(kind);
        let conn = watcher.delegate(ours).unwrap();
        watcher.write((), conn, pattern_vec(0, 8 * MIB)).unwrap();
        quiet(&mut watcher);
        let reader = thread::spawn(move || read_pattern(&mut peer, 0, 8 * MIB));
        let res = next(&mut watcher);
        assert_eq!((res.size, res.error), (8 * MIB, None));
        assert!(is_pattern(0, &res.buffer) && res.buffer.len() == 8 * MIB);
        reader.join().unwrap();
    }

    fn every_kind_of_buffer(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        peer.write_all(b"lease").unwrap();
        watcher.read((), conn, None).unwrap();
        let lease = next(&mut watcher).buffer.into_swap().unwrap();
        let mut trimmed = Buffer::from("__trimmed__");
        trimmed.advance(2);
        trimmed.truncate(7);
        let buffers: [Buffer; 8] = [
            Vec::from(*b"vec").into(),
            String::from("string").into(),
            Bytes::from_static(b"bytes").into(),
            b"slice"[..].into(),
            b"array".into(),
            "str".into(),
            lease.slice(1..4).into(),
            trimmed,
        ];
        for buffer in buffers {
            watcher.write((), conn, buffer).unwrap();
        }
        drop(lease);
        assert!(
            collect(&mut watcher, 8)
                .iter()
                .all(|res| res.size == res.buffer.len())
        );
        read_exactly(&mut peer, b"vecstringbytesslicearraystreastrimmed");
    }

    fn read_full_exact(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        watcher
            .read_full((), conn, vec![0; 4096], Deadline::NEVER)
            .unwrap();
        for (at, len) in [(0, 1), (1, 1000), (1001, 3094)] {
            write_pattern(&mut peer, at, len);
            quiet(&mut watcher);
        }
        write_pattern(&mut peer, 4095, 11);
        let res = next(&mut watcher);
        assert_eq!(
            (res.operation, res.size, res.error),
            (Operation::Read, 4096, None)
        );
        assert!(is_pattern(0, res.data()));
        // What was beyond is for the next one.
        watcher
            .read_full((), conn, vec![0; 10], Deadline::NEVER)
            .unwrap();
        assert!(is_pattern(4096, next(&mut watcher).data()));
    }

    fn read_full_then_eof(kind: BackendKind) {
        for so_far in [0, 1, 100] {
            let (mut watcher, conn, mut peer) = connected(kind);
            watcher
                .read_full((), conn, vec![0; 4096], Deadline::NEVER)
                .unwrap();
            write_pattern(&mut peer, 0, so_far);
            drop(peer);
            let res = next(&mut watcher);
            assert_eq!(error_kind(&res), Some(ErrorKind::UnexpectedEof));
            assert_eq!((res.size, res.buffer.len()), (so_far, so_far));
            assert!(is_pattern(0, res.data()) && !res.is_eof());
            assert_eq!(
                res.buffer.recycle().unwrap().len(),
                4096,
                "whole for the next use"
            );
        }
    }

    fn both_directions_at_once(kind: BackendKind) {
        // Neither direction may wait for the other: the peer does first one, then the other.
        for writes_first in [true, false] {
            let (mut watcher, conn, mut peer) = connected(kind);
            watcher.write((), conn, pattern_vec(0, 8 * MIB)).unwrap();
            watcher
                .read_full((), conn, vec![0; 8 * MIB], Deadline::NEVER)
                .unwrap();
            let other_side = thread::spawn(move || {
                if writes_first {
                    write_pattern(&mut peer, 5, 8 * MIB);
                }
                read_pattern(&mut peer, 0, 8 * MIB);
                if !writes_first {
                    write_pattern(&mut peer, 5, 8 * MIB);
                }
            });
            for res in collect(&mut watcher, 2) {
                let at = if res.operation == Operation::Read {
                    5
                } else {
                    0
                };
                assert_eq!((res.size, res.error), (8 * MIB, None));
                assert!(is_pattern(at, res.data()));
            }
            other_side.join().unwrap();
        }
    }

    fn client_and_server_in_one_watcher(kind: BackendKind) {
        const ROUNDS: usize = 1000;
        let mut watcher = watcher(kind);
        let (server, client) = pair();
        let server = watcher.delegate(server).unwrap();
        let client = watcher.delegate(client).unwrap();
        watcher.read("server", server, None).unwrap();
        watcher.write("client", client, pattern(0, 128)).unwrap();
        let mut answers = 0;
        while answers < ROUNDS {
            let res = next(&mut watcher);
            assert_eq!(
                (res.size, res.error),
                (128, None),
                "small messages come in one piece"
            );
            assert_eq!(
                res.conn,
                if res.context == "server" {
                    server
                } else {
                    client
                }
            );
            assert!(is_pattern(answers, res.data()));
            match (res.context, res.operation) {
                (who, Operation::Write) => watcher.read(who, res.conn, None).unwrap(),
                ("server", _) => watcher.write("server", server, res.buffer).unwrap(),
                _ => {
                    answers += 1;
                    watcher
                        .write("client", client, pattern(answers, 128))
                        .unwrap()
                }
            };
        }
    }

    fn pipelined_reads_fifo(kind: BackendKind) {
        const READS: usize = 100;
        let (mut watcher, conn, mut peer) = connected(kind);
        let mut random = Random::new(6);
        for index in 0..READS {
            let own = (index % 3 != 0).then(|| vec![0; 1 + random.below(20)]);
            watcher.read(index, conn, own).unwrap();
        }
        let (mut sent, mut seen) = (0, 0);
        for index in 0..READS {
            // Now one byte, now more than the next read may take.
            let len = if index % 2 == 0 { 1 } else { 30 };
            write_pattern(&mut peer, sent, len);
            sent += len;
            let res = next(&mut watcher);
            assert_eq!((res.context, res.error), (index, None));
            assert!(res.size > 0 && is_pattern(seen, res.data()));
            seen += res.size;
        }
        drop(peer);
        while seen < sent {
            watcher.read(0, conn, None).unwrap();
            let res = next(&mut watcher);
            assert!(
                res.size > 0 && is_pattern(seen, res.data()),
                "after {seen} bytes"
            );
            seen += res.size;
        }
        watcher.read(0, conn, None).unwrap();
        assert!(next(&mut watcher).is_eof());
    }

    fn pipelined_reads_of_ready_data_fifo(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected(kind);
        write_pattern(&mut peer, 0, 1000);
        for index in 0..100 {
            watcher
                .read_full(index, conn, vec![0; 10], Deadline::NEVER)
                .unwrap();
        }
        for (index, res) in collect(&mut watcher, 100).into_iter().enumerate() {
            assert_eq!((res.context, res.size, res.error), (index, 10, None));
            assert!(is_pattern(10 * index, res.data()));
        }
    }

    fn queued_writes_fifo(kind: BackendKind) {
        const WRITES: usize = 10_000;
        let (mut watcher, conn, mut peer) = connected(kind);
        let length = |index: usize| 1 + index % 32;
        let total = (0..WRITES).map(length).sum();
        let calls_before = watcher.stats().kernel_calls;
        let mut at = 0;
        for index in 0..WRITES {
            watcher
                .write(index, conn, pattern(at, length(index)))
                .unwrap();
            at += length(index);
        }
        let reader = thread::spawn(move || read_pattern(&mut peer, 0, total));
        for (index, res) in collect(&mut watcher, WRITES).into_iter().enumerate() {
            assert_eq!(
                (res.context, res.size, res.error),
                (index, length(index), None)
            );
        }
        reader.join().unwrap();
        let calls = watcher.stats().kernel_calls - calls_before;
        assert!(
            calls < WRITES as u64 / 10,
            "{calls} system calls for {WRITES} writes"
        );
    }

    /// How large a message was says nothing of the next one: what is there is read at once.
    fn small_after_large(kind: BackendKind) {
        const LARGE: usize = 40 * 1024;
        let (mut watcher, conn, mut peer) = connected(kind);
        let own = watcher.socket(conn).unwrap().try_clone_to_owned().unwrap();
        // Some systems have room for less than that.
        SockRef::from(&own).set_recv_buffer_size(4 * LARGE).unwrap();
        let arrives = |len| {
            let mut room = [MaybeUninit::uninit(); LARGE];
            until("it is there", || SockRef::from(&own).peek(&mut room).is_ok_and(|there| there >= len));
        };
        for round in 0..12 {
            peer.write_all(&[1; LARGE]).unwrap();
            arrives(LARGE);
            let mut left = LARGE;
            while left > 0 {
                watcher.read((), conn, None).unwrap();
                left -= next(&mut watcher).size;
            }
            peer.write_all(b"small").unwrap();
            arrives(5);
            let mut results = Results::new();
            if round % 3 == 0 {
                watcher.read((), conn, None).unwrap();
            } else {
                let now = Duration::ZERO;
                watcher.read_timeout((), conn, None, now).unwrap();
            }
            watcher.wait_io_timeout(&mut results, Duration::ZERO).unwrap();
            let res = results.pop().unwrap_or_else(|| panic!("no result in round {round}, though the data is there"));
            assert_eq!((res.data(), res.error), (&b"small"[..], None), "{round}");
        }
    }

    fn context_unchanged(kind: BackendKind) {
        let (mut watcher, conn, mut peer) = connected::<String>(kind);
        let (listener, address) = listener();
        let listener = watcher.listen(listener).unwrap();
        let name = |it: &str| String::from(it);
        let far = Duration::from_secs(3600);
        watcher.accept(name("accept"), listener).unwrap();
        let client = watcher
            .connect(name("connect"), address, Deadline::NEVER)
            .unwrap();
        watcher.read(name("read"), client, None).unwrap();
        watcher
            .read_timeout(name("deadline"), conn, None, Duration::ZERO)
            .unwrap();
        let cancelled = watcher.timer(name("cancelled"), far).unwrap();
        assert!(watcher.cancel(cancelled));
        watcher.timer(name("timer"), Duration::ZERO).unwrap();
        watcher
            .ready(name("ready"), conn, Interest::Writable)
            .unwrap();
        watcher.write(name("write"), conn, b"out").unwrap();
        watcher
            .shutdown(name("shutdown"), conn, Shutdown::Write)
            .unwrap();
        watcher.remote().post(name("post")).unwrap();
        let done = collect(&mut watcher, 9);
        let names = [
            "accept",
            "cancelled",
            "connect",
            "deadline",
            "post",
            "ready",
            "shutdown",
            "timer",
            "write",
        ];
        assert_eq!(sorted_contexts(done), names);
        read_exactly(&mut peer, b"out");
        assert_closed(&mut peer);

        watcher
            .read_full(name("full"), conn, vec![0; 9], far)
            .unwrap();
        watcher.read(name("queued"), conn, None).unwrap();
        watcher.free(conn);
        let mut left = collect(&mut watcher, 2);
        let refused = watcher.read(name("refused"), conn, vec![7; 3]).unwrap_err();
        assert_eq!(refused.error().kind(), ErrorKind::ConnClosed);
        assert_eq!(refused.into_inner(), (name("refused"), Some(vec![7; 3])));
        left.extend(close_and_collect(&mut watcher));
        assert_eq!(sorted_contexts(left), ["accept", "full", "queued", "read"]);
    }

    /// A read ends where descriptors were passed along, shorter than there are bytes: what
    /// follows must not wait for more to come.
    fn unix_bytes_behind_descriptors(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let (ours, mut peer) = UnixStream::pair().unwrap();
        let conn = watcher.delegate(ours).unwrap();
        for _ in 0..10 {
            send_with_descriptor(&peer, b"one");
            peer.write_all(b"two").unwrap();
            let mut got = Vec::new();
            while got.len() < 6 {
                watcher.read((), conn, None).unwrap();
                got.extend_from_slice(next(&mut watcher).data());
            }
            assert_eq!(got, b"onetwo");
        }
    }
}

/// Sends bytes on a Unix socket together with a copy of its own descriptor.
fn send_with_descriptor(socket: &UnixStream, bytes: &[u8]) {
    // SAFETY: the header names memory that lives through the call; the control buffer is large
    // enough for one descriptor, and aligned as its words are.
    unsafe {
        let mut data = libc::iovec {
            iov_base: bytes.as_ptr().cast_mut().cast(),
            iov_len: bytes.len(),
        };
        let mut control = [0u64; 8];
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut data;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(header)
            .cast::<i32>()
            .write_unaligned(socket.as_raw_fd());
        let sent = libc::sendmsg(socket.as_raw_fd(), &raw const message, 0);
        assert_eq!(sent, bytes.len() as isize);
    }
}

/// Sends `len` bytes, ends, and expects them back, all at the same time.
fn there_and_back(mut peer: TcpStream, len: usize) {
    let mut sender = peer.try_clone().unwrap();
    let sending = thread::spawn(move || {
        write_pattern(&mut sender, 0, len);
        sender.shutdown(Shutdown::Write).unwrap();
    });
    read_pattern(&mut peer, 0, len);
    assert_closed(&mut peer);
    sending.join().unwrap();
}

fn sorted_contexts(results: Vec<OpResult<String>>) -> Vec<String> {
    let mut contexts: Vec<String> = results.into_iter().map(|res| res.context).collect();
    contexts.sort();
    contexts
}
