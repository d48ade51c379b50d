//! A fixture on disk, as `crates/model/tests/fixtures/golden.py` describes it.

use crate::row::{Place, Row};
use anyhow::{Context as _, ensure};
use candle_core::{DType, Device, Tensor};
use oqvl_model::{Network, read_config, read_safetensors, read_weights};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

pub(crate) type Tensors = BTreeMap<String, Tensor>;

/// Goldens that go in; every other one is an output.
const INPUTS: [&str; 7] = ["pixel_values", "input_ids", "lens", "shown", "images", "labels", "greedy"];
/// At the end of the name of an output in bfloat16.
const BF16: &str = ".bf16";

/// Where the fixtures are.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crates/model/tests/fixtures")
}

/// One of them.
pub(crate) struct Fixture {
    pub(crate) place: Place,
    dir: PathBuf,
    goldens: Tensors,
}

impl Fixture {
    /// All fixtures of a folder, by name.
    pub(crate) fn all(folder: &str, architecture: &'static str) -> anyhow::Result<Vec<Self>> {
        let dir = root().join(folder);
        let shown = || dir.display().to_string();
        let mut names: Vec<String> = std::fs::read_dir(&dir)
            .with_context(shown)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect::<std::io::Result<_>>()
            .with_context(shown)?;
        names.sort();
        ensure!(!names.is_empty(), "{} holds no fixture", dir.display());
        let open = |name: String| {
            let dir = dir.join(&name);
            let goldens = read_safetensors(&dir.join("golden.safetensors"), &Device::Cpu)?;
            Ok(Self { place: Place { architecture, fixture: format!("{folder}/{name}") }, dir, goldens })
        };
        names.into_iter().map(open).collect()
    }

    pub(crate) fn config<C: DeserializeOwned>(&self) -> anyhow::Result<C> {
        Ok(read_config(&self.dir)?)
    }

    /// The weights under our names.
    pub(crate) fn weights(&self, network: Network) -> anyhow::Result<Tensors> {
        Ok(network.rename(read_weights(&self.dir, &Device::Cpu)?)?)
    }

    pub(crate) fn golden(&self, name: &str) -> anyhow::Result<&Tensor> {
        self.goldens.get(name).with_context(|| format!("{} has no `{name}`", self.place.fixture))
    }

    /// A golden of whole numbers, flat.
    pub(crate) fn ints(&self, name: &str) -> anyhow::Result<Vec<i64>> {
        Ok(self.golden(name)?.to_dtype(DType::I64)?.flatten_all()?.to_vec1()?)
    }

    /// Whether it has this golden.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.goldens.contains_key(name)
    }

    /// The rows of a flat golden, as long as `lens` says.
    pub(crate) fn ragged(&self, name: &str) -> anyhow::Result<Vec<Vec<i64>>> {
        let mut rest = self.ints(name)?.into_iter();
        let rows = self.ints("lens")?.into_iter().map(|len| rest.by_ref().take(len as usize).collect());
        Ok(rows.collect())
    }

    /// Holds outputs of a network that runs in `dtype` against the goldens; each golden must have its output.
    pub(crate) fn compare(&self, dtype: DType, outputs: &[(&str, Tensor)]) -> anyhow::Result<Vec<Row>> {
        let ending = if dtype == DType::F32 { "" } else { BF16 };
        let asked = self.goldens.keys().filter_map(|name| match ending {
            "" => (!INPUTS.contains(&name.as_str()) && !name.ends_with(BF16)).then_some(name.as_str()),
            ending => name.strip_suffix(ending),
        });
        let mut rows = Vec::new();
        for what in asked {
            let found = outputs.iter().find(|(name, _)| *name == what);
            let (_, found) =
                found.with_context(|| format!("nothing measures `{what}` of {}", self.place.fixture))?;
            let (truth, original) = (self.golden(what)?, self.golden(&format!("{what}{ending}"))?);
            ensure!(
                found.dims() == truth.dims(),
                "`{what}` of {} is {:?}, expected {:?}",
                self.place.fixture,
                found.dims(),
                truth.dims()
            );
            rows.push(match ending {
                "" => self.place.f32(what, &values(found)?, &values(truth)?),
                _ => self.place.bf16(what, &values(found)?, &values(original)?, &values(truth)?),
            });
        }
        Ok(rows)
    }
}

fn values(tensor: &Tensor) -> anyhow::Result<Vec<f32>> {
    Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
}
