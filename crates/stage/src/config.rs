//! The config file: one TOML file for a whole run, one table per stage, `--set` on top.

use crate::StageConfig;
use crate::stores::StoresConfig;
use serde::de::DeserializeOwned;
use std::path::Path;
use toml::{Table, Value};

/// Top-level keys that are not stage tables.
const GENERAL_KEYS: [&str; 3] = ["name", "seed", "threads"];
/// The table of the object stores, which all stages share.
const STORES_TABLE: &str = "stores";

/// Far above, a system cannot start them, and the pool waits for ever.
const MAX_THREADS: usize = 1024;

/// A request that cannot be carried out as it stands; exit code 2.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {message}")]
pub struct ConfigError {
    key: String,
    message: String,
}

impl ConfigError {
    /// `key` as in the stage's table, `message` says what it must be and what it is.
    pub fn new(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { key: key.into(), message: message.into() }
    }

    pub(crate) fn flag(flag: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(flag, message)
    }

    /// The same error with the key inside `table`: `seq_len` becomes `packer.seq_len`.
    #[must_use]
    pub fn inside(mut self, table: &str) -> Self {
        self.key = format!("{table}.{}", self.key);
        self
    }

    /// The key or flag that is wrong.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }
}

/// A config file with its overrides applied.
#[derive(Debug, Clone, Default)]
pub struct ConfigFile {
    table: Table,
}

