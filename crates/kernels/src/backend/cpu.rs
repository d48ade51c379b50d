//! The operations on a CPU, in f32 or f64, by the references that kernels are held against.

use super::{Backend, Full, FullMut, Half, HalfMut};
use crate::adamw::{self, AdamW, CONTROL_LEN, DecayRanges, SKIP};
use crate::attention::fused::Layout;
use crate::attention::{
    FusedBackward, FusedForward, Sequences, Shape, backward_workspace_len, check_cu_seqlens,
    reference as attention,
};
use crate::avg_pool::launch::check_lens as check_pooling;
use crate::avg_pool::{Pooling, reference as avg_pool};
use crate::bias_gelu::{Gelu, reference as bias_gelu};
use crate::column_sum;
use crate::column_sum::launch::{BiasGradient, check_input};
use crate::cross_entropy::launch::{Arguments, Totals};
use crate::cross_entropy::{self, CHANNELS, Loss};
use crate::device::{Float, Memory, Number, POISON, Slice, SliceMut};
use crate::element::{Element, lit};
use crate::elementwise;
use crate::embedding::launch::{DeviceBuckets, Embeddings};
use crate::embedding::reference::{self as embedding, BucketRows};
use crate::gather_rows;
use crate::gemm::{self, Gemm};
use crate::matmul::Output;
use crate::norm::{self, Norm, ROWS_PER_BLOCK, check_len, reference as norms};
use crate::patchify::{self, Patches};
use crate::rope::launch::{Angles, Qkv};
use crate::rope::reference as rope;
use crate::swiglu::reference as swiglu;
use crate::{Rows, rows};
use candle_core::{Result, bail};
use std::marker::PhantomData;

/// A CPU, on one thread, with everything in `T`, f32 or f64. Some operations take memory for what they compute in between, and
/// give it back before they return.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuRef<T>(PhantomData<T>);

impl<T: Element + Float> Memory for CpuRef<T> {
    type Half = T;
    type Full = T;
    type Buffer<U: Number> = Vec<U>;

    fn poisoned<U: Number>(&self, len: usize) -> Result<Vec<U>> {
        let mut buffer = Vec::<U>::new();
        if buffer.try_reserve_exact(len).is_err() {
            bail!("no memory for {len} elements of {} bytes", size_of::<U>());
        }
        // SAFETY: there is room for `len` elements, and any bytes are a number.
        unsafe {
            buffer.as_mut_ptr().write_bytes(POISON, len);
            buffer.set_len(len);
        }
        Ok(buffer)
    }

    fn copy_from_host<U: Number>(&self, from: &[U], to: SliceMut<'_, Self, U>) -> Result<()> {
        check("a copy", to.len(), Some(from.len()))?;
        to.elements_mut().copy_from_slice(from);
        Ok(())
    }

    fn download<U: Number>(&self, buffer: &Vec<U>) -> Result<Vec<U>> {
        Ok(buffer.clone())
    }

    fn slice<'a, U: Number>(&self, buffer: &'a Vec<U>) -> Slice<'a, Self, U> {
        // SAFETY: it has as many, and is borrowed.
        unsafe { Slice::from_raw(buffer.as_ptr().expose_provenance() as u64, buffer.len()) }
    }

    fn slice_mut<'a, U: Number>(&self, buffer: &'a mut Vec<U>) -> SliceMut<'a, Self, U> {
        // SAFETY: it has as many, and is borrowed by this alone.
        unsafe { SliceMut::from_raw(buffer.as_mut_ptr().expose_provenance() as u64, buffer.len()) }
    }
}

impl<'a, T, U: Number> Slice<'a, CpuRef<T>, U> {
    /// The elements.
    pub fn elements(&self) -> &'a [U] {
        if self.is_empty() {
            return &[];
        }
        // SAFETY: memory of a CPU is this program's, and `from_raw` was promised the rest.
        unsafe {
            std::slice::from_raw_parts(std::ptr::with_exposed_provenance(self.address() as usize), self.len())
        }
    }
}

