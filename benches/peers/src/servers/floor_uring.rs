//! The floor for completions: io_uring by hand. A ring of incremental buffers (Linux 6.12) for the
//! receives, one-shot or multishot; sends straight from where the kernel put the bytes.

use std::collections::VecDeque;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode, squeue};

use super::BUFFER_BYTES;
use crate::Fallible;

const BUFFERS: u16 = 16;
const INCREMENTAL: u16 = 2;

const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;

pub fn run(listener: TcpListener, stream: bool) -> Fallible<()> {
    let mut server = Server::new(stream)?;
    let listener = Fd(listener.as_raw_fd());
    server.push(opcode::AcceptMulti::new(listener).build().user_data(ACCEPT));
    loop {
        server.submitter.submit_and_wait(1)?;
        server.turn();
    }
}

struct Server {
    ring: &'static IoUring,
    submitter: io_uring::Submitter<'static>,
    buffers: Buffers,
    stream: bool,
    /// By descriptor.
    connections: Vec<Connection>,
    /// Connections whose receive found no buffer.
    starved: VecDeque<RawFd>,
}

#[derive(Default)]
struct Connection {
    /// What is to be sent, oldest first; the first is being sent if `sending`.
    chunks: VecDeque<Chunk>,
    sending: bool,
    receiving: bool,
    ended: bool,
}

#[derive(Clone, Copy)]
struct Chunk {
    buffer: u16,
    at: *const u8,
    len: u32,
}

impl Server {
    fn new(stream: bool) -> io::Result<Self> {
        let ring: &'static IoUring = Box::leak(Box::new(
            IoUring::builder()
                .setup_single_issuer()
                .setup_defer_taskrun()
                .setup_submit_all()
                .setup_cqsize(16384)
                .build(4096)?,
        ));
        let mut submitter = ring.submitter();
        submitter.register_ring_fd()?;
        let buffers = Buffers::new(&submitter)?;
        Ok(Server {
            ring,
            submitter,
            buffers,
            stream,
            connections: Vec::new(),
            starved: VecDeque::new(),
        })
    }

    fn push(&mut self, entry: squeue::Entry) {
        // SAFETY: there is one submission queue at a time; what entries name is in the buffers,
        // which are never freed.
        while unsafe { self.ring.submission_shared().push(&entry) }.is_err() {
            let _ = self.submitter.submit();
        }
    }

    fn turn(&mut self) {
        // SAFETY: there is one completion queue at a time.
        let queue = unsafe { self.ring.completion_shared() };
        for entry in queue {
            let fd = (entry.user_data() >> 2) as RawFd;
            match entry.user_data() & 3 {
                ACCEPT => self.accepted(entry.result()),
                RECEIVE => self.received(fd, entry.result(), entry.flags()),
                _ => self.sent(fd, entry.result()),
            }
        }
        while self.buffers.has_room()
            && let Some(fd) = self.starved.pop_front()
        {
            self.receive(fd);
        }
    }

    fn accepted(&mut self, fd: RawFd) {
        if fd >= 0 {
            let len = self.connections.len().max(fd as usize + 1);
            self.connections.resize_with(len, Connection::default);
            self.connections[fd as usize] = Connection::default();
            self.receive(fd);
        }
    }

    fn receive(&mut self, fd: RawFd) {
        self.connections[fd as usize].receiving = true;
        let entry = if self.stream {
            opcode::RecvMulti::new(Fd(fd), 0).build()
        } else {
            opcode::Recv::new(Fd(fd), std::ptr::null_mut(), 0)
                .buf_group(0)
                .build()
                .flags(squeue::Flags::BUFFER_SELECT)
        };
        self.push(entry.user_data((fd as u64) << 2 | RECEIVE));
    }

    fn received(&mut self, fd: RawFd, result: i32, flags: u32) {
        let connection = &mut self.connections[fd as usize];
        connection.receiving = cqueue::more(flags);
        let again = self.stream && !connection.receiving;
        match result {
            1.. => {
                let id = cqueue::buffer_select(flags).unwrap_or_default();
                let more = cqueue::buffer_more(flags);
                let chunk = self.buffers.take(id, result as u32, more);
                connection.chunks.push_back(chunk);
                if !connection.sending {
                    self.send(fd);
                }
                if again {
                    self.receive(fd);
                }
            }
            _ if result == -libc::ENOBUFS => self.starved.push_back(fd),
            _ => {
                connection.ended = true;
                self.close_if_over(fd);
            }
        }
    }

    fn send(&mut self, fd: RawFd) {
        let connection = &mut self.connections[fd as usize];
        let Some(chunk) = connection.chunks.front() else {
            return;
        };
        let entry = opcode::Send::new(Fd(fd), chunk.at, chunk.len)
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build();
        connection.sending = true;
        self.push(entry.user_data((fd as u64) << 2 | SEND));
    }

    fn sent(&mut self, fd: RawFd, result: i32) {
        let connection = &mut self.connections[fd as usize];
        connection.sending = false;
        let Some(chunk) = connection.chunks.front_mut() else {
            return;
        };
        if result > 0 && (result as u32) < chunk.len {
            chunk.at = chunk.at.wrapping_add(result as usize);
            chunk.len -= result as u32;
            return self.send(fd);
        }
        self.buffers.give_back(chunk.buffer);
        connection.chunks.pop_front();
        if result <= 0 {
            for chunk in connection.chunks.drain(..) {
                self.buffers.give_back(chunk.buffer);
            }
            connection.ended = true;
            // SAFETY: no memory is passed. The receive ends by this.
            unsafe { libc::shutdown(fd, libc::SHUT_RDWR) };
            return self.close_if_over(fd);
        }
        if !connection.chunks.is_empty() {
            self.send(fd);
        } else if !self.stream && !connection.ended {
            self.receive(fd);
        } else {
            self.close_if_over(fd);
        }
    }

    fn close_if_over(&mut self, fd: RawFd) {
        let connection = &self.connections[fd as usize];
        if connection.ended && !connection.sending && !connection.receiving {
            // SAFETY: nothing runs on the descriptor, and it is forgotten here.
            unsafe { libc::close(fd) };
        }
    }
}

