//! RMSNorm and LayerNorm on a [`Device`]: checks, grids and parameters of the kernels of `norm.cu`.

use super::sys::{self, MAX_HIDDEN, NormBackward, NormForward, WARPS};
use crate::device::{Device, Grid, Memory, Slice, SliceMut, check_alignment};
use candle_core::{Result, bail};

/// Rows whose gradients of the gains one block adds: four for each of its warps.
pub(crate) const ROWS_PER_BLOCK: usize = 4 * WARPS;

/// What is normalised: `rows` rows of `hidden` channels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Number of rows.
    pub rows: usize,
    /// Channels of a row: a multiple of 8, up to 4096.
    pub hidden: usize,
    /// Added to the mean of squares.
    pub eps: f64,
}

/// The residual stream that is added before the norm.
pub struct Residual<'a, D: Memory> {
    /// What is added, `(rows, hidden)`.
    pub residual: Slice<'a, D, D::Half>,
    /// `x + residual`, rounded, `(rows, hidden)`; written whole.
    pub sum: SliceMut<'a, D, D::Half>,
}

/// What LayerNorm has beyond RMSNorm.
pub struct Centre<'a, D: Memory> {
    /// Added to every row, `(hidden)`.
    pub bias: Slice<'a, D, D::Half>,
    /// Mean of each row, `(rows)`; written whole.
    pub mean: SliceMut<'a, D, D::Full>,
}

/// What [`forward`] reads and writes.
pub struct Forward<'a, D: Memory> {
    /// `(rows, hidden)`.
    pub x: Slice<'a, D, D::Half>,
    /// Added to `x` first, if there is one.
    pub residual: Option<Residual<'a, D>>,
    /// Gains, `(hidden)`.
    pub weight: Slice<'a, D, D::Half>,
    /// LayerNorm if there is one, RMSNorm if not.
    pub centre: Option<Centre<'a, D>>,
    /// `(rows, hidden)`; written whole.
    pub y: SliceMut<'a, D, D::Half>,
    /// `1 / sqrt(mean of squares + eps)` of each row, `(rows)`; written whole.
    pub inverse: SliceMut<'a, D, D::Full>,
}

/// What LayerNorm's backward has beyond RMSNorm's.
pub struct CentreBackward<'a, D: Memory> {
    /// Of the forward.
    pub mean: Slice<'a, D, D::Full>,
    /// Partial sums of the gradient of the bias, [`partials_len`]; written whole.
    pub dbias_partials: SliceMut<'a, D, D::Full>,
}

/// What [`backward`] reads and writes.
pub struct Backward<'a, D: Memory> {
    /// What was normalised: `sum`, or `x` if nothing was added.
    pub s: Slice<'a, D, D::Half>,
    /// Gains, `(hidden)`.
    pub weight: Slice<'a, D, D::Half>,
    /// Gradient of the result.
    pub dy: Slice<'a, D, D::Half>,
    /// Gradient that reaches `s` past the norm, if there is one.
    pub dresidual: Option<Slice<'a, D, D::Half>>,
    /// Of the forward.
    pub inverse: Slice<'a, D, D::Full>,
    /// Gradient of `s`; written whole.
    pub ds: SliceMut<'a, D, D::Half>,
    /// Partial sums of the gradient of the gains, [`partials_len`]; written whole.
    pub dweight_partials: SliceMut<'a, D, D::Full>,
    /// LayerNorm if there is one, RMSNorm if not.
    pub centre: Option<CentreBackward<'a, D>>,
}

/// Rows of partial sums of the gains' gradients, `hidden` numbers each: their column sums are the gradients.
#[must_use]
pub fn num_partials(norm: Norm) -> usize {
    norm.rows.div_ceil(ROWS_PER_BLOCK)
}

/// Partial sums of the gradient of one gain.
///
/// # Errors
/// If there are more than can be counted.
pub fn partials_len(norm: Norm) -> Result<usize> {
    match num_partials(norm).checked_mul(norm.hidden) {
        Some(len) => Ok(len),
        None => bail!("norm: {norm:?} is too large"),
    }
}

impl Norm {
    fn kernels(&self) -> Result<&'static sys::Kernels> {
        let hidden = self.hidden;
        let Some(kernels) = sys::kernels(hidden).filter(|_| hidden > 0 && hidden.is_multiple_of(8)) else {
            bail!("norm: rows of {hidden} channels; the kernels take multiples of 8 up to {MAX_HIDDEN}")
        };
        Ok(kernels)
    }

    /// Refuses what is no norm. Returns the number of elements.
    pub(crate) fn check_sizes(&self) -> Result<usize> {
        let Self { rows, hidden, eps } = *self;
        if hidden == 0 {
            bail!("norm: rows of no channels");
        }
        if !(eps as f32).is_finite() || eps < 0.0 {
            bail!("norm: eps is {eps}");
        }
        match rows.checked_mul(hidden) {
            Some(len) if i64::try_from(len).is_ok() => Ok(len),
            _ => bail!("norm: {self:?} is too large"),
        }
    }
}

/// Checks a tensor's name, its address and length, and the length it should have.
type Check = fn(&str, (u64, usize), usize) -> Result<()>;