impl<'a, T, U: Number> SliceMut<'a, CpuRef<T>, U> {
    /// The elements.
    pub fn elements_mut(self) -> &'a mut [U] {
        if self.is_empty() {
            return &mut [];
        }
        // SAFETY: as for `Slice`, and nothing else reaches them.
        unsafe {
            std::slice::from_raw_parts_mut(
                std::ptr::with_exposed_provenance_mut(self.address() as usize),
                self.len(),
            )
        }
    }
}

/// Refuses another number of elements than there should be.
fn check(what: &str, found: usize, expected: Option<usize>) -> Result<()> {
    match expected {
        Some(expected) if expected == found => Ok(()),
        Some(expected) => bail!("{what} has {found} elements, not {expected}"),
        None => bail!("{what} has more elements than can be counted"),
    }
}

impl<T: Element + Float> CpuRef<T> {
    /// Sums of columns.
    fn sum_columns(sizes: Rows, x: &[T], gradient: BiasGradient<'_, Self, T>) -> Result<()> {
        const WHAT: &str = "column_sum";
        check_input(WHAT, sizes, ("x", x.len()))?;
        gradient.check(WHAT, sizes)?;
        store(&column_sum::reference(x, sizes.cols), gradient);
        Ok(())
    }
}

impl<T: Element + Float> Backend for CpuRef<T> {
    fn gemm(
        &self,
        gemm: &Gemm,
        (a, b): (Half<'_, Self>, Half<'_, Self>),
        bias: Option<Half<'_, Self>>,
        d: HalfMut<'_, Self>,
    ) -> Result<()> {
        let bias = bias.map(|bias| bias.elements());
        gemm::reference(gemm, a.elements(), b.elements(), bias, d.elements_mut())
    }

    fn gemm_full(
        &self,
        gemm: &Gemm,
        operands: (Half<'_, Self>, Half<'_, Self>),
        d: FullMut<'_, Self>,
    ) -> Result<()> {
        self.gemm(gemm, operands, None, d)
    }

    fn attention_forward(&self, shape: &Shape, args: FusedForward<'_, Self>) -> Result<()> {
        let FusedForward { qkv, cu_seqlens, out, lse } = args;
        let layout = Layout::new(shape, qkv.len(), out.len())?;
        check_boundaries(shape, cu_seqlens)?;
        let out = attention::OperandMut { data: out.elements_mut(), strides: layout.out_strides };
        attention::forward(shape, parts(&layout, qkv.elements()), out, Some(lse.elements_mut()))
    }

    fn attention_backward(&self, shape: &Shape, args: FusedBackward<'_, Self>) -> Result<()> {
        let FusedBackward { qkv, cu_seqlens, out, lse, dout, dqkv, workspace } = args;
        let layout = Layout::new(shape, qkv.len(), out.len())?;
        check_boundaries(shape, cu_seqlens)?;
        Layout::new(shape, dqkv.len(), dout.len())?;
        check("attention: lse", lse.len(), Some(shape.num_query_rows()?))?;
        let needed = backward_workspace_len(shape)?;
        if workspace.len() < needed {
            bail!("attention: the workspace has {} numbers, the backward needs {needed}", workspace.len());
        }
        let dout = attention::Operand { data: dout.elements(), strides: layout.out_strides };
        // Gradients of their own, because references take each whole, where rows of the three lie between each other.
        let mut apart = [0, 1, 2].map(|_| vec![T::zero(); layout.len]);
        let gradients = apart.each_mut().map(|data| attention::OperandMut { data, strides: layout.strides });
        attention::backward(shape, parts(&layout, qkv.elements()), dout, gradients)?;
        let [keys, values] = layout.starts;
        let cols = layout.strides.row as usize;
        let [dq, dk, dv] = &apart;
        for (row, to) in dqkv.elements_mut().chunks_exact_mut(cols.max(1)).enumerate() {
            let start = row * cols;
            to[..keys].copy_from_slice(&dq[start..start + keys]);
            to[keys..values].copy_from_slice(&dk[start..start + values - keys]);
            to[values..].copy_from_slice(&dv[start..start + cols - values]);
        }
        Ok(())
    }

