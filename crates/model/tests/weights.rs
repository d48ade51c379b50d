//! Reading weights: files that torch, timm, open_clip and transformers wrote (`fixtures/weights_goldens.py`), folders of
//! shards, and files that mean harm.

use candle_core::{DType, Device, Tensor};
use oqvl_model::{
    Example, HiddenAct, Missing, ModelError, Network, ParamStore, Prompt, Qwen2Config, SECOND_TO_LAST,
    Siglip, SiglipConfig, SiglipTextConfig, SiglipVisionConfig, SiglipVisionTower, Trainable, Vlm,
    VlmCheckpoint, VlmConfig, drop_tied_head, read_weights, weight_files,
};
use oqvl_shard_io::write_atomic;
use oqvl_text_prep::BpeTrainer;
use std::collections::BTreeMap;
use std::io::{Cursor, Write as _};
use std::path::{Path, PathBuf};
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

type Tensors = BTreeMap<String, Tensor>;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights").join(name)
}

fn read(path: &Path) -> Tensors {
    read_weights(path, &Device::Cpu).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// What libraries wrote with the same values in the plainest form; `candle_core` reads it, not the code under test.
fn expected(name: &str) -> Tensors {
    let path = fixture(&format!("{name}.expected.safetensors"));
    candle_core::safetensors::load(path, &Device::Cpu).unwrap().into_iter().collect()
}

fn chain(error: &ModelError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        text += ": ";
        text += &error.to_string();
        source = error.source();
    }
    text
}

/// The message of the error that reading these bytes under this name gives.
fn refusal(name: &str, bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    write_atomic(&path, bytes).unwrap();
    chain(&read_weights(&path, &Device::Cpu).expect_err("these bytes are no weights"))
}

fn assert_same(read: &Tensors, expected: &Tensors) {
    assert_eq!(read.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, tensor) in expected {
        let other = &read[name];
        assert_eq!((other.dims(), other.dtype()), (tensor.dims(), tensor.dtype()), "{name}");
        match tensor.dtype() {
            DType::F32 => {
                let bits = |tensor: &Tensor| -> Vec<u32> {
                    let values = tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    values.into_iter().map(f32::to_bits).collect()
                };
                assert_eq!(bits(other), bits(tensor), "{name}");
            }
            _ => {
                let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<i64>().unwrap();
                assert_eq!(values(other), values(tensor), "{name}");
            }
        }
    }
}

fn assert_close(ours: &Tensor, theirs: &Tensor) {
    assert_eq!(ours.dims(), theirs.dims());
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let (ours, theirs) = (values(ours), values(theirs));
    let largest = theirs.iter().fold(0_f32, |largest, value| largest.max(value.abs()));
    let error = ours.iter().zip(&theirs).fold(0_f32, |error, (a, b)| error.max((a - b).abs()));
    assert!(error <= 1e-5 * largest, "largest error {error} of {largest}");
}

#[test]
fn every_protocol_of_torch_save_is_read() {
    let nested = expected("nested");
    for protocol in [2, 3, 4, 5] {
        assert_same(&read(&fixture(&format!("protocol{protocol}.pt"))), &nested);
    }
}

#[test]
fn state_dicts_and_safetensors_of_every_type_are_read() {
    assert_same(&read(&fixture("module.bin")), &expected("module"));
    assert_same(&read(&fixture("dtypes.safetensors")), &expected("dtypes"));
}

fn store(tensors: Tensors) -> ParamStore {
    ParamStore::new(tensors, Missing::Refuse, Trainable::None, &Device::Cpu)
}

fn small_tower() -> SiglipVisionConfig {
    SiglipVisionConfig {
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 3,
        num_attention_heads: 2,
        image_size: 8,
        patch_size: 4,
        layer_norm_eps: 1e-6,
        hidden_act: HiddenAct::Gelu,
    }
}

