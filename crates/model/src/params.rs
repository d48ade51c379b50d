//! Named parameters: drawn from a seed or read from files, trainable or frozen.

use crate::ModelError;
use candle_core::{DType, Device, Result, Tensor, Var};
use rand::SeedableRng as _;
use rand_distr::Distribution as _;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;

/// How a parameter starts when nobody gives its value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform between minus and plus this bound; PyTorch's default for linear layers is `1 / sqrt(fan_in)`.
    Uniform(f64),
    /// Every element the same.
    Constant(f64),
}

/// What to do about a parameter that is not among the given tensors.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// List it as an error.
    Refuse,
    /// Draw it from the seed if its name starts with one of the prefixes (`""` for any name).
    Draw {
        /// Each parameter has its own random stream, a function of this seed and its name.
        seed: u64,
        /// Prefixes of the names that may be drawn.
        prefixes: Vec<String>,
    },
}

/// Which parameters receive gradients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trainable {
    /// None: no graph is built for them.
    None,
    /// Those whose name starts with one of the prefixes (`""` for all).
    Prefixes(Vec<String>),
}

impl Trainable {
    /// All parameters.
    #[must_use]
    pub fn all() -> Self {
        Self::Prefixes(vec![String::new()])
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            Self::None => false,
            Self::Prefixes(prefixes) => starts_with_any(name, prefixes),
        }
    }
}

fn starts_with_any(name: &str, prefixes: &[String]) -> bool {
    prefixes.iter().any(|prefix| name.starts_with(prefix.as_str()))
}

/// The parameters of a network under their checkpoint names.
#[derive(Debug)]
pub struct ParamStore {
    given: BTreeMap<String, Tensor>,
    missing: Missing,
    trainable: Trainable,
    dtype: DType,
    device: Device,
    vars: BTreeMap<String, Var>,
    frozen: BTreeMap<String, Tensor>,
    problems: Vec<String>,
}

impl ParamStore {
    /// A store that hands out `given` tensors (converted to f32, unless it is made [`with_dtype`](Self::with_dtype)) and treats the others as `missing` says.
    #[must_use]
    pub fn new(
        given: BTreeMap<String, Tensor>,
        missing: Missing,
        trainable: Trainable,
        device: &Device,
    ) -> Self {
        let (vars, frozen, problems) = Default::default();
        let dtype = DType::F32;
        Self { given, missing, trainable, dtype, device: device.clone(), vars, frozen, problems }
    }

    /// The same store with parameters of another floating type. A network computes in the type of its parameters; bf16 is
    /// for inference, as training wants its weights in f32.
    #[must_use]
    pub fn with_dtype(self, dtype: DType) -> Self {
        Self { dtype, ..self }
    }

    /// A store that draws every parameter from a seed, all trainable.
    #[must_use]
    pub fn seeded(seed: u64, device: &Device) -> Self {
        let missing = Missing::Draw { seed, prefixes: vec![String::new()] };
        Self::new(BTreeMap::new(), missing, Trainable::all(), device)
    }

    /// The builder networks are made with.
    pub fn root(&mut self) -> ParamBuilder<'_> {
        ParamBuilder { store: self, prefix: String::new() }
    }

    /// Checks that what was given is what was asked for.
    ///
    /// # Errors
    /// Lists every tensor that was missing, had another shape, or was not asked for.
    pub fn finish(&mut self) -> std::result::Result<(), ModelError> {
        let extra =
            std::mem::take(&mut self.given).into_keys().map(|name| format!("`{name}` is not in the network"));
        self.problems.extend(extra);
        match std::mem::take(&mut self.problems) {
            problems if problems.is_empty() => Ok(()),
            problems => Err(ModelError::Weights { problems }),
        }
    }

    /// Trainable parameters, by name.
    #[must_use]
    pub fn vars(&self) -> &BTreeMap<String, Var> {
        &self.vars
    }

    /// Frozen parameters, by name.
    #[must_use]
    pub fn frozen(&self) -> &BTreeMap<String, Tensor> {
        &self.frozen
    }

    /// Every parameter as safetensors bytes (f32, names sorted).
    ///
    /// # Errors
    /// If a tensor cannot be read back from its device.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        let trainable = self.vars.iter().map(|(name, var)| (name, var.as_tensor()));
        let mut tensors = BTreeMap::new();
        for (name, tensor) in trainable.chain(self.frozen.iter()) {
            let values = tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            tensors.insert(name.clone(), (tensor.dims().to_vec(), bytes));
        }
        let mut views = Vec::with_capacity(tensors.len());
        for (name, (dims, bytes)) in &tensors {
            let view = TensorView::new(Dtype::F32, dims.clone(), bytes).map_err(candle_core::Error::wrap)?;
            views.push((name, view));
        }
        safetensors::serialize(views, None).map_err(candle_core::Error::wrap)
    }

    fn take(&mut self, name: String, shape: &[usize], init: Init) -> Result<Tensor> {
        let value = match self.given.remove(&name) {
            Some(tensor) if tensor.dims() == shape => tensor.to_dtype(self.dtype)?.to_device(&self.device)?,
            Some(tensor) => {
                let problem = format!("`{name}` is {:?}, expected {shape:?}", tensor.dims());
                return self.refuse(name, problem, shape);
            }
            None => match &self.missing {
                Missing::Draw { seed, prefixes } if starts_with_any(&name, prefixes) => {
                    draw(*seed, &name, shape, init, &self.device)?.to_dtype(self.dtype)?
                }
                _ => {
                    let problem = format!("`{name}` {shape:?} is missing");
                    return self.refuse(name, problem, shape);
                }
            },
        };
        if self.trainable.contains(&name) {
            let var = Var::from_tensor(&value)?;
            let tensor = var.as_tensor().clone();
            self.vars.insert(name, var);
            Ok(tensor)
        } else {
            self.frozen.insert(name, value.clone());
            Ok(value)
        }
    }

    /// Stands in until all problems are known. It takes no memory: what is missing may be of any size.
    fn refuse(&mut self, name: String, problem: String, shape: &[usize]) -> Result<Tensor> {
        self.problems.push(problem);
        let zeros = Tensor::zeros((), self.dtype, &self.device)?.broadcast_as(shape)?;
        self.frozen.insert(name, zeros.clone());
        Ok(zeros)
    }
}

