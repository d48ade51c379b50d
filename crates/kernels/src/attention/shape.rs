//! What an attention call is about: heads, lengths, mask; and where its tensors lie.

use super::sys::Strides;
use candle_core::{Result, bail};

/// Which keys a query sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Itself and the keys before it; with more keys than queries, the last query sees all keys.
    Causal,
    /// All keys.
    Full,
}

/// Where packed sequences begin and end: `[0, end of the first, .., end of the last]`, as flash-attention's `cu_seqlens`.
/// Sequences may be empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CuSeqlens(Vec<i32>);

impl CuSeqlens {
    /// Checks the boundaries.
    ///
    /// # Errors
    /// If they do not begin at 0 or are not in order.
    pub fn new(boundaries: Vec<i32>) -> Result<Self> {
        if boundaries.first() != Some(&0) {
            bail!("cu_seqlens begins with {:?}, not with 0", boundaries.first());
        }
        if let Some(at) = boundaries.windows(2).position(|pair| pair[0] > pair[1]) {
            bail!("cu_seqlens falls from {} to {} at entry {}", boundaries[at], boundaries[at + 1], at + 1);
        }
        Ok(Self(boundaries))
    }

    /// The boundaries, one more than there are sequences.
    pub fn boundaries(&self) -> &[i32] {
        &self.0
    }

    /// Number of sequences.
    pub fn num_sequences(&self) -> usize {
        self.0.len() - 1
    }

    /// Rows of all sequences together.
    pub fn num_rows(&self) -> usize {
        self.0[self.0.len() - 1] as usize
    }

    /// Rows of the longest sequence.
    pub fn max_len(&self) -> usize {
        self.0.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0)
    }
}

/// Which rows attend to each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sequences {
    /// Sequences of one length, each in a batch entry of its own.
    Batch {
        /// Batch entries.
        batch: usize,
        /// Queries of each.
        q_len: usize,
        /// Keys of each.
        kv_len: usize,
    },
    /// Sequences one after another in the rows of a single batch entry, none of which sees another.
    Packed(CuSeqlens),
}

/// The sizes of an attention call.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// Query heads, a multiple of the key heads; consecutive ones share a key head.
    pub num_heads: usize,
    /// Key (and value) heads.
    pub num_kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// What scores are multiplied by before the softmax.
    pub scale: f64,
    /// Which keys a query sees.
    pub mask: Mask,
    /// Which rows attend to each other.
    pub sequences: Sequences,
}

/// One sequence of a call: its batch entry, its first row there, and its lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sequence {
    pub(super) batch: usize,
    pub(super) start: usize,
    pub(super) q_len: usize,
    pub(super) kv_len: usize,
}

impl Shape {
    /// Scores scaled by `1 / sqrt(head_dim)`.
    ///
    /// # Errors
    /// If the heads do not fit together, or the mask is causal and there are fewer keys than queries.
    pub fn new(
        (num_heads, num_kv_heads): (usize, usize),
        head_dim: usize,
        mask: Mask,
        sequences: Sequences,
    ) -> Result<Self> {
        let shape = Self {
            num_heads,
            num_kv_heads,
            head_dim,
            scale: (head_dim as f64).sqrt().recip(),
            mask,
            sequences,
        };
        shape.check()?;
        Ok(shape)
    }

    /// Refuses what cannot be computed.
    pub(super) fn check(&self) -> Result<()> {
        let Self { num_heads, num_kv_heads, head_dim, .. } = *self;
        if num_kv_heads == 0 || !num_heads.is_multiple_of(num_kv_heads) || head_dim == 0 {
            bail!(
                "attention: {num_heads} query heads over {num_kv_heads} key heads of {head_dim} channels do not fit together"
            );
        }
        match self.sequences {
            Sequences::Batch { q_len, kv_len, .. } if self.mask == Mask::Causal && kv_len < q_len => {
                bail!("causal attention: {q_len} queries but only {kv_len} keys")
            }
            _ => Ok(()),
        }
    }

