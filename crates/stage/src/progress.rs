//! Progress with rate and ETA: a bar on a terminal, a log line every 30 s elsewhere.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a run without a terminal says how far it is.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// Progress of one loop. Cheap to call from many threads.
#[derive(Debug)]
pub struct Progress {
    name: &'static str,
    unit: &'static str,
    total: AtomicU64,
    done: AtomicU64,
    started: Instant,
    last_log: Mutex<Instant>,
    message: Mutex<String>,
    bar: Option<ProgressBar>,
}

impl Progress {
    pub(crate) fn new(name: &'static str, total: u64, unit: &'static str) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(5));
            let template = "{prefix} {wide_bar} {human_pos}/{human_len} {msg} {per_sec}, ETA {eta}";
            bar.set_style(
                ProgressStyle::with_template(template).expect("the template is a constant and valid"),
            );
            bar.set_prefix(name);
            bar.set_message(unit);
            bar
        });
        let now = Instant::now();
        Self {
            name,
            unit,
            total: AtomicU64::new(total),
            done: AtomicU64::new(0),
            started: now,
            last_log: Mutex::new(now),
            message: Mutex::new(String::new()),
            bar,
        }
    }

    /// `count` more units are done.
    pub fn inc(&self, count: u64) {
        let done = self.done.fetch_add(count, Ordering::Relaxed) + count;
        match &self.bar {
            Some(bar) => bar.inc(count),
            None => self.log_if_due(done),
        }
    }

    /// How many there are, for loops that learn it on the way.
    pub fn set_total(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
        }
    }

    /// A few words beside the numbers, such as the loss.
    pub fn set_message(&self, message: impl Into<String>) {
        let message = message.into();
        match &self.bar {
            Some(bar) => bar.set_message(format!("{} {message}", self.unit)),
            None => *self.message.lock().expect("no thread panics while it holds the message") = message,
        }
    }

    /// The loop is done: the bar goes away, the stage's own last line stays.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn log_if_due(&self, done: u64) {
        // Whoever holds the lock is about to log: nobody has to wait for it.
        let Ok(mut last_log) = self.last_log.try_lock() else { return };
        if last_log.elapsed() < LOG_INTERVAL {
            return;
        }
        *last_log = Instant::now();
        let rate = done as f64 / self.started.elapsed().as_secs_f64();
        let total = self.total.load(Ordering::Relaxed);
        let eta_seconds = (total.saturating_sub(done) as f64 / rate).ceil();
        let message = self.message.lock().expect("no thread panics while it holds the message").clone();
        tracing::info!(
            "{}: {done}/{total} {} {message} ({rate:.1}/s, ETA {eta_seconds:.0} s)",
            self.name,
            self.unit
        );
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
