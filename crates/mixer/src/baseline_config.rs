//! The filtering baselines by name, and what each needs.
//!
//! Source: `baselines.py` of DataComp (arXiv 2304.14108, section 3.3) and of its fork in Open-Qwen2VL.

use std::path::PathBuf;

use oqvl_stage::ConfigError;
use serde::{Deserialize, Serialize};

use crate::subset_config::{BaselineRule, Cut};

/// The published digest of `lid.176.bin`.
pub const LANGUAGE_MODEL_SHA256: &str = "7e69ec5451bc261cc7844e49e4792a85d7f09c06789ec800fc4a44aec362764e";

/// The published digest of `imagenet21k_wordnet_ids.txt`.
pub const WORDNET_IDS_SHA256: &str = "66362bdedf36d933382edca5493fc562dcc17128ce36403c9e730a75f48cb2f2";

/// Name of the image features in DataComp's `.npz` files.
pub const DEFAULT_FEATURES: &str = "l14_img";

/// A filtering baseline, under the name DataComp's command line gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "each is described in `docs/stages/mixer.md` and where it is computed")]
pub enum Baseline {
    NoFilter,
    BasicFilter,
    ClipScore,
    Laion2b,
    TextBased,
    ImageBased,
    ImageBasedIntersectClipScore,
    LlavaImageTextMatchingScore,
    LlavaObjectDetailFulfillmentScore,
    LlavaCaptionTextQualityScore,
    LlavaSemanticUnderstandingScore,
    RewardQualityScore,
    DfnClipScore,
}

/// Which of OpenAI's CLIP models scored the pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ClipArch {
    /// ViT-B/32: column `clip_b32_similarity_score`.
    B32,
    /// ViT-L/14: column `clip_l14_similarity_score`.
    L14,
}

impl ClipArch {
    /// The column DataComp's metadata have its scores in.
    pub(crate) fn column(self) -> &'static str {
        match self {
            ClipArch::B32 => "clip_b32_similarity_score",
            ClipArch::L14 => "clip_l14_similarity_score",
        }
    }
}

/// Whose `basic_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BasicVariant {
    /// DataComp's: English by fastText, more than 2 words, more than 5 characters, shorter side at least 200, sides
    /// at most 1 : 3.
    Datacomp,
    /// The one in Open-Qwen2VL's fork: fetched, shorter side at least 10, sides at most 1 : 4; what it computes about
    /// the caption it does not use.
    OpenQwen2vl,
}

/// Models and lists a baseline reads; paths are relative to the work directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BaselineAssets {
    /// fastText's language identification model, `lid.176.bin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language_model: Option<PathBuf>,
    /// SHA-256 the language model must have; [`LANGUAGE_MODEL_SHA256`] by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub language_model_sha256: Option<String>,
    /// Directory of the WordNet 3.0 database (`index.noun`, `data.noun`, `noun.exc`, and so on for `verb`, `adj` and
    /// `adv`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wordnet: Option<PathBuf>,
    /// The synsets of ImageNet-21k, a line each, `imagenet21k_wordnet_ids.txt`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wordnet_ids: Option<PathBuf>,
    /// SHA-256 the list of synsets must have; [`WORDNET_IDS_SHA256`] by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wordnet_ids_sha256: Option<String>,
    /// JSON of four lists of texts: `junk_captions`, `rejected_captions`, `prefixes`, `suffixes`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caption_lists: Option<PathBuf>,
    /// Cluster centroids of the pool, `(clusters, dim)`, as `.npy` or the only array of an `.npz`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub centroids: Option<PathBuf>,
    /// Embeddings of the images to resemble, `(images, dim)` each: ImageNet-1k's for DataComp's rule, MMMU's for that
    /// of the fork.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub targets: Vec<PathBuf>,
    /// Name of the image features in the `.npz` beside each metadata file; [`DEFAULT_FEATURES`] by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub features: Option<String>,
}

impl BaselineAssets {
    /// The files among them.
    pub(crate) fn files(&self) -> impl Iterator<Item = PathBuf> + '_ {
        let single =
            [&self.language_model, &self.wordnet, &self.wordnet_ids, &self.caption_lists, &self.centroids];
        single.into_iter().flatten().chain(&self.targets).cloned()
    }
}

impl Baseline {
    /// Whether it compares the image features that lie beside the files of a metadata folder.
    pub(crate) fn needs_features(self) -> bool {
        matches!(self, Baseline::ImageBased | Baseline::ImageBasedIntersectClipScore)
    }
}

