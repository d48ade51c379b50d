//! The config file: one TOML file for a whole run, one table per stage, `--set` on top.

use crate::StageConfig;
use crate::config_error::{ConfigError, no_table};
use crate::shard_range::ARRAY_TASK_VARIABLE;
use crate::spelling::nearest;
use crate::stores::StoresConfig;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Top-level keys that are not stage tables.
const GENERAL_KEYS: [&str; 3] = ["name", "seed", "threads"];
/// The table of the object stores, which all stages share.
pub(crate) const STORES_TABLE: &str = "stores";

/// Far above, a system cannot start them, and the pool waits for ever.
const MAX_THREADS: usize = 1024;

/// A config file with its overrides applied.
#[derive(Debug, Clone, Default)]
pub struct ConfigFile {
    table: Table,
    /// The file it was read from.
    path: Option<PathBuf>,
    /// What was set on top.
    assignments: Vec<String>,
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
        let file = Self::parse(&text).map_err(|error| error.given_in(&path.display().to_string()))?;
        Ok(Self { path: Some(path.to_path_buf()), ..file })
    }

    /// Parses TOML text.
    ///
    /// # Errors
    /// If the text is not TOML.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let table = text.parse::<Table>().map_err(|error| ConfigError::of_syntax(text, &error))?;
        Ok(Self { table, ..Self::default() })
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
        self.assignments.push(assignment.to_owned());
        Ok(())
    }

    /// Whether a stage is set up here.
    pub(crate) fn has_table(&self, name: &str) -> bool {
        self.table.get(name).is_some_and(Value::is_table)
    }

    /// The error with the place where its key was given: on the command line, or in the file.
    pub(crate) fn located(&self, error: ConfigError) -> ConfigError {
        if error.key().starts_with("--") || error.key() == ARRAY_TASK_VARIABLE {
            return error;
        }
        // Errors do not know the indices of lists.
        let steps = |key: &str| -> Vec<String> {
            let steps = key.trim().split('.').filter(|step| step.parse::<usize>().is_err());
            steps.map(str::to_owned).collect()
        };
        let wrong = steps(error.key());
        let concerns = |assignment: &String| {
            let set = steps(assignment.split_once('=').map_or("", |(key, _)| key));
            wrong.starts_with(&set) || (wrong.len() > 1 && set.starts_with(&wrong))
        };
        match &self.path {
            _ if self.assignments.iter().any(concerns) => error.given_in("--set"),
            Some(path) => error.given_in(&path.display().to_string()),
            None => error,
        }
    }

    /// Whether there is a table or key of this name.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.table.contains_key(name)
    }

    /// Refuses a `--set` for a table that is neither in the file nor the stage's own: nobody would ever read it.
    pub(crate) fn check_owner(&self, assignment: &str, stage: &str) -> Result<(), ConfigError> {
        let Some((key, _)) = assignment.split_once('=') else { return Ok(()) };
        let head = key.trim().split('.').next().unwrap_or_default();
        let is_shared = GENERAL_KEYS.contains(&head) || head == STORES_TABLE;
        if head == stage || is_shared || self.table.contains_key(head) {
            return Ok(());
        }
        // What has a dot behind it is meant as a table.
        let (kind, keys) =
            if key.contains('.') { ("table", &[][..]) } else { ("table or key", &GENERAL_KEYS[..]) };
        let tables = self.table.iter().filter(|(_, value)| value.is_table()).map(|(table, _)| table.as_str());
        let names = tables.chain([stage, STORES_TABLE]).chain(keys.iter().copied());
        let meant = nearest(head, names).map(|meant| format!("; did you mean `{meant}`?"));
        let message =
            format!("the config has no {kind} `{head}`, in `{assignment}`{}", meant.unwrap_or_default());
        Err(ConfigError::flag("--set", message))
    }

    /// The seed of the run: `seed`, which must be there.
    ///
    /// # Errors
    /// If it is missing or not a non-negative integer.
    pub fn seed(&self) -> Result<u64, ConfigError> {
        let value = self
            .table
            .get("seed")
            .ok_or_else(|| ConfigError::new("seed", "is missing: any integer from 0 on"))
            .map_err(|error| self.located(error))?;
        let seed = value.as_integer().and_then(|seed| u64::try_from(seed).ok());
        let wrong = || ConfigError::new("seed", format!("must be an integer from 0 on, got {value}"));
        seed.ok_or_else(|| self.located(wrong()))
    }

    /// Number of threads: `threads`, 0 or missing for all cores.
    ///
    /// # Errors
    /// If it is not an integer from 0 to 1024.
    pub fn threads(&self) -> Result<usize, ConfigError> {
        let Some(value) = self.table.get("threads") else { return Ok(0) };
        let threads = value.as_integer().and_then(|threads| usize::try_from(threads).ok());
        threads.filter(|threads| *threads <= MAX_THREADS).ok_or_else(|| {
            let message = format!("must be an integer from 0 to {MAX_THREADS}, got {value}");
            self.located(ConfigError::new("threads", message))
        })
    }

    /// The validated `[stores]` table; all defaults if there is none.
    pub(crate) fn stores(&self) -> Result<StoresConfig, ConfigError> {
        let Some(table) = self.table.get(STORES_TABLE) else { return Ok(StoresConfig::default()) };
        let config: StoresConfig = deserialize(STORES_TABLE, table).map_err(|error| self.located(error))?;
        config.validate().map_err(|error| self.located(error.inside(STORES_TABLE)))?;
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
                let message = format!("there is no such key; outside tables there are only {known}");
                return Err(self.located(ConfigError::new(key, message)));
            }
        }
        let table = self.table.get(name).ok_or_else(|| self.located(no_table(name, &self.table)))?;
        let config: C = deserialize(name, table).map_err(|error| self.located(error))?;
        config.validate().map_err(|error| self.located(error.inside(name)))?;
        Ok(config)
    }
}

