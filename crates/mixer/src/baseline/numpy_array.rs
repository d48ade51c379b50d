//! Matrices in NumPy's files: `.npy`, or an array of an `.npz`, read row by row as single-precision numbers.

use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use ndarray::Array2;

use super::asset::problem;
use crate::MixerError;

/// Longest header that is believed.
const MAX_HEADER_BYTES: usize = 1 << 16;

/// How numbers are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Half,
    Single,
    Double,
}

impl Kind {
    fn num_bytes(self) -> usize {
        match self {
            Kind::Half => 2,
            Kind::Single => 4,
            Kind::Double => 8,
        }
    }
}

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    kind: Kind,
    num_rows: usize,
    num_columns: usize,
}

/// Hands a matrix to `take`, at most `block_rows` rows at a time, with the number of the first of them. `array` names it
/// inside an `.npz`; without a name the file must hold one array only. Returns its shape.
pub(super) fn for_each_block(
    path: &Path,
    array: Option<&str>,
    block_rows: usize,
    mut take: impl FnMut(usize, Array2<f32>) -> Result<(), MixerError>,
) -> Result<(usize, usize), MixerError> {
    let failed = |error: &dyn std::fmt::Display| problem(path, &error.to_string());
    let file = BufReader::with_capacity(1 << 16, File::open(path).map_err(|error| failed(&error))?);
    if path.extension().is_some_and(|ending| ending == "npz") {
        let mut archive = zip::ZipArchive::new(file).map_err(|error| failed(&error))?;
        let known = archive.file_names().map(|name| name.map(|name| name.into_owned()));
        let known: Vec<String> = known.collect::<Result<_, _>>().map_err(|error| failed(&error))?;
        let name = match array {
            Some(name) => format!("{name}.npy"),
            None if known.len() == 1 => known[0].clone(),
            None => return Err(problem(path, "holds several arrays, and one is expected")),
        };
        let entry = archive.by_name(&name).map_err(|_| {
            let known = crate::columns::list_names(known.iter().map(|name| name.trim_end_matches(".npy")));
            problem(path, &format!("no array `{}`; it has {known}", name.trim_end_matches(".npy")))
        })?;
        let num_bytes = entry.size();
        read_blocks(entry, num_bytes, path, block_rows, &mut take)
    } else {
        let num_bytes = file.get_ref().metadata().map_err(|error| failed(&error))?.len();
        read_blocks(file, num_bytes, path, block_rows, &mut take)
    }
}

/// A whole matrix.
pub(super) fn read_matrix(path: &Path) -> Result<Array2<f32>, MixerError> {
    let mut values = Vec::new();
    let shape = for_each_block(path, None, 4096, |_, block| {
        values.extend(block);
        Ok(())
    })?;
    Ok(Array2::from_shape_vec(shape, values).expect("the blocks make up the matrix"))
}

/// Reads an array of `num_bytes`, header included.
fn read_blocks(
    mut reader: impl Read,
    num_bytes: u64,
    path: &Path,
    block_rows: usize,
    take: &mut impl FnMut(usize, Array2<f32>) -> Result<(), MixerError>,
) -> Result<(usize, usize), MixerError> {
    let header = read_header(&mut reader).map_err(|text| problem(path, &text))?;
    let Header { kind, num_rows, num_columns } = header;
    let claimed_bytes = (num_rows * num_columns * kind.num_bytes()) as u64;
    if claimed_bytes > num_bytes {
        let text = format!("should hold {num_rows} by {num_columns} numbers and has only {num_bytes} bytes");
        return Err(problem(path, &text));
    }
    let mut bytes = Vec::new();
    let mut first = 0;
    while first < num_rows {
        let rows = block_rows.min(num_rows - first);
        let num_bytes = rows * num_columns * kind.num_bytes();
        bytes.clear();
        let read = (&mut reader).take(num_bytes as u64).read_to_end(&mut bytes);
        let len = read.map_err(|error| problem(path, &error.to_string()))?;
        if len < num_bytes {
            return Err(problem(path, &format!("ends before row {}", first + rows)));
        }
        let block = Array2::from_shape_vec((rows, num_columns), decode(kind, &bytes));
        take(first, block.expect("a block has the numbers of its rows"))?;
        first += rows;
    }
    Ok((num_rows, num_columns))
}

fn decode(kind: Kind, bytes: &[u8]) -> Vec<f32> {
    match kind {
        Kind::Half => {
            let half = |two: &[u8]| half_to_single(u16::from_le_bytes([two[0], two[1]]));
            bytes.chunks_exact(2).map(half).collect()
        }
        Kind::Single => {
            let single = |four: &[u8]| f32::from_le_bytes(four.try_into().expect("four bytes"));
            bytes.chunks_exact(4).map(single).collect()
        }
        Kind::Double => {
            let double = |eight: &[u8]| f64::from_le_bytes(eight.try_into().expect("eight bytes")) as f32;
            bytes.chunks_exact(8).map(double).collect()
        }
    }
}

