//! What a folder says is done to images before the network sees them, against what is done here.

use crate::ModelError;
use crate::checkpoint::{ConfigFile, config_file, unreadable};
use oqvl_image_prep::{Preprocessing, ResizeMode};
use oqvl_shard_io::read_json;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// Hugging Face's file, up to transformers 4.
pub(crate) const PREPROCESSOR_FILE: &str = "preprocessor_config.json";
/// Since transformers 5 the same stands here, as `image_processor`.
pub(crate) const PROCESSOR_FILE: &str = "processor_config.json";

/// Pillow's number for bicubic.
pub(crate) const BICUBIC: u64 = 3;
/// Published means and standard deviations are written with different numbers of digits.
const TOLERANCE: f32 = 1e-6;

/// Keys that say who saved the file, in which library's terms, and how a batch is put together; and those of what is done to
/// no image here: all are RGB, a square needs no fill, and how many tokens it becomes is the network's to say.
///
/// Source: `BaseImageProcessor` and `BaseImageProcessorFast` of transformers 4 and 5, `PreprocessCfg` of open_clip 3.3.
const PASSED_OVER: &[&str] = &[
    "_processor_class",
    "_valid_processor_keys",
    "data_format",
    "device",
    "disable_grouping",
    "do_convert_rgb",
    "feature_extractor_type",
    "fill_color",
    "image_processor_type",
    "image_seq_length",
    "input_data_format",
    "pad_size",
    "processor_class",
    "return_tensors",
];

/// What a folder says of images, by its keys.
type PreprocessorConfig = Map<String, Value>;

/// Takes a config's word for mean, standard deviation and how an image becomes a square; what is none, [`check`] refuses.
fn take_statistics(config: &PreprocessorConfig, preprocessing: &mut Preprocessing) {
    let channels = |keys: [&str; 2]| keys.iter().find_map(|key| three(config.get(*key)?));
    let Preprocessing { mean, std, resize_mode, .. } = preprocessing;
    *mean = channels(["image_mean", "mean"]).unwrap_or(*mean);
    *std = channels(["image_std", "std"]).filter(|std| std.iter().all(|std| *std > 0.0)).unwrap_or(*std);
    if config.get("resize_mode").is_some_and(|mode| mode == name(ResizeMode::Squash)) {
        *resize_mode = ResizeMode::Squash;
    }
}

/// Refuses a config that wants anything else than `preprocessing`.
fn check(config: &PreprocessorConfig, preprocessing: Preprocessing) -> Result<(), String> {
    let Preprocessing { image_size, mean, std, resize_mode } = preprocessing;
    let is_squash = resize_mode == ResizeMode::Squash;
    let done = || describe(preprocessing);
    for (key, value) in config {
        let fits = match key.as_str() {
            "image_mean" | "mean" => is_close(value, mean),
            "image_std" | "std" => is_close(value, std),
            "resample" => value.as_u64() == Some(BICUBIC),
            "interpolation" => value == "bicubic",
            "resize_mode" => value == name(resize_mode),
            "size" if is_squash => is_square(value, image_size),
            "size" => is_shortest_edge(value, image_size),
            "crop_size" => is_squash || is_square(value, image_size),
            "do_center_crop" => value.as_bool() == Some(!is_squash) || value.is_null(),
            "do_resize" | "do_normalize" | "do_rescale" => value.as_bool() == Some(true),
            "do_pad" => value.as_bool() == Some(false) || value.is_null(),
            // How a size that is a single number is meant.
            "default_to_square" | "use_square_size" => value.as_bool() == Some(is_squash) || value.is_null(),
            "rescale_factor" => {
                value.as_f64().is_some_and(|by| (by * 255.0 - 1.0).abs() < f64::from(TOLERANCE))
            }
            "mode" => value == "RGB",
            key if PASSED_OVER.contains(&key) => true,
            key => return Err(format!("unknown key `{key}`; {}", done())),
        };
        if !fits {
            return Err(format!("`{key}` is {value}; {}", done()));
        }
    }
    Ok(())
}

/// As open_clip writes it.
fn name(resize_mode: ResizeMode) -> &'static str {
    match resize_mode {
        ResizeMode::Squash => "squash",
        ResizeMode::Shortest => "shortest",
    }
}

fn describe(preprocessing: Preprocessing) -> String {
    let Preprocessing { image_size, mean, std, resize_mode } = preprocessing;
    let what = match resize_mode {
        ResizeMode::Squash => "the whole image",
        ResizeMode::Shortest => "the middle square of an image",
    };
    format!(
        "for this network {what} is made {image_size} x {image_size} pixels here, bicubic, with mean {mean:?} and standard \
         deviation {std:?}"
    )
}

