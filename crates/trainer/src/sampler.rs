//! The order of examples.

use crate::randperm::randperm;

/// Gives the examples of every optimizer step, cut into micro-batches.
pub trait Sampler: Sync {
    /// The batches of one epoch: per optimizer step the example indices, in the order of their micro-batches.
    /// Every batch has `global_batch_size` indices.
    fn epoch(&self, epoch: u64) -> Vec<Vec<usize>>;
}

/// One global permutation per epoch, as torch's `DistributedSampler` with one rank. A last short batch is filled from
/// the head of the permutation.
#[derive(Debug, Clone, Copy)]
pub struct ShuffledSampler {
    /// Number of examples; at least 1.
    pub num_examples: usize,
    /// Examples per optimizer step.
    pub global_batch_size: usize,
    /// Seed; epoch `e` uses `seed + e`.
    pub seed: u64,
}

impl Sampler for ShuffledSampler {
    fn epoch(&self, epoch: u64) -> Vec<Vec<usize>> {
        let order = randperm(self.seed.wrapping_add(epoch), self.num_examples);
        let num_batches = self.num_examples.div_ceil(self.global_batch_size);
        let endless = order.iter().copied().cycle().take(num_batches * self.global_batch_size);
        endless.collect::<Vec<_>>().chunks(self.global_batch_size).map(<[usize]>::to_vec).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_example_occurs_and_batches_are_full() {
        for (num_examples, global_batch_size) in [(10, 4), (3, 8), (8, 8), (1, 1)] {
            let sampler = ShuffledSampler { num_examples, global_batch_size, seed: 7 };
            let batches = sampler.epoch(0);
            assert!(batches.iter().all(|batch| batch.len() == global_batch_size));
            let mut seen: Vec<usize> = batches.concat();
            seen.sort_unstable();
            seen.dedup();
            assert!(seen.into_iter().eq(0..num_examples));
            assert_eq!(batches, sampler.epoch(0));
        }
        let sampler = ShuffledSampler { num_examples: 100, global_batch_size: 10, seed: 7 };
        assert_ne!(sampler.epoch(0), sampler.epoch(1));
    }
}
