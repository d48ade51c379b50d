//! AdamW over named f32 parameters.

use crate::TrainError;
use crate::config::OptimizerConfig;
use candle_core::{Device, Tensor, Var};
use rayon::prelude::*;
use std::collections::BTreeMap;

/// First and second moments of one parameter.
#[derive(Debug, Clone, Default)]
struct Moments {
    first: Vec<f32>,
    second: Vec<f32>,
}

/// Decoupled weight decay, bias correction, global-norm clipping.
///
/// Source: Loshchilov and Hutter, 2019, in the order of operations of `torch.optim.AdamW`.
#[derive(Debug)]
pub struct AdamW {
    config: OptimizerConfig,
    moments: BTreeMap<String, Moments>,
    num_steps: u64,
}

/// Gradients by parameter name.
pub type Gradients = BTreeMap<String, Vec<f32>>;

impl AdamW {
    /// Zero moments for every parameter.
    #[must_use]
    pub fn new(config: OptimizerConfig, vars: &BTreeMap<String, Var>) -> Self {
        let zeros =
            |var: &Var| Moments { first: vec![0.0; var.elem_count()], second: vec![0.0; var.elem_count()] };
        let moments = vars.iter().map(|(name, var)| (name.clone(), zeros(var))).collect();
        Self { config, moments, num_steps: 0 }
    }

    /// One step at `learning_rate`. Returns the global L2 norm of the gradients before clipping. A parameter without a
    /// gradient stays as it is, as in PyTorch; a norm that is not finite leaves all of them as they are.
    ///
    /// # Errors
    /// If a parameter cannot be read or set.
    pub fn step(
        &mut self,
        vars: &BTreeMap<String, Var>,
        gradients: &Gradients,
        learning_rate: f64,
    ) -> Result<f64, TrainError> {
        // One sum per parameter, added in the order of names: the same bits on any number of threads.
        let square = |gradient: &Vec<f32>| -> f64 {
            gradient.iter().map(|value| f64::from(*value) * f64::from(*value)).sum()
        };
        let squares: Vec<f64> = gradients.par_iter().map(|(_, gradient)| square(gradient)).collect();
        let norm = squares.into_iter().sum::<f64>().sqrt();
        if !norm.is_finite() {
            return Ok(norm);
        }
        let clip = (self.config.max_grad_norm / (norm + 1e-6)).min(1.0) as f32;
        self.num_steps += 1;
        let (config, num_steps) = (self.config, self.num_steps);
        self.moments.par_iter_mut().try_for_each(|(name, moments)| {
            let (Some(var), Some(gradient)) = (vars.get(name), gradients.get(name)) else { return Ok(()) };
            let mut values = var.flatten_all()?.to_vec1::<f32>()?;
            let decay = match var.dims().len() > 1 && !name.ends_with(".bias") {
                true => config.weight_decay,
                false => 0.0,
            };
            let step = Update {
                clip,
                keep: (1.0 - learning_rate * decay) as f32,
                step_size: learning_rate / (1.0 - config.beta1.powi(num_steps as i32)),
                second_correction: (1.0 - config.beta2.powi(num_steps as i32)).sqrt() as f32,
            };
            update(&config, &mut values, moments, gradient, step);
            var.set(&Tensor::from_vec(values, var.shape(), var.device())?)
        })?;
        Ok(norm)
    }

    /// Moments as tensors, for a checkpoint.
    ///
    /// # Errors
    /// If a tensor cannot be made.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>, TrainError> {
        let mut state = BTreeMap::new();
        for (name, moments) in &self.moments {
            for (kind, values) in [("first", &moments.first), ("second", &moments.second)] {
                let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
                state.insert(format!("{kind}.{name}"), tensor);
            }
        }
        Ok(state)
    }

    /// Restores what [`state`](Self::state) gave after `num_steps` steps.
    ///
    /// # Errors
    /// If a moment is missing or has another size.
    pub fn restore(&mut self, state: &BTreeMap<String, Tensor>, num_steps: u64) -> Result<(), TrainError> {
        for (name, moments) in &mut self.moments {
            for (kind, values) in [("first", &mut moments.first), ("second", &mut moments.second)] {
                let key = format!("{kind}.{name}");
                let tensor = state.get(&key).filter(|tensor| tensor.elem_count() == values.len());
                let tensor = tensor.ok_or_else(|| TrainError::OptimizerState { name: key.clone() })?;
                *values = tensor.flatten_all()?.to_vec1()?;
            }
        }
        self.num_steps = num_steps;
        Ok(())
    }
}

