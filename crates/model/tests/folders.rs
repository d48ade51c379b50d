//! Folders of other tools, read as they are, against what those tools make of them: `fixtures/folders`, written by
//! `fixtures/folders_goldens.py`.

use candle_core::{DType, Device, Tensor};
use oqvl_model::{
    Companions, Contents, HiddenAct, Missing, ModelError, ParamStore, Prompt, Qwen2, SiglipVisionConfig,
    SiglipVisionTower, Trainable, Vlm, VlmCheckpoint, VlmConfig, read_clip, read_language_model,
    read_safetensors, read_siglip, read_vision_tower, read_vlm,
};
use oqvl_shard_io::write_atomic;
use oqvl_text_prep::{BpeTrainer, IMAGE_TOKEN_ID};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Of the largest value there is.
const TOLERANCE: f32 = 1e-5;

type Tensors = BTreeMap<String, Tensor>;

/// One of the readers, when it is its error that matters.
type Read = fn(&Path) -> Result<(), ModelError>;

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn folder(name: &str) -> PathBuf {
    fixture("folders").join(name)
}

fn golden(name: &str) -> Tensors {
    read_safetensors(&folder(name).join("golden.safetensors"), &Device::Cpu).unwrap()
}

fn frozen(tensors: &Tensors) -> ParamStore {
    ParamStore::new(tensors.clone(), Missing::Refuse, Trainable::None, &Device::Cpu)
}

/// Logits at every position of one sequence: token embeddings and, where the placeholder is, the image's.
fn logits(model: &Contents<VlmConfig>, golden: &Tensors) -> Tensor {
    let mut store = frozen(&model.tensors);
    let vlm = Vlm::new(&model.config, store.root(), &Device::Cpu).unwrap();
    store.finish().unwrap();
    let mut store = frozen(&model.tensors);
    let llm = Qwen2::new(&model.config.text_config, store.root().pp("language_model")).unwrap();
    let pixels = golden["pixel_values"].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let image = vlm.encode_images(&[&pixels]).unwrap().squeeze(0).unwrap();
    let ids = golden["input_ids"].to_vec1::<i64>().unwrap();
    let pieces: Vec<Tensor> = ids
        .iter()
        .map(|&id| match id {
            IMAGE_TOKEN_ID => image.clone(),
            id => llm.embed(&Tensor::new(&[id as u32], &Device::Cpu).unwrap()).unwrap(),
        })
        .collect();
    let hidden = llm.forward(&Tensor::cat(&pieces, 0).unwrap().unsqueeze(0).unwrap()).unwrap();
    llm.logits(&hidden.squeeze(0).unwrap()).unwrap()
}

#[track_caller]
fn assert_close(found: &Tensor, expected: &Tensor) {
    assert_eq!(found.dims(), expected.dims());
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (found, expected) = (values(found), values(expected));
    let largest = expected.iter().fold(0f32, |largest, value| largest.max(value.abs()));
    for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
        // Not `>`: a NaN must fail.
        assert!((found - expected).abs() <= TOLERANCE * largest, "[{at}]: {found}, expected {expected}");
    }
}

fn read(dir: &Path) -> Contents<VlmConfig> {
    read_vlm(dir, &Companions::default(), &Device::Cpu).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text += &format!(": {inner}");
        cause = inner.source();
    }
    text
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for name in ["config.json", "model.safetensors"] {
        write_atomic(&to.join(name), &std::fs::read(from.join(name)).unwrap()).unwrap();
    }
}

#[test]
fn llava_of_transformers_4_and_5() {
    for (name, tied) in [("llava", true), ("llava_4", false)] {
        let model = read(&folder(name));
        assert_eq!(model.config.text_config.tie_word_embeddings, tied);
        assert_close(&logits(&model, &golden(name)), &golden(name)["logits"]);
    }
}

#[test]
fn another_gelu_or_layer_would_show() {
    let (model, golden) = (read(&folder("llava")), golden("llava"));
    let differs = |change: &dyn Fn(&mut VlmConfig)| {
        let mut other = read(&folder("llava"));
        change(&mut other.config);
        let (found, expected) = (logits(&other, &golden), logits(&model, &golden));
        let error =
            (found - &expected).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let largest = expected.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        error > 10.0 * TOLERANCE * largest
    };
    assert!(differs(&|config| config.vision_config.hidden_act = HiddenAct::GeluPytorchTanh));
    assert!(differs(&|config| config.vision_feature_layer = -1));
}