/// Draws a parameter from the stream of its name, so that the order of construction does not matter.
fn draw(seed: u64, name: &str, shape: &[usize], init: Init, device: &Device) -> Result<Tensor> {
    let count = shape.iter().product();
    let mut key = seed.to_le_bytes().to_vec();
    key.extend_from_slice(name.as_bytes());
    let digest = oqvl_shard_io::digest_bytes(&key);
    let mut state = [0u8; 32];
    state.copy_from_slice(&digest.as_bytes()[..32]);
    let mut rng = rand_chacha::ChaCha8Rng::from_seed(state);
    let values: Vec<f32> = match init {
        Init::Constant(value) => vec![value as f32; count],
        Init::Normal(std) => {
            let normal = rand_distr::Normal::new(0.0, std).map_err(candle_core::Error::wrap)?;
            (0..count).map(|_| normal.sample(&mut rng) as f32).collect()
        }
        Init::Uniform(bound) => {
            let uniform =
                rand_distr::Uniform::new_inclusive(-bound, bound).map_err(candle_core::Error::wrap)?;
            (0..count).map(|_| uniform.sample(&mut rng) as f32).collect()
        }
    };
    Tensor::from_vec(values, shape, device)
}

/// Hands out parameters below a name prefix.
#[derive(Debug)]
pub struct ParamBuilder<'a> {
    store: &'a mut ParamStore,
    prefix: String,
}

impl ParamBuilder<'_> {
    /// The builder one level down: `layers.0`.
    pub fn pp(&mut self, name: impl std::fmt::Display) -> ParamBuilder<'_> {
        let prefix = format!("{}{name}.", self.prefix);
        ParamBuilder { store: self.store, prefix }
    }

    /// The same builder for a part that starts at this level.
    pub fn reborrow(&mut self) -> ParamBuilder<'_> {
        ParamBuilder { store: self.store, prefix: self.prefix.clone() }
    }

    /// Whether any parameter below this level whose name starts with `part` is given or would be drawn: an optional part
    /// is there whole or not at all.
    #[must_use]
    pub fn has(&self, part: &str) -> bool {
        let name = format!("{}{part}", self.prefix);
        let drawn = match &self.store.missing {
            Missing::Refuse => false,
            Missing::Draw { prefixes, .. } => starts_with_any(&name, prefixes),
        };
        drawn || self.store.given.keys().any(|given| given.starts_with(&name))
    }

    /// One parameter.
    ///
    /// # Errors
    /// If the tensor cannot be made; a missing or wrongly shaped one is reported by [`ParamStore::finish`].
    pub fn get(&mut self, name: &str, shape: &[usize], init: Init) -> Result<Tensor> {
        self.store.take(format!("{}{name}", self.prefix), shape, init)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::read_safetensors;

    #[test]
    fn a_parameter_depends_on_seed_and_name_only() {
        let values = |seed, names: &[&str]| {
            let mut store = ParamStore::seeded(seed, &Device::Cpu);
            let tensors: Vec<_> =
                names.iter().map(|name| store.root().get(name, &[3], Init::Normal(1.0)).unwrap()).collect();
            tensors.last().unwrap().to_vec1::<f32>().unwrap()
        };
        assert_eq!(values(1, &["a", "b"]), values(1, &["b"]));
        assert_ne!(values(1, &["a"]), values(1, &["b"]));
        assert_ne!(values(1, &["a"]), values(2, &["a"]));
    }

    #[test]
    fn every_problem_is_listed() {
        let zeros = |dims: &[usize]| Tensor::zeros(dims, DType::F32, &Device::Cpu).unwrap();
        let given = BTreeMap::from([("a".to_owned(), zeros(&[2])), ("c".to_owned(), zeros(&[1]))]);
        let mut store = ParamStore::new(given, Missing::Refuse, Trainable::None, &Device::Cpu);
        store.root().get("a", &[3], Init::Constant(0.0)).unwrap();
        store.root().get("b", &[1], Init::Constant(0.0)).unwrap();
        let error = store.finish().unwrap_err().to_string();
        for part in ["`a` is [2], expected [3]", "`b` [1] is missing", "`c` is not in the network"] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn saved_parameters_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let mut store = ParamStore::seeded(3, &Device::Cpu);
        let drawn = store.root().pp("layer").get("weight", &[2, 2], Init::Uniform(0.5)).unwrap();
        oqvl_shard_io::write_atomic(&path, &store.to_safetensors().unwrap()).unwrap();
        let read = read_safetensors(&path, &Device::Cpu).unwrap();
        assert_eq!(read["layer.weight"].to_vec2::<f32>().unwrap(), drawn.to_vec2::<f32>().unwrap());
    }
}
