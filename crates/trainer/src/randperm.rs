//! `torch.randperm` on the CPU, so that the order of examples is the reference's.

/// MT19937, the generator of PyTorch's CPU streams.
#[derive(Debug)]
pub struct TorchGenerator {
    state: [u32; 624],
    index: usize,
}

impl TorchGenerator {
    /// `torch.Generator().manual_seed(seed)`; PyTorch too seeds with the low 32 bits.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let seed = seed as u32;
        let mut state = [0u32; 624];
        state[0] = seed;
        for i in 1..624 {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(i as u32);
        }
        Self { state, index: 624 }
    }

    fn next_u32(&mut self) -> u32 {
        if self.index == 624 {
            for i in 0..624 {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7fff_ffff);
                let odd = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + 397) % 624] ^ (y >> 1) ^ odd;
            }
            self.index = 0;
        }
        let mut y = self.state[self.index];
        self.index += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// The next permutation of `0..n` from this stream.
    ///
    /// Source: PyTorch `randperm_cpu`; the 64-bit draws it makes for `n >= 2^32 / 20` are not needed here.
    pub fn randperm(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in 0..n.saturating_sub(1) {
            let z = self.next_u32() as usize % (n - i);
            order.swap(i, i + z);
        }
        order
    }
}

/// The permutation `torch.randperm(n, generator=torch.Generator().manual_seed(seed))` of `0..n`.
#[must_use]
pub fn randperm(seed: u64, n: usize) -> Vec<usize> {
    TorchGenerator::new(seed).randperm(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_torch() {
        assert_eq!(randperm(7, 10), [5, 0, 3, 4, 1, 7, 9, 6, 8, 2]);
        assert_eq!(randperm(7, 1000)[..10], [615, 284, 599, 580, 347, 92, 383, 891, 452, 41]);
    }

    #[test]
    fn is_a_permutation() {
        for n in [0, 1, 2, 625, 5000] {
            let mut order = randperm(1, n);
            order.sort_unstable();
            assert!(order.into_iter().eq(0..n));
        }
    }
}