    fn norm_forward(&self, norm: Norm, args: norm::Forward<'_, Self>) -> Result<()> {
        args.check(norm, check_len)?;
        let norm::Forward { x, residual, weight, centre, y, inverse } = args;
        let x = match residual {
            None => x.elements(),
            Some(norm::Residual { residual, mut sum }) => {
                elementwise::reference_add(x.elements(), residual.elements(), sum.reborrow().elements_mut())?;
                &sum.elements_mut()[..]
            }
        };
        let centre = centre.map(|norm::Centre { bias, mean }| norms::Centre {
            bias: bias.elements(),
            mean: mean.elements_mut(),
        });
        let (y, inverse) = (y.elements_mut(), inverse.elements_mut());
        norms::forward(x, weight.elements(), lit(norm.eps), centre, y, inverse);
        Ok(())
    }

    fn norm_backward(&self, norm: Norm, args: norm::Backward<'_, Self>) -> Result<()> {
        args.check(norm, check_len)?;
        let norm::Backward { s, weight, dy, dresidual, inverse, ds, dweight_partials: dweight, centre } =
            args;
        let centre = centre.map(|norm::CentreBackward { mean, dbias_partials }| norms::CentreBackward {
            mean: mean.elements(),
            dbias: dbias_partials.elements_mut(),
        });
        let inputs = norms::Inputs {
            s: s.elements(),
            weight: weight.elements(),
            dy: dy.elements(),
            inverse: inverse.elements(),
        };
        let ds = ds.elements_mut();
        norms::backward(inputs, ROWS_PER_BLOCK, centre, ds, dweight.elements_mut());
        if let Some(dresidual) = dresidual {
            rows::add_to(ds, dresidual.elements());
        }
        Ok(())
    }

    fn rope_forward(
        &self,
        sizes: Qkv,
        qkv: HalfMut<'_, Self>,
        bias: Option<Half<'_, Self>>,
        angles: Angles<'_, Self>,
    ) -> Result<()> {
        let bias = bias.map(|bias| bias.elements());
        rope::forward(sizes, qkv.elements_mut(), bias, angles_of(&angles))
    }

    fn rope_backward(
        &self,
        sizes: Qkv,
        dqkv: HalfMut<'_, Self>,
        angles: Angles<'_, Self>,
        bias: Option<BiasGradient<'_, Self, T>>,
    ) -> Result<()> {
        let dqkv = dqkv.elements_mut();
        let Some(gradient) = bias else { return rope::backward(sizes, dqkv, angles_of(&angles)) };
        let Some(matrix) = sizes.sizes() else { bail!("rope: {sizes:?} is too large") };
        gradient.check("rope", matrix)?;
        rope::backward(sizes, dqkv, angles_of(&angles))?;
        store(&column_sum::reference(dqkv, matrix.cols), gradient);
        Ok(())
    }

    fn swiglu_forward(&self, sizes: Rows, gate_up: Half<'_, Self>, h: HalfMut<'_, Self>) -> Result<()> {
        let cols = sizes.cols;
        check("swiglu: h", h.len(), sizes.num_elements())?;
        check("swiglu: the fused projection", gate_up.len(), h.len().checked_mul(2))?;
        let fused = fused_cols(sizes)?;
        let inputs = gate_up.elements().chunks_exact(fused.max(1));
        for (gate_up, h) in inputs.zip(h.elements_mut().chunks_exact_mut(cols.max(1))) {
            let (gate, up) = gate_up.split_at(cols);
            swiglu::forward(gate, up, h);
        }
        Ok(())
    }

