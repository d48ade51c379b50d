//! Images as rows of patches.

use super::{Call, Found, Input, On, Random, Values};
use oqvl_kernels::backend::Backend;
use oqvl_kernels::patchify::Patches;
use serde_json::{Value, json};

/// Of pixels of one byte.
#[derive(Debug, Clone)]
pub(crate) struct PatchifyCall(pub(crate) Patches);

impl PatchifyCall {
    /// With a mean and deviations that are not those of any model, to tell channels apart.
    pub(crate) fn new(batch: usize, (grid_rows, grid_cols): (usize, usize), edge: usize) -> Self {
        let (mean, deviation) = ([0.48, 0.46, 0.41], [0.27, 0.26, 0.28]);
        Self(Patches { batch, grid_rows, grid_cols, edge, mean, deviation })
    }
}

impl Call for PatchifyCall {
    const OP: &'static str = "patchify";

    fn name(&self) -> String {
        let Patches { batch, grid_rows, grid_cols, edge, .. } = self.0;
        format!("{batch} x {grid_rows} x {grid_cols} patches of edge {edge}")
    }

    fn inputs(&self, random: &mut Random) -> Vec<Input> {
        let Patches { batch, grid_rows, grid_cols, edge, .. } = self.0;
        let dims = vec![batch, grid_rows * edge, grid_cols * edge, 3];
        let values = (0..dims.iter().product()).map(|_| random.below(256) as u8).collect();
        vec![Input { name: "pixels", dims, values: Values::Bytes(values) }]
    }

    fn settings(&self) -> Value {
        let Patches { edge, mean, deviation, .. } = self.0;
        json!({ "edge": edge, "mean": mean, "deviation": deviation })
    }

    fn run<B: Backend>(&self, on: &On<'_, B>) -> anyhow::Result<Vec<Found>> {
        let b = on.backend;
        let pixels = on.bytes("pixels")?;
        let mut rows = on.room(self.0.num_patches()? * self.0.cols()?)?;
        b.patchify(&self.0, b.slice(&pixels), b.slice_mut(&mut rows))?;
        Ok(vec![on.found("rows", &rows)?])
    }
}
