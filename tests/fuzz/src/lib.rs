//! Fuzz targets: functions that read hostile bytes and check what must hold for any bytes, and the loop that feeds them.
//!
//! The nouns:
//! - a [`Target`] reads an input and checks its *oracles*: no panic, bounded memory, bounded time, and what must hold of
//!   the result (what was read can be written and read again, a cut file gives a prefix, …). It answers with an
//!   *outcome*: which way the input took, in words without its details.
//! - a [`Campaign`] mutates seeds, keeps inputs with an outcome never seen before as further seeds, and stops at the
//!   first [`Finding`]. Input number `n` is a function of the seed and `n` alone.
//!
//! Run one with `cargo xtask fuzz [TARGET] [--seconds N]`; `docs/decisions/010-fuzzing-on-stable.md` says why it is
//! made this way. The tests of this crate are the short form: all seeds and a fixed number of inputs per target.
//!
//! ```
//! use oqvl_fuzz::{Campaign, target};
//!
//! let mut campaign = Campaign::new(target("npy").unwrap(), 7);
//! let findings: Vec<_> = (0..100).filter_map(|_| campaign.step()).collect();
//! assert!(findings.is_empty(), "{findings:?}");
//! assert!(campaign.num_outcomes() > 1);
//! ```

mod campaign;
mod memory;
mod mutate;
mod targets;

pub use campaign::{Campaign, Finding, run_once};
pub use targets::{Fixup, TARGETS, Target, target};
