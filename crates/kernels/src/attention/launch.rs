//! Attention on a [`Device`]: checks, grids and parameters of the kernels of `attention.cu`.

use super::shape::{Mask, Sequences, Shape, product};
use super::sys::{
    self, AttentionBackward, AttentionDelta, AttentionForward, AttentionGroupSum, DELTA_ROWS, DKDV_KEYS,
    DQ_ROWS, FORWARD_ROWS, GROUP_SUM_UNITS, Kernels, Rows, Strides,
};
use crate::device::{Device, Grid, Memory, Slice, SliceMut, check_alignment};
use candle_core::{Result, bail};

/// bf16 elements that the kernels move at once.
const VECTOR: i64 = 8;

/// A tensor to read.
pub struct Operand<'a, D: Memory> {
    /// Its elements, from the first on.
    pub data: Slice<'a, D, D::Half>,
    /// Where rows lie; multiples of 8.
    pub strides: Strides,
}

impl<D: Memory> Clone for Operand<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<D: Memory> Copy for Operand<'_, D> {}

/// A tensor to write.
pub struct OperandMut<'a, D: Memory> {
    /// Its elements, from the first on.
    pub data: SliceMut<'a, D, D::Half>,
    /// Where rows lie; multiples of 8.
    pub strides: Strides,
}

/// What [`forward`] reads and writes.
pub struct Forward<'a, D: Memory> {
    /// Queries.
    pub q: Operand<'a, D>,
    /// Keys.
    pub k: Operand<'a, D>,
    /// Values.
    pub v: Operand<'a, D>,
    /// For packed sequences, their boundaries in the memory of the device: those of the shape.
    pub cu_seqlens: Option<Slice<'a, D, i32>>,
    /// The result, written whole.
    pub out: OperandMut<'a, D>,
    /// The logarithm of the sum of each row's exponentials, `(batch, heads, queries)`, written whole.
    pub lse: SliceMut<'a, D, D::Full>,
}

/// What [`backward`] reads and writes.
pub struct Backward<'a, D: Memory> {
    /// Queries.
    pub q: Operand<'a, D>,
    /// Keys.
    pub k: Operand<'a, D>,
    /// Values.
    pub v: Operand<'a, D>,
    /// For packed sequences, their boundaries in the memory of the device: those of the shape.
    pub cu_seqlens: Option<Slice<'a, D, i32>>,
    /// The result of [`forward`].
    pub out: Operand<'a, D>,
    /// The log-sum-exp of [`forward`].
    pub lse: Slice<'a, D, D::Full>,
    /// The gradient of the result.
    pub dout: Operand<'a, D>,
    /// The gradient of the queries, written whole.
    pub dq: OperandMut<'a, D>,
    /// The gradient of the keys, written whole.
    pub dk: OperandMut<'a, D>,
    /// The gradient of the values, written whole.
    pub dv: OperandMut<'a, D>,
    /// [`backward_workspace_len`] numbers, 16 bytes aligned.
    pub workspace: SliceMut<'a, D, D::Full>,
}

/// Sizes and parameters that all kernels of a call share.
struct Call {
    kernels: &'static Kernels,
    /// Index of the kernels with this mask.
    mask: usize,
    /// Rows of the longest sequence.
    max_q_len: usize,
    max_kv_len: usize,
    num_sequences: usize,
    q_len: i32,
    kv_len: i32,
    head_dim: i32,
    group: i32,
    q_rows: Rows,
    kv_rows: Rows,
    cu_seqlens: u64,
}

