//! Layers that more than one network uses.

use crate::params::{Init, ParamBuilder};
use candle_core::{D, DType, Result, Tensor};
use oqvl_kernels::{Mask, attention, layer_norm, linear};

/// How matrices start when they are drawn (LeCun): normal with variance `1 / fan_in`, as SigLIP's big_vision. At the
/// width of Qwen2.5-1.5B that is its `initializer_range` of 0.02; at the width of a micro model 0.02 would start the
/// network so close to zero that hundreds of steps go by before it learns.
pub(crate) fn lecun(fan_in: usize) -> Init {
    Init::Normal((fan_in as f64).sqrt().recip())
}

/// `x w^T + b`.
#[derive(Debug, Clone)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

/// Whether a linear layer has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bias {
    Yes,
    No,
}

impl Linear {
    /// `weight`: `(output, input)`, `bias`: `(output)`.
    pub(crate) fn new(
        mut p: ParamBuilder<'_>,
        input: usize,
        output: usize,
        bias: Bias,
        init: Init,
    ) -> Result<Self> {
        let weight = p.get("weight", &[output, input], init)?;
        let bias = match (bias, init) {
            (Bias::No, _) => None,
            // PyTorch draws the bias of a default linear layer like its weight.
            (Bias::Yes, Init::Uniform(_)) => Some(p.get("bias", &[output], init)?),
            (Bias::Yes, _) => Some(p.get("bias", &[output], Init::Constant(0.0))?),
        };
        Ok(Self { weight, bias })
    }

    /// `(.., input)` to `(.., output)`.
    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        linear(x, &self.weight, self.bias.as_ref())
    }
}

/// Layer normalisation over the last dimension.
#[derive(Debug, Clone)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f64,
}

impl LayerNorm {
    pub(crate) fn new(mut p: ParamBuilder<'_>, hidden_size: usize, eps: f64) -> Result<Self> {
        let weight = p.get("weight", &[hidden_size], Init::Constant(1.0))?;
        let bias = p.get("bias", &[hidden_size], Init::Constant(0.0))?;
        Ok(Self { weight, bias, eps })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        layer_norm(x, &self.weight, &self.bias, self.eps)
    }
}

/// `(b, s, heads * d)` to `(b, heads, s, d)`.
pub(crate) fn split_heads(x: &Tensor, num_heads: usize) -> Result<Tensor> {
    let (b, s, hidden) = x.dims3()?;
    x.reshape((b, s, num_heads, hidden / num_heads))?.transpose(1, 2)?.contiguous()
}

/// `(b, heads, s, d)` to `(b, s, heads * d)`.
pub(crate) fn join_heads(x: &Tensor) -> Result<Tensor> {
    let (b, heads, s, d) = x.dims4()?;
    x.transpose(1, 2)?.reshape((b, s, heads * d))
}

/// Multi-head attention of `q` over `k` and `v`, all three already projected, `(b, s, heads * d)`.
pub(crate) fn multi_head_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    num_heads: usize,
    mask: Mask,
) -> Result<Tensor> {
    let (q, k, v) = (split_heads(q, num_heads)?, split_heads(k, num_heads)?, split_heads(v, num_heads)?);
    join_heads(&attention(&q, &k, &v, mask)?)
}

/// Runs `f` in f32 where `x` is in bf16: candle's own operations round after every step.
pub(crate) fn in_f32(x: &Tensor, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    match x.dtype() {
        DType::BF16 => f(&x.to_dtype(DType::F32)?)?.to_dtype(DType::BF16),
        _ => f(x),
    }
}

/// Rows of length one.
pub(crate) fn normalize(x: &Tensor) -> Result<Tensor> {
    in_f32(x, |x| x.broadcast_div(&(x.sqr()?.sum_keepdim(D::Minus1)? + 1e-12)?.sqrt()?))
}
