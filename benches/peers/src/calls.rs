//! Counts the system calls of a process, from outside and at no cost to be seen: the kernel has a
//! tracepoint for them. That takes root; without, nothing is counted.
#![expect(
    unsafe_code,
    reason = "perf_event_open and mount have no safe wrapper here"
)]

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::FromRawFd;

use crate::process::Running;

const TRACING: &str = "/sys/kernel/tracing";
/// `PERF_TYPE_TRACEPOINT`
const TRACEPOINT: u64 = 2;
/// The first version of `struct perf_event_attr`.
const ATTR_BYTES: u64 = 64;
/// `PERF_FLAG_FD_CLOEXEC`
const CLOSE_ON_EXEC: u64 = 8;

/// Counts for one process: an event for each of its threads.
pub struct Calls(Vec<File>);

impl Calls {
    /// Begins to count.
    pub fn of(running: &Running) -> Option<Self> {
        let id: u64 = tracepoint()?.trim().parse().ok()?;
        let threads = running.threads();
        let events = threads.into_iter().map(|thread| open(id, thread));
        events.collect::<Option<_>>().map(Calls)
    }

    /// How many there were so far.
    pub fn count(&self) -> u64 {
        let count = |mut event: &File| {
            let mut bytes = [0; 8];
            event
                .read_exact(&mut bytes)
                .map(|()| u64::from_ne_bytes(bytes))
        };
        self.0.iter().filter_map(|event| count(event).ok()).sum()
    }
}

fn open(id: u64, thread: u32) -> Option<File> {
    // Type (4 bytes) and size (4), config; the rest is zero: count, and do nothing else.
    let attr = [TRACEPOINT | ATTR_BYTES << 32, id, 0, 0, 0, 0, 0, 0];
    // SAFETY: the attributes are borrowed for the call and as long as they say.
    let fd = unsafe {
        let (any_cpu, no_group) = (-1, -1);
        libc::syscall(
            libc::SYS_perf_event_open,
            attr.as_ptr(),
            thread,
            any_cpu,
            no_group,
            CLOSE_ON_EXEC,
        )
    };
    // SAFETY: the descriptor is new, and nobody else's.
    (fd >= 0).then(|| unsafe { File::from_raw_fd(fd as i32) })
}

/// The number of the tracepoint of system calls. If its file system is not there, it is mounted for
/// this process alone.
fn tracepoint() -> Option<String> {
    let path = format!("{TRACING}/events/raw_syscalls/sys_enter/id");
    if let Ok(id) = fs::read_to_string(&path) {
        return Some(id);
    }
    // SAFETY: the strings end with zero and live through the calls.
    unsafe {
        if libc::unshare(libc::CLONE_NEWNS) != 0 {
            return None;
        }
        let (none, nothing) = (c"none".as_ptr(), std::ptr::null());
        let private = libc::MS_REC | libc::MS_PRIVATE;
        libc::mount(none, c"/".as_ptr(), nothing, private, std::ptr::null());
        let (what, place) = (c"tracefs".as_ptr(), c"/sys/kernel/tracing".as_ptr());
        libc::mount(what, place, what, 0, std::ptr::null());
    }
    fs::read_to_string(&path).ok()
}
