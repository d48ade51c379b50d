//! The one `main` of all stages.

use crate::cli::{self, Action, Flags};
use crate::error::{Interrupted, StageError};
use crate::fingerprint;
use crate::logging::{self, LogFormat};
use crate::process_env;
use crate::{ConfigError, EarlierOutput, RunContext, Stage, StageConfig as _};
use anyhow::Context as _;
use oqvl_shard_io::{Manifest, TEMPORARY_PREFIX, read_json, write_json_atomic};
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

/// Marks an output directory as ours and says what it is being made from.
pub(crate) const FINGERPRINT_FILE: &str = "fingerprint.json";
const LOCK_FILE: &str = ".lock";
const STAMP_LOCK_FILE: &str = ".stamp.lock";

const EXIT_FAILED: u8 = 1;
const EXIT_WRONG_REQUEST: u8 = 2;
const EXIT_INTERRUPTED: u8 = 130;

/// Content of [`FINGERPRINT_FILE`].
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Stamp {
    stage: String,
    fingerprint: String,
}

/// A request that has passed every check that needs no data.
struct Job<S: Stage> {
    config: S::Config,
    config_json: serde_json::Value,
    flags: Flags,
    seed: u64,
    threads: usize,
    out_dir: PathBuf,
}

/// How the output directory stands to the request.
#[derive(Debug, PartialEq, Eq)]
enum Status {
    UpToDate,
    /// To be run; the words say why.
    Pending(&'static str),
}

impl Status {
    fn word(&self) -> &'static str {
        match self {
            Self::UpToDate => "up-to-date",
            Self::Pending(_) => "pending",
        }
    }
}

/// Runs a stage as a program: flags, config, skip, run, report, manifest, exit code
/// (0 done or up to date, 1 failed, 2 wrong request, 130 interrupted).
pub fn main<S: Stage>() -> ExitCode {
    process_env::ensure();
    match run::<S>() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut message = String::new();
            for cause in error.chain() {
                let text = cause.to_string();
                if !message.ends_with(&text) {
                    message += if message.is_empty() { "" } else { ": " };
                    message += &text;
                }
            }
            tell(&format!("oqvl-{}: {message}", S::NAME));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Looks for what it knows among the causes. An error type that wraps [`Interrupted`] or [`ConfigError`] must show it
/// as its source, which `#[error(transparent)]` does not.
fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<Interrupted>()) {
        return EXIT_INTERRUPTED;
    }
    let wrong_request = error.chain().any(|cause| {
        cause.is::<ConfigError>()
            || matches!(
                cause.downcast_ref(),
                Some(
                    StageError::Config(_)
                        | StageError::ForeignDirectory { .. }
                        | StageError::ForeignFile { .. }
                )
            )
    });
    if wrong_request { EXIT_WRONG_REQUEST } else { EXIT_FAILED }
}

/// The last word goes to stderr as it is: it must be readable whatever the log format.
fn tell(line: &str) {
    // If stderr is gone there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "{line}");
}

fn run<S: Stage>() -> anyhow::Result<()> {
    let flags = cli::parse(S::NAME, S::VERSION, S::SHARDED)?;
    logging::init(flags.log_format, flags.verbosity);
    let file = cli::load_config(&flags, S::NAME)?;
    let config: S::Config = file.stage(S::NAME)?;
    if flags.action == Action::ShowConfig {
        let table = toml::Table::from_iter([(S::NAME.to_owned(), toml::Value::try_from(&config)?)]);
        std::io::stdout().write_all(toml::to_string(&table)?.as_bytes())?;
        return Ok(());
    }
    let job = Job::<S> {
        config_json: serde_json::to_value(&config).context("the config cannot be written as JSON")?,
        seed: file.seed()?,
        threads: file.threads()?,
        out_dir: flags.work_dir.join(S::NAME),
        config,
        flags,
    };
    match job.flags.action {
        Action::DryRun => job.dry_run(),
        _ => job.execute(),
    }
}

impl<S: Stage> Job<S> {
    fn dry_run(&self) -> anyhow::Result<()> {
        let (status, reason) = match self.fingerprint() {
            Ok((fingerprint, _)) => match self.status(&fingerprint)? {
                status @ Status::UpToDate => (status.word(), String::new()),
                Status::Pending(reason) => ("pending", reason.to_owned()),
            },
            Err(error @ StageError::InputNotReady { .. }) => ("waiting", error.to_string()),
            Err(error) => return Err(error.into()),
        };
        let out_dir = self.out_dir.display().to_string();
        let line = match self.flags.log_format {
            LogFormat::Json => serde_json::json!({
                "stage": S::NAME, "status": status, "out_dir": out_dir, "reason": reason,
            })
            .to_string(),
            LogFormat::Text if reason.is_empty() => format!("{}: {status}, {out_dir}", S::NAME),
            LogFormat::Text => format!("{}: {status} ({reason}), would write {out_dir}", S::NAME),
        };
        writeln!(std::io::stdout(), "{line}")?;
        Ok(())
    }

