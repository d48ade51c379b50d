//! The program itself, with an untrained model of a few thousand parameters: what it says is noise, always the same noise.

use candle_core::Device;
use oqvl_model::{ParamStore, Vlm, VlmConfig, save_checkpoint};
use oqvl_shard_io::write_atomic;
use oqvl_text_prep::BpeTrainer;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// A folder with a model in `model`, and images `one.png` and `two.png`.
fn world() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let texts = ["What is it?", "a red cube", "A", "B"].map(str::to_owned);
    let tokenizer = BpeTrainer::new(300).train(texts.into_iter()).unwrap();
    let tokenizer_file = dir.path().join("tokenizer.json");
    write_atomic(&tokenizer_file, tokenizer.json()).unwrap();
    let config: VlmConfig = serde_json::from_value(serde_json::json!({
        "vision_config": {
            "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
            "image_size": 8, "patch_size": 4, "layer_norm_eps": 1e-6, "hidden_act": "gelu",
        },
        "text_config": {
            "vocab_size": tokenizer.tokenizer().unwrap().vocab_size(), "hidden_size": 16,
            "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "max_position_embeddings": 400, "rope_theta": 1e4, "rms_norm_eps": 1e-6,
            "tie_word_embeddings": false,
        },
        "pooled_grid": 2,
    }))
    .unwrap();
    let mut store = ParamStore::seeded(7, &Device::Cpu);
    Vlm::new(&config, store.root(), &Device::Cpu).unwrap();
    store.finish().unwrap();
    save_checkpoint(&dir.path().join("model"), &config, &store, &tokenizer_file).unwrap();
    for (number, name) in ["one.png", "two.png"].iter().enumerate() {
        let image = oqvl_image_prep::RgbImage::new(9, 7, vec![40 + 150 * number as u8; 9 * 7 * 3]).unwrap();
        write_atomic(&dir.path().join(name), &oqvl_image_prep::encode_png(&image)).unwrap();
    }
    write_atomic(&dir.path().join("notes.txt"), b"no image").unwrap();
    dir
}

