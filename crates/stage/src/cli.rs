//! The flags every stage binary has, and no others: new knobs go into the config.

use crate::config::ConfigFile;
use crate::config_error::ConfigError;
use crate::logging::LogFormat;
use crate::shard_range::{ARRAY_TASK_VARIABLE, ShardRange};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use std::path::PathBuf;

/// What was typed.
#[derive(Debug)]
pub(crate) struct Flags {
    pub(crate) config: Option<PathBuf>,
    pub(crate) sets: Vec<String>,
    pub(crate) action: Action,
    pub(crate) shards: Option<ShardRange>,
    pub(crate) work_dir: PathBuf,
    pub(crate) verbosity: u8,
    pub(crate) log_format: LogFormat,
}

/// What to do with the config.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Run the stage.
    Run,
    /// Print the resolved config and stop.
    ShowConfig,
    /// Say what would be done and stop.
    DryRun,
}

fn command(name: &'static str) -> Command {
    Command::new(name)
        .bin_name(format!("oqvl-{name}"))
        .about(format!(
            "The {name} stage of Open-Qwen2VL; its settings are the table [{name}] of the config file"
        ))
        .arg(
            Arg::new("config")
                .long("config")
                .value_name("FILE")
                .value_parser(value_parser!(PathBuf))
                .help("TOML file with a table per stage"),
        )
        .arg(
            Arg::new("set")
                .long("set")
                .value_name("TABLE.KEY=VALUE")
                .action(ArgAction::Append)
                .help("Overrides one key; may be given many times"),
        )
        .arg(flag("show-config", "Prints the resolved table and stops"))
        .arg(flag("dry-run", "Checks the config, says what would be done, and stops"))
        .arg(Arg::new("shards").long("shards").value_name("FIRST..LAST").help(
            "Only these shards (LAST excluded); without it SLURM_ARRAY_TASK_ID and _COUNT are honoured",
        ))
        .arg(
            Arg::new("work-dir")
                .long("work-dir")
                .value_name("DIR")
                .default_value(".")
                .value_parser(value_parser!(PathBuf))
                .help("Where the stages' outputs lie; relative paths of the config start here"),
        )
        .arg(Arg::new("verbose").short('v').long("verbose").action(ArgAction::Count).help("More log lines"))
        .arg(
            Arg::new("log-format")
                .long("log-format")
                .value_parser(value_parser!(LogFormat))
                .default_value("text")
                .help("text for people, json for machines"),
        )
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

/// Parses the command line; `--help` and wrong flags end the process as clap does (0 and 2).
///
/// # Errors
/// If a value is wrong, or a share is asked of a stage that is not `sharded`. An array job that happens to run such a
/// stage is no request for a share.
pub(crate) fn parse(name: &'static str, version: &'static str, sharded: bool) -> Result<Flags, ConfigError> {
    let matches = command(name).version(version).get_matches();
    let flags = flags(&matches, if sharded { slurm_range()? } else { None })?;
    if flags.shards.is_some() && !sharded {
        return Err(ConfigError::new("--shards", format!("{name} runs as one process and cannot be shared")));
    }
    Ok(flags)
}

fn flags(matches: &ArgMatches, array_share: Option<ShardRange>) -> Result<Flags, ConfigError> {
    let shards = match matches.get_one::<String>("shards") {
        Some(text) => Some(ShardRange::parse(text)?),
        None => array_share,
    };
    let action = match (matches.get_flag("show-config"), matches.get_flag("dry-run")) {
        (true, _) => Action::ShowConfig,
        (false, true) => Action::DryRun,
        (false, false) => Action::Run,
    };
    Ok(Flags {
        config: matches.get_one("config").cloned(),
        sets: matches.get_many::<String>("set").into_iter().flatten().cloned().collect(),
        action,
        shards,
        work_dir: matches.get_one::<PathBuf>("work-dir").expect("has a default").clone(),
        verbosity: matches.get_count("verbose"),
        log_format: *matches.get_one("log-format").expect("has a default"),
    })
}

/// The share of a Slurm array task, if this process is one.
fn slurm_range() -> Result<Option<ShardRange>, ConfigError> {
    let variable = |name| std::env::var(name).ok();
    let (Some(id), Some(count)) = (variable(ARRAY_TASK_VARIABLE), variable("SLURM_ARRAY_TASK_COUNT")) else {
        return Ok(None);
    };
    let min = variable("SLURM_ARRAY_TASK_MIN").unwrap_or_else(|| "0".to_owned());
    ShardRange::from_slurm(&id, &min, &count).map(Some)
}

/// The config file with every `--set` applied, as `stage` reads it.
pub(crate) fn load_config(flags: &Flags, stage: &str) -> Result<ConfigFile, ConfigError> {
    let mut file = match &flags.config {
        Some(path) => ConfigFile::read(path)?,
        None => ConfigFile::default(),
    };
    for assignment in &flags.sets {
        if flags.config.is_some() {
            file.check_owner(assignment, stage)?;
        }
        file.set(assignment)?;
    }
    if flags.config.is_none() && !file.has(stage) {
        let message =
            format!("is missing: it names a TOML file with a table [{stage}], which sets the stage up");
        return Err(ConfigError::flag("--config", message));
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_well_formed() {
        command("demo").debug_assert();
    }

    #[test]
    fn without_a_config_one_is_asked_for() {
        let load = |args: &[&str]| {
            let flags = flags(&command("demo").get_matches_from(args), None).unwrap();
            load_config(&flags, "demo").map_err(|error| error.to_string())
        };
        let asked = "--config: is missing: it names a TOML file with a table [demo], which sets the stage up";
        for args in [&["demo"][..], &["demo", "--set", "seed=7"]] {
            assert_eq!(load(args).unwrap_err(), asked);
        }
        // What is set on the command line may be all of it.
        assert!(load(&["demo", "--set", "demo.x=7"]).is_ok());
    }

    #[test]
    fn a_shard_range_on_the_command_line_beats_the_job_array() {
        let array = ShardRange::Stride { task: 0, count: 2 };
        let parse =
            |args: &[&str]| flags(&command("demo").get_matches_from(args), Some(array)).unwrap().shards;
        assert_eq!(parse(&["demo", "--shards", "1..3"]), Some(ShardRange::Span { first: 1, last: 3 }));
        assert_eq!(parse(&["demo"]), Some(array));
    }
}
