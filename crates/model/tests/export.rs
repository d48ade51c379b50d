//! Exported folders, read back. That transformers computes the same of them is what `oqvl-parity` tests.

use candle_core::{Device, Tensor};
use oqvl_model::{
    BackboneIds, Companions, Contents, ExportFormat, HiddenAct, MAX_SHARD_BYTES, ModelError, ParamStore,
    Qwen2Config, SECOND_TO_LAST, SiglipVisionConfig, Vlm, VlmConfig, export, read_language_model,
    read_safetensors, read_vlm, save_checkpoint,
};
use oqvl_shard_io::write_atomic;
use oqvl_text_prep::BpeTrainer;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

const IMAGE_SIZE: usize = 14;
/// Rows of the vocabulary that have no token, as the public models have them.
const SPARE_ROWS: usize = 7;

/// A checkpoint of ours in `dir`, drawn from a seed: 3 x 3 patches and two pixels over.
fn checkpoint(dir: &Path, tied: bool, pooled_grid: usize) -> PathBuf {
    let trained = BpeTrainer::new(300).train(["a red cube, a cube?".to_owned()].into_iter()).unwrap();
    let tokenizer_file = dir.join("tokenizer-of-ours.json");
    write_atomic(&tokenizer_file, trained.json()).unwrap();
    let config = VlmConfig {
        vision_config: SiglipVisionConfig {
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 3,
            num_attention_heads: 2,
            image_size: IMAGE_SIZE,
            patch_size: 4,
            layer_norm_eps: 1e-6,
            hidden_act: HiddenAct::Gelu,
        },
        text_config: Qwen2Config {
            vocab_size: trained.tokenizer().unwrap().vocab_size() + SPARE_ROWS,
            hidden_size: 12,
            intermediate_size: 20,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            max_position_embeddings: 128,
            rope_theta: 5e5,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: tied,
        },
        pooled_grid,
        vision_feature_layer: SECOND_TO_LAST,
    };
    let mut store = ParamStore::seeded(8, &Device::Cpu);
    Vlm::new(&config, store.root(), &Device::Cpu).unwrap();
    let out = dir.join("ours");
    save_checkpoint(&out, &config, &store, &tokenizer_file).unwrap();
    out
}

fn read(dir: &Path) -> Contents<VlmConfig> {
    read_vlm(dir, &Companions::default(), &Device::Cpu).unwrap()
}

fn bits(tensors: &BTreeMap<String, Tensor>) -> BTreeMap<&str, (Vec<usize>, Vec<u32>)> {
    let values = |tensor: &Tensor| {
        let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        (tensor.dims().to_vec(), values.into_iter().map(f32::to_bits).collect())
    };
    tensors.iter().map(|(name, tensor)| (name.as_str(), values(tensor))).collect()
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries
        .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), std::fs::read(path).unwrap()))
        .collect()
}

/// The reference's layout of a network that the reference does not know.
fn reference_layout() -> ExportFormat {
    let [vision, llm] = ["siglip-tiny", "qwen-tiny"].map(|id| Some(id.to_owned()));
    ExportFormat::Reference(BackboneIds { vision, llm })
}

