//! The head of a language model and its loss, over the rows that carry a label alone.
//!
//! Of a pack of the pre-training less than a fifth of the rows have a label: the head costs as little, and its logits fit. On a
//! device it is a sequence of operations, of which this is the whole on a CPU:
//!
//! 1. [`gather_rows`] of the hidden states by [`LabelRows::rows`]
//! 2. for each chunk of them: [`gemm`](crate::gemm) with the weight; [`cross_entropy`](mod@crate::cross_entropy), which leaves
//!    the gradient where the logits were; and two more products, to the gradient of the weight, which they add to in f32, and to
//!    that of the chunk
//! 3. [`gather_rows`] of that by [`LabelRows::places`], zeros elsewhere
//!
//! Nothing in it depends on how rows are divided into chunks but the rounding of products on a device.

use crate::cross_entropy::reference::{Totals, cross_entropy};
use crate::cross_entropy::{CHANNELS, Loss, bytes_beside_logits};
use crate::element::Element;
use crate::{gather_rows, rows};
use candle_core::{Result, bail};
use half::bf16;

/// Which rows of a sequence carry a label.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LabelRows {
    rows: Vec<i32>,
    places: Vec<i32>,
    labels: Vec<i32>,
}

impl LabelRows {
    /// Finds them: those whose label is not `ignore_index`.
    ///
    /// # Panics
    /// If there are 2^31 rows or more.
    #[must_use]
    pub fn new(labels: &[i32], ignore_index: i32) -> Self {
        let mut found = Self::default();
        for (row, label) in (0..i32::MAX).zip(labels) {
            let is_labelled = *label != ignore_index;
            found.places.push(if is_labelled { found.rows.len() as i32 } else { -1 });
            if is_labelled {
                found.rows.push(row);
                found.labels.push(*label);
            }
        }
        assert_eq!(found.places.len(), labels.len(), "there are fewer than 2^31 rows");
        found
    }

    /// Their numbers in the sequence.
    #[must_use]
    pub fn rows(&self) -> &[i32] {
        &self.rows
    }

    /// For every row of the sequence, its place among them, or -1.
    #[must_use]
    pub fn places(&self) -> &[i32] {
        &self.places
    }

    /// Their labels.
    #[must_use]
    pub fn labels(&self) -> &[i32] {
        &self.labels
    }
}

/// Sizes of a head in bf16 on a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HeadSizes {
    /// Rows of the sequence.
    pub rows: usize,
    /// Those of them that carry a label.
    pub label_rows: usize,
    /// Elements of a hidden state.
    pub hidden: usize,
    /// Logits of a row.
    pub vocab: usize,
    /// Rows whose logits there are at one time.
    pub chunk_rows: usize,
}

impl HeadSizes {
    /// Bytes of device memory that it needs besides the hidden states, the weight and their gradients: one chunk of logits, which
    /// their gradient overwrites; the gathered states and their gradient; labels, stats, sums and counts; and the two lists of
    /// [`LabelRows`]. `None` if there is no such number.
    #[must_use]
    pub fn bytes(&self) -> Option<usize> {
        let Self { rows, label_rows, hidden, vocab, chunk_rows } = *self;
        let logits = chunk_rows.min(label_rows).checked_mul(vocab)?.checked_mul(size_of::<bf16>())?;
        let gathered = label_rows.checked_mul(hidden)?.checked_mul(2 * size_of::<bf16>())?;
        let lists = label_rows.checked_add(rows)?.checked_mul(size_of::<i32>())?;
        let totals = 2 * (size_of::<f32>() + size_of::<i32>());
        let of_rows = label_rows.checked_mul(bytes_beside_logits(1))?;
        logits.checked_add(gathered)?.checked_add(lists)?.checked_add(of_rows)?.checked_add(totals)
    }
}

/// What [`label_head`] reads.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a, T> {
    /// Hidden states, `(rows, hidden)`.
    pub states: &'a [T],
    /// The weight, `(vocab, hidden)`.
    pub weight: &'a [T],
    /// Elements of a hidden state; 1 or more.
    pub hidden: usize,
    /// A label for each row, or the `ignore_index` of the loss.
    pub labels: &'a [i32],
}

/// What [`label_head`] writes.
#[derive(Debug)]
pub struct Gradients<'a, T> {
    /// `(rows, hidden)`; overwritten, by zeros in rows without a label.
    pub states: &'a mut [T],
    /// `(vocab, hidden)`; added to.
    pub weight: &'a mut [T],
}

