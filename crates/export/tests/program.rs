//! The program, as a shell starts it.

use candle_core::Device;
use oqvl_model::{
    Companions, HiddenAct, ParamStore, Qwen2Config, SECOND_TO_LAST, SiglipVisionConfig, Vlm, VlmConfig,
    read_vlm, save_checkpoint,
};
use oqvl_shard_io::write_atomic;
use oqvl_text_prep::BpeTrainer;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A checkpoint of ours whose images are 4 patches, pooled to one token or not.
fn checkpoint(dir: &Path, pooled_grid: usize) -> PathBuf {
    let trained = BpeTrainer::new(300).train(["a red cube".to_owned()].into_iter()).unwrap();
    let tokenizer_file = dir.join("tokenizer-of-ours.json");
    write_atomic(&tokenizer_file, trained.json()).unwrap();
    let config = VlmConfig {
        vision_config: SiglipVisionConfig {
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 2,
            num_attention_heads: 2,
            image_size: 8,
            patch_size: 4,
            layer_norm_eps: 1e-6,
            hidden_act: HiddenAct::Gelu,
        },
        text_config: Qwen2Config {
            vocab_size: trained.tokenizer().unwrap().vocab_size(),
            hidden_size: 8,
            intermediate_size: 12,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            num_key_value_heads: 1,
            max_position_embeddings: 32,
            rope_theta: 1e4,
            rms_norm_eps: 1e-6,
            tie_word_embeddings: true,
        },
        pooled_grid,
        vision_feature_layer: SECOND_TO_LAST,
    };
    let mut store = ParamStore::seeded(8, &Device::Cpu);
    Vlm::new(&config, store.root(), &Device::Cpu).unwrap();
    let out = dir.join(format!("ours-{pooled_grid}"));
    save_checkpoint(&out, &config, &store, &tokenizer_file).unwrap();
    out
}

fn program(dir: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oqvl-export"));
    command.current_dir(dir).args(args).env("HF_HUB_OFFLINE", "1").env("HF_HOME", dir.join("hub"));
    command.env_remove("HF_HUB_CACHE").output().unwrap()
}

fn refusal(dir: &Path, args: &[&str], code: i32) -> String {
    let output = program(dir, args);
    assert_eq!(output.status.code(), Some(code));
    assert!(output.stdout.is_empty());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn every_layout_is_written_and_the_checkpoint_goes_round() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), 2);
    for layout in ["llava", "qwen2", "reference", "checkpoint"] {
        let ids: &[&str] = match layout {
            "reference" => &["--vision-backbone-id", "siglip-tiny", "--llm-backbone-id", "qwen-tiny"],
            _ => &[],
        };
        let output = program(dir.path(), &[&["--model", "ours-2", "--to", layout, layout], ids].concat());
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(said.starts_with(&format!("{layout}: ")) && said.ends_with(" bytes\n"), "{said}");
    }
    // What the reference leaves out comes from where it was taken.
    let whole = ["--model", "reference", "--vision-tower", "ours-2-tower", "--language-model", "qwen2"];
    std::fs::create_dir(dir.path().join("ours-2-tower")).unwrap();
    let model = read_vlm(&dir.path().join("ours-2"), &Companions::default(), &Device::Cpu).unwrap();
    let tower = serde_json::to_vec(&model.config.vision_config).unwrap();
    write_atomic(&dir.path().join("ours-2-tower/config.json"), &tower).unwrap();
    let output = program(dir.path(), &[&whole[..], &["--to", "llava", "again"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let weights = |name: &str| std::fs::read(dir.path().join(name).join("model.safetensors")).unwrap();
    assert_eq!(weights("again"), weights("llava"));
}

#[test]
fn what_cannot_be_is_one_sentence() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path(), 1);
    let pooled = refusal(dir.path(), &["--model", "ours-1", "--to", "llava", "out"], 2);
    assert!(pooled.starts_with("oqvl-export: this model pools 2 x 2 patches to 1 x 1 tokens"), "{pooled}");
    let shape = refusal(dir.path(), &["--model", "ours-1", "--to", "reference", "out"], 2);
    let expected =
        "oqvl-export: --vision-backbone-id: the vision tower has not the shape of siglip-vit-so400m";
    assert!(shape.starts_with(expected), "{shape}");
    let ids = ["--vision-backbone-id", "siglip-tiny", "--llm-backbone-id", "qwen-tiny"];
    let idle = refusal(dir.path(), &[&["--model", "ours-1", "--to", "llava", "out"], &ids[..]].concat(), 2);
    assert!(idle.contains("are for --to reference"), "{idle}");
    assert!(!dir.path().join("out").exists());
    let output =
        program(dir.path(), &[&["--model", "ours-1", "--to", "reference", "out"], &ids[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let incomplete = refusal(dir.path(), &["--model", "out", "--to", "checkpoint", "whole"], 2);
    assert!(incomplete.contains("give the folder of its vision tower (siglip-tiny)"), "{incomplete}");
    assert!(
        incomplete.starts_with("oqvl-export: --vision-tower and --language-model: out does"),
        "{incomplete}"
    );
    let there = refusal(dir.path(), &["--model", "ours-1", "--to", "checkpoint", "out"], 2);
    assert_eq!(there, "oqvl-export: out is there already; give the name of a new folder\n");
    let nothing = refusal(dir.path(), &["--model", "nowhere", "--to", "checkpoint", "new"], 2);
    assert!(nothing.contains("there is no path `nowhere`, and it is no model of the hub"), "{nothing}");
    let typo = refusal(dir.path(), &["--model", "team/typo", "--to", "checkpoint", "new"], 2);
    let expected = "no folder team/typo here; looking in the hub's cache for the model team/typo\n\
                    oqvl-export: no model: there is no path `team/typo`, and as a model of the hub: ";
    assert!(typo.starts_with(expected), "{typo}");
    let address = refusal(dir.path(), &["--model", "hf://team/typo", "--to", "checkpoint", "new"], 2);
    assert!(address.contains("\noqvl-export: no model: hf://team/typo: offline"), "{address}");
    let tower = ["--model", "ours-1", "--vision-tower", "no/such/tower", "--to", "checkpoint", "new"];
    let tower = refusal(dir.path(), &tower, 2);
    assert!(
        tower.starts_with("oqvl-export: no model: there is no path `no/such/tower`, and it is"),
        "{tower}"
    );
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let empty = refusal(dir.path(), &["--model", "empty", "--to", "checkpoint", "new"], 1);
    assert!(empty.starts_with("oqvl-export: cannot read empty/config.json"), "{empty}");
    let unknown = refusal(dir.path(), &["--model", "ours-1", "--to", "gguf", "new"], 2);
    assert!(unknown.contains("[possible values: llava, qwen2, reference, checkpoint]"), "{unknown}");
}
