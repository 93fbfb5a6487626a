//! `Rejected`: a call that was refused, with everything that was handed in.

use std::fmt;
use std::io;

use gaio_backends::Error;

/// A refused call. Nothing was started, and everything that was handed in is in here.
///
/// It converts into [`Error`] and [`std::io::Error`], so `?` works. In the main loop, do not use `?` for
/// a request of one connection: the refusal concerns that connection alone.
///
/// ```
/// use gaio::{Conn, ErrorKind, Watcher};
///
/// # fn main() -> gaio::Result<()> {
/// let mut watcher = Watcher::new()?;
/// let rejected = watcher.write("context", Conn::NONE, vec![1, 2, 3]).unwrap_err();
/// assert_eq!(rejected.error().kind(), ErrorKind::ConnClosed);
/// let (context, buffer) = rejected.into_inner();
/// assert_eq!((context, &buffer[..]), ("context", &[1, 2, 3][..]));
/// # Ok(())
/// # }
/// ```
pub struct Rejected<T>(Box<(Error, T)>);

impl<T> Rejected<T> {
    #[cold]
    pub(crate) fn new(error: Error, what: T) -> Self {
        Rejected(Box::new((error, what)))
    }

    /// The same refusal, with what was handed in as the caller knows it.
    #[cold]
    pub(crate) fn map<U>(self, known: impl FnOnce(T) -> U) -> Rejected<U> {
        let (error, what) = self.into_parts();
        Rejected::new(error, known(what))
    }

    /// The reason.
    pub fn error(&self) -> Error {
        self.0.0
    }

    /// Everything that was handed in.
    pub fn into_inner(self) -> T {
        self.0.1
    }

    /// The reason, and everything that was handed in.
    pub fn into_parts(self) -> (Error, T) {
        *self.0
    }
}

impl<T> fmt::Debug for Rejected<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Rejected").field(&self.error()).finish()
    }
}

impl<T> fmt::Display for Rejected<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error().fmt(f)
    }
}

impl<T> std::error::Error for Rejected<T> {}

impl<T> From<Rejected<T>> for Error {
    fn from(rejected: Rejected<T>) -> Self {
        rejected.error()
    }
}

impl<T> From<Rejected<T>> for io::Error {
    fn from(rejected: Rejected<T>) -> Self {
        rejected.error().into()
    }
}