#[test]
fn an_open_clip_file_of_siglip_becomes_the_same_network() {
    let (tensors, golden) = (read(&fixture("open_clip_pytorch_model.bin")), expected("siglip"));
    let text_config = SiglipTextConfig {
        vocab_size: 11,
        hidden_size: 16,
        intermediate_size: 24,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        max_position_embeddings: 5,
        layer_norm_eps: 1e-5,
        hidden_act: HiddenAct::Gelu,
    };
    let config = SiglipConfig { vision_config: small_tower(), text_config };
    let mut both = store(Network::Siglip.rename(tensors.clone()).unwrap());
    let siglip = Siglip::new(&config, both.root()).unwrap();
    both.finish().unwrap();
    let pixels = &golden["pixel_values"];
    assert_close(&siglip.vision.patch_features(pixels).unwrap(), &golden["patch_features"]);
    assert_close(&siglip.vision.pooled(pixels).unwrap(), &golden["pooled"]);
    let ids = golden["input_ids"].to_dtype(DType::U32).unwrap();
    assert_close(&siglip.text.pooled(&ids).unwrap(), &golden["text_pooled"]);
    assert_close(&both.frozen()["logit_scale"].squeeze(0).unwrap(), &golden["logit_scale"]);

    // The tower alone, from the same file, from timm's own names, and from ours (Hugging Face's).
    let bare = tensors
        .iter()
        .filter_map(|(name, tensor)| Some((name.strip_prefix("visual.trunk.")?.to_owned(), tensor.clone())));
    for given in [tensors.clone(), bare.collect(), both.frozen().clone()] {
        let mut tower = store(Network::SiglipVision.rename(given).unwrap());
        let vision = SiglipVisionTower::new(&config.vision_config, tower.root()).unwrap();
        tower.finish().unwrap();
        assert_close(&vision.pooled(pixels).unwrap(), &golden["pooled"]);
    }
}

fn released_config() -> VlmConfig {
    VlmConfig {
        vision_config: small_tower(),
        text_config: Qwen2Config {
            vocab_size: 13,
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            max_position_embeddings: 32,
            rope_theta: 1e4,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
        },
        pooled_grid: 1,
        vision_feature_layer: SECOND_TO_LAST,
    }
}

#[test]
fn the_released_layout_becomes_the_same_network() {
    let golden = expected("released");
    let mut tensors = Network::Vlm.rename(read(&fixture("latest-checkpoint.pt"))).unwrap();
    assert!(tensors.contains_key("language_model.lm_head.weight"));
    drop_tied_head(&mut tensors, "language_model.").unwrap();
    let mut all = store(tensors);
    let vlm = Vlm::new(&released_config(), all.root(), &Device::Cpu).unwrap();
    all.finish().unwrap();
    let input_ids = golden["input_ids"].flatten_all().unwrap().to_vec1::<i64>().unwrap();
    let prompt = Prompt { input_ids: input_ids.clone(), images: Vec::new() };
    let output = vlm.loss(&[&Example { prompt, labels: input_ids }]).unwrap();
    assert_close(&output.loss, &golden["loss"]);
    // Our own names stay as they are.
    let again = Network::Vlm.rename(all.frozen().clone()).unwrap();
    assert!(again.keys().eq(all.frozen().keys()));
}

