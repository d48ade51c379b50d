//! What is shown on standard error to a person alone.

use std::io::{IsTerminal as _, Write as _};

/// Text on standard error if a person reads it there.
pub(crate) fn show(text: &str) {
    let mut stderr = std::io::stderr();
    if stderr.is_terminal() {
        let _ = write!(stderr, "{text}").and_then(|()| stderr.flush());
    }
}
