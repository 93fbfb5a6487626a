//! The requests that a program can make, a file for each family, and how each is checked and
//! submitted.

// Apart from each other, because rustdoc lists the methods in this order, and rustfmt would sort them.
mod reads;

mod writes;

mod connections;

mod waiting;

mod ending;

use gaio_backends::{Error, ErrorKind, OpData, Result};

use super::Watcher;
use crate::conn::Conn;
use crate::error::Rejected;
use crate::request::{OpId, RequestKind};

impl<C> Watcher<C> {
    /// Submits a request that carries nothing but its context.
    fn submit_plain(&mut self, kind: RequestKind, ctx: C, conn: Conn) -> Result<OpId, Rejected<C>> {
        match self.rejection(conn, kind, false) {
            None => Ok(self.engine.submit(conn, kind, ctx, OpData::None, None)),
            Some(error) => Err(Rejected::new(error, ctx)),
        }
    }

    /// Submits a request with many results.
    fn submit_stream(&mut self, kind: RequestKind, ctx: C, conn: Conn) -> Result<OpId, Rejected<C>>
    where
        C: Clone,
    {
        if let Some(error) = self.rejection(conn, kind, false) {
            return Err(Rejected::new(error, ctx));
        }
        self.engine.expect_stream(conn, kind, C::clone);
        Ok(self.engine.submit(conn, kind, ctx, OpData::None, None))
    }

    /// The error with which a request is refused, if it is. It is checked before anything moves.
    #[inline(always)]
    fn rejection(&mut self, conn: Conn, kind: RequestKind, is_empty: bool) -> Option<Error> {
        let admitted = match self.owner.is_trusted() {
            true => None,
            false => self.admit(),
        };
        let rejection = admitted.or_else(|| {
            self.find_in_inbox(conn);
            self.engine.rejection(conn, kind, is_empty)
        });
        rejection.map(|why| refused(kind, why))
    }

    /// Takes the requests of other threads if the handle is unknown: a `Remote` may have just made it.
    #[inline(always)]
    pub(super) fn find_in_inbox(&mut self, conn: Conn) {
        if self.inbox.is_pending() && !self.engine.is_open(conn) {
            self.receive_requests();
        }
    }
}

#[cold]
fn refused(kind: RequestKind, why: ErrorKind) -> Error {
    kind.error_context().error(why)
}
