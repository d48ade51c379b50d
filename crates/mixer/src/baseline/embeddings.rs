//! `image_based`: images whose nearest centroid is that of a target.
//!
//! Nearest is by the largest dot product of single-precision features, the first of equals, as `argmax` has it. Dot
//! products are summed in blocks by a kernel that suits the processor: two machines may round the last bit differently,
//! one machine never does, whatever the number of threads.

use std::path::Path;

use ndarray::{Array2, ArrayView2, Axis, s};
use oqvl_stage::RunContext;
use rayon::prelude::*;

use super::asset::{problem, required};
use super::numpy_array::{for_each_block, read_matrix};
use crate::MixerError;
use crate::baseline_config::{BaselineAssets, DEFAULT_FEATURES};
use crate::parquet_scan::{ParquetFile, ParquetFiles};
use crate::row_set::RowSet;

/// Images compared with the centroids at once.
const BLOCK_IMAGES: usize = 1024;

/// Centroids an image is compared with at once: with [`BLOCK_IMAGES`], 16 MiB of products.
const BLOCK_CENTROIDS: usize = 4096;

/// Checks that centroids and targets can be read and belong together.
pub(super) fn check(assets: &BaselineAssets, run: &RunContext) -> Result<(), MixerError> {
    read_targets(assets, run).map(drop)
}

/// Those of the `candidates` whose image is nearest to a centroid that is also nearest to a target. The features of a
/// file are in the `.npz` beside it, row by row.
pub(super) fn near_targets(
    assets: &BaselineAssets,
    files: &ParquetFiles,
    candidates: &RowSet,
    run: &RunContext,
) -> Result<RowSet, MixerError> {
    let (centroids, is_target) = read_targets(assets, run)?;
    let array = assets.features.as_deref().unwrap_or(DEFAULT_FEATURES);
    let progress = run.progress(files.files.len() as u64, "files compared with centroids");
    let kept = files.files.par_iter().map(|file| {
        let path = file.path.with_extension("npz");
        let mut kept = Vec::new();
        let shape = for_each_block(&path, Some(array), BLOCK_IMAGES, |first, block| {
            run.check_interrupt()?;
            check_width(&path, &block, &centroids)?;
            let in_file = |row: &u64| (*row - file.first_row) as usize;
            let rows = candidates.iter_range(rows_of_block(file, first, block.nrows()));
            let rows: Vec<u64> = rows.collect();
            let wanted: Vec<usize> = rows.iter().map(|row| in_file(row) - first).collect();
            let nearest = nearest(&block.select(Axis(0), &wanted), centroids.view());
            kept.extend(rows.into_iter().zip(nearest).filter(|(_, it)| is_target[*it]).map(|(row, _)| row));
            Ok(())
        })?;
        if shape.0 as u64 != file.num_rows {
            let table = file.path.display();
            let text = format!("`{array}` has {} rows and {table} has {}", shape.0, file.num_rows);
            return Err(problem(&path, &text));
        }
        progress.inc(1);
        Ok(kept)
    });
    let kept: Vec<Vec<u64>> = kept.collect::<Result<_, MixerError>>()?;
    progress.finish();
    let mut rows = RowSet::none(files.num_rows);
    kept.into_iter().flatten().for_each(|row| rows.insert(row));
    Ok(rows)
}

/// The centroids, and for each whether it is the nearest to a target.
fn read_targets(assets: &BaselineAssets, run: &RunContext) -> Result<(Array2<f32>, Vec<bool>), MixerError> {
    let centroids = read_matrix(&required(assets.centroids.as_ref(), run))?;
    if centroids.is_empty() {
        return Err(problem(&required(assets.centroids.as_ref(), run), "holds no centroids"));
    }
    let mut is_target = vec![false; centroids.nrows()];
    for path in &assets.targets {
        let path = run.resolve(path);
        let shape = for_each_block(&path, None, BLOCK_IMAGES, |_, block| {
            run.check_interrupt()?;
            check_width(&path, &block, &centroids)?;
            nearest(&block, centroids.view()).into_iter().for_each(|centroid| is_target[centroid] = true);
            Ok(())
        })?;
        if shape.0 == 0 {
            return Err(problem(&path, "holds no embeddings"));
        }
    }
    Ok((centroids, is_target))
}

/// The rows of the pool that a block of features speaks of, as far as the file has them.
fn rows_of_block(file: &ParquetFile, first: usize, num_rows: usize) -> std::ops::Range<u64> {
    let end = file.first_row + file.num_rows;
    let start = (file.first_row + first as u64).min(end);
    start..(start + num_rows as u64).min(end)
}

fn check_width(path: &Path, block: &Array2<f32>, centroids: &Array2<f32>) -> Result<(), MixerError> {
    if block.ncols() == centroids.ncols() {
        return Ok(());
    }
    let text = format!("features have {} numbers, centroids {}", block.ncols(), centroids.ncols());
    Err(problem(path, &text))
}

/// For every row of `features` the index of the centroid with the largest dot product.
fn nearest(features: &Array2<f32>, centroids: ArrayView2<'_, f32>) -> Vec<usize> {
    let mut best = vec![(f32::NEG_INFINITY, 0); features.nrows()];
    for first in (0..centroids.nrows()).step_by(BLOCK_CENTROIDS) {
        let last = centroids.nrows().min(first + BLOCK_CENTROIDS);
        let products = features.dot(&centroids.slice(s![first..last, ..]).t());
        for (row, best) in products.rows().into_iter().zip(&mut best) {
            for (index, product) in row.iter().enumerate() {
                if *product > best.0 {
                    *best = (*product, first + index);
                }
            }
        }
    }
    best.into_iter().map(|(_, index)| index).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_is_the_first_of_the_largest_products() {
        let centroids = Array2::from_shape_fn((5000, 3), |(row, column)| {
            if row == 4500 {
                2.0
            } else if row % 7 == column {
                1.0
            } else {
                0.0
            }
        });
        let features = ndarray::arr2(&[[1.0, 0.0, 0.0], [0.0, -1.0, -1.0], [0.0, 0.0, 0.0]]);
        assert_eq!(nearest(&features, centroids.view()), [4500, 0, 0]);
        assert_eq!(nearest(&features, centroids.slice(s![..4500, ..])), [0, 0, 0]);
        assert!(nearest(&Array2::zeros((0, 3)), centroids.view()).is_empty());
    }
}
