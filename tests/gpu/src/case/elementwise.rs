//! Sums, casts and fills.

use super::{Bound, Call, Found, Input, On, Random};
use oqvl_kernels::backend::Backend;

/// All of them, on so many elements.
#[derive(Debug, Clone)]
pub(crate) struct ElementwiseCall(pub(crate) usize);

impl Call for ElementwiseCall {
    const OP: &'static str = "elementwise";

    fn name(&self) -> String {
        format!("{} elements", self.0)
    }

    fn inputs(&self, random: &mut Random) -> Vec<Input> {
        let dims = [self.0];
        vec![random.half("left", &dims), random.half("right", &dims), random.full("wide", &dims)]
    }

    fn run<B: Backend>(&self, on: &On<'_, B>) -> anyhow::Result<Vec<Found>> {
        let (b, len) = (on.backend, self.0);
        let (left, right, wide) = (on.half("left")?, on.half("right")?, on.full("wide")?);
        let (mut sum, mut narrowed) = (on.room(len)?, on.room(len)?);
        let (mut widened, mut filled) = (on.room(len)?, on.room(len)?);
        let mut added = on.half("left")?;
        b.add(b.slice(&left), b.slice(&right), b.slice_mut(&mut sum))?;
        b.add_assign(b.slice(&right), b.slice_mut(&mut added))?;
        b.narrow(b.slice(&wide), b.slice_mut(&mut narrowed))?;
        b.widen(b.slice(&left), b.slice_mut(&mut widened))?;
        b.fill(b.slice_mut(&mut filled), 0.25)?;
        Ok(vec![
            on.found("sum", &sum)?,
            on.found("added", &added)?,
            on.found("narrowed", &narrowed)?,
            on.found("widened", &widened)?.within(Bound::Exact),
            on.found("filled", &filled)?.within(Bound::Exact),
        ])
    }
}
