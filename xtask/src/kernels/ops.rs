//! The operations that run on GPUs. A new one is a line here: everything about it is then asked for and shown.

/// An operation.
#[derive(Debug)]
pub(super) struct Op {
    /// In the names of its tests: `<name>::` in the kernels' crate, `tests/<name>.rs` in the emulation's.
    pub(super) name: &'static str,
    /// Where its kernels come from.
    pub(super) source: Source,
}

/// Where the kernels of an operation come from.
#[derive(Debug)]
pub(super) enum Source {
    /// A `.cu` file of ours.
    Ours {
        /// Its name without the ending.
        module: &'static str,
        /// Beginnings of the names of the kernels that take the time of a training step.
        hot: &'static [&'static str],
        /// Bytes of registers that any of them may spill; 0 unless an argued exception.
        max_hot_spill_bytes: u32,
    },
    /// A library of NVIDIA: there is nothing to compile and nothing to emulate.
    Library,
}

/// All of them.
pub(super) const OPS: [Op; 8] = [
    Op {
        name: "attention",
        source: Source::Ours {
            module: "attention",
            hot: &["attention_forward", "attention_dkdv", "attention_dq"],
            max_hot_spill_bytes: 0,
        },
    },
    Op {
        name: "avg_pool",
        source: Source::Ours { module: "avg_pool", hot: &["avg_pool"], max_hot_spill_bytes: 0 },
    },
    Op {
        name: "bias_gelu",
        source: Source::Ours { module: "bias_gelu", hot: &["bias_gelu"], max_hot_spill_bytes: 0 },
    },
    Op {
        name: "column_sum",
        source: Source::Ours { module: "column_sum", hot: &["column_sum"], max_hot_spill_bytes: 0 },
    },
    Op { name: "gemm", source: Source::Library },
    Op {
        name: "norm",
        source: Source::Ours {
            module: "norm",
            hot: &["rms_norm_forward_6", "rms_norm_backward_6", "layer_norm_forward_6"],
            max_hot_spill_bytes: 0,
        },
    },
    Op {
        name: "swiglu",
        source: Source::Ours { module: "swiglu", hot: &["swiglu"], max_hot_spill_bytes: 0 },
    },
    Op {
        name: "adamw",
        source: Source::Ours {
            module: "adamw",
            hot: &["adamw_update", "gradient_norm_partial"],
            max_hot_spill_bytes: 0,
        },
    },
];
