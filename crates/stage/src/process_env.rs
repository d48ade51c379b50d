//! The environment: settings that libraries below us take from there only, and only when the process starts; and what
//! users say there of object stores.

use crate::stores::Environment;

/// Name and value; a value from outside stands.
const SETTINGS: [(&str, &str); 4] = [
    // candle's elementwise operations spin on a thread pool of their own; our parallelism is over samples and
    // micro-batches, and the two together burnt 60 % of the CPU time of a training step in spinning (measured).
    ("CANDLE_NUM_THREADS", "1"),
    // glibc gives large blocks back to the system and faults them in again, tensor by tensor: a fifth of a training
    // step (measured). With these it keeps them.
    ("MALLOC_MMAP_THRESHOLD_", "33554432"),
    ("MALLOC_TRIM_THRESHOLD_", "1073741824"),
    ("MALLOC_TOP_PAD_", "67108864"),
];

/// Starts the program over with the settings in place, unless they (or the user's own values) already are.
/// The process keeps its id, its arguments and its standard streams.
#[cfg(unix)]
pub(crate) fn ensure() {
    use std::os::unix::process::CommandExt as _;
    let missing: Vec<_> = SETTINGS.iter().filter(|(name, _)| std::env::var_os(name).is_none()).collect();
    if missing.is_empty() {
        return;
    }
    let Ok(program) = std::env::current_exe() else { return };
    let mut command = std::process::Command::new(program);
    command.args(std::env::args_os().skip(1)).envs(missing.into_iter().copied());
    // `exec` only returns if it failed; the stage then runs as it is, slower but the same.
    let _ = command.exec();
}

/// The variables that speak of object stores, read once.
pub(crate) fn stores() -> Environment {
    let text = |value: std::ffi::OsString| value.into_string().ok();
    Environment::new(std::env::vars_os().filter_map(|(name, value)| Some((text(name)?, text(value)?))))
}

/// Elsewhere the defaults stay.
#[cfg(not(unix))]
pub(crate) fn ensure() {}
