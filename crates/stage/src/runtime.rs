//! The one `main` of all stages.

use crate::cli::{self, Action, Flags};
use crate::config::ConfigFile;
use crate::config_error::ConfigError;
use crate::error::{Interrupted, StageError};
use crate::exit;
use crate::fingerprint;
use crate::hub_model;
use crate::logging::{self, LogFormat};
use crate::out_dir::{FINGERPRINT_FILE, OutDir, Request, Stamp, Status};
use crate::process_env;
use crate::publisher::{Publisher, Upload};
use crate::remote_inputs::{self, Mirrors, Missing};
use crate::shard_range::ShardRange;
use crate::stores::StoresConfig;
use crate::voice::Voice;
use crate::{EarlierOutput, RunContext, Stage, StageConfig as _};
use anyhow::Context as _;
use oqvl_shard_io::{Claim, FilePattern, Manifest, StoreSettings, StoreUri, write_json_atomic};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::Instant;

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
    out_dir: OutDir,
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
            voice.error(&format!("oqvl-{}: {}", S::NAME, exit::with_causes(error.as_ref())));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Looks for what it knows among the causes. An error type that wraps [`Interrupted`] or [`ConfigError`] must show it
/// as its source, which `#[error(transparent)]` does not.
fn exit_code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<Interrupted>()) {
        return exit::INTERRUPTED;
    }
    let wrong_request = error.chain().any(|cause| {
        cause.is::<ConfigError>() || cause.downcast_ref().is_some_and(StageError::is_wrong_request)
    });
    if wrong_request { exit::WRONG_REQUEST } else { exit::FAILED }
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
        out_dir: OutDir::new(&flags.work_dir, S::NAME),
        config,
        flags,
    };
    let outcome = job.check_share().map_err(anyhow::Error::from).and_then(|()| match job.flags.action {
        Action::DryRun => job.dry_run(),
        _ => job.execute(),
    });
    outcome.map_err(|error| located(error, &file))
}

/// What is wrong with the request with the place where it was said, if that is all the error says.
fn located(error: anyhow::Error, file: &ConfigFile) -> anyhow::Error {
    let message = error.to_string();
    let wrong = error.chain().find_map(|cause| match cause.downcast_ref::<StageError>() {
        Some(StageError::Config(wrong)) => Some(wrong),
        _ => cause.downcast_ref::<ConfigError>(),
    });
    match wrong.cloned() {
        Some(wrong) if wrong.to_string() == message => file.located(wrong).into(),
        _ => with_hub_form(error, file),
    }
}

/// An input that is not there and is written like the id of a model of the hub may have been meant as one, unless it is a
/// stage's output that is still to come.
fn with_hub_form(error: anyhow::Error, file: &ConfigFile) -> anyhow::Error {
    match error.downcast::<StageError>() {
        Ok(StageError::InputNotReady { path, reason }) => {
            let text = path.to_string_lossy();
            let owner = text.split('/').next().unwrap_or_default();
            let reason = match hub_model::hub_id(&text) {
                Some(uri) if !file.has_table(owner) => {
                    format!("{reason}; if it is a model of the Hugging Face hub, write {uri}")
                }
                _ => reason,
            };
            StageError::InputNotReady { path, reason }.into()
        }
        Ok(other) => other.into(),
        Err(error) => error,
    }
}

/// Names the keys that a stage finds wrong as they stand in the file. The stage itself knows them without its own name.
fn of_stage<S: Stage>(error: S::Error) -> anyhow::Error {
    let error = anyhow::Error::from(error);
    let message = error.to_string();
    match error.chain().find_map(|cause| cause.downcast_ref::<ConfigError>()).cloned() {
        Some(wrong) if wrong.to_string() == message && !wrong.is_inside(S::NAME) => {
            wrong.inside(S::NAME).into()
        }
        _ => error,
    }
}

/// The marks of earlier runs whose place in a store may be taken.
#[derive(Debug, Default)]
struct Marks {
    replaces: Option<Stamp>,
    /// Only if nothing else is there.
    replaces_alone: Option<Stamp>,
}

