//! The clients' sockets.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::Fallible;
use crate::net::tune;

/// One address has ports for some more than that.
const PER_ADDRESS: usize = 16_000;

/// So many connected sockets. Beyond what the ports of one address allow, they come from others of
/// the loopback network.
pub fn connect(to: SocketAddr, count: usize) -> Fallible<Vec<TcpStream>> {
    (0..count).map(|index| connect_one(to, index)).collect()
}

/// Connections that do nothing.
pub fn idle(to: SocketAddr, count: usize) -> Fallible<Vec<TcpStream>> {
    connect(to, count)
}

fn connect_one(to: SocketAddr, index: usize) -> Fallible<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
    tune(&socket)?;
    // A reset at the end: no port stays taken.
    socket.set_linger(Some(Duration::ZERO))?;
    if let (1.., IpAddr::V4(address)) = (index / PER_ADDRESS, to.ip())
        && address.is_loopback()
    {
        let from = Ipv4Addr::from_bits(address.to_bits() + (index / PER_ADDRESS) as u32);
        socket.bind(&SocketAddr::from((from, 0)).into())?;
    }
    socket.connect(&to.into())?;
    Ok(socket.into())
}
