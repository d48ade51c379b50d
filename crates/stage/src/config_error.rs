//! What is wrong with a request, in one sentence that names the file, the key and what is expected.

use crate::config::STORES_TABLE;
use crate::spelling::nearest;
use toml::{Table, Value};

/// So many keys are listed; of more, the one that is meant is all one wants to see.
const MAX_LISTED: usize = 8;

/// A request that cannot be carried out as it stands; exit code 2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{origin}{key}: {message}")]
pub struct ConfigError {
    /// Where the key was given, with a colon behind it; empty if nobody said.
    origin: String,
    key: String,
    message: String,
}

impl ConfigError {
    /// `key` as in the stage's table, `message` says what it must be and what it is.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { origin: String::new(), key: key.into(), message: message.into() }
    }

    pub(crate) fn flag(flag: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(flag, message)
    }

    /// The same error with the key inside `table`: `seq_len` becomes `packer.seq_len`.
    #[must_use]
    pub fn inside(mut self, table: &str) -> Self {
        self.key = if self.key.is_empty() { table.to_owned() } else { format!("{table}.{}", self.key) };
        self
    }

    /// Whether the key is one of `table`, by its full name.
    pub(crate) fn is_inside(&self, table: &str) -> bool {
        self.key == table || self.key.strip_prefix(table).is_some_and(|rest| rest.starts_with('.'))
    }

    /// The same error as one of a key that was given in `origin`, a file or a flag, unless it says so already.
    pub(crate) fn given_in(mut self, origin: &str) -> Self {
        if self.origin.is_empty() {
            self.origin = format!("{origin}: ");
        }
        self
    }

    /// The key or flag that is wrong.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The error of a file that is not TOML.
    pub(crate) fn of_syntax(text: &str, error: &toml::de::Error) -> Self {
        let end = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = text.as_bytes()[..end].iter().filter(|byte| **byte == b'\n').count() + 1;
        Self::new(format!("line {line}"), format!("this is no TOML: {}", error.message()))
    }

    /// The error of the table `name`, with the content `table`, that could not be read as what it must be.
    pub(crate) fn of_table(name: &str, table: &Value, error: &toml::de::Error) -> Self {
        let text = error.to_string();
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let message = lines.next().unwrap_or("cannot be read");
        let key = lines.find_map(|line| line.strip_prefix("in `").and_then(|rest| rest.strip_suffix('`')));
        let key = key.unwrap_or_default();
        let place = if key.is_empty() { name.to_owned() } else { format!("{name}.{key}") };
        let (subkey, message) = explained(message, &place, value_at(table, key));
        Self::new(subkey.map_or(place.clone(), |subkey| format!("{place}.{subkey}")), message)
    }
}

/// Where there are lists on the way, nobody knows which of their elements is meant.
fn value_at<'a>(table: &'a Value, key: &str) -> Option<&'a Value> {
    key.split('.').filter(|step| !step.is_empty()).try_fold(table, |value, step| value.get(step))
}

/// Says what serde says of the key `place` in the words of a config: the key below that, if the message is about one, and the
/// message.
fn explained(message: &str, place: &str, value: Option<&Value>) -> (Option<String>, String) {
    let quoted = |text: &str| text.split('`').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let names = quoted(message);
    let first = names.first().cloned().unwrap_or_default();
    if message.starts_with("missing field `") {
        return (Some(first), "is missing, and has no default".to_owned());
    }
    if message.starts_with("unknown field `") {
        return (Some(first.clone()), unknown_key(&first, &names[1..], place));
    }
    if message.starts_with("unknown variant `") {
        let (choices, one_of) = (&names[1..], if names.len() > 2 { "one of " } else { "" });
        let meant = nearest(&first, choices.iter().map(String::as_str));
        let meant = meant.map(|meant| format!(" (did you mean `{meant}`?)")).unwrap_or_default();
        return (None, format!("must be {one_of}{}, got `{first}`{meant}", listed(choices)));
    }
    for start in ["invalid type: ", "invalid value: ", "invalid length "] {
        let parts = message.strip_prefix(start).and_then(|rest| rest.rsplit_once(", expected "));
        if let Some((found, expected)) = parts {
            let shown = match (start, value) {
                ("invalid length ", _) if found == "1" => "1 value".to_owned(),
                ("invalid length ", _) => format!("{found} values"),
                (_, Some(value)) if found == "unit variant" => value.to_string(),
                _ => found_words(found),
            };
            return (None, format!("must be {}, got {shown}", expected_words(expected, found)));
        }
    }
    if message.starts_with("data did not match any variant")
        && let Some(value) = value
    {
        let message = format!("cannot be {value}; {} says what it can be", page_of(place));
        return (None, message);
    }
    if let Some(expected) = message.strip_prefix("expected ")
        && let Some(value) = value
        && !message.contains(", got ")
    {
        return (None, format!("must be {expected}, got {value}"));
    }
    (None, message.to_owned())
}

