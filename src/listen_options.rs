//! `ListenOptions`: listening sockets, with the options that servers need.

use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::net::UnixListener;
use std::path::Path;

use socket2::{Domain, SockAddr, Socket, Type};

/// Options of a listening socket. It is bound to an address at the end, and then handed to
/// [`Watcher::listen`](crate::Watcher::listen).
///
/// As with the standard library, the address can be bound again at once after a restart
/// (`SO_REUSEADDR`).
///
/// ```
/// use gaio::{ListenOptions, Watcher};
///
/// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
/// let listener = ListenOptions::new().backlog(1024).bind("127.0.0.1:0")?;
/// let mut watcher = Watcher::new()?;
/// let listener = watcher.listen(listener)?;
/// watcher.accept((), listener)?;
/// println!("listening on {}", watcher.local_addr(listener)?);
/// # Ok(())
/// # }
/// ```
///
/// With one watcher for each thread, each can have a listener of its own on the same port. Linux,
/// FreeBSD and DragonFly spread the connections over them:
///
/// ```
/// use gaio::ListenOptions;
///
/// # fn main() -> std::io::Result<()> {
/// let options = ListenOptions::new().reuse_port(true);
/// let first = options.bind("127.0.0.1:0")?;
/// let second = options.bind(first.local_addr()?)?;
/// # drop(second);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct ListenOptions {
    reuse_port: bool,
    backlog: u32,
    nodelay: bool,
    only_v6: Option<bool>,
}

impl ListenOptions {
    /// The default options.
    pub const fn new() -> Self {
        ListenOptions {
            reuse_port: false,
            backlog: 4096,
            nodelay: true,
            only_v6: None,
        }
    }

    /// Whether other sockets with this option may listen on the same address. Default: no. Linux, FreeBSD
    /// and DragonFly spread the connections over all of them; on other systems one of them gets all. It
    /// does not matter for Unix sockets.
    pub const fn reuse_port(mut self, on: bool) -> Self {
        self.reuse_port = on;
        self
    }

    /// The number of connections that may wait to be accepted. Default: 4096. Most systems have a lower
    /// or an equal limit of their own (`net.core.somaxconn`, `kern.ipc.soacceptqueue`).
    pub const fn backlog(mut self, connections: u32) -> Self {
        self.backlog = connections;
        self
    }

    /// Whether accepted TCP connections send small writes at once (`TCP_NODELAY`). Default: yes. They
    /// inherit this from the listener, on every system. Otherwise TCP holds a small write back until the
    /// one before is acknowledged, which can take 40 ms.
    pub const fn nodelay(mut self, on: bool) -> Self {
        self.nodelay = on;
        self
    }

    /// Whether a listener on an IPv6 address takes IPv6 connections only. Default: what the system does,
    /// which is no on Linux unless the administrator changed it, and yes on most BSDs. OpenBSD has no
    /// other way than yes. It does not matter for other addresses.
    pub const fn only_v6(mut self, on: bool) -> Self {
        self.only_v6 = Some(on);
        self
    }

    /// Listens on a TCP address. If there are several, as for a name, the first that works is taken.
    ///
    /// # Errors
    /// The system's error for the last address, such as `AddrInUse`. Those of the look-up of a name,
    /// which can block. `InvalidInput` if there is no address.
    pub fn bind(&self, address: impl ToSocketAddrs) -> io::Result<TcpListener> {
        let mut refused = None;
        for address in address.to_socket_addrs()? {
            match self.bind_ip(address) {
                Ok(listener) => return Ok(listener),
                Err(error) => refused = Some(error),
            }
        }
        let nothing = || io::Error::new(io::ErrorKind::InvalidInput, "no address to listen on");
        Err(refused.unwrap_or_else(nothing))
    }

    /// Listens on a Unix socket with this path.
    ///
    /// The file stays when the listener is closed. One that is left of an earlier server is not removed,
    /// because that server may still run: the call fails with `AddrInUse`. To take over, see whether
    /// anybody answers:
    ///
    /// ```
    /// use gaio::ListenOptions;
    /// use std::io::{self, ErrorKind};
    /// use std::os::unix::net::{UnixListener, UnixStream};
    /// use std::path::Path;
    ///
    /// fn listen(path: &Path) -> io::Result<UnixListener> {
    ///     let options = ListenOptions::new();
    ///     match options.bind_unix(path) {
    ///         Err(error) if error.kind() == ErrorKind::AddrInUse => {
    ///             match UnixStream::connect(path) {
    ///                 // Nobody listens there any more.
    ///                 Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
    ///                     std::fs::remove_file(path)?;
    ///                     options.bind_unix(path)
    ///                 }
    ///                 _ => Err(error),
    ///             }
    ///         }
    ///         bound => bound,
    ///     }
    /// }
    ///
    /// # fn main() -> io::Result<()> {
    /// let path = std::env::temp_dir().join(format!("gaio-listen.{}", std::process::id()));
    /// drop(listen(&path)?); // the file stays
    /// let listener = listen(&path)?;
    /// assert_eq!(listen(&path).unwrap_err().kind(), ErrorKind::AddrInUse);
    /// # drop(listener);
    /// # std::fs::remove_file(&path)
    /// # }
    /// ```
    ///
    /// # Errors
    /// The system's: `AddrInUse` if there is a file of this name, `InvalidInput` if the path is too long,
    /// `NotFound` if there is no such directory.
    pub fn bind_unix(&self, path: impl AsRef<Path>) -> io::Result<UnixListener> {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
        self.listen(&socket, &SockAddr::unix(path)?)?;
        Ok(socket.into())
    }

    fn bind_ip(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        if self.reuse_port {
            share_port(&socket)?;
        }
        if let (Some(on), true) = (self.only_v6, address.is_ipv6()) {
            socket.set_only_v6(on)?;
        }
        socket.set_tcp_nodelay(self.nodelay)?;
        self.listen(&socket, &address.into())?;
        Ok(socket.into())
    }

    fn listen(&self, socket: &Socket, address: &SockAddr) -> io::Result<()> {
        socket.bind(address)?;
        socket.listen(i32::try_from(self.backlog).unwrap_or(i32::MAX))
    }
}

impl Default for ListenOptions {
    fn default() -> Self {
        ListenOptions::new()
    }
}

/// Lets others listen on the same port, so that the system spreads the connections if it can.
fn share_port(socket: &Socket) -> io::Result<()> {
    #[cfg(target_os = "freebsd")]
    return socket.set_reuse_port_lb(true);
    #[cfg(not(target_os = "freebsd"))]
    socket.set_reuse_port(true)
}
