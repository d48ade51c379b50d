//! The operations that run on GPUs. A new one is a line here: everything about it is then asked for and shown.

/// An operation.
#[derive(Debug)]
pub(super) struct Op {
    /// In the names of its tests: `<name>::` in the kernels' crate, `tests/<name>.rs` in the emulation's and the worked example's.
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
        /// The kernels that take the time of a training step: beginnings of their names, and how many bytes of registers
        /// each may spill; 0 unless an argued exception.
        hot: &'static [(&'static str, u32)],
    },
    /// A library of NVIDIA: there is nothing to compile and nothing to emulate.
    Library,
    /// The operations above it, one after the other: there is nothing to compile.
    Sequence,
}

/// All of them.
pub(super) const OPS: [Op; 16] = [
    Op {
        name: "attention",
        source: Source::Ours {
            module: "attention",
            hot: &[
                ("attention_forward_64", 0),
                ("attention_forward_80", 0),
                // 192 registers hold results and scores alone. With half the keys in a block there would be room, but
                // twice the corrections of the running softmax.
                ("attention_forward_128", 64),
                ("attention_dkdv", 0),
                ("attention_dq", 0),
            ],
        },
    },
    Op { name: "avg_pool", source: Source::Ours { module: "avg_pool", hot: &[("avg_pool", 0)] } },
    Op { name: "bias_gelu", source: Source::Ours { module: "bias_gelu", hot: &[("bias_gelu", 0)] } },
    Op { name: "column_sum", source: Source::Ours { module: "column_sum", hot: &[("column_sum", 0)] } },
    Op { name: "gemm", source: Source::Library },
    Op {
        name: "norm",
        source: Source::Ours {
            module: "norm",
            hot: &[("rms_norm_forward_6", 0), ("rms_norm_backward_6", 0), ("layer_norm_forward_6", 0)],
        },
    },
    Op { name: "swiglu", source: Source::Ours { module: "swiglu", hot: &[("swiglu", 0)] } },
    Op {
        name: "adamw",
        source: Source::Ours { module: "adamw", hot: &[("adamw_update", 0), ("gradient_norm_partial", 0)] },
    },
    Op { name: "patchify", source: Source::Ours { module: "patchify", hot: &[("patchify", 0)] } },
    Op { name: "elementwise", source: Source::Ours { module: "elementwise", hot: &[("elementwise", 0)] } },
    Op {
        name: "cross_entropy",
        source: Source::Ours { module: "cross_entropy", hot: &[("cross_entropy", 0)] },
    },
    Op { name: "rope", source: Source::Ours { module: "rope", hot: &[("rope", 0)] } },
    Op { name: "gather_rows", source: Source::Ours { module: "gather_rows", hot: &[("gather_rows", 0)] } },
    Op { name: "embedding", source: Source::Ours { module: "embedding", hot: &[("embedding", 0)] } },
    Op { name: "training_step", source: Source::Sequence },
    Op { name: "vision_tower", source: Source::Sequence },
];
