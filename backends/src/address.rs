//! Addresses to connect to, and addresses of peers.

use std::fmt;
use std::io;
use std::net::SocketAddr;
#[cfg(target_os = "android")]
use std::os::android::net::SocketAddrExt;
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr as UnixAddr;
use std::path::Path;

use socket2::{Domain, SockAddr};

use crate::error::Errno;

/// The address of a TCP or a Unix socket.
///
/// ```
/// use gaio::Address;
/// use std::net::SocketAddr;
///
/// let address = Address::from(SocketAddr::from(([127, 0, 0, 1], 7000)));
/// assert_eq!(address.to_string(), "127.0.0.1:7000");
///
/// let path = std::os::unix::net::SocketAddr::from_pathname("/run/service").expect("short enough");
/// assert_eq!(Address::from(path).to_string(), "/run/service");
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Address {
    /// An IP address and a port.
    Ip(SocketAddr),
    /// A path, an abstract name, or no name.
    Unix(UnixAddr),
}

impl Address {
    /// The form that system calls take.
    pub(crate) fn to_raw(&self) -> Result<SockAddr, Errno> {
        match self {
            Address::Ip(ip) => Ok(SockAddr::from(*ip)),
            Address::Unix(unix) => unix_to_raw(unix).map_err(Errno::from),
        }
    }

    pub(crate) fn from_raw(raw: &SockAddr) -> Option<Self> {
        if let Some(ip) = raw.as_socket() {
            return Some(Address::Ip(ip));
        }
        // Some systems (OpenBSD) return nothing at all for a Unix socket without a name.
        let is_unix = raw.is_unix() || raw.len() == 0;
        let unix = is_unix.then(|| unix_from_raw(raw))?;
        unix.ok().map(Address::Unix)
    }

    pub(crate) fn domain(&self) -> Domain {
        match self {
            Address::Ip(ip) => Domain::for_address(*ip),
            Address::Unix(_) => Domain::UNIX,
        }
    }
}

fn unix_from_raw(raw: &SockAddr) -> io::Result<UnixAddr> {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    if let Some(name) = raw.as_abstract_namespace() {
        return UnixAddr::from_abstract_name(name);
    }
    // An empty path stands for no name.
    UnixAddr::from_pathname(raw.as_pathname().unwrap_or(Path::new("")))
}

fn unix_to_raw(unix: &UnixAddr) -> io::Result<SockAddr> {
    if let Some(path) = unix.as_pathname() {
        return SockAddr::unix(path);
    }
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        use std::ffi::OsStr;
        use std::os::unix::ffi::OsStrExt;

        if let Some(name) = unix.as_abstract_name() {
            let with_nul = [b"\0", name].concat();
            return SockAddr::unix(OsStr::from_bytes(&with_nul));
        }
    }
    Err(io::Error::from_raw_os_error(libc::EINVAL))
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(ip) => ip.fmt(f),
            Address::Unix(unix) => match unix.as_pathname() {
                Some(path) => write!(f, "{}", path.display()),
                None => write!(f, "{unix:?}"),
            },
        }
    }
}

impl From<SocketAddr> for Address {
    fn from(ip: SocketAddr) -> Self {
        Address::Ip(ip)
    }
}

impl From<UnixAddr> for Address {
    fn from(unix: UnixAddr) -> Self {
        Address::Unix(unix)
    }
}