#[test]
fn the_mlm_filter_release() {
    let dir = folder("llava_qwen");
    let error = read_vlm(&dir, &Companions::default(), &Device::Cpu).unwrap_err();
    assert!(chain(&error).contains("`mm_vision_tower` is \"../tower\", whose shape is not known here"));
    let tower = folder("tower");
    let companions = Companions { vision_tower: Some(&tower), language_model: None };
    let model = read_vlm(&dir, &companions, &Device::Cpu).unwrap();
    assert_eq!((model.config.pooled_grid, model.config.vision_feature_layer), (12, -1));
    assert!(!model.tensors.contains_key("language_model.lm_head.weight"));
    assert_close(&logits(&model, &golden("llava_qwen")), &golden("llava_qwen")["logits"]);
}

#[test]
fn a_language_model_and_a_tower_of_transformers_5() {
    let model = read_language_model(&folder("qwen2"), &Device::Cpu).unwrap();
    let mut store = frozen(&model.tensors);
    let llm = Qwen2::new(&model.config, store.root()).unwrap();
    store.finish().unwrap();
    let golden = golden("qwen2");
    let ids = golden["input_ids"].to_dtype(DType::U32).unwrap();
    let hidden = llm.forward(&llm.embed(&ids).unwrap().unsqueeze(0).unwrap()).unwrap();
    assert_close(&llm.logits(&hidden.squeeze(0).unwrap()).unwrap(), &golden["logits"]);

    let tower = read_vision_tower(&folder("tower"), &Device::Cpu).unwrap();
    assert_eq!(tower.config.hidden_act, HiddenAct::GeluPytorchTanh);
    let mut store = frozen(&tower.tensors);
    SiglipVisionTower::new(&tower.config, store.root()).unwrap();
    store.finish().unwrap();
}

/// The tower that is in `latest-checkpoint.pt`, as a folder of ours.
fn small_tower() -> SiglipVisionConfig {
    SiglipVisionConfig {
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 3,
        num_attention_heads: 2,
        image_size: 8,
        patch_size: 4,
        layer_norm_eps: 1e-6,
        // The reference computes the exact one all the same.
        hidden_act: HiddenAct::GeluPytorchTanh,
    }
}

/// The released layout, the folder of a tower and that of a language model.
fn released(dir: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let (model, tower, llm) = (dir.join("model"), dir.join("tower"), dir.join("llm"));
    for dir in [&model.join("checkpoints"), &tower, &llm] {
        std::fs::create_dir_all(dir).unwrap();
    }
    let write = |path: PathBuf, bytes: &[u8]| write_atomic(&path, bytes).unwrap();
    let json = |path: PathBuf, value: &Value| write(path, &serde_json::to_vec(value).unwrap());
    let config = json!({
        "dataset": {}, "mount_path": "Qwen", "run_id": "x", "stage": "full-finetune",
        "model": {
            "type": "one", "model_id": "Open-Qwen2VL", "vision_backbone_id": "siglip-vit-so400m-384px",
            "image_resize_strategy": "resize-naive", "llm_backbone_id": "qwen2.5-1.5b-instruct",
            "llm_max_length": 4096, "arch_specifier": "full-align+1-avgpool",
        },
    });
    json(model.join("config.json"), &config);
    let pickle = std::fs::read(fixture("weights/latest-checkpoint.pt")).unwrap();
    write(model.join("checkpoints/latest-checkpoint.pt"), &pickle);
    json(tower.join("config.json"), &serde_json::to_value(small_tower()).unwrap());
    json(
        llm.join("config.json"),
        &json!({
            "model_type": "qwen2", "vocab_size": 13, "hidden_size": 8, "intermediate_size": 12,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
            "max_position_embeddings": 32, "tie_word_embeddings": true,
        }),
    );
    let trained = BpeTrainer::new(300).train(["a red cube".to_owned()].into_iter()).unwrap();
    write(llm.join("tokenizer.json"), trained.json());
    (model, tower, llm)
}

