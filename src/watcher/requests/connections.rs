//! New connections: accepts and connects.

use std::os::fd::{AsFd, OwnedFd};

use gaio_backends::{
    Address, Error, ErrorContext, ErrorKind, OpData, Result, SocketKind, classify, stream_socket,
};

use crate::conn::Conn;
use crate::deadlines::Deadline;
use crate::error::Rejected;
use crate::request::{OpId, RequestKind, Submission};
use crate::watcher::Watcher;

impl<C> Watcher<C> {
    /// Accepts connections until the request is [cancelled](Watcher::cancel) or the listener freed. Each
    /// result with [`accepted`](crate::OpResult::accepted) brings a connection, which belongs to the
    /// watcher.
    ///
    /// When the process is out of descriptors, one result says so and is not the last. Accepting goes on
    /// by itself when a connection is freed, or after a tenth of a second at most.
    ///
    /// Take every result: a connection whose result is dropped unread stays open until the watcher is
    /// closed, and nobody has its handle. To stop accepting, cancel the request or free the listener; do
    /// not use `shutdown(2)`, after which the last result has `EINVAL`, and on NetBSD, FreeBSD and macOS
    /// never comes.
    ///
    /// ```
    /// use gaio::{Results, Watcher};
    /// use std::net::{TcpListener, TcpStream};
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let address = listener.local_addr()?;
    /// let mut watcher = Watcher::new()?;
    /// let listener = watcher.listen(listener)?;
    /// watcher.accept((), listener)?;
    ///
    /// let _client = TcpStream::connect(address)?;
    /// let mut results = Results::new();
    /// watcher.wait_io(&mut results)?;
    /// for res in results.drain() {
    ///     match (res.accepted(), res.error) {
    ///         (Some(conn), _) => println!("a connection from {}", watcher.peer_addr(conn)?),
    ///         (None, Some(error)) if res.is_last() => return Err(error.into()),
    ///         (None, error) => println!("accepting goes on after {error:?}"),
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `WrongKind` (not a listener), `ConnClosed`, `WatcherClosed`, `WrongThread`, `Forked`.
    pub fn accept(&mut self, ctx: C, listener: Conn) -> Result<OpId, Rejected<C>>
    where
        C: Clone,
    {
        self.submit_stream(RequestKind::Accept, ctx, listener)
    }

    /// Accepts one connection. The others stay in the listener's backlog, so a program that accepts again
    /// only when it has room bounds its connections. [`accept_limit`](Watcher::accept_limit) bounds those
    /// that nobody serves yet, without a request for each.
    ///
    /// ```
    /// use gaio::{Operation, Results, Watcher};
    /// use std::net::{TcpListener, TcpStream};
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let address = listener.local_addr()?;
    /// let mut watcher = Watcher::new()?;
    /// let listener = watcher.listen(listener)?;
    /// let _clients = [TcpStream::connect(address)?, TcpStream::connect(address)?];
    ///
    /// let mut results = Results::new();
    /// for _ in 0..2 {
    ///     watcher.accept_one((), listener)?;
    ///     watcher.wait_io(&mut results)?;
    ///     let res = results.pop().expect("one accept was submitted");
    ///     let conn = res.accepted().expect("a client waits");
    ///     watcher.free(conn); // one at a time
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Those of [`accept`](Watcher::accept).
    pub fn accept_one(&mut self, ctx: C, listener: Conn) -> Result<OpId, Rejected<C>> {
        self.submit_plain(RequestKind::AcceptOne, ctx, listener)
    }

    /// Limits the connections that a listener has accepted and the program does not serve yet. At the limit,
    /// accepting pauses; the listener's backlog holds the rest, and the system refuses what does not fit
    /// there. Accepting goes on by itself when the program serves some. `usize::MAX` takes the limit away.
    ///
    /// A connection is served when the program makes its first request for it, or frees or reclaims it. Until
    /// then it counts, also while its result is unread. So a program that is busy with the clients it has, or
    /// hands new ones on only as fast as others take them, is not flooded.
    ///
    /// Set the limit before [`accept`](Watcher::accept). Otherwise more connections may come in the meantime;
    /// they count, too. With a limit, each turn accepts one connection of the listener.
    ///
    /// ```
    /// use gaio::{ListenOptions, Results, Watcher};
    /// use std::net::TcpStream;
    /// use std::time::Duration;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let listener = ListenOptions::new().bind("127.0.0.1:0")?;
    /// let address = listener.local_addr()?;
    /// let mut watcher = Watcher::new()?;
    /// let listener = watcher.listen(listener)?;
    /// watcher.accept_limit(listener, 1)?;
    /// watcher.accept((), listener)?;
    /// let _clients = [TcpStream::connect(address)?, TcpStream::connect(address)?];
    ///
    /// let mut results = Results::new();
    /// watcher.wait_io(&mut results)?;
    /// let first = results.pop().and_then(|res| res.accepted()).expect("a client");
    /// let soon = Duration::from_millis(5);
    /// assert_eq!(watcher.wait_io_timeout(&mut results, soon)?, 0); // the second waits
    ///
    /// watcher.read((), first, None)?; // now the first is served
    /// watcher.wait_io(&mut results)?;
    /// assert!(results.pop().and_then(|res| res.accepted()).is_some());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// - `InvalidInput` for a limit of 0.
    /// - `WrongKind` (not a listener), `ConnClosed`, `WatcherClosed`, `WrongThread`, `Forked`.
    pub fn accept_limit(&mut self, listener: Conn, most: usize) -> Result<()> {
        let rejection = self.admit().or_else(|| {
            self.find_in_inbox(listener);
            let rejection = self.engine.rejection(listener, RequestKind::Accept, false);
            rejection.or((most == 0).then_some(ErrorKind::InvalidInput))
        });
        match rejection {
            None => {
                self.engine.accept_limit(listener, most);
                Ok(())
            }
            Some(kind) => Err(ErrorContext::AcceptLimit.error(kind)),
        }
    }

