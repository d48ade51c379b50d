//! Every planted fault is found, in the mode that is there to find it, with words that say where.

use crate::{CHILD, address, address_mut, blocks, emulation, run, under_address_sanitizer};
use oqvl_emulation::{Buffer, Mode};
use oqvl_kernels::device::Grid;

/// Runs a kernel of `faults.cu` with 64 elements of input and output; the text of its error, or the output.
fn outcome(
    mode: Mode,
    kernel: &str,
    (threads, shared_memory): (u32, u32),
    num_blocks: u32,
) -> Option<Result<Buffer<f32>, String>> {
    let emulation = emulation(mode)?;
    let input: Buffer<f32> = (0..64).map(|i| i as f32).collect();
    let mut output = Buffer::<f32>::poisoned(64);
    let params = [address(&input), address_mut(&mut output)];
    let ran = run(&emulation, ("faults", kernel), (threads, shared_memory), blocks(num_blocks), params);
    Some(ran.map(|()| output).map_err(|error| error.to_string()))
}

/// The fault is an error that says all of `words`.
fn is_found(mode: Mode, kernel: &str, block: (u32, u32), num_blocks: u32, words: &[&str]) {
    let Some(outcome) = outcome(mode, kernel, block, num_blocks) else { return };
    let text = outcome.expect_err(kernel);
    assert!(text.starts_with(&format!("kernel {kernel}")), "{text}");
    words.iter().for_each(|word| assert!(text.contains(word), "`{word}` is not in: {text}"));
    // For a person who reads the log of the tests.
    eprintln!("{text}");
}

#[test]
fn races_in_shared_memory_are_found() {
    let block = (64, 256);
    is_found(
        Mode::Race,
        "no_block_barrier",
        block,
        1,
        &["block (0, 0, 0)", "of shared memory", "no barrier", "thread 0 ", "thread 1 ", "byte 4 "],
    );
    is_found(Mode::Race, "warp_barrier_between_warps", block, 1, &["thread 32 writes what thread 0 read"]);
    is_found(
        Mode::Race,
        "no_barrier_before_writing_again",
        block,
        1,
        &["reads what thread 63 wrote", "byte 252 "],
    );
    is_found(Mode::Race, "no_warp_barrier", (32, 128), 1, &["of shared memory", "thread 31 reads"]);
    is_found(Mode::Race, "no_barrier_before_ldmatrix", (32, 512), 1, &["of shared memory", "reads what"]);
}

#[test]
fn a_race_is_told_with_the_line_of_the_source() {
    let has_addr2line = std::process::Command::new("addr2line").arg("--version").output().is_ok();
    if has_addr2line {
        is_found(Mode::Race, "no_block_barrier", (64, 256), 1, &["(faults.cu:"]);
    }
}

#[test]
fn forgotten_waits_and_barriers_of_copies_are_found() {
    is_found(Mode::Race, "no_copy_wait", (32, 128), 1, &["cp_async under way", "of shared memory"]);
    is_found(Mode::Race, "no_barrier_after_copy_wait", (32, 128), 1, &["of shared memory", "thread"]);
    // Without a check for races, the poison shows.
    if let Some(outcome) = outcome(Mode::Plain, "no_copy_wait", (32, 128), 1) {
        assert!(outcome.unwrap()[..32].iter().all(|value| value.is_nan()));
    }
}

#[test]
fn races_between_blocks_are_found() {
    is_found(
        Mode::Race,
        "blocks_write_the_same",
        (32, 0),
        2,
        &["block (1, 0, 0)", "global memory", "of block (0, 0, 0) wrote"],
    );
    is_found(Mode::Race, "atomic_and_plain", (32, 0), 2, &["global memory", "added to"]);
    if let Some(outcome) = outcome(Mode::Race, "blocks_write_the_same", (32, 0), 1) {
        outcome.unwrap();
    }
}

#[test]
fn threads_that_diverge_are_found() {
    for mode in [Mode::Plain, Mode::Race] {
        is_found(
            mode,
            "diverged_at_a_barrier",
            (64, 0),
            1,
            &["threads 0 to 39 at __syncthreads (faults.cu:", "threads 40 to 63 returned"],
        );
        is_found(mode, "two_barriers", (64, 0), 1, &["threads 0 to 31 at", "threads 32 to 63 at"]);
        is_found(
            mode,
            "waits_in_a_circle",
            (64, 0),
            1,
            &["threads 0 to 2 at shfl_xor", "thread 3 at __syncthreads", "threads 4 to 31 at shfl_xor"],
        );
        is_found(
            mode,
            "lane_missing_in_a_shuffle",
            (32, 0),
            1,
            &["threads 0 to 4 at shfl_down", "thread 5 returned", "threads 6 to 31 at shfl_down"],
        );
        is_found(
            mode,
            "lanes_at_different_calls",
            (32, 0),
            1,
            &["thread 16: at __syncwarp", "its warp are at shfl_xor"],
        );
    }
}

