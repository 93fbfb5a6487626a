//! What can be asked of a connection: its socket, its addresses, its peer.

use std::os::fd::BorrowedFd;

use gaio_backends::{
    Address, Backend, Errno, Error, ErrorContext, ErrorKind, PeerCred, Result, local_addr,
    peer_addr, peer_cred,
};

use super::Watcher;
use crate::conn::Conn;

impl<C> Watcher<C> {
    /// Whether this watcher has the connection: the handle is its own and was not freed or reclaimed.
    /// False on a wrong thread.
    pub fn contains(&self, conn: Conn) -> bool {
        self.engine.is_open(conn) && self.owner.rejection().is_none()
    }

    /// The socket, to inspect it or to set options, for instance with the crate `socket2`. Do not
    /// read from it or write to it, and, on macOS and the BSDs, do not make it blocking.
    ///
    /// ```
    /// use gaio::{ListenOptions, Watcher};
    /// use socket2::SockRef;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let mut watcher = Watcher::<()>::new()?;
    /// let listener = watcher.listen(ListenOptions::new().bind("127.0.0.1:0")?)?;
    /// // Accepted connections inherit it.
    /// SockRef::from(&watcher.socket(listener)?).set_keepalive(true)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `ConnClosed`, `WrongThread`, `Forked`.
    pub fn socket(&self, conn: Conn) -> Result<BorrowedFd<'_>> {
        self.check_here(ErrorContext::Inspect)?;
        let open = self.engine.is_open(conn);
        let socket = self.engine.backend.socket(conn.slot()).filter(|_| open);
        socket.ok_or(ErrorContext::Inspect.error(ErrorKind::ConnClosed))
    }

    /// The address of the other end.
    ///
    /// # Errors
    /// - `ConnClosed`, `WrongThread`, `Forked`.
    /// - `Os`: `ENOTCONN` if the socket is not connected, `ENOTSOCK` if it is no socket.
    pub fn peer_addr(&self, conn: Conn) -> Result<Address> {
        peer_addr(self.socket(conn)?).map_err(refused)
    }

    /// The address of this end. For a listener, the address on which it listens.
    ///
    /// ```
    /// use gaio::{Address, ListenOptions, Watcher};
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let mut watcher = Watcher::<()>::new()?;
    /// let listener = watcher.listen(ListenOptions::new().bind("127.0.0.1:0")?)?;
    /// match watcher.local_addr(listener)? {
    ///     Address::Ip(address) => println!("port {}", address.port()),
    ///     other => println!("{other}"),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// - `ConnClosed`, `WrongThread`, `Forked`.
    /// - `Os`: `ENOTSOCK` if it is no socket.
    pub fn local_addr(&self, conn: Conn) -> Result<Address> {
        local_addr(self.socket(conn)?).map_err(refused)
    }

    /// The bytes of the connection's writes that the kernel does not have yet, as of the last turn. 0 for a
    /// handle that is not valid, and on a wrong thread. A write counts from the call on, also while the connection is being made.
    ///
    /// ```
    /// use gaio::{Results, Watcher};
    /// use std::os::unix::net::UnixStream;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let (ours, _peer) = UnixStream::pair()?;
    /// let mut watcher = Watcher::new()?;
    /// let conn = watcher.delegate(ours)?;
    /// watcher.write((), conn, "hello")?;
    /// assert_eq!(watcher.queued_bytes(conn), 5);
    /// watcher.wait_io(&mut Results::new())?;
    /// assert_eq!(watcher.queued_bytes(conn), 0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn queued_bytes(&self, conn: Conn) -> usize {
        match self.owner.rejection() {
            None => self.engine.queued_bytes(conn),
            Some(_) => 0,
        }
    }

    /// The process at the other end of a Unix socket, as it was when the connection was made. Whoever was
    /// given the socket later has no part in it.
    ///
    /// # Errors
    /// - `Unsupported` if it is not a Unix socket.
    /// - `ConnClosed`, `WrongThread`, `Forked`.
    /// - `Os`: `ENOTCONN` if the socket is not connected, `ENOTSOCK` if it is no socket.
    pub fn peer_cred(&self, conn: Conn) -> Result<PeerCred> {
        peer_cred(self.socket(conn)?)
    }
}

fn refused(errno: Errno) -> Error {
    ErrorContext::Inspect.os_error(errno)
}
