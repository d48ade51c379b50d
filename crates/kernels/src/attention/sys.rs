//! The kernels of `attention.cu` and their parameters.

use crate::device::{Kernel, Module, Params, module};

static MODULE: Module = module!("attention");

/// Distances between the elements of a tensor, in elements; channels are next to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Strides {
    /// From one batch entry to the next; 0 for packed sequences.
    pub batch: i64,
    /// From one head to the next.
    pub head: i64,
    /// From one row (token) to the next.
    pub row: i64,
}

/// Distances between numbers of which there is one a row.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Rows {
    pub(super) batch: i64,
    pub(super) head: i64,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct AttentionForward {
    pub(super) q: u64,
    pub(super) k: u64,
    pub(super) v: u64,
    pub(super) out: u64,
    pub(super) lse: u64,
    pub(super) cu_seqlens: u64,
    pub(super) q_strides: Strides,
    pub(super) k_strides: Strides,
    pub(super) v_strides: Strides,
    pub(super) out_strides: Strides,
    pub(super) q_rows: Rows,
    pub(super) q_len: i32,
    pub(super) kv_len: i32,
    pub(super) head_dim: i32,
    pub(super) group: i32,
    pub(super) scale: f32,
    pub(super) unused: i32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct AttentionBackward {
    pub(super) q: u64,
    pub(super) k: u64,
    pub(super) v: u64,
    pub(super) dout: u64,
    pub(super) lse: u64,
    pub(super) delta: u64,
    pub(super) dq: u64,
    pub(super) dk_heads: u64,
    pub(super) dv_heads: u64,
    pub(super) cu_seqlens: u64,
    pub(super) q_strides: Strides,
    pub(super) k_strides: Strides,
    pub(super) v_strides: Strides,
    pub(super) dout_strides: Strides,
    pub(super) dq_strides: Strides,
    pub(super) q_rows: Rows,
    pub(super) kv_rows: Rows,
    pub(super) q_len: i32,
    pub(super) kv_len: i32,
    pub(super) head_dim: i32,
    pub(super) group: i32,
    pub(super) scale: f32,
    pub(super) unused: i32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct AttentionDelta {
    pub(super) out: u64,
    pub(super) dout: u64,
    pub(super) delta: u64,
    pub(super) out_strides: Strides,
    pub(super) dout_strides: Strides,
    pub(super) q_rows: Rows,
    pub(super) q_len: i32,
    pub(super) head_dim: i32,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct AttentionGroupSum {
    pub(super) dk_heads: u64,
    pub(super) dv_heads: u64,
    pub(super) dk: u64,
    pub(super) dv: u64,
    pub(super) dk_strides: Strides,
    pub(super) dv_strides: Strides,
    pub(super) kv_rows: Rows,
    pub(super) kv_len: i32,
    pub(super) head_dim: i32,
    pub(super) group: i32,
    pub(super) unused: i32,
}

// SAFETY: `repr(C)`, and the fields are those of the struct of the same name in `attention.cu`.
unsafe impl Params for AttentionForward {}
// SAFETY: as above.
unsafe impl Params for AttentionBackward {}
// SAFETY: as above.
unsafe impl Params for AttentionDelta {}
// SAFETY: as above.
unsafe impl Params for AttentionGroupSum {}

/// Query rows of a block of `attention_forward`.
pub(super) const FORWARD_ROWS: usize = 128;
const FORWARD_KEYS: usize = 64;
/// Keys of a block of `attention_dkdv`.
pub(super) const DKDV_KEYS: usize = 128;
const DKDV_ROWS: usize = 64;
/// Query rows of a block of `attention_dq`.
pub(super) const DQ_ROWS: usize = 64;
const DQ_KEYS: usize = 64;
/// Rows of a block of `attention_delta`.
pub(super) const DELTA_ROWS: usize = 8;
/// 16-byte units of a block of `attention_group_sum`.
pub(super) const GROUP_SUM_UNITS: usize = 256;

/// Bytes that tiles of so many rows take in shared memory.
const fn tiles(rows: usize, d: usize) -> usize {
    rows * (d + 8) * size_of::<u16>()
}

/// The kernels for one head dim, without and with the causal mask.
pub(super) struct Kernels {
    pub(super) forward: [Kernel<AttentionForward>; 2],
    pub(super) dkdv: [Kernel<AttentionBackward>; 2],
    pub(super) dq: [Kernel<AttentionBackward>; 2],
}

/// Names end in the head dim and, for the causal ones, in `_causal`.
macro_rules! kernels {
    ($d:literal) => {
        Kernels {
            forward: [
                forward($d, concat!("attention_forward_", $d)),
                forward($d, concat!("attention_forward_", $d, "_causal")),
            ],
            dkdv: [
                dkdv($d, concat!("attention_dkdv_", $d)),
                dkdv($d, concat!("attention_dkdv_", $d, "_causal")),
            ],
            dq: [dq($d, concat!("attention_dq_", $d)), dq($d, concat!("attention_dq_", $d, "_causal"))],
        }
    };
}

const fn forward(d: usize, name: &'static str) -> Kernel<AttentionForward> {
    Kernel::new(&MODULE, name, 128, tiles(FORWARD_ROWS + 2 * FORWARD_KEYS, d) as u32)
}

const fn dkdv(d: usize, name: &'static str) -> Kernel<AttentionBackward> {
    let numbers = 2 * DKDV_ROWS * size_of::<f32>();
    let bytes = tiles(2 * DKDV_KEYS, d) + 2 * (tiles(2 * DKDV_ROWS, d) + numbers);
    Kernel::new(&MODULE, name, 256, bytes as u32)
}

const fn dq(d: usize, name: &'static str) -> Kernel<AttentionBackward> {
    Kernel::new(&MODULE, name, 128, tiles(2 * 2 * DQ_KEYS, d) as u32)
}

static KERNELS_64: Kernels = kernels!(64);
static KERNELS_80: Kernels = kernels!(80);
static KERNELS_128: Kernels = kernels!(128);

/// The kernels for a head dim, which they fill up with zeros; `None` if there are none so large.
pub(super) fn kernels(head_dim: usize) -> Option<&'static Kernels> {
    match head_dim {
        0..=64 => Some(&KERNELS_64),
        65..=80 => Some(&KERNELS_80),
        81..=128 => Some(&KERNELS_128),
        _ => None,
    }
}

pub(super) static DELTA: Kernel<AttentionDelta> = Kernel::new(&MODULE, "attention_delta", 128, 0);
pub(super) static GROUP_SUM: Kernel<AttentionGroupSum> = Kernel::new(&MODULE, "attention_group_sum", 256, 0);