impl Call {
    fn new<D>(shape: &Shape, cu_seqlens: Option<Slice<'_, D, i32>>) -> Result<Self> {
        shape.check()?;
        let Some(kernels) = sys::kernels(shape.head_dim) else {
            bail!("attention: {} channels a head, the kernels take up to 128", shape.head_dim)
        };
        if !shape.head_dim.is_multiple_of(VECTOR as usize) {
            bail!("attention: {} channels a head, the kernels take a multiple of {VECTOR}", shape.head_dim);
        }
        let scale = shape.scale as f32;
        if !(scale.is_finite() && scale > 0.0) {
            bail!("attention: scores cannot be scaled by {}", shape.scale);
        }
        let (max_q_len, max_kv_len, num_sequences) = match &shape.sequences {
            Sequences::Batch { batch, q_len, kv_len } => (*q_len, *kv_len, *batch),
            Sequences::Packed(packed) => (packed.max_len(), packed.max_len(), packed.num_sequences()),
        };
        check_cu_seqlens(shape, cu_seqlens)?;
        let int = |what: &str, size: usize| match i32::try_from(size) {
            // Kernels add a tile to row numbers.
            Ok(size) if size <= i32::MAX - 1024 => Ok(size),
            _ => bail!("attention: {size} {what} are more than the kernels can number"),
        };
        let rows = |rows: usize| -> Result<Rows> {
            product(&[shape.batch(), shape.num_heads, rows, shape.head_dim])?;
            let is_packed = matches!(shape.sequences, Sequences::Packed(_));
            let batch = if is_packed { 0 } else { shape.num_heads * rows };
            Ok(Rows { batch: batch as i64, head: rows as i64 })
        };
        Ok(Self {
            kernels,
            mask: usize::from(shape.mask == Mask::Causal),
            max_q_len,
            max_kv_len,
            num_sequences,
            q_len: int("queries", shape.q_rows())?,
            kv_len: int("keys", shape.kv_rows())?,
            head_dim: int("channels", shape.head_dim)?,
            group: int("heads", shape.group())?,
            q_rows: rows(shape.q_rows())?,
            kv_rows: rows(shape.kv_rows())?,
            cu_seqlens: cu_seqlens.map_or(0, |slice| slice.address()),
        })
    }
}

/// Refuses boundaries where no sequences are packed, and packed sequences with none or another number of them.
pub(crate) fn check_cu_seqlens<D>(shape: &Shape, cu_seqlens: Option<Slice<'_, D, i32>>) -> Result<()> {
    match (&shape.sequences, cu_seqlens) {
        (Sequences::Batch { .. }, None) => Ok(()),
        (Sequences::Packed(packed), Some(slice)) if slice.len() == packed.boundaries().len() => Ok(()),
        (Sequences::Packed(packed), Some(slice)) => bail!(
            "attention: cu_seqlens has {} entries on the device and {} in the shape",
            slice.len(),
            packed.boundaries().len()
        ),
        _ => bail!("attention: cu_seqlens goes with packed sequences, and they with it"),
    }
}

/// The batch stride of packed sequences is 0, whatever that of their only entry is.
fn strides_of(shape: &Shape, strides: Strides) -> Strides {
    match shape.sequences {
        Sequences::Batch { .. } => strides,
        Sequences::Packed(_) => Strides { batch: 0, ..strides },
    }
}

fn check_vectors(what: &str, address: u64, len: usize, strides: Strides) -> Result<()> {
    check_alignment(what, address, len)?;
    let Strides { batch, head, row } = strides;
    if [batch, head, row].iter().any(|stride| stride % VECTOR != 0) {
        bail!("attention: {what} has {strides:?}, the kernels take multiples of {VECTOR} elements");
    }
    Ok(())
}

fn check_input<D: Memory>(shape: &Shape, what: &str, is_query: bool, operand: &Operand<'_, D>) -> Result<()> {
    let sizes =
        if is_query { (shape.num_heads, shape.q_rows()) } else { (shape.num_kv_heads, shape.kv_rows()) };
    shape.check_extent(what, sizes, operand.strides, operand.data.len())?;
    check_vectors(what, operand.data.address(), operand.data.len(), operand.strides)
}

fn check_output<D: Memory>(
    shape: &Shape,
    what: &str,
    is_query: bool,
    operand: &OperandMut<'_, D>,
) -> Result<()> {
    let sizes =
        if is_query { (shape.num_heads, shape.q_rows()) } else { (shape.num_kv_heads, shape.kv_rows()) };
    shape.check_output(what, sizes, operand.strides, operand.data.len())?;
    check_vectors(what, operand.data.address(), operand.data.len(), operand.strides)
}

