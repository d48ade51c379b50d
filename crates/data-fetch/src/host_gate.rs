//! Who may send a request when: a cap on all requests, a cap per host, and pauses a host asked for.
//!
//! A request first waits for its host and then for the common cap, so that the many URLs of one slow host
//! wait among themselves and leave the cap to others. The common cap also bounds memory: a [`Slot`] is held
//! until the image has been decoded and handed to the shard's writer.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Longest pause, whatever the host asks for: it keeps instants far from overflow.
const MAX_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// The gate all requests go through.
#[derive(Debug)]
pub(crate) struct HostGate {
    all: Arc<Semaphore>,
    per_host: usize,
    hosts: Arc<Mutex<Hosts>>,
}

type Hosts = HashMap<String, Arc<Host>>;

#[derive(Debug)]
struct Host {
    permits: Arc<Semaphore>,
    paused_until: Mutex<Option<Instant>>,
}

/// The host asked for a longer pause than the caller's patience.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PausedTooLong;

/// Leave to send one request; dropped, it admits the next.
#[derive(Debug)]
pub(crate) struct Slot {
    _all: OwnedSemaphorePermit,
    host: Option<HostSlot>,
}

#[derive(Debug)]
struct HostSlot {
    name: String,
    host: Arc<Host>,
    hosts: Arc<Mutex<Hosts>>,
    _permit: OwnedSemaphorePermit,
}

impl HostGate {
    /// At most `in_flight` requests at a time, at most `per_host` at one host.
    #[must_use]
    pub(crate) fn new(in_flight: usize, per_host: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(in_flight)), per_host, hosts: Arc::default() }
    }

    /// Waits for a slot at `host`. Waiting for other requests is not limited: they have deadlines. Waiting
    /// out a pause is paid from `patience`.
    ///
    /// # Errors
    /// [`PausedTooLong`], at once, if a pause is longer than what is left of `patience`.
    pub(crate) async fn enter(&self, host: &str, patience: &mut Duration) -> Result<Slot, PausedTooLong> {
        loop {
            let entry = self.host(host);
            if let Some(until) = entry.paused_until() {
                let pause = until.saturating_duration_since(Instant::now());
                *patience = patience.checked_sub(pause).ok_or(PausedTooLong)?;
                tokio::time::sleep_until(until).await;
            }
            let permits = Arc::clone(&entry.permits);
            let permit = permits.acquire_owned().await.expect("the semaphore is never closed");
            let slot = HostSlot {
                name: host.to_owned(),
                host: entry,
                hosts: Arc::clone(&self.hosts),
                _permit: permit,
            };
            if slot.host.paused_until().is_some() {
                continue;
            }
            let all = Arc::clone(&self.all).acquire_owned().await.expect("the semaphore is never closed");
            return Ok(Slot { _all: all, host: Some(slot) });
        }
    }

    /// Admits no further request to `host` until `pause` from now; an earlier, longer pause stays.
    pub(crate) fn pause(&self, host: &str, pause: Duration) {
        let until = Instant::now() + pause.min(MAX_PAUSE);
        let entry = self.host(host);
        let mut paused_until = entry.paused_until.lock().expect("no thread panics while it holds the pause");
        *paused_until = Some(paused_until.map_or(until, |before| before.max(until)));
    }

    fn host(&self, name: &str) -> Arc<Host> {
        let mut hosts = lock(&self.hosts);
        if let Some(host) = hosts.get(name) {
            return Arc::clone(host);
        }
        let permits = Arc::new(Semaphore::new(self.per_host));
        let host = Arc::new(Host { permits, paused_until: Mutex::default() });
        hosts.insert(name.to_owned(), Arc::clone(&host));
        host
    }
}

impl Host {
    /// End of the pause, unless it is over.
    fn paused_until(&self) -> Option<Instant> {
        let mut until = self.paused_until.lock().expect("no thread panics while it holds the pause");
        *until = until.filter(|until| *until > Instant::now());
        *until
    }
}

impl Slot {
    /// The answer has arrived: the host may serve the next request while we work on this one.
    pub(crate) fn leave_host(&mut self) {
        self.host = None;
    }
}

impl Drop for HostSlot {
    /// Forgets a host nobody waits for, so that the table is as large as the work in hand and not as the
    /// list.
    fn drop(&mut self) {
        let mut hosts = lock(&self.hosts);
        // One count is the table's, one is ours; whoever waits has its own.
        if Arc::strong_count(&self.host) == 2 && self.host.paused_until().is_none() {
            hosts.remove(&self.name);
        }
    }
}

fn lock(hosts: &Mutex<Hosts>) -> MutexGuard<'_, Hosts> {
    hosts.lock().expect("no thread panics while it holds the table")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::timeout;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(5);

    async fn enter(gate: &HostGate, host: &str) -> Option<Slot> {
        timeout(SHORT, gate.enter(host, &mut { LONG })).await.ok().map(Result::unwrap)
    }

    #[tokio::test]
    async fn both_caps_hold() {
        let gate = HostGate::new(3, 2);
        let first = enter(&gate, "a").await.unwrap();
        let _second = enter(&gate, "a").await.unwrap();
        assert!(enter(&gate, "a").await.is_none());
        let _third = enter(&gate, "b").await.unwrap();
        assert!(enter(&gate, "c").await.is_none());
        drop(first);
        assert!(enter(&gate, "c").await.is_some());
        assert!(enter(&gate, "a").await.is_some());
    }

    #[tokio::test]
    async fn a_full_host_does_not_use_up_the_common_cap() {
        let gate = Arc::new(HostGate::new(2, 1));
        let _busy = enter(&gate, "slow").await.unwrap();
        let waiting: Vec<_> = (0..10)
            .map(|_| {
                let gate = Arc::clone(&gate);
                tokio::spawn(async move { enter(&gate, "slow").await.is_some() })
            })
            .collect();
        tokio::task::yield_now().await;
        assert!(enter(&gate, "quick").await.is_some());
        for task in waiting {
            assert!(!task.await.unwrap());
        }
    }

    #[tokio::test]
    async fn leaving_the_host_keeps_the_common_slot() {
        let gate = HostGate::new(2, 1);
        let mut first = enter(&gate, "a").await.unwrap();
        assert!(enter(&gate, "a").await.is_none());
        first.leave_host();
        let _second = enter(&gate, "a").await.unwrap();
        assert!(enter(&gate, "b").await.is_none());
    }

    #[tokio::test]
    async fn pauses_are_waited_out_and_paid_from_patience() {
        let gate = HostGate::new(2, 2);
        gate.pause("a", SHORT);
        let (started, mut patience) = (Instant::now(), LONG);
        gate.enter("a", &mut patience).await.unwrap();
        assert!(started.elapsed() >= SHORT);
        assert!(patience < LONG && patience > LONG - 2 * SHORT);

        gate.pause("a", LONG);
        gate.pause("a", SHORT);
        let mut patience = LONG / 2;
        assert_eq!(gate.enter("a", &mut patience).await.unwrap_err(), PausedTooLong);
        assert!(enter(&gate, "b").await.is_some());
    }

    #[tokio::test]
    async fn idle_hosts_are_forgotten() {
        let gate = HostGate::new(10, 1);
        let slots = [enter(&gate, "a").await.unwrap(), enter(&gate, "b").await.unwrap()];
        assert_eq!(lock(&gate.hosts).len(), 2);
        drop(slots);
        assert_eq!(lock(&gate.hosts).len(), 0);
    }
}
