//! Runs the CUDA kernels of `oqvl-kernels` on a CPU: their own source, compiled by the C++ compiler of the machine, block by
//! block. So indexing, fragment layouts, masks and edge sizes are tested where no GPU is.
//!
//! - [`Emulation`] is a [`Device`](oqvl_kernels::device::Device): the launch functions of the kernels take it where a
//!   program gives them a CUDA stream. An error names the kernel, the block and the threads.
//! - A [`Mode`] is how the kernels are compiled: plainly, with the address and undefined behaviour sanitizers, or with
//!   a check for races. What each finds stands there.
//! - A [`BlockOrder`] is the order of the blocks, on which results must not depend.
//! - A [`Buffer`] plays memory of the device: aligned as that is, exactly as long as asked for, poisoned where nothing
//!   was written.
//!
//! Every thread of a block is a fiber; a barrier, and whatever a warp does together, is a rendezvous, where lanes that are
//! missing or elsewhere are an error and not a hang. Shared memory begins as NaN, and so does what a `cp.async` will fill until
//! the wait for it. The header behind it is `emulation.h`, and its tests hold it against the fragments of the PTX manual.
//!
//! What is not found: a loop that waits for another thread's write without a barrier never ends; threads of a warp run one by
//! one, so nothing is said of timing; the order of atomic additions is fixed; f32 sums are not those of a tensor core to the
//! last bit. A misaligned access of 16 bytes is a finding of mode `address`; in the other two it may end the process.
//! `memcpy` and `memset` in a kernel escape the check for races when GCC calls the C library for them.
//!
//! ```
//! use oqvl_emulation::{Buffer, Emulation, Mode};
//!
//! let Some(emulation) = Emulation::new(Mode::Plain)? else { return Ok(()) };
//! let mut output = Buffer::<f32>::poisoned(4);
//! assert!(output.iter().all(|x| x.is_nan()));
//! // What a launch function takes.
//! let slice = emulation.write(&mut output);
//! assert_eq!(slice.len(), 4);
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! # The environment
//!
//! | variable | value |
//! |---|---|
//! | `OQVL_EMULATION` | `plain` (the default), `address` or `race`: the mode of [`Emulation::from_env`] |
//! | `OQVL_EMULATION_BLOCKS` | `forward` (the default), `reverse` or `shuffled`: its order of blocks |
//! | `CXX` | the C++ compiler instead of `g++`; mode `address` needs GCC |
//! | `OQVL_EMULATION_LAUNCHES` | a file to name every kernel in that ran, with the dynamic shared memory of its blocks in bytes |
//!
//! In mode `address`, the test binary itself (not cargo) must be started with two more, because the sanitizer has to be there
//! before the program's first allocation; [`address_environment`] returns them:
//!
//! - `LD_PRELOAD`: what `g++ -print-file-name=libasan.so` prints
//! - `ASAN_OPTIONS`: `detect_leaks=0`
//!
//! A finding of that mode ends the process with the report of the sanitizer.
//!
//! Libraries are compiled once per content and kept in `emulation/` of cargo's target directory.

// Kernels are functions of libraries made here, whose parameters are addresses.
#![allow(unsafe_code)]

mod buffer;
mod compiler;
mod device;

pub use buffer::Buffer;
pub use compiler::{Mode, address_environment, compile, kernel_sources};
pub use device::{BlockOrder, Emulation};
pub use oqvl_kernels::device::Number;
