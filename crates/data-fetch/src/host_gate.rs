//! Who may send a request when: a cap on all requests, a cap and a rate per host, pauses a host asked for, and
//! hosts that are given up.
//!
//! A request first waits for its host and then for the common cap, so that the many URLs of one slow host
//! wait among themselves and leave the cap to others. The common cap also bounds memory: a [`Slot`] is held
//! until the image has been decoded and handed to the shard's writer.
//!
//! A host that does nothing but fail would hold up a shard for as long as it has URLs in it: after a number of
//! failures in a row, and a time, it is given up for a while, and its URLs are rejected without a request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

/// Longest pause, whatever the host asks for: it keeps instants far from overflow.
const MAX_PAUSE: Duration = Duration::from_secs(24 * 3600);
/// How long a host that was given up is left alone. The first failure after that gives it up again.
const GIVEN_UP: Duration = Duration::from_secs(600);
/// How long failures are remembered: beyond [`GIVEN_UP`].
const FAILURE_MEMORY: Duration = Duration::from_secs(1200);
/// Hosts in the table before it is first searched for those nobody needs.
const FIRST_SWEEP: usize = 1024;

/// How many requests may be under way: it grows up to a most while what arrives is used up at once, and shrinks while
/// it piles up. Waiting bodies take memory and win nothing.
#[derive(Debug)]
struct Window {
    size: AtomicUsize,
    least: usize,
    most: usize,
}

/// How much of what has arrived waits to be worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Backlog {
    /// Those who work would soon have nothing to do.
    Low,
    /// Enough.
    Enough,
    /// More than is good.
    High,
}

/// What a host has to bear, and what is borne of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct HostLimits {
    /// Requests at a time.
    pub(crate) in_flight: usize,
    /// Requests per second, in the long run; a second's worth may come at once.
    pub(crate) requests_per_second: Option<f64>,
    /// Failures in a row after which the host is given up; 0 for never.
    pub(crate) max_failures: u32,
    /// Least time from the first of them to the last.
    pub(crate) failing_for: Duration,
}

/// The gate all requests go through.
#[derive(Debug)]
pub(crate) struct HostGate {
    all: Arc<Semaphore>,
    window: Arc<Window>,
    limits: HostLimits,
    hosts: Arc<Mutex<Hosts>>,
}

#[derive(Debug, Default)]
struct Hosts {
    by_name: HashMap<String, Arc<Host>>,
    /// Size of the table at which it is searched again.
    next_sweep: usize,
}

#[derive(Debug)]
struct Host {
    permits: Arc<Semaphore>,
    state: Mutex<HostState>,
}

#[derive(Debug, Default)]
struct HostState {
    paused_until: Option<Instant>,
    /// When the bucket of the rate is full again.
    bucket_full_at: Option<Instant>,
    failures: Option<Failures>,
    given_up_until: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Failures {
    count: u32,
    first: Instant,
    last: Instant,
}

/// Why a request is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoEntry {
    /// The host asked for a longer pause than the caller's patience.
    PausedTooLong,
    /// The host does nothing but fail.
    GivenUp,
}

/// How a request ended, as far as its host is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostAnswer {
    /// The host works.
    Useful,
    /// It did not answer, or not now.
    Failure,
}

/// Leave to send one request; dropped, it admits the next.
#[derive(Debug)]
pub(crate) struct Slot {
    all: Option<OwnedSemaphorePermit>,
    semaphore: Arc<Semaphore>,
    window: Arc<Window>,
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
    /// At most `in_flight` requests at a time, `at_first` of them to begin with and at the least; `limits` hold for
    /// each host.
    #[must_use]
    pub(crate) fn new(in_flight: usize, at_first: usize, limits: HostLimits) -> Self {
        let at_first = at_first.clamp(1, in_flight);
        let window = Window { size: AtomicUsize::new(at_first), least: at_first, most: in_flight };
        Self {
            all: Arc::new(Semaphore::new(at_first)),
            window: Arc::new(window),
            limits,
            hosts: Arc::default(),
        }
    }