#[test]
fn a_checkpoint_may_hold_its_weights_in_any_form() {
    let trained = BpeTrainer::new(300).train(["a red cube".to_owned()].into_iter()).unwrap();
    let released = std::fs::read(fixture("latest-checkpoint.pt")).unwrap();
    let mut files = vec![
        ("config.json", serde_json::to_vec(&released_config()).unwrap()),
        ("tokenizer.json", trained.json().to_vec()),
        ("pytorch_model.bin", released),
    ];
    let alone = VlmCheckpoint::load(folder(&files).path(), &Device::Cpu).unwrap();

    // The same again in two shards, whose digest is of all files.
    let part = |keep: &dyn Fn(&str) -> bool| safetensors::serialize(&released_tensors(keep), None).unwrap();
    let is_first = |name: &str| name < "model.projector.";
    let names = released_tensors(&|_| true).into_keys().collect::<Vec<_>>();
    let places: Vec<(&str, &str)> = names
        .iter()
        .map(|name| (name.as_str(), if is_first(name) { "1.safetensors" } else { "2.safetensors" }))
        .collect();
    files[2] = index(&places);
    files.push(("1.safetensors", part(&is_first)));
    files.push(("2.safetensors", part(&|name| !is_first(name))));
    let shards = folder(&files);
    let sharded = VlmCheckpoint::load(shards.path(), &Device::Cpu).unwrap();
    let ids = vec![3, 1, 4, 1, 5];
    let prompt = Prompt { input_ids: ids.clone(), images: Vec::new() };
    let example = Example { prompt, labels: ids };
    let loss = |checkpoint: &VlmCheckpoint| {
        checkpoint.vlm.loss(&[&example]).unwrap().loss.to_scalar::<f32>().unwrap().to_bits()
    };
    assert_eq!(loss(&alone), loss(&sharded));
    let mut changed = files[3].1.clone();
    *changed.last_mut().unwrap() ^= 1;
    write_atomic(&shards.path().join("1.safetensors"), &changed).unwrap();
    let other =
        VlmCheckpoint::load(shards.path(), &Device::Cpu).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_ne!(other.digest, sharded.digest);
}

/// Some tensors of the released layout.
fn released_tensors(keep: &dyn Fn(&str) -> bool) -> Tensors {
    let mut tensors = read(&fixture("latest-checkpoint.pt"));
    tensors.retain(|name, _| keep(name));
    tensors
}

#[test]
fn a_head_that_is_not_the_embedding_is_not_dropped() {
    let mut tensors = Network::Vlm.rename(read(&fixture("latest-checkpoint.pt"))).unwrap();
    let name = "language_model.lm_head.weight";
    let other = (&tensors[name] * 1.0001).unwrap();
    tensors.insert(name.to_owned(), other);
    let error = chain(&drop_tied_head(&mut tensors, "language_model.").unwrap_err());
    assert!(error.contains("differs from `language_model.model.embed_tokens.weight`"), "{error}");
    assert!(tensors.contains_key(name));
}

#[test]
fn every_disagreement_with_the_names_is_listed() {
    let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
    let qkv = BTreeMap::from([
        ("blocks.0.attn.qkv.bias".to_owned(), zeros(&[4])),
        ("blocks.1.attn.qkv.bias".to_owned(), zeros(&[])),
        ("norm.bias".to_owned(), zeros(&[2])),
        ("vision_model.post_layernorm.bias".to_owned(), zeros(&[2])),
        ("attn_pool.q.weight".to_owned(), zeros(&[2, 2])),
        ("attn_pool.kv.weight".to_owned(), zeros(&[4, 3])),
    ]);
    let error = chain(&Network::SiglipVision.rename(qkv).unwrap_err());
    for part in [
        "`blocks.0.attn.qkv.bias` is [4], expected 3 blocks",
        "`blocks.1.attn.qkv.bias` is [], expected 3 blocks",
        "`vision_model.post_layernorm.bias` is there twice",
        "`vision_model.head.attention.in_proj_weight` cannot be put together from [[2, 2], [4, 3]]",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }

    // A released file without its projector, with a layer too many and a wrong shape.
    let mut tensors = read(&fixture("latest-checkpoint.pt"));
    tensors.retain(|name, _| !name.starts_with("model.projector."));
    tensors.insert("model.llm_backbone.llm.model.layers.2.input_layernorm.weight".to_owned(), zeros(&[8]));
    tensors.insert("model.llm_backbone.llm.model.norm.weight".to_owned(), zeros(&[9]));
    let mut tensors = Network::Vlm.rename(tensors).unwrap();
    drop_tied_head(&mut tensors, "language_model.").unwrap();
    let mut all = store(tensors);
    Vlm::new(&released_config(), all.root(), &Device::Cpu).unwrap();
    let error = all.finish().unwrap_err();
    let ModelError::Weights { problems } = &error else { panic!("{error}") };
    assert_eq!(problems.len(), 6, "{problems:?}");
}

