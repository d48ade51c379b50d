//! What is said on standard error.

use std::io::{IsTerminal as _, Write as _};

/// A line on standard error.
pub(crate) fn say(line: &str) {
    // Nobody is left to be told if that fails.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Text on standard error if a person reads it there.
pub(crate) fn show(text: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let _ = write!(stderr, "{text}").and_then(|()| stderr.flush());
    }
}
