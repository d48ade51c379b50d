//! What the stage says of the world it made.

use crate::records::{Fate, TruthRecord};
use oqvl_stage::Tally;
use serde::Serialize;
use std::collections::BTreeMap;

/// Counts per class of everything that was written.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct WorldReport {
    /// URLs planned and written; a source without bad data rejects none.
    #[serde(flatten)]
    pub tally: Tally,
    /// URLs by quality of the pair.
    pub pairs: BTreeMap<String, u64>,
    /// URLs by fault.
    pub faults: BTreeMap<String, u64>,
    /// URLs whose image a careful fetcher ends up with; not counted are those where it depends on the
    /// decoder.
    pub fetchable: u64,
    /// URLs that show the scene of another URL again.
    pub near_duplicates: u64,
    /// Served bodies by file format.
    pub formats: BTreeMap<String, u64>,
    /// SigLIP pairs.
    pub siglip_pairs: u64,
    /// Text documents.
    pub text_documents: u64,
    /// MLM-Filter pairs by quality.
    pub mlm_filter_pairs: BTreeMap<String, u64>,
    /// Conversations for visual instruction tuning.
    pub sft_conversations: u64,
    /// Those of them without image.
    pub sft_text_only: u64,
    /// Multiple-choice questions by category.
    pub multiple_choice: BTreeMap<String, u64>,
    /// Yes-or-no questions by answer.
    pub yes_no: BTreeMap<String, u64>,
    /// Open questions by category.
    pub open_questions: BTreeMap<String, u64>,
}

impl WorldReport {
    /// Counts the URLs.
    pub(crate) fn count_truth<'a>(&mut self, truth: impl IntoIterator<Item = &'a TruthRecord>) {
        for record in truth {
            self.tally.keep();
            count(&mut self.pairs, record.pair.name());
            if let Some(fault) = &record.fault {
                count(&mut self.faults, fault.name());
            }
            self.near_duplicates += u64::from(record.near_duplicate_of.is_some());
            let kept = record.fault.as_ref().is_none_or(|fault| fault.fate() == Fate::Kept);
            self.fetchable += u64::from(kept);
        }
    }
}

/// Adds one to a count.
pub(crate) fn count(counts: &mut BTreeMap<String, u64>, name: &str) {
    *counts.entry(name.to_owned()).or_default() += 1;
}
