//! Changing an input a little, or a lot.

use rand::Rng;
use rand::seq::IndexedRandom as _;
use rand_chacha::ChaCha8Rng;

/// No input grows beyond this.
pub(crate) const MAX_INPUT_BYTES: usize = 1 << 17;

/// Numbers at which programs go wrong.
const INTERESTING: [u64; 22] = [
    0,
    1,
    2,
    7,
    8,
    0x7f,
    0x80,
    0xff,
    0x100,
    0x1ff,
    0x200,
    0x7fff,
    0x8000,
    0xffff,
    0x1_0000,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_fffe,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
];

/// A few changes in a row; `other` is a second input to take pieces from, `words` what the format's files hold.
pub(crate) fn mutate(input: &mut Vec<u8>, other: &[u8], words: &[&[u8]], random: &mut ChaCha8Rng) {
    // Mostly one or two: more, and hardly any input gets past the first check.
    let num_changes = 1 << random.random_range(0..4_u32).min(random.random_range(0..4));
    for _ in 0..num_changes {
        change(input, other, words, random);
    }
    input.truncate(MAX_INPUT_BYTES);
}

fn change(input: &mut Vec<u8>, other: &[u8], words: &[&[u8]], random: &mut ChaCha8Rng) {
    if input.is_empty() {
        input.extend_from_slice(other);
        return;
    }
    let at = random.random_range(0..input.len());
    match random.random_range(0..12_u32) {
        0 => input[at] ^= 1 << random.random_range(0..8_u32),
        1 => input[at] = random.random(),
        2 => write_number(input, at, random),
        3 => add_to_number(input, at, random),
        4 => input.truncate(at),
        5 => drop(input.drain(at..piece_end(at, input.len(), random))),
        6 => {
            let end = piece_end(at, input.len(), random);
            let piece = input[at..end].to_vec();
            let to = random.random_range(0..=input.len());
            input.splice(to..to, piece);
        }
        7 => {
            let piece: Vec<u8> = (0..random.random_range(1..32_usize)).map(|_| random.random()).collect();
            input.splice(at..at, piece);
        }
        8 if !words.is_empty() => {
            let word = *words.choose(random).expect("there is one");
            let end = (at + word.len()).min(input.len());
            let range = if random.random() { at..end } else { at..at };
            input.splice(range, word.iter().copied());
        }
        9 if !other.is_empty() => {
            let from = random.random_range(0..other.len());
            let piece = &other[from..piece_end(from, other.len(), random)];
            let end = (at + piece.len()).min(input.len());
            let range = if random.random() { at..end } else { at..at };
            input.splice(range, piece.iter().copied());
        }
        10 => move_block(input, random),
        _ => {
            let end = piece_end(at, input.len(), random);
            let byte = *[0, b'0', b' ', 0xff].choose(random).expect("there are four");
            input[at..end].fill(byte);
        }
    }
}

/// Where a piece that starts at `start` ends: mostly soon.
fn piece_end(start: usize, length: usize, random: &mut ChaCha8Rng) -> usize {
    let longest = 1_usize << random.random_range(0..12_u32);
    (start + random.random_range(1..=longest)).min(length)
}

fn write_number(input: &mut [u8], at: usize, random: &mut ChaCha8Rng) {
    let number = *INTERESTING.choose(random).expect("there are some");
    let width = 1_usize << random.random_range(0..4_u32);
    let little: bool = random.random();
    put(input, at, number, width, little);
}

fn add_to_number(input: &mut [u8], at: usize, random: &mut ChaCha8Rng) {
    let width = (1_usize << random.random_range(0..4_u32)).min(input.len() - at);
    let little: bool = random.random();
    let bytes = &input[at..at + width];
    let fold = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
    let number = if little { bytes.iter().rev().fold(0, fold) } else { bytes.iter().fold(0, fold) };
    let step = random.random_range(1..36_u64);
    let number = if random.random() { number.wrapping_add(step) } else { number.wrapping_sub(step) };
    put(input, at, number, width, little);
}

fn put(input: &mut [u8], at: usize, number: u64, width: usize, little: bool) {
    let width = width.min(input.len() - at);
    for place in 0..width {
        let shift = if little { place } else { width - 1 - place } * 8;
        input[at + place] = (number >> shift) as u8;
    }
}

/// Copies or removes whole blocks of 512 bytes, the unit of tars.
fn move_block(input: &mut Vec<u8>, random: &mut ChaCha8Rng) {
    const BLOCK: usize = 512;
    let num_blocks = input.len() / BLOCK;
    if num_blocks == 0 {
        return;
    }
    let from = random.random_range(0..num_blocks) * BLOCK;
    let to = random.random_range(0..=num_blocks) * BLOCK;
    let block = input[from..from + BLOCK].to_vec();
    if random.random_range(0..3_u32) == 0 {
        input.drain(from..from + BLOCK);
    } else {
        input.splice(to..to, block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng as _;

    #[test]
    fn the_same_seed_makes_the_same_changes() {
        let make = || {
            let mut random = ChaCha8Rng::seed_from_u64(3);
            let mut input = vec![7; 2000];
            for _ in 0..200 {
                mutate(&mut input, b"other", &[b"word"], &mut random);
            }
            input
        };
        let input = make();
        assert_eq!(input, make());
        assert_ne!(input, vec![7; 2000]);
        assert!(input.len() <= MAX_INPUT_BYTES);
    }

    #[test]
    fn numbers_are_put_in_either_order() {
        let mut bytes = [0; 6];
        put(&mut bytes, 1, 0x0102, 2, true);
        put(&mut bytes, 3, 0x0102_0304, 4, false);
        assert_eq!(bytes, [0, 2, 1, 2, 3, 4]);
    }
}
