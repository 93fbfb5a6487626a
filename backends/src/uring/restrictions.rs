//! Restrictions of a ring: the kernel then allows only the operations that this library uses.
//! Somebody who gets hold of the ring's descriptor or memory can receive and send, but not open
//! files. They are registered once, before the ring is enabled. All operations that are not listed
//! here end with `EACCES`.

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue};

use crate::error::SetupError;

/// The operations of `io_uring_register(2)` that are used later, by their numbers in the kernel's
/// header.
const REGISTER_EVENTFD: u8 = 4;
const UNREGISTER_EVENTFD: u8 = 5;
const REGISTER_ENABLE_RINGS: u8 = 12;

/// Restricts a ring that is not enabled yet and has its files and buffers registered.
pub(super) fn restrict(ring: &IoUring) -> Result<(), SetupError> {
    let flags = squeue::Flags::BUFFER_SELECT | squeue::Flags::SKIP_SUCCESS;
    let submissions = [
        opcode::Recv::CODE,
        opcode::Send::CODE,
        opcode::SendMsg::CODE,
        opcode::Accept::CODE,
        opcode::Connect::CODE,
        opcode::PollAdd::CODE,
        opcode::AsyncCancel::CODE,
        // The waker's event.
        opcode::Read::CODE,
    ];
    let registrations = [REGISTER_EVENTFD, UNREGISTER_EVENTFD, REGISTER_ENABLE_RINGS];
    let mut all = vec![Restriction::sqe_flags_allowed(flags.bits())];
    all.extend(submissions.map(Restriction::sqe_op));
    all.extend(registrations.map(Restriction::register_op));
    ring.submitter()
        .register_restrictions(&mut all)
        .map_err(|error| super::setup::setup_error("restricting the ring", &error))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stderr)]

    use super::super::Uring;
    use super::*;
    use crate::{Backend, Options};

    /// The result of an operation that names no memory.
    fn outcome(restricted: bool, entry: &squeue::Entry) -> i32 {
        let options = Options {
            restricted,
            ..Options::SMALL
        };
        let (mut uring, _) = Uring::new(&options).unwrap();
        uring.bind().unwrap();
        // SAFETY: the callers' entries name no memory; there is no other queue of this ring.
        unsafe { uring.ring.submission_shared().push(entry) }.unwrap();
        uring.ring.submitter().submit_and_wait(1).unwrap();
        // SAFETY: there is no other queue of this ring.
        let done = unsafe { uring.ring.completion_shared() }.next();
        done.unwrap().result()
    }

    #[test]
    fn forbidden_operations_are_refused_by_the_kernel() {
        let ring = Uring::new(&Options::SMALL);
        if let Err(setup_error) = ring {
            return eprintln!("skipped: no io_uring here: {setup_error:?}");
        }
        let nop = opcode::Nop::new().build();
        assert_eq!(outcome(false, &nop), 0);
        assert_eq!(outcome(true, &nop), -libc::EACCES);
        // Only its flags are forbidden.
        let cancel = opcode::AsyncCancel::new(7).build();
        assert_eq!(outcome(true, &cancel), -libc::ENOENT);
        let drained = cancel.flags(squeue::Flags::IO_DRAIN);
        assert_eq!(outcome(false, &drained), -libc::ENOENT);
        assert_eq!(outcome(true, &drained), -libc::EACCES);
    }

    #[test]
    fn forbidden_registrations_are_refused_by_the_kernel() {
        for (restricted, refused) in [(false, false), (true, true)] {
            let options = Options {
                restricted,
                ..Options::SMALL
            };
            let Ok((mut uring, _)) = Uring::new(&options) else {
                return eprintln!("skipped: no io_uring here");
            };
            uring.bind().unwrap();
            let personality = uring.ring.submitter().register_personality();
            assert_eq!(personality.is_err(), refused, "{personality:?}");
        }
    }
}