impl<S: Stage> Job<S> {
    fn dry_run(&self) -> anyhow::Result<()> {
        let mirrors = self.mirror_inputs(Missing::Report, &AtomicBool::new(false));
        let found = mirrors.and_then(|mirrors| Ok((self.fingerprint(&mirrors)?.0, mirrors)));
        let (status, reason) = match found {
            Ok((fingerprint, mirrors)) => match self.out_dir.status(&self.request(&fingerprint))? {
                Status::UpToDate(manifest) => {
                    S::check_report(&self.config, &manifest.report).map_err(of_stage::<S>)?;
                    ("up-to-date", String::new())
                }
                Status::Pending(reason) => {
                    self.out_dir.check_discard(&self.request(&fingerprint))?;
                    let threads = num_threads(self.threads);
                    S::check(
                        &self.config,
                        &self.context(threads, &fingerprint, mirrors, Arc::default(), None),
                    )
                    .map_err(of_stage::<S>)?;
                    ("pending", reason.to_owned())
                }
            },
            Err(error @ StageError::InputNotReady { .. }) => ("waiting", error.to_string()),
            Err(error) => return Err(error.into()),
        };
        let out_dir = self.out_dir.path.display().to_string();
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
        let request = self.request(&fingerprint);
        if request.is_whole()
            && let Status::UpToDate(manifest) = self.out_dir.status(&request)?
        {
            S::check_report(&self.config, &manifest.report).map_err(of_stage::<S>)?;
            self.restore_report(&manifest)?;
            // An earlier run may have finished without having sent everything.
            if let Some(publisher) = self.publisher(&fingerprint, &interrupted)? {
                self.upload(publisher, "")?;
            }
            self.voice.info(&format!("{}: up to date, {}", S::NAME, self.out_dir.path.display()));
            return Ok(());
        }
        self.out_dir.check_discard(&request)?;
        survive_file_size_limit()?;
        let _lock = self.out_dir.lock(request.is_whole())?;
        // Before anything here is removed, and by nobody but who has the lock: a place that is taken is a wrong request.
        let publisher = self.publisher(&fingerprint, &interrupted)?;
        let found = self.out_dir.standing_stamp()?;
        if let Err(error) = self.out_dir.prepare(&request, self.voice) {
            self.give_place_back(found, &fingerprint);
            return Err(error.into());
        }
        let queue = publisher.as_ref().map(Publisher::queue);
        let run = self.context(threads, &fingerprint, mirrors, interrupted, queue);

        let started = Instant::now();
        let report = match S::run(&self.config, &run) {
            Ok(report) => report,
            Err(error) => {
                self.restore_replaced(&fingerprint)?;
                return Err(of_stage::<S>(error));
            }
        };
        run.begin()?;
        let seconds = started.elapsed().as_secs_f64();

        let report = serde_json::to_value(&report).context("the report cannot be written as JSON")?;
        if let Some(warning) = nothing_done(&report, self.flags.shards, run.num_shards_asked()) {
            tracing::warn!("{warning}");
        }
        let suffix = self.flags.shards.map_or_else(String::new, |range| format!("{range}."));
        write_json_atomic(&self.out_dir.path.join(format!("report.{suffix}json")), &report)?;
        let outputs = self.outputs(&run)?;
        let manifest = Manifest {
            stage: S::NAME.to_owned(),
            version: S::VERSION.to_owned(),
            commit: env!("OQVL_COMMIT").to_owned(),
            fingerprint,
            seed: self.seed,
            config: self.config_json.clone(),
            inputs,
            output_bytes: fingerprint::output_bytes(&self.out_dir.path, outputs.keys())?,
            outputs,
            seconds,
            peak_rss_bytes: peak_rss_bytes(),
            report: report.clone(),
        };
        manifest.write(&self.out_dir.path.join(format!("manifest.{suffix}json")))?;
        if let Some(publisher) = publisher {
            self.upload(publisher, &suffix)?;
        }
        let (line, fields) = last_line(S::NAME, seconds, &report, &self.out_dir.path);
        self.voice.info_with(&line, fields);
        Ok(())
    }

    fn request<'a>(&'a self, fingerprint: &'a str) -> Request<'a, S> {
        Request { config: &self.config, fingerprint, shards: self.flags.shards }
    }

    /// What the stage gets to run with.
    fn context(
        &self,
        threads: usize,
        fingerprint: &str,
        mirrors: Mirrors,
        interrupted: Arc<AtomicBool>,
        queue: Option<SyncSender<Upload>>,
    ) -> RunContext {
        let (work_dir, shards) = (&self.flags.work_dir, self.flags.shards);
        let paths = mirrors.into_iter().map(|(address, mirror)| (address, mirror.path)).collect();
        RunContext::new(S::NAME, work_dir, self.seed, threads, shards, fingerprint, interrupted)
            .with_stores(paths, queue)
    }

