//! The kernels of `cross_entropy.cu` on a CPU, in f32 and f64.

use super::{CHANNELS, Loss};
use crate::element::{Element, lit};
use crate::rows;
use candle_core::{Result, bail};

/// What the rows of logits say together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Totals<T> {
    /// Sum of the cross-entropies.
    pub loss: T,
    /// Sum of the z-losses.
    pub z_loss: T,
    /// Rows that carry a label.
    pub labels: usize,
    /// Rows whose largest logit is, as the first of its size, that of the label.
    pub hits: usize,
}

impl<T: Element> Default for Totals<T> {
    fn default() -> Self {
        Self { loss: T::zero(), z_loss: T::zero(), labels: 0, hits: 0 }
    }
}

impl<T: Element> Totals<T> {
    /// Adds the stats that [`cross_entropy`] left, row after row.
    pub fn add(&mut self, stats: &[T]) {
        for row in stats.chunks_exact(CHANNELS) {
            self.loss += row[0];
            self.z_loss += row[1];
            self.labels += usize::from(row[2] > T::zero());
            self.hits += usize::from(row[3] > T::zero());
        }
    }
}

/// Overwrites `logits`, `(labels.len(), vocab)`, by the gradient of the loss times its scale and `scale`, and leaves of each row in
/// `stats`, `(labels.len(), 4)`, its loss, its z-loss, 1 if it has a label, and 1 if the label is the first of the largest logits.
///
/// # Errors
/// If there are no logits in a row, or not `vocab` of them for each label, or a label is neither below `vocab` nor ignored.
pub fn cross_entropy<T: Element>(
    logits: &mut [T],
    vocab: usize,
    labels: &[i32],
    loss: Loss,
    scale: T,
    stats: &mut [T],
) -> Result<()> {
    if stats.len() != CHANNELS * labels.len() {
        bail!("cross_entropy: {} stats are not {CHANNELS} for each of {} labels", stats.len(), labels.len());
    }
    if (vocab == 0 && !labels.is_empty()) || Some(logits.len()) != vocab.checked_mul(labels.len()) {
        bail!("cross_entropy: {} logits are not {vocab} for each of {} labels", logits.len(), labels.len());
    }
    let is_known = |label: i32| usize::try_from(label).is_ok_and(|label| label < vocab);
    if let Some(label) = labels.iter().find(|label| **label != loss.ignore_index && !is_known(**label)) {
        bail!("cross_entropy: label {label} is not below the vocabulary size {vocab}");
    }
    let (scale, z_loss) = (scale * lit::<T>(loss.scale.into()), lit::<T>(loss.z_loss.into()));
    let rows = logits.chunks_exact_mut(vocab.max(1)).zip(stats.chunks_exact_mut(CHANNELS));
    for ((row, stats), label) in rows.zip(labels) {
        if *label == loss.ignore_index {
            row.fill(T::zero());
            stats.fill(T::zero());
            continue;
        }
        let target = *label as usize;
        let max = rows::max(row);
        let log_sum = max + rows::sum(row, |x| (x - max).exponential()).ln();
        let is_hit = row.iter().position(|x| *x == max) == Some(target);
        let hit = if is_hit { T::one() } else { T::zero() };
        stats.copy_from_slice(&[log_sum - row[target], z_loss * log_sum * log_sum, T::one(), hit]);
        let factor = scale * (T::one() + (z_loss + z_loss) * log_sum);
        row.iter_mut().for_each(|x| *x = (*x - log_sum).exponential() * factor);
        row[target] -= scale;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradcheck::{assert_same, random};
    use candle_core::{Device, Tensor, Var};

    const VOCAB: usize = 7;
    const IGNORE: i32 = -7;

    /// With labels everywhere but in one row; `z_loss` makes the sum differ from that of candle.
    fn formula(logits: &Tensor, labels: &[u32], z_loss: f64) -> Tensor {
        let log_sum = logits.log_sum_exp(1).unwrap();
        let labels = Tensor::new(labels, &Device::Cpu).unwrap().unsqueeze(1).unwrap();
        let at_label = logits.gather(&labels, 1).unwrap().squeeze(1).unwrap();
        let z = (log_sum.sqr().unwrap() * z_loss).unwrap();
        ((log_sum - at_label).unwrap() + z).unwrap().sum_all().unwrap()
    }

    /// All rows, with the stats of each where nothing was before.
    fn rows<T: Element>(logits: &mut [T], vocab: usize, labels: &[i32], loss: Loss) -> Result<Totals<T>> {
        let mut stats = vec![T::nan(); CHANNELS * labels.len()];
        cross_entropy(logits, vocab, labels, loss, T::one(), &mut stats)?;
        let mut totals = Totals::default();
        totals.add(&stats);
        Ok(totals)
    }

    /// Another scale, that the device would hold, is one factor more of the gradient and of nothing else.
    #[test]
    fn both_scales_multiply_the_gradient() {
        let loss = Loss { ignore_index: IGNORE, scale: 0.5, z_loss: 0.25 };
        let logits: Vec<f64> = random(&[2, VOCAB], 3).flatten_all().unwrap().to_vec1().unwrap();
        let [mut once, mut twice] = [logits.clone(), logits];
        let [mut stats_once, mut stats_twice] = [[0.0; 8]; 2];
        cross_entropy(&mut once, VOCAB, &[1, 5], loss, 1.0, &mut stats_once).unwrap();
        cross_entropy(&mut twice, VOCAB, &[1, 5], loss, -3.0, &mut stats_twice).unwrap();
        assert_eq!(stats_once, stats_twice);
        assert!(once.iter().zip(&twice).all(|(once, twice)| (once * -3.0 - twice).abs() < 1e-15));
        let refusal = cross_entropy(&mut once, VOCAB, &[1, 5], loss, 1.0, &mut stats_once[1..]).unwrap_err();
        assert!(refusal.to_string().contains("7 stats are not 4 for each of 2 labels"), "{refusal}");
    }

    #[test]
    fn equals_candle_with_and_without_z_loss() {
        for z_loss in [0.0, 0.25] {
            let logits = random(&[3, VOCAB], 1);
            let mut values: Vec<f64> = logits.flatten_all().unwrap().to_vec1().unwrap();
            values.splice(VOCAB..VOCAB, [f64::NAN; VOCAB]);
            let loss = Loss { ignore_index: IGNORE, scale: 0.5, z_loss };
            let totals = rows(&mut values, VOCAB, &[0, IGNORE, 6, 3], loss).unwrap();
            let expected = formula(&logits, &[0, 6, 3], f64::from(z_loss));
            let found = Tensor::new(totals.loss + totals.z_loss, &Device::Cpu).unwrap();
            assert_same(&found, &expected, 1e-12);
            assert_eq!((totals.labels, totals.z_loss > 0.0), (3, z_loss > 0.0));
            assert!(values.drain(VOCAB..2 * VOCAB).all(|x| x == 0.0));
            let gradients = expected.backward().unwrap();
            let gradient = (gradients.get(&logits).unwrap() * 0.5).unwrap();
            assert_same(&Tensor::from_vec(values, (3, VOCAB), &Device::Cpu).unwrap(), &gradient, 1e-12);
        }
    }

    /// The z-loss by central differences, since candle's formula above might be wrong in the same way.
    #[test]
    fn gradients_are_central_differences() {
        let loss = Loss { ignore_index: IGNORE, scale: 1.0, z_loss: 0.25 };
        let run = |logits: &Var, shift: (usize, f64)| {
            let mut values: Vec<f64> = logits.flatten_all().unwrap().to_vec1().unwrap();
            values[shift.0] += shift.1;
            let totals = rows(&mut values, VOCAB, &[4, 2], loss).unwrap();
            (totals.loss + totals.z_loss, values)
        };
        let logits = random(&[2, VOCAB], 2);
        let (_, gradient) = run(&logits, (0, 0.0));
        for (at, gradient) in gradient.into_iter().enumerate() {
            let difference = (run(&logits, (at, 1e-5)).0 - run(&logits, (at, -1e-5)).0) / 2e-5;
            assert!((gradient - difference).abs() < 1e-6, "{at}: {gradient} is not {difference}");
        }
    }

    #[test]
    fn only_the_first_of_the_largest_is_a_hit() {
        let loss = Loss { ignore_index: IGNORE, scale: 1.0, z_loss: 0.0 };
        let mut logits = [0f32, 3.0, 3.0].repeat(3);
        let totals = rows(&mut logits, 3, &[0, 1, 2], loss).unwrap();
        assert_eq!((totals.labels, totals.hits), (3, 1));
    }

    #[test]
    fn labels_that_do_not_fit_are_refused() {
        let loss = Loss { ignore_index: IGNORE, scale: 1.0, z_loss: 0.0 };
        let refusal = |len: usize, vocab: usize, labels: &[i32]| {
            rows(&mut vec![0f64; len], vocab, labels, loss).unwrap_err().to_string()
        };
        assert!(refusal(6, 3, &[0, 3]).contains("label 3 is not below"));
        assert!(refusal(6, 3, &[-1, 2]).contains("label -1 is not below"));
        assert!(refusal(6, 3, &[0]).contains("6 logits are not 3"));
        assert!(refusal(0, 0, &[0]).contains("0 logits"));
    }
}
