//! Requests found by their numbers. The index (`op_index`) has keys only; here they meet the requests.

use super::Engine;
use crate::request::{Key, OpId};

impl<C> Engine<C> {
    /// The key of a pending request. The first search makes the index.
    pub(super) fn find(&mut self, op: OpId) -> Option<Key> {
        if !self.by_op.is_made() {
            self.rebuild_index();
        }
        self.indexed(op)
    }

    /// The key of a pending request, if there is an index.
    pub(super) fn indexed(&self, op: OpId) -> Option<Key> {
        let is_it = |key: &Key| self.conns.request(*key).is_some_and(|it| it.op == op);
        self.by_op.find(op).into_iter().flatten().find(is_it)
    }

    /// A new request has taken the place of this one in the index.
    #[cold]
    pub(super) fn displace(&mut self, older: Key) {
        let pending = self.conns.request(older);
        debug_assert!(pending.is_some(), "the index has a request that has ended");
        if let Some(pending) = pending {
            self.by_op.displace(pending.op, older);
        }
        if self.by_op.is_outgrown(self.pending_count()) {
            self.rebuild_index();
        }
    }

    /// Makes the index anew, in the size that the pending requests need.
    #[cold]
    pub(super) fn rebuild_index(&mut self) {
        let count = self.pending_count();
        self.by_op.rebuild(count, || self.conns.keys());
    }
}