    fn swiglu_backward(
        &self,
        sizes: Rows,
        gate_up: Half<'_, Self>,
        dh: Half<'_, Self>,
        dgate_up: HalfMut<'_, Self>,
    ) -> Result<()> {
        let cols = sizes.cols;
        check("swiglu: dh", dh.len(), sizes.num_elements())?;
        check("swiglu: the fused projection", gate_up.len(), dh.len().checked_mul(2))?;
        check("swiglu: its gradient", dgate_up.len(), Some(gate_up.len()))?;
        let fused = fused_cols(sizes)?;
        let inputs = gate_up.elements().chunks_exact(fused.max(1));
        let inputs = inputs.zip(dh.elements().chunks_exact(cols.max(1)));
        for ((gate_up, dh), to) in inputs.zip(dgate_up.elements_mut().chunks_exact_mut(fused.max(1))) {
            let ((gate, up), (dgate, dup)) = (gate_up.split_at(cols), to.split_at_mut(cols));
            swiglu::backward(gate, up, dh, dgate, dup);
        }
        Ok(())
    }

    fn bias_gelu_forward(
        &self,
        sizes: Rows,
        kind: Gelu,
        x: Half<'_, Self>,
        bias: Half<'_, Self>,
        y: HalfMut<'_, Self>,
    ) -> Result<()> {
        check("bias_gelu: x", x.len(), sizes.num_elements())?;
        check("bias_gelu: the bias", bias.len(), Some(sizes.cols))?;
        bias_gelu::forward(kind, x.elements(), bias.elements(), y.elements_mut())
    }