/// What may have been meant by a key of the table `place`, and what keys there are, if that is not too much to read.
fn unknown_key(typed: &str, keys: &[String], place: &str) -> String {
    let meant = nearest(typed, keys.iter().map(String::as_str));
    let are_few = (1..=MAX_LISTED).contains(&keys.len());
    let wrong = "there is no such key";
    match meant {
        Some(meant) if are_few => {
            format!("{wrong}; did you mean `{meant}`? the keys here are {}", listed(keys))
        }
        Some(meant) => format!("{wrong}; did you mean `{meant}`?"),
        None if are_few => format!("{wrong}; the keys here are {}", listed(keys)),
        None => format!("{wrong}; {} lists the keys and their values", page_of(place)),
    }
}

/// Where the keys of the table `place`, or of the one it is in, are explained.
fn page_of(place: &str) -> &'static str {
    match place.split('.').next() {
        Some(STORES_TABLE) => "docs/object-stores.md",
        _ => "the stage's page in docs/stages",
    }
}

fn listed(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// What a Rust type is called in a config, where serde has `found` something else.
fn expected_words(expected: &str, found: &str) -> String {
    let words = match expected {
        // The type's own limits say nothing of what the key may be: a quality is a `u8`, and from 1 to 100.
        "u8" | "u16" | "u32" | "u64" | "usize" | "i8" | "i16" | "i32" | "i64" | "isize" => {
            match found.strip_prefix("integer `") {
                Some(number) if number.starts_with('-') && expected.starts_with('i') => "a larger integer",
                Some(number) if number.starts_with('-') => "an integer that is not negative",
                Some(_) => "a smaller integer",
                None => "an integer",
            }
        }
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "path string" => "a string that is a path",
        "a sequence" => "a list",
        "fewer elements in array" => "a shorter list",
        "a map" => "a table",
        "string only" | "string or table" | "variant identifier" => "a word in quotes",
        other if other.starts_with("struct ") || other.starts_with("internally tagged enum ") => "a table",
        other => match other.strip_prefix("a tuple of size ") {
            Some(size) => return format!("a list of {size} values"),
            None => other,
        },
    };
    words.to_owned()
}

/// What is called so by serde.
fn found_words(found: &str) -> String {
    match found {
        "sequence" => return "a list".to_owned(),
        "map" => return "a table".to_owned(),
        "unit variant" => return "something else".to_owned(),
        _ => {}
    }
    for start in ["integer `", "floating point `", "boolean `"] {
        if let Some(value) = found.strip_prefix(start).and_then(|rest| rest.strip_suffix('`')) {
            return value.to_owned();
        }
    }
    if found.starts_with("string ") { format!("the {found}") } else { found.to_owned() }
}

/// A table that is not there, perhaps because it is spelled otherwise.
pub(crate) fn no_table(name: &str, file: &Table) -> ConfigError {
    let tables = file.iter().filter(|(_, value)| value.is_table()).map(|(key, _)| key.as_str());
    let meant = nearest(name, tables).map(|meant| format!("; did you mean it by [{meant}]?"));
    let message = format!(
        "there is no such table, and the stage `{name}` is set up there{}",
        meant.unwrap_or_default()
    );
    ConfigError::new(format!("[{name}]"), message)
}