/// `softmax(scale q k^T) v` and the log-sum-exp of each row, in bf16 with sums in f32. A query without keys gets zeros and
/// minus infinity.
///
/// Takes any head dim up to 128 that is a multiple of 8. Tensors may be views, as the parts of a fused projection: what their
/// strides do not address is neither read nor written.
///
/// # Errors
/// If a tensor is shorter than the shape or not 16 bytes aligned, strides are no multiples of 8, rows of the result overlap,
/// or the sizes are beyond what the kernels can number.
pub fn forward<D: Device>(device: &D, shape: &Shape, args: Forward<'_, D>) -> Result<()> {
    let call = Call::new(shape, args.cu_seqlens)?;
    let Forward { q, k, v, cu_seqlens: _, out, lse } = args;
    check_input(shape, "q", true, &q)?;
    check_input(shape, "k", false, &k)?;
    check_input(shape, "v", false, &v)?;
    check_output(shape, "out", true, &out)?;
    if lse.len() != shape.num_query_rows()? {
        bail!("attention: lse has {} numbers, there are {} rows", lse.len(), shape.num_query_rows()?);
    }
    let blocks = call.max_q_len.div_ceil(FORWARD_ROWS);
    let Some(grid) = Grid::new("attention", blocks, shape.num_heads, call.num_sequences)? else {
        return Ok(());
    };
    let params = AttentionForward {
        q: q.data.address(),
        k: k.data.address(),
        v: v.data.address(),
        out: out.data.address(),
        lse: lse.address(),
        cu_seqlens: call.cu_seqlens,
        q_strides: strides_of(shape, q.strides),
        k_strides: strides_of(shape, k.strides),
        v_strides: strides_of(shape, v.strides),
        out_strides: strides_of(shape, out.strides),
        q_rows: call.q_rows,
        q_len: call.q_len,
        kv_len: call.kv_len,
        head_dim: call.head_dim,
        group: call.group,
        scale: shape.scale as f32,
        unused: 0,
    };
    // SAFETY: every tensor holds what the shape and its strides address (`check_input`, `check_output`, the length of lse)
    // and is aligned for 16 bytes; the kernel reads and writes nothing else, whatever `cu_seqlens` says.
    unsafe { device.launch(&call.kernels.forward[call.mask], grid, &params) }
}

/// f32 numbers that [`backward`] works in.
///
/// # Errors
/// If there are more than can be counted.
pub fn backward_workspace_len(shape: &Shape) -> Result<usize> {
    let [delta, kv_heads] = workspace_parts(shape)?;
    match kv_heads.checked_mul(2).and_then(|both| both.checked_add(delta)) {
        Some(len) => Ok(len),
        None => bail!("attention: the backward of {shape:?} needs more memory than can be counted"),
    }
}

/// Length of delta, filled up to 16 bytes, and of the gradient of keys (or values) for each query head.
fn workspace_parts(shape: &Shape) -> Result<[usize; 2]> {
    let delta = shape.num_query_rows()?.next_multiple_of(4);
    Ok([delta, product(&[shape.batch(), shape.num_heads, shape.kv_rows(), shape.head_dim])?])
}

