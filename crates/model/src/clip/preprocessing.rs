//! What a folder says is done to images before the network sees them.

use serde_json::{Map, Value};

/// Statements of a folder about its images. What it does not say, it leaves to its library's default.
#[derive(Debug, Default)]
pub(super) struct Preprocessing {
    /// Where the statements are from, for errors.
    file: &'static str,
    /// Key and value of everything that is said.
    said: Map<String, Value>,
}

/// Pillow's number for bicubic.
const BICUBIC: u64 = 3;
/// Published means and deviations are written with different numbers of digits.
const TOLERANCE: f64 = 1e-6;

/// What the network's images must look like.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Edge of the square, pixels.
    pub(super) image_size: usize,
    /// Mean of the channels, of 1.
    pub(super) mean: [f32; 3],
    /// Standard deviation of the channels, of 1.
    pub(super) std: [f32; 3],
    /// Whether the whole image is squeezed into the square; else its middle is cut out.
    pub(super) squash: bool,
}

impl Preprocessing {
    /// The name of Hugging Face's file.
    pub(super) const HUGGING_FACE_FILE: &'static str = "preprocessor_config.json";

    /// `preprocessor_config.json` of a Hugging Face folder.
    pub(super) fn of_hugging_face(said: Map<String, Value>) -> Self {
        Self { file: Self::HUGGING_FACE_FILE, said }
    }

    /// `preprocess_cfg` of an open_clip folder.
    pub(super) fn of_open_clip(said: &Map<String, Value>) -> Self {
        Self { file: "preprocess_cfg", said: said.clone() }
    }

    /// Refuses statements that are not what we do: the scores would be of other images than the network was made for.
    pub(super) fn check(&self, wanted: Wanted) -> Result<(), String> {
        for (key, value) in &self.said {
            let fits = match key.as_str() {
                "image_mean" | "mean" => is_close(value, wanted.mean),
                "image_std" | "std" => is_close(value, wanted.std),
                "resample" => value.as_u64() == Some(BICUBIC),
                "interpolation" => value == "bicubic",
                "resize_mode" => value == if wanted.squash { "squash" } else { "shortest" },
                "size" => is_size(value, wanted.image_size, wanted.squash),
                "crop_size" => wanted.squash || is_size(value, wanted.image_size, true),
                "do_center_crop" => value.as_bool() == Some(!wanted.squash) || value.is_null(),
                "do_resize" | "do_normalize" | "do_rescale" => value.as_bool() == Some(true),
                "rescale_factor" => value.as_f64().is_some_and(|by| (by * 255.0 - 1.0).abs() < TOLERANCE),
                "mode" => value == "RGB",
                // Who saved the file, how a processor is called, and what a square image has no use for.
                _ => true,
            };
            if !fits {
                return Err(format!(
                    "{}: `{key}` is {value}, which is not how images are made here",
                    self.file
                ));
            }
        }
        Ok(())
    }
}

fn is_close(value: &Value, expected: [f32; 3]) -> bool {
    let Some(values) = value.as_array() else { return false };
    values.len() == 3
        && values.iter().zip(expected).all(|(value, expected)| {
            value.as_f64().is_some_and(|value| (value - f64::from(expected)).abs() < TOLERANCE)
        })
}

/// A size as a number, as the shortest edge, or as height and width; `squash` says whether both sides are meant.
fn is_size(value: &Value, expected: usize, squash: bool) -> bool {
    let is = |value: &Value| value.as_u64() == Some(expected as u64);
    match value {
        Value::Object(size) => match size.get("shortest_edge") {
            Some(shortest) => !squash && is(shortest),
            None => squash && ["height", "width"].iter().all(|side| size.get(*side).is_some_and(is)),
        },
        Value::Array(sides) => sides.len() == 2 && sides.iter().all(is),
        size => is(size),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use oqvl_image_prep::{CLIP_MEAN, CLIP_STD};
    use serde_json::json;

    fn check(said: Value, squash: bool) -> Result<(), String> {
        let Value::Object(said) = said else { panic!("{said}") };
        let (mean, std) = if squash { ([0.5; 3], [0.5; 3]) } else { (CLIP_MEAN, CLIP_STD) };
        Preprocessing::of_hugging_face(said).check(Wanted { image_size: 224, mean, std, squash })
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
        for said in [clip, newer, open_clip] {
            assert_eq!(check(said, false), Ok(()));
        }
        assert_eq!(check(siglip, true), Ok(()));
    }

    #[test]
    fn other_images_are_refused() {
        for (said, squash) in [
            (json!({"image_mean": [0.5, 0.5, 0.5]}), false),
            (json!({"std": [0.2]}), false),
            (json!({"size": {"shortest_edge": 336}}), false),
            (json!({"size": {"shortest_edge": 224}}), true),
            (json!({"resample": 2}), true),
            (json!({"resize_mode": "squash"}), false),
            (json!({"do_normalize": false}), true),
            (json!({"do_center_crop": false}), false),
        ] {
            let error = check(said.clone(), squash).unwrap_err();
            let key = said.as_object().unwrap().keys().next().unwrap();
            assert!(error.starts_with(&format!("preprocessor_config.json: `{key}` is ")), "{error}");
        }
    }
}