    /// Writes the report of finished output again if somebody removed it: the manifest has it too.
    fn restore_report(&self, manifest: &Manifest) -> Result<(), StageError> {
        let path = self.out_dir.path.join("report.json");
        if !path.exists() {
            write_json_atomic(&path, &manifest.report)?;
        }
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
        let (standing, outside) = (self.out_dir.standing_stamp()?, self.out_dir.stamp()?);
        let mut marks = Marks::default();
        if self.config.earlier_output() == EarlierOutput::Extend {
            // Output that is added to keeps its place there too.
            marks.replaces = standing;
        } else if standing.as_ref().is_some_and(|stamp| stamp.fingerprint == fingerprint) {
            // An extension was killed before it began.
            marks.replaces = outside;
        } else if self.flags.shards.is_none() && fingerprint::output_files(&self.out_dir.path)?.is_empty() {
            // A run ended before it had made anything.
            marks.replaces_alone = outside;
        }
        self.claim(&uri, fingerprint, &marks, interrupted).map(Some)
    }

    fn claim(
        &self,
        uri: &StoreUri,
        fingerprint: &str,
        marks: &Marks,
        interrupted: &Arc<AtomicBool>,
    ) -> anyhow::Result<Publisher> {
        let bytes =
            |stamp: &Stamp| serde_json::to_vec_pretty(stamp).context("the stamp cannot be written as JSON");
        let stamp = Stamp { stage: S::NAME.to_owned(), fingerprint: fingerprint.to_owned() };
        let content = bytes(&stamp)?;
        let replaces = marks.replaces.as_ref().map(bytes).transpose()?;
        let replaces_alone = marks.replaces_alone.as_ref().map(bytes).transpose()?;
        let claim = Claim {
            name: FINGERPRINT_FILE,
            content: &content,
            replaces: replaces.as_deref(),
            replaces_alone: replaces_alone.as_deref(),
        };
        let settings = self.store_settings.clone();
        Ok(Publisher::start(settings, uri, &self.out_dir.path, claim, interrupted)?)
    }

    /// Puts back what a run that has not begun found here, and the mark of it in the store that it is sent to.
    fn restore_replaced(&self, fingerprint: &str) -> anyhow::Result<()> {
        if self.flags.shards.is_some() || !self.out_dir.restore_replaced()? {
            return Ok(());
        }
        self.voice.info(&format!("{}: {} is as it was before", S::NAME, self.out_dir.path.display()));
        self.give_place_back(self.out_dir.stamp()?, fingerprint);
        Ok(())
    }

    /// An extension that has not begun leaves the place in the store to the output that it was to extend.
    fn give_place_back(&self, found: Option<Stamp>, fingerprint: &str) {
        let (Some(uri), Some(found)) = (self.stores.destination(S::NAME), found) else { return };
        if self.config.earlier_output() != EarlierOutput::Extend {
            return;
        }
        let ours = Stamp { stage: S::NAME.to_owned(), fingerprint: fingerprint.to_owned() };
        let marks = Marks { replaces: Some(ours), replaces_alone: None };
        if let Err(error) = self.claim(&uri, &found.fingerprint, &marks, &Arc::default()) {
            tracing::warn!("{uri} still has the mark of the run that failed: {error}");
        }
    }

    /// Sends what the stage has not handed in and, when all of it has arrived, report and manifest. A share sends only
    /// these two: its neighbours' files are their own.
    fn upload(&self, publisher: Publisher, suffix: &str) -> Result<(), StageError> {
        let mut files = Vec::new();
        if self.flags.shards.is_none() {
            files.extend(fingerprint::output_files(&self.out_dir.path)?.into_values());
        }
        files.extend(
            ["report", "manifest"].map(|name| self.out_dir.path.join(format!("{name}.{suffix}json"))),
        );
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
        let out_dir = absolute(&self.out_dir.path);
        for input in self.config.inputs() {
            let path = self.flags.work_dir.join(&input);
            if absolute(FilePattern::of_path(&path).as_ref().map_or(path.as_path(), FilePattern::base))
                .starts_with(&out_dir)
            {
                let message = format!(
                    "`{}` lies in this stage's own output, {}: move it elsewhere, or use another --work-dir",
                    input.display(),
                    self.out_dir.path.display()
                );
                return Err(ConfigError::new(S::NAME, message));
            }
        }
        Ok(())
    }

    /// What concerns the whole output cannot be done to a part of it.
    fn check_share(&self) -> Result<(), ConfigError> {
        match self.flags.shards {
            Some(share) if self.config.earlier_output() != EarlierOutput::Complete => {
                let message =
                    "a config that discards or extends the output of earlier runs is for whole runs only";
                Err(ConfigError::flag(share.asked_by(), message))
            }
            _ => Ok(()),
        }
    }

