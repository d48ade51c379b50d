//! What is said on standard error besides log lines: the first and last words of the runtime, and what programs tell.
//!
//! These are not log lines, because they must be there whatever the filter of the log says, but what a stage says in a log of
//! JSON is JSON too.

use crate::logging::LogFormat;
use std::io::Write as _;

/// Says a line on standard error.
pub fn tell(line: &str) {
    // If stderr is gone there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Speaks for a stage in the format of its log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Voice {
    pub(crate) stage: &'static str,
    pub(crate) format: LogFormat,
}

impl Voice {
    /// Something to know.
    pub(crate) fn info(self, message: &str) {
        self.say("INFO", message, serde_json::Map::new());
    }

    /// Something to know, with fields for machines that a person finds in the message.
    pub(crate) fn info_with(self, message: &str, fields: serde_json::Map<String, serde_json::Value>) {
        self.say("INFO", message, fields);
    }

    /// Why the run failed.
    pub(crate) fn error(self, message: &str) {
        self.say("ERROR", message, serde_json::Map::new());
    }

    fn say(self, level: &str, message: &str, fields: serde_json::Map<String, serde_json::Value>) {
        tell(&self.line(level, message, fields));
    }

    /// The shape of a log line: level, target, fields with the message among them.
    fn line(
        self,
        level: &str,
        message: &str,
        mut fields: serde_json::Map<String, serde_json::Value>,
    ) -> String {
        if self.format == LogFormat::Text {
            return message.to_owned();
        }
        fields.insert("message".to_owned(), message.into());
        serde_json::json!({"level": level, "fields": fields, "target": format!("oqvl_{}", self.stage)})
            .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_of_json_ends_in_json() {
        let voice = Voice { stage: "demo", format: LogFormat::Json };
        let fields = serde_json::Map::from_iter([("seen".to_owned(), 3.into())]);
        let line: serde_json::Value = serde_json::from_str(&voice.line("INFO", "a\n\"b\"", fields)).unwrap();
        assert_eq!((&line["fields"]["message"], &line["fields"]["seen"]), (&"a\n\"b\"".into(), &3.into()));
        let voice = Voice { stage: "demo", format: LogFormat::Text };
        assert_eq!(voice.line("INFO", "demo: done", serde_json::Map::new()), "demo: done");
    }
}
