//! Folders that are exported for transformers: what it computes of them.

use crate::row::{Equal, Place, Row};
use anyhow::{Context as _, ensure};
use candle_core::{Device, Tensor};
use oqvl_model::{
    Companions, Contents, ExportFormat, HiddenAct, MAX_SHARD_BYTES, Missing, ParamStore, Qwen2, Qwen2Config,
    SECOND_TO_LAST, SiglipVisionConfig, Trainable, Vlm, VlmConfig, export, read_safetensors, read_vlm,
    save_checkpoint,
};
use oqvl_text_prep::{BpeTrainer, ChatTemplate, IMAGE_TOKEN_ID, Role, Turn};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const IMAGE_SIZE: usize = 14;
/// 3 x 3 patches, and two pixels over.
const GRID: usize = 3;
/// Names of the checkpoints, whether their head is the embedding, and how many rows of their vocabulary
/// have no token: the public models have some to spare.
const MODELS: [(&str, bool, usize); 3] = [("tied-spare", true, 7), ("tied", true, 0), ("untied", false, 0)];

/// Exports checkpoints of ours and compares what transformers makes of them, with `python`, an interpreter that has it.
pub(crate) fn measure(python: Option<&Path>, skip: &mut impl FnMut(String)) -> anyhow::Result<Vec<Row>> {
    let Some(python) = python else {
        skip("exported folders in transformers: no interpreter was named with --python".to_owned());
        return Ok(Vec::new());
    };
    let dir = tempfile::tempdir()?;
    let mut rows = Vec::new();
    for (name, tied, spare) in MODELS {
        let ours = checkpoint(&dir.path().join(name), tied, spare)?;
        let model = read_vlm(&ours, &Companions::default(), &Device::Cpu)?;
        for format in [ExportFormat::Llava, ExportFormat::Qwen2] {
            let out = dir.path().join(format!("{name}-{format:?}"));
            export(&model, format.clone(), &out, MAX_SHARD_BYTES)?;
            let exported = Exported { model: &model, format, out, name };
            let place = || format!("{name}, {:?}", exported.format);
            rows.extend(exported.in_transformers(python).with_context(place)?);
        }
    }
    Ok(rows)
}

/// A checkpoint of ours, drawn from a seed.
fn checkpoint(dir: &Path, tied: bool, spare: usize) -> anyhow::Result<PathBuf> {
    let trained = BpeTrainer::new(300).train(["a red cube, a cube?".to_owned()].into_iter())?;
    std::fs::create_dir(dir)?;
    let tokenizer_file = dir.join("tokenizer-of-ours.json");
    oqvl_shard_io::write_atomic(&tokenizer_file, trained.json())?;
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
            vocab_size: trained.tokenizer()?.vocab_size() + spare,
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
        pooled_grid: GRID,
        vision_feature_layer: SECOND_TO_LAST,
    };
    let mut store = ParamStore::seeded(8, &Device::Cpu);
    Vlm::new(&config, store.root(), &Device::Cpu)?;
    let out = dir.join("ours");
    save_checkpoint(&out, &config, &store, &tokenizer_file)?;
    Ok(out)
}

/// A folder, and what it was made of.
struct Exported<'a> {
    model: &'a Contents<VlmConfig>,
    format: ExportFormat,
    out: PathBuf,
    name: &'static str,
}

