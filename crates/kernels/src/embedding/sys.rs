//! What `embedding.cu` declares.

use crate::device::{Kernel, Module, Params, module};

/// `EmbeddingForward`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct EmbeddingForward {
    pub(super) table: u64,
    pub(super) visual: u64,
    pub(super) sources: u64,
    pub(super) to: u64,
    pub(super) vocab: u32,
    pub(super) visual_rows: u32,
    pub(super) num_rows: u32,
    pub(super) hidden: u32,
    pub(super) aligned: u32,
}

// SAFETY: the fields of the struct in `embedding.cu`, in its order: four addresses, then numbers of 32 bits.
unsafe impl Params for EmbeddingForward {}

/// `EmbeddingBackward`.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct EmbeddingBackward {
    pub(super) dy: u64,
    pub(super) ids: u64,
    pub(super) starts: u64,
    pub(super) rows: u64,
    pub(super) dtable: u64,
    pub(super) vocab: u32,
    pub(super) num_rows: u32,
    pub(super) num_listed: u32,
    pub(super) hidden: u32,
    pub(super) aligned: u32,
}

// SAFETY: the fields of the struct in `embedding.cu`, in its order: five addresses, then numbers of 32 bits.
unsafe impl Params for EmbeddingBackward {}

static MODULE: Module = module!("embedding");

/// Columns of a block of the backward.
pub(super) const TILE: usize = 256;
/// A float for each column of each of 8 warps.
const SHARED_MEMORY: u32 = (8 * TILE * size_of::<f32>()) as u32;

pub(super) static FORWARD: Kernel<EmbeddingForward> = Kernel::new(&MODULE, "embedding_forward", 256, 0);
pub(super) static BACKWARD: Kernel<EmbeddingBackward> =
    Kernel::new(&MODULE, "embedding_backward", 256, SHARED_MEMORY);