    /// Opens a socket and connects it. Further requests can be submitted at once: they wait for the
    /// connection. If it fails, they end with the same error.
    ///
    /// The handle stays valid until [`free`](Watcher::free), also after a failed connect. Free it
    /// then. This holds after a `Deadline`, too: the system may still connect, and a later write would
    /// reach the peer.
    ///
    /// The call returns the handle, not the request's number ([`OpResult::op`](crate::OpResult::op)), so a
    /// connect ends early through its deadline or `free`.
    ///
    /// A TCP socket sends small writes at once (`TCP_NODELAY`). Until the next
    /// [`wait_io`](Watcher::wait_io) nothing has been sent, so other options can be set on the
    /// [`socket`](Watcher::socket) before the connection is made:
    ///
    /// ```
    /// use gaio::Watcher;
    /// use socket2::SockRef;
    /// use std::net::TcpListener;
    /// use std::time::Duration;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let server = TcpListener::bind("127.0.0.1:0")?;
    /// let mut watcher = Watcher::new()?;
    /// let conn = watcher.connect((), server.local_addr()?, Duration::from_secs(5))?;
    /// SockRef::from(&watcher.socket(conn)?).set_recv_buffer_size(1 << 20)?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// ```
    /// use gaio::{ErrorKind, Operation, Results, Watcher};
    /// use std::net::TcpListener;
    /// use std::time::Duration;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let server = TcpListener::bind("127.0.0.1:0")?;
    /// let mut watcher = Watcher::new()?;
    /// let conn = watcher.connect((), server.local_addr()?, Duration::from_secs(5))?;
    /// watcher.write((), conn, "hello")?; // waits for the connection
    ///
    /// let mut results = Results::new();
    /// while watcher.stats().pending > 0 {
    ///     watcher.wait_io(&mut results)?;
    ///     for res in results.drain() {
    ///         match res.error.map(|error| error.kind()) {
    ///             None => println!("{:?} of {conn:?} done", res.operation),
    ///             Some(ErrorKind::Deadline) => println!("nobody answered in time"),
    ///             Some(_) => println!("{:?}", res.error),
    ///         }
    ///         if res.operation == Operation::Connect && res.error.is_some() {
    ///             watcher.free(conn);
    ///         }
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The context comes back.
    /// - `Os` if no socket can be had.
    /// - `WatcherClosed`, `WrongThread`, `Forked`.
    pub fn connect(
        &mut self,
        ctx: C,
        to: impl Into<Address>,
        deadline: impl Into<Deadline>,
    ) -> Result<Conn, Rejected<C>> {
        let to = to.into();
        let socket = match stream_socket(&to) {
            Ok(socket) => socket,
            Err(errno) => return Err(Rejected::new(ErrorContext::Connect.os_error(errno), ctx)),
        };
        self.connect_socket(ctx, socket, to, deadline.into())
            .map_err(|(error, ctx, _)| Rejected::new(error, ctx))
    }

    /// Like [`connect`](Watcher::connect), with a stream socket that the program made, for instance with
    /// the crate `socket2`: bound to an address, or with options set. Its options stay as they are, also
    /// `TCP_NODELAY`.
    ///
    /// ```
    /// use gaio::{Results, Watcher};
    /// use socket2::{Domain, Socket, Type};
    /// use std::net::{SocketAddr, TcpListener};
    /// use std::time::Duration;
    ///
    /// # fn main() -> gaio::Result<(), Box<dyn std::error::Error>> {
    /// let server = TcpListener::bind("127.0.0.1:0")?;
    /// let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    /// socket.set_tcp_nodelay(true)?;
    /// socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    ///
    /// let mut watcher = Watcher::new()?;
    /// let conn = watcher.connect_from((), socket, server.local_addr()?, Duration::from_secs(5))?;
    /// let mut results = Results::new();
    /// watcher.wait_io(&mut results)?;
    /// assert_eq!(results.pop().expect("one connect").error, None);
    /// assert!(watcher.contains(conn));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The context and the socket come back.
    /// - `Unsupported` for anything but an unused stream socket.
    /// - `Os`, `WatcherClosed`, `WrongThread`, `Forked`.
    pub fn connect_from(
        &mut self,
        ctx: C,
        socket: impl Into<OwnedFd>,
        to: impl Into<Address>,
        deadline: impl Into<Deadline>,
    ) -> Result<Conn, Rejected<(C, OwnedFd)>> {
        let socket = socket.into();
        if classify(socket.as_fd()) != Ok(Some(SocketKind::Stream)) {
            let error = ErrorContext::Connect.error(ErrorKind::Unsupported);
            return Err(Rejected::new(error, (ctx, socket)));
        }
        self.connect_socket(ctx, socket, to.into(), deadline.into())
            .map_err(|(error, ctx, socket)| Rejected::new(error, (ctx, socket)))
    }

    fn connect_socket(
        &mut self,
        ctx: C,
        socket: OwnedFd,
        to: Address,
        deadline: Deadline,
    ) -> Result<Conn, (Error, C, OwnedFd)> {
        let adopted = self.adopt(ErrorContext::Connect, socket, SocketKind::Stream);
        let conn = match adopted.map_err(Rejected::into_parts) {
            Ok(conn) => conn,
            Err((error, socket)) => return Err((error, ctx, socket)),
        };
        let data = OpData::Address(Box::new(to));
        let submission = Submission::new(RequestKind::Connect, ctx, data, deadline.at());
        self.engine.begin_connecting(None, conn, submission);
        Ok(conn)
    }
}
