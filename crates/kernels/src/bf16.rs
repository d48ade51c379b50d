//! Every operation in bf16 against itself in f32.

use crate::gradcheck::random;
use crate::{
    Mask, RopeTables, adaptive_avg_pool, attention, bias_gelu, bias_gelu_tanh, cross_entropy, layer_norm,
    linear, rms_norm, rope, swiglu,
};
use candle_core::{DType, Result, Tensor, Var};

fn input(dims: &[usize], seed: u64) -> Var {
    Var::from_tensor(&random(dims, seed).to_dtype(DType::BF16).unwrap()).unwrap()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// The result is that of f32, rounded once to `dtype`, and every input has a gradient.
#[track_caller]
fn check(inputs: &[Var], dtype: DType, operation: impl Fn(&[Tensor]) -> Result<Tensor>) {
    let narrow: Vec<Tensor> = inputs.iter().map(|input| input.as_tensor().clone()).collect();
    let wide: Vec<Tensor> = narrow.iter().map(|input| input.to_dtype(DType::F32).unwrap()).collect();
    let (found, exact) = (operation(&narrow).unwrap(), operation(&wide).unwrap());
    assert_eq!(found.dtype(), dtype);
    assert_eq!(values(&found), values(&exact.to_dtype(dtype).unwrap()));
    let gradients = found.sum_all().unwrap().backward().unwrap();
    for input in inputs {
        let gradient = gradients.get(input).expect("every input has a gradient");
        assert_eq!((gradient.dims(), gradient.dtype()), (input.dims(), DType::BF16));
        assert!(values(gradient).iter().any(|value| *value != 0.0));
    }
    // Widening is no licence to mix.
    if let [first, rest @ ..] = &narrow[..]
        && !rest.is_empty()
    {
        let mut mixed = vec![first.to_dtype(DType::F32).unwrap()];
        mixed.extend_from_slice(rest);
        assert!(operation(&mixed).is_err());
    }
}

#[test]
fn operations_round_once() {
    let same = DType::BF16;
    let (x, w, b) = (input(&[3, 6], 1), input(&[4, 6], 2), input(&[4], 3));
    check(&[x.clone(), w.clone()], same, |t| linear(&t[0], &t[1], None));
    check(&[x.clone(), w, b], same, |t| linear(&t[0], &t[1], Some(&t[2])));
    let (weight, bias) = (input(&[6], 4), input(&[6], 5));
    check(&[x.clone(), weight.clone()], same, |t| rms_norm(&t[0], &t[1], 1e-6));
    check(&[x.clone(), weight, bias], same, |t| layer_norm(&t[0], &t[1], &t[2], 1e-6));
    check(&[x.clone(), input(&[3, 6], 6)], same, |t| swiglu(&t[0], &t[1]));
    let (q, k, v) = (input(&[1, 4, 3, 2], 7), input(&[1, 2, 5, 2], 8), input(&[1, 2, 5, 2], 9));
    check(&[q.clone(), k, v], same, |t| attention(&t[0], &t[1], &t[2], Mask::Causal));
    let tables = RopeTables::new(2, 9, 1e4);
    check(&[q], same, |t| rope(&t[0], &tables, 4));
    let bias = input(&[6], 11);
    check(&[x.clone(), bias.clone()], same, |t| bias_gelu(&t[0], &t[1]));
    check(&[x.clone(), bias], same, |t| bias_gelu_tanh(&t[0], &t[1]));
    check(&[input(&[1, 9, 2], 10)], same, |t| adaptive_avg_pool(&t[0], 2));
    // A loss with three digits would be none.
    check(&[x], DType::F32, |t| cross_entropy(&t[0], &[0, 5, 2]));
}
