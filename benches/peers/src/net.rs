//! Sockets that are alike on all servers: what is set on a listener, accepted sockets inherit.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsFd;

use socket2::{Domain, SockRef, Socket, Type};

use crate::Fallible;

const BACKLOG: i32 = 4096;
/// The first that the kernel has. Pacing ones cost more on a loopback device and hide differences.
const CONGESTION: [&[u8]; 2] = [b"cubic", b"reno"];

/// A listener on any port of the loopback device.
pub fn listen(addr: SocketAddr) -> Fallible<TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    tune(&socket)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// No delay, and a plain congestion control.
pub fn tune(socket: &impl AsFd) -> Fallible<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let set = |name: &&[u8]| socket.set_tcp_congestion(name).is_ok();
    if CONGESTION.iter().any(set) {
        Ok(())
    } else {
        Err("neither cubic nor reno is there as a congestion control".into())
    }
}