    /// A partial run names no outputs: its neighbours' files come and go meanwhile, and every one of many would read all
    /// of them. The whole run that ends the job does it once.
    fn outputs(&self, run: &RunContext) -> Result<BTreeMap<String, String>, StageError> {
        if self.flags.shards.is_some() {
            Ok(BTreeMap::new())
        } else {
            fingerprint::digest_outputs(&self.out_dir.path, &run.take_digests())
        }
    }
}

/// One pool for everything. Matrix products stay on the thread that asks for them: parallelism is over samples and
/// micro-batches, whose number does not depend on the machine, so that sums are always taken in the same order.
fn configure_threads(threads: usize) -> anyhow::Result<usize> {
    gemm::set_threading_threshold(usize::MAX);
    let threads = num_threads(threads);
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .context("cannot start the thread pool")?;
    Ok(threads)
}

/// The threads a config asks for: 0 stands for all cores.
fn num_threads(threads: usize) -> usize {
    if threads == 0 { std::thread::available_parallelism().map_or(1, usize::from) } else { threads }
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
            std::process::exit(i32::from(exit::INTERRUPTED));
        }
        voice.info("stopping at the next safe point; once more to stop at once");
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(interrupted)
}

/// What is wrong where a run did nothing, or less than it was asked to, and would otherwise look like success: one sentence,
/// the first that is true.
fn nothing_done(report: &serde_json::Value, shards: Option<ShardRange>, num_shards: usize) -> Option<String> {
    let absent = match shards {
        _ if num_shards == 0 => None,
        Some(ShardRange::Span { first, last }) if first >= num_shards => {
            Some(format!("--shards {first}..{last} names no shard at all: there are {num_shards}"))
        }
        Some(ShardRange::Span { first, last }) if last > num_shards => {
            Some(format!("--shards {first}..{last} reaches beyond the last shard: there are {num_shards}"))
        }
        Some(ShardRange::Stride { task, count }) if task >= num_shards => {
            Some(format!("task {task} of {count} (from 0 on) has no shard: there are {num_shards}"))
        }
        _ => None,
    };
    let count = |value: Option<&serde_json::Value>| value.and_then(serde_json::Value::as_u64);
    absent.or_else(|| match (count(report.get("seen")), count(report.get("kept"))) {
        (Some(0), Some(_)) => Some("there was nothing to do: the input is empty".to_owned()),
        (Some(seen), Some(0)) => {
            let reasons = report.get("rejected").and_then(serde_json::Value::as_object);
            let most = reasons.into_iter().flatten().max_by_key(|(_, number)| number.as_u64());
            let most = most.map(|(reason, number)| format!("; most often: {reason}, {number} times"));
            Some(format!("nothing was kept of {seen}{}", most.unwrap_or_default()))
        }
        _ => None,
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_input_that_reads_like_a_model_of_the_hub_says_how_to_write_one() {
        let file = ConfigFile::parse("[sft]\nsteps = 1\n").unwrap();
        let told = |input: &str| {
            let reason = "it is not there".to_owned();
            with_hub_form(StageError::InputNotReady { path: input.into(), reason }.into(), &file).to_string()
        };
        let expected = "input `openai/clip` is not ready: it is not there; if it is a model of the Hugging Face hub, write \
                        hf://openai/clip";
        assert_eq!(told("openai/clip"), expected);
        for other in ["sft/checkpoint", "clip", "/data/clip", "a/b/c", "s3://a/b", "a/*.tar"] {
            assert!(told(other).ends_with("it is not there"), "{}", told(other));
        }
    }

    #[test]
    fn a_share_without_shards_is_told_in_one_true_sentence() {
        let report = |seen: u64, kept: u64| serde_json::json!({"seen": seen, "kept": kept, "rejected": {}});
        let span = |first, last| Some(ShardRange::Span { first, last });
        let task = |task| Some(ShardRange::Stride { task, count: 8 });
        for (shards, num_shards, expected) in [
            (span(3, 5), 2, Some("--shards 3..5 names no shard at all: there are 2")),
            (span(1, 5), 2, Some("--shards 1..5 reaches beyond the last shard: there are 2")),
            (task(2), 2, Some("task 2 of 8 (from 0 on) has no shard: there are 2")),
            (None, 0, Some("there was nothing to do: the input is empty")),
            (task(0), 0, Some("there was nothing to do: the input is empty")),
        ] {
            assert_eq!(nothing_done(&report(0, 0), shards, num_shards).as_deref(), expected, "{shards:?}");
        }
        assert_eq!(nothing_done(&report(5, 2), task(1), 2), None);
        assert_eq!(nothing_done(&report(5, 0), None, 2).unwrap(), "nothing was kept of 5");
    }
}