/// How a folder of a CLIP wants its images made.
///
/// # Errors
/// As [`check_images`]; mean, standard deviation and open_clip's `resize_mode` are the folder's to say.
pub(crate) fn clip_preprocessing(dir: &Path, image_size: usize) -> Result<Preprocessing, ModelError> {
    let mut preprocessing = Preprocessing::clip(edge(image_size));
    for (file, config) in preprocessor_configs(dir)? {
        take_statistics(&config, &mut preprocessing);
        check(&config, preprocessing).map_err(|what| ModelError::Images { path: file, what })?;
    }
    Ok(preprocessing)
}

/// Sizes have been checked to be far below.
fn edge(image_size: usize) -> u32 {
    u32::try_from(image_size).unwrap_or(u32::MAX)
}

/// Refuses the folder of a SigLIP that wants its images made in another way than
/// [`pixel_values`](oqvl_image_prep::pixel_values) does it: the network would see other images than it was made for. What a
/// folder does not say, it leaves to its library's default, which is taken to be ours.
///
/// # Errors
/// If a file cannot be read, or asks for something else than is done here; names file and key.
pub(crate) fn check_images(dir: &Path, image_size: usize) -> Result<(), ModelError> {
    let preprocessing = Preprocessing::siglip(edge(image_size));
    for (file, config) in preprocessor_configs(dir)? {
        check(&config, preprocessing).map_err(|what| ModelError::Images { path: file, what })?;
    }
    Ok(())
}

/// Everything that a folder of open_clip's or Hugging Face's says of images, and in which file.
fn preprocessor_configs(dir: &Path) -> Result<Vec<(PathBuf, PreprocessorConfig)>, ModelError> {
    let mut configs = Vec::new();
    let mut add = |file: PathBuf, key: Option<&str>| {
        let mut all: Value = read_json(&file).map_err(|error| unreadable(&file, error))?;
        let config = match key {
            Some(key) => all.get_mut(key).map_or(Value::Null, Value::take),
            None => all,
        };
        match config {
            Value::Object(config) => configs.push((file, config)),
            Value::Null if key.is_some() => {}
            _ => return Err(unreadable(&file, "what is said of images must be a table")),
        }
        Ok::<(), ModelError>(())
    };
    match config_file(dir) {
        ConfigFile::OpenClip(file) => add(file, Some("preprocess_cfg"))?,
        ConfigFile::Usual(_) => {
            let files = [(PREPROCESSOR_FILE, None), (PROCESSOR_FILE, Some("image_processor"))];
            for (name, key) in files {
                let file = dir.join(name);
                if file.is_file() {
                    add(file, key)?;
                }
            }
        }
    }
    Ok(configs)
}

/// A number for each channel.
fn three(value: &Value) -> Option<[f32; 3]> {
    let values: Vec<f32> =
        value.as_array()?.iter().filter_map(|value| Some(value.as_f64()? as f32)).collect();
    values.try_into().ok()
}

fn is_close(value: &Value, expected: [f32; 3]) -> bool {
    three(value).is_some_and(|values| {
        values.iter().zip(expected).all(|(value, expected)| (value - expected).abs() < TOLERANCE)
    })
}

/// Whether both sides are `edge`: by their names, as a pair, or as one number for both.
fn is_square(size: &Value, edge: u32) -> bool {
    match size {
        Value::Object(size) => {
            !size.contains_key("shortest_edge")
                && ["height", "width"]
                    .iter()
                    .all(|side| size.get(*side).is_some_and(|side| is_edge(side, edge)))
        }
        Value::Array(sides) => sides.len() == 2 && sides.iter().all(|side| is_edge(side, edge)),
        both => is_edge(both, edge),
    }
}

/// Whether the shortest edge is `edge`: by its name, or without names, as older files have it.
fn is_shortest_edge(size: &Value, edge: u32) -> bool {
    match size {
        Value::Object(size) => size.get("shortest_edge").is_some_and(|shortest| is_edge(shortest, edge)),
        unnamed => is_square(unnamed, edge),
    }
}

fn is_edge(value: &Value, edge: u32) -> bool {
    value.as_u64() == Some(u64::from(edge))
}

#[cfg(test)]
mod tests {
    use super::*;
    use oqvl_shard_io::write_json_atomic;
    use serde_json::json;

    const CLIP: Preprocessing = Preprocessing::clip(224);
    const SIGLIP: Preprocessing = Preprocessing::siglip(224);

    fn check(config: &Value, preprocessing: Preprocessing) -> Result<(), String> {
        super::check(config.as_object().unwrap(), preprocessing)
    }