    fn execute(&self) -> anyhow::Result<()> {
        let (fingerprint, inputs) = self.fingerprint()?;
        self.check_share()?;
        if self.flags.shards.is_none() && self.status(&fingerprint)? == Status::UpToDate {
            tell(&format!("{}: up to date, {}", S::NAME, self.out_dir.display()));
            return Ok(());
        }
        let interrupted = watch_signals()?;
        survive_file_size_limit()?;
        let _lock = self.prepare_out_dir(&fingerprint)?;
        let threads = configure_threads(self.threads)?;
        let work_dir = &self.flags.work_dir;
        let shards = self.flags.shards;
        let run = RunContext::new(S::NAME, work_dir, self.seed, threads, shards, &fingerprint, interrupted);

        let started = Instant::now();
        let report = S::run(&self.config, &run)?;
        let seconds = started.elapsed().as_secs_f64();

        let report = serde_json::to_value(&report).context("the report cannot be written as JSON")?;
        warn_of_nothing_kept(&report);
        let suffix = self.flags.shards.map_or_else(String::new, |range| format!("{range}."));
        write_json_atomic(&self.out_dir.join(format!("report.{suffix}json")), &report)?;
        let outputs = self.outputs()?;
        let manifest = Manifest {
            stage: S::NAME.to_owned(),
            version: S::VERSION.to_owned(),
            commit: env!("OQVL_COMMIT").to_owned(),
            fingerprint,
            seed: self.seed,
            config: self.config_json.clone(),
            inputs,
            output_bytes: fingerprint::output_bytes(&self.out_dir, outputs.keys())?,
            outputs,
            seconds,
            peak_rss_bytes: peak_rss_bytes(),
            report: report.clone(),
        };
        manifest.write(&self.out_dir.join(format!("manifest.{suffix}json")))?;
        tell(&last_line(S::NAME, seconds, &report, &self.out_dir));
        Ok(())
    }

    fn fingerprint(&self) -> Result<(String, BTreeMap<String, String>), StageError> {
        let inputs = fingerprint::digest_inputs(&self.flags.work_dir, &self.config.inputs())?;
        let mut config = self.config_json.clone();
        if let Some(table) = config.as_object_mut() {
            table.retain(|key, _| !self.config.keys_without_effect().contains(&key.as_str()));
        }
        let fingerprint = fingerprint::fingerprint(S::NAME, S::VERSION, self.seed, &config, &inputs);
        Ok((fingerprint, inputs))
    }

    /// What concerns the whole output cannot be done to a part of it.
    fn check_share(&self) -> Result<(), ConfigError> {
        if self.flags.shards.is_some() && self.config.earlier_output() != EarlierOutput::Complete {
            let message =
                "a config that discards or extends the output of earlier runs is for whole runs only";
            return Err(ConfigError::flag("--shards", message));
        }
        Ok(())
    }

    /// A partial run names no outputs: its neighbours' files come and go meanwhile, and every one of many would read all
    /// of them. The whole run that ends the job does it once.
    fn outputs(&self) -> Result<BTreeMap<String, String>, StageError> {
        if self.flags.shards.is_some() {
            Ok(BTreeMap::new())
        } else {
            fingerprint::digest_outputs(&self.out_dir)
        }
    }

    fn status(&self, fingerprint: &str) -> Result<Status, StageError> {
        let stamp = self.stamp()?;
        let path = self.out_dir.join(Manifest::FILE_NAME);
        if !path.exists() {
            return match stamp {
                Some(_) => Ok(Status::Pending("begun, not finished")),
                None if !self.out_dir.exists() || has_only_hidden_files(&self.out_dir)? => {
                    Ok(Status::Pending("never run"))
                }
                None => Err(StageError::ForeignDirectory { path: self.out_dir.clone(), stage: S::NAME }),
            };
        }
        let Ok(manifest) = Manifest::read(&path) else {
            return Ok(Status::Pending("its manifest cannot be read"));
        };
        if manifest.fingerprint != fingerprint {
            return Ok(Status::Pending("its config or its inputs have changed"));
        }
        if fingerprint::changed_outputs(&self.out_dir, &manifest, Path::new("")).next().is_some() {
            return Ok(Status::Pending("some of its output is gone or has another size"));
        }
        if self.config.earlier_output() == EarlierOutput::Discard {
            return Ok(Status::Pending("its output is to be made anew"));
        }
        if self.config.revisits_finished_output() {
            return Ok(Status::Pending("its output is to be gone through again"));
        }
        Ok(Status::UpToDate)
    }

