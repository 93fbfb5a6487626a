//! Writes: short ones, batches, and failures.

use super::*;

#[test]
fn short_write_then_rest() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    let data: Vec<u8> = (0..8 << 20).map(|i| (i % 251) as u8).collect();
    let expected = data.clone();
    let reader = std::thread::spawn(move || {
        let mut got = vec![0; expected.len()];
        peer.read_exact(&mut got).unwrap();
        assert!(got == expected);
    });
    rig.write(0, data);
    let mut steps = 1;
    loop {
        let written = rig.one();
        if rig.advance(&written) {
            break;
        }
        rig.start(0, Lane::Write, Request::Write);
        steps += 1;
    }
    assert!(steps > 1);
    reader.join().unwrap();
}

#[test]
fn batch_is_one_call() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    let at = LaneId::new(0, Lane::Write);
    let all = ["__one ", "two ", "three"];
    let mut buffers = all.map(Buffer::from).into();
    rig.backend.op_table().put_many(at, &mut buffers, 2);
    assert!(buffers.is_empty());
    rig.start(0, Lane::Write, Request::WriteMany);
    let written = rig.one();
    assert_eq!((written.at, written.result()), (at, Ok(13)));
    assert_eq!(rig.backend.op_table().take_many(at, &mut buffers), 2);
    assert!(
        buffers
            .iter()
            .map(|buffer| &buffer[..])
            .eq(all.map(str::as_bytes))
    );
    assert_eq!(rig.backend.counts().writes, 1);
    let mut got = [0; 13];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"one two three");
}

#[test]
fn reset_ends_both_lanes() {
    let mut rig = Rig::new();
    let peer = rig.pair(0);
    rig.write(0, vec![0; 16 << 20]);
    let written = rig.one();
    rig.advance(&written);
    rig.start(0, Lane::Write, Request::Write);
    rig.start(0, Lane::Read, Request::ReadSwap);
    SockRef::from(&peer)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(peer);
    let mut ended = Vec::new();
    while ended.len() < 2 {
        for completion in rig.completions() {
            match completion.result() {
                Err(Errno(errno)) => ended.push(errno),
                // The peer has taken some bytes before.
                Ok(_) => {
                    rig.advance(&completion);
                    rig.start(0, Lane::Write, Request::Write);
                }
            }
        }
    }
    assert!(ended.contains(&libc::ECONNRESET), "{ended:?}");
}

/// Makes `send(2)` and `sendmsg(2)` report in this thread, from now on, that there is no memory for
/// buffers.
#[cfg(target_os = "linux")]
fn deny_sending() {
    let step = |code, jt, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf: 0,
        k,
    };
    let data = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    let is = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    let end = libc::BPF_RET | libc::BPF_K;
    let mut program = [
        step(data, 0, 0),
        step(is, 2, libc::SYS_sendto as u32),
        step(is, 1, libc::SYS_sendmsg as u32),
        step(end, 0, libc::SECCOMP_RET_ALLOW),
        step(end, 0, libc::SECCOMP_RET_ERRNO | libc::ENOBUFS as u32),
    ];
    let filter = libc::sock_fprog {
        len: program.len() as u16,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: the filter and its program live through the calls, which copy them; they concern
    // this thread alone.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        let mode = libc::SECCOMP_MODE_FILTER;
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const filter),
            0
        );
    }
}

/// No event reports when there is memory again. So the write ends, and the bytes stay to be
/// written.
#[cfg(target_os = "linux")]
#[test]
fn write_without_memory_ends() {
    let mut rig = Rig::new();
    let mut peer = rig.pair(0);
    rig.quiet();
    let denied = std::thread::spawn(move || {
        deny_sending();
        rig.write(0, b"late");
        assert_eq!(rig.one().result(), Err(Errno(libc::ENOBUFS)));
        rig
    });
    let mut rig = denied.join().unwrap();
    rig.write(0, b"late");
    assert_eq!(rig.one().result(), Ok(4));
    let mut got = [0; 4];
    peer.read_exact(&mut got).unwrap();
    assert_eq!(&got, b"late");
}
