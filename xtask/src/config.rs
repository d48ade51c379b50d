//! The config file as far as the runner reads it: the name of the run and which stages have a table.
//!
//! What stands inside a table is the stage's own business, checked by its `--dry-run`. A table nobody owns, on the
//! other hand, no stage would notice: that is checked here.

use crate::exit::Exit;
use crate::stages::{STAGES, StageName};
use std::path::{Path, PathBuf};
use toml::{Table, Value};

/// Keys of a config file outside the tables.
const GENERAL_KEYS: [&str; 3] = ["name", "seed", "threads"];
/// The table that all stages share.
const STORES_TABLE: &str = "stores";

/// A config file and its overrides, names checked.
#[derive(Debug)]
pub(crate) struct RunConfig {
    /// The file.
    pub(crate) path: PathBuf,
    /// Name of the run; the work directory is `work/<name>` unless told otherwise.
    pub(crate) name: String,
    /// `--set` arguments, in order.
    pub(crate) sets: Vec<String>,
    /// The stages that have a table, in the order in which they run.
    pub(crate) stages: Vec<StageName>,
}

impl RunConfig {
    /// Reads a config file.
    ///
    /// # Errors
    /// Exit code 2 for a file that cannot be read, is not TOML, or has a key or table that nobody owns.
    pub(crate) fn read(path: &Path, sets: &[String]) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Exit::wrong_request(format!("--config: cannot read {shown}: {error}")))?;
        Self::parse(path, &text, sets)
            .map_err(|sentence| Exit::wrong_request(format!("--config {shown}: {sentence}")))
    }

    /// The `--set` arguments that concern a stage: those of its table and those outside tables. A stage refuses one for
    /// a table that the file lacks, which an override may create for another stage.
    pub(crate) fn sets_of(&self, stage: StageName) -> impl Iterator<Item = &String> {
        self.sets.iter().filter(move |set| {
            let head = set.split(['.', '=']).next().unwrap_or_default().trim();
            StageName::find(head).is_none_or(|owner| owner == stage)
        })
    }

    pub(crate) fn parse(path: &Path, text: &str, sets: &[String]) -> Result<Self, String> {
        let table: Table = text.parse().map_err(|error: toml::de::Error| error.to_string())?;
        for (key, value) in &table {
            check_name(key, matches!(value, Value::Table(_)))?;
        }
        let mut name = table.get("name").cloned();
        let mut with_table: Vec<StageName> =
            STAGES.into_iter().filter(|s| table.contains_key(s.as_str())).collect();
        for set in sets {
            let (key, value) =
                set.split_once('=').ok_or_else(|| format!("--set: expected table.key=value, got `{set}`"))?;
            let (head, is_table) = match key.trim().split_once('.') {
                Some((head, _)) => (head, true),
                None => (key.trim(), false),
            };
            check_name(head, is_table).map_err(|sentence| format!("--set {set}: {sentence}"))?;
            if head == "name" {
                name = Some(Value::String(value.trim().trim_matches('"').to_owned()));
            }
            with_table.extend(StageName::find(head).filter(|stage| !with_table.contains(stage)));
        }
        with_table.sort_by_key(|stage| stage.position());
        let name = name.ok_or("`name` is missing: a word that names the run and its work directory")?;
        let name = name.as_str().ok_or_else(|| format!("name: expected a string, got `{name}`"))?;
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\']) {
            return Err(format!("name: `{name}` cannot name a directory"));
        }
        Ok(Self { path: path.to_path_buf(), name: name.to_owned(), sets: sets.to_vec(), stages: with_table })
    }
}

/// Refuses a key or table that nobody owns, with the nearest name that somebody does.
fn check_name(name: &str, is_table: bool) -> Result<(), String> {
    let tables: Vec<&str> = STAGES.map(StageName::as_str).into_iter().chain([STORES_TABLE]).collect();
    let (kind, known): (_, &[&str]) = if is_table { ("table", &tables) } else { ("key", &GENERAL_KEYS) };
    if known.contains(&name) {
        return Ok(());
    }
    let all = known.join(", ");
    Err(match nearest(name, known) {
        Some(nearest) => format!("unknown {kind} `{name}`; did you mean `{nearest}`?"),
        None if is_table => format!("unknown {kind} `{name}`; the tables are {all}"),
        None => format!("unknown {kind} `{name}`; outside tables there are {all}"),
    })
}

