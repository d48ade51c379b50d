//! The lines of a child process, passed on indented, so that a log shows who speaks.

use std::io::{BufRead, BufReader};
use std::process::ChildStderr;
use std::thread::JoinHandle;

/// Passes lines on until the child closes its standard error; lines for which `is_noise` holds are left out.
pub(crate) fn forward(
    stderr: ChildStderr,
    is_noise: impl Fn(&str) -> bool + Send + 'static,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut reader = BufReader::new(stderr);
        let mut line = Vec::new();
        // An error means that the child is gone; how it ended says its exit code.
        while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            let text = String::from_utf8_lossy(&line);
            if !is_noise(&text) {
                eprintln!("    {}", text.trim_end());
            }
            line.clear();
        }
    })
}
