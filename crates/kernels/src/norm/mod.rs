//! RMSNorm and LayerNorm for engines with memory of their own, with the addition before them. What candle programs call are
//! [`rms_norm`] and [`layer_norm`].

#[cfg(feature = "cuda")]
mod cuda;
mod launch;
mod layer_norm;
pub(crate) mod reference;
mod rms_norm;
mod sys;

pub use launch::{
    Backward, Centre, CentreBackward, Forward, Norm, Residual, backward, forward, num_partials, partials_len,
};
pub(crate) use launch::{ROWS_PER_BLOCK, check_len};
pub use layer_norm::layer_norm;
pub use rms_norm::rms_norm;
