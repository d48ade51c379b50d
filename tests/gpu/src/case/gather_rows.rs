//! Rows of a matrix by their numbers.

use super::{Bound, Call, Found, Input, On, Random};
use oqvl_kernels::backend::Backend;

/// Takes `rows` rows of a matrix of `from_rows`, one of eight of them none.
#[derive(Debug, Clone)]
pub(crate) struct GatherRowsCall {
    pub(crate) from_rows: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl Call for GatherRowsCall {
    const OP: &'static str = "gather_rows";

    fn name(&self) -> String {
        format!("{} of {} rows, {} columns", self.rows, self.from_rows, self.cols)
    }

    fn inputs(&self, random: &mut Random) -> Vec<Input> {
        let Self { from_rows, rows, cols } = *self;
        let index = |random: &mut Random, at: usize| if at % 8 == 3 { -1 } else { random.below(from_rows) };
        vec![random.half("from", &[from_rows, cols]), random.ints("indices", rows, index)]
    }

    fn run<B: Backend>(&self, on: &On<'_, B>) -> anyhow::Result<Vec<Found>> {
        let b = on.backend;
        let (from, indices) = (on.half("from")?, on.ints("indices")?);
        let mut to = on.room(self.rows * self.cols)?;
        b.gather_rows(self.cols, b.slice(&from), b.slice(&indices), b.slice_mut(&mut to))?;
        Ok(vec![on.found("to", &to)?.within(Bound::Exact)])
    }
}
