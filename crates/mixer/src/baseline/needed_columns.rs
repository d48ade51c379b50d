//! The columns a baseline goes by, looked for before any row is read.

use arrow_schema::DataType;
use oqvl_stage::ConfigError;

use crate::baseline_config::{Baseline, BasicVariant, ClipArch};
use crate::columns::{MergedColumns, is_number, is_text, list_names, public_names};
use crate::config::ScoreFiles;
use crate::parquet_scan::ParquetFile;
use crate::subset_config::BaselineRule;

/// What a baseline takes the values of a column for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holding {
    Text,
    Numbers,
    /// MLM-Filter's answers, or the scores read off them.
    Answers,
}

impl Holding {
    fn covers(self, kind: &DataType) -> bool {
        match self {
            Holding::Text => is_text(kind),
            Holding::Numbers => is_number(kind),
            Holding::Answers => is_text(kind) || is_number(kind),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Holding::Text => "text",
            Holding::Numbers => "numbers",
            Holding::Answers => "numbers or text",
        }
    }
}

/// Columns of a baseline: what the config calls each, and what the files call it.
#[derive(Debug, Default)]
pub(super) struct NeededColumns(Vec<(&'static str, String)>);

/// A column that is not there, or holds something else.
#[derive(Debug)]
pub(super) struct Lack {
    pub(super) error: ConfigError,
    /// Whether further rows cannot put it right: among numbers text stays text, among text numbers become text.
    pub(super) is_final: bool,
}

impl NeededColumns {
    /// Looks for the columns of the baseline of the subset at `index` among `columns`, those of `files`, or of the pool
    /// where no file is known to users.
    pub(super) fn find(
        index: usize,
        rule: &BaselineRule,
        columns: &MergedColumns,
        sidecars: &[ScoreFiles],
        files: Option<&[ParquetFile]>,
    ) -> Result<NeededColumns, Lack> {
        // Without rows there may be no columns.
        if !columns.has_rows() {
            return Ok(NeededColumns::default());
        }
        let lack = |message: String, is_final: bool| {
            let error = ConfigError::new(format!("subset.{index}.baseline"), message);
            Err(Lack { error, is_final })
        };
        let file_name = |file: usize| match files {
            Some(files) => files.get(file).map(|file| file.path.display().to_string()).unwrap_or_default(),
            None => "the pool".to_owned(),
        };
        let schema = columns.schema();
        let names = public_names(schema, sidecars);
        let mut found = Vec::new();
        for (name, holding) in needed(rule, text_column(&names)) {
            let Some(place) = names.iter().position(|known| known == name) else {
                let known = list_names(names.iter().map(String::as_str));
                return lack(
                    format!("it goes by a column `{name}`, and {} has {known}", file_name(0)),
                    false,
                );
            };
            let own_name = schema.field(place).name();
            if let Some((kind, file)) = columns.held_otherwise(own_name, |kind| holding.covers(kind)) {
                let (file, expected) = (file_name(file), holding.name());
                let message =
                    format!("it goes by the column `{name}`, which in {file} holds no {expected} but {kind}");
                return lack(message, holding == Holding::Numbers);
            }
            found.push((name, own_name.clone()));
        }
        Ok(NeededColumns(found))
    }

    /// What the files call the column `name`; nothing if they have no rows.
    pub(super) fn own_name(&self, name: &str) -> &str {
        match self.0.iter().find(|(known, _)| *known == name) {
            Some((_, own_name)) => own_name,
            None if self.0.is_empty() => "",
            None => panic!("a baseline reads `{name}` and was said to go by {:?}", self.0),
        }
    }

    /// What the config calls the column with the captions.
    pub(super) fn text_column(&self) -> &'static str {
        text_column(&self.0.iter().map(|(name, _)| *name).collect::<Vec<_>>())
    }
}

fn text_column(names: &[impl AsRef<str>]) -> &'static str {
    if names.iter().any(|name| name.as_ref() == "text") { "text" } else { "caption" }
}

/// The column a baseline has its scores from.
pub(super) fn score_column(rule: &BaselineRule) -> Option<&'static str> {
    use Baseline::*;
    match rule.baseline {
        NoFilter | BasicFilter | TextBased | ImageBased => None,
        ClipScore | ImageBasedIntersectClipScore => rule.arch.map(ClipArch::column),
        Laion2b => Some(ClipArch::B32.column()),
        LlavaImageTextMatchingScore => Some("image_text_matching_score"),
        LlavaObjectDetailFulfillmentScore => Some("object_detail_fulfillment_score"),
        LlavaCaptionTextQualityScore => Some("caption_text_quality_score"),
        LlavaSemanticUnderstandingScore => Some("semantic_understanding_score"),
        RewardQualityScore => Some("quality_score"),
        DfnClipScore => Some("dfn_clipscore"),
    }
}

/// The columns a baseline reads.
fn needed(rule: &BaselineRule, text_column: &'static str) -> Vec<(&'static str, Holding)> {
    use Baseline::*;
    use Holding::*;
    let score = |holding: Holding| score_column(rule).map(|name| (name, holding)).into_iter();
    match rule.baseline {
        NoFilter => Vec::new(),
        BasicFilter => {
            let last = if rule.variant == Some(BasicVariant::OpenQwen2vl) { "status" } else { text_column };
            vec![("original_width", Numbers), ("original_height", Numbers), (last, Text)]
        }
        ClipScore => score(Numbers).collect(),
        TextBased | ImageBased => vec![(text_column, Text)],
        Laion2b | ImageBasedIntersectClipScore | RewardQualityScore | DfnClipScore => {
            score(Numbers).chain([(text_column, Text)]).collect()
        }
        LlavaImageTextMatchingScore
        | LlavaObjectDetailFulfillmentScore
        | LlavaCaptionTextQualityScore
        | LlavaSemanticUnderstandingScore => {
            score(Answers).chain([("status", Text), ("uid", Text)]).collect()
        }
    }
}
