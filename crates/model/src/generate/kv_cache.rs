//! Keys and values of a sequence that grows.

use candle_core::{Result, Tensor};
use oqvl_kernels::{Mask, attention};

/// Positions that room is made for at once.
const BLOCK: usize = 64;

/// Keys and values of one sequence, layer by layer.
///
/// Every key head has its own tensor with room to grow: what is filled of it is contiguous, so that a step writes one
/// position and attention reads the others where they lie.
#[derive(Debug, Default)]
pub(crate) struct KvCache {
    layers: Vec<Vec<Head>>,
    len: usize,
    room: usize,
}

/// `(1, 1, capacity, head_dim)` each.
#[derive(Debug)]
struct Head {
    keys: Tensor,
    values: Tensor,
}

impl KvCache {
    /// An empty cache that expects `room` positions.
    pub(crate) fn with_room(room: usize) -> Self {
        Self { layers: Vec::new(), len: 0, room }
    }

    /// Positions read.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Forgets all positions from `len` on.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// A cache with the same content that expects `room` positions.
    pub(crate) fn fork(&self, room: usize) -> Result<Self> {
        let copy = |tensor: &Tensor| grown(tensor, self.len, room.max(self.len));
        let fork_head = |head: &Head| Ok(Head { keys: copy(&head.keys)?, values: copy(&head.values)? });
        let layers = self.layers.iter().map(|heads| heads.iter().map(fork_head).collect());
        Ok(Self { layers: layers.collect::<Result<_>>()?, len: self.len, room })
    }

    /// Writes the keys and values of the next positions in one layer, `(1, kv_heads, n, head_dim)` each; they count once
    /// [`advance`](Self::advance) says so.
    pub(crate) fn write(&mut self, layer_idx: usize, keys: &Tensor, values: &Tensor) -> Result<()> {
        let (_, num_heads, n, head_dim) = keys.dims4()?;
        if self.layers.len() == layer_idx {
            let capacity = self.room.max(self.len + n).max(1);
            let empty = || Tensor::zeros((1, 1, capacity, head_dim), keys.dtype(), keys.device());
            let head = |_| Ok(Head { keys: empty()?, values: empty()? });
            self.layers.push((0..num_heads).map(head).collect::<Result<_>>()?);
        }
        for (head_idx, head) in self.layers[layer_idx].iter_mut().enumerate() {
            let capacity = head.keys.dim(2)?;
            if self.len + n > capacity {
                // Growing by a share of itself: what is copied in all stays in proportion to the length.
                let capacity = (self.len + n).max(capacity + capacity / 2).next_multiple_of(BLOCK);
                head.keys = grown(&head.keys, self.len, capacity)?;
                head.values = grown(&head.values, self.len, capacity)?;
            }
            // forward only: a cache serves generation, which learns nothing.
            head.keys.slice_set(&keys.narrow(1, head_idx, 1)?.contiguous()?, 2, self.len)?;
            // forward only: as above.
            head.values.slice_set(&values.narrow(1, head_idx, 1)?.contiguous()?, 2, self.len)?;
        }
        Ok(())
    }

    /// Attention of the newest positions, whose keys have just been written: `q` `(1, heads, n, head_dim)` to the same
    /// shape. Position `i` of `n` sees all before it and itself.
    pub(crate) fn attend(&self, layer_idx: usize, q: &Tensor) -> Result<Tensor> {
        let (_, num_heads, n, head_dim) = q.dims4()?;
        let heads = &self.layers[layer_idx];
        let group = num_heads / heads.len();
        let mut mixed = Vec::with_capacity(heads.len());
        for (head_idx, head) in heads.iter().enumerate() {
            let keys = head.keys.narrow(2, 0, self.len + n)?;
            let values = head.values.narrow(2, 0, self.len + n)?;
            let q = q.narrow(1, head_idx * group, group)?;
            mixed.push(match n {
                // The heads of a group ask one and the same matrix of keys: one product instead of one per head.
                1 => {
                    let q = q.reshape((1, 1, group, head_dim))?;
                    attention(&q, &keys, &values, Mask::Full)?.reshape((1, group, 1, head_dim))?
                }
                _ => attention(&q, &keys, &values, Mask::Causal)?,
            });
        }
        match <[Tensor; 1]>::try_from(mixed) {
            Ok([only]) => Ok(only),
            Err(mixed) => Tensor::cat(&mixed, 1),
        }
    }

    /// The positions written to every layer since the last call are part of the sequence now.
    pub(crate) fn advance(&mut self, n: usize) {
        self.len += n;
    }
}

/// The first `len` positions of `(1, 1, _, head_dim)` in a tensor of their own with room for `capacity`.
fn grown(tensor: &Tensor, len: usize, capacity: usize) -> Result<Tensor> {
    let larger = Tensor::zeros((1, 1, capacity.max(1), tensor.dim(3)?), tensor.dtype(), tensor.device())?;
    if len > 0 {
        // forward only: a cache serves generation, which learns nothing.
        larger.slice_set(&tensor.narrow(2, 0, len)?, 2, 0)?;
    }
    Ok(larger)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn random(dims: &[usize]) -> Tensor {
        Tensor::randn(0f32, 1.0, dims, &Device::Cpu).unwrap()
    }

    #[test]
    fn attention_over_the_cache_is_attention_over_the_whole() {
        for (heads, kv_heads) in [(2, 2), (6, 2), (3, 1)] {
            let len = 2 * BLOCK + 3;
            let (q, k, v) =
                (random(&[1, heads, len, 4]), random(&[1, kv_heads, len, 4]), random(&[1, kv_heads, len, 4]));
            let whole = attention(&q, &k, &v, Mask::Causal).unwrap();
            let mut cache = KvCache::with_room(5);
            let mut from = 0;
            for n in [3, 1, 1, BLOCK, 1, len - BLOCK - 6] {
                let part = |tensor: &Tensor| tensor.narrow(2, from, n).unwrap().contiguous().unwrap();
                // A copy goes its own way.
                let mut copy = cache.fork(2).unwrap();
                copy.write(0, &random(&[1, kv_heads, n, 4]), &part(&v)).unwrap();
                copy.advance(n);
                cache.write(0, &part(&k), &part(&v)).unwrap();
                let mixed = cache.attend(0, &part(&q)).unwrap();
                cache.advance(n);
                let difference = (mixed - part(&whole)).unwrap().abs().unwrap().max_all().unwrap();
                assert!(difference.to_scalar::<f32>().unwrap() < 1e-5, "{heads} {kv_heads} {from}");
                from += n;
            }
            assert_eq!(cache.len(), len);
            cache.truncate(7);
            assert_eq!(cache.len(), 7);
        }
    }
}