impl ConfigFile {
    /// Reads a TOML file.
    ///
    /// # Errors
    /// If it cannot be read or is not TOML; the message says where.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path).map_err(|error| {
            ConfigError::flag("--config", format!("cannot read {}: {error}", path.display()))
        })?;
        Self::parse(&text)
            .map_err(|error| ConfigError::flag(format!("--config {}", path.display()), error.message))
    }

    /// Parses TOML text.
    ///
    /// # Errors
    /// If the text is not TOML.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let table =
            text.parse::<Table>().map_err(|error| ConfigError::flag("--config", error.to_string()))?;
        Ok(Self { table })
    }

    /// Applies one `table.key=value`; the value is TOML, or a string if it is not TOML.
    ///
    /// # Errors
    /// If there is no `=`, or the path goes through something that is neither a table nor a list.
    pub fn set(&mut self, assignment: &str) -> Result<(), ConfigError> {
        let wrong = |why: &str| ConfigError::flag("--set", format!("{why} in `{assignment}`"));
        let (path, text) =
            assignment.split_once('=').ok_or_else(|| wrong("expected table.key=value, no `=`"))?;
        let value = format!("value = {text}")
            .parse::<Table>()
            .ok()
            .and_then(|mut table| table.remove("value"))
            .unwrap_or_else(|| Value::String(text.to_owned()));
        let digits = text.trim().strip_prefix('-').unwrap_or(text.trim());
        let is_number = !digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit());
        if value.is_str() && !digits.is_empty() && is_number {
            return Err(wrong("the number is too large"));
        }
        let steps: Vec<&str> = path.trim().split('.').collect();
        if steps.iter().any(|step| step.is_empty()) {
            return Err(wrong("empty key"));
        }
        let (first, rest) = steps.split_first().expect("split yields at least one step");
        let mut place = self.table.entry(*first).or_insert_with(|| Value::Table(Table::new()));
        let mut name = first;
        for step in rest {
            place = match place {
                Value::Table(inner) => inner.entry(*step).or_insert_with(|| Value::Table(Table::new())),
                Value::Array(list) => {
                    let index: usize =
                        step.parse().map_err(|_| wrong(&format!("`{name}` is a list: it needs an index")))?;
                    let len = list.len();
                    list.get_mut(index).ok_or_else(|| wrong(&format!("`{name}` has {len} elements")))?
                }
                _ => return Err(wrong(&format!("`{name}` is not a table"))),
            };
            name = step;
        }
        *place = value;
        Ok(())
    }

    /// Refuses a `--set` for a table that is neither in the file nor the stage's own: nobody would ever read it.
    pub(crate) fn check_owner(&self, assignment: &str, stage: &str) -> Result<(), ConfigError> {
        let Some((key, _)) = assignment.split_once('=') else { return Ok(()) };
        let head = key.trim().split('.').next().unwrap_or_default();
        let is_shared = GENERAL_KEYS.contains(&head) || head == STORES_TABLE;
        if head == stage || is_shared || self.table.contains_key(head) {
            return Ok(());
        }
        Err(ConfigError::flag("--set", format!("the config has no table `{head}`, in `{assignment}`")))
    }

    /// The seed of the run: `seed`, which must be there.
    ///
    /// # Errors
    /// If it is missing or not a non-negative integer.
    pub fn seed(&self) -> Result<u64, ConfigError> {
        let value = self
            .table
            .get("seed")
            .ok_or_else(|| ConfigError::new("seed", "missing; any integer from 0 on"))?;
        let seed = value.as_integer().and_then(|seed| u64::try_from(seed).ok());
        seed.ok_or_else(|| ConfigError::new("seed", format!("expected an integer from 0 on, got `{value}`")))
    }

    /// Number of threads: `threads`, 0 or missing for all cores.
    ///
    /// # Errors
    /// If it is not an integer from 0 to 1024.
    pub fn threads(&self) -> Result<usize, ConfigError> {
        let Some(value) = self.table.get("threads") else { return Ok(0) };
        let threads = value.as_integer().and_then(|threads| usize::try_from(threads).ok());
        threads.filter(|threads| *threads <= MAX_THREADS).ok_or_else(|| {
            ConfigError::new("threads", format!("expected an integer from 0 to {MAX_THREADS}, got `{value}`"))
        })
    }

    /// The validated `[stores]` table; all defaults if there is none.
    pub(crate) fn stores(&self) -> Result<StoresConfig, ConfigError> {
        let Some(table) = self.table.get(STORES_TABLE).cloned() else { return Ok(StoresConfig::default()) };
        let config: StoresConfig = deserialize(table).map_err(|error| error.inside(STORES_TABLE))?;
        config.validate().map_err(|error| error.inside(STORES_TABLE))?;
        Ok(config)
    }

    /// The validated table of one stage.
    ///
    /// # Errors
    /// If the table is missing, has an unknown, missing or ill-typed key, or does not validate.
    pub fn stage<C: StageConfig>(&self, name: &str) -> Result<C, ConfigError> {
        for (key, value) in &self.table {
            if !GENERAL_KEYS.contains(&key.as_str()) && !value.is_table() {
                let known = GENERAL_KEYS.join(", ");
                return Err(ConfigError::new(
                    key,
                    format!("unknown key; outside tables there are only {known}"),
                ));
            }
        }
        let table = self.table.get(name).cloned();
        let table =
            table.ok_or_else(|| ConfigError::new(format!("[{name}]"), "the config has no such table"))?;
        let config: C = deserialize(table).map_err(|error| error.inside(name))?;
        config.validate().map_err(|error| error.inside(name))?;
        Ok(config)
    }
}

