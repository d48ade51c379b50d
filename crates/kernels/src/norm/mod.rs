//! RMSNorm and LayerNorm for engines with memory of their own, with the addition before them. What candle programs call are
//! [`rms_norm`](crate::rms_norm()) and [`layer_norm`](crate::layer_norm()).

mod launch;
mod sys;

pub use launch::{
    Backward, Centre, CentreBackward, Forward, Norm, Residual, backward, forward, num_partials, partials_len,
};
