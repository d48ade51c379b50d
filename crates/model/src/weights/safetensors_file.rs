//! Safetensors files, read tensor by tensor.

use super::WeightsError;
use super::elements::{ElementType, Elements};
use super::error::shown;
use candle_core::{Device, Tensor};
use oqvl_shard_io::UniqueMap;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::de::IgnoredAny;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::Path;

/// Longest header the format allows.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// The length of the header stands before it.
const LENGTH_BYTES: u64 = 8;

/// All tensors of a file.
pub(super) fn read(
    path: &Path,
    device: &Device,
) -> Result<BTreeMap<String, Tensor>, Box<dyn std::error::Error + Send + Sync>> {
    let wrong = |problem: String| WeightsError::Header { problem };
    let file = File::open(path)?;
    let file_bytes = file.metadata()?.len();
    let mut reader = BufReader::new(file);
    let mut length = [0; LENGTH_BYTES as usize];
    if file_bytes < LENGTH_BYTES {
        return Err(wrong(format!("the file has only {file_bytes} bytes")).into());
    }
    reader.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length > MAX_HEADER_BYTES.min(file_bytes - LENGTH_BYTES) {
        return Err(wrong(format!("should be {length} bytes long, the file has {file_bytes}")).into());
    }
    let mut header = vec![0; length as usize];
    reader.read_exact(&mut header)?;
    // Read twice: the library keeps one of two tensors of the same name and says nothing.
    let json = |error: serde_json::Error| wrong(shown(&error.to_string()));
    serde_json::from_slice::<UniqueMap<IgnoredAny>>(&header).map_err(json)?;
    // It checks that the tensors follow each other without a gap and that shapes and lengths agree.
    let metadata: Metadata = serde_json::from_slice(&header).map_err(json)?;
    let data_bytes = file_bytes - LENGTH_BYTES - length;
    if metadata.data_len() as u64 != data_bytes {
        let listed = metadata.data_len();
        return Err(wrong(format!("lists {listed} bytes of tensors, the file has {data_bytes}")).into());
    }
    let mut tensors = BTreeMap::new();
    for name in metadata.offset_keys() {
        let info = metadata.info(&name).expect("it was listed");
        let element = element_type(info.dtype).ok_or_else(|| WeightsError::Tensor {
            name: shown(&name),
            problem: format!("numbers of type {:?} are not read", info.dtype),
        })?;
        let elements = Elements::read(&mut reader, element, info.shape.iter().product())?;
        tensors.insert(name, elements.into_tensor(&info.shape, device)?);
    }
    Ok(tensors)
}

fn element_type(dtype: Dtype) -> Option<ElementType> {
    Some(match dtype {
        Dtype::F64 => ElementType::F64,
        Dtype::F32 => ElementType::F32,
        Dtype::F16 => ElementType::F16,
        Dtype::BF16 => ElementType::BF16,
        Dtype::I64 => ElementType::I64,
        Dtype::I32 => ElementType::I32,
        Dtype::I16 => ElementType::I16,
        Dtype::I8 => ElementType::I8,
        Dtype::U8 | Dtype::BOOL => ElementType::U8,
        _ => return None,
    })
}
