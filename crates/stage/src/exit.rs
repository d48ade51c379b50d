//! How a program ends: its exit code, and the sentence before it.

use crate::logging::{self, LogFormat};
use crate::process_env;
use crate::voice::tell;
use std::error::Error;
use std::process::ExitCode;

/// The run failed.
pub(crate) const FAILED: u8 = 1;
/// The request was wrong.
pub(crate) const WRONG_REQUEST: u8 = 2;
/// Ctrl-C or SIGTERM.
pub(crate) const INTERRUPTED: u8 = 130;

/// Why a program that is no stage failed.
pub trait ProgramError: Error + 'static {
    /// Whether the request itself is wrong, as flags, paths and formats can be: exit code 2. What goes wrong while a request
    /// is carried out is 1.
    fn is_wrong_request(&self) -> bool;
}

/// Runs a program that is no stage as stages run: settings of libraries, log lines on standard error, there as its last
/// word why it failed, and the exit codes 0 (done), 1 (failed) and 2 (wrong request).
pub fn run_program<E: ProgramError>(name: &str, program: impl FnOnce() -> Result<(), E>) -> ExitCode {
    process_env::ensure();
    logging::init(LogFormat::Text, 0);
    match program() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tell(&format!("{name}: {}", with_causes(&error)));
            ExitCode::from(if error.is_wrong_request() { WRONG_REQUEST } else { FAILED })
        }
    }
}

/// An error with its causes, none of them twice.
#[must_use]
pub fn with_causes(error: &(dyn Error + 'static)) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("the file")]
        File(#[source] std::io::Error),
        #[error("wrapped: {0}")]
        Told(#[source] std::io::Error),
    }

    #[test]
    fn causes_are_told_once() {
        let cause = || std::io::Error::other("is gone");
        assert_eq!(with_causes(&Failure::File(cause())), "the file: is gone");
        assert_eq!(with_causes(&Failure::Told(cause())), "wrapped: is gone");
    }
}