/// An IEEE 754 half-precision number, exactly.
fn half_to_single(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    match exponent {
        0 => sign * fraction * 2.0_f32.powi(-24),
        31 if fraction == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1.0 + fraction / 1024.0) * 2.0_f32.powi(exponent - 15),
    }
}

fn read_header(reader: &mut impl Read) -> Result<Header, String> {
    let mut start = [0; 8];
    let cut = |_| "is no NumPy array".to_owned();
    reader.read_exact(&mut start).map_err(cut)?;
    if &start[..6] != b"\x93NUMPY" {
        return Err("is no NumPy array".to_owned());
    }
    let mut length = [0; 4];
    // Version 1 has a 16-bit length, versions 2 and 3 a 32-bit one.
    let length_bytes = if start[6] == 1 { 2 } else { 4 };
    reader.read_exact(&mut length[..length_bytes]).map_err(cut)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_HEADER_BYTES {
        return Err("has a header that is too long".to_owned());
    }
    let mut text = vec![0; length];
    reader.read_exact(&mut text).map_err(cut)?;
    parse_header(&String::from_utf8_lossy(&text))
}

fn parse_header(text: &str) -> Result<Header, String> {
    let dense: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let kind = [("'<f2'", Kind::Half), ("'<f4'", Kind::Single), ("'<f8'", Kind::Double)];
    let kind = kind.into_iter().find(|(name, _)| dense.contains(&format!("'descr':{name}")));
    let Some((_, kind)) = kind else {
        return Err("holds no numbers of 2, 4 or 8 bytes (`<f2`, `<f4`, `<f8`)".to_owned());
    };
    if !dense.contains("'fortran_order':False") {
        return Err("is in Fortran order".to_owned());
    }
    let shape = dense.split_once("'shape':(").and_then(|(_, rest)| rest.split_once(')'));
    let dims: Option<Vec<usize>> = shape.and_then(|(dims, _)| {
        dims.split(',').filter(|dim| !dim.is_empty()).map(|dim| dim.parse().ok()).collect()
    });
    match dims.as_deref() {
        Some([_, 0]) => Err("has no columns".to_owned()),
        Some([num_rows, num_columns]) => {
            // Also the shape of no rows must be one that memory could hold.
            let num_bytes = num_columns.checked_mul(8).and_then(|bytes| bytes.checked_mul(*num_rows.max(&1)));
            if num_bytes.is_none_or(|bytes| bytes > isize::MAX as usize) {
                return Err("has more numbers than there can be".to_owned());
            }
            Ok(Header { kind, num_rows: *num_rows, num_columns: *num_columns })
        }
        _ => Err("is not two-dimensional".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_are_exact() {
        for (bits, expected) in [
            (0, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (1, 5.960_464_5e-8),
            (0x3555, 0.333_251_95),
        ] {
            assert_eq!(half_to_single(bits), expected);
        }
        assert!(half_to_single(0x7c00).is_infinite() && half_to_single(0x7c01).is_nan());
    }

    #[test]
    fn headers_are_distrusted() {
        let header = |descr: &str, order: &str, shape: &str| {
            parse_header(&format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"))
        };
        let expected = Header { kind: Kind::Half, num_rows: 3, num_columns: 768 };
        assert_eq!(header("'<f2'", "False", "(3, 768)"), Ok(expected));
        for (descr, order, shape) in [
            ("'<i4'", "False", "(3, 4)"),
            ("'<f4'", "True", "(3, 4)"),
            ("'<f4'", "False", "(3,)"),
            ("'<f4'", "False", "(3, 4, 5)"),
            ("'<f4'", "False", "(-3, 4)"),
            ("'<f4'", "False", "(99999999999999, 999999999)"),
            ("'<f4'", "False", "(2, 4611686018427387904)"),
            ("'<f4'", "False", "(0, 18446744073709551615)"),
            ("'<f4'", "False", "(1, 1152921504606846976)"),
            ("'<f4'", "False", "(18446744073709551615, 0)"),
            ("'<f4'", "False", "(0, 0)"),
        ] {
            assert!(header(descr, order, shape).is_err(), "{descr} {order} {shape}");
        }
    }

    #[test]
    fn what_is_no_array_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        let mut short = b"\x93NUMPY\x01\x00\x40\x00".to_vec();
        short.extend(format!("{:64}", "{'descr': '<f4', 'fortran_order': False, 'shape': (9, 9)}").bytes());
        short.extend([0; 4 * 80]);
        oqvl_shard_io::write_atomic(&path, &short).unwrap();
        let error = read_matrix(&path).unwrap_err().to_string();
        assert!(error.contains("ends before row 9"), "{error}");
        oqvl_shard_io::write_atomic(&path, &short[..100]).unwrap();
        let error = read_matrix(&path).unwrap_err().to_string();
        assert!(error.contains("has only 100 bytes"), "{error}");
        for bytes in [&b""[..], b"\x93NUMPY", b"\x93NUMPY\x01\x00\xff\xff", b"something else entirely"] {
            oqvl_shard_io::write_atomic(&path, bytes).unwrap();
            assert!(matches!(read_matrix(&path), Err(MixerError::Asset { .. })));
        }
    }
}