impl BaselineRule {
    /// Checks that everything the baseline needs is there, and nothing else.
    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        use Baseline::*;
        let it = self.baseline;
        let by_clip_score = matches!(it, ClipScore | ImageBasedIntersectClipScore);
        let by_any_score = matches!(
            it,
            ClipScore
                | ImageBasedIntersectClipScore
                | LlavaImageTextMatchingScore
                | LlavaObjectDetailFulfillmentScore
                | RewardQualityScore
                | DfnClipScore
        );
        let by_threshold = matches!(it, LlavaCaptionTextQualityScore | LlavaSemanticUnderstandingScore);
        let by_image = matches!(it, ImageBased | ImageBasedIntersectClipScore);
        let by_language =
            matches!(it, Laion2b | TextBased) || by_image || self.variant == Some(BasicVariant::Datacomp);
        match self.cut {
            Some(Cut::Quantile(_)) => return wrong("quantile", "no baseline goes by a quantile"),
            Some(_) if !by_any_score && !by_threshold => {
                return wrong("min_score", "this baseline has no threshold");
            }
            Some(Cut::Fraction(_)) if by_threshold => {
                return wrong("fraction", "this baseline takes a `min_score` only");
            }
            None if by_threshold => return wrong("min_score", "missing: the score to reach"),
            None if by_any_score => {
                return wrong("min_score", "missing: this baseline needs a `min_score` or a `fraction`");
            }
            _ => {}
        }
        let assets = &self.assets;
        let needs = [
            ("arch", self.arch.is_some(), by_clip_score),
            ("variant", self.variant.is_some(), it == BasicFilter),
            ("assets.language_model", assets.language_model.is_some(), by_language),
            ("assets.wordnet", assets.wordnet.is_some(), it == TextBased),
            ("assets.wordnet_ids", assets.wordnet_ids.is_some(), it == TextBased),
            (
                "assets.caption_lists",
                assets.caption_lists.is_some(),
                matches!(it, RewardQualityScore | DfnClipScore),
            ),
            ("assets.centroids", assets.centroids.is_some(), by_image),
            ("assets.targets", !assets.targets.is_empty(), by_image),
        ];
        for (key, is_given, is_needed) in needs {
            match (is_given, is_needed) {
                (true, false) => return wrong(key, "has no meaning for this baseline"),
                (false, true) => return wrong(key, "missing: this baseline needs it"),
                _ => {}
            }
        }
        Ok(())
    }
}

fn wrong(key: &str, message: &str) -> Result<(), ConfigError> {
    Err(ConfigError::new(key, message))
}

#[cfg(test)]
mod tests {
    use crate::subset_config::SubsetConfig;

    #[track_caller]
    fn check(table: &str, expected: Result<(), &str>) {
        let subset: SubsetConfig = toml::from_str(&format!("name = \"s\"\n{table}")).unwrap();
        match (subset.rule(2), expected) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(expected)) => assert!(error.to_string().contains(expected), "{error}"),
            (rule, _) => panic!("{table}: {rule:?}"),
        }
    }

    #[test]
    fn every_baseline_gets_what_it_needs_and_nothing_else() {
        check("baseline = \"no_filter\"", Ok(()));
        check("baseline = \"no_filter\"\nmin_score = 1", Err("subset.2.min_score: this baseline has no"));
        check("baseline = \"basic_filter\"", Err("subset.2.variant: missing"));
        check("baseline = \"basic_filter\"\nvariant = \"open-qwen2vl\"", Ok(()));
        check("baseline = \"basic_filter\"\nvariant = \"datacomp\"", Err("assets.language_model: missing"));
        let language = "assets.language_model = \"lid.176.bin\"";
        check(&format!("baseline = \"basic_filter\"\nvariant = \"datacomp\"\n{language}"), Ok(()));
        check("baseline = \"clip_score\"\narch = \"b32\"", Err("subset.2.min_score: missing"));
        check("baseline = \"clip_score\"\nfraction = 0.3", Err("subset.2.arch: missing"));
        check("baseline = \"clip_score\"\narch = \"b32\"\nfraction = 0.3", Ok(()));
        check("baseline = \"clip_score\"\narch = \"b32\"\nquantile = 0.3", Err("subset.2.quantile: no"));
        check(&format!("baseline = \"laion2b\"\n{language}"), Ok(()));
        check(&format!("baseline = \"text_based\"\n{language}"), Err("assets.wordnet: missing"));
        check(&format!("baseline = \"image_based\"\n{language}"), Err("assets.centroids: missing"));
        check("baseline = \"llava_semantic_understanding_score\"", Err("subset.2.min_score: missing"));
        check("baseline = \"llava_semantic_understanding_score\"\nfraction = 0.5", Err("subset.2.fraction"));
        check("baseline = \"llava_image_text_matching_score\"\nfraction = 0.5", Ok(()));
        check("baseline = \"dfn_clip_score\"\nmin_score = 0.2", Err("assets.caption_lists: missing"));
    }
}