/// Deserialises a table; the error names the path of the key as far as `toml` knows it.
fn deserialize<T: DeserializeOwned>(value: Value) -> Result<T, ConfigError> {
    value.try_into::<T>().map_err(|error| {
        let text = error.to_string();
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let message = lines.next().unwrap_or("cannot be read").to_owned();
        let key = lines.find_map(|line| line.strip_prefix("in `").and_then(|rest| rest.strip_suffix('`')));
        ConfigError::new(key.unwrap_or("(table)"), message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::{Deserialize, Serialize};
    use std::path::PathBuf;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Demo {
        seq_len: u32,
        #[serde(default)]
        inner: Vec<Inner>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        name: String,
    }

    impl StageConfig for Demo {
        fn validate(&self) -> Result<(), ConfigError> {
            match self.seq_len {
                0 => Err(ConfigError::new("seq_len", "must be at least 1, got 0")),
                _ => Ok(()),
            }
        }
        fn inputs(&self) -> Vec<PathBuf> {
            Vec::new()
        }
    }

    fn check(text: &str, sets: &[&str]) -> Result<Demo, String> {
        let mut file = ConfigFile::parse(text).map_err(|error| error.to_string())?;
        for set in sets {
            file.set(set).map_err(|error| error.to_string())?;
        }
        file.stage("demo").map_err(|error| error.to_string())
    }

    #[test]
    fn sets_override_and_create() {
        let text = "seed = 7\n[demo]\nseq_len = 4\n[[demo.inner]]\nname = \"a\"";
        let demo = check(text, &["demo.seq_len=8", "demo.inner.0.name=b c"]).unwrap();
        assert_eq!(demo, Demo { seq_len: 8, inner: vec![Inner { name: "b c".into() }] });
        assert_eq!(check("", &["demo.seq_len=1"]).unwrap().seq_len, 1);
        let mut file = ConfigFile::parse("[demo]\nnames = [\"a\", \"b\"]").unwrap();
        file.set("demo.names.1=c").unwrap();
        assert_eq!(file.table["demo"]["names"].to_string(), "[\"a\", \"c\"]");
        file.set("demo.name=007").unwrap();
        assert_eq!(file.table["demo"]["name"].as_str(), Some("007"));
        assert!(file.set("demo.names.2=c").unwrap_err().to_string().contains("`names` has 2 elements"));
        assert!(file.set("demo.names.x=c").unwrap_err().to_string().contains("needs an index"));
        assert!(file.set("demo.seq_len=99999999999999999999").unwrap_err().to_string().contains("too large"));
    }

    #[test]
    fn an_override_for_a_table_that_is_not_there_is_refused() {
        let file = ConfigFile::parse("seed = 7\n[other]\nx = 1").unwrap();
        for set in ["other.x=2", "demo.seq_len=3", "seed=8", "threads=2"] {
            assert_eq!(file.check_owner(set, "demo"), Ok(()), "{set}");
        }
        let error = file.check_owner("dmeo.seq_len=3", "demo").unwrap_err().to_string();
        assert_eq!(error, "--set: the config has no table `dmeo`, in `dmeo.seq_len=3`");
    }

    #[test]
    fn numbers_of_threads_have_an_end() {
        let threads = |text: &str| ConfigFile::parse(text).unwrap().threads();
        assert_eq!((threads(""), threads("threads = 1024")), (Ok(0), Ok(1024)));
        for text in ["threads = 1025", "threads = -1", "threads = \"two\""] {
            assert!(threads(text).unwrap_err().to_string().starts_with("threads: expected"), "{text}");
        }
    }

    #[test]
    fn errors_name_the_key() {
        for (text, set, expected) in [
            (
                "[demo]\nseq_len = 4",
                "demo.seqlen=3",
                "demo.(table): unknown field `seqlen`, expected `seq_len` or `inner`",
            ),
            ("[demo]\nseq_len = 4", "demo.seq_len=0", "demo.seq_len: must be at least 1, got 0"),
            ("[other]\nx = 1", "other.x=2", "[demo]: the config has no such table"),
            (
                "x = 1\n[demo]\nseq_len = 4",
                "demo.seq_len=1",
                "x: unknown key; outside tables there are only name, seed, threads",
            ),
            (
                "[demo]\nseq_len = 4",
                "demo.seq_len",
                "--set: expected table.key=value, no `=` in `demo.seq_len`",
            ),
            (
                "[demo]\nseq_len = 4",
                "demo.seq_len.x=1",
                "--set: `seq_len` is not a table in `demo.seq_len.x=1`",
            ),
        ] {
            assert_eq!(check(text, &[set]).unwrap_err(), expected);
        }
        let error = check("[demo]\nseq_len = 4", &["demo.seq_len=\"long\""]).unwrap_err();
        assert!(error.starts_with("demo.seq_len: invalid type"), "{error}");
    }
}
