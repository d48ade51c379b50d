//! Sums of the columns of a matrix.

use super::{Call, Found, IN_F32, Input, On, Random, sum_partials};
use oqvl_kernels::Output;
use oqvl_kernels::Rows;
use oqvl_kernels::backend::Backend;

/// Of half and of full precision, the latter added to what is there.
#[derive(Debug, Clone)]
pub(crate) struct ColumnSumCall(pub(crate) Rows);

impl Call for ColumnSumCall {
    const OP: &'static str = "column_sum";

    fn name(&self) -> String {
        format!("{} x {}", self.0.rows, self.0.cols)
    }

    fn inputs(&self, random: &mut Random) -> Vec<Input> {
        let Rows { rows, cols } = self.0;
        vec![random.half("x", &[rows, cols]), random.full("wide", &[rows, cols]), random.full("old", &[cols])]
    }

    fn run<B: Backend>(&self, on: &On<'_, B>) -> anyhow::Result<Vec<Found>> {
        let (b, sizes) = (on.backend, self.0);
        let (x, wide) = (on.half("x")?, on.full("wide")?);
        let mut partials = on.room(sum_partials(sizes)?)?;
        let (mut sums, mut added) = (on.room(sizes.cols)?, on.full("old")?);
        let to = b.slice_mut(&mut sums);
        b.column_sum(sizes, b.slice(&x), b.slice_mut(&mut partials), to, Output::Overwrite)?;
        let to = b.slice_mut(&mut added);
        b.column_sum_full(sizes, b.slice(&wide), b.slice_mut(&mut partials), to, Output::Accumulate)?;
        Ok(vec![on.found("sums", &sums)?.within(IN_F32), on.found("added", &added)?.within(IN_F32)])
    }
}
