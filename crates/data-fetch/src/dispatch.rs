//! Which row is started next: a row waits here, as a few bytes, until its host has room for it.
//!
//! A task that only waits for its turn is a hundred times as large as a number in a queue; and rows of a slow
//! host must not take the places of others.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

/// Rows to start, by host, in the order they came.
#[derive(Debug)]
pub(crate) struct Dispatcher<T> {
    ready: VecDeque<Ready<T>>,
    hosts: HashMap<Arc<str>, Queue<T>>,
    per_host: usize,
}

/// A row whose host has room for it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Ready<T> {
    pub(crate) row: T,
    /// The host whose room it takes, until [`Dispatcher::leave`]; `None` for a row that will send no request.
    pub(crate) host: Option<Arc<str>>,
}

#[derive(Debug)]
struct Queue<T> {
    /// Rows that are ready or started.
    num_admitted: usize,
    waiting: VecDeque<T>,
}

impl<T> Dispatcher<T> {
    /// At most `per_host` rows of a host are admitted at a time.
    pub(crate) fn new(per_host: usize) -> Self {
        Self { ready: VecDeque::new(), hosts: HashMap::new(), per_host }
    }

    /// Adds a row behind those that came before.
    pub(crate) fn push(&mut self, host: Option<&str>, row: T) {
        let Some(name) = host else {
            self.ready.push_back(Ready { row, host: None });
            return;
        };
        let host: Arc<str> =
            self.hosts.get_key_value(name).map_or_else(|| name.into(), |(host, _)| Arc::clone(host));
        let queue = self
            .hosts
            .entry(Arc::clone(&host))
            .or_insert_with(|| Queue { num_admitted: 0, waiting: VecDeque::new() });
        if queue.num_admitted < self.per_host {
            queue.num_admitted += 1;
            self.ready.push_back(Ready { row, host: Some(host) });
        } else {
            queue.waiting.push_back(row);
        }
    }

    /// The next row to start.
    pub(crate) fn pop(&mut self) -> Option<Ready<T>> {
        self.ready.pop_front()
    }

    /// Whether [`pop`](Dispatcher::pop) has anything to give.
    pub(crate) fn is_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// A row of `host` is done: the next one comes forward, before the rows of hosts that had no need to wait.
    pub(crate) fn leave(&mut self, host: Arc<str>) {
        let queue = self.hosts.get_mut(&host).expect("a host is there as long as a row of it is admitted");
        match queue.waiting.pop_front() {
            Some(row) => self.ready.push_front(Ready { row, host: Some(host) }),
            None => {
                queue.num_admitted -= 1;
                if queue.num_admitted == 0 {
                    self.hosts.remove(&host);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Whatever the order in which rows are done: each is started once, those of a host in their order and
        /// never more than the cap at a time, and nothing is left over.
        #[test]
        fn every_row_is_started_once(
            hosts in prop::collection::vec(0_u8..4, 0..80),
            choices in prop::collection::vec(any::<prop::sample::Index>(), 400),
            per_host in 1_usize..4,
        ) {
            let mut dispatcher = Dispatcher::new(per_host);
            for (row, host) in hosts.iter().enumerate() {
                // Host 0 stands for none.
                dispatcher.push((*host > 0).then(|| host.to_string()).as_deref(), row);
            }
            let (mut started, mut running) = (Vec::new(), Vec::new());
            for choice in choices {
                while let Some(Ready { row, host }) = dispatcher.pop() {
                    started.push(row);
                    if let Some(host) = host {
                        let expected = hosts[row].to_string();
                        prop_assert_eq!(&*host, expected.as_str());
                        running.push(host);
                    }
                }
                for host in 1..4 {
                    let num_running = running.iter().filter(|running| ***running == *host.to_string()).count();
                    prop_assert!(num_running <= per_host);
                }
                if !running.is_empty() {
                    let done = choice.index(running.len());
                    dispatcher.leave(running.swap_remove(done));
                }
            }
            for host in 0..4 {
                let of_host = |rows: Vec<usize>| -> Vec<usize> {
                    rows.into_iter().filter(|row| hosts[*row] == host).collect()
                };
                prop_assert_eq!(of_host(started.clone()), of_host((0..hosts.len()).collect()));
            }
            prop_assert!(dispatcher.hosts.is_empty() && !dispatcher.is_ready());
        }
    }

    #[test]
    fn a_full_host_lets_others_pass_and_goes_first_when_it_has_room() {
        let mut dispatcher = Dispatcher::new(1);
        for (row, host) in ["a", "a", "b", "c"].into_iter().enumerate() {
            dispatcher.push(Some(host), row);
        }
        let first = dispatcher.pop().unwrap();
        assert_eq!((first.row, dispatcher.pop().unwrap().row), (0, 2));
        dispatcher.leave(first.host.unwrap());
        assert_eq!((dispatcher.pop().unwrap().row, dispatcher.pop().unwrap().row), (1, 3));
        assert!(!dispatcher.is_ready());
    }
}
