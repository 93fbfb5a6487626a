//! A server as a process of its own, and what it costs, from `/proc`; the limits of this process.
#![expect(unsafe_code, reason = "calls that the standard library does not have")]

use std::fs;
use std::io::{self, BufRead, BufReader, IsTerminal, Read};
use std::net::SocketAddr;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::Fallible;
use crate::servers::Server;

/// The core of the servers, and the one of the load.
pub const SERVER_CPU: usize = 0;
pub const LOAD_CPU: usize = 1;

/// A running server. Ends when this is dropped, or when this process is gone.
pub struct Running {
    child: Child,
    _stdin: ChildStdin,
    pub addr: SocketAddr,
}

impl Running {
    /// Starts a server and waits until it listens.
    pub fn start(server: &Server) -> Fallible<Self> {
        Running::start_under(server, Command::new(std::env::current_exe()?), 0)
    }

    /// Starts a server with a command that this program is an argument of, if it is not the command
    /// itself. It ends when so many connections have closed, unless that is 0.
    pub fn start_under(server: &Server, mut command: Command, closes: usize) -> Fallible<Self> {
        command.args(["serve", "--server", server.name]);
        command.args(["--pin", &SERVER_CPU.to_string()]);
        if closes > 0 {
            command.args(["--closes", &closes.to_string()]);
        }
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let stdin = child.stdin.take().ok_or("no pipe to the server")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().ok_or("no pipe from the server")?)
            .read_line(&mut line)?;
        let Some(addr) = line.strip_prefix("listening on ") else {
            let mut why = String::new();
            if let Some(mut stderr) = child.stderr.take() {
                stderr.read_to_string(&mut why)?;
            }
            child.wait()?;
            return Err(why.trim().into());
        };
        Ok(Running {
            addr: addr.trim().parse()?,
            _stdin: stdin,
            child,
        })
    }

    /// The numbers of its threads.
    pub fn threads(&self) -> Vec<u32> {
        let tasks = fs::read_dir(format!("/proc/{}/task", self.child.id()));
        let tasks = tasks.into_iter().flatten().flatten();
        tasks
            .filter_map(|task| task.file_name().to_str()?.parse().ok())
            .collect()
    }

    /// Nanoseconds of CPU that all its threads have used.
    pub fn cpu_ns(&self) -> u64 {
        let times = self.threads().into_iter().filter_map(|thread| {
            let path = format!("/proc/{}/task/{thread}/schedstat", self.child.id());
            let text = fs::read_to_string(path).ok()?;
            text.split(' ').next()?.parse::<u64>().ok()
        });
        times.sum()
    }

    /// Bytes of a kind of its memory, by its name in `smaps_rollup`.
    pub fn memory_bytes(&self, kind: &str) -> Fallible<u64> {
        let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        kib_line(&text, kind)
    }
}

impl Running {
    /// Waits until it has ended by itself.
    pub fn wait(mut self) -> Fallible<()> {
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already, or ends by this.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The bytes in a line like `Rss:   12 kB`.
pub fn kib_line(text: &str, name: &str) -> Fallible<u64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(name));
    let number = rest.and_then(|rest| rest.split_whitespace().next());
    let kib: u64 = number
        .ok_or(format!("the kernel tells no {name}"))?
        .parse()?;
    Ok(kib * 1024)
}

/// Binds this process to a core.
pub fn pin(cpu: usize) -> Fallible<()> {
    // SAFETY: a set of zeros is valid and empty; the set is borrowed for the call.
    let pinned = unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu % libc::CPU_SETSIZE as usize, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
    };
    match pinned {
        0 => Ok(()),
        _ => Err(format!("no core {cpu} to run on: {}", io::Error::last_os_error()).into()),
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

/// Lets this process end when its standard input does, without a thread that waits for that: a
/// second thread would make each system call of a server dearer.
pub fn end_with_stdin() {
    if io::stdin().is_terminal() {
        return;
    }
    // SAFETY: no memory is passed. The signal's default is to end the process.
    unsafe {
        libc::fcntl(0, libc::F_SETOWN, libc::getpid());
        libc::fcntl(0, libc::F_SETFL, libc::O_ASYNC);
    }
}

/// Nanoseconds of CPU that this thread has used.
pub fn own_cpu_ns() -> u64 {
    let text = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text
        .split(' ')
        .next()
        .and_then(|number| number.parse().ok());
    first.unwrap_or(0)
}