    fn bias_gelu_backward(
        &self,
        sizes: Rows,
        kind: Gelu,
        (x, bias, dy): (Half<'_, Self>, Half<'_, Self>, Half<'_, Self>),
        dx: HalfMut<'_, Self>,
        gradient: BiasGradient<'_, Self, T>,
    ) -> Result<()> {
        check("bias_gelu: x", x.len(), sizes.num_elements())?;
        check("bias_gelu: the bias", bias.len(), Some(sizes.cols))?;
        gradient.check("bias_gelu", sizes)?;
        let (x, bias, dy) = (x.elements(), bias.elements(), dy.elements());
        store(&bias_gelu::backward(kind, x, bias, dy, dx.elements_mut())?, gradient);
        Ok(())
    }

    fn avg_pool_forward(&self, sizes: Pooling, x: Half<'_, Self>, y: HalfMut<'_, Self>) -> Result<()> {
        check_pooling("avg_pool", sizes, ("x", x.len()), ("y", y.len()))?;
        avg_pool::forward(x.elements(), sizes, y.elements_mut());
        Ok(())
    }

    fn avg_pool_backward(&self, sizes: Pooling, dy: Half<'_, Self>, dx: HalfMut<'_, Self>) -> Result<()> {
        check_pooling("avg_pool backward", sizes, ("dx", dx.len()), ("dy", dy.len()))?;
        avg_pool::backward(dy.elements(), sizes, dx.elements_mut());
        Ok(())
    }

    fn embedding_forward(
        &self,
        hidden: usize,
        from: Embeddings<'_, Self>,
        sources: Slice<'_, Self, i32>,
        to: HalfMut<'_, Self>,
    ) -> Result<()> {
        let (table, visual) = (from.table.elements(), from.visual.elements());
        embedding::forward(table, visual, hidden, sources.elements(), to.elements_mut())
    }

    fn embedding_backward(
        &self,
        hidden: usize,
        dy: Half<'_, Self>,
        buckets: DeviceBuckets<'_, Self>,
        dtable: FullMut<'_, Self>,
    ) -> Result<()> {
        let DeviceBuckets { ids, starts, rows } = buckets;
        let buckets = BucketRows { ids: ids.elements(), starts: starts.elements(), rows: rows.elements() };
        embedding::backward(dy.elements(), hidden, buckets, dtable.elements_mut())
    }

    fn gather_rows(
        &self,
        cols: usize,
        from: Half<'_, Self>,
        indices: Slice<'_, Self, i32>,
        to: HalfMut<'_, Self>,
    ) -> Result<()> {
        gather_rows::reference(from.elements(), cols, indices.elements(), to.elements_mut())
    }

    fn patchify(&self, sizes: &Patches, pixels: Slice<'_, Self, u8>, rows: HalfMut<'_, Self>) -> Result<()> {
        patchify::reference(sizes, pixels.elements(), rows.elements_mut())
    }

    fn cross_entropy(&self, sizes: Rows, loss: Loss, args: Arguments<'_, Self>) -> Result<()> {
        let Arguments { logits, labels, scale, stats } = args;
        check("cross_entropy: the labels", labels.len(), Some(sizes.rows))?;
        let scale = scale.map(|scale| one(scale.elements())).transpose()?.unwrap_or_else(T::one);
        let (logits, stats) = (logits.elements_mut(), stats.elements_mut());
        cross_entropy::reference::cross_entropy(logits, sizes.cols, labels.elements(), loss, scale, stats)
    }

    fn cross_entropy_totals(&self, stats: Full<'_, Self>, totals: Totals<'_, Self>) -> Result<()> {
        let Totals { sums, counts, output } = totals;
        let (sums, counts) = (sums.elements_mut(), counts.elements_mut());
        check("cross_entropy: sums", sums.len(), Some(2))?;
        check("cross_entropy: counts", counts.len(), Some(2))?;
        if !stats.len().is_multiple_of(CHANNELS) {
            bail!("cross_entropy: {} stats are not {CHANNELS} for each row", stats.len());
        }
        let mut found = cross_entropy::reference::Totals::default();
        found.add(stats.elements());
        let (of_rows, labels_and_hits) = ([found.loss, found.z_loss], [found.labels, found.hits]);
        if output == Output::Overwrite {
            sums.fill(T::zero());
            counts.fill(0);
        }
        rows::add_to(sums, &of_rows);
        counts.iter_mut().zip(labels_and_hits).for_each(|(to, count)| *to += count as i32);
        Ok(())
    }

    fn gradient_norm(
        &self,
        settings: &AdamW,
        grad: Full<'_, Self>,
        scale: Option<Full<'_, Self>>,
        partials: FullMut<'_, Self>,
        control: &mut adamw::launch::Control<'_, Self>,
    ) -> Result<()> {
        let expected = adamw::launch::partials_len(grad.len());
        check("adamw: the partial sums", partials.len(), Some(expected))?;
        adamw::launch::check_control(control)?;
        let scale = scale.map(|scale| one(scale.elements())).transpose()?;
        let scale = scale.map_or(1.0, Float::to_f64);
        let step = &mut control.step.reborrow().elements_mut()[0];
        let found = adamw::reference::gradient_norm(settings, grad.elements(), scale, step)?;
        control.numbers.reborrow().elements_mut().copy_from_slice(&found);
        Ok(())
    }

    fn adamw_update(
        &self,
        settings: &AdamW,
        lr: f64,
        buffers: adamw::launch::Buffers<'_, Self>,
        ranges: &DecayRanges,
        decay: adamw::launch::Decay<'_, Self>,
        control: &adamw::launch::Control<'_, Self>,
    ) -> Result<()> {
        adamw::launch::check_update(settings, lr, &buffers, ranges, &decay, control)?;
        let decays = decay.decays.elements().iter().map(|decay| Float::to_f64(*decay));
        if decay.boundaries.elements() != ranges.boundaries()
            || !decays.eq(ranges.decays().iter().map(|decay| f64::from(*decay)))
        {
            bail!("adamw: the ranges on the device are others than those of the host");
        }
        let adamw::launch::Buffers { mut w, grad, m, v, copy, ema } = buffers;
        let Ok(control) = <&[T; CONTROL_LEN]>::try_from(control.numbers.as_slice().elements()) else {
            bail!("adamw: control has {} numbers, not {CONTROL_LEN}", control.numbers.len())
        };
        let buffers = adamw::reference::Buffers {
            w: w.reborrow().elements_mut(),
            grad: grad.elements_mut(),
            m: m.elements_mut(),
            v: v.elements_mut(),
            ema: ema.map(|(ema, keep)| (ema.elements_mut(), lit(keep.into()))),
        };
        adamw::reference::update(settings, lr, buffers, ranges, control)?;
        if let Some(copy) = copy
            && control[SKIP] == T::zero()
        {
            copy.elements_mut().copy_from_slice(w.elements_mut());
        }
        Ok(())
    }

    fn column_sum(
        &self,
        sizes: Rows,
        x: Half<'_, Self>,
        partials: FullMut<'_, Self>,
        to: FullMut<'_, Self>,
        output: Output,
    ) -> Result<()> {
        Self::sum_columns(sizes, x.elements(), BiasGradient { partials, dbias: to, output })
    }

    fn column_sum_full(
        &self,
        sizes: Rows,
        x: Full<'_, Self>,
        partials: FullMut<'_, Self>,
        to: FullMut<'_, Self>,
        output: Output,
    ) -> Result<()> {
        Self::sum_columns(sizes, x.elements(), BiasGradient { partials, dbias: to, output })
    }

    fn add(&self, left: Half<'_, Self>, right: Half<'_, Self>, to: HalfMut<'_, Self>) -> Result<()> {
        elementwise::reference_add(left.elements(), right.elements(), to.elements_mut())
    }

    fn add_assign(&self, right: Half<'_, Self>, to: HalfMut<'_, Self>) -> Result<()> {
        check("elementwise: what is added", right.len(), Some(to.len()))?;
        rows::add_to(to.elements_mut(), right.elements());
        Ok(())
    }

    fn narrow(&self, from: Full<'_, Self>, to: HalfMut<'_, Self>) -> Result<()> {
        self.copy(from, to)
    }

    fn widen(&self, from: Half<'_, Self>, to: FullMut<'_, Self>) -> Result<()> {
        self.copy(from, to)
    }

    fn fill(&self, to: FullMut<'_, Self>, value: f32) -> Result<()> {
        to.elements_mut().fill(lit(value.into()));
        Ok(())
    }
}

impl<T: Element + Float> CpuRef<T> {
    /// Half and full precision are one.
    fn copy(&self, from: Slice<'_, Self, T>, to: SliceMut<'_, Self, T>) -> Result<()> {
        check("elementwise: the copy", to.len(), Some(from.len()))?;
        to.elements_mut().copy_from_slice(from.elements());
        Ok(())
    }
}

/// Queries, keys and values of a fused projection.
fn parts<'a, T>(layout: &Layout, qkv: &'a [T]) -> [attention::Operand<'a, T>; 3] {
    let [keys, values] = layout.starts;
    [0, keys, values]
        .map(|start| attention::Operand { data: &qkv[start.min(qkv.len())..], strides: layout.strides })
}

