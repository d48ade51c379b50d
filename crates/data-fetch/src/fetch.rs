//! One URL: checks, attempts, redirects, waiting.

use crate::client::{Answer, Body, HttpClient};
use crate::config::DataFetchConfig;
use crate::error::DataFetchError;
use crate::host_gate::{HostAnswer, HostGate, HostLimits, NoEntry, Slot};
use crate::reject::Reject;
use crate::resolver::GuardedResolver;
use rand::Rng as _;
use reqwest::{Certificate, Url};
use std::time::Duration;

/// Requests under way at first for every thread that works on images, and at least: enough for servers that answer at
/// once.
const REQUESTS_PER_WORKER: usize = 8;

/// What fetching one URL gave.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// The body and the slot it occupies; the slot is to be held as long as the body.
    pub(crate) outcome: Result<(Body, Slot), Reject>,
    /// Attempts after the first.
    pub(crate) num_retries: u64,
}

/// Fetches URLs within the limits of the config.
#[derive(Debug)]
pub(crate) struct Fetcher {
    client: HttpClient,
    resolver: GuardedResolver,
    gate: HostGate,
    limits: Limits,
    seed: u64,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    deadline: Duration,
    retries: u32,
    backoff: Duration,
    max_backoff: Duration,
    patience: Duration,
    max_redirects: u32,
}

/// What a URL has left and has used.
#[derive(Debug)]
struct Budget {
    /// Network time left.
    network: Duration,
    /// Time left for waiting out pauses that hosts asked for.
    patience: Duration,
    /// Attempts of which at least the first request was sent.
    num_attempts: u32,
}

/// Why an attempt failed.
enum Failure {
    /// A request failed.
    Refused(Reject),
    /// A request failed and its host is left alone for a while: the gate makes the next attempt wait.
    Postponed(Reject),
    /// The host lets nobody in, so no request was sent.
    NoEntry(NoEntry),
}

impl Fetcher {
    /// `num_workers` threads will work on what arrives. `seed` is for the jitter of the waits alone.
    ///
    /// # Errors
    /// [`DataFetchError::Client`] if the HTTP client cannot be set up.
    pub(crate) fn new(
        config: &DataFetchConfig,
        resolver: GuardedResolver,
        authorities: &[Certificate],
        num_workers: usize,
        seed: u64,
    ) -> Result<Self, DataFetchError> {
        let limits = Limits {
            deadline: Duration::from_secs_f64(config.deadline_seconds),
            retries: config.retries,
            backoff: Duration::from_secs_f64(config.backoff_seconds),
            max_backoff: Duration::from_secs_f64(config.max_backoff_seconds),
            patience: Duration::from_secs_f64(config.max_retry_after_seconds),
            max_redirects: config.max_redirects,
        };
        let client = HttpClient::new(config, &resolver, authorities)?;
        let host_limits = HostLimits {
            in_flight: config.per_host_in_flight,
            requests_per_second: config.per_host_requests_per_second,
            max_failures: config.max_host_failures,
            failing_for: limits.deadline,
        };
        let gate = HostGate::new(config.in_flight, REQUESTS_PER_WORKER * num_workers, host_limits);
        Ok(Self { client, resolver, gate, limits, seed })
    }

    /// There is too little to work on: more requests may be under way.
    pub(crate) fn widen(&self) {
        self.gate.widen();
    }

    /// Fetches one URL. `url_idx` numbers the URL in the list, for the jitter.
    pub(crate) async fn fetch(&self, url: &str, url_idx: u64) -> Fetched {
        let url = match Url::parse(url).map_err(|_| Reject::BadUrl).and_then(|url| self.checked(url)) {
            Ok(url) => url,
            Err(reject) => return Fetched { outcome: Err(reject), num_retries: 0 },
        };
        let mut budget =
            Budget { network: self.limits.deadline, patience: self.limits.patience, num_attempts: 0 };
        let outcome = self.attempts(&url, url_idx, &mut budget).await;
        Fetched { outcome, num_retries: u64::from(budget.num_attempts.saturating_sub(1)) }
    }

