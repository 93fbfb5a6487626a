//! A server as a process of its own, and what it costs: CPU time and memory, from `/proc`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::Fallible;
use crate::servers::Server;

/// The core of the servers, and the one of the load.
pub const SERVER_CPU: usize = 0;
pub const LOAD_CPU: usize = 1;

/// A running server. Ends with its standard input, at the latest when this is dropped.
pub struct Running {
    child: Child,
    _stdin: ChildStdin,
    pub addr: SocketAddr,
}

impl Running {
    /// Starts a server and waits until it listens.
    pub fn start(server: &Server) -> Fallible<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["serve", "--server", server.name])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().ok_or("no pipe")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no pipe")?).read_line(&mut line)?;
        let Some(addr) = line.strip_prefix("listening on ") else {
            child.wait()?;
            return Err(format!("{} did not start", server.name).into());
        };
        Ok(Running {
            addr: addr.trim().parse()?,
            _stdin: stdin,
            child,
        })
    }

    /// Nanoseconds of CPU that all its threads have used.
    pub fn cpu_ns(&self) -> u64 {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let threads = tasks.into_iter().flatten().flatten();
        let times = threads.filter_map(|thread| {
            let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        times.sum()
    }

    /// Bytes of memory that are resident.
    pub fn resident_bytes(&self) -> Fallible<u64> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let line = text.lines().find(|line| line.starts_with("Rss:"));
        let kib: u64 = line
            .and_then(|line| line.split_whitespace().nth(1))
            .ok_or("no Rss in smaps_rollup")?
            .parse()?;
        Ok(kib * 1024)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already, or ends by this.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes of the kernel's own memory: slabs.
pub fn kernel_bytes() -> Fallible<u64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with("Slab:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().nth(1))
        .ok_or("no Slab in meminfo")?
        .parse()?;
    Ok(kib * 1024)
}

/// Binds this process to a core.
pub fn pin(cpu: usize) -> Fallible<()> {
    // SAFETY: a set of zeros is valid and empty; the set is borrowed for the call.
    let pinned = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    if pinned == 0 {
        Ok(())
    } else {
        Err(std::io::Error::last_os_error().into())
    }
}

/// As many descriptors as this process may have.
pub fn raise_limits() {
    // SAFETY: the limit is borrowed for the calls.
    unsafe {
        let mut limit: libc::rlimit = std::mem::zeroed();
        libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
        limit.rlim_cur = limit.rlim_max;
        // What is refused shows when descriptors run out.
        libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
    }
}