#[test]
fn other_files_of_torch_are_refused_with_the_reason() {
    for (name, part) in [
        ("legacy.pt", "before version 1.6"),
        ("script.pt", "TorchScript"),
        ("whole_module.pt", "names `torch.nn.modules.linear.Linear`, which weights do not need"),
    ] {
        let error = chain(&read_weights(&fixture(name), &Device::Cpu).unwrap_err());
        assert!(error.contains(part) && error.contains(name), "{error}");
    }
    for (name, bytes, part) in [
        ("a.bin", &b"no zip"[..], "does not start as a zip archive"),
        ("a.bin", b"", "does not start as a zip archive"),
        ("a.bin", b"PK\x03\x04", "torch archive"),
        ("a.npz", b"", "weights are files that end in"),
    ] {
        let error = refusal(name, bytes);
        assert!(error.contains(part), "{error}");
    }
}

// Safetensors, alone and in shards.

/// A safetensors file with this header and so many bytes of zeros.
fn safetensors(header: &str, num_bytes: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + num_bytes, 0);
    file
}

/// A safetensors file with one number under each name.
fn scalars(names: &[&str]) -> Vec<u8> {
    let entries = names.iter().enumerate().map(|(index, name)| {
        let start = 4 * index;
        format!(r#""{name}":{{"dtype":"F32","shape":[1],"data_offsets":[{start},{}]}}"#, start + 4)
    });
    safetensors(&format!("{{{}}}", entries.collect::<Vec<_>>().join(",")), 4 * names.len())
}

#[test]
fn wrong_safetensors_are_refused_with_the_reason() {
    let one = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let twice = r#"{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let huge = r#"{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}"#;
    let narrow = r#"{"a":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}}"#;
    let vast = r#"{"a":{"dtype":"F32","shape":[0,4611686018427387904,4],"data_offsets":[0,0]}}"#;
    let mut long = safetensors(one, 4);
    long[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    for (bytes, part) in [
        (safetensors(one, 3), "lists 4 bytes of tensors, the file has 3"),
        (safetensors(one, 5), "lists 4 bytes of tensors, the file has 5"),
        (safetensors(twice, 4), "`a` is listed twice"),
        (safetensors(huge, 4), "lists 4398046511104 bytes"),
        (safetensors(narrow, 4), "numbers of type F8_E4M3 are not read"),
        (safetensors(vast, 0), "shape [0, 4611686018427387904, 4] is too large to count"),
        (safetensors("{", 0), "safetensors header"),
        (safetensors(&"[".repeat(10_000), 0), "safetensors header"),
        (long, "should be 18446744073709551615 bytes long"),
        (vec![1, 2, 3], "the file has only 3 bytes"),
    ] {
        let error = refusal("model.safetensors", &bytes);
        assert!(error.contains(part), "{part} in {error}");
    }
}

fn folder(files: &[(&str, Vec<u8>)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        write_atomic(&dir.path().join(name), bytes).unwrap();
    }
    dir
}

fn index(pairs: &[(&str, &str)]) -> (&'static str, Vec<u8>) {
    let pairs: Vec<String> = pairs.iter().map(|(name, file)| format!(r#""{name}":"{file}""#)).collect();
    let text = format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{{{}}}}}"#, pairs.join(","));
    ("model.safetensors.index.json", text.into_bytes())
}

#[test]
fn shards_are_read_through_their_index() {
    let files = [
        index(&[("a", "one.safetensors"), ("b", "two.safetensors"), ("c", "one.safetensors")]),
        ("one.safetensors", scalars(&["a", "c"])),
        ("two.safetensors", scalars(&["b"])),
    ];
    let dir = folder(&files);
    assert_eq!(read(dir.path()).into_keys().collect::<Vec<_>>(), ["a", "b", "c"]);
    let names: Vec<_> = weight_files(dir.path()).unwrap();
    let names: Vec<_> = names.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    assert_eq!(names, ["model.safetensors.index.json", "one.safetensors", "two.safetensors"]);
    // As transformers does it, a single file comes first.
    write_atomic(&dir.path().join("model.safetensors"), &scalars(&["d"])).unwrap();
    assert_eq!(read(dir.path()).into_keys().collect::<Vec<_>>(), ["d"]);
}

#[test]
fn shards_and_index_that_disagree_are_refused_with_every_reason() {
    let error_of =
        |files: &[(&str, Vec<u8>)]| chain(&read_weights(folder(files).path(), &Device::Cpu).unwrap_err());
    let missing = error_of(&[
        index(&[("a", "one.safetensors"), ("b", "two.safetensors"), ("c", "two.safetensors")]),
        ("one.safetensors", scalars(&["a"])),
    ]);
    assert!(missing.contains("`two.safetensors` is missing (2 tensors)"), "{missing}");
    let different = error_of(&[
        index(&[("a", "one.safetensors"), ("b", "two.safetensors"), ("c", "two.safetensors")]),
        ("one.safetensors", scalars(&["a", "b", "x"])),
        ("two.safetensors", scalars(&["b"])),
    ]);
    for part in [
        "`c` is not in `two.safetensors`",
        "`b` is in `one.safetensors`, listed for `two.safetensors`",
        "`x` is in `one.safetensors`, not listed",
    ] {
        assert!(different.contains(part), "{part} in {different}");
    }
    let twice = error_of(&[
        index(&[("a", "one.safetensors"), ("a", "two.safetensors")]),
        ("one.safetensors", scalars(&["a"])),
    ]);
    assert!(twice.contains("`a` is listed twice"), "{twice}");
    for outside in ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", "", "a/", "..\\\\x"]
    {
        let error = error_of(&[index(&[("a", outside)])]);
        assert!(error.contains("is not the name of a file in the folder"), "{outside}: {error}");
    }
    assert!(error_of(&[]).contains("no weights in this folder; looked for model.safetensors, "));
    let malformed = error_of(&[("model.safetensors.index.json", b"{}".to_vec())]);
    let expected =
        "model.safetensors.index.json: this index of shards cannot be used: cannot be read: missing field";
    assert!(malformed.contains(expected), "{malformed}");
}

// Files of torch that mean harm. They are put together byte by byte, so that they can say anything.

/// A zip archive as torch writes it.
fn archive(entries: &[(&str, &[u8])], compression: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(*name, SimpleFileOptions::default().compression_method(compression)).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn torch_file(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    let entries = [("x/data.pkl", pickle), ("x/byteorder", b"little"), ("x/data/0", storage)];
    archive(&entries, CompressionMethod::Stored)
}

fn text(value: &str) -> Vec<u8> {
    [b"X", &(value.len() as u32).to_le_bytes()[..], value.as_bytes()].concat()
}

fn int(value: i64) -> Vec<u8> {
    [&b"\x8a\x08"[..], &value.to_le_bytes()].concat()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [b"(", &items.concat()[..], b"t"].concat()
}

fn dict(items: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
    [b"}(", &items[..], b"u"].concat()
}

fn pickle(root: &[u8]) -> Vec<u8> {
    [b"\x80\x02", root, b"."].concat()
}

/// Opcodes of a tensor in storage 0, which is said to have `count` numbers.
fn tensor(count: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    tensor_of("FloatStorage", "0", count, offset, shape, strides)
}

fn tensor_of(kind: &str, key: &str, count: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let ints = |values: &[i64]| tuple(&values.iter().map(|value| int(*value)).collect::<Vec<_>>());
    let kind = format!("ctorch\n{kind}\n").into_bytes();
    let reference = tuple(&[text("storage"), kind, text(key), text("cpu"), int(count)]);
    let storage = [&reference[..], b"Q"].concat();
    let hooks = b"ccollections\nOrderedDict\n)R".to_vec();
    let parts = tuple(&[storage, int(offset), ints(shape), ints(strides), b"\x89".to_vec(), hooks]);
    [&b"ctorch._utils\n_rebuild_tensor_v2\n"[..], &parts, b"R"].concat()
}

#[test]
fn files_put_together_by_hand_are_read_if_nothing_is_wrong() {
    let bytes: Vec<u8> = [1_f32, 2.0, 3.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    let two = dict(&[("a", tensor(3, 1, &[2], &[1])), ("b", tensor(3, 0, &[2, 2], &[1, 1]))]);
    let dir = folder(&[("x.pt", torch_file(&pickle(&two), &bytes))]);
    let tensors = read(&dir.path().join("x.pt"));
    assert_eq!(tensors["a"].to_vec1::<f32>().unwrap(), [2.0, 3.0]);
    assert_eq!(tensors["b"].to_vec2::<f32>().unwrap(), [[1.0, 2.0], [2.0, 3.0]]);
}

#[test]
fn what_a_pickle_names_is_not_run() {
    for (root, name, at) in [
        ("cos\nsystem\n", "os.system", 2),
        ("cbuiltins\neval\n", "builtins.eval", 2),
        ("ctorch\nload\n", "torch.load", 2),
        ("ccollections\ndefaultdict\n", "collections.defaultdict", 2),
        ("c\n\n", ".", 2),
        ("\u{1b}[2Jcos\nsystem\n", "", 0),
    ] {
        let error = refusal("x.pt", &torch_file(&pickle(root.as_bytes()), b""));
        if name.is_empty() {
            assert!(error.contains("byte 2: opcode 0x1b is not known"), "{error}");
        } else {
            let part = format!("byte {at}: names `{name}`, which weights do not need; nothing of it was run");
            assert!(error.contains(&part), "{error}");
        }
    }
    // The same through the stack, as protocol 4 writes it.
    let stacked = [text("os"), text("system"), b"\x93".to_vec()].concat();
    assert!(refusal("x.pt", &torch_file(&pickle(&stacked), b"")).contains("names `os.system`"));
    // Called, or as the type of a storage.
    let called = [&b"cos\nsystem\n"[..], &tuple(&[text("touch /tmp/x")]), b"R"].concat();
    assert!(refusal("x.pt", &torch_file(&pickle(&called), b"")).contains("names `os.system`"));
    let storage = tensor_of("load", "0", 1, 0, &[1], &[1]);
    assert!(refusal("x.pt", &torch_file(&pickle(&storage), b"")).contains("names `torch.load`"));
    // Nothing that a terminal would obey is in a message.
    assert!(!refusal("x.pt", &torch_file(&pickle(b"c\x1b[2J\nx\n"), b"")).contains('\u{1b}'));
}

#[test]
fn tensors_outside_of_their_storage_are_refused() {
    for (tensor, part) in [
        (tensor(4, 0, &[5], &[1]), "shape [5], strides [1], offset 0 in a storage of 4 elements"),
        (tensor(4, 1, &[4], &[1]), "offset 1 in a storage of 4 elements"),
        (tensor(4, 0, &[2, 2], &[3, 1]), "in a storage of 4 elements"),
        (tensor(4, 5, &[0], &[1]), "in a storage of 4 elements"),
        (tensor(4, 4, &[], &[]), "in a storage of 4 elements"),
        (tensor(4, 0, &[i64::MAX, i64::MAX], &[0, 0]), "in a storage of 4 elements"),
        (tensor(4, 0, &[0, i64::MAX, i64::MAX], &[1, i64::MAX, 1]), "in a storage of 4 elements"),
        (tensor(4, 0, &[2], &[i64::MAX]), "in a storage of 4 elements"),
        (tensor(4, i64::MAX, &[2], &[i64::MAX]), "in a storage of 4 elements"),
        (tensor(4, 0, &[2], &[1, 1]), "shape [2] with strides [1, 1]"),
        (tensor(4, -1, &[2], &[1]), "-1 is negative"),
        (tensor(4, 3, &[4], &[-1]), "-1 is negative"),
        (tensor(4, 0, &[1; 17], &[1; 17]), "17 dimensions"),
        (tensor(4, 0, &[1 << 40], &[0]), "share a storage of 4; at most 4 times as many are read"),
        (tensor(5, 0, &[5], &[1]), "has 16 bytes, which is not 5 times F32"),
        (tensor(i64::MAX, 0, &[5], &[1]), "has 16 bytes, which is not"),
        (tensor_of("DoubleStorage", "0", 4, 0, &[1], &[1]), "has 16 bytes, which is not 4 times F64"),
        (tensor_of("FloatStorage", "7", 4, 0, &[1], &[1]), "`x/data/7`"),
        (tensor_of("FloatStorage", "../../0", 4, 0, &[1], &[1]), "`x/data/../../0`"),
    ] {
        let error = refusal("x.pt", &torch_file(&pickle(&dict(&[("a", tensor)])), &[0; 16]));
        assert!(error.contains(part), "{part} in {error}");
    }
    let two_ways = dict(&[("a", tensor(4, 0, &[1], &[1])), ("b", tensor(5, 0, &[1], &[1]))]);
    let error = refusal("x.pt", &torch_file(&pickle(&two_ways), &[0; 16]));
    assert!(error.contains("storage `0` is described in two ways"), "{error}");
    let shifted: Vec<Vec<u8>> = (0..10).map(|start| tensor(100, start, &[90], &[1])).collect();
    let error = refusal("x.pt", &torch_file(&pickle(&tuple(&shifted)), &[0; 400]));
    assert!(error.contains("tensors of 900 elements share a storage of 100"), "{error}");
}

#[test]
fn pickles_that_mean_harm_are_refused() {
    // A dict that holds the one before it twice, thirty times over: 2^30 values, were they counted out.
    let mut doubling = b"}q\0".to_vec();
    for place in 1..30_u8 {
        let twice = [text("a"), vec![b'h', place - 1], text("b"), vec![b'h', place - 1]].concat();
        doubling.extend([b"}(", &twice[..], b"uq", &[place]].concat());
    }
    let in_itself = [b"}q\0".to_vec(), text("a"), b"h\0s".to_vec()].concat();
    let long_name = "n".repeat(1000);
    let long = dict(&[(&long_name, dict(&[(&long_name, tensor(4, 0, &[1], &[1]))]))]);
    let mut many_names = dict(&[("a", tensor(4, 0, &[1], &[1]))]);
    many_names.extend(b"q\0");
    let mut repeated = b"](".to_vec();
    repeated.extend(many_names);
    repeated.extend(b"h\0".repeat(300));
    repeated.push(b'e');
    let far = [b"}".to_vec(), text(&"n".repeat(900)), repeated, b"s".to_vec()].concat();
    for (root, part) in [
        (b"]".repeat(1 << 21), "more than 1048576 objects"),
        ([b"]".repeat(40), b"a".repeat(39)].concat(), "more than 32 dicts or lists in each other"),
        (in_itself, "hold each other again and again"),
        (doubling, "hold each other again and again"),
        (far, "far longer than the file"),
        (long, "a name of more than 1024 bytes"),
        (b"(".repeat(1000), "nothing is there to take"),
        (b"t".to_vec(), "an end without its beginning"),
        (b"]]0".to_vec(), "opcode 0x30 is not known"),
        (b"X\xff\xff\xff\xff".to_vec(), "ends too early"),
        (b"\x8d\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(), "ends too early"),
        (b"X\x01\0\0\0\xff".to_vec(), "not UTF-8"),
        (b"\x8a\x09\0\0\0\0\0\0\0\0\0".to_vec(), "an int of 9 bytes"),
        (b"h\x05".to_vec(), "nothing is remembered as 5"),
        (b"]r\xff\xff\xff\xffj\xff\xff\xff\xffu".to_vec(), "an end without its beginning"),
        ([b"c".to_vec(), b"x".repeat(1 << 16)].concat(), "a name that does not end"),
        (b"}]K\x01s".to_vec(), "a list as the key of a dict"),
        (b"}K\x01a".to_vec(), "items for a dict"),
        (b"]NNs".to_vec(), "keys for a list"),
        (b"}(Nu".to_vec(), "a key without its value"),
        (b"NQ".to_vec(), "where a tuple is expected"),
        (b"K\x01)R".to_vec(), "a call of an int"),
        (b"ctorch\nFloatStorage\n".to_vec(), "a name beside the tensors"),
        (b"]}b}b".to_vec(), "attributes for a list"),
        (tensor(4, 0, &[1], &[1]), "a single tensor, which has no name"),
    ] {
        let error = refusal("x.pt", &torch_file(&pickle(&root), &[0; 16]));
        assert!(error.contains(part), "{part} in {error}");
    }
    let error = refusal("x.pt", &torch_file(b"\x80\x06.", b""));
    assert!(error.contains("protocol 6, known are 2 to 5"), "{error}");
    let error = refusal("x.pt", &torch_file(b"\x80\x02}", b""));
    assert!(error.contains("byte 3: ends too early"), "{error}");
    let same = dict(&[("a.b", tensor(4, 0, &[1], &[1])), ("a", dict(&[("b", tensor(4, 1, &[1], &[1]))]))]);
    let error = refusal("x.pt", &torch_file(&pickle(&same), &[0; 16]));
    assert!(error.contains("tensor `a.b`: is in the file twice"), "{error}");
}

#[test]
fn archives_that_mean_harm_are_refused() {
    let good = pickle(&dict(&[("a", tensor(4, 0, &[4], &[1]))]));
    let storage = [7; 16];
    let whole = torch_file(&good, &storage);
    for length in (0..whole.len()).step_by(11) {
        refusal("x.pt", &whole[..length]);
    }
    // One bit of a storage, of the pickle: the checksum tells.
    for needle in [&storage[..], b"storage"] {
        let mut damaged = whole.clone();
        let at = damaged.windows(needle.len()).position(|bytes| bytes == needle).unwrap();
        damaged[at] ^= 1;
        let error = refusal("x.pt", &damaged);
        assert!(error.contains("Invalid checksum"), "{error}");
    }
    // A bomb: 16 MiB in a few KB.
    let zeros = vec![0; 1 << 24];
    let entries = [("x/data.pkl", &good[..]), ("x/data/0", &zeros)];
    let bomb = archive(&entries, CompressionMethod::Deflated);
    assert!(bomb.len() < 1 << 16);
    assert!(refusal("x.pt", &bomb).contains("is compressed or encrypted"));
    let stored = CompressionMethod::Stored;
    for (entries, part) in [
        (vec![("x/data.pkl", &good[..]), ("x/byteorder", b"big")], "byte order `big`"),
        (vec![("x/data.pkl", &good[..]), ("x/byteorder", &[b'l'; 99])], "goes on after its end"),
        (vec![("x/data.pkl", &good[..]), ("y/data.pkl", &good)], "several data.pkl"),
        (vec![("x/y/data.pkl", &good[..])], "has no data.pkl"),
        (vec![("data.pkl", &good[..])], "has no data.pkl"),
        (vec![("x/data.pkl", &good[..])], "`x/data/0`"),
        (vec![("x/data.pkl", &good[..]), ("x/constants.pkl", b"")], "TorchScript"),
    ] {
        let error = refusal("x.pt", &archive(&entries, stored));
        assert!(error.contains(part), "{part} in {error}");
    }
    // Sizes in the central directory that the file does not have.
    let mut lies = torch_file(&good, &storage);
    let directory = lies.windows(4).rposition(|bytes| bytes == b"PK\x01\x02").unwrap();
    for field in [20, 24] {
        lies[directory + field..directory + field + 4].copy_from_slice(&0x7fff_ffff_u32.to_le_bytes());
    }
    let error = refusal("x.pt", &lies);
    assert!(error.contains("bytes in a file of"), "{error}");
}