    /// What the output directory says it is being made from, if this stage made it.
    fn stamp(&self) -> Result<Option<Stamp>, StageError> {
        let path = self.out_dir.join(FINGERPRINT_FILE);
        if !path.exists() {
            return Ok(None);
        }
        let stamp: Stamp = read_json(&path)
            .map_err(|source| StageError::UnreadableStamp { path: self.out_dir.clone(), source })?;
        Ok(Some(stamp).filter(|stamp| stamp.stage == S::NAME))
    }

    /// Takes back the manifest of a finished run whose output was damaged since. What is damaged goes first: stages
    /// skip shards that are there, and only the manifest knows how large they were.
    fn reopen_finished_output(&self) -> Result<(), StageError> {
        let path = self.out_dir.join(Manifest::FILE_NAME);
        if let Some(path) = self.foreign_file()? {
            return Err(StageError::ForeignFile { path, stage: S::NAME });
        }
        if let Ok(manifest) = Manifest::read(&path) {
            for file in fingerprint::changed_outputs(&self.out_dir, &manifest, Path::new("")) {
                remove_file_if_there(&self.out_dir.join(file))?;
            }
        }
        remove_file_if_there(&path)
    }

    /// A file among finished output that this stage did not write. One that came while a run was unfinished counts as
    /// the stage's own.
    fn foreign_file(&self) -> Result<Option<PathBuf>, StageError> {
        // Without a manifest nobody knows what a killed run wrote.
        let Ok(manifest) = Manifest::read(&self.out_dir.join(Manifest::FILE_NAME)) else { return Ok(None) };
        let files = fingerprint::output_files(&self.out_dir)?;
        Ok(files.into_iter().find(|(name, _)| !manifest.outputs.contains_key(name)).map(|(_, path)| path))
    }

    /// Creates or cleans the output directory. What an interrupted run of the same fingerprint left stays; what
    /// another one left goes; what somebody else left is not touched.
    fn prepare_out_dir(&self, fingerprint: &str) -> Result<File, StageError> {
        let out_dir = &self.out_dir;
        std::fs::create_dir_all(out_dir).map_err(StageError::io(out_dir))?;
        let lock = self.lock()?;
        // Partial runs share the lock above, and may start at the same moment: one at a time looks and stamps.
        let stamp_lock_path = out_dir.join(STAMP_LOCK_FILE);
        let stamp_lock = File::create(&stamp_lock_path).map_err(StageError::io(&stamp_lock_path))?;
        stamp_lock.lock().map_err(StageError::io(&stamp_lock_path))?;
        let stamp_path = out_dir.join(FINGERPRINT_FILE);
        let policy = self.config.earlier_output();
        match self.stamp()? {
            Some(stamp) if stamp.fingerprint == fingerprint && policy != EarlierOutput::Discard => {
                // Temporary files of a killed run; a partial run must leave those of its neighbours alone.
                if self.flags.shards.is_none() {
                    remove_temporary_files(out_dir)?;
                    self.reopen_finished_output()?;
                } else if self.config.revisits_finished_output() {
                    // What this share changes is no longer what the manifest says.
                    remove_file_if_there(&out_dir.join(Manifest::FILE_NAME))?;
                }
                return Ok(lock);
            }
            Some(_) if self.flags.shards.is_some() => {
                return Err(StageError::StaleOutput { path: out_dir.clone() });
            }
            Some(_) if policy == EarlierOutput::Extend => {
                remove_temporary_files(out_dir)?;
                self.reopen_finished_output()?;
            }
            Some(_) => {
                if let Some(path) = self.foreign_file()? {
                    return Err(StageError::ForeignFile { path, stage: S::NAME });
                }
                if policy == EarlierOutput::Complete && out_dir.join(Manifest::FILE_NAME).exists() {
                    let shown = out_dir.display();
                    tell(&format!(
                        "{}: its config or its inputs have changed; {shown} is made anew",
                        S::NAME
                    ));
                }
                // A kill halfway leaves output of no run, whatever the config is by then.
                write_json_atomic(
                    &stamp_path,
                    &Stamp { stage: S::NAME.to_owned(), fingerprint: String::new() },
                )?;
                remove_content(out_dir)?;
            }
            None if has_only_hidden_files(out_dir)? => {}
            None => return Err(StageError::ForeignDirectory { path: out_dir.clone(), stage: S::NAME }),
        }
        let stamp = Stamp { stage: S::NAME.to_owned(), fingerprint: fingerprint.to_owned() };
        write_json_atomic(&stamp_path, &stamp)?;
        Ok(lock)
    }

