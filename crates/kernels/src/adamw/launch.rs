//! AdamW on a [`Device`]: checks, grids and parameters of the kernels of `adamw.cu`.

use super::sys::{
    AdamwUpdate, CHUNK, GradientNorm, GradientNormFinish, NORM_FINISH, NORM_PARTIAL, THREADS, UPDATE,
};
use super::{AdamW, CONTROL_LEN, DecayRanges, UNIT};
use crate::device::{Device, Grid, Memory, Slice, SliceMut, check_alignment};
use candle_core::{Result, bail};

/// What the norm writes and the update reads, in the memory of the device.
pub struct Control<'a, D: Memory> {
    /// [`CONTROL_LEN`] numbers: the norm, what gradients are multiplied by, whether the step is skipped (1) or not (0), and the
    /// two bias corrections.
    pub numbers: SliceMut<'a, D, D::Full>,
    /// One number: the steps that were made, counted on by [`gradient_norm`]. 0 before the first.
    pub step: SliceMut<'a, D, i32>,
}

/// The buffers of [`update`], each of the same length, a multiple of 8.
pub struct Buffers<'a, D: Memory> {
    /// Weights in full precision.
    pub w: SliceMut<'a, D, D::Full>,
    /// Their gradients; 0 afterwards.
    pub grad: SliceMut<'a, D, D::Full>,
    /// First moments.
    pub m: SliceMut<'a, D, D::Full>,
    /// Second moments.
    pub v: SliceMut<'a, D, D::Full>,
    /// The weights in bf16, if there is such a copy.
    pub copy: Option<SliceMut<'a, D, D::Half>>,
    /// A running mean of the weights, if there is one, and how much of it stays.
    pub ema: Option<(SliceMut<'a, D, D::Full>, f32)>,
}

impl<D: Memory> Buffers<'_, D> {
    /// The name of each, its address, and its length.
    fn each(&self) -> impl Iterator<Item = (&'static str, u64, usize)> {
        let Self { w, grad, m, v, copy, ema } = self;
        let always = [("w", w), ("grad", grad), ("m", m), ("v", v)];
        let always = always.map(|(name, buffer)| (name, buffer.address(), buffer.len()));
        let copy = copy.as_ref().map(|copy| ("the copy", copy.address(), copy.len()));
        let ema = ema.as_ref().map(|(ema, _)| ("ema", ema.address(), ema.len()));
        always.into_iter().chain(copy).chain(ema)
    }
}

/// [`DecayRanges`] in the memory of the device.
pub struct Decay<'a, D: Memory> {
    /// One more than there are ranges.
    pub boundaries: Slice<'a, D, i64>,
    /// One for each range.
    pub decays: Slice<'a, D, D::Full>,
}

/// Sums between the stages of [`gradient_norm`].
#[must_use]
pub fn partials_len(len: usize) -> usize {
    len.div_ceil(CHUNK)
}

/// The norm of a gradient, how it is clipped, and whether the step is made at all: a norm that is not finite skips it.
///
/// `scale`: one number on the device that gradients are multiplied by before anything else, if there is one. `partials`:
/// [`partials_len`] numbers, overwritten. The same gradients give the same bits.
///
/// # Errors
/// If a length does not fit, the gradient is not 16 bytes aligned, or a setting is out of its range.
pub fn gradient_norm<D: Device>(
    device: &D,
    settings: &AdamW,
    grad: Slice<'_, D, f32>,
    scale: Option<Slice<'_, D, f32>>,
    partials: SliceMut<'_, D, f32>,
    control: &mut Control<'_, D>,
) -> Result<()> {
    settings.check()?;
    check_alignment("adamw: the gradient", grad.address(), grad.len())?;
    check_control(control)?;
    if partials.len() != partials_len(grad.len()) {
        bail!("adamw: {} partial sums, not {}", partials.len(), partials_len(grad.len()));
    }
    if scale.is_some_and(|scale| scale.len() != 1) {
        bail!("adamw: the scale of gradients is one number");
    }
    if let Some(grid) = Grid::new("adamw", partials.len(), 1, 1)? {
        let params =
            GradientNorm { grad: grad.address(), partials: partials.address(), len: grad.len() as i64 };
        // SAFETY: the gradient has `len` numbers and is aligned, there is a partial sum for each chunk (checked above).
        unsafe { device.launch(&NORM_PARTIAL, grid, &params)? };
    }
    let params = GradientNormFinish {
        partials: partials.address(),
        scale: scale.map_or(0, |scale| scale.address()),
        control: control.numbers.address(),
        step: control.step.address(),
        count: partials.len() as i64,
        max_norm: settings.max_norm,
        beta1: settings.beta1,
        beta2: settings.beta2,
    };
    // SAFETY: `count` partial sums were just written, `control` has its lengths (checked above).
    unsafe { device.launch(&NORM_FINISH, Grid { x: 1, y: 1, z: 1 }, &params) }
}