/// Numbers of one step that all elements of a parameter share.
struct Update {
    clip: f32,
    keep: f32,
    step_size: f64,
    second_correction: f32,
}

fn update(
    config: &OptimizerConfig,
    values: &mut [f32],
    moments: &mut Moments,
    gradient: &[f32],
    step: Update,
) {
    let (beta1, beta2) = (config.beta1 as f32, config.beta2 as f32);
    let (eps, step_size) = (config.eps as f32, step.step_size as f32);
    let moments = moments.first.iter_mut().zip(&mut moments.second);
    for ((value, (first, second)), gradient) in values.iter_mut().zip(moments).zip(gradient) {
        let gradient = gradient * step.clip;
        *first = beta1 * *first + (1.0 - beta1) * gradient;
        *second = beta2 * *second + (1.0 - beta2) * gradient * gradient;
        *value = *value * step.keep - step_size * *first / (second.sqrt() / step.second_correction + eps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> OptimizerConfig {
        OptimizerConfig { weight_decay: 0.1, ..OptimizerConfig::default() }
    }

    fn one(name: &str, dims: &[usize]) -> BTreeMap<String, Var> {
        BTreeMap::from([(name.to_owned(), Var::ones(dims, candle_core::DType::F32, &Device::Cpu).unwrap())])
    }

    /// `torch.optim.AdamW([w], lr=0.1, weight_decay=0.1)` on `w = 1` with gradients 0.5, -0.25.
    #[test]
    fn two_steps_by_hand() {
        let vars = one("w", &[1, 1]);
        let mut adamw = AdamW::new(config(), &vars);
        let mut step = |gradient: f32| {
            adamw.step(&vars, &BTreeMap::from([("w".to_owned(), vec![gradient])]), 0.1).unwrap();
            vars["w"].to_vec2::<f32>().unwrap()[0][0]
        };
        // 1 * 0.99 - 0.1 * 0.5 / (0.5 + 1e-8)
        assert!((step(0.5) - 0.89).abs() < 1e-6);
        // m = 0.045 - 0.025 = 0.02, m_hat = 0.02 / 0.19; v = 0.00024975 + 0.0000625, v_hat = v / 0.001999
        let expected = 0.89 * 0.99 - 0.1 * (0.02 / 0.19) / ((0.000_312_25f64 / 0.001_999).sqrt() + 1e-8);
        assert!((f64::from(step(-0.25)) - expected).abs() < 1e-6);
    }

    #[test]
    fn biases_and_vectors_do_not_decay_and_norms_are_clipped() {
        for (name, dims) in [("a.bias", vec![1, 1]), ("norm", vec![1])] {
            let vars = one(name, &dims);
            let mut adamw = AdamW::new(config(), &vars);
            let norm = adamw.step(&vars, &BTreeMap::from([(name.to_owned(), vec![0.0])]), 0.1).unwrap();
            assert_eq!(norm, 0.0);
            assert_eq!(vars[name].flatten_all().unwrap().to_vec1::<f32>().unwrap(), [1.0]);
        }
        let vars = one("w", &[1, 1]);
        let mut adamw = AdamW::new(config(), &vars);
        let norm = adamw.step(&vars, &BTreeMap::from([("w".to_owned(), vec![30.0])]), 0.1).unwrap();
        assert_eq!(norm, 30.0);
        assert!((adamw.moments["w"].first[0] - 0.1).abs() < 1e-5, "the clipped gradient is 1");
    }

    #[test]
    fn a_gradient_that_is_not_finite_changes_nothing() {
        let vars = one("w", &[1, 1]);
        let mut adamw = AdamW::new(config(), &vars);
        let norm = adamw.step(&vars, &BTreeMap::from([("w".to_owned(), vec![f32::NAN])]), 0.1).unwrap();
        assert!(norm.is_nan());
        assert_eq!(vars["w"].to_vec2::<f32>().unwrap(), [[1.0]]);
        assert_eq!(adamw.num_steps, 0);
    }
}
