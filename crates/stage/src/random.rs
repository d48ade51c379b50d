//! Random streams: each is a pure function of what it is for.

use rand_chacha::rand_core::SeedableRng;

/// The generator behind every random stream.
pub type Rng = rand_chacha::ChaCha8Rng;

/// The random stream of one purpose. Two streams with different arguments are independent, so the order in which
/// threads draw never matters.
///
/// `stage` names the stage or any other purpose; `rank`, `epoch` and `index` are what the purpose needs, else 0.
#[must_use]
pub fn stream(seed: u64, stage: &str, rank: u64, epoch: u64, index: u64) -> Rng {
    let mut key = Vec::with_capacity(stage.len() + 33);
    for number in [seed, rank, epoch, index] {
        key.extend_from_slice(&number.to_le_bytes());
    }
    key.extend_from_slice(stage.as_bytes());
    Rng::from_seed(*blake3::hash(&key).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::rand_core::RngCore;

    #[test]
    fn a_stream_is_a_function_of_its_arguments() {
        let first =
            |seed, stage: &str, rank, epoch, index| stream(seed, stage, rank, epoch, index).next_u64();
        let base = first(7, "trainer", 0, 0, 0);
        assert_eq!(base, first(7, "trainer", 0, 0, 0));
        for other in [
            first(8, "trainer", 0, 0, 0),
            first(7, "sft", 0, 0, 0),
            first(7, "trainer", 1, 0, 0),
            first(7, "trainer", 0, 1, 0),
            first(7, "trainer", 0, 0, 1),
        ] {
            assert_ne!(base, other);
        }
    }
}
