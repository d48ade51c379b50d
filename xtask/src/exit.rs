//! How a command ends: 0 done, 1 the run failed, 2 the request was wrong, 130 interrupted.

use std::fmt;
use std::process::ExitCode;

/// An end with a code of its own; any other error is code 1.
#[derive(Debug)]
pub(crate) struct Exit {
    code: u8,
    sentence: String,
}

impl Exit {
    /// The request was wrong: a flag, a config file, a key.
    pub(crate) fn wrong_request(sentence: impl Into<String>) -> anyhow::Error {
        Self { code: 2, sentence: sentence.into() }.into()
    }

    /// A child process failed; its code becomes ours.
    pub(crate) fn child(code: u8, sentence: impl Into<String>) -> anyhow::Error {
        Self { code, sentence: sentence.into() }.into()
    }

    /// Ctrl-C or a polite request to stop.
    pub(crate) fn interrupted(what: &str) -> anyhow::Error {
        let sentence =
            format!("interrupted during {what}; finished work is kept, the same command continues from here");
        Self { code: 130, sentence }.into()
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl std::error::Error for Exit {}

/// Prints the failure, if any, once, with its causes, and says the exit code.
pub(crate) fn code(outcome: anyhow::Result<()>) -> ExitCode {
    let Err(failure) = outcome else { return ExitCode::SUCCESS };
    eprintln!("error: {failure:#}");
    ExitCode::from(failure.downcast_ref::<Exit>().map_or(1, |exit| exit.code))
}