/// Checks a tensor's length.
pub(crate) fn check_len(what: &str, (_, len): (u64, usize), expected: usize) -> Result<()> {
    if len != expected {
        bail!("norm: {what} has {len} elements, not {expected}");
    }
    Ok(())
}

/// Checks its address too, where sixteen bytes are moved at once.
fn check_vectors(what: &str, (address, len): (u64, usize), expected: usize) -> Result<()> {
    check_len(what, (address, len), expected)?;
    check_alignment(what, address, len)
}

impl<D: Memory> Forward<'_, D> {
    /// Checks every tensor.
    pub(crate) fn check(&self, norm: Norm, check: Check) -> Result<()> {
        let len = norm.check_sizes()?;
        let Self { x, residual, weight, centre, y, inverse } = self;
        check("x", (x.address(), x.len()), len)?;
        check("weight", (weight.address(), weight.len()), norm.hidden)?;
        check("y", (y.address(), y.len()), len)?;
        check("inverse", (inverse.address(), inverse.len()), norm.rows)?;
        if let Some(Residual { residual, sum }) = residual {
            check("residual", (residual.address(), residual.len()), len)?;
            check("sum", (sum.address(), sum.len()), len)?;
        }
        if let Some(Centre { bias, mean }) = centre {
            check("bias", (bias.address(), bias.len()), norm.hidden)?;
            check("mean", (mean.address(), mean.len()), norm.rows)?;
        }
        Ok(())
    }
}

impl<D: Memory> Backward<'_, D> {
    /// Checks every tensor.
    pub(crate) fn check(&self, norm: Norm, check: Check) -> Result<()> {
        let (len, partials) = (norm.check_sizes()?, partials_len(norm)?);
        let Self { s, weight, dy, dresidual, inverse, ds, dweight_partials: dweight, centre } = self;
        check("s", (s.address(), s.len()), len)?;
        check("weight", (weight.address(), weight.len()), norm.hidden)?;
        check("dy", (dy.address(), dy.len()), len)?;
        check("inverse", (inverse.address(), inverse.len()), norm.rows)?;
        check("ds", (ds.address(), ds.len()), len)?;
        check("dweight", (dweight.address(), dweight.len()), partials)?;
        if let Some(dresidual) = dresidual {
            check("dresidual", (dresidual.address(), dresidual.len()), len)?;
        }
        if let Some(CentreBackward { mean, dbias_partials: dbias }) = centre {
            check("mean", (mean.address(), mean.len()), norm.rows)?;
            check("dbias", (dbias.address(), dbias.len()), partials)?;
        }
        Ok(())
    }
}

/// `y = norm(x + residual)`, in f32, rounded once; the sum is rounded before, as it is kept.
///
/// # Errors
/// If a length does not fit, an address is not a multiple of 16 bytes, or rows are longer than the kernels take.
pub fn forward<D: Device>(device: &D, norm: Norm, args: Forward<'_, D>) -> Result<()> {
    let kernels = norm.kernels()?;
    args.check(norm, check_vectors)?;
    let Forward { x, residual, weight, centre, y, inverse } = args;
    let params = NormForward {
        x: x.address(),
        residual: residual.as_ref().map_or(0, |added| added.residual.address()),
        weight: weight.address(),
        bias: centre.as_ref().map_or(0, |centre| centre.bias.address()),
        sum: residual.as_ref().map_or(0, |added| added.sum.address()),
        y: y.address(),
        mean: centre.as_ref().map_or(0, |centre| centre.mean.address()),
        inverse: inverse.address(),
        rows: norm.rows as i64,
        hidden: norm.hidden as i32,
        eps: norm.eps as f32,
    };
    let Some(grid) = Grid::new("norm", norm.rows.div_ceil(WARPS), 1, 1)? else { return Ok(()) };
    // SAFETY: every tensor has the length of the sizes and is aligned (checked above); what is not there is not touched.
    unsafe { device.launch(&kernels.forward[usize::from(centre.is_some())], grid, &params) }
}

/// Gradients of [`forward`]: that of `x` and the residual, and partial sums of those of the gains.
///
/// # Errors
/// As [`forward`].
pub fn backward<D: Device>(device: &D, norm: Norm, args: Backward<'_, D>) -> Result<()> {
    let kernels = norm.kernels()?;
    args.check(norm, check_vectors)?;
    let Backward { s, weight, dy, dresidual, inverse, ds, dweight_partials: dweight, centre } = args;
    let params = NormBackward {
        s: s.address(),
        weight: weight.address(),
        dy: dy.address(),
        dresidual: dresidual.map_or(0, |past| past.address()),
        mean: centre.as_ref().map_or(0, |centre| centre.mean.address()),
        inverse: inverse.address(),
        ds: ds.address(),
        dweight: dweight.address(),
        dbias: centre.as_ref().map_or(0, |centre| centre.dbias_partials.address()),
        rows: norm.rows as i64,
        hidden: norm.hidden as i32,
        rows_per_block: ROWS_PER_BLOCK as i32,
    };
    let Some(grid) = Grid::new("norm", num_partials(norm), 1, 1)? else { return Ok(()) };
    // SAFETY: every tensor has the length of the sizes and is aligned (checked above); what is not there is not touched; each
    // block writes one row of partial sums.
    unsafe { device.launch(&kernels.backward[usize::from(centre.is_some())], grid, &params) }
}
