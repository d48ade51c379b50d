//! What one step learns from, and what the host makes of it for the kernels.

use crate::Sizes;
use oqvl_kernels::CuSeqlens;
use oqvl_kernels::embedding::{Buckets, check_sources, visual_indices};
use oqvl_kernels::label_head::LabelRows;
use oqvl_kernels::rope::{check_positions, positions};

/// The label of rows that have none, as the kernels are told. Memory that nobody has written holds another.
pub(crate) const IGNORE_INDEX: i32 = i32::MIN;

/// Rows of whole chunks, one at least, that hold so many labels.
pub(crate) fn padded_labels(sizes: &Sizes, num_labels: usize) -> usize {
    num_labels.max(1).next_multiple_of(sizes.chunk_rows)
}

/// Documents one after the other, none of which sees another.
#[derive(Debug, Clone)]
pub struct Pack {
    pub(crate) sources: Vec<i32>,
    pub(crate) cu_seqlens: CuSeqlens,
    pub(crate) vision: Vec<f64>,
    pub(crate) positions: Vec<i32>,
    pub(crate) num_labels: usize,
    /// Rows with a label and their labels, filled up to whole chunks by rows of zeros without one.
    pub(crate) label_rows: Vec<i32>,
    pub(crate) labels: Vec<i32>,
    /// Of each row its place among them, or -1.
    pub(crate) label_places: Vec<i32>,
    pub(crate) buckets: Buckets,
    pub(crate) visual_indices: Vec<i32>,
}

impl Pack {
    /// Checks a pack and sorts what its backward needs. `sources`: of each row a token, or a
    /// [`visual_source`](oqvl_kernels::embedding::visual_source). `labels`: of each row the token that it must predict, or a negative number.
    /// `vision`: the patches of all images, `(images, grid * grid, vision)`.
    ///
    /// # Errors
    /// If something is not there, or lengths are not those of the sizes.
    pub fn new(
        sizes: &Sizes,
        sources: Vec<i32>,
        labels: &[i32],
        cu_seqlens: CuSeqlens,
        vision: Vec<f64>,
    ) -> anyhow::Result<Self> {
        sizes.check()?;
        let rows = [sources.len(), labels.len(), cu_seqlens.num_rows()];
        anyhow::ensure!(rows == [sizes.rows; 3], "a pack of {rows:?} rows, not {}", sizes.rows);
        let features = sizes.images * sizes.grid * sizes.grid * sizes.vision;
        anyhow::ensure!(vision.len() == features, "{} features, not {features}", vision.len());
        check_sources(&sources, sizes.vocab, sizes.visual_rows())?;
        let positions = positions(&cu_seqlens);
        check_positions(&positions, sizes.positions)?;
        let labels: Vec<i32> =
            labels.iter().map(|label| if *label < 0 { IGNORE_INDEX } else { *label }).collect();
        let unknown =
            labels.iter().find(|label| usize::try_from(**label).is_ok_and(|label| label >= sizes.vocab));
        anyhow::ensure!(unknown.is_none(), "label {unknown:?} is not in the vocabulary of {}", sizes.vocab);
        let labelled = LabelRows::new(&labels, IGNORE_INDEX);
        let num_labels = labelled.rows().len();
        let filled_up = |values: &[i32], with: i32| {
            let mut values = values.to_vec();
            values.resize(padded_labels(sizes, num_labels), with);
            values
        };
        Ok(Self {
            num_labels,
            label_rows: filled_up(labelled.rows(), -1),
            labels: filled_up(labelled.labels(), IGNORE_INDEX),
            label_places: labelled.places().to_vec(),
            buckets: Buckets::new(&sources, None),
            visual_indices: visual_indices(&sources, sizes.visual_rows())?,
            sources,
            cu_seqlens,
            vision,
            positions,
        })
    }
}
