//! State by connection.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::unix::net::UnixStream;
use std::rc::Rc;

use common::{quiet, watcher};
use gaio::{BackendKind, Conn, ConnMap, Watcher};

fn connect(watcher: &mut Watcher) -> (Conn, UnixStream) {
    let (ours, peer) = UnixStream::pair().unwrap();
    (watcher.delegate(ours).unwrap(), peer)
}

common::backends! {
    /// The index of a connection that ended is given out again: its old handle finds nothing.
    fn stale_handles(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let mut map = ConnMap::new();
        let (old, _peer) = connect(&mut watcher);
        let witness = Rc::new("old");
        assert_eq!(map.insert(old, Rc::clone(&witness)), None);
        assert!(watcher.free(old));
        quiet(&mut watcher);
        quiet(&mut watcher);
        let (new, _peer) = connect(&mut watcher);
        assert!(new != old && new.index() == old.index());
        assert!(map.get(new).is_none() && map.get_mut(new).is_none() && map.remove(new).is_none());
        assert_eq!(map.get(old), Some(&witness));

        // The new connection takes the place of the old one, whose state is dropped.
        assert_eq!(map.insert(new, Rc::new("new")), None);
        assert_eq!(Rc::strong_count(&witness), 1);
        assert_eq!(map.len(), 1);
        assert!(!map.contains(old) && map.get_mut(old).is_none() && map.remove(old).is_none());
        assert_eq!(map.insert(new, Rc::new("newer")).as_deref(), Some(&"new"));
        assert_eq!(map.remove(new).as_deref(), Some(&"newer"));
        assert!(map.is_empty());
    }

    fn foreign_handles(kind: BackendKind) {
        let (mut watcher, mut other) = (watcher(kind), watcher(kind));
        let (conn, _peer) = connect(&mut watcher);
        let (foreign, _other_peer) = connect(&mut other);
        assert_eq!(conn.index(), foreign.index());
        let mut map = ConnMap::from_iter([(conn, 1)]);
        assert!(!map.contains(foreign) && map.remove(foreign).is_none());
        assert_eq!(map.get(conn), Some(&1));
        // Results of timers and messages have it. It is in nobody's way.
        assert!(map.get(Conn::NONE).is_none() && map.remove(Conn::NONE).is_none());
        assert_eq!((map.insert(Conn::NONE, 7), map.get(Conn::NONE)), (None, Some(&7)));
        assert_eq!((map.get(conn), map.len()), (Some(&1), 2));
    }

    fn as_other_maps(kind: BackendKind) {
        let mut watcher = watcher(kind);
        let pairs: Vec<_> = (0..100).map(|_| connect(&mut watcher)).collect();
        let conns: Vec<Conn> = pairs.iter().map(|(conn, _)| *conn).collect();
        let mut map: ConnMap<usize> = ConnMap::default();
        map.extend(conns.iter().copied().zip(0..));
        for (_, number) in &mut map {
            *number *= 2;
        }
        map.iter_mut().for_each(|(_, number)| *number += 1);
        let mut all: Vec<(usize, Conn)> = map.iter().map(|(conn, it)| (*it, conn)).collect();
        all.sort_by_key(|(number, _)| *number);
        let expected: Vec<_> = (0..100).map(|at| (2 * at + 1, conns[at])).collect();
        assert_eq!(all, expected);
        map.retain(|conn, number| *number < 21 && conn != conns[0]);
        assert_eq!((map.len(), map.get(conns[0]), map.get(conns[9])), (9, None, Some(&19)));
        *map.get_or_insert_with(conns[9], || unreachable!("it is there")) += 1;
        assert_eq!(*map.get_or_insert_with(conns[50], || 5), 5);
        assert_eq!(map.clone().into_iter().map(|(_, it)| it).sum::<usize>(), 99 + 1 + 5);
        assert_eq!(map.drain().len(), 10);
        assert!(map.is_empty() && format!("{map:?}") == "{}");
        map.insert(conns[3], 3);
        assert_eq!(format!("{map:?}"), format!("{{{:?}: 3}}", conns[3]));
        map.clear();
        assert!(!map.contains(conns[3]));
    }
}
