//! Binds a thread to a processor. Each system that can do so has a call of its own.

use crate::error::{Errno, Error, ErrorContext, ErrorKind};

/// Binds the calling thread to one CPU.
///
/// # Errors
/// `Os` with `EINVAL` if there is no such CPU, or this process may not use it; `Unsupported` if the
/// system has no such call.
pub fn pin_thread(cpu: usize) -> Result<(), Error> {
    imp::pin_thread(cpu).map_err(|errno| match errno {
        Errno(libc::ENOTSUP) => ErrorContext::Pin.error(ErrorKind::Unsupported),
        errno => ErrorContext::Pin.os_error(errno),
    })
}

#[cfg(any(target_os = "linux", target_os = "android"))]
mod imp {
    use crate::error::Errno;
    use crate::sys::check;

    pub(super) fn pin_thread(cpu: usize) -> Result<(), Errno> {
        if cpu >= 8 * size_of::<libc::cpu_set_t>() {
            return Err(Errno(libc::EINVAL));
        }
        // SAFETY: a set of zeros is valid and empty; `cpu` is within it; the set is borrowed for
        // the call.
        check(unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set)
        })
        .map(drop)
    }
}

#[cfg(any(target_os = "freebsd", target_os = "dragonfly"))]
mod imp {
    use crate::error::Errno;

    pub(super) fn pin_thread(cpu: usize) -> Result<(), Errno> {
        if cpu >= 8 * size_of::<libc::cpuset_t>() {
            return Err(Errno(libc::EINVAL));
        }
        // SAFETY: a set of zeros is valid and empty; `cpu` is within it; the set is borrowed for
        // the call.
        let refused = unsafe {
            let mut set: libc::cpuset_t = std::mem::zeroed();
            libc::CPU_SET(cpu, &mut set);
            let this = libc::pthread_self();
            libc::pthread_setaffinity_np(this, size_of::<libc::cpuset_t>(), &raw const set)
        };
        match refused {
            0 => Ok(()),
            // FreeBSD's error for a processor that does not exist.
            libc::EDEADLK => Err(Errno(libc::EINVAL)),
            errno => Err(Errno(errno)),
        }
    }
}

#[cfg(target_os = "netbsd")]
mod imp {
    use crate::error::Errno;

    pub(super) fn pin_thread(cpu: usize) -> Result<(), Errno> {
        let cpu = libc::cpuid_t::try_from(cpu).map_err(|_| Errno(libc::EINVAL))?;
        // SAFETY: the set is made, used and destroyed here, and nowhere else.
        unsafe {
            let set = libc::_cpuset_create();
            if set.is_null() {
                return Err(Errno(libc::ENOMEM));
            }
            let refused = match libc::_cpuset_set(cpu, set) {
                0 => {
                    let this = libc::pthread_self();
                    libc::pthread_setaffinity_np(this, libc::_cpuset_size(set), set)
                }
                _ => libc::EINVAL,
            };
            libc::_cpuset_destroy(set);
            if refused == 0 {
                Ok(())
            } else {
                Err(Errno(refused))
            }
        }
    }
}

#[cfg(not(any(
    target_os = "linux",
    target_os = "android",
    target_os = "freebsd",
    target_os = "dragonfly",
    target_os = "netbsd"
)))]
mod imp {
    use crate::error::Errno;

    pub(super) fn pin_thread(_: usize) -> Result<(), Errno> {
        Err(Errno(libc::ENOTSUP))
    }
}
