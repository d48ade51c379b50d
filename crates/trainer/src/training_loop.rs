//! The loop: micro-batches in parallel, gradients added in order, AdamW, metrics, states to resume from.

use crate::TrainError;
use crate::adamw::{AdamW, Gradients};
use crate::config::TrainingConfig;
use crate::metrics::{METRICS_FILE, MetricsLog, StepMetrics};
use crate::resume::ResumeDir;
use crate::sampler::Sampler;
use crate::schedule::WarmupCosine;
use candle_core::Tensor;
use oqvl_model::{CONFIG_FILE, LossOutput, ParamStore, TOKENIZER_FILE, WEIGHTS_FILE};
use oqvl_shard_io::{read_json, write_json_atomic};
use oqvl_stage::RunContext;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

/// candle detaches silently, so a parameter that no gradient has reached after this many steps is a bug. One step
/// would be too few: the first batch may hold text alone, which leaves the projector out.
const GRADIENT_GRACE_STEPS: u64 = 20;

/// What a finished training says of itself, in its output directory; local to the machine, because of its speed.
pub const TRAINING_FILE: &str = "training.local.json";

/// Something to minimise.
pub trait Task: Sync {
    /// Mean loss over the labelled tokens of the examples with these indices, with its graph. `step` counts from 0.
    ///
    /// # Errors
    /// If an example cannot be read or does not fit the model.
    fn loss(&self, step: u64, indices: &[usize]) -> Result<LossOutput, TrainError>;
}

/// What a finished loop says of itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainingReport {
    /// Optimizer steps.
    pub num_steps: u64,
    /// Mean loss of the first tenth of the steps, nats per labelled token.
    pub first_loss: f64,
    /// Mean loss of the last tenth of the steps.
    pub last_loss: f64,
    /// Multimodal tokens trained on.
    pub num_tokens: u64,
    /// Labelled tokens among them.
    pub num_labels: u64,
    /// Tokens per second of the steps this process ran; `None` if it resumed after the last one.
    pub tokens_per_second: Option<f64>,
    /// Trainable parameters.
    pub num_trainable_params: usize,
    /// Frozen parameters.
    pub num_frozen_params: usize,
}

/// Gradients and counts of one micro-batch.
struct MicroBatch {
    gradients: Gradients,
    loss: f64,
    num_labels: usize,
    num_tokens: usize,
}

/// Trains the variables of `store` on `task`. Files go to `out_dir`; a run that was killed goes on from its last
/// state and ends with the same bits.
///
/// # Errors
/// If the task fails, a parameter gets no gradient, the loss is not finite, or a file cannot be written.
pub fn train(
    config: &TrainingConfig,
    store: &ParamStore,
    task: &dyn Task,
    sampler: &dyn Sampler,
    run: &RunContext,
    out_dir: &Path,
) -> Result<TrainingReport, TrainError> {
    std::fs::create_dir_all(out_dir).map_err(TrainError::io(out_dir))?;
    let mut optimizer = AdamW::new(config.optimizer, store.vars());
    let resume = ResumeDir::new(out_dir);
    let first_step = resume.restore(store, &mut optimizer)?;
    let mut log = MetricsLog::open(out_dir, first_step)?;
    let schedule = WarmupCosine::new(config.num_steps, config.warmup_ratio);
    let progress = run.progress(config.num_steps, "steps");
    progress.inc(first_step);

    let started = Instant::now();
    let mut unreached: BTreeSet<&String> = store.vars().keys().collect();
    let mut batches = Batches::new(sampler, first_step);
    for step in first_step..config.num_steps {
        run.check_interrupt()?;
        let batch = batches.next();
        let micro_batches: Result<Vec<_>, TrainError> = batch
            .par_chunks(config.per_device_batch_size)
            .map(|indices| micro_batch(task, store, step, indices))
            .collect();
        let (gradients, mut metrics) = add_up(micro_batches?);
        unreached.retain(|name| !gradients.contains_key(*name));
        // A resumed run has been checked before, and may have few steps left, all of them without images.
        if first_step == 0
            && step + 1 == GRADIENT_GRACE_STEPS.min(config.num_steps)
            && let Some(name) = unreached.first()
        {
            return Err(TrainError::NoGradient { name: (*name).clone() });
        }
        if !metrics.loss.is_finite() {
            return Err(TrainError::NotFinite { step: step + 1, what: "loss", value: metrics.loss });
        }
        metrics.step = step + 1;
        metrics.learning_rate = config.learning_rate * schedule.factor(step);
        metrics.grad_norm = optimizer.step(store.vars(), &gradients, metrics.learning_rate)?;
        if !metrics.grad_norm.is_finite() {
            let (what, value) = ("gradient norm", metrics.grad_norm);
            return Err(TrainError::NotFinite { step: step + 1, what, value });
        }
        log.push(metrics)?;
        progress.set_message(format!("loss {:.4}", metrics.loss));
        progress.inc(1);
        if (step + 1).is_multiple_of(config.save_every_steps) && step + 1 < config.num_steps {
            log.sync()?;
            resume.save(step + 1, store, &optimizer)?;
        }
    }
    progress.finish();
    Ok(report(&log, store, first_step, started.elapsed().as_secs_f64()))
}

