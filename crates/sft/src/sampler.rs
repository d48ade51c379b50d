//! Batches of one modality, grouped by length.

use oqvl_trainer::{Sampler, TorchGenerator};

/// What the sampler knows of an example.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExampleShape {
    /// Whether it has an image.
    pub is_multimodal: bool,
    /// Its length in words.
    pub length: usize,
}

/// The reference's order for fine-tuning: every global batch holds only multimodal or only text examples of similar
/// length, the longest batch comes first so that a lack of memory shows at once, the others are shuffled.
///
/// Deviation: a set without text-only (or without multimodal) examples, and one with fewer than half a batch of
/// them, is filled up by repetition instead of failing.
///
/// Source: Prismatic `SplitModalitySampler`.
#[derive(Debug, Clone)]
pub struct SplitModalitySampler {
    /// One entry per example; at least one.
    pub shapes: Vec<ExampleShape>,
    /// Examples per optimizer step, over all ranks.
    pub global_batch_size: usize,
    /// Ranks that a batch is balanced over; divides `global_batch_size`.
    pub world_size: usize,
    /// What an image adds to the length when the longest batch is sought. The reference has 576 here whatever the
    /// model; with the real number of image tokens the batch that is longest in tokens comes first.
    pub num_image_tokens: usize,
    /// Seed; epoch `e` uses `seed + e`.
    pub seed: u64,
}

impl Sampler for SplitModalitySampler {
    fn epoch(&self, epoch: u64) -> Vec<Vec<usize>> {
        let mut generator = TorchGenerator::new(self.seed.wrapping_add(epoch));
        let of = |is_multimodal: bool| -> Vec<usize> {
            (0..self.shapes.len())
                .filter(|&index| self.shapes[index].is_multimodal == is_multimodal)
                .collect()
        };
        let (multimodal, text) = (of(true), of(false));
        let multimodal_order = generator.randperm(multimodal.len());
        let text_order = generator.randperm(text.len());
        let mut batches = self.batches(&multimodal, &multimodal_order);
        batches.extend(self.batches(&text, &text_order));

        let order = generator.randperm(batches.len());
        let mut batches: Vec<Vec<usize>> = order.into_iter().map(|index| batches[index].clone()).collect();
        let longest =
            |batch: &Vec<usize>| batch.iter().map(|&index| self.num_tokens(index)).max().unwrap_or(0);
        let lengths: Vec<usize> = batches.iter().map(longest).collect();
        let max = lengths.iter().copied().max().unwrap_or(0);
        if let Some(first) = lengths.iter().position(|&length| length == max) {
            batches.swap(0, first);
        }
        batches
    }
}

impl SplitModalitySampler {
    fn num_tokens(&self, index: usize) -> usize {
        let shape = self.shapes[index];
        shape.length + if shape.is_multimodal { self.num_image_tokens } else { 0 }
    }

    /// Global batches of one modality: chunks of the permutation, sorted by length, dealt to the ranks.
    fn batches(&self, examples: &[usize], order: &[usize]) -> Vec<Vec<usize>> {
        if examples.is_empty() {
            return Vec::new();
        }
        let num_batches = order.len().div_ceil(self.global_batch_size);
        let filled: Vec<usize> =
            order.iter().map(|&at| examples[at]).cycle().take(num_batches * self.global_batch_size).collect();
        filled.chunks(self.global_batch_size).map(|chunk| self.deal(chunk)).collect()
    }

    /// Deals a chunk, longest first, always to the rank with the smallest total so far that still has room.
    fn deal(&self, chunk: &[usize]) -> Vec<usize> {
        let mut sorted = chunk.to_vec();
        sorted.sort_by_key(|&index| std::cmp::Reverse(self.shapes[index].length));
        let capacity = self.global_batch_size / self.world_size;
        let mut ranks = vec![(0usize, Vec::with_capacity(capacity)); self.world_size];
        for index in sorted {
            let open = ranks.iter_mut().filter(|(_, rank)| rank.len() < capacity);
            let (total, rank) =
                open.min_by_key(|(total, _)| *total).expect("a chunk fills the ranks exactly");
            *total += self.shapes[index].length;
            rank.push(index);
        }
        ranks.into_iter().flat_map(|(_, rank)| rank).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with the reference: 40 examples, every fifth text-only, batches of 8 over 2 ranks.
    #[test]
    fn equals_the_reference() {
        let shapes =
            (0..40).map(|i| ExampleShape { is_multimodal: i % 5 != 0, length: 10 + 37 * i % 101 }).collect();
        let sampler = SplitModalitySampler {
            shapes,
            global_batch_size: 8,
            world_size: 2,
            num_image_tokens: 576,
            seed: 7,
        };
        let batches = sampler.epoch(0);
        let rank = |rank: usize| -> Vec<usize> {
            batches.iter().flat_map(|batch| batch[4 * rank..4 * rank + 4].to_vec()).collect()
        };
        assert_eq!(rank(0), [19, 24, 2, 14, 38, 7, 37, 28, 32, 39, 6, 22, 30, 10, 15, 0, 13, 23, 3, 33]);
        assert_eq!(rank(1), [8, 27, 26, 4, 16, 21, 12, 31, 18, 1, 17, 36, 5, 35, 20, 25, 29, 34, 9, 11]);
    }

    #[test]
    fn every_example_occurs_whatever_the_mix() {
        for (num_multimodal, num_text) in [(5, 0), (0, 3), (9, 1), (8, 8)] {
            let shape = |i| ExampleShape { is_multimodal: i < num_multimodal, length: i * 7 % 5 };
            let sampler = SplitModalitySampler {
                shapes: (0..num_multimodal + num_text).map(shape).collect(),
                global_batch_size: 4,
                world_size: 1,
                num_image_tokens: 9,
                seed: 1,
            };
            let batches = sampler.epoch(0);
            assert!(batches.iter().all(|batch| batch.len() == 4));
            let mut seen = batches.concat();
            seen.sort_unstable();
            seen.dedup();
            assert!(seen.into_iter().eq(0..num_multimodal + num_text));
        }
    }
}