    /// Waits for a slot at `host`. Waiting for other requests and for the rate is not limited: requests have
    /// deadlines. Waiting out a pause is paid from `patience`.
    ///
    /// # Errors
    /// [`NoEntry::PausedTooLong`], at once, if a pause is longer than what is left of `patience`;
    /// [`NoEntry::GivenUp`] if the host is given up, at once or while waiting.
    pub(crate) async fn enter(&self, host: &str, patience: &mut Duration) -> Result<Slot, NoEntry> {
        loop {
            let entry = self.host(host);
            if let Some(until) = entry.obstacle()? {
                let pause = until.saturating_duration_since(Instant::now());
                *patience = patience.checked_sub(pause).ok_or(NoEntry::PausedTooLong)?;
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
            if slot.host.obstacle()?.is_some() {
                continue;
            }
            if let Some(rate) = self.limits.requests_per_second {
                let turn = slot.host.state().take_turn(rate, Instant::now());
                tokio::time::sleep_until(turn).await;
            }
            let all = Arc::clone(&self.all).acquire_owned().await.expect("the semaphore is never closed");
            return Ok(Slot {
                all: Some(all),
                semaphore: Arc::clone(&self.all),
                window: Arc::clone(&self.window),
                host: Some(slot),
            });
        }
    }

    /// Half as many slots again, if none is free: to be called now and then while there is too little to work on. Requests
    /// that hang would otherwise hold up those that would not.
    pub(crate) fn widen(&self) {
        if self.all.available_permits() > 0 {
            return;
        }
        let Window { size, most, .. } = &*self.window;
        let before = size.load(Ordering::Relaxed);
        let after = (before + before.div_ceil(2)).min(*most);
        // Whoever changes it at the same moment changes it enough.
        if size.compare_exchange(before, after, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.all.add_permits(after - before);
        }
    }

    /// Admits no further request to `host` until `pause` from now; an earlier, longer pause stays.
    pub(crate) fn pause(&self, host: &str, pause: Duration) {
        let until = Instant::now() + pause.min(MAX_PAUSE);
        let entry = self.host(host);
        let mut state = entry.state();
        state.paused_until = Some(state.paused_until.map_or(until, |before| before.max(until)));
    }

    /// Takes note of how a request to `host` ended. `true` if the host is given up by this.
    pub(crate) fn note(&self, host: &str, answer: HostAnswer) -> bool {
        self.host(host).state().note(answer, &self.limits, Instant::now())
    }

    fn host(&self, name: &str) -> Arc<Host> {
        let mut hosts = lock(&self.hosts);
        if let Some(host) = hosts.by_name.get(name) {
            return Arc::clone(host);
        }
        hosts.sweep_if_due();
        let permits = Arc::new(Semaphore::new(self.limits.in_flight));
        let host = Arc::new(Host { permits, state: Mutex::default() });
        hosts.by_name.insert(name.to_owned(), Arc::clone(&host));
        host
    }
}

impl Hosts {
    /// Forgets the hosts nobody waits for and nothing is to be remembered of, whenever the table has doubled:
    /// so it is as large as the work in hand and the recent past, not as the list.
    fn sweep_if_due(&mut self) {
        if self.by_name.len() < self.next_sweep.max(FIRST_SWEEP) {
            return;
        }
        let now = Instant::now();
        self.by_name.retain(|_, host| Arc::strong_count(host) > 1 || host.state().is_memorable(now));
        self.next_sweep = 2 * self.by_name.len();
    }
}

impl Host {
    fn state(&self) -> MutexGuard<'_, HostState> {
        self.state.lock().expect("no thread panics while it holds the state")
    }

    /// End of the pause, unless it is over.
    fn obstacle(&self) -> Result<Option<Instant>, NoEntry> {
        let (state, now) = (self.state(), Instant::now());
        if state.given_up_until.is_some_and(|until| until > now) {
            return Err(NoEntry::GivenUp);
        }
        Ok(state.paused_until.filter(|until| *until > now))
    }
}

impl HostState {
    /// When the next request may be sent: a token bucket of one second's worth of requests, at least one.
    fn take_turn(&mut self, rate: f64, now: Instant) -> Instant {
        let interval = Duration::from_secs_f64(1.0 / rate);
        let depth = interval.mul_f64(rate.floor().max(1.0) - 1.0);
        let full_at = self.bucket_full_at.map_or(now, |full_at| full_at.max(now));
        self.bucket_full_at = Some(full_at + interval);
        full_at.checked_sub(depth).map_or(now, |turn| turn.max(now))
    }

