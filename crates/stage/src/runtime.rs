//! The one `main` of all stages.

use crate::cli::{self, Action, Flags};
use crate::error::{Interrupted, StageError};
use crate::fingerprint;
use crate::logging::{self, LogFormat};
use crate::process_env;
use crate::publisher::Publisher;
use crate::remote_inputs::{self, Mirrors, Missing};
use crate::replaced;
use crate::shard_range::ShardRange;
use crate::stores::StoresConfig;
use crate::voice::Voice;
use crate::{ConfigError, EarlierOutput, RunContext, Stage, StageConfig as _};
use anyhow::Context as _;
use oqvl_shard_io::{
    Claim, FilePattern, Manifest, StoreSettings, TEMPORARY_PREFIX, read_json, write_json_atomic,
};
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
/// Files that stay when output is removed.
const RUNTIME_FILES: [&str; 3] = [LOCK_FILE, STAMP_LOCK_FILE, FINGERPRINT_FILE];

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
    stores: StoresConfig,
    store_settings: StoreSettings,
    voice: Voice,
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
    let mut voice = Voice { stage: S::NAME, format: LogFormat::Text };
    let flags = cli::parse(S::NAME, S::VERSION, S::SHARDED).map_err(anyhow::Error::from);
    let result = flags.and_then(|flags| {
        voice.format = flags.log_format;
        run::<S>(flags, voice)
    });
    match result {
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
            voice.error(&format!("oqvl-{}: {message}", S::NAME));
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

fn run<S: Stage>(flags: Flags, voice: Voice) -> anyhow::Result<()> {
    logging::init(flags.log_format, flags.verbosity);
    let file = cli::load_config(&flags, S::NAME)?;
    let config: S::Config = file.stage(S::NAME)?;
    if flags.action == Action::ShowConfig {
        let table = toml::Table::from_iter([(S::NAME.to_owned(), toml::Value::try_from(&config)?)]);
        std::io::stdout().write_all(toml::to_string(&table)?.as_bytes())?;
        return Ok(());
    }
    let stores = file.stores()?;
    let job = Job::<S> {
        store_settings: stores.settings(&process_env::stores()),
        stores,
        voice,
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
        let mirrors = self.mirror_inputs(Missing::Report, &AtomicBool::new(false));
        let (status, reason) = match mirrors.and_then(|mirrors| self.fingerprint(&mirrors)) {
            Ok((fingerprint, _)) => match self.status(&fingerprint)? {
                status @ Status::UpToDate => (status.word(), String::new()),
                Status::Pending(reason) => {
                    self.check_discard(&fingerprint)?;
                    ("pending", reason.to_owned())
                }
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
        // First of all: inputs are digested on these threads.
        let threads = configure_threads(self.threads)?;
        let interrupted = watch_signals(self.voice)?;
        let mirrors = self.mirror_inputs(Missing::Fetch, &interrupted)?;
        let (fingerprint, inputs) = self.fingerprint(&mirrors)?;
        self.check_share()?;
        if self.flags.shards.is_none() && self.status(&fingerprint)? == Status::UpToDate {
            // An earlier run may have finished without having sent everything.
            if let Some(publisher) = self.publisher(&fingerprint, &interrupted)? {
                self.upload(publisher, "")?;
            }
            self.voice.info(&format!("{}: up to date, {}", S::NAME, self.out_dir.display()));
            return Ok(());
        }
        self.check_discard(&fingerprint)?;
        survive_file_size_limit()?;
        // Before anything here is removed: a place that is taken is a wrong request.
        let publisher = self.publisher(&fingerprint, &interrupted)?;
        let _lock = self.prepare_out_dir(&fingerprint)?;
        let work_dir = &self.flags.work_dir;
        let shards = self.flags.shards;
        let run = RunContext::new(S::NAME, work_dir, self.seed, threads, shards, &fingerprint, interrupted);
        let paths = mirrors.into_iter().map(|(address, mirror)| (address, mirror.path)).collect();
        let run = run.with_stores(paths, publisher.as_ref().map(Publisher::queue));

        let started = Instant::now();
        let report = match S::run(&self.config, &run) {
            Ok(report) => report,
            Err(error) => {
                if self.flags.shards.is_none() && self.restore_replaced()? {
                    let out_dir = self.out_dir.display();
                    self.voice.info(&format!("{}: {out_dir} is as it was before", S::NAME));
                }
                return Err(error.into());
            }
        };
        run.begin()?;
        let seconds = started.elapsed().as_secs_f64();

        let report = serde_json::to_value(&report).context("the report cannot be written as JSON")?;
        warn_of_nothing_kept(&report);
        warn_of_absent_shards(self.flags.shards, run.num_shards_asked());
        let suffix = self.flags.shards.map_or_else(String::new, |range| format!("{range}."));
        write_json_atomic(&self.out_dir.join(format!("report.{suffix}json")), &report)?;
        let outputs = self.outputs(&run)?;
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
        if let Some(publisher) = publisher {
            self.upload(publisher, &suffix)?;
        }
        let (line, fields) = last_line(S::NAME, seconds, &report, &self.out_dir);
        self.voice.info_with(&line, fields);
        Ok(())
    }

    fn mirror_inputs(&self, missing: Missing, interrupted: &AtomicBool) -> Result<Mirrors, StageError> {
        let (settings, max_bytes) = (&self.store_settings, self.stores.max_mirror_bytes());
        remote_inputs::mirror(&self.config, &self.flags.work_dir, settings, max_bytes, missing, interrupted)
    }

    /// The way to the store that output goes to, if it does. Its mark there is the stamp of the output directory.
    fn publisher(
        &self,
        fingerprint: &str,
        interrupted: &Arc<AtomicBool>,
    ) -> anyhow::Result<Option<Publisher>> {
        let Some(uri) = self.stores.destination(S::NAME) else { return Ok(None) };
        let bytes =
            |stamp: &Stamp| serde_json::to_vec_pretty(stamp).context("the stamp cannot be written as JSON");
        let stamp = bytes(&Stamp { stage: S::NAME.to_owned(), fingerprint: fingerprint.to_owned() })?;
        // Output that is added to keeps its place there too.
        let is_extended = self.config.earlier_output() == EarlierOutput::Extend;
        let earlier = self.stamp()?.filter(|_| is_extended).as_ref().map(bytes).transpose()?;
        let claim = Claim { name: FINGERPRINT_FILE, content: &stamp, replaces: earlier.as_deref() };
        let settings = self.store_settings.clone();
        Ok(Some(Publisher::start(settings, &uri, &self.out_dir, claim, interrupted)?))
    }

    /// Sends what the stage has not handed in and, when all of it has arrived, report and manifest. A share sends only
    /// these two: its neighbours' files are their own.
    fn upload(&self, publisher: Publisher, suffix: &str) -> Result<(), StageError> {
        let mut files = Vec::new();
        if self.flags.shards.is_none() {
            files.extend(fingerprint::output_files(&self.out_dir)?.into_values());
        }
        files.extend(["report", "manifest"].map(|name| self.out_dir.join(format!("{name}.{suffix}json"))));
        let counts = publisher.finish(files)?;
        tracing::info!("{}: sent {} files, {} were there already", S::NAME, counts.now, counts.before);
        Ok(())
    }

    fn fingerprint(&self, mirrors: &Mirrors) -> Result<(String, BTreeMap<String, String>), StageError> {
        self.check_inputs_are_foreign()?;
        let inputs = fingerprint::digest_inputs(&self.flags.work_dir, &self.config.inputs(), mirrors)?;
        let mut config = self.config_json.clone();
        if let Some(table) = config.as_object_mut() {
            table.retain(|key, _| !self.config.keys_without_effect().contains(&key.as_str()));
        }
        let seed = S::SEEDED.then_some(self.seed);
        let fingerprint = fingerprint::fingerprint(S::NAME, S::OUTPUT_VERSION, seed, &config, &inputs);
        Ok((fingerprint, inputs))
    }

    /// A stage that reads what it writes would remove its input to make room.
    fn check_inputs_are_foreign(&self) -> Result<(), ConfigError> {
        let absolute =
            |path: &Path| path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_default();
        let out_dir = absolute(&self.out_dir);
        for input in self.config.inputs() {
            let path = self.flags.work_dir.join(&input);
            if absolute(FilePattern::of_path(&path).as_ref().map_or(path.as_path(), FilePattern::base))
                .starts_with(&out_dir)
            {
                let message = format!(
                    "`{}` lies in this stage's own output, {}: move it elsewhere, or use another --work-dir",
                    input.display(),
                    self.out_dir.display()
                );
                return Err(ConfigError::new(S::NAME, message));
            }
        }
        Ok(())
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

    /// Asks the stage before output of another request goes. Shares never remove any, and what the config says is to go
    /// may go, as may the rest of a removal that was stopped.
    fn check_discard(&self, fingerprint: &str) -> Result<(), StageError> {
        let is_other = |stamp: &Stamp| !stamp.fingerprint.is_empty() && stamp.fingerprint != fingerprint;
        if self.flags.shards.is_none()
            && self.config.earlier_output() == EarlierOutput::Complete
            && self.stamp()?.as_ref().is_some_and(is_other)
        {
            self.config.check_discard(&self.out_dir).map_err(|error| error.inside(S::NAME))?;
        }
        Ok(())
    }

    /// A partial run names no outputs: its neighbours' files come and go meanwhile, and every one of many would read all
    /// of them. The whole run that ends the job does it once.
    fn outputs(&self, run: &RunContext) -> Result<BTreeMap<String, String>, StageError> {
        if self.flags.shards.is_some() {
            Ok(BTreeMap::new())
        } else {
            fingerprint::digest_outputs(&self.out_dir, &run.take_digests())
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
        if self.flags.shards.is_none() {
            self.restore_replaced()?;
        }
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
            Some(stamp) => {
                // Once more, now that nobody else adds to it.
                self.check_discard(fingerprint)?;
                if let Some(path) = self.foreign_file()? {
                    return Err(StageError::ForeignFile { path, stage: S::NAME });
                }
                if !fingerprint::output_files(out_dir)?.is_empty() {
                    let why = match policy {
                        EarlierOutput::Discard => "the config says so",
                        _ if stamp.fingerprint.is_empty() => {
                            "an earlier run was stopped while it removed this"
                        }
                        _ => "its config or its inputs have changed",
                    };
                    self.voice.info(&format!("{}: {why}; {} is made anew", S::NAME, out_dir.display()));
                }
                // A kill halfway leaves output of no run, whatever the config is by then.
                let empty_stamp = || self.write_stamp("");
                if S::CHECKS_FIRST && !stamp.fingerprint.is_empty() {
                    replaced::set_aside(out_dir, &RUNTIME_FILES, FINGERPRINT_FILE, empty_stamp)?;
                } else {
                    empty_stamp()?;
                    remove_content(out_dir)?;
                }
            }
            None if has_only_hidden_files(out_dir)? => {}
            None => return Err(StageError::ForeignDirectory { path: out_dir.clone(), stage: S::NAME }),
        }
        self.write_stamp(fingerprint)?;
        Ok(lock)
    }

    fn write_stamp(&self, fingerprint: &str) -> Result<(), StageError> {
        let stamp = Stamp { stage: S::NAME.to_owned(), fingerprint: fingerprint.to_owned() };
        Ok(write_json_atomic(&self.out_dir.join(FINGERPRINT_FILE), &stamp)?)
    }

    /// Puts the output of the request before this one back; returns whether there was some.
    fn restore_replaced(&self) -> Result<bool, StageError> {
        replaced::restore(&self.out_dir, FINGERPRINT_FILE, || {
            if self.stamp()?.is_some_and(|stamp| !stamp.fingerprint.is_empty()) {
                remove_content(&self.out_dir)?;
                self.write_stamp("")?;
            }
            Ok(())
        })
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
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if RUNTIME_FILES.contains(&&*name) || replaced::is_own(&name) {
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
fn watch_signals(voice: Voice) -> anyhow::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&interrupted);
    ctrlc::set_handler(move || {
        if flag.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(EXIT_INTERRUPTED));
        }
        voice.info("stopping at the next safe point; once more to stop at once");
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

/// A share beyond the last shard is a mistake that would otherwise look like success.
fn warn_of_absent_shards(shards: Option<ShardRange>, num_shards: usize) {
    let Some(ShardRange::Span { first, last }) = shards else { return };
    if last > num_shards {
        let what =
            if first >= num_shards { "names no shard at all" } else { "reaches beyond the last shard" };
        tracing::warn!("--shards {first}..{last} {what}: there are {num_shards}");
    }
}

/// Largest resident size of this process so far, or 0 where the system does not say.
fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let kibibytes: u64 = line.trim().trim_end_matches("kB").trim().parse().unwrap_or(0);
    kibibytes * 1024
}

/// The last line of a run that went well, and what of it a machine wants to know.
fn last_line(
    stage: &str,
    seconds: f64,
    report: &serde_json::Value,
    out_dir: &Path,
) -> (String, serde_json::Map<String, serde_json::Value>) {
    let count = |name: &str| report.get(name).and_then(serde_json::Value::as_u64);
    let shown = out_dir.display();
    let mut fields = serde_json::Map::new();
    fields.insert("seconds".to_owned(), seconds.into());
    fields.insert("out_dir".to_owned(), shown.to_string().into());
    let counts = match (count("seen"), count("kept")) {
        (Some(seen), Some(kept)) => {
            let rejected = seen.saturating_sub(kept);
            for (name, value) in [("seen", seen), ("kept", kept), ("rejected", rejected)] {
                fields.insert(name.to_owned(), value.into());
            }
            format!(": seen {seen}, kept {kept}, rejected {rejected}")
        }
        _ => String::new(),
    };
    (format!("{stage}: done in {seconds:.1} s{counts}, {shown}"), fields)
}