impl Exported<'_> {
    fn place(&self) -> Place {
        let architecture = match self.format {
            ExportFormat::Llava => "export: LLaVA (transformers)",
            _ => "export: Qwen2 (transformers)",
        };
        Place { architecture, fixture: self.name.to_owned() }
    }

    fn in_transformers(&self, python: &Path) -> anyhow::Result<Vec<Row>> {
        let file = |ending: &str| self.out.with_extension(ending);
        let (inputs, outputs) = (file("inputs"), file("outputs"));
        let image: &[i64] = if self.format == ExportFormat::Llava { &[IMAGE_TOKEN_ID] } else { &[] };
        let ids = [&[40, 2], image, &[41, 250, 7, 41]].concat();
        let pixels: Vec<f32> = (0..3 * IMAGE_SIZE * IMAGE_SIZE).map(|at| (at as f32 * 0.7).sin()).collect();
        let given = HashMap::from([
            ("input_ids", Tensor::new(ids.as_slice(), &Device::Cpu)?),
            ("pixel_values", Tensor::from_slice(&pixels, (1, 3, IMAGE_SIZE, IMAGE_SIZE), &Device::Cpu)?),
        ]);
        candle_core::safetensors::save(&given, &inputs)?;
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("check_export.py");
        let mut check = Command::new(python);
        check.arg(&script).args([&self.out, &inputs, &outputs]).env("PYTHONDONTWRITEBYTECODE", "1");
        let output = check.stdin(Stdio::null()).output().with_context(|| python.display().to_string())?;
        let (stdout, stderr) =
            (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "check_export.py failed ({}): {stderr}", output.status);
        let said: Value = serde_json::from_str(stdout.lines().last().unwrap_or_default())?;

        let expected = logits(self.model, &ids, &pixels)?;
        // A placeholder for images may have a row of its own there.
        let found = read_safetensors(&outputs, &Device::Cpu)?.remove("logits").context("no logits")?;
        let found = found.narrow(1, 0, expected.dim(1)?)?;
        let values = |tensor: &Tensor| tensor.flatten_all()?.to_vec1::<f32>();
        let texts = self.texts()?;
        let differing: Vec<&str> =
            texts.iter().filter(|(name, ours)| said[*name] != *ours).map(|(name, _)| *name).collect();
        let what = "ids, settings, processor, chat template";
        let what = match differing.as_slice() {
            [] => what.to_owned(),
            names => format!("{what} (not equal: {})", names.join(", ")),
        };
        let equal = Equal { num_equal: texts.len() - differing.len(), num_items: texts.len() };
        Ok(vec![
            self.place().f32("logits", &values(&found)?, &values(&expected)?),
            self.place().sequence("-", &what, equal),
        ])
    }

    /// What transformers must say of the folder's tokenizer, settings and processor, in the words of `check_export.py`.
    fn texts(&self) -> anyhow::Result<Vec<(&'static str, Value)>> {
        let tokenizer = self.model.tokenizer()?;
        let mut texts = vec![
            ("dtype", json!("torch.float32")),
            ("special", json!([tokenizer.bos_id(), tokenizer.eos_id(), tokenizer.pad_id()])),
            ("text", json!(tokenizer.encode("<s>a red cube<|im_end|>")?)),
            ("do_sample", json!(false)),
            ("eos", json!(tokenizer.eos_id())),
        ];
        if self.format == ExportFormat::Llava {
            let turns = [
                Turn::new(Role::Human, "<image>\na red cube?"),
                Turn::new(Role::Assistant, " a cube "),
                Turn::new(Role::Human, "a?"),
            ];
            // The newline after the placeholder is one that the network never sees.
            let chat = ChatTemplate::Reference.render(&turns).replace("<image>\n", "<image>");
            // Later turns keep it, and their end.
            let later = [
                Turn::new(Role::Human, "a?"),
                Turn::new(Role::Assistant, "cube"),
                Turn::new(Role::Human, "<image>\na cube? <image>"),
            ];
            texts.extend([
                ("image_id", json!(tokenizer.vocab_size())),
                ("num_placeholders", json!(GRID * GRID)),
                ("pixel_shape", json!([1, 3, IMAGE_SIZE, IMAGE_SIZE])),
                ("pixel", json!([1.0, -1.0, -0.6])),
                ("answer_has_image", json!(false)),
                ("chat", json!(chat)),
                ("later", json!(ChatTemplate::Reference.render(&later))),
            ]);
        }
        Ok(texts)
    }
}

/// Logits at every position `(s, vocab)`, computed here.
fn logits(model: &Contents<VlmConfig>, ids: &[i64], pixels: &[f32]) -> anyhow::Result<Tensor> {
    let store = || ParamStore::new(model.tensors.clone(), Missing::Refuse, Trainable::None, &Device::Cpu);
    let vlm = Vlm::new(&model.config, store().root(), &Device::Cpu)?;
    let llm = Qwen2::new(&model.config.text_config, store().root().pp("language_model"))?;
    let image = vlm.encode_images(&[pixels])?.squeeze(0)?;
    let embed = |&id: &i64| match id {
        IMAGE_TOKEN_ID => Ok(image.clone()),
        id => llm.embed(&Tensor::new(&[id as u32], &Device::Cpu)?),
    };
    let pieces = ids.iter().map(embed).collect::<Result<Vec<_>, _>>()?;
    let hidden = llm.forward(&Tensor::cat(&pieces, 0)?.unsqueeze(0)?)?;
    Ok(llm.logits(&hidden.squeeze(0)?)?)
}