    fn note(&mut self, answer: HostAnswer, limits: &HostLimits, now: Instant) -> bool {
        if answer == HostAnswer::Useful {
            self.failures = None;
            self.given_up_until = None;
            return false;
        }
        let before = self.failures.filter(|failures| now < failures.last + FAILURE_MEMORY);
        let (count, first) = before.map_or((0, now), |failures| (failures.count, failures.first));
        self.failures = Some(Failures { count: count.saturating_add(1), first, last: now });
        let is_enough = count + 1 >= limits.max_failures && now >= first + limits.failing_for;
        if limits.max_failures == 0 || !is_enough || self.given_up_until.is_some_and(|until| until > now) {
            return false;
        }
        self.given_up_until = Some(now + GIVEN_UP);
        true
    }

    fn is_memorable(&self, now: Instant) -> bool {
        let is_ahead = |time: Option<Instant>| time.is_some_and(|time| time > now);
        is_ahead(self.paused_until)
            || is_ahead(self.bucket_full_at)
            || is_ahead(self.given_up_until)
            || self.failures.is_some_and(|failures| now < failures.last + FAILURE_MEMORY)
    }
}

impl Slot {
    /// The answer has arrived: the host may serve the next request while we work on this one.
    pub(crate) fn leave_host(&mut self) {
        self.host = None;
    }

    /// Gives the slot back, and with it one more or none at all, by how much there is to work on.
    pub(crate) fn give_back(mut self, backlog: Backlog) {
        let Window { size, least, most } = &*self.window;
        let step = |by: isize| {
            let change =
                |size: usize| size.checked_add_signed(by).filter(|size| (*least..=*most).contains(size));
            size.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).is_ok()
        };
        match backlog {
            Backlog::Low if step(1) => self.semaphore.add_permits(1),
            Backlog::High if step(-1) => {
                if let Some(permit) = self.all.take() {
                    permit.forget();
                }
            }
            _ => {}
        }
    }
}

