//! `ldmatrix` and `mma` against the fragments of the PTX ISA manual, written out here a second time.

use crate::{address, address_mut, blocks, emulations, run};
use half::bf16;
use oqvl_emulation::Buffer;
use rand::{Rng as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

const LANES: usize = 32;

/// Which row and column an element of `a` is: `register` 0 to 3, `half` 0 for its lower 16 bits.
fn place_in_a(lane: usize, register: usize, half: usize) -> (usize, usize) {
    let row = lane / 4 + if register % 2 == 1 { 8 } else { 0 };
    let column = lane % 4 * 2 + half + if register >= 2 { 8 } else { 0 };
    (row, column)
}

/// The same of `b`, whose register 1 has the rows from 8.
fn place_in_b(lane: usize, register: usize, half: usize) -> (usize, usize) {
    (lane % 4 * 2 + half + 8 * register, lane / 4)
}

/// The same of `c`: four floats.
fn place_in_c(lane: usize, register: usize) -> (usize, usize) {
    (lane / 4 + if register >= 2 { 8 } else { 0 }, lane % 4 * 2 + register % 2)
}

#[test]
fn places_are_those_of_the_manual() {
    // Read off the manual's figures for .bf16: lane, register and half of single elements.
    assert_eq!(place_in_a(0, 0, 0), (0, 0));
    assert_eq!(place_in_a(0, 0, 1), (0, 1));
    assert_eq!(place_in_a(1, 0, 0), (0, 2));
    assert_eq!(place_in_a(3, 2, 1), (0, 15));
    assert_eq!(place_in_a(4, 0, 0), (1, 0));
    assert_eq!(place_in_a(0, 1, 0), (8, 0));
    assert_eq!(place_in_a(31, 3, 1), (15, 15));
    assert_eq!(place_in_b(0, 0, 1), (1, 0));
    assert_eq!(place_in_b(1, 0, 0), (2, 0));
    assert_eq!(place_in_b(4, 0, 0), (0, 1));
    assert_eq!(place_in_b(31, 1, 1), (15, 7));
    assert_eq!(place_in_c(0, 1), (0, 1));
    assert_eq!(place_in_c(5, 0), (1, 2));
    assert_eq!(place_in_c(31, 3), (15, 7));
}

#[test]
fn ldmatrix_spreads_rows_over_lanes() {
    // Element: matrix, row and column as hexadecimal digits.
    let rows: Buffer<u16> = (0..32u16 * 8).map(|i| (i / 64) << 8 | (i / 8 % 8) << 4 | (i % 8)).collect();
    for emulation in emulations() {
        for transposed in [false, true] {
            let mut registers = Buffer::<u32>::poisoned(LANES * 4);
            let params = [address(&rows), address_mut(&mut registers), u64::from(transposed)];
            run(&emulation, ("fragments", "load_fragments"), (32, 512), blocks(1), params).unwrap();
            for (i, register) in registers.iter().enumerate() {
                let (lane, matrix) = (i / 4, i % 4);
                let (major, minor) = (lane / 4, lane % 4 * 2);
                let element = |minor: usize| {
                    let (row, column) = if transposed { (minor, major) } else { (major, minor) };
                    (matrix << 8 | row << 4 | column) as u32
                };
                assert_eq!(*register, element(minor + 1) << 16 | element(minor), "lane {lane}");
            }
            // Three by hand: lane 0, lane 6 (row 1, columns 4 and 5) and lane 31, of matrices 0, 2 and 3.
            let by_hand = [registers[0], registers[6 * 4 + 2], registers[31 * 4 + 3]];
            let expected = if transposed {
                [0x0010_0000, 0x0251_0241, 0x0377_0367]
            } else {
                [0x0001_0000, 0x0215_0214, 0x0377_0376]
            };
            assert_eq!(by_hand, expected);
        }
    }
}

/// Random matrices of small whole numbers, whose products are exact in any order of summation.
struct Matrices {
    a: [[f32; 16]; 16],
    b: [[f32; 8]; 16],
    c: [[f32; 8]; 16],
}

impl Matrices {
    fn new(seed: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let mut number = || random.random_range(-100..=100i8) as f32;
        Self {
            a: std::array::from_fn(|_| std::array::from_fn(|_| number())),
            b: std::array::from_fn(|_| std::array::from_fn(|_| number())),
            c: std::array::from_fn(|_| std::array::from_fn(|_| number())),
        }
    }

    fn product(&self, repeats: usize) -> [[f32; 8]; 16] {
        std::array::from_fn(|row| {
            std::array::from_fn(|column| {
                let sum: f32 = (0..16).map(|k| self.a[row][k] * self.b[k][column]).sum();
                self.c[row][column] + repeats as f32 * sum
            })
        })
    }

    fn registers_of_a(&self) -> Buffer<u32> {
        let element = |lane, register, half| {
            let (row, column) = place_in_a(lane, register, half);
            u32::from(bf16::from_f32(self.a[row][column]).to_bits())
        };
        (0..LANES * 4).map(|i| element(i / 4, i % 4, 1) << 16 | element(i / 4, i % 4, 0)).collect()
    }

    fn registers_of_b(&self) -> Buffer<u32> {
        let element = |lane, register, half| {
            let (row, column) = place_in_b(lane, register, half);
            u32::from(bf16::from_f32(self.b[row][column]).to_bits())
        };
        (0..LANES * 2).map(|i| element(i / 2, i % 2, 1) << 16 | element(i / 2, i % 2, 0)).collect()
    }

    fn registers_of_c(of: &[[f32; 8]; 16]) -> Buffer<f32> {
        let places = (0..LANES * 4).map(|i| place_in_c(i / 4, i % 4));
        places.map(|(row, column)| of[row][column]).collect()
    }
}

#[test]
fn mma_multiplies_fragments() {
    for emulation in emulations() {
        for seed in 0..8 {
            let matrices = Matrices::new(seed);
            let (a, b) = (matrices.registers_of_a(), matrices.registers_of_b());
            let mut c = Matrices::registers_of_c(&matrices.c);
            let params = [address(&a), address(&b), address_mut(&mut c), seed];
            run(&emulation, ("fragments", "multiply_fragments"), (32, 0), blocks(1), params).unwrap();
            assert_eq!(c[..], Matrices::registers_of_c(&matrices.product(seed as usize))[..]);
        }
    }
}

#[test]
fn mma_spreads_nan_and_infinity_like_a_product() {
    for emulation in emulations() {
        let mut matrices = Matrices::new(1);
        matrices.a[3][5] = f32::NAN;
        matrices.a[9][0] = f32::INFINITY;
        let (a, b) = (matrices.registers_of_a(), matrices.registers_of_b());
        let mut c = Matrices::registers_of_c(&matrices.c);
        let params = [address(&a), address(&b), address_mut(&mut c), 1];
        run(&emulation, ("fragments", "multiply_fragments"), (32, 0), blocks(1), params).unwrap();
        for (i, value) in c.iter().enumerate() {
            let (row, _) = place_in_c(i / 4, i % 4);
            assert_eq!((value.is_nan(), value.is_infinite()), (row == 3, row == 9), "row {row}");
        }
    }
}

#[test]
fn a_kernel_of_copies_ldmatrix_and_mma_multiplies_matrices() {
    let num_blocks = 3;
    for emulation in emulations() {
        let mut random = ChaCha8Rng::seed_from_u64(5);
        let mut numbers = |count: usize| -> Buffer<bf16> {
            (0..count).map(|_| bf16::from_f32(f32::from(random.random_range(-100..=100i8)))).collect()
        };
        let (a, b) = (numbers(num_blocks * 32 * 16), numbers(16 * 8));
        let mut c = Buffer::<f32>::poisoned(num_blocks * 32 * 8);
        let params = [address(&a), address(&b), address_mut(&mut c)];
        let shared_memory = (32 * 16 + 16 * 8) * 2;
        run(&emulation, ("fragments", "product"), (64, shared_memory), blocks(num_blocks as u32), params)
            .unwrap();
        for (i, value) in c.iter().enumerate() {
            let (row, column) = (i / 8, i % 8);
            let expected: f32 = (0..16).map(|k| a[row * 16 + k].to_f32() * b[k * 8 + column].to_f32()).sum();
            assert_eq!(*value, expected, "row {row}, column {column}");
        }
    }
}