/// Trains and writes `checkpoint` by `train_and_save`, unless a run that was killed later has done so; either way the
/// states to resume from, which `train` keeps in `out_dir`, are gone afterwards.
///
/// What a training says of itself is kept in [`TRAINING_FILE`], written after the checkpoint: days of training are
/// not lost to a kill while, say, digests are taken of the finished model.
///
/// # Errors
/// Those of `train_and_save`, and [`TrainError`] if the report cannot be written or read or states not removed.
pub fn train_once<E: From<TrainError>>(
    out_dir: &Path,
    checkpoint: &Path,
    train_and_save: impl FnOnce() -> Result<TrainingReport, E>,
) -> Result<TrainingReport, E> {
    let path = out_dir.join(TRAINING_FILE);
    let mut files = vec![path.clone(), out_dir.join(METRICS_FILE)];
    files.extend([CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE].map(|file| checkpoint.join(file)));
    let report = if files.iter().all(|file| file.is_file()) {
        read_json(&path).map_err(TrainError::from)?
    } else {
        let report = train_and_save()?;
        write_json_atomic(&path, &report).map_err(TrainError::from)?;
        report
    };
    ResumeDir::new(out_dir).clear()?;
    Ok(report)
}

/// The batches of all epochs, one after another.
struct Batches<'a> {
    sampler: &'a dyn Sampler,
    epoch: u64,
    pending: std::vec::IntoIter<Vec<usize>>,
}

impl<'a> Batches<'a> {
    fn new(sampler: &'a dyn Sampler, skip: u64) -> Self {
        let mut batches = Self { sampler, epoch: 0, pending: sampler.epoch(0).into_iter() };
        (0..skip).for_each(|_| drop(batches.next()));
        batches
    }

    fn next(&mut self) -> Vec<usize> {
        loop {
            if let Some(batch) = self.pending.next() {
                return batch;
            }
            self.epoch += 1;
            self.pending = self.sampler.epoch(self.epoch).into_iter();
            assert!(self.pending.len() > 0, "a sampler gives at least one batch per epoch");
        }
    }
}

fn micro_batch(
    task: &dyn Task,
    store: &ParamStore,
    step: u64,
    indices: &[usize],
) -> Result<MicroBatch, TrainError> {
    let LossOutput { loss, num_labels, num_tokens } = task.loss(step, indices)?;
    let grads = loss.backward()?;
    let mut gradients = Gradients::new();
    for (name, var) in store.vars() {
        if let Some(gradient) = grads.get(var) {
            gradients.insert(name.clone(), gradient.flatten_all()?.to_vec1()?);
        }
    }
    Ok(MicroBatch { gradients, loss: scalar(&loss)?, num_labels, num_tokens })
}

fn scalar(loss: &Tensor) -> Result<f64, TrainError> {
    Ok(f64::from(loss.to_scalar::<f32>()?))
}