impl Drop for HostSlot {
    /// Forgets a host nobody waits for, if there is nothing to remember of it.
    fn drop(&mut self) {
        let mut hosts = lock(&self.hosts);
        // One count is the table's, one is ours; whoever waits has its own.
        if Arc::strong_count(&self.host) == 2 && !self.host.state().is_memorable(Instant::now()) {
            hosts.by_name.remove(&self.name);
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

    /// `in_flight` in all, `per_host` at a host, nothing else.
    fn gate(in_flight: usize, per_host: usize) -> HostGate {
        HostGate::new(in_flight, in_flight, limits(per_host))
    }

    fn limits(in_flight: usize) -> HostLimits {
        HostLimits { in_flight, requests_per_second: None, max_failures: 0, failing_for: Duration::ZERO }
    }

    async fn enter(gate: &HostGate, host: &str) -> Option<Slot> {
        timeout(SHORT, gate.enter(host, &mut { LONG })).await.ok().map(Result::unwrap)
    }

    #[tokio::test]
    async fn both_caps_hold() {
        let gate = gate(3, 2);
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
        let gate = Arc::new(gate(2, 1));
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
        let gate = gate(2, 1);
        let mut first = enter(&gate, "a").await.unwrap();
        assert!(enter(&gate, "a").await.is_none());
        first.leave_host();
        let _second = enter(&gate, "a").await.unwrap();
        assert!(enter(&gate, "b").await.is_none());
    }

    #[tokio::test]
    async fn pauses_are_waited_out_and_paid_from_patience() {
        let gate = gate(2, 2);
        gate.pause("a", SHORT);
        let (started, mut patience) = (Instant::now(), LONG);
        gate.enter("a", &mut patience).await.unwrap();
        assert!(started.elapsed() >= SHORT);
        assert!(patience < LONG && patience > LONG - 2 * SHORT);

        gate.pause("a", LONG);
        gate.pause("a", SHORT);
        let mut patience = LONG / 2;
        assert_eq!(gate.enter("a", &mut patience).await.unwrap_err(), NoEntry::PausedTooLong);
        assert!(enter(&gate, "b").await.is_some());
    }

    #[tokio::test]
    async fn idle_hosts_are_forgotten() {
        let gate = gate(10, 1);
        let slots = [enter(&gate, "a").await.unwrap(), enter(&gate, "b").await.unwrap()];
        assert_eq!(lock(&gate.hosts).by_name.len(), 2);
        drop(slots);
        assert_eq!(lock(&gate.hosts).by_name.len(), 0);
    }

    #[tokio::test]
    async fn the_window_follows_the_work() {
        let gate = HostGate::new(4, 2, limits(9));
        let free = || gate.all.available_permits();
        for (backlog, expected) in [
            (Backlog::Enough, 2),
            (Backlog::High, 2),
            (Backlog::Low, 3),
            (Backlog::Low, 4),
            (Backlog::Low, 4),
            (Backlog::High, 3),
            (Backlog::Enough, 3),
            (Backlog::High, 2),
        ] {
            enter(&gate, "a").await.unwrap().give_back(backlog);
            assert_eq!(free(), expected, "{backlog:?}");
        }
        assert_eq!(HostGate::new(1, 99, limits(9)).all.available_permits(), 1);

        let gate = HostGate::new(8, 3, limits(9));
        gate.widen();
        let mut slots = Vec::new();
        for expected in [3, 5, 8, 8] {
            while let Some(slot) = enter(&gate, "a").await {
                slots.push(slot);
            }
            assert_eq!(slots.len(), expected);
            gate.widen();
        }
    }

    #[test]
    fn a_rate_holds_in_the_long_run() {
        let start = Instant::now();
        for (rate, num_requests, expected_seconds) in [(10.0, 35, 2.5), (0.5, 4, 6.0), (3.0, 3, 0.0)] {
            let mut state = HostState::default();
            let mut now = start;
            for _ in 0..num_requests {
                now = state.take_turn(rate, now);
            }
            let seconds = (now - start).as_secs_f64();
            assert!((seconds - expected_seconds).abs() < 1e-6, "{rate}: {seconds}");
            // After a rest a second's worth may come at once, and no more.
            now += Duration::from_secs(1000);
            let turns: Vec<_> = (0..20).map(|_| state.take_turn(rate, now)).collect();
            let num_at_once = turns.iter().filter(|turn| **turn == now).count();
            assert_eq!(num_at_once, rate.max(1.0) as usize);
        }
    }

    #[tokio::test]
    async fn a_rate_is_waited_for_at_its_host_only() {
        let gate = HostGate::new(100, 100, HostLimits { requests_per_second: Some(20.0), ..limits(2) });
        let started = Instant::now();
        for _ in 0..24 {
            gate.enter("a", &mut { LONG }).await.unwrap();
        }
        assert!(started.elapsed() >= Duration::from_millis(200));
        assert!(enter(&gate, "b").await.is_some());
    }

    #[test]
    fn a_host_that_only_fails_is_given_up_for_a_while() {
        let failing_for = Duration::from_secs(20);
        let limits = HostLimits { max_failures: 3, failing_for, ..limits(2) };
        let mut now = Instant::now();
        let mut state = HostState::default();
        for _ in 0..5 {
            assert!(!state.note(HostAnswer::Failure, &limits, now), "five failures in no time");
        }
        now += failing_for;
        assert!(state.note(HostAnswer::Failure, &limits, now));
        assert!(!state.note(HostAnswer::Failure, &limits, now), "it is given up already");
        now += GIVEN_UP;
        assert!(state.note(HostAnswer::Failure, &limits, now), "after a while one failure is enough");
        now += GIVEN_UP;
        state.note(HostAnswer::Useful, &limits, now);
        for _ in 0..2 {
            assert!(!state.note(HostAnswer::Failure, &limits, now));
            now += failing_for;
        }
        assert!(state.is_memorable(now) && !state.is_memorable(now + FAILURE_MEMORY));
        let never = HostLimits { max_failures: 0, ..limits };
        assert!((0..100).all(|_| !state.note(HostAnswer::Failure, &never, now + failing_for)));
    }

    #[tokio::test]
    async fn waiting_requests_notice_that_their_host_is_given_up() {
        let gate = Arc::new(HostGate::new(10, 10, HostLimits { max_failures: 1, ..limits(1) }));
        let slot = enter(&gate, "a").await.unwrap();
        let waiting = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.enter("a", &mut { LONG }).await.map(drop) }
        });
        tokio::task::yield_now().await;
        assert!(gate.note("a", HostAnswer::Failure));
        drop(slot);
        assert_eq!(waiting.await.unwrap(), Err(NoEntry::GivenUp));
        assert_eq!(gate.enter("a", &mut { LONG }).await.unwrap_err(), NoEntry::GivenUp);
        assert!(enter(&gate, "b").await.is_some());
    }

    #[test]
    fn the_table_does_not_grow_with_the_list() {
        let gate = gate(10, 1);
        for idx in 0..10 * FIRST_SWEEP {
            // A host that is left without a slot having been taken: nothing else would remove it.
            gate.note(&idx.to_string(), HostAnswer::Useful);
            assert!(lock(&gate.hosts).by_name.len() <= FIRST_SWEEP);
        }
    }
}