    /// laion's ViT-L/14 of LAION-2B, apple's DFN5B.
    #[test]
    fn a_clip_says_its_mean_and_how_it_becomes_a_square() {
        let config = json!({
            "model_cfg": {}, "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 0.5], "resize_mode": "squash"},
        });
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(clip_preprocessing(dir.path(), 224).unwrap(), CLIP);
        write_json_atomic(&dir.path().join("open_clip_config.json"), &config).unwrap();
        let expected = Preprocessing {
            image_size: 224,
            mean: [0.5; 3],
            std: [0.25, 0.5, 0.5],
            resize_mode: ResizeMode::Squash,
        };
        assert_eq!(clip_preprocessing(dir.path(), 224).unwrap(), expected);
        for wrong in
            [json!({"std": [0.0, 1.0, 1.0]}), json!({"mean": [0.5]}), json!({"resize_mode": "longest"})]
        {
            let config = json!({"model_cfg": {}, "preprocess_cfg": wrong});
            write_json_atomic(&dir.path().join("open_clip_config.json"), &config).unwrap();
            assert!(clip_preprocessing(dir.path(), 224).is_err(), "{config}");
        }
    }

    /// As OpenAI's ViT-B/32 has it on the hub, before and after transformers 4.22; open_clip's; SigLIP's.
    #[test]
    fn published_files_pass() {
        let (mean, std) = ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]);
        let clip = json!({
            "crop_size": 224, "do_center_crop": true, "do_normalize": true, "do_resize": true,
            "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": mean, "image_std": std,
            "resample": 3, "size": 224,
        });
        let newer = json!({
            "crop_size": {"height": 224, "width": 224}, "size": {"shortest_edge": 224},
            "rescale_factor": 0.003_921_568_627_450_98, "do_rescale": true, "do_convert_rgb": true,
        });
        let open_clip =
            json!({"mean": mean, "std": std, "interpolation": "bicubic", "resize_mode": "shortest"});
        let siglip = json!({
            "do_normalize": true, "do_rescale": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5], "processor_class": "SiglipProcessor", "resample": 3,
            "size": {"height": 224, "width": 224},
        });
        // As the fast processors of transformers save themselves.
        let fast = json!({
            "crop_size": {"height": 224, "width": 224}, "data_format": "channels_first", "default_to_square": false,
            "device": null, "disable_grouping": null, "do_pad": null, "image_processor_type": "CLIPImageProcessorFast",
            "input_data_format": null, "pad_size": null, "return_tensors": null, "size": {"shortest_edge": 224},
        });
        for config in [clip, newer, open_clip, fast] {
            assert_eq!(check(&config, CLIP), Ok(()));
        }
        assert_eq!(check(&siglip, SIGLIP), Ok(()));
    }

    #[test]
    fn other_images_are_refused() {
        for (config, preprocessing) in [
            (json!({"image_mean": [0.5, 0.5, 0.5]}), CLIP),
            (json!({"std": [0.2]}), CLIP),
            (json!({"size": {"shortest_edge": 336}}), CLIP),
            (json!({"size": {"shortest_edge": 224}}), SIGLIP),
            (json!({"resample": 2}), SIGLIP),
            (json!({"resize_mode": "squash"}), CLIP),
            (json!({"do_normalize": false}), SIGLIP),
            (json!({"do_center_crop": false}), CLIP),
            (json!({"do_pad": true}), SIGLIP),
            (json!({"default_to_square": false}), SIGLIP),
        ] {
            let error = check(&config, preprocessing).unwrap_err();
            let key = config.as_object().unwrap().keys().next().unwrap();
            assert!(error.starts_with(&format!("`{key}` is ")), "{error}");
        }
        // What nobody knows may be anything, as the grid of pieces that some LLaVAs cut images into.
        let error = check(&json!({"image_grid_pinpoints": [[448, 448]]}), SIGLIP).unwrap_err();
        let expected =
            "unknown key `image_grid_pinpoints`; for this network the whole image is made 224 x 224 pixels";
        assert!(error.starts_with(expected), "{error}");
    }

    #[test]
    fn every_file_that_speaks_of_images_is_heard() {
        let (right, wrong) = (json!({"size": {"height": 8, "width": 8}}), json!({"size": 9}));
        let nested = |config: &Value| json!({"image_processor": config, "patch_size": 4});
        let open_clip = |config: &Value| json!({"model_cfg": {}, "preprocess_cfg": config});
        for (name, right, wrong) in [
            (PREPROCESSOR_FILE, right.clone(), wrong.clone()),
            (PROCESSOR_FILE, nested(&right), nested(&wrong)),
            ("open_clip_config.json", open_clip(&right), open_clip(&wrong)),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let check = || check_images(dir.path(), 8);
            check().unwrap();
            write_json_atomic(&dir.path().join(name), &right).unwrap();
            check().unwrap();
            write_json_atomic(&dir.path().join(name), &wrong).unwrap();
            let error = check().unwrap_err().to_string();
            assert!(
                error.contains(&format!("{name} asks for other images than are made here: `size` is 9")),
                "{error}"
            );
        }
        // Older files of processors say nothing of images.
        let dir = tempfile::tempdir().unwrap();
        write_json_atomic(&dir.path().join(PROCESSOR_FILE), &json!({"patch_size": 4})).unwrap();
        check_images(dir.path(), 8).unwrap();
    }
}