/// Gradients of `q`, `k` and `v`. The same inputs give the same bits every time.
///
/// # Errors
/// As [`forward`]; or if the workspace is too short.
pub fn backward<D: Device>(device: &D, shape: &Shape, args: Backward<'_, D>) -> Result<()> {
    let call = Call::new(shape, args.cu_seqlens)?;
    let Backward { q, k, v, cu_seqlens: _, out, lse, dout, dq, dk, dv, workspace } = args;
    check_input(shape, "q", true, &q)?;
    check_input(shape, "k", false, &k)?;
    check_input(shape, "v", false, &v)?;
    check_input(shape, "out", true, &out)?;
    check_input(shape, "dout", true, &dout)?;
    check_output(shape, "dq", true, &dq)?;
    check_output(shape, "dk", false, &dk)?;
    check_output(shape, "dv", false, &dv)?;
    if lse.len() != shape.num_query_rows()? {
        bail!("attention: lse has {} numbers, there are {} rows", lse.len(), shape.num_query_rows()?);
    }
    let needed = backward_workspace_len(shape)?;
    if workspace.len() < needed {
        bail!("attention: the workspace has {} numbers, the backward needs {needed}", workspace.len());
    }
    check_alignment("attention: the workspace", workspace.address(), workspace.len())?;
    let [delta_len, heads_len] = workspace_parts(shape)?;
    let part = |first: usize| workspace.address() + (first * size_of::<f32>()) as u64;
    let (delta, dk_heads, dv_heads) = (part(0), part(delta_len), part(delta_len + heads_len));

    // All before the first kernel: where one of them is too large, none runs.
    let grid = |x: usize, heads: usize, z: usize| Grid::new("attention", x, heads, z);
    let delta_grid = grid(shape.q_rows().div_ceil(DELTA_ROWS), shape.num_heads, shape.batch())?;
    let dkdv_grid = grid(call.max_kv_len.div_ceil(DKDV_KEYS), shape.num_heads, call.num_sequences)?;
    let units = product(&[shape.kv_rows(), shape.head_dim / VECTOR as usize])?.div_ceil(GROUP_SUM_UNITS);
    let group_grid = grid(units, shape.num_kv_heads, shape.batch())?;
    let dq_grid = grid(call.max_q_len.div_ceil(DQ_ROWS), shape.num_heads, call.num_sequences)?;
    if let Some(grid) = delta_grid {
        let params = AttentionDelta {
            out: out.data.address(),
            dout: dout.data.address(),
            delta,
            out_strides: strides_of(shape, out.strides),
            dout_strides: strides_of(shape, dout.strides),
            q_rows: call.q_rows,
            q_len: call.q_len,
            head_dim: call.head_dim,
        };
        // SAFETY: `out` and `dout` hold every row (`check_input`), the workspace a number for each.
        unsafe { device.launch(&sys::DELTA, grid, &params)? };
    }

    let params = AttentionBackward {
        q: q.data.address(),
        k: k.data.address(),
        v: v.data.address(),
        dout: dout.data.address(),
        lse: lse.address(),
        delta,
        dq: dq.data.address(),
        dk_heads,
        dv_heads,
        cu_seqlens: call.cu_seqlens,
        q_strides: strides_of(shape, q.strides),
        k_strides: strides_of(shape, k.strides),
        v_strides: strides_of(shape, v.strides),
        dout_strides: strides_of(shape, dout.strides),
        dq_strides: strides_of(shape, dq.strides),
        q_rows: call.q_rows,
        kv_rows: call.kv_rows,
        q_len: call.q_len,
        kv_len: call.kv_len,
        head_dim: call.head_dim,
        group: call.group,
        scale: shape.scale as f32,
        unused: 0,
    };
    if let Some(grid) = dkdv_grid {
        // SAFETY: every input holds what the shape and its strides address (`check_input`, the length of lse) and is aligned;
        // dk_heads and dv_heads are parts of the workspace with a row for each key of each query head; cu_seqlens is cut to
        // the rows there are.
        unsafe { device.launch(&call.kernels.dkdv[call.mask], grid, &params)? };
    }
    if let Some(grid) = group_grid {
        let params = AttentionGroupSum {
            dk_heads,
            dv_heads,
            dk: dk.data.address(),
            dv: dv.data.address(),
            dk_strides: strides_of(shape, dk.strides),
            dv_strides: strides_of(shape, dv.strides),
            kv_rows: call.kv_rows,
            kv_len: call.kv_len,
            head_dim: call.head_dim,
            group: call.group,
            unused: 0,
        };
        // SAFETY: the workspace holds a row for each key of each query head, and `dk` and `dv` one for each key of each key
        // head (`check_output`), aligned.
        unsafe { device.launch(&sys::GROUP_SUM, grid, &params)? };
    }
    if let Some(grid) = dq_grid {
        // SAFETY: as for dk and dv; dq holds every row of every query head (`check_output`).
        unsafe { device.launch(&call.kernels.dq[call.mask], grid, &params)? };
    }
    Ok(())
}