/// The known name that is a slip of the finger away from `name`.
pub(crate) fn nearest<'a>(name: &str, known: &[&'a str]) -> Option<&'a str> {
    let close_enough = 2.max(name.chars().count() / 3);
    known
        .iter()
        .map(|candidate| (edit_distance(name, candidate), *candidate))
        .filter(|(distance, _)| *distance <= close_enough)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance in characters, one row of the table at a time.
fn edit_distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (line, left_char) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = line + 1;
        for (column, right_char) in right.iter().enumerate() {
            let substituted = diagonal + usize::from(left_char != *right_char);
            diagonal = row[column + 1];
            row[column + 1] = substituted.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, sets: &[&str]) -> Result<RunConfig, String> {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        RunConfig::parse(Path::new("demo.toml"), text, &sets)
    }

    #[test]
    fn a_stage_is_told_what_concerns_it() {
        let sets = ["seed=8", "packer.seq_len=9", "report.stages=[]", "stores.offline=true"];
        let config = check("name = \"a\"\n[packer]\n[trainer]", &sets).unwrap();
        let of = |stage| config.sets_of(StageName::find(stage).unwrap()).collect::<Vec<_>>();
        assert_eq!(of("packer"), ["seed=8", "packer.seq_len=9", "stores.offline=true"]);
        assert_eq!(of("report"), ["seed=8", "report.stages=[]", "stores.offline=true"]);
        assert_eq!(of("trainer"), ["seed=8", "stores.offline=true"]);
    }

    #[test]
    fn distances_by_hand() {
        for (left, right, distance) in
            [("", "", 0), ("", "abc", 3), ("mixer", "mixer", 0), ("pakcer", "packer", 2)]
        {
            assert_eq!(edit_distance(left, right), distance);
            assert_eq!(edit_distance(right, left), distance);
        }
        assert_eq!(edit_distance("kitten", "sitting"), 3);
    }

    #[test]
    fn stages_come_in_running_order_and_from_sets_too() {
        let config =
            check("name = \"demo\"\n[packer]\n[data-fetch]", &["mixer.select=all", "seed=3"]).unwrap();
        assert_eq!(config.name, "demo");
        assert_eq!(
            config.stages.iter().map(|s| s.as_str()).collect::<Vec<_>>(),
            ["data-fetch", "mixer", "packer"]
        );
        assert_eq!(check("name = \"a\"", &["name=b"]).unwrap().name, "b");
    }

    #[test]
    fn names_nobody_owns_are_refused_with_the_nearest() {
        for (text, set, expected) in [
            ("name = \"a\"\n[pakcer]", "seed=1", "unknown table `pakcer`; did you mean `packer`?"),
            ("name = \"a\"\nsed = 7", "seed=1", "unknown key `sed`; did you mean `seed`?"),
            (
                "name = \"a\"",
                "trianer.x=1",
                "--set trianer.x=1: unknown table `trianer`; did you mean `trainer`?",
            ),
            ("name = \"a\"", "seed", "--set: expected table.key=value, got `seed`"),
            ("seed = 7", "seed=1", "`name` is missing: a word that names the run and its work directory"),
            ("name = \"../x\"", "seed=1", "name: `../x` cannot name a directory"),
            ("name = 3", "seed=1", "name: expected a string, got `3`"),
        ] {
            assert_eq!(check(text, &[set]).unwrap_err(), expected);
        }
        let error = check("name = \"a\"\n[zzzzzzzzz]", &[]).unwrap_err();
        assert!(error.contains("the tables are micro-world, data-fetch"), "{error}");
    }

    #[test]
    fn a_table_is_no_key_and_a_key_no_table() {
        assert!(check("name = \"a\"\n[seed]", &[]).is_err());
        assert!(check("name = \"a\"\npacker = 3", &[]).is_err());
    }
}
