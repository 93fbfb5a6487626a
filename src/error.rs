//! `Rejected`: a call that was refused, with everything that was handed in.

use std::fmt;
use std::io;

use gaio_backends::Error;

/// A refused call: nothing was started, and everything that was handed in comes back.
///
/// ```
/// use gaio::{Conn, ErrorKind, Watcher};
///
/// # fn main() -> gaio::Result<()> {
/// let mut watcher = Watcher::<&str>::builder().build()?;
/// let rejected = watcher.write("hello", Conn::NONE, vec![1, 2, 3]).unwrap_err();
/// assert_eq!(rejected.error().kind(), ErrorKind::ConnClosed);
/// let (context, buffer) = rejected.into_inner();
/// assert_eq!((context, &buffer[..]), ("hello", &[1, 2, 3][..]));
/// # Ok(())
/// # }
/// ```
pub struct Rejected<T>(Box<(Error, T)>);

impl<T> Rejected<T> {
    #[cold]
    pub(crate) fn new(error: Error, what: T) -> Self {
        Rejected(Box::new((error, what)))
    }

    #[cold]
    pub(crate) fn map<U>(self, wrap: impl FnOnce(T) -> U) -> Rejected<U> {
        let (error, what) = self.into_parts();
        Rejected::new(error, wrap(what))
    }

    /// Why.
    pub fn error(&self) -> Error {
        self.0.0
    }

    /// What was handed in.
    pub fn into_inner(self) -> T {
        self.0.1
    }

    /// Both.
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
