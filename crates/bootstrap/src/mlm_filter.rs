//! The stand-in of the released MLM-Filter: a VLM of the bootstrap's own tower and language model, taught to caption
//! and to score (the released one was trained on scores and on ShareGPT4V captions).

use crate::BootstrapError;
use crate::config::MlmFilterTable;
use crate::corpus::PairCorpus;
use oqvl_mlm_filter::Metric;
use oqvl_model::{Example, LossOutput, Prompt, Vlm, save_checkpoint};
use oqvl_stage::RunContext;
use oqvl_text_prep::{IGNORE_INDEX, TextError, Tokenizer, caption_document};
use oqvl_trainer::{Sampler, Task, TrainError, TrainingReport, assemble, randperm, train};
use std::path::Path;

/// What the loop's example indices stand for: captions first, then scores.
struct ScoringTask<'a> {
    vlm: &'a Vlm,
    captioning: &'a PairCorpus,
    scored: &'a PairCorpus,
    tokenizer: &'a Tokenizer,
    table: &'a MlmFilterTable,
}

impl ScoringTask<'_> {
    fn example(&self, index: usize) -> Result<Example, TextError> {
        let num_captions = self.captioning.len();
        if index < num_captions {
            let input_ids = caption_document(self.tokenizer, &self.captioning.captions[index])?;
            let labels = input_ids.clone();
            return Ok(Example {
                prompt: Prompt { input_ids, images: vec![self.captioning.images[index].as_slice().into()] },
                labels,
            });
        }
        let index = index - num_captions;
        let (sample, metric) =
            (index / self.table.metrics.len(), self.table.metrics[index % self.table.metrics.len()]);
        self.scored_example(sample, metric)
    }

    /// Prompt, score digits, `<|im_end|>`; only what the model is to say is labelled.
    fn scored_example(&self, sample: usize, metric: Metric) -> Result<Example, TextError> {
        let score = self.scored.scores[sample][metric.name()];
        let mut input_ids =
            self.table.prompt.input_ids(self.tokenizer, metric, &self.scored.captions[sample])?;
        let mut labels = vec![IGNORE_INDEX; input_ids.len()];
        let mut answer = self.tokenizer.encode(&score.to_string())?;
        answer.push(self.tokenizer.eos_id());
        labels.extend(&answer);
        input_ids.extend(&answer);
        Ok(Example {
            prompt: Prompt { input_ids, images: vec![self.scored.images[sample].as_slice().into()] },
            labels,
        })
    }
}

impl Task for ScoringTask<'_> {
    fn loss(&self, _step: u64, indices: &[usize]) -> Result<LossOutput, TrainError> {
        let examples: Result<Vec<_>, _> = indices.iter().map(|&index| self.example(index)).collect();
        let examples = examples.map_err(oqvl_model::ModelError::from)?;
        Ok(self.vlm.loss(&examples.iter().collect::<Vec<_>>())?)
    }
}

/// Captioning alone for the first steps, then micro-batches of captions and of scores in turn.
struct MixedSampler {
    num_captions: usize,
    num_scores: usize,
    global_batch_size: usize,
    per_device_batch_size: usize,
    num_steps: u64,
    num_captioning_steps: u64,
    seed: u64,
}

impl Sampler for MixedSampler {
    fn epoch(&self, epoch: u64) -> Vec<Vec<usize>> {
        let mut captions = Endless::new(self.seed ^ epoch, 0, self.num_captions);
        let mut scores = Endless::new(self.seed ^ epoch, self.num_captions, self.num_scores);
        let num_micro_batches = self.global_batch_size / self.per_device_batch_size;
        (0..self.num_steps)
            .map(|step| {
                let micro_batches = (0..num_micro_batches).flat_map(|micro_batch| {
                    let captioning = step < self.num_captioning_steps || micro_batch % 2 == 1;
                    let source = if captioning { &mut captions } else { &mut scores };
                    (0..self.per_device_batch_size).map(|_| source.next()).collect::<Vec<_>>()
                });
                micro_batches.collect()
            })
            .collect()
    }
}

/// Shuffled indices `first..first + len`, reshuffled each time they run out.
struct Endless {
    seed: u64,
    first: usize,
    order: Vec<usize>,
    position: usize,
}

impl Endless {
    fn new(seed: u64, first: usize, len: usize) -> Self {
        Self { seed, first, order: randperm(seed, len), position: 0 }
    }

    fn next(&mut self) -> usize {
        if self.position == self.order.len() {
            self.seed = self.seed.wrapping_add(1);
            self.order = randperm(self.seed, self.order.len());
            self.position = 0;
        }
        self.position += 1;
        self.first + self.order[self.position - 1]
    }
}

/// Trains the MLM-Filter and writes a checkpoint to `out_dir`.
pub(crate) fn train_mlm_filter(
    table: &MlmFilterTable,
    (captioning, scored): (&PairCorpus, &PairCorpus),
    (siglip, language_model): (&Path, &Path),
    (tokenizer, tokenizer_file): (&Tokenizer, &Path),
    run: &RunContext,
    out_dir: &Path,
) -> Result<TrainingReport, BootstrapError> {
    let (vlm, store) = assemble(siglip, language_model, table.pooled_grid, run.seed)?;
    let task = ScoringTask { vlm: &vlm, captioning, scored, tokenizer, table };
    let training = &table.training;
    let sampler = MixedSampler {
        num_captions: captioning.len(),
        num_scores: scored.len() * table.metrics.len(),
        global_batch_size: training.global_batch_size,
        per_device_batch_size: training.per_device_batch_size,
        num_steps: training.num_steps,
        num_captioning_steps: (table.captioning_ratio * training.num_steps as f64) as u64,
        seed: run.seed,
    };
    let report = train(training, &store, &task, &sampler, run, out_dir)?;
    save_checkpoint(out_dir, vlm.config(), &store, tokenizer_file)?;
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captions_come_first_and_then_take_turns() {
        let sampler = MixedSampler {
            num_captions: 5,
            num_scores: 3,
            global_batch_size: 4,
            per_device_batch_size: 2,
            num_steps: 6,
            num_captioning_steps: 2,
            seed: 7,
        };
        let batches = sampler.epoch(0);
        assert_eq!(batches.len(), 6);
        assert!(batches[..2].concat().iter().all(|index| *index < 5));
        for batch in &batches[2..] {
            assert!(batch[..2].iter().all(|index| (5..8).contains(index)));
            assert!(batch[2..].iter().all(|index| *index < 5));
        }
        let mut scores: Vec<_> = batches[2..].iter().flat_map(|batch| batch[..2].to_vec()).take(3).collect();
        scores.sort_unstable();
        assert_eq!(scores, [5, 6, 7], "an epoch of scores has every one once");
    }
}
