//! The networks, one file each.

mod clip;
mod greedy;
mod qwen2;
mod siglip;
mod vlm;

use crate::fixture::{Fixture, Tensors};
use crate::row::Row;
use anyhow::Context as _;
use candle_core::{DType, Device, Tensor};
use oqvl_model::{Missing, ParamStore, Trainable};

/// Types of weights and activations.
const DTYPES: [DType; 2] = [DType::F32, DType::BF16];

/// What a network makes of its fixture's inputs, under the names of the goldens.
type Outputs = Vec<(&'static str, Tensor)>;

/// A folder of fixtures, what is in it, and how it is run.
struct Kind {
    folder: &'static str,
    architecture: &'static str,
    outputs: fn(&Fixture, DType) -> anyhow::Result<Outputs>,
    /// Token by token; nothing where the network generates none.
    greedy: fn(&Fixture) -> anyhow::Result<Vec<Row>>,
}

const KINDS: [Kind; 5] = [
    Kind {
        folder: "siglip_vision",
        architecture: "SigLIP vision (timm)",
        outputs: siglip::vision,
        greedy: no_tokens,
    },
    Kind {
        folder: "siglip",
        architecture: "SigLIP pair (transformers)",
        outputs: siglip::pair,
        greedy: no_tokens,
    },
    Kind {
        folder: "clip",
        architecture: "CLIP (transformers, open_clip)",
        outputs: clip::outputs,
        greedy: no_tokens,
    },
    Kind {
        folder: "qwen2",
        architecture: "Qwen2 (transformers)",
        outputs: qwen2::outputs,
        greedy: qwen2::greedy,
    },
    Kind {
        folder: "vlm",
        architecture: "VLM (timm or transformers, PyTorch)",
        outputs: vlm::outputs,
        greedy: vlm::greedy,
    },
];

/// Every fixture in every type.
pub(crate) fn measure() -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for kind in KINDS {
        for fixture in Fixture::all(kind.folder, kind.architecture)? {
            let name = || fixture.place.fixture.clone();
            for dtype in DTYPES {
                let outputs = (kind.outputs)(&fixture, dtype).with_context(name)?;
                rows.extend(fixture.compare(dtype, &outputs).with_context(name)?);
            }
            rows.extend((kind.greedy)(&fixture).with_context(name)?);
        }
    }
    Ok(rows)
}

#[expect(clippy::unnecessary_wraps, reason = "it stands where others can fail")]
fn no_tokens(_: &Fixture) -> anyhow::Result<Vec<Row>> {
    Ok(Vec::new())
}

/// A store that gives these weights to a network, for inference in `dtype`.
fn store(weights: Tensors, missing: Missing, dtype: DType) -> ParamStore {
    ParamStore::new(weights, missing, Trainable::None, &Device::Cpu).with_dtype(dtype)
}
