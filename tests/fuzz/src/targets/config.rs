//! Configs of networks: folders whose `config.json` is anything and whose weights are none.

use super::text::trained;
use super::{Fixup, Target, scratch};
use candle_core::Device;
use oqvl_model::{
    ClipCheckpoint, ModelError, SiglipCheckpoint, VlmCheckpoint, read_language_model, read_vision_tower,
};
use std::path::Path;

/// Files that the tests of `oqvl-model` read too.
macro_rules! fixtures {
    ($($name:literal),* $(,)?) => {
        vec![$(
            include_bytes!(concat!("../../../../crates/model/tests/fixtures/", $name, "/config.json")).to_vec()
        ),*]
    };
}

pub(super) const TARGET: Target = Target {
    name: "model-config",
    run,
    seeds: || {
        fixtures![
            "folders/llava",
            "folders/llava_4",
            "folders/llava_qwen",
            "folders/qwen2",
            "folders/tower",
            "clip/hf_gelu",
            "clip/open_clip_quick_gelu",
            "siglip/hf_tanh",
            "vlm/pool_5_to_3",
        ]
    },
    words: &[
        br#""hidden_size":"#,
        br#""num_hidden_layers":"#,
        br#""max_position_embeddings":"#,
        br#""vocab_size":"#,
        br#""image_size":"#,
        br#""patch_size":"#,
        br#""num_attention_heads":"#,
        br#""model_type":"llava""#,
        br#""vision_feature_layer":-2"#,
        br#""rope_parameters":{"rope_theta":1e4}"#,
        br#""hidden_act":"gelu""#,
        b"18446744073709551615",
        b"1e308",
        b"-1",
        b"0",
        b"null",
        b"{",
        b"}",
        b",",
    ],
    fixup: Fixup(|_| {}),
    // What is missing is listed by name; rotary tables are made before it is known that nothing fits.
    memory_bound: |length| 4096 * length + (256 << 20),
};

/// A safetensors file without tensors.
const NO_TENSORS: &[u8] = b"\x02\0\0\0\0\0\0\0{}";

/// Loads whatever it takes a folder to be.
type Load = fn(&Path) -> Result<(), ModelError>;

fn run(input: &[u8]) -> String {
    let dir = scratch();
    let dir = dir.path();
    for (name, bytes) in
        [("config.json", input), ("model.safetensors", NO_TENSORS), ("tokenizer.json", trained())]
    {
        let mut file = std::fs::File::create(dir.join(name)).expect("a temporary file can be made");
        std::io::Write::write_all(&mut file, bytes).expect("a temporary file can be written");
    }
    let loads: [Load; 5] = [
        |dir| VlmCheckpoint::load(dir, &Device::Cpu).map(drop),
        |dir| SiglipCheckpoint::load(dir, &Device::Cpu).map(drop),
        |dir| ClipCheckpoint::load(dir, None, &Device::Cpu).map(drop),
        |dir| read_language_model(dir, &Device::Cpu).map(drop),
        |dir| read_vision_tower(dir, &Device::Cpu).map(drop),
    ];
    loads.map(|load| load(dir).map_or_else(|error| kind(&error), |()| "loads".to_owned())).join(" ")
}

/// The kind of an error and the beginning of its reason, without what the file says.
fn kind(error: &ModelError) -> String {
    if matches!(error, ModelError::Weights { .. }) {
        return "weights".to_owned();
    }
    let reason = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    let reason = reason.rsplit('/').next().unwrap_or_default();
    reason.chars().filter(|it| it.is_ascii_alphabetic() || *it == ' ').take(24).collect()
}