#[test]
fn exports_come_back_bit_for_bit() {
    for tied in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let ours = checkpoint(dir.path(), tied, 3);
        let model = read(&ours);
        let (llava, qwen2) = (dir.path().join("llava"), dir.path().join("qwen2"));
        export(&model, ExportFormat::Llava, &llava, MAX_SHARD_BYTES).unwrap();
        export(&model, ExportFormat::Qwen2, &qwen2, MAX_SHARD_BYTES).unwrap();
        let again = read(&llava);
        assert_eq!(again.config, model.config);
        assert_eq!(bits(&again.tensors), bits(&model.tensors));

        let alone = read_language_model(&qwen2, &Device::Cpu).unwrap();
        assert_eq!(alone.config, model.config.text_config);
        let whole = bits(&model.tensors);
        let part: BTreeMap<_, _> = whole
            .iter()
            .filter_map(|(name, value)| Some((name.strip_prefix("language_model.")?, value.clone())))
            .collect();
        assert_eq!(bits(&alone.tensors), part);

        // The reference's layout leaves shapes and tokenizer to the folders it was made from.
        let reference = dir.path().join("reference");
        export(&model, reference_layout(), &reference, MAX_SHARD_BYTES).unwrap();
        let names = read_safetensors(&reference.join("model.safetensors"), &Device::Cpu).unwrap();
        for name in [
            "projector.mlp_projector.2.bias",
            "llm_backbone.llm.lm_head.weight",
            "llm_backbone.llm.model.layers.1.self_attn.q_proj.bias",
            "vision_backbone.featurizer.blocks.2.attn.qkv.weight",
            "vision_backbone.featurizer.attn_pool.kv.bias",
        ] {
            assert!(names.contains_key(name), "{name}");
        }
        assert_eq!(names["vision_backbone.featurizer.pos_embed"].dims(), [1, 9, 8]);
        let tower = dir.path().join("tower");
        std::fs::create_dir(&tower).unwrap();
        let config = serde_json::to_vec(&model.config.vision_config).unwrap();
        write_atomic(&tower.join("config.json"), &config).unwrap();
        let companions = Companions { vision_tower: Some(&tower), language_model: Some(&qwen2) };
        let again = read_vlm(&reference, &companions, &Device::Cpu).unwrap();
        assert_eq!(again.config, model.config);
        assert_eq!(bits(&again.tensors), bits(&model.tensors));

        // Put together, it is a checkpoint like any other.
        let whole = dir.path().join("whole");
        export(&again, ExportFormat::Checkpoint, &whole, MAX_SHARD_BYTES).unwrap();
        assert_eq!(bits(&read(&whole).tensors), bits(&model.tensors));
    }
}

#[test]
fn the_same_model_gives_the_same_bytes_and_shards_the_same_tensors() {
    let dir = tempfile::tempdir().unwrap();
    let model = read(&checkpoint(dir.path(), true, 3));
    let [one, two, small] = ["one", "two", "small"].map(|name| dir.path().join(name));
    let exported = export(&model, ExportFormat::Llava, &one, MAX_SHARD_BYTES).unwrap();
    export(&model, ExportFormat::Llava, &two, MAX_SHARD_BYTES).unwrap();
    assert_eq!(files(&one), files(&two));
    assert!(exported.files.iter().eq(files(&one).keys()));
    assert_eq!(exported.num_bytes, files(&one).values().map(|bytes| bytes.len() as u64).sum::<u64>());

    let exported = export(&model, ExportFormat::Llava, &small, 10_000).unwrap();
    assert!(exported.files.iter().any(|name| name == "model.safetensors.index.json"));
    assert!(exported.files.iter().any(|name| name.starts_with("model-00002-of-0000")));
    assert_eq!(bits(&read(&small).tensors), bits(&model.tensors));
    // Nothing else is left behind.
    let names: Vec<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(names.iter().all(|name| !name.starts_with(".tmp-")), "{names:?}");
}

#[test]
fn what_a_layout_cannot_express_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = read(&checkpoint(dir.path(), true, 2));
    let out = dir.path().join("out");
    let refusal = |model: &Contents<VlmConfig>, format| {
        let error = export(model, format, &out, MAX_SHARD_BYTES).unwrap_err().to_string();
        assert!(!out.exists());
        error
    };
    let error = refusal(&model, ExportFormat::Llava);
    assert!(error.contains("this model pools 3 x 3 patches to 2 x 2 tokens"), "{error}");
    assert!(error.contains("only a model of 9 tokens per image"), "{error}");
    model.config.vision_feature_layer = -1;
    let error = refusal(&model, reference_layout());
    assert!(error.contains("images from layer -2 of its tower, this model from -1"), "{error}");
    model.config.vision_config.hidden_act = HiddenAct::GeluPytorchTanh;
    let error = refusal(&model, reference_layout());
    assert!(error.contains("Gelu in its tower, this model GeluPytorchTanh"), "{error}");
    model.tensors.remove("projector.mlp_projector.0.bias").unwrap();
    let error = refusal(&model, ExportFormat::Checkpoint);
    assert!(error.contains("`projector.mlp_projector.0.bias` [12] is missing"), "{error}");
    std::fs::create_dir(&out).unwrap();
    let error = export(&model, ExportFormat::Checkpoint, &out, MAX_SHARD_BYTES).unwrap_err();
    assert!(matches!(error, ModelError::Exists { path } if path == out));
}
