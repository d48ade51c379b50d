//! What a folder says is done to images before the network sees them, against what is done here.

use crate::ModelError;
use crate::checkpoint::{ConfigFile, config_file, unreadable};
use oqvl_image_prep::{CLIP_MEAN, CLIP_STD, SIGLIP_MEAN, SIGLIP_STD};
use oqvl_shard_io::read_json;
use serde_json::{Map, Value};
use std::fmt;
use std::path::{Path, PathBuf};

/// Hugging Face's file, up to transformers 4.
pub(crate) const PREPROCESSOR_FILE: &str = "preprocessor_config.json";
/// Since transformers 5 the same stands here, as `image_processor`.
pub(crate) const PROCESSOR_FILE: &str = "processor_config.json";

/// Pillow's number for bicubic.
pub(crate) const BICUBIC: u64 = 3;
/// Published means and standard deviations are written with different numbers of digits.
const TOLERANCE: f64 = 1e-6;

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

/// How an image that is not square becomes one.
///
/// Source: `resize_mode` of open_clip's `PreprocessCfg`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ResizeMode {
    /// The whole image is squeezed into the square.
    Squash,
    /// The shortest edge becomes that of the square, whose middle is cut out.
    Shortest,
}

impl ResizeMode {
    /// As open_clip writes it.
    fn name(self) -> &'static str {
        match self {
            Self::Squash => "squash",
            Self::Shortest => "shortest",
        }
    }
}

/// What is done to the images of a network here.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Preprocessing {
    /// Edge of the square, pixels.
    image_size: usize,
    /// Mean of the channels, of 1.
    mean: [f32; 3],
    /// Standard deviation of the channels, of 1.
    std: [f32; 3],
    resize_mode: ResizeMode,
}

impl Preprocessing {
    /// By [`clip_pixel_values`](oqvl_image_prep::clip_pixel_values).
    pub(crate) const fn for_clip(image_size: usize) -> Self {
        Self { image_size, mean: CLIP_MEAN, std: CLIP_STD, resize_mode: ResizeMode::Shortest }
    }

    /// By [`pixel_values`](oqvl_image_prep::pixel_values).
    pub(crate) const fn for_siglip(image_size: usize) -> Self {
        Self { image_size, mean: SIGLIP_MEAN, std: SIGLIP_STD, resize_mode: ResizeMode::Squash }
    }

    /// Refuses the config of another preprocessing.
    fn check(self, config: &PreprocessorConfig) -> Result<(), String> {
        let is_squash = self.resize_mode == ResizeMode::Squash;
        for (key, value) in config {
            let fits = match key.as_str() {
                "image_mean" | "mean" => is_close(value, self.mean),
                "image_std" | "std" => is_close(value, self.std),
                "resample" => value.as_u64() == Some(BICUBIC),
                "interpolation" => value == "bicubic",
                "resize_mode" => value == self.resize_mode.name(),
                "size" if is_squash => is_square(value, self.image_size),
                "size" => is_shortest_edge(value, self.image_size),
                "crop_size" => is_squash || is_square(value, self.image_size),
                "do_center_crop" => value.as_bool() == Some(!is_squash) || value.is_null(),
                "do_resize" | "do_normalize" | "do_rescale" => value.as_bool() == Some(true),
                "do_pad" => value.as_bool() == Some(false) || value.is_null(),
                // How a size that is a single number is meant.
                "default_to_square" | "use_square_size" => {
                    value.as_bool() == Some(is_squash) || value.is_null()
                }
                "rescale_factor" => value.as_f64().is_some_and(|by| (by * 255.0 - 1.0).abs() < TOLERANCE),
                "mode" => value == "RGB",
                key if PASSED_OVER.contains(&key) => true,
                key => return Err(format!("unknown key `{key}`; {self}")),
            };
            if !fits {
                return Err(format!("`{key}` is {value}; {self}"));
            }
        }
        Ok(())
    }
}

impl fmt::Display for Preprocessing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { image_size, mean, std, resize_mode } = self;
        let what = match resize_mode {
            ResizeMode::Squash => "the whole image",
            ResizeMode::Shortest => "the middle square of an image",
        };
        write!(
            f,
            "for this network {what} is made {image_size} x {image_size} pixels here, bicubic, with mean {mean:?} and \
             standard deviation {std:?}"
        )
    }
}

/// Refuses a folder that wants its images made in another way than here: the network would see other images than it was
/// made for. What a folder does not say, it leaves to its library's default, which is taken to be ours.
///
/// # Errors
/// If a file cannot be read, or asks for something else than is done here; names file and key.
pub(crate) fn check_images(dir: &Path, preprocessing: Preprocessing) -> Result<(), ModelError> {
    for (file, config) in preprocessor_configs(dir)? {
        preprocessing.check(&config).map_err(|what| ModelError::Images { path: file, what })?;
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

fn is_close(value: &Value, expected: [f32; 3]) -> bool {
    let Some(values) = value.as_array() else { return false };
    values.len() == 3
        && values.iter().zip(expected).all(|(value, expected)| {
            value.as_f64().is_some_and(|value| (value - f64::from(expected)).abs() < TOLERANCE)
        })
}

/// Whether both sides are `edge`: by their names, as a pair, or as one number for both.
fn is_square(size: &Value, edge: usize) -> bool {
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
fn is_shortest_edge(size: &Value, edge: usize) -> bool {
    match size {
        Value::Object(size) => size.get("shortest_edge").is_some_and(|shortest| is_edge(shortest, edge)),
        unnamed => is_square(unnamed, edge),
    }
}

fn is_edge(value: &Value, edge: usize) -> bool {
    value.as_u64() == Some(edge as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use oqvl_shard_io::write_json_atomic;
    use serde_json::json;

    const CLIP: Preprocessing = Preprocessing::for_clip(224);
    const SIGLIP: Preprocessing = Preprocessing::for_siglip(224);

    fn check(config: &Value, preprocessing: Preprocessing) -> Result<(), String> {
        preprocessing.check(config.as_object().unwrap())
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
            let check = || check_images(dir.path(), Preprocessing::for_siglip(8));
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
        check_images(dir.path(), Preprocessing::for_siglip(8)).unwrap();
    }
}