/// One step of AdamW, unless [`gradient_norm`] said to skip it; gradients become 0 in any case.
///
/// # Errors
/// If a length does not fit or is no multiple of 8, an address is not a multiple of 16 bytes, or a setting is out of its range.
pub fn update<D: Device>(
    device: &D,
    settings: &AdamW,
    lr: f64,
    buffers: Buffers<'_, D>,
    ranges: &DecayRanges,
    decay: Decay<'_, D>,
    control: &Control<'_, D>,
) -> Result<()> {
    check_update(settings, lr, &buffers, ranges, &decay, control)?;
    for (name, address, len) in buffers.each() {
        check_alignment(name, address, len)?;
    }
    let Buffers { w, grad, m, v, copy, ema } = buffers;
    let len = w.len();
    let ema_decay = ema.as_ref().map_or(0.0, |(_, decay)| *decay);
    let units = len / UNIT;
    let Some(grid) = Grid::new("adamw", units.div_ceil(THREADS), 1, 1)? else { return Ok(()) };
    let params = AdamwUpdate {
        w: w.address(),
        grad: grad.address(),
        m: m.address(),
        v: v.address(),
        copy: copy.as_ref().map_or(0, |copy| copy.address()),
        ema: ema.as_ref().map_or(0, |(ema, _)| ema.address()),
        boundaries: decay.boundaries.address(),
        decays: decay.decays.address(),
        control: control.numbers.address(),
        units: units as i64,
        ranges: ranges.num_ranges() as i32,
        lr: lr as f32,
        beta1: settings.beta1 as f32,
        beta2: settings.beta2 as f32,
        eps: settings.eps as f32,
        ema_decay,
    };
    // SAFETY: every buffer has `len` elements and is aligned, the ranges have as many entries as `ranges` says and at least
    // one where there are weights, `control` has its lengths (checked above).
    unsafe { device.launch(&UPDATE, grid, &params) }
}

/// Refuses lengths that do not fit, and settings out of their range.
pub(crate) fn check_update<D: Memory>(
    settings: &AdamW,
    lr: f64,
    buffers: &Buffers<'_, D>,
    ranges: &DecayRanges,
    decay: &Decay<'_, D>,
    control: &Control<'_, D>,
) -> Result<()> {
    settings.check()?;
    check_control(control)?;
    let len = buffers.w.len();
    if !len.is_multiple_of(UNIT) || len != ranges.len() {
        bail!("adamw: {len} weights, ranges over {}; both are the same multiple of {UNIT}", ranges.len());
    }
    for (name, _, found) in buffers.each() {
        if found != len {
            bail!("adamw: {name} has {found} elements, there are {len} weights");
        }
    }
    if decay.boundaries.len() != ranges.num_ranges() + 1 || decay.decays.len() != ranges.num_ranges() {
        bail!("adamw: the ranges on the device are not the {} of the host", ranges.num_ranges());
    }
    let ema_decay = buffers.ema.as_ref().map_or(0.0, |(_, decay)| *decay);
    if !lr.is_finite() || !(0.0..=1.0).contains(&ema_decay) {
        bail!("adamw: a learning rate of {lr}, an EMA that keeps {ema_decay}");
    }
    Ok(())
}

pub(crate) fn check_control<D: Memory>(control: &Control<'_, D>) -> Result<()> {
    if control.numbers.len() != CONTROL_LEN || control.step.len() != 1 {
        let (numbers, steps) = (control.numbers.len(), control.step.len());
        bail!("adamw: control has {numbers} numbers and {steps} steps, not {CONTROL_LEN} and 1");
    }
    Ok(())
}