    /// Query heads to a key head.
    pub(super) fn group(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// Batch entries.
    pub(super) fn batch(&self) -> usize {
        match &self.sequences {
            Sequences::Batch { batch, .. } => *batch,
            Sequences::Packed(_) => 1,
        }
    }

    /// Queries of a batch entry.
    pub(super) fn q_rows(&self) -> usize {
        match &self.sequences {
            Sequences::Batch { q_len, .. } => *q_len,
            Sequences::Packed(packed) => packed.num_rows(),
        }
    }

    /// Keys of a batch entry.
    pub(super) fn kv_rows(&self) -> usize {
        match &self.sequences {
            Sequences::Batch { kv_len, .. } => *kv_len,
            Sequences::Packed(packed) => packed.num_rows(),
        }
    }

    /// Numbers of which there is one for each query of each head, as the log-sum-exp: `(batch, heads, queries)`.
    ///
    /// # Errors
    /// If there are more than can be counted.
    pub fn num_query_rows(&self) -> Result<usize> {
        product(&[self.batch(), self.num_heads, self.q_rows()])
    }

    /// Every sequence.
    pub(super) fn each_sequence(&self) -> Vec<Sequence> {
        match &self.sequences {
            Sequences::Batch { batch, q_len, kv_len } => (0..*batch)
                .map(|batch| Sequence { batch, start: 0, q_len: *q_len, kv_len: *kv_len })
                .collect(),
            Sequences::Packed(packed) => packed
                .boundaries()
                .windows(2)
                .map(|pair| {
                    let len = (pair[1] - pair[0]) as usize;
                    Sequence { batch: 0, start: pair[0] as usize, q_len: len, kv_len: len }
                })
                .collect(),
        }
    }

    /// Checks that a tensor of `heads` heads and `rows` rows a batch entry lies within `len` elements.
    pub(super) fn check_extent(
        &self,
        what: &str,
        (heads, rows): (usize, usize),
        strides: Strides,
        len: usize,
    ) -> Result<()> {
        let batch = self.batch();
        if batch == 0 || heads == 0 || rows == 0 {
            return Ok(());
        }
        let needed = [(batch, strides.batch), (heads, strides.head), (rows, strides.row)]
            .into_iter()
            .try_fold(self.head_dim as i64, |sum, (count, stride)| {
                let stride = if stride < 0 { None } else { Some(stride) };
                sum.checked_add(stride?.checked_mul(i64::try_from(count - 1).ok()?)?)
            });
        match needed {
            Some(needed) if needed as u64 <= len as u64 => Ok(()),
            _ => bail!(
                "attention: {what} has {len} elements, too few for {batch} x {heads} heads x {rows} rows x {} channels \
                 with {strides:?}",
                self.head_dim
            ),
        }
    }

    /// Checks the same of a tensor that is written, and that no two of its elements are one.
    pub(super) fn check_output(
        &self,
        what: &str,
        (heads, rows): (usize, usize),
        strides: Strides,
        len: usize,
    ) -> Result<()> {
        self.check_extent(what, (heads, rows), strides, len)?;
        let mut axes = [(strides.batch, self.batch()), (strides.head, heads), (strides.row, rows)];
        if axes.iter().any(|(_, count)| *count == 0) {
            return Ok(());
        }
        axes.sort_unstable();
        let mut extent = self.head_dim as i64;
        for (stride, count) in axes.into_iter().filter(|(_, count)| *count > 1) {
            if stride < extent {
                bail!("attention: the rows of {what} overlap with {strides:?}");
            }
            extent += stride * (count as i64 - 1);
        }
        Ok(())
    }
}

impl Strides {
    /// Of a contiguous tensor `(batch, heads, rows, head_dim)`.
    pub fn heads_first(heads: usize, rows: usize, head_dim: usize) -> Self {
        let [batch, head, row] = [heads * rows * head_dim, rows * head_dim, head_dim].map(|n| n as i64);
        Self { batch, head, row }
    }

    /// Of a contiguous tensor `(batch, rows, heads, head_dim)`, or `(rows, heads, head_dim)`.
    pub fn rows_first(rows: usize, heads: usize, head_dim: usize) -> Self {
        let [batch, head, row] = [rows * heads * head_dim, head_dim, heads * head_dim].map(|n| n as i64);
        Self { batch, head, row }
    }
}

/// A product of sizes.
pub(super) fn product(sizes: &[usize]) -> Result<usize> {
    match sizes.iter().try_fold(1usize, |product, size| product.checked_mul(*size)) {
        Some(product) => Ok(product),
        None => bail!("attention: a tensor of {sizes:?} has more elements than can be counted"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boundaries_are_checked() {
        for (boundaries, expected) in
            [(vec![], "not with 0"), (vec![1, 2], "not with 0"), (vec![0, 3, 2], "falls from 3 to 2")]
        {
            let error = CuSeqlens::new(boundaries).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let packed = CuSeqlens::new(vec![0, 3, 3, 8]).unwrap();
        assert_eq!((packed.num_sequences(), packed.num_rows(), packed.max_len()), (3, 8, 5));
        assert_eq!(CuSeqlens::new(vec![0]).unwrap().max_len(), 0);
    }

    #[test]
    fn tensors_that_are_too_short_or_fold_onto_themselves_are_refused() {
        let sequences = Sequences::Batch { batch: 2, q_len: 3, kv_len: 3 };
        let shape = Shape::new((2, 1), 4, Mask::Full, sequences).unwrap();
        let dense = Strides::heads_first(2, 3, 4);
        assert!(shape.check_output("q", (2, 3), dense, 48).is_ok());
        assert!(shape.check_output("q", (2, 3), Strides::rows_first(3, 2, 4), 48).is_ok());
        let error = shape.check_extent("q", (2, 3), dense, 47).unwrap_err().to_string();
        assert!(error.contains("q has 47 elements"), "{error}");
        // The same row again and again may be read, not written.
        let folded = Strides { row: 0, ..dense };
        assert!(shape.check_extent("q", (2, 3), folded, 48).is_ok());
        assert!(shape.check_output("q", (2, 3), folded, 48).is_err());
        for strides in [Strides { batch: -24, ..dense }, Strides { head: i64::MAX, ..dense }] {
            assert!(shape.check_extent("q", (2, 3), strides, usize::MAX).is_err());
        }
        assert!(product(&[1 << 40, 1 << 40]).is_err());
    }
}