#[test]
fn the_reference_is_completed_by_two_folders() {
    let dir = tempfile::tempdir().unwrap();
    let (model, tower, llm) = released(dir.path());
    let load = |vision_tower: Option<&Path>, language_model: Option<&Path>| {
        let companions = Companions { vision_tower, language_model };
        VlmCheckpoint::load_with(&model, &companions, DType::F32, &Device::Cpu)
    };
    let whole = load(Some(&tower), Some(&llm)).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(whole.vlm.config().vision_config.hidden_act, HiddenAct::Gelu);
    assert_eq!(whole.vlm.num_image_tokens(), 1);
    // What another file would change, it changes in the digest.
    write_atomic(
        &llm.join("tokenizer.json"),
        &[&b" "[..], &std::fs::read(llm.join("tokenizer.json")).unwrap()].concat(),
    )
    .unwrap();
    assert_ne!(load(Some(&tower), Some(&llm)).unwrap().digest, whole.digest);
    for (vision_tower, language_model, missing) in [
        (None, Some(llm.as_path()), "the folder of its vision tower (siglip-vit-so400m-384px)"),
        (Some(tower.as_path()), None, "the folder of its language model (qwen2.5-1.5b-instruct)"),
        (
            None,
            None,
            "the folder of its vision tower (siglip-vit-so400m-384px) and the folder of its language model \
             (qwen2.5-1.5b-instruct)",
        ),
    ] {
        let error = load(vision_tower, language_model).unwrap_err();
        assert!(matches!(error, ModelError::Incomplete { .. }));
        assert!(error.to_string().contains(&format!("to complete it, give {missing}, or export")), "{error}");
    }
}

#[test]
fn bf16_gives_other_late_digits_and_other_types_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (model, tower, llm) = released(dir.path());
    let companions = Companions { vision_tower: Some(&tower), language_model: Some(&llm) };
    let load = |dtype| VlmCheckpoint::load_with(&model, &companions, dtype, &Device::Cpu);
    let prompt = [Prompt { input_ids: vec![3, 1, 4, 1, 5], images: Vec::new() }];
    let logits = |dtype| load(dtype).unwrap().vlm.next_token_logits(&prompt).unwrap().concat();
    let (single, half) = (logits(DType::F32), logits(DType::BF16));
    let largest = single.iter().fold(0f32, |largest, logit| largest.max(logit.abs()));
    assert_ne!(single, half);
    for (single, half) in single.iter().zip(&half) {
        assert!((single - half).abs() < 0.1 * largest, "{single} {half}");
    }
    let error = load(DType::F16).unwrap_err();
    assert!(matches!(error, ModelError::Dtype("f16")));
    assert_eq!(error.to_string(), "a model can be run in f32 and in bf16, not in f16");
}

/// The released files have no tower: it is read from its own folder.
#[test]
fn a_tower_from_elsewhere_is_the_same_network() {
    let dir = tempfile::tempdir().unwrap();
    let (model, tower, llm) = released(dir.path());
    let companions = Companions { vision_tower: Some(&tower), language_model: Some(&llm) };
    let with_tower = read_vlm(&model, &companions, &Device::Cpu).unwrap();
    let mut parts: [Tensors; 2] = Default::default();
    for (name, tensor) in &with_tower.tensors {
        match name.strip_prefix("vision_tower.") {
            Some(rest) => parts[1].insert(rest.to_owned(), tensor.clone()),
            None => parts[0].insert(name.clone(), tensor.clone()),
        };
    }
    for (dir, part) in [(&model, &parts[0]), (&tower, &parts[1])] {
        write_atomic(&dir.join("model.safetensors"), &safetensors::serialize(part, None).unwrap()).unwrap();
    }
    let without = read_vlm(&model, &companions, &Device::Cpu).unwrap();
    assert_eq!(without.config, with_tower.config);
    assert!(without.tensors.keys().eq(with_tower.tensors.keys()));
    assert_ne!(without.digest().unwrap(), with_tower.digest().unwrap());
}

