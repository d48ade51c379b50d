//! Why a sample is not in the output.

/// A reason in the report. `as_str` is stable: reports and tests name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reject {
    /// The `json` member is not a JSON object.
    BadMetadata,
    /// The metadata's `uid` is not 32 hexadecimal digits.
    BadUid,
    /// The tar is damaged from here on; what follows in it is not known.
    DamagedShard,
    /// The tar lacks its end blocks: there may have been more samples.
    UnterminatedShard,
    /// No subset holds it (or not all, for an intersection).
    NotSelected,
    /// As `NotSelected`, and at least one score that could have selected it is missing.
    MissingScore,
    /// An earlier sample with the same uid is in the output.
    DuplicateUid,
    /// An earlier sample with the same image bytes is in the output.
    DuplicateContent,
    /// An earlier sample with the same caption is in the output.
    DuplicateCaption,
    /// An earlier sample whose image looks the same is in the output.
    NearDuplicate,
    /// Its image looks like one of a benchmark.
    BenchmarkImage,
}

impl Reject {
    /// The reason as it stands in the report.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Reject::BadMetadata => "bad-metadata",
            Reject::BadUid => "bad-uid",
            Reject::DamagedShard => "damaged-shard",
            Reject::UnterminatedShard => "unterminated-shard",
            Reject::NotSelected => "not-selected",
            Reject::MissingScore => "missing-score",
            Reject::DuplicateUid => "duplicate-uid",
            Reject::DuplicateContent => "duplicate-content",
            Reject::DuplicateCaption => "duplicate-caption",
            Reject::NearDuplicate => "near-duplicate",
            Reject::BenchmarkImage => "benchmark-image",
        }
    }
}
