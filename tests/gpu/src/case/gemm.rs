//! Products of matrices.

use super::{Call, Found, IN_F32, Input, On, Random};
use oqvl_kernels::Output;
use oqvl_kernels::backend::Backend;
use oqvl_kernels::gemm::{Epilogue, Form, Gemm, Operand};
use serde_json::{Value, json};

/// What a product is stored in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Precision {
    Half,
    Full,
}

/// Of bf16 inputs.
#[derive(Debug, Clone)]
pub(crate) struct GemmCall(pub(crate) Gemm, pub(crate) Precision);

impl Call for GemmCall {
    const OP: &'static str = "gemm";

    fn name(&self) -> String {
        let Self(gemm, precision) = self;
        let transposed = |operand: Operand| if operand.form == Form::Transposed { "^T" } else { "" };
        let (a, b) = (transposed(gemm.a), transposed(gemm.b));
        let dtype = if *precision == Precision::Half { "bf16" } else { "f32" };
        let output = if gemm.output == Output::Accumulate { "added to" } else { "to" };
        format!("{} x {} x {}, A{a} B{b}, {:?} {output} {dtype}", gemm.m, gemm.n, gemm.k, gemm.epilogue)
    }

    fn inputs(&self, random: &mut Random) -> Vec<Input> {
        let gemm = &self.0;
        let stored = |form: Form, rows, columns| match form {
            Form::Plain => [rows, columns],
            Form::Transposed => [columns, rows],
        };
        let mut inputs = vec![
            random.half("a", &stored(gemm.a.form, gemm.m, gemm.k)),
            random.half("b", &stored(gemm.b.form, gemm.k, gemm.n)),
        ];
        if gemm.epilogue.has_bias() {
            inputs.push(random.half("bias", &[gemm.n]));
        }
        if gemm.output == Output::Accumulate {
            inputs.push(random.half("old", &[gemm.m, gemm.n]));
        }
        inputs
    }

    fn settings(&self) -> Value {
        let gemm = &self.0;
        let transposed = [gemm.a, gemm.b].map(|operand| operand.form == Form::Transposed);
        json!({
            "transposed": transposed,
            "gelu": matches!(gemm.epilogue, Epilogue::Gelu | Epilogue::GeluBias),
        })
    }

    fn run<B: Backend>(&self, on: &On<'_, B>) -> anyhow::Result<Vec<Found>> {
        let (b, Self(gemm, precision)) = (on.backend, self);
        let (left, right) = (on.half("a")?, on.half("b")?);
        let operands = (b.slice(&left), b.slice(&right));
        let (len, adds) = (gemm.m * gemm.n, gemm.output == Output::Accumulate);
        match precision {
            Precision::Half => {
                let mut d = if adds { on.half("old")? } else { on.room(len)? };
                let bias = gemm.epilogue.has_bias().then(|| on.half("bias")).transpose()?;
                let bias = bias.as_ref().map(|bias| b.slice(bias));
                b.gemm(gemm, operands, bias, b.slice_mut(&mut d))?;
                Ok(vec![on.found("d", &d)?])
            }
            Precision::Full => {
                let mut d = if adds { on.widened("old")? } else { on.room(len)? };
                b.gemm_full(gemm, operands, b.slice_mut(&mut d))?;
                Ok(vec![on.found("d", &d)?.within(IN_F32)])
            }
        }
    }
}
