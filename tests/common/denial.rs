//! Makes the system refuse: seccomp filters, and a limit of locked memory for a process without
//! privileges. Each for the whole process, so only for one that runs a single test.

use std::io;

/// The calls of io_uring.
pub const SETUP: libc::c_long = libc::SYS_io_uring_setup;
pub const ENTER: libc::c_long = libc::SYS_io_uring_enter;
pub const REGISTER: libc::c_long = libc::SYS_io_uring_register;

/// From now on these calls of this process end so, in its present thread and those it starts.
pub fn filter(calls: &[libc::c_long], action: u32) {
    filter_where(libc::BPF_JEQ, calls, action);
}

/// [`filter`] for calls whose number compares so with one of these.
fn filter_where(comparison: u32, calls: &[libc::c_long], action: u32) {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let jump = (libc::BPF_JMP | comparison | libc::BPF_K) as u16;
    let step = |code, jt, k| libc::sock_filter { code, jt, jf: 0, k };
    // The number of the call is the first word of what a filter is shown.
    let mut program = vec![step(LOAD, 0, 0)];
    for (at, &call) in calls.iter().enumerate() {
        let to_action = calls.len() - at;
        program.push(step(jump, to_action as u8, call as u32));
    }
    program.push(step(RETURN, 0, libc::SECCOMP_RET_ALLOW));
    program.push(step(RETURN, 0, action));
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the filter and its program live through the calls, which copy them.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter),
            0
        );
    }
}

/// [`filter`] with an error.
pub fn deny(calls: &[libc::c_long], errno: i32) {
    filter(calls, libc::SECCOMP_RET_ERRNO | errno as u32);
}

/// Leaves this process the calls that Linux 4.19 has. The younger ones have the same numbers on all
/// architectures, from this one on.
pub fn deny_younger_than_4_19() {
    const FIRST: libc::c_long = 424;
    filter_where(
        libc::BPF_JGE,
        &[FIRST],
        libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32,
    );
}

/// The signal of which a copy of this process dies when it sets up a ring.
pub fn signal_of_setup() -> Option<i32> {
    let mut status = 0;
    // SAFETY: the copy makes two plain system calls and ends; `status` is valid for the call.
    unsafe {
        let copy = libc::fork();
        if copy == 0 {
            libc::syscall(SETUP, 1, std::ptr::null_mut::<u8>());
            libc::_exit(0);
        }
        assert_eq!(libc::waitpid(copy, &raw mut status, 0), copy);
    }
    libc::WIFSIGNALED(status).then(|| libc::WTERMSIG(status))
}

/// Limits the memory that this process may lock, and gives up the right to exceed that.
///
/// # Errors
/// This process may not.
pub fn limit_locked_memory(bytes: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: bytes as _,
        rlim_max: bytes as _,
    };
    // SAFETY: the limit is borrowed for the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    drop_capabilities()
}

fn drop_capabilities() -> io::Result<()> {
    /// The third version of the interface: two words for each of three sets.
    const VERSION: u32 = 0x2008_0522;
    let header = [VERSION, 0];
    let none = [0u32; 6];
    // SAFETY: the header and the sets have the layout of this version, and are borrowed for the
    // call.
    let refused = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    match refused {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