#[test]
fn wrong_rows_and_copies_are_found() {
    for mode in [Mode::Plain, Mode::Race] {
        is_found(
            mode,
            "misaligned_ldmatrix",
            (32, 1024),
            1,
            &["thread 7: ldmatrix_x4", "offset 120", "16 bytes"],
        );
        is_found(mode, "ldmatrix_of_global_memory", (32, 512), 1, &["thread 0: ldmatrix_x4", "512 bytes"]);
        is_found(mode, "ldmatrix_past_shared_memory", (32, 504), 1, &["thread 31", "at offset 496"]);
        is_found(mode, "misaligned_copy", (32, 16), 1, &["cp_async_16", "global address"]);
    }
}

#[test]
fn launches_that_cuda_would_refuse_are_refused() {
    let Some(emulation) = emulation(Mode::Plain) else { return };
    let error = |kernel, block, grid, params: &[u64]| {
        let ran = match *params {
            [a] => run(&emulation, kernel, block, grid, [a]),
            [a, b] => run(&emulation, kernel, block, grid, [a, b]),
            _ => run(&emulation, kernel, block, grid, [0; 7]),
        };
        ran.unwrap_err().to_string()
    };
    let kernel = ("faults", "no_block_barrier");
    assert!(error(kernel, (64, 256), blocks(1), &[0]).contains("16 bytes in the source and 8 in Rust"));
    assert!(error(kernel, (96, 256), blocks(1), &[0, 0]).contains("with 96 threads, but made for 64"));
    assert!(error(kernel, (33, 256), blocks(1), &[0, 0]).contains("whole warps"));
    assert!(error(kernel, (64, (227 << 10) + 1), blocks(1), &[0, 0]).contains("shared memory"));
    assert!(error(kernel, (64, 256), Grid { x: 1, y: 65_536, z: 1 }, &[0, 0]).contains("1 x 65536 x 1"));
    assert!(error(kernel, (64, 256), Grid { x: 1, y: 1, z: 0 }, &[0, 0]).contains("1 x 1 x 0"));
    assert!(error(("faults", "nobody"), (64, 256), blocks(1), &[0, 0]).contains("no kernel nobody"));
    assert!(error(("no_file", "nobody"), (64, 256), blocks(1), &[0, 0]).contains("no no_file.cu"));
}

/// Kernels whose faults only the sanitizer sees, which then ends the process, and what its report says.
const DEADLY: [(&str, (u32, u32), &[&str]); 5] = [
    // The launch has room for exactly 32 floats.
    ("reads_past_shared_memory", (32, 128), &["AddressSanitizer: heap-buffer-overflow", "READ of size 4"]),
    ("writes_past_the_output", (32, 0), &["AddressSanitizer: heap-buffer-overflow", "WRITE of size 4"]),
    ("reads_misaligned", (32, 0), &["runtime error", "misaligned address"]),
    ("copies_past_the_input", (32, 128), &["cp_async_16", "outside of every buffer"]),
    // What other modes find is found in this one too.
    ("diverged_at_a_barrier", (64, 0), &["threads 40 to 63 returned"]),
];

#[test]
fn accesses_out_of_bounds_are_found() {
    // In the child: the kernel that its parent names.
    if let Some(child) = std::env::var_os(CHILD) {
        if let Some((kernel, block, _)) = DEADLY.iter().find(|(kernel, ..)| child == *kernel) {
            run_deadly(kernel, *block);
        }
        return;
    }
    for (kernel, _, words) in DEADLY {
        let test = "faults::accesses_out_of_bounds_are_found";
        let Some(output) = under_address_sanitizer(&["--exact", test, "--nocapture"], kernel) else { return };
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{kernel}: {text}");
        words.iter().for_each(|word| assert!(text.contains(word), "`{word}` is not in: {text}"));
        // A report of the sanitizer is followed by the place in the launch.
        if text.contains("AddressSanitizer") {
            assert!(
                text.contains(&format!("emulation: kernel {kernel}, block (0, 0, 0), thread ")),
                "{text}"
            );
        }
    }
}

/// With input and output exactly as long as the block.
fn run_deadly(kernel: &str, block: (u32, u32)) {
    let emulation = emulation(Mode::Address).unwrap();
    let input: Buffer<f32> = (0..block.0).map(|i| i as f32).collect();
    let mut output = Buffer::<f32>::poisoned(input.len());
    let params = [address(&input), address_mut(&mut output)];
    run(&emulation, ("faults", kernel), block, blocks(1), params).unwrap();
}
