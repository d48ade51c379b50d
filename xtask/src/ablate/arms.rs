//! What is compared: config overrides, nothing else.

/// One way to run the pipeline from the mixer on.
#[derive(Debug)]
pub(super) struct Arm {
    /// Name of the arm; part of its work directories.
    pub(super) name: &'static str,
    /// What is different, for the table.
    pub(super) what: &'static str,
    /// `--set` arguments on top of the config and of [`SHARED_SETS`].
    pub(super) sets: &'static [&'static str],
}

/// Two arms that differ by one idea.
#[derive(Debug)]
pub(super) struct Comparison {
    pub(super) idea: &'static str,
    /// The arm with the idea.
    pub(super) with: &'static str,
    /// The arm without it.
    pub(super) without: &'static str,
}

/// Seeds of every arm: the order of the data, and what the networks start from.
pub(super) const SEEDS: [u64; 3] = [7, 8, 9];

/// Overrides of every arm. They set the compute, optimizer steps times positions per step, such that all runs together
/// take less than an hour on two cores.
pub(super) const SHARED_SETS: [&str; 2] = ["trainer.training.num_steps=1200", "sft.training.num_steps=2600"];

/// The arms. The baseline takes 2 sequences of 384 positions a step, 768, almost all of them text or image.
pub(super) const ARMS: [Arm; 4] = [
    Arm { name: "baseline", what: "filtered data, packed, few tokens per image, then full", sets: &[] },
    Arm {
        name: "unfiltered",
        what: "everything that was fetched, same duplicates removed",
        sets: &["mixer.select=all"],
    },
    Arm {
        name: "padded",
        what: "one sample per sequence, padded to the longest of its micro-batch",
        // The longest of 9 samples has 41.4 positions on average: 18 sequences are 746 positions a step.
        sets: &[
            "packer.algorithm=one-per-sequence",
            "trainer.training.global_batch_size=18",
            "trainer.training.per_device_batch_size=9",
        ],
    },
    Arm {
        name: "full-only",
        what: "full tokens per image in pre-training too",
        // 16 positions per image, every patch, as in fine-tuning; the sequences stay as long and hold fewer samples.
        sets: &["packer.pooled_grid=4", "trainer.pooled_grid=4"],
    },
];

/// The comparisons.
pub(super) const COMPARISONS: [Comparison; 3] = [
    Comparison { idea: "filtering the data", with: "baseline", without: "unfiltered" },
    Comparison { idea: "packing sequences", with: "baseline", without: "padded" },
    Comparison { idea: "few tokens per image first, then full", with: "baseline", without: "full-only" },
];
