//! The floor for readiness: epoll by hand, edge-triggered, without a call that could be left out.
#![expect(unsafe_code, reason = "system calls")]

use std::io;
use std::net::TcpListener;
use std::os::fd::{AsRawFd, RawFd};

use super::{BUFFER_BYTES, closed};
use crate::Fallible;

const EVENTS: usize = 1024;

pub fn run(listener: TcpListener) -> Fallible<()> {
    listener.set_nonblocking(true)?;
    // SAFETY: no memory is passed.
    let epoll = check(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) } as isize)? as RawFd;
    watch(epoll, listener.as_raw_fd(), libc::EPOLLIN)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    // By descriptor: what its socket did not take yet.
    let mut unsent: Vec<Vec<u8>> = Vec::new();
    let mut events = vec![libc::epoll_event { events: 0, u64: 0 }; EVENTS];
    loop {
        // SAFETY: there is room for that many events.
        let count =
            unsafe { libc::epoll_wait(epoll, events.as_mut_ptr(), EVENTS as libc::c_int, -1) };
        for event in &events[..check(count as isize)?] {
            let fd = event.u64 as RawFd;
            if fd == listener.as_raw_fd() {
                accept(epoll, fd, &mut unsent)?;
            } else if !echo(fd, &mut buffer, &mut unsent[fd as usize]) {
                unsent[fd as usize].clear();
                // SAFETY: this loop owns the descriptor and forgets it here.
                unsafe { libc::close(fd) };
                closed();
            }
        }
    }
}

fn accept(epoll: RawFd, listener: RawFd, unsent: &mut Vec<Vec<u8>>) -> io::Result<()> {
    loop {
        let null = std::ptr::null_mut();
        // SAFETY: no address is asked for.
        let fd = unsafe { libc::accept4(listener, null, std::ptr::null_mut(), libc::SOCK_CLOEXEC) };
        if fd < 0 {
            return Ok(());
        }
        unsent.resize_with(unsent.len().max(fd as usize + 1), Vec::new);
        watch(epoll, fd, libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLRDHUP)?;
    }
}

fn watch(epoll: RawFd, fd: RawFd, events: libc::c_int) -> io::Result<()> {
    let mut event = libc::epoll_event {
        events: (events | libc::EPOLLET) as u32,
        u64: fd as u64,
    };
    // SAFETY: the event is borrowed for the call.
    check(unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_ADD, fd, &raw mut event) } as isize)?;
    Ok(())
}

/// Sends back what there is. False when the connection has ended.
fn echo(fd: RawFd, buffer: &mut [u8], unsent: &mut Vec<u8>) -> bool {
    loop {
        while !unsent.is_empty() {
            match send(fd, unsent) {
                Ok(len) => drop(unsent.drain(..len)),
                Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
            }
        }
        // SAFETY: the buffer is borrowed for the call.
        let read = unsafe {
            let at = buffer.as_mut_ptr().cast();
            libc::recv(fd, at, buffer.len(), libc::MSG_DONTWAIT)
        };
        let len = match check(read) {
            Ok(0) => return false,
            Ok(len) => len,
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        };
        let sent = match send(fd, &buffer[..len]) {
            Ok(sent) => sent,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(_) => return false,
        };
        if sent == len && len < buffer.len() {
            return true;
        }
        unsent.extend(&buffer[sent..len]);
    }
}

fn send(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the bytes are borrowed for the call.
    check(unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) })
}

fn check(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}