fn angles_of<'a, T: Element + Float>(angles: &Angles<'a, CpuRef<T>>) -> rope::Angles<'a, T> {
    let Angles { positions, cos, sin } = angles;
    rope::Angles { positions: positions.elements(), cos: cos.elements(), sin: sin.elements() }
}

/// Refuses other boundaries than those of the shape.
fn check_boundaries<T>(shape: &Shape, cu_seqlens: Option<Slice<'_, CpuRef<T>, i32>>) -> Result<()> {
    check_cu_seqlens(shape, cu_seqlens)?;
    match (&shape.sequences, cu_seqlens) {
        (Sequences::Packed(packed), Some(slice)) if slice.elements() != packed.boundaries() => {
            bail!("attention: cu_seqlens on the device are others than those of the shape")
        }
        _ => Ok(()),
    }
}

/// Columns of a gate and an up projection that are one matrix.
fn fused_cols(sizes: Rows) -> Result<usize> {
    match sizes.cols.checked_mul(2) {
        Some(cols) => Ok(cols),
        None => bail!("swiglu: {sizes:?} is too large"),
    }
}

/// Sums of columns, to where a gradient of their number goes.
fn store<T: Element + Float>(sums: &[T], gradient: BiasGradient<'_, CpuRef<T>, T>) {
    let to = gradient.dbias.elements_mut();
    match gradient.output {
        Output::Overwrite => to.copy_from_slice(sums),
        Output::Accumulate => rows::add_to(to, sums),
    }
}

/// The one number that a scale is.
fn one<T: Copy>(scale: &[T]) -> Result<T> {
    match scale {
        [scale] => Ok(*scale),
        _ => bail!("a scale is one number, not {}", scale.len()),
    }
}
