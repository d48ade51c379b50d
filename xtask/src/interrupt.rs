//! Ctrl-C and SIGTERM: a flag that the loops waiting for a child look at.
//!
//! The terminal sends Ctrl-C to the whole process group, so the running stage hears it too and stops by itself;
//! the runner only has to wait for that and to say how to go on.

use anyhow::Context;
use std::sync::atomic::{AtomicUsize, Ordering};

static NUM_SIGNALS: AtomicUsize = AtomicUsize::new(0);

/// Starts listening. A second signal ends the process at once.
pub(crate) fn listen() -> anyhow::Result<()> {
    ctrlc::set_handler(|| {
        if NUM_SIGNALS.fetch_add(1, Ordering::SeqCst) > 0 {
            std::process::exit(130);
        }
    })
    .context("cannot listen for Ctrl-C")
}

/// Whether somebody asked to stop.
pub(crate) fn requested() -> bool {
    NUM_SIGNALS.load(Ordering::SeqCst) > 0
}