/// Mean of the micro-batches' gradients and losses (each micro-batch counts the same, as in the reference), taken in
/// their order.
fn add_up(micro_batches: Vec<MicroBatch>) -> (Gradients, StepMetrics) {
    let scale = 1.0 / micro_batches.len() as f64;
    let mut sum = Gradients::new();
    let (mut loss, mut num_labels, mut num_tokens) = (0.0, 0, 0);
    for micro_batch in micro_batches {
        loss += micro_batch.loss * scale;
        num_labels += micro_batch.num_labels as u64;
        num_tokens += micro_batch.num_tokens as u64;
        for (name, gradient) in micro_batch.gradients {
            match sum.get_mut(&name) {
                None => {
                    sum.insert(name, gradient);
                }
                Some(total) => total.iter_mut().zip(gradient).for_each(|(total, value)| *total += value),
            }
        }
    }
    sum.values_mut().for_each(|gradient| gradient.iter_mut().for_each(|value| *value *= scale as f32));
    (sum, StepMetrics { step: 0, loss, learning_rate: 0.0, grad_norm: 0.0, num_labels, num_tokens })
}

fn report(log: &MetricsLog, store: &ParamStore, first_step: u64, seconds: f64) -> TrainingReport {
    let steps = &log.steps;
    let tenth = steps.len().div_ceil(10).max(1);
    let mean =
        |part: &[StepMetrics]| part.iter().map(|step| step.loss).sum::<f64>() / part.len().max(1) as f64;
    let run_here: u64 = steps.iter().filter(|step| step.step > first_step).map(|step| step.num_tokens).sum();
    TrainingReport {
        num_steps: steps.len() as u64,
        first_loss: mean(&steps[..tenth.min(steps.len())]),
        last_loss: mean(&steps[steps.len() - tenth.min(steps.len())..]),
        num_tokens: steps.iter().map(|step| step.num_tokens).sum(),
        num_labels: steps.iter().map(|step| step.num_labels).sum(),
        tokens_per_second: (run_here > 0).then(|| run_here as f64 / seconds),
        num_trainable_params: store.vars().values().map(|var| var.elem_count()).sum(),
        num_frozen_params: store.frozen().values().map(Tensor::elem_count).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::OptimizerConfig;
    use crate::pretraining::Trainer;
    use crate::sampler::ShuffledSampler;
    use candle_core::Device;
    use oqvl_model::Init;
    use oqvl_shard_io::write_atomic;
    use oqvl_stage::Interrupted;

    /// Fits a line through points; something may happen at a step.
    struct Line {
        /// `(1, 2)`: slope and intercept.
        weight: Tensor,
        event: Option<(u64, Event)>,
    }

    enum Event {
        Stop,
        InfiniteLoss,
        /// The loss stays finite.
        UndefinedGradient,
    }

    impl Task for Line {
        fn loss(&self, step: u64, indices: &[usize]) -> Result<LossOutput, TrainError> {
            let points: Vec<f32> = indices.iter().flat_map(|&index| [index as f32 / 8.0, 1.0]).collect();
            let targets: Vec<f32> = indices.iter().map(|&index| 0.5 - index as f32 / 4.0).collect();
            let points = Tensor::from_vec(points, (indices.len(), 2), &Device::Cpu)?;
            let targets = Tensor::from_vec(targets, (indices.len(), 1), &Device::Cpu)?;
            let mut loss = (points.matmul(&self.weight.t()?)? - targets)?.sqr()?.mean_all()?;
            match &self.event {
                Some((at, Event::Stop)) if *at == step => return Err(Interrupted.into()),
                Some((at, Event::InfiniteLoss)) if *at == step => loss = (loss * f64::INFINITY)?,
                Some((at, Event::UndefinedGradient)) if *at == step => {
                    // forward only: a root of nothing is wanted, whose gradient is no number.
                    let nothing = (&self.weight - self.weight.detach())?.sqr()?.sum_all()?.sqrt()?;
                    loss = (loss + nothing)?;
                }
                _ => {}
            }
            Ok(LossOutput { loss, num_labels: indices.len(), num_tokens: indices.len() })
        }
    }

    fn config() -> TrainingConfig {
        TrainingConfig {
            num_steps: 10,
            global_batch_size: 4,
            per_device_batch_size: 2,
            learning_rate: 0.05,
            warmup_ratio: 0.1,
            save_every_steps: 5,
            optimizer: OptimizerConfig::default(),
        }
    }

    /// Parameters after training, in a run of its own each time, as a program would.
    fn fit(out_dir: &Path, event: Option<(u64, Event)>) -> Result<Vec<f32>, TrainError> {
        let mut store = ParamStore::seeded(1, &Device::Cpu);
        let weight = store.root().get("weight", &[1, 2], Init::Constant(0.0))?;
        store.finish()?;
        let run = RunContext::for_test::<Trainer>(out_dir, 7).unwrap();
        let sampler = ShuffledSampler { num_examples: 9, global_batch_size: 4, seed: 7 };
        train(&config(), &store, &Line { weight, event }, &sampler, &run, out_dir)?;
        Ok(store.vars()["weight"].flatten_all()?.to_vec1()?)
    }

    fn metrics(out_dir: &Path) -> String {
        std::fs::read_to_string(out_dir.join(METRICS_FILE)).unwrap()
    }

    #[test]
    fn a_run_that_was_stopped_goes_on_to_the_same_bits() {
        let (whole, stopped, broken) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let expected = fit(whole.path(), None).unwrap();
        assert_eq!(metrics(whole.path()).lines().count(), 10);
        for dir in [&stopped, &broken] {
            let error = fit(dir.path(), Some((6, Event::Stop))).unwrap_err();
            assert!(matches!(error, TrainError::Interrupted(_)), "{error}");
            assert_eq!(metrics(dir.path()).lines().count(), 6);
        }
        // Half a state is none: this one starts again.
        std::fs::remove_file(broken.path().join("resume/step-000005/params.safetensors")).unwrap();
        for dir in [&stopped, &broken] {
            assert_eq!(fit(dir.path(), None).unwrap(), expected);
            assert_eq!(metrics(dir.path()), metrics(whole.path()));
        }
    }

    #[test]
    fn what_is_trained_and_saved_is_not_trained_again() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoint = dir.path().join("checkpoint");
        let train_and_save = |files: &[&str]| {
            std::fs::create_dir_all(&checkpoint).unwrap();
            files.iter().for_each(|file| write_atomic(&checkpoint.join(file), b"").unwrap());
            fit(dir.path(), Some((6, Event::Stop))).unwrap_err();
            assert!(dir.path().join("resume").exists());
            fit(dir.path(), None)?;
            let report = TrainingReport {
                num_steps: 10,
                first_loss: 0.1,
                last_loss: 0.1 + 0.2,
                num_tokens: 1,
                num_labels: 1,
                tokens_per_second: None,
                num_trainable_params: 2,
                num_frozen_params: 0,
            };
            Ok::<_, TrainError>(report)
        };
        let whole = [CONFIG_FILE, WEIGHTS_FILE, TOKENIZER_FILE];
        let first = train_once(dir.path(), &checkpoint, || train_and_save(&whole)).unwrap();
        assert!(!dir.path().join("resume").exists());
        let again = train_once::<TrainError>(dir.path(), &checkpoint, || panic!("trains again")).unwrap();
        assert_eq!(again, first);
        // A checkpoint that lost a file is none, and so is one whose losses are gone.
        for lost in [checkpoint.join(WEIGHTS_FILE), dir.path().join(METRICS_FILE)] {
            std::fs::remove_file(&lost).unwrap();
            train_once(dir.path(), &checkpoint, || train_and_save(&whole)).unwrap();
            assert!(lost.exists());
        }
    }

    #[test]
    fn it_learns() {
        let dir = tempfile::tempdir().unwrap();
        fit(dir.path(), None).unwrap();
        let losses: Vec<f64> = (metrics(dir.path()).lines())
            .map(|line| serde_json::from_str::<StepMetrics>(line).unwrap().loss)
            .collect();
        assert!(losses[9] < losses[0] / 2.0, "{losses:?}");
    }

    #[test]
    fn what_is_not_a_number_is_named_with_its_step() {
        for (event, expected) in [(Event::InfiniteLoss, "loss"), (Event::UndefinedGradient, "gradient norm")]
        {
            let dir = tempfile::tempdir().unwrap();
            let error = fit(dir.path(), Some((3, event))).unwrap_err();
            assert!(
                matches!(error, TrainError::NotFinite { step: 4, what, .. } if what == expected),
                "{error}"
            );
        }
    }
}
