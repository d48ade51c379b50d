//! The emulation itself: what its words do, held against the PTX manual and plain arithmetic, and that planted faults are
//! found.
//!
//! What kernels do is tested in the modes plain and race in this process, and once more in a process of its own with the
//! address sanitizer. `OQVL_EMULATION` narrows a run to one mode.

// Test kernels are launched by name, with addresses in their parameters.
#![allow(unsafe_code)]

mod faults;
mod fragments;
mod threads;

use candle_core::Result;
use oqvl_emulation::{BlockOrder, Emulation, Mode, address_environment, compile, kernel_sources};
use oqvl_kernels::device::{Grid, Params};
use std::path::Path;
use std::process::{Command, Output};

/// Set for processes that this test starts under the address sanitizer.
const CHILD: &str = "OQVL_EMULATION_CHILD";

/// The emulations that a test of good kernels runs in; none without a C++ compiler.
fn emulations() -> Vec<Emulation> {
    let modes = match std::env::var_os("OQVL_EMULATION") {
        Some(_) => vec![Mode::from_env().unwrap()],
        None => vec![Mode::Plain, Mode::Race],
    };
    let orders = [BlockOrder::Forward, BlockOrder::Reverse, BlockOrder::Shuffled(3)];
    let all = modes.into_iter().zip(orders.into_iter().cycle());
    all.filter_map(|(mode, order)| emulation(mode).map(|emulation| emulation.with_order(order))).collect()
}

/// An emulation that knows the kernels of these tests.
fn emulation(mode: Mode) -> Option<Emulation> {
    let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels");
    Emulation::new(mode).unwrap().map(|emulation| emulation.with_sources(kernels))
}

/// Parameters of a test kernel: every field takes eight bytes there.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Words<const N: usize>([u64; N]);

// SAFETY: addresses and numbers, each in eight bytes; a smaller last field of the struct in the source has its bytes first and
// padding after it.
unsafe impl<const N: usize> Params for Words<N> {}

fn address<T>(elements: &[T]) -> u64 {
    elements.as_ptr().expose_provenance() as u64
}

fn address_mut<T>(elements: &mut [T]) -> u64 {
    elements.as_mut_ptr().expose_provenance() as u64
}

/// Blocks along x alone.
fn blocks(x: u32) -> Grid {
    Grid { x, y: 1, z: 1 }
}

/// Runs a kernel of these tests.
fn run<const N: usize>(
    emulation: &Emulation,
    kernel: (&str, &str),
    block: (u32, u32),
    grid: Grid,
    params: [u64; N],
) -> Result<()> {
    // SAFETY: the tests hand over addresses of buffers that are as long as their kernels need, or that a check guards.
    unsafe { emulation.run(kernel, block, grid, &Words(params)) }
}

/// Runs tests of this binary under the address sanitizer. `None` where that cannot be.
fn under_address_sanitizer(arguments: &[&str], child: &str) -> Option<Output> {
    let environment = match address_environment() {
        Ok(environment) => environment,
        Err(error) => {
            eprintln!("skipped: kernels under the address sanitizer: {error}");
            return None;
        }
    };
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(arguments).env("OQVL_EMULATION", "address").env(CHILD, child).envs(environment);
    Some(command.output().unwrap())
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

#[test]
fn good_kernels_are_good_under_the_address_sanitizer() {
    if is_child() || std::env::var_os("OQVL_EMULATION").is_some() {
        return;
    }
    let Some(output) = under_address_sanitizer(&["fragments::", "threads::"], "good") else { return };
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("test result: ok"), "{text}");
}

#[test]
fn address_mode_without_its_sanitizer_says_what_is_missing() {
    if address_environment().is_err() || is_child() || std::env::var_os("LD_PRELOAD").is_some() {
        return;
    }
    let error = Emulation::new(Mode::Address).unwrap_err().to_string();
    assert!(error.contains("LD_PRELOAD=/") && error.contains("ASAN_OPTIONS=detect_leaks=0"), "{error}");
}

/// Whoever adds a kernel sees here whether it compiles for a CPU, before there is a test that launches it.
#[test]
fn every_kernel_compiles_in_every_mode() {
    for source in kernel_sources().unwrap() {
        for mode in Mode::ALL {
            if mode == Mode::Address && address_environment().is_err() {
                continue;
            }
            compile(mode, &source).unwrap();
        }
    }
}