    async fn attempts(&self, url: &Url, url_idx: u64, budget: &mut Budget) -> Result<(Body, Slot), Reject> {
        let mut last_reject = None;
        let mut num_retries = 0;
        loop {
            let wait = self.backoff(url_idx, num_retries);
            let failure = match self.attempt(url.clone(), wait, budget).await {
                Ok(fetched) => return Ok(fetched),
                Err(failure) => failure,
            };
            let reject = match failure {
                Failure::Refused(reject) | Failure::Postponed(reject) => reject,
                Failure::NoEntry(NoEntry::PausedTooLong) => {
                    return Err(last_reject.unwrap_or(Reject::RateLimited));
                }
                Failure::NoEntry(NoEntry::GivenUp) => {
                    return Err(last_reject.unwrap_or(Reject::HostFailing));
                }
            };
            if !reject.is_transient() || num_retries >= self.limits.retries || budget.network.is_zero() {
                return Err(reject);
            }
            if matches!(failure, Failure::Refused(_)) {
                tokio::time::sleep(wait).await;
            }
            last_reject = Some(reject);
            num_retries += 1;
        }
    }

    /// Follows redirects from `url` to a body. Every hop is checked, waits for its own host, and pays from
    /// `budget`. `wait` is how long a host that is overloaded but does not say for how long is left alone.
    async fn attempt(
        &self,
        mut url: Url,
        wait: Duration,
        budget: &mut Budget,
    ) -> Result<(Body, Slot), Failure> {
        let mut num_redirects = 0;
        loop {
            // A checked URL has a host.
            let host = url.host_str().unwrap_or_default().to_owned();
            // Neither the wait for a thread that asks for its address nor the host's own limits are network time.
            Box::pin(self.resolver.begin(&host)).await;
            let entered = self.gate.enter(&host, &mut budget.patience).await;
            let mut slot = entered.map_err(Failure::NoEntry)?;
            budget.num_attempts += u32::from(num_redirects == 0);
            // Boxed, so that the thousands of tasks that wait at the gate are small.
            let answer = Box::pin(self.client.get(&url, &mut budget.network)).await;
            let refusal = match answer {
                Err(refusal) => refusal,
                Ok(Answer::Body(body)) => {
                    self.gate.note(&host, HostAnswer::Useful);
                    slot.leave_host();
                    return Ok((body, slot));
                }
                Ok(Answer::Redirect(_)) if num_redirects >= self.limits.max_redirects => {
                    Reject::RedirectLoop.into()
                }
                Ok(Answer::Redirect(target)) => match self.checked(target) {
                    Ok(target) => {
                        url = target;
                        num_redirects += 1;
                        continue;
                    }
                    Err(reject) => reject.into(),
                },
            };
            let answer =
                if refusal.reject.is_hosts_failure() { HostAnswer::Failure } else { HostAnswer::Useful };
            let is_ours = refusal.kept_waiting && answer == HostAnswer::Failure;
            if !is_ours && self.gate.note(&host, answer) {
                let reason = refusal.reject.reason();
                tracing::warn!("{host} does nothing but fail (last: {reason}) and is left alone for a while");
            }
            // A host that wants to be left alone is left alone by all its URLs, whether this one is retried
            // or not; and before the slot is free for the next.
            let pause = refusal.retry_after.or((refusal.reject == Reject::RateLimited).then_some(wait));
            let Some(pause) = pause else { return Err(Failure::Refused(refusal.reject)) };
            self.gate.pause(&host, pause);
            return Err(Failure::Postponed(refusal.reject));
        }
    }

    fn checked(&self, url: Url) -> Result<Url, Reject> {
        self.resolver.check_url(&url).map(|()| url)
    }

    /// The wait before another attempt: doubles each time, with a jitter of a half either way, so that URLs
    /// that failed together do not come back together.
    fn backoff(&self, url_idx: u64, num_retries: u32) -> Duration {
        let doubled = self.limits.backoff.as_secs_f64() * 2.0_f64.powi(num_retries.min(62) as i32);
        let mean = doubled.min(self.limits.max_backoff.as_secs_f64());
        let mut jitter =
            oqvl_stage::stream(self.seed, "data-fetch/backoff", 0, u64::from(num_retries), url_idx);
        Duration::from_secs_f64(mean * jitter.random_range(0.5..1.5)).min(self.limits.max_backoff)
    }
}