#[test]
fn what_is_missing_or_too_much_is_listed_in_one_error() {
    let dir = tempfile::tempdir().unwrap();
    copy(&folder("llava"), dir.path());
    let mut tensors = read_safetensors(&dir.path().join("model.safetensors"), &Device::Cpu).unwrap();
    let tensor = tensors.remove("language_model.model.norm.weight").unwrap();
    tensors.insert("multi_modal_projector.linear_3.bias".to_owned(), tensor);
    let probe = tensors.remove("vision_tower.head.probe").unwrap();
    let bias = "vision_tower.post_layernorm.bias".to_owned();
    tensors.insert(bias, probe);
    write_atomic(&dir.path().join("model.safetensors"), &safetensors::serialize(&tensors, None).unwrap())
        .unwrap();
    let model = read(dir.path());
    let mut store = frozen(&model.tensors);
    Vlm::new(&model.config, store.root(), &Device::Cpu).unwrap();
    let error = store.finish().unwrap_err().to_string();
    for part in [
        "`language_model.model.norm.weight` [12] is missing",
        "`projector.linear_3.bias` is not in the network",
        "`vision_tower.vision_model.head.probe` [1, 1, 8] is missing",
        "`vision_tower.vision_model.post_layernorm.bias` is [1, 1, 8], expected [8]",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn images_that_would_be_made_otherwise_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    copy(&folder("llava"), dir.path());
    let write = |name: &str, value: &Value| {
        write_atomic(&dir.path().join(name), &serde_json::to_vec(value).unwrap()).unwrap();
    };
    let processor = json!({
        "do_normalize": true, "do_rescale": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor", "image_std": [0.5, 0.5, 0.5], "resample": 3,
        "rescale_factor": 1.0 / 255.0, "size": {"height": 14, "width": 14},
    });
    // Where transformers 4 has it, and 5.
    let place = |name: &str, processor: &Value| match name {
        "processor_config.json" => json!({"image_processor": processor, "patch_size": 4}),
        _ => processor.clone(),
    };
    for name in ["preprocessor_config.json", "processor_config.json"] {
        write(name, &place(name, &processor));
        read(dir.path());
        for (key, value) in [
            ("image_mean", json!([0.48, 0.46, 0.41])),
            ("image_std", json!([0.27, 0.26, 0.28])),
            ("resample", json!(2)),
            ("size", json!({"shortest_edge": 14})),
            ("size", json!({"height": 384, "width": 384})),
            ("do_pad", json!(true)),
        ] {
            let mut other = processor.clone();
            other[key] = value;
            write(name, &place(name, &other));
            let error = read_vlm(dir.path(), &Companions::default(), &Device::Cpu).unwrap_err();
            let expected = format!("{name} asks for other images than are made here: `{key}` is ");
            assert!(matches!(error, ModelError::Images { .. }), "{error}");
            assert!(error.to_string().contains(&expected), "{error}");
        }
        write(name, &place(name, &processor));
    }
}

/// Both pairs of open_clip say it beside the network.
#[test]
fn images_of_open_clip_are_looked_at_before_weights() {
    let siglip = json!({
        "embed_dim": 768, "custom_text": true,
        "vision_cfg": {
            "image_size": 224, "timm_model_name": "vit_base_patch16_siglip_224", "timm_model_pretrained": false,
            "timm_pool": "map", "timm_proj": "none",
        },
        "text_cfg": {
            "context_length": 64, "vocab_size": 32000, "width": 768, "heads": 12, "layers": 12,
            "no_causal_mask": true, "proj_bias": true, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
        },
    });
    let clip = json!({"embed_dim": 8, "vision_cfg": {}, "text_cfg": {}});
    let half = json!([0.5, 0.5, 0.5]);
    let openai = json!([[0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]]);
    let pairs: [(Value, Value, Read); 2] = [
        (
            siglip,
            json!({"mean": half, "std": half, "interpolation": "bicubic", "resize_mode": "squash"}),
            |dir| read_siglip(dir, &Device::Cpu).map(drop),
        ),
        (
            clip.clone(),
            json!({"mean": openai[0], "std": openai[1], "interpolation": "bicubic", "resize_mode": "shortest"}),
            |dir| read_clip(dir, &Device::Cpu).map(drop),
        ),
    ];
    for (model, images, read) in pairs {
        // A CLIP says mean and deviation itself, but three numbers they must be.
        let other = if model == clip { json!([0.1, 0.2]) } else { json!([0.1, 0.2, 0.3]) };
        let dir = tempfile::tempdir().unwrap();
        let error_of = |images: &Value| {
            let config = json!({"model_cfg": model, "preprocess_cfg": images});
            let path = dir.path().join("open_clip_config.json");
            write_atomic(&path, &serde_json::to_vec(&config).unwrap()).unwrap();
            chain(&read(dir.path()).unwrap_err())
        };
        // As published; then the next thing that is missed is another file.
        let error = error_of(&images);
        assert!(error.contains("there is no tokenizer") || error.contains("no weights"), "{error}");
        for (key, value) in [
            ("mean", other.clone()),
            ("std", other),
            ("interpolation", json!("bilinear")),
            ("resize_mode", json!("longest")),
            ("size", json!(336)),
        ] {
            let mut other = images.clone();
            other[key] = value;
            let error = error_of(&other);
            let expected =
                format!("open_clip_config.json asks for other images than are made here: `{key}` is ");
            assert!(error.contains(&expected), "{error}");
        }
        let mut other = images.clone();
        other["new_idea"] = json!(1);
        assert!(error_of(&other).contains("unknown key `new_idea`"));
    }
}

/// With these the networks compute no numbers, and their weights would get the blame.
#[test]
fn numbers_out_of_range_are_named_before_weights_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let config = |name: &str| -> Value {
        serde_json::from_slice(&std::fs::read(fixture(name).join("config.json")).unwrap()).unwrap()
    };
    let vlm: Read = |dir| read_vlm(dir, &Companions::default(), &Device::Cpu).map(drop);
    let siglip: Read = |dir| read_siglip(dir, &Device::Cpu).map(drop);
    let clip: Read = |dir| read_clip(dir, &Device::Cpu).map(drop);
    for (name, read, pointer, key, value, expected) in [
        ("folders/llava", vlm, "/text_config", "rms_norm_eps", -1.0, "language model: `rms_norm_eps`"),
        (
            "folders/llava",
            vlm,
            "/text_config/rope_parameters",
            "rope_theta",
            0.0,
            "language model: `rope_theta`",
        ),
        ("folders/llava", vlm, "/vision_config", "layer_norm_eps", -1.0, "vision: `layer_norm_eps`"),
        ("siglip/hf_tanh", siglip, "/vision_config", "layer_norm_eps", 0.0, "vision: `layer_norm_eps`"),
        ("siglip/hf_tanh", siglip, "/text_config", "layer_norm_eps", 1e-40, "text: `layer_norm_eps`"),
        ("clip/hf_gelu", clip, "/vision_config", "layer_norm_eps", 2.0, "vision: `layer_norm_eps`"),
        ("clip/hf_gelu", clip, "/text_config", "layer_norm_eps", -1.0, "text: `layer_norm_eps`"),
    ] {
        let mut config = config(name);
        config.pointer_mut(pointer).unwrap()[key] = json!(value);
        let path = dir.path().join("config.json");
        write_atomic(&path, &serde_json::to_vec(&config).unwrap()).unwrap();
        assert_names_the_number(&read(dir.path()).unwrap_err(), &path, expected, value);
    }
}

