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

/// An error with its causes, none of them twice.
pub(crate) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut message = String::new();
    let mut next = Some(error);
    while let Some(cause) = next {
        let text = cause.to_string();
        if !message.ends_with(&text) {
            message += if message.is_empty() { "" } else { ": " };
            message += &text;
        }
        next = cause.source();
    }
    message
}
