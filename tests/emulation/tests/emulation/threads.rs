//! Indices, barriers, shuffles, atomics, asynchronous copies and conversions.

use crate::{address, address_mut, blocks, emulations, run};
use half::bf16;
use oqvl_emulation::{Buffer, Mode};
use oqvl_kernels::device::Grid;

fn counting(len: usize) -> Buffer<f32> {
    (0..len).map(|i| i as f32).collect()
}

#[test]
fn threads_know_where_they_are() {
    for emulation in emulations() {
        let grid = Grid { x: 3, y: 2, z: 4 };
        let mut indices = Buffer::<u32>::poisoned(3 * 2 * 4 * 64 * 8);
        let params = [address_mut(&mut indices)];
        run(&emulation, ("threads", "indices"), (64, 0), grid, params).unwrap();
        for (i, own) in indices.chunks_exact(8).enumerate() {
            let (block, thread) = (i as u32 / 64, i as u32 % 64);
            assert_eq!(own, [block % 3, block / 3 % 2, block / 6, thread, 64, 3, 2, 4]);
        }
    }
}

#[test]
fn barriers_let_a_block_exchange_values() {
    for emulation in emulations() {
        let input = counting(5 * 96);
        let mut output = Buffer::<f32>::poisoned(input.len() * 2);
        let params = [address(&input), address_mut(&mut output)];
        run(&emulation, ("threads", "reversed"), (96, 96 * 4), blocks(5), params).unwrap();
        for (i, pair) in output.chunks_exact(2).enumerate() {
            let value = (i / 96 * 96 + 95 - i % 96) as f32;
            assert_eq!(pair, [value, value + 1.0]);
        }
    }
}

#[test]
fn shuffles_bring_values_of_other_lanes() {
    for emulation in emulations() {
        let input = counting(64);
        let mut output = Buffer::<f32>::poisoned(128);
        let params = [address(&input), address_mut(&mut output)];
        run(&emulation, ("threads", "shuffled"), (64, 0), blocks(1), params).unwrap();
        for (i, pair) in output.chunks_exact(2).enumerate() {
            let warp = i / 32 * 32;
            let sum: usize = (warp..warp + 32).sum();
            // The last three lanes have nobody three lanes further.
            let further = if i % 32 < 29 { i + 3 } else { i };
            assert_eq!(pair, [sum as f32, further as f32], "thread {i}");
        }
    }
}

#[test]
fn warp_barriers_are_enough_for_a_warp() {
    for emulation in emulations() {
        let input = counting(64);
        let mut output = Buffer::<f32>::poisoned(64);
        let params = [address(&input), address_mut(&mut output)];
        run(&emulation, ("threads", "handed_round"), (64, 256), blocks(1), params).unwrap();
        for (i, value) in output.iter().enumerate() {
            assert_eq!(*value, (i / 32 * 32 + (i + 3) % 32) as f32);
        }
    }
}

#[test]
fn atomics_lose_nothing() {
    for emulation in emulations() {
        let mut floats: Buffer<f32> = [1.0f32].into_iter().collect();
        let mut signed: Buffer<i32> = [5i32].into_iter().collect();
        let mut unsigned: Buffer<u32> = [0u32].into_iter().collect();
        let params = [address_mut(&mut floats), address_mut(&mut signed), address_mut(&mut unsigned)];
        run(&emulation, ("threads", "counted"), (64, 4), blocks(7), params).unwrap();
        assert_eq!((floats[0], signed[0], unsigned[0]), (1.0 + 7.0 * 32.0, 5 - 2 * 7 * 64, 7 * 64));
    }
}

#[test]
fn copies_arrive_at_the_wait_that_covers_them_and_not_before() {
    for emulation in emulations() {
        let input = counting(32 * 8);
        let mut output = Buffer::<f32>::poisoned(32 * 4);
        let params = [address(&input), address_mut(&mut output), input.len() as u64];
        run(&emulation, ("threads", "copied"), (32, 32 * 48), blocks(1), params).unwrap();
        for (thread, values) in output.chunks_exact(4).enumerate() {
            let first = thread as f32 * 8.0;
            // The fourth came from far out of bounds, as did what is added to the third: nothing was read, and zeros were
            // written.
            assert_eq!(values, [first, first + 1.0, first + 5.0, 0.0]);
        }
    }
}

#[test]
fn floats_become_bf16_as_half_rounds_them() {
    let special = [
        0.0,
        f32::MIN_POSITIVE,
        f32::from_bits(1),
        f32::from_bits(0x0000_8000),
        f32::from_bits(0x0000_8001),
        f32::from_bits(0x0001_8000),
        f32::INFINITY,
        f32::MAX,
        f32::NAN,
        f32::from_bits(0x7f80_0001),
        f32::from_bits(0xffff_ffff),
        // Halfway between two bf16, above an even and above an odd one, and a bit more and less.
        f32::from_bits(0x3f80_8000),
        f32::from_bits(0x3f81_8000),
        f32::from_bits(0x3f80_8001),
        f32::from_bits(0x3f81_7fff),
        f32::from_bits(0x7f7f_8000),
    ];
    let everywhere = (0..16_368u32).map(|i| f32::from_bits(i.wrapping_mul(262_147)));
    let input: Buffer<f32> = special.into_iter().chain(everywhere).collect();
    assert!(input.len().is_multiple_of(32));
    for emulation in emulations() {
        let mut packed = Buffer::<u32>::poisoned(input.len());
        let mut powers = Buffer::<f32>::poisoned(input.len());
        let params = [address(&input), address_mut(&mut packed), address_mut(&mut powers)];
        let grid = blocks(input.len() as u32 / 32);
        run(&emulation, ("threads", "numbers"), (32, 0), grid, params).unwrap();
        for ((x, pair), power) in input.iter().zip(packed.iter()).zip(powers.iter()) {
            for (bits, expected) in [(*pair as u16, *x), ((*pair >> 16) as u16, -*x)] {
                if expected.is_nan() {
                    // What the instruction makes of any NaN.
                    assert_eq!(bits, 0x7fff);
                } else {
                    assert_eq!(bits, bf16::from_f32(expected).to_bits(), "{expected:e}");
                }
            }
            check_power(*x, *power);
        }
    }
}

/// Two units in the last place, and no subnormal numbers.
fn check_power(x: f32, power: f32) {
    let exact = f64::from(x).exp2();
    if x.is_nan() {
        assert!(power.is_nan());
    } else if exact < f64::from(f32::MIN_POSITIVE) * (1.0 - 1e-7) {
        assert_eq!(power, 0.0, "2^{x:e}");
    } else if exact > f64::from(f32::MAX) * (1.0 + 1e-7) {
        assert_eq!(power, f32::INFINITY, "2^{x:e}");
    } else {
        let unit = f64::from(f32::EPSILON) * exact;
        assert!((f64::from(power) - exact).abs() <= 2.0 * unit, "2^{x:e} is {power:e} and not {exact:e}");
    }
}

/// Not a bound, but a hang or a switch a hundred times slower would be seen.
#[test]
fn many_barriers_take_little_time() {
    for emulation in emulations().into_iter().filter(|emulation| emulation.mode() == Mode::Plain) {
        let start = std::time::Instant::now();
        run(&emulation, ("threads", "waiting"), (128, 0), blocks(4), [10_000]).unwrap();
        let each = start.elapsed().as_secs_f64() / (4.0 * 10_000.0 * 128.0);
        eprintln!("a barrier takes {:.0} ns for each thread", each * 1e9);
        assert!(each < 5e-6, "{each}");
    }
}