#[track_caller]
fn assert_names_the_number(error: &ModelError, path: &Path, what: &str, value: f64) {
    let error = chain(error);
    let expected = format!("cannot read {}: config: {what} must be from ", path.display());
    assert!(error.starts_with(&expected), "{error}");
    assert!(error.ends_with(&format!("got {value:?}")), "{error}");
}

/// Three folders are one network; the one that is wrong is told.
#[test]
fn numbers_of_a_companion_are_named_with_its_own_file() {
    let dir = tempfile::tempdir().unwrap();
    let (model, tower, llm) = released(dir.path());
    let companions = Companions { vision_tower: Some(&tower), language_model: Some(&llm) };
    let llava_qwen = folder("llava_qwen");
    for (model, companion, key, what) in [
        (&model, &tower, "layer_norm_eps", "vision: `layer_norm_eps`"),
        (&model, &llm, "rms_norm_eps", "language model: `rms_norm_eps`"),
        (&llava_qwen, &tower, "layer_norm_eps", "vision: `layer_norm_eps`"),
    ] {
        let path = companion.join("config.json");
        let right = std::fs::read(&path).unwrap();
        let mut config: Value = serde_json::from_slice(&right).unwrap();
        config[key] = json!(-1.0);
        write_atomic(&path, &serde_json::to_vec(&config).unwrap()).unwrap();
        let error = read_vlm(model, &companions, &Device::Cpu).unwrap_err();
        assert_names_the_number(&error, &path, what, -1.0);
        write_atomic(&path, &right).unwrap();
    }
}