/// The program's output, with `input` on standard input.
fn chat(dir: &Path, args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_oqvl-chat"))
        .current_dir(dir)
        .args(args)
        .env("HF_HUB_OFFLINE", "1")
        .env("HF_HOME", dir.join("hub"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A program that reads nothing may be gone already.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// What was said on standard output; the program must have ended well.
#[track_caller]
fn said(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// How it failed, and what it said of that on standard error; nothing may be on standard output.
#[track_caller]
fn failed(output: &Output) -> (i32, String) {
    assert!(output.stdout.is_empty(), "{output:?}");
    (output.status.code().unwrap(), String::from_utf8(output.stderr.clone()).unwrap())
}

#[test]
fn a_question_is_answered_on_standard_output() {
    let dir = world();
    let ask = |args: &[&str]| {
        let all = [&["--model", "model", "--max-new-tokens", "24"], args].concat();
        said(&chat(dir.path(), &all, ""))
    };
    let answer = ask(&["--image", "one.png", "What is it?"]);
    assert!(answer.ends_with('\n') && answer.trim().chars().count() > 3, "{answer:?}");
    assert_eq!(ask(&["--image", "one.png", "<image>\nWhat is it?"]), answer);
    for other in [
        &["--image", "two.png", "What is it?"][..],
        &["--image", "one.png", "--image", "two.png", "What is it?"],
        &["--image", "one.png", "--template", "qwen", "What is it?"],
        &["--image", "one.png", "--template", "raw", "What is it?"],
        &["--image", "one.png", "--temperature", "2", "--seed", "1", "What is it?"],
    ] {
        let said = ask(other);
        assert_ne!(said, answer, "{other:?}");
        assert_eq!(ask(other), said, "{other:?}");
    }
    assert_eq!(ask(&["--image", "one.png", "--top-k", "1", "--seed", "3", "What is it?"]), answer);
    // A stop string of two characters from the middle.
    let letters: Vec<char> = answer.trim().chars().collect();
    let stop: String = letters[2..4].iter().collect();
    let stopped = ask(&["--image", "one.png", "--stop", &stop, "What is it?"]);
    assert_eq!(stopped.trim_end(), answer[..answer.find(&stop).unwrap()].trim_end());
}

#[test]
fn probabilities_add_up() {
    let dir = world();
    let args = ["--model", "model", "--image", "one.png", "--probabilities", "A,B,c", "What is it?"];
    let lines = said(&chat(dir.path(), &args, ""));
    let rows: Vec<(&str, f64)> = lines
        .lines()
        .map(|line| line.split_once('\t').unwrap())
        .map(|(text, number)| (text, number.parse().unwrap()))
        .collect();
    assert_eq!(rows.iter().map(|(text, _)| *text).collect::<Vec<_>>(), ["A", "B", "c"]);
    assert!((rows.iter().map(|(_, number)| number).sum::<f64>() - 1.0).abs() < 1e-5, "{lines}");
    let long = ["--model", "model", "--probabilities", "A,A B", "What is it?"];
    let (code, error) = failed(&chat(dir.path(), &long, ""));
    assert!(code == 2 && error.contains("`A B` is"), "{error}");
}

#[test]
fn a_session_keeps_what_was_said_until_it_is_reset() {
    let dir = world();
    let args = ["--model", "model", "--max-new-tokens", "8", "--image", "one.png"];
    let session = |input: &str| {
        let output = chat(dir.path(), &args, input);
        (said(&output), String::from_utf8(output.stderr).unwrap())
    };
    let first = said(&chat(dir.path(), &[&args[..], &["What is it?"]].concat(), ""));
    // The end of input ends it, with or without a last newline.
    assert_eq!(session("What is it?").0, first);
    let (answers, _) =
        session("What is it?\nWhat is it?\n\n/reset\n/image one.png\nWhat is it?\n/quit\nnot asked\n");
    let second = answers.strip_prefix(first.as_str()).unwrap().strip_suffix(first.as_str()).unwrap();
    assert!(!second.is_empty() && second != first, "the second question has a history: {answers:?}");

    // Whatever goes wrong, the session goes on.
    let wrong = "/imgae one.png\n/image absent.png\n/image notes.txt\n<image> <image>?\n/help\n";
    let (answers, errors) = session(&format!("{wrong}{}\nWhat is it?\n", "a cube ".repeat(400)));
    assert_eq!(answers, first);
    for part in [
        "`/imgae one.png` is no command",
        "image absent.png cannot be read",
        "image notes.txt: not a JPEG",
        "<image> 2 times, and there are 1 images",
        "/image PATH adds an image",
        "the model takes 400",
    ] {
        assert!(errors.contains(part), "no {part:?} in {errors}");
    }
}

/// A checkpoint of the reference that leaves its tower and its tokenizer to models that nobody has named.
#[test]
fn what_the_release_leaves_to_others_is_found_by_itself_and_before_its_weights() {
    let dir = world();
    let reference = dir.path().join("reference");
    std::fs::create_dir(&reference).unwrap();
    let config = |llm: &str| {
        serde_json::json!({"model": {
            "arch_specifier": "full-align+4-avgpool", "image_resize_strategy": "resize-naive",
            "vision_backbone_id": "siglip-vit-so400m-384px", "llm_backbone_id": llm,
        }})
    };
    let write = |llm: &str| {
        write_atomic(&reference.join("config.json"), config(llm).to_string().as_bytes()).unwrap();
    };
    write("qwen2.5-1.5b-instruct");
    let (code, error) = failed(&chat(dir.path(), &["--model", "reference", "q"], ""));
    assert_eq!(code, 2, "{error}");
    for part in [
        "leaves config and tokenizer of its language model to Qwen/Qwen2.5-1.5B-Instruct (qwen2.5-1.5b-instruct); \
         --language-model names another",
        "--vision-tower names another",
        "looking in the hub's cache for the model timm/ViT-SO400M-14-SigLIP-384",
    ] {
        assert!(error.contains(part), "no {part:?} in {error}");
    }
    write("qwen9");
    let args = ["--model", "reference", "--vision-tower", "model", "q"];
    let (code, error) = failed(&chat(dir.path(), &args, ""));
    let expected = "oqvl-chat: --language-model: reference does not hold the whole network; to complete it, give the folder \
                    of its language model (qwen9), or ";
    assert!(code == 2 && error.starts_with(expected), "{error}");
}

#[test]
fn the_template_follows_the_folder_and_is_told() {
    let dir = world();
    let told = |args: &[&str]| {
        let all = [&["--model", "model", "--max-new-tokens", "1"], args].concat();
        let output = chat(dir.path(), &all, "");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let loss = "leaves out the token after each <image>";
    assert!(told(&["q"]).contains("template: reference (--template chooses another)"));
    assert!(!told(&["--image", "one.png", "q"]).contains(loss));
    assert!(told(&["--image", "one.png", "What is <image>?"]).contains(loss));
    let qwen = told(&["--template", "qwen", "--image", "one.png", "What is <image>?"]);
    assert!(!qwen.contains("template"), "{qwen}");
}

#[test]
fn a_special_token_is_a_stop() {
    let dir = world();
    // Drawn so evenly, one of the special tokens comes among so many.
    let ask = |stops: &[&str]| {
        let mut args = vec!["--model", "model", "--max-new-tokens", "200", "--temperature", "9"];
        stops.iter().for_each(|stop| args.extend(["--stop", stop]));
        args.push("What is it?");
        said(&chat(dir.path(), &args, ""))
    };
    let all = ask(&[]);
    let stopped = ask(&["<|im_start|>", "<|endoftext|>", "<|endofchunk|>", "<s>"]);
    assert!(stopped.len() < all.len() && all.starts_with(stopped.trim_end()), "{all:?}, {stopped:?}");
}

/// Where no person can say `/quit`, Ctrl-C ends the program.
#[cfg(target_os = "linux")]
#[test]
fn ctrl_c_ends_a_session_that_reads_a_pipe() {
    use std::os::unix::process::ExitStatusExt as _;
    let ignored = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = ignored.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap().trim();
    if u64::from_str_radix(ignored, 16).unwrap() & 2 != 0 {
        eprintln!("skipped: who started this test ignores Ctrl-C, and so do all its programs");
        return;
    }
    let dir = world();
    let mut child = Command::new(env!("CARGO_BIN_EXE_oqvl-chat"))
        .current_dir(dir.path())
        .args(["--model", "model", "--max-new-tokens", "2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    input.write_all(b"What is it?\n").unwrap();
    // Its first answer, after which it waits for a line.
    let mut answer = [0];
    child.stdout.as_mut().unwrap().read_exact(&mut answer).unwrap();
    let kill = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(kill.success());
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(2), "{status}");
}

#[test]
fn what_is_wrong_is_one_sentence() {
    let dir = world();
    for (args, code, part) in [
        (&["--model", "model", "--imgae", "one.png", "q"][..], 2, "--image"),
        (&["q"], 2, "--model"),
        (&["--model", "model", "--temperature", "0", "q"], 2, "temperature must be"),
        (&["--model", "no/such/folder", "q"], 2, "no/such/folder"),
        (
            &["--model", "team/typo", "q"],
            2,
            "no folder team/typo here; looking in the hub's cache for the model",
        ),
        (&["--model", "team/typo", "q"], 2, "there is no path `team/typo`, and as a model of the hub: "),
        (&["--model", "hf://team/typo", "q"], 2, "oqvl-chat: no model: hf://team/typo: offline"),
        (
            &["--model", "model", "--vision-tower", "no/such/tower", "q"],
            2,
            "oqvl-chat: no model: there is no path `no/such/tower`, and it is no model of the hub: those are",
        ),
        (&["--model", "notes.txt", "q"], 1, "notes.txt/config.json"),
        (&["--model", "model", ""], 2, "the question is empty"),
        (&["--model", "model", "--image", "absent.png", "q"], 1, "image absent.png cannot be read"),
        (&["--model", "model", "--image", "notes.txt", "q"], 1, "not a JPEG, PNG"),
        (&["--model", "model", "<image>?"], 1, "<image> 1 times, and there are 0 images"),
        (&["--model", ".", "q"], 1, "config.json"),
    ] {
        let (found, error) = failed(&chat(dir.path(), args, ""));
        assert_eq!(found, code, "{args:?}: {error}");
        assert!(error.contains(part) && !error.contains("panicked"), "{args:?}: {error}");
    }
    let long = "a cube ".repeat(300);
    let (code, error) = failed(&chat(dir.path(), &["--model", "model", &long], ""));
    assert!(code == 1 && error.contains("the model takes 400"), "{error}");
}