    /// Whole runs exclude each other and partial runs; partial runs share.
    fn lock(&self) -> Result<File, StageError> {
        let path = self.out_dir.join(LOCK_FILE);
        let file = File::create(&path).map_err(StageError::io(&path))?;
        let locked = if self.flags.shards.is_some() { file.try_lock_shared() } else { file.try_lock() };
        match locked {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(StageError::Locked { path: self.out_dir.clone() }),
            Err(TryLockError::Error(source)) => Err(StageError::Io { path, source }),
        }
    }
}

/// Whether nothing but locks and what a run that was killed at its start left of its stamp is there.
fn has_only_hidden_files(directory: &Path) -> Result<bool, StageError> {
    let mut entries = std::fs::read_dir(directory).map_err(StageError::io(directory))?;
    Ok(entries.all(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with('.'))))
}

/// Removes everything but the locks and the stamp; the manifest goes first, so that a kill in between leaves no finished look.
fn remove_content(directory: &Path) -> Result<(), StageError> {
    remove_file_if_there(&directory.join(Manifest::FILE_NAME))?;
    for entry in std::fs::read_dir(directory).map_err(StageError::io(directory))? {
        let path = entry.map_err(StageError::io(directory))?.path();
        if [LOCK_FILE, STAMP_LOCK_FILE, FINGERPRINT_FILE].iter().any(|kept| path.ends_with(kept)) {
            continue;
        }
        let removed = if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.map_err(StageError::io(&path))?;
    }
    Ok(())
}

fn remove_file_if_there(path: &Path) -> Result<(), StageError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(StageError::io(path)(error)),
        _ => Ok(()),
    }
}

fn remove_temporary_files(directory: &Path) -> Result<(), StageError> {
    for file in fingerprint::files_below(directory)? {
        if file.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TEMPORARY_PREFIX)) {
            remove_file_if_there(&file)?;
        }
    }
    Ok(())
}

/// One pool for everything. Matrix products stay on the thread that asks for them: parallelism is over samples and
/// micro-batches, whose number does not depend on the machine, so that sums are always taken in the same order.
fn configure_threads(threads: usize) -> anyhow::Result<usize> {
    gemm::set_threading_threshold(usize::MAX);
    let threads =
        if threads == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { threads };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .context("cannot start the thread pool")?;
    Ok(threads)
}

/// A file that reaches the limit on file sizes (`ulimit -f`) kills the process by a signal; caught, it makes the write
/// fail, which has a path and a sentence.
#[cfg(unix)]
fn survive_file_size_limit() -> anyhow::Result<()> {
    signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default())
        .map(drop)
        .context("cannot listen for SIGXFSZ")
}

/// Elsewhere there is no such limit.
#[cfg(not(unix))]
fn survive_file_size_limit() -> anyhow::Result<()> {
    Ok(())
}

/// First Ctrl-C or SIGTERM: the stage stops at the next safe point. Second: at once.
fn watch_signals() -> anyhow::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(EXIT_INTERRUPTED));
        }
        tell("stopping at the next safe point; once more to stop at once");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(interrupted)
}

/// A stage that kept nothing has done its work, and yet something is wrong with what it was given.
fn warn_of_nothing_kept(report: &serde_json::Value) {
    let count = |value: Option<&serde_json::Value>| value.and_then(serde_json::Value::as_u64);
    match (count(report.get("seen")), count(report.get("kept"))) {
        (Some(0), Some(_)) => tracing::warn!("there was nothing to do: the input is empty"),
        (Some(seen), Some(0)) => {
            let reasons = report.get("rejected").and_then(serde_json::Value::as_object);
            let most = reasons.into_iter().flatten().max_by_key(|(_, number)| number.as_u64());
            let most = most.map(|(reason, number)| format!("; most often: {reason}, {number} times"));
            tracing::warn!("nothing was kept of {seen}{}", most.unwrap_or_default());
        }
        _ => {}
    }
}

/// Largest resident size of this process so far, or 0 where the system does not say.
fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse().unwrap_or(0);
    kibibytes * 1024
}

fn last_line(stage: &str, seconds: f64, report: &serde_json::Value, out_dir: &Path) -> String {
    let count = |name: &str| report.get(name).and_then(serde_json::Value::as_u64);
    let counts = match (count("seen"), count("kept")) {
        (Some(seen), Some(kept)) => {
            format!(": seen {seen}, kept {kept}, rejected {}", seen.saturating_sub(kept))
        }
        _ => String::new(),
    };
    format!("{stage}: done in {seconds:.1} s{counts}, {}", out_dir.display())
}