fn deserialize<T: DeserializeOwned>(name: &str, table: &Value) -> Result<T, ConfigError> {
    table.clone().try_into::<T>().map_err(|error| ConfigError::of_table(name, table, &error))
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

    /// Keys of the kinds that serde has its own words for.
    #[derive(Debug, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Kinds {
        word: Option<Word>,
        either: Option<Either>,
        pair: Option<(u8, u8)>,
    }

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Word {
        One,
        Two,
    }

    #[derive(Debug, Serialize, Deserialize)]
    #[serde(untagged, expecting = "expected true, false or a number")]
    enum Either {
        Switch(bool),
        Number(u8),
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

    impl StageConfig for Kinds {
        fn validate(&self) -> Result<(), ConfigError> {
            Ok(())
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
        for (set, expected) in [
            ("dmeo.seq_len=3", "no table `dmeo`, in `dmeo.seq_len=3`; did you mean `demo`?"),
            ("seeds=3", "no table or key `seeds`, in `seeds=3`; did you mean `seed`?"),
            ("thread=3", "no table or key `thread`, in `thread=3`; did you mean `threads`?"),
            ("store.offline=true", "no table `store`, in `store.offline=true`; did you mean `stores`?"),
            ("seeds.x=3", "no table `seeds`, in `seeds.x=3`"),
        ] {
            let error = file.check_owner(set, "demo").unwrap_err().to_string();
            assert_eq!(error, format!("--set: the config has {expected}"));
        }
    }

    #[test]
    fn numbers_of_threads_have_an_end() {
        let threads = |text: &str| ConfigFile::parse(text).unwrap().threads();
        assert_eq!((threads(""), threads("threads = 1024")), (Ok(0), Ok(1024)));
        for text in ["threads = 1025", "threads = -1", "threads = \"two\""] {
            assert!(threads(text).unwrap_err().to_string().starts_with("threads: must be"), "{text}");
        }
    }

    #[test]
    fn errors_name_the_key() {
        for (text, set, expected) in [
            (
                "[demo]\nseq_len = 4",
                "demo.seqlen=3",
                "--set: demo.seqlen: there is no such key; did you mean `seq_len`? the keys here are `seq_len`, `inner`",
            ),
            ("[demo]\nseq_len = 4", "demo.seq_len=0", "--set: demo.seq_len: must be at least 1, got 0"),
            (
                "[other]\nx = 1",
                "other.x=2",
                "[demo]: there is no such table, and the stage `demo` is set up there",
            ),
            (
                "x = 1\n[demo]\nseq_len = 4",
                "demo.seq_len=1",
                "x: there is no such key; outside tables there are only name, seed, threads",
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
    }

    #[test]
    fn what_is_wrong_is_said_in_the_words_of_a_config() {
        for (lines, expected) in [
            ("seq_len = \"long\"", "demo.seq_len: must be an integer, got the string \"long\""),
            ("seq_len = -1", "demo.seq_len: must be an integer that is not negative, got -1"),
            ("seq_len = 5000000000", "demo.seq_len: must be a smaller integer, got 5000000000"),
            (
                "seq_len = 4\n[[demo.inner]]\nnames = \"a\"",
                "demo.inner.names: there is no such key; did you mean `name`? the keys here are `name`",
            ),
            ("", "demo.seq_len: is missing, and has no default"),
            ("seq_len = 4\n[[demo.inner]]", "demo.inner.name: is missing, and has no default"),
            ("seq_len = 4\ninner = 3", "demo.inner: must be a list, got 3"),
            (
                "seq_len = 4\n[[demo.inner]]\nname = \"a\"\nsize = 3",
                "demo.inner.size: there is no such key; the keys here are `name`",
            ),
        ] {
            assert_eq!(check(&format!("[demo]\n{lines}"), &[]).unwrap_err(), expected);
        }
        for (line, expected) in [
            ("word = \"tow\"", "demo.word: must be one of `one`, `two`, got `tow` (did you mean `two`?)"),
            ("word = \"three\"", "demo.word: must be one of `one`, `two`, got `three`"),
            ("word = 3", "demo.word: must be a word in quotes, got 3"),
            ("either = \"yes\"", "demo.either: must be true, false or a number, got \"yes\""),
            ("pair = [1]", "demo.pair: must be a list of 2 values, got 1 value"),
            ("pair = []", "demo.pair: must be a list of 2 values, got 0 values"),
            ("pair = [1, 300]", "demo.pair: must be a smaller integer, got 300"),
            ("pair = [1, 2, 3]", "demo.pair: must be a shorter list, got 3 values"),
        ] {
            let file = ConfigFile::parse(&format!("[demo]\n{line}")).unwrap();
            assert_eq!(file.stage::<Kinds>("demo").unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn keys_of_stores_are_looked_up_on_their_own_page() {
        let stores = |line: &str| ConfigFile::parse(&format!("[stores]\n{line}")).unwrap().stores();
        assert_eq!(
            stores("upload = 3").unwrap_err().to_string(),
            "stores.upload: there is no such key; docs/object-stores.md lists the keys and their values"
        );
    }

    #[test]
    fn errors_say_where_the_key_was_given() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.toml");
        let check = |text: &str, sets: &[&str]| {
            oqvl_shard_io::write_atomic(&path, text.as_bytes()).unwrap();
            let mut file = ConfigFile::read(&path).map_err(|error| error.to_string())?;
            sets.iter().for_each(|set| file.set(set).unwrap());
            file.seed().and_then(|_| file.stage::<Demo>("demo")).map_err(|error| error.to_string())
        };
        let shown = path.display();
        let good = "seed = 7\n[demo]\nseq_len = 4\n[[demo.inner]]\nname = \"a\"\n";
        assert!(check(good, &[]).is_ok());
        for (text, set, expected) in [
            (
                &good.replace('4', "0")[..],
                "demo.inner=[]",
                format!("{shown}: demo.seq_len: must be at least 1, got 0"),
            ),
            (good, "demo.seq_len=0", "--set: demo.seq_len: must be at least 1, got 0".to_owned()),
            (good, "demo.inner.0.name=3", "--set: demo.inner.name: must be a string, got 3".to_owned()),
            (good, "seed=x", "--set: seed: must be an integer from 0 on, got \"x\"".to_owned()),
            (
                "[demo]\nseq_len = 4",
                "demo.inner=[]",
                format!("{shown}: seed: is missing: any integer from 0 on"),
            ),
            (
                "seed = 7\n[demmo]\nseq_len = 4",
                "seed=8",
                format!(
                    "{shown}: [demo]: there is no such table, and the stage `demo` is set up there; did you mean it by \
                     [demmo]?"
                ),
            ),
        ] {
            assert_eq!(check(text, &[set]).unwrap_err(), expected);
        }
        let error = check("seed = 7\n\n[demo\n", &[]).unwrap_err();
        assert!(
            error.starts_with(&format!("{shown}: line 3: this is no TOML: ")) && !error.contains('\n'),
            "{error}"
        );
    }
}