/// The ring of lent buffers.
struct Buffers {
    entries: *mut BufRingEntry,
    tail: u16,
    memory: Vec<*mut u8>,
    used: Vec<u32>,
    /// Chunks that are still to be sent, and one while the kernel fills the buffer.
    holders: Vec<u32>,
    lent: usize,
}

impl Buffers {
    fn new(submitter: &io_uring::Submitter<'_>) -> io::Result<Self> {
        let count = usize::from(BUFFERS);
        // A page of zeros that is never freed, like the buffers.
        let page = Box::leak(Box::new(Page([0; 4096])));
        let entries: *mut BufRingEntry = page.0.as_mut_ptr().cast();
        // SAFETY: the page has room for the entries, is aligned, and lives for good.
        unsafe { submitter.register_buf_ring_with_flags(entries as u64, BUFFERS, 0, INCREMENTAL) }?;
        let mut buffers = Buffers {
            entries,
            tail: 0,
            memory: (0..count)
                .map(|_| Vec::leak(vec![0u8; BUFFER_BYTES]).as_mut_ptr())
                .collect(),
            used: vec![0; count],
            holders: vec![0; count],
            lent: 0,
        };
        (0..BUFFERS).for_each(|id| buffers.lend(id));
        Ok(buffers)
    }

    fn has_room(&self) -> bool {
        self.lent > 0
    }

    fn lend(&mut self, id: u16) {
        let index = usize::from(self.tail % BUFFERS);
        self.used[usize::from(id)] = 0;
        self.holders[usize::from(id)] = 1;
        self.lent += 1;
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: the index is in the ring; the kernel reads the entry after the tail is stored.
        unsafe {
            let entry = &mut *self.entries.add(index);
            entry.set_addr(self.memory[usize::from(id)] as u64);
            entry.set_len(BUFFER_BYTES as u32);
            entry.set_bid(id);
            let tail = BufRingEntry::tail(self.entries)
                .cast_mut()
                .cast::<AtomicU16>();
            (*tail).store(self.tail, Ordering::Release);
        }
    }

    fn take(&mut self, id: u16, len: u32, more: bool) -> Chunk {
        let index = usize::from(id);
        let at = self.memory[index].wrapping_add(self.used[index] as usize);
        self.used[index] += len;
        self.holders[index] += 1;
        if !more {
            self.lent -= 1;
            self.give_back(id);
        }
        Chunk {
            buffer: id,
            at,
            len,
        }
    }

    fn give_back(&mut self, id: u16) {
        let holders = &mut self.holders[usize::from(id)];
        *holders -= 1;
        if *holders == 0 {
            self.lend(id);
        }
    }
}

#[repr(align(4096))]
struct Page([u8; 4096]);
