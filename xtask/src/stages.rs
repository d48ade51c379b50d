//! The stages in the order of the data's way through the house.

/// A stage as the runner sees it: a name that is also its config table, its output directory and, with the prefix
/// `oqvl-`, its package and binary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StageName(&'static str);

/// All stages, in the order in which they run.
pub(crate) const STAGES: [StageName; 11] = [
    StageName("micro-world"),
    StageName("data-fetch"),
    StageName("bootstrap"),
    StageName("clip-filter"),
    StageName("mlm-filter"),
    StageName("mixer"),
    StageName("packer"),
    StageName("trainer"),
    StageName("sft"),
    StageName("evaluator"),
    StageName("report"),
];

/// The stage that draws the world which [`WORLD_SERVER_BINARY`] serves.
pub(crate) const MICRO_WORLD: StageName = StageName("micro-world");
/// The stage that downloads; it needs the world server beside it.
pub(crate) const DATA_FETCH: StageName = StageName("data-fetch");
/// The last stage whose output does not depend on what is selected; what follows an ablation runs anew.
pub(crate) const MLM_FILTER: StageName = StageName("mlm-filter");
/// What pre-training reads.
pub(crate) const PACKER: StageName = StageName("packer");
/// Pre-training.
pub(crate) const TRAINER: StageName = StageName("trainer");
/// The last measuring stage.
pub(crate) const EVALUATOR: StageName = StageName("evaluator");
/// The stage that reads all others.
pub(crate) const REPORT: StageName = StageName("report");
/// Serves the micro world over HTTP; part of the `micro-world` package.
pub(crate) const WORLD_SERVER_BINARY: &str = "oqvl-world-server";

impl StageName {
    /// The stage of that name, if there is one.
    pub(crate) fn find(name: &str) -> Option<Self> {
        STAGES.into_iter().find(|stage| stage.0 == name)
    }

    /// The bare name.
    pub(crate) fn as_str(self) -> &'static str {
        self.0
    }

    /// The package, which is also the binary.
    pub(crate) fn package(self) -> String {
        format!("oqvl-{}", self.0)
    }

    /// Place in [`STAGES`].
    pub(crate) fn position(self) -> usize {
        STAGES.iter().position(|stage| *stage == self).expect("a StageName only comes from STAGES")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_stages_are_in_the_list() {
        for stage in [MICRO_WORLD, DATA_FETCH, MLM_FILTER, PACKER, TRAINER, EVALUATOR, REPORT] {
            assert_eq!(StageName::find(stage.as_str()), Some(stage));
            assert_eq!(STAGES[stage.position()], stage);
        }
        assert_eq!(StageName::find("pakcer"), None);
    }
}
