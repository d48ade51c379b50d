//! Numbers of a file as numbers of the network: floats of any width become f32, integers i64.

use candle_core::{Device, Result, Tensor};
use half::{bf16, f16};
use std::io::{self, Read};

/// How a number lies in a file; little endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ElementType {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    /// `bool` too.
    U8,
}

impl ElementType {
    pub(super) fn num_bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::F16 | Self::BF16 | Self::I16 => 2,
            Self::I8 | Self::U8 => 1,
        }
    }
}

/// Numbers in memory.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Elements {
    Floats(Vec<f32>),
    Integers(Vec<i64>),
}

impl Elements {
    /// Reads `count` numbers. The caller has checked that the file is long enough to hold them.
    pub(super) fn read(
        reader: &mut (impl Read + ?Sized),
        element: ElementType,
        count: usize,
    ) -> io::Result<Self> {
        Ok(match element {
            ElementType::F64 => Self::Floats(read(reader, count, |it| f64::from_le_bytes(it) as f32)?),
            ElementType::F32 => Self::Floats(read(reader, count, f32::from_le_bytes)?),
            ElementType::F16 => Self::Floats(read(reader, count, |it| f16::from_le_bytes(it).to_f32())?),
            ElementType::BF16 => Self::Floats(read(reader, count, |it| bf16::from_le_bytes(it).to_f32())?),
            ElementType::I64 => Self::Integers(read(reader, count, i64::from_le_bytes)?),
            ElementType::I32 => Self::Integers(read(reader, count, |it| i32::from_le_bytes(it).into())?),
            ElementType::I16 => Self::Integers(read(reader, count, |it| i16::from_le_bytes(it).into())?),
            ElementType::I8 => Self::Integers(read(reader, count, |it| i8::from_le_bytes(it).into())?),
            ElementType::U8 => Self::Integers(read(reader, count, |it| u8::from_le_bytes(it).into())?),
        })
    }

    pub(super) fn into_tensor(self, shape: &[usize], device: &Device) -> Result<Tensor> {
        if !can_be_counted(shape) {
            candle_core::bail!("shape {shape:?} is too large to count");
        }
        match self {
            Self::Floats(values) => Tensor::from_vec(values, shape, device),
            Self::Integers(values) => Tensor::from_vec(values, shape, device),
        }
    }
}

/// Whether sizes and strides of such a tensor can be computed. A dimension of 0 does not help: the others are multiplied
/// all the same.
pub(super) fn can_be_counted(shape: &[usize]) -> bool {
    let product = shape.iter().try_fold(1_usize, |product, size| product.checked_mul((*size).max(1)));
    product.is_some_and(|product| isize::try_from(product).is_ok())
}

/// Never holds more of the bytes than one chunk, so that the largest tensors of a model are in memory once.
fn read<const N: usize, T>(
    reader: &mut (impl Read + ?Sized),
    count: usize,
    decode: impl Fn([u8; N]) -> T,
) -> io::Result<Vec<T>> {
    /// A multiple of every width.
    const CHUNK_BYTES: usize = 1 << 16;
    let mut values = Vec::with_capacity(count);
    let mut chunk = vec![0; CHUNK_BYTES.min(count * N)];
    while values.len() < count {
        let bytes = &mut chunk[..CHUNK_BYTES.min((count - values.len()) * N)];
        reader.read_exact(bytes)?;
        values.extend(bytes.as_chunks::<N>().0.iter().map(|number| decode(*number)));
    }
    Ok(values)
}