/// The loss of `states weight^T` and its gradients times the scale of the loss, on a CPU. Only rows that carry a label are
/// multiplied, `chunk_rows` at a time, which changes no bit of the result: every sum goes through its terms one by one.
///
/// # Errors
/// If a length does not fit, a label is neither below the vocabulary nor ignored, or a chunk or a hidden state is empty.
pub fn label_head<T: Element>(
    head: Head<'_, T>,
    loss: Loss,
    chunk_rows: usize,
    gradients: Gradients<'_, T>,
) -> Result<Totals<T>> {
    let Head { states, weight, hidden, labels } = head;
    if hidden == 0 || chunk_rows == 0 {
        bail!("label_head: hidden states of {hidden} in chunks of {chunk_rows} rows");
    }
    let vocab = weight.len() / hidden;
    if vocab * hidden != weight.len() || Some(states.len()) != labels.len().checked_mul(hidden) {
        let rows = labels.len();
        bail!(
            "label_head: states of {} and a weight of {} elements: not {hidden} for each of {rows} rows and of a vocabulary",
            states.len(),
            weight.len()
        );
    }
    if gradients.states.len() != states.len() || gradients.weight.len() != weight.len() {
        let lens = [gradients.states.len(), gradients.weight.len()];
        bail!("label_head: gradients of {lens:?} elements, not of {} and {}", states.len(), weight.len());
    }
    let labelled = LabelRows::new(labels, loss.ignore_index);
    let mut gathered = vec![T::zero(); labelled.rows().len() * hidden];
    gather_rows::reference(states, hidden, labelled.rows(), &mut gathered)?;
    let mut gradient = vec![T::zero(); gathered.len()];
    let mut totals = Totals::default();
    let chunks = labelled.labels().chunks(chunk_rows).zip(gathered.chunks(chunk_rows.saturating_mul(hidden)));
    let to = gradient.chunks_mut(chunk_rows.saturating_mul(hidden));
    for ((labels, states), to) in chunks.zip(to) {
        let mut logits: Vec<T> = Vec::with_capacity(labels.len() * vocab);
        for state in states.chunks_exact(hidden) {
            logits.extend(weight.chunks_exact(hidden).map(|of_token| rows::dot(state, of_token)));
        }
        let mut stats = vec![T::zero(); CHANNELS * labels.len()];
        cross_entropy(&mut logits, vocab, labels, loss, T::one(), &mut stats)?;
        totals.add(&stats);
        let of_rows = logits.chunks_exact(vocab.max(1)).zip(states.chunks_exact(hidden));
        for ((logits, state), to) in of_rows.zip(to.chunks_exact_mut(hidden)) {
            let tokens = logits.iter().zip(weight.chunks_exact(hidden));
            let of_tokens = gradients.weight.chunks_exact_mut(hidden);
            for ((dlogit, of_token), dweight) in tokens.zip(of_tokens) {
                to.iter_mut().zip(of_token).for_each(|(to, x)| *to += *dlogit * *x);
                dweight.iter_mut().zip(state).for_each(|(to, x)| *to += *dlogit * *x);
            }
        }
    }
    gather_rows::reference(&gradient, hidden, labelled.places(), gradients.states)?;
    Ok(totals)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gradcheck::{assert_same, random};
    use candle_core::{Device, Tensor};

    const IGNORE: i32 = -7;
    const LOSS: Loss = Loss { ignore_index: IGNORE, scale: 0.25, z_loss: 0.0 };
    const HIDDEN: usize = 19;
    const VOCAB: usize = 37;
    const LABELS: [i32; 9] = [IGNORE, 3, 36, IGNORE, IGNORE, 0, 3, 17, IGNORE];

    #[derive(Debug, PartialEq)]
    struct Found {
        totals: Totals<f32>,
        states: Vec<u32>,
        weight: Vec<u32>,
    }

    fn bits(values: Vec<f32>) -> Vec<u32> {
        values.into_iter().map(f32::to_bits).collect()
    }

    fn inputs() -> [Vec<f32>; 3] {
        [(LABELS.len(), 1), (VOCAB, 2), (VOCAB, 3)].map(|(rows, seed)| {
            let values = random(&[rows, HIDDEN], seed).flatten_all().unwrap().to_vec1::<f64>().unwrap();
            values.into_iter().map(|x| x as f32).collect()
        })
    }

    fn by_label_rows(labels: &[i32], chunk_rows: usize) -> Found {
        let [states, weight, mut dweight] = inputs();
        let mut dstates = vec![f32::NAN; states.len()];
        let gradients = Gradients { states: &mut dstates, weight: &mut dweight };
        let head = Head { states: &states, weight: &weight, hidden: HIDDEN, labels };
        let totals = label_head(head, LOSS, chunk_rows, gradients).unwrap();
        Found { totals, states: bits(dstates), weight: bits(dweight) }
    }

    /// The head that multiplies every row, as a program without this would.
    fn by_all_rows(labels: &[i32]) -> Found {
        let [states, weight, mut dweight] = inputs();
        let mut totals = Totals::default();
        let mut logits = Vec::new();
        for row in 0..labels.len() {
            for token in 0..VOCAB {
                let of_row = &states[row * HIDDEN..(row + 1) * HIDDEN];
                logits.push(rows::dot(of_row, &weight[token * HIDDEN..(token + 1) * HIDDEN]));
            }
        }
        let mut stats = vec![0.0; CHANNELS * labels.len()];
        cross_entropy(&mut logits, VOCAB, labels, LOSS, 1.0, &mut stats).unwrap();
        totals.add(&stats);
        let mut dstates = vec![0.0; states.len()];
        for row in 0..labels.len() {
            for token in 0..VOCAB {
                let dlogit = logits[row * VOCAB + token];
                for column in 0..HIDDEN {
                    let (state, of_token) = (row * HIDDEN + column, token * HIDDEN + column);
                    dstates[state] += dlogit * weight[of_token];
                    dweight[of_token] += dlogit * states[state];
                }
            }
        }
        Found { totals, states: bits(dstates), weight: bits(dweight) }
    }

    #[test]
    fn equals_the_full_head_bit_for_bit() {
        for labels in [&LABELS, &[IGNORE; 9], &[1, 2, 3, 4, 5, 6, 7, 8, 9]] {
            let full = by_all_rows(labels);
            for chunk_rows in [1, 2, 3, 5, 9, 100] {
                assert_eq!(by_label_rows(labels, chunk_rows), full);
            }
        }
    }

    #[test]
    fn equals_candle() {
        let (states, weight) = (random(&[LABELS.len(), HIDDEN], 1), random(&[VOCAB, HIDDEN], 2));
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f64>().unwrap();
        let (mut dstates, mut dweight) =
            (vec![f64::NAN; states.elem_count()], vec![0.0; weight.elem_count()]);
        let gradients = Gradients { states: &mut dstates, weight: &mut dweight };
        let (state_values, weight_values) = (values(&states), values(&weight));
        let head = Head { states: &state_values, weight: &weight_values, hidden: HIDDEN, labels: &LABELS };
        let totals = label_head(head, LOSS, 2, gradients).unwrap();
        let labelled = LabelRows::new(&LABELS, IGNORE);
        let indices: Vec<u32> = labelled.rows().iter().map(|row| *row as u32).collect();
        let indices = Tensor::new(indices, &Device::Cpu).unwrap();
        let logits = states.index_select(&indices, 0).unwrap().matmul(&weight.t().unwrap()).unwrap();
        let labels: Vec<u32> = labelled.labels().iter().map(|label| *label as u32).collect();
        let mean = crate::cross_entropy(&logits, &labels).unwrap();
        let scaled = (mean * (0.25 * labels.len() as f64)).unwrap();
        assert!((totals.loss * 0.25 - scaled.to_scalar::<f64>().unwrap()).abs() < 1e-12);
        assert_eq!(totals.labels, 5);
        let grads = scaled.backward().unwrap();
        let tensor = |values: Vec<f64>| {
            let rows = values.len() / HIDDEN;
            Tensor::from_vec(values, (rows, HIDDEN), &Device::Cpu).unwrap()
        };
        assert_same(&tensor(dstates), grads.get(&states).unwrap(), 1e-12);
        assert_same(&tensor(dweight), grads.get(&weight).unwrap(), 1e-12);
    }

    #[test]
    fn label_rows_are_found_again() {
        let found = LabelRows::new(&LABELS, IGNORE);
        assert_eq!(found.rows(), [1, 2, 5, 6, 7]);
        assert_eq!(found.places(), [-1, 0, 1, -1, -1, 2, 3, 4, -1]);
        assert_eq!(found.labels(), [3, 36, 0, 3, 17]);
        assert_eq!(LabelRows::new(&[], IGNORE), LabelRows::default());
    }

    /// Of 4,096 tokens of Qwen2.5-1.5B. Full logits are 1.24 GB, and `F.cross_entropy` on them in bf16 has three such at
    /// one time at least: logits, their logarithmic softmax, and the gradient.
    #[test]
    fn memory_of_4096_rows() {
        let sizes =
            HeadSizes { rows: 4096, label_rows: 4096, hidden: 1536, vocab: 151_936, chunk_rows: 1024 };
        let full = 3 * 4096 * 151_936 * 2;
        let all_rows_labelled = sizes.bytes().unwrap();
        assert_eq!((full, all_rows_labelled), (3_733_979_136, 336_445_456));
        assert!(5 * all_rows_labelled < full);
        // As many labels as there are in a pack of the pre-training, in one chunk.
        let of_pack = HeadSizes { label_rows: 746, ..sizes }.bytes().unwrap();
        assert_eq!(of_pack, 231_306_240);
        assert!(16 * of_pack < full);
        assert_eq!(HeadSizes { hidden: usize::MAX, ..sizes }.bytes(), None);
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let refusal = |states: usize, weight: usize, dstates: usize, chunk_rows: usize, label: i32| {
            let (states, weight) = (vec![0f32; states], vec![0.0; weight]);
            let (mut dstates, mut dweight) = (vec![0.0; dstates], weight.clone());
            let gradients = Gradients { states: &mut dstates, weight: &mut dweight };
            let head = Head { states: &states, weight: &weight, hidden: 2, labels: &[IGNORE, label] };
            label_head(head, LOSS, chunk_rows, gradients).unwrap_err().to_string()
        };
        assert!(refusal(3, 6, 4, 1, 0).contains("states of 3 and a weight of 6"));
        assert!(refusal(4, 5, 4, 1, 0).contains("a weight of 5"));
        assert!(refusal(4, 6, 2, 1, 0).contains("gradients of [2, 6] elements"));
        assert!(refusal(4, 6, 4, 0, 0).contains("chunks of 0 rows"));
        assert!(refusal(4, 6, 4, 1, 3).contains("label 3 is not below"));
    }
}
