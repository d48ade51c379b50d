//! The second pass: copies the selected samples into output shards of equal size.
//!
//! Deviations from the DataComp resharder (`resharder.py`): shards are found by listing the directory, so that a
//! missing number loses nothing (oddity D6), and a tar needs no `_stats.json` beside it to be read (there, a shard
//! counts only with both, or when `sizes.json` lists it); output shards are numbered by content and full but for the
//! last, whatever the number of threads (D8); the samples' metadata go along as `{:08d}.parquet`, so that the next
//! selection can be made on the mix.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{ArrayRef, RecordBatch, StringArray, UInt32Array};
use arrow_schema::{Field, Schema};
use datafusion::arrow::compute::take_record_batch;
use oqvl_shard_io::{
    SampleKey, ShardFile, ShardReader, ShardWriter, TAR_END, TableWriter, write_json_atomic,
};
use oqvl_stage::RunContext;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::MixerError;
use crate::columns::{conform, public_names, texts};
use crate::config::ScoreFiles;
use crate::identity::output_key;
use crate::places::{Place, Places};
use crate::pool::Pool;
use crate::row_set::RowSet;
use crate::sample_index::{ROWS_PER_FILE, SampleIndex, key_check, read_table};

/// The sizes of all output shards, by file name, as the DataComp resharder reads it.
const SIZES_FILE: &str = "sizes.json";

/// Bytes of an input shard that are in memory at once, unless a single sample has more; twice this where the next samples
/// are read while some are written.
const BATCH_BYTES: u64 = 1 << 20;

/// Columns of the pool that speak of the input shard.
const INPUT_COLUMNS: [&str; 3] = ["shard", "shard_index", "position"];

/// `{:08d}_stats.json`: the done-marker of an output shard.
#[derive(Debug, Serialize, Deserialize)]
struct ShardStats {
    /// Samples in the shard.
    successes: u64,
}

/// Consecutive selected samples of one input shard.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    /// Index of the input shard.
    shard: usize,
    /// Range within the list of its selected positions.
    picks: Range<u64>,
}

/// The work of the second pass.
#[derive(Debug)]
pub(crate) struct Resharder<'a> {
    pool: &'a Pool,
    index: &'a SampleIndex,
    kept: &'a RowSet,
    /// Selected samples of every input shard.
    counts: Vec<u64>,
    samples_per_shard: u64,
    /// The columns of the pool under their own names, and the names they get in the output.
    schema: Arc<Schema>,
    names: Vec<String>,
    run: &'a RunContext,
}

impl<'a> Resharder<'a> {
    pub(crate) fn new(
        pool: &'a Pool,
        index: &'a SampleIndex,
        kept: &'a RowSet,
        samples_per_shard: usize,
        sidecars: &[ScoreFiles],
        run: &'a RunContext,
    ) -> Resharder<'a> {
        let counts = (0..pool.parts.len()).map(|part| kept.count_range(pool.rows_of(part))).collect();
        let schema = pool.files.schema().clone();
        let names = public_names(&schema, sidecars);
        let samples_per_shard = samples_per_shard as u64;
        Resharder { pool, index, kept, counts, samples_per_shard, schema, names, run }
    }

    /// Writes the output shards of this process, in parallel, and the table of all sizes; returns the number of all
    /// output shards. Shards that are there already are left as they are.
    pub(crate) fn write(&self) -> Result<u64, MixerError> {
        let total: u64 = self.counts.iter().sum();
        let num_shards = total.div_ceil(self.samples_per_shard) as usize;
        let samples_of = |shard: usize| {
            let first = shard as u64 * self.samples_per_shard;
            first..total.min(first + self.samples_per_shard)
        };
        let progress = self.run.progress(num_shards as u64, "shards written");
        (0..num_shards).into_par_iter().filter(|shard| self.run.owns_shard(*shard)).try_for_each(
            |shard| {
                self.write_shard(shard, &segments(&self.counts, samples_of(shard)))?;
                progress.inc(1);
                Ok::<(), MixerError>(())
            },
        )?;
        progress.finish();
        let size = |shard: usize| samples_of(shard).end - samples_of(shard).start;
        let sizes: BTreeMap<String, u64> =
            (0..num_shards).map(|shard| (format!("{shard:08}.tar"), size(shard))).collect();
        write_json_atomic(&self.run.out_dir.join(SIZES_FILE), &sizes)?;
        Ok(num_shards as u64)
    }

    fn write_shard(&self, shard: usize, segments: &[Segment]) -> Result<(), MixerError> {
        let path = |ending: &str| self.run.out_dir.join(format!("{shard:08}{ending}"));
        let (tar, table, stats) = (path(".tar"), path(".parquet"), path("_stats.json"));
        if tar.exists() && table.exists() && stats.exists() {
            return Ok(());
        }
        let mut writer = ShardWriter::create(&tar)?;
        let mut rows = OutputTable::new(self);
        for segment in segments {
            let places = self.pool.places(segment.shard)?;
            let range = self.pool.rows_of(segment.shard);
            let num_picks = (segment.picks.end - segment.picks.start) as usize;
            let picks =
                self.kept.iter_range(range.clone()).skip(segment.picks.start as usize).take(num_picks);
            let positions: Vec<usize> = picks.map(|row| (row - range.start) as usize).collect();
            let keys = self.copy_samples(segment.shard, &places, &positions, &mut writer)?;
            rows.add(segment.shard, &places, &positions, keys)?;
        }
        let summary = writer.finish()?;
        self.run.note_digest(&tar, summary.digest);
        rows.write(&table)?;
        write_json_atomic(&stats, &ShardStats { successes: summary.num_samples })?;
        self.run.publish(vec![tar, table, stats]);
        Ok(())
    }

    /// Copies the samples at `positions` of one input shard; members go over byte for byte, under the new key. Returns
    /// the new keys with the old ones.
    ///
    /// While some samples are written, the next ones are read, if there is a thread to do it.
    fn copy_samples(
        &self,
        shard: usize,
        places: &Places,
        positions: &[usize],
        writer: &mut ShardWriter,
    ) -> Result<Vec<(SampleKey, SampleKey)>, MixerError> {
        let input = Input { path: &self.index.shards[shard].path, places: &places.samples };
        let mut keys = Vec::with_capacity(positions.len());
        let file = ShardFile::open(input.path)?;
        let mut batches = batches(input.places, positions);
        let mut read_next =
            |buffer| batches.next().map(|pieces| Batch::read(pieces, buffer, &file)).transpose();
        let mut spare = Vec::new();
        let mut read = read_next(Vec::new())?;
        while let Some(batch) = read {
            self.run.check_interrupt()?;
            let buffer = std::mem::take(&mut spare);
            let (written, next) = rayon::join(|| input.copy(&batch, writer, &mut keys), || read_next(buffer));
            written?;
            spare = batch.bytes;
            read = next?;
        }
        Ok(keys)
    }
}

/// An input shard.
#[derive(Debug, Clone, Copy)]
struct Input<'a> {
    path: &'a PathBuf,
    places: &'a [Place],
}

impl Input<'_> {
    fn copy(
        self,
        batch: &Batch<'_>,
        writer: &mut ShardWriter,
        keys: &mut Vec<(SampleKey, SampleKey)>,
    ) -> Result<(), MixerError> {
        let changed = || MixerError::InputChanged { path: self.path.clone() };
        let mut rest = &batch.bytes[..];
        for piece in &batch.pieces {
            let (bytes, others) = rest.split_at(piece.num_bytes_with_end());
            rest = others;
            let mut samples = ShardReader::in_memory(bytes, self.path);
            for position in piece.positions {
                let sample = samples.next().ok_or_else(changed)??;
                let place = &self.places[*position];
                let uid = place.uid.map_err(|_| changed())?;
                let found = (piece.start + sample.offset, sample.num_bytes);
                if key_check(sample.key.as_str()) != place.key_check
                    || found != (place.offset, place.num_bytes)
                {
                    return Err(changed());
                }
                let members = sample.members.iter().map(|member| {
                    let start = member.offset as usize;
                    (member.extension.as_str(), &bytes[start..start + member.num_bytes as usize])
                });
                let key = if place.named_by_uid { output_key(uid) } else { sample.key.clone() };
                let _locations = writer.push_members(&key, members.collect())?;
                keys.push((key, sample.key));
            }
        }
        Ok(())
    }
}

/// Neighbouring samples, which are read in one piece.
#[derive(Debug)]
struct Piece<'a> {
    start: u64,
    num_bytes: u64,
    positions: &'a [usize],
}

impl Piece<'_> {
    fn num_bytes_with_end(&self) -> usize {
        self.num_bytes as usize + TAR_END.len()
    }
}

/// Pieces that are in memory at the same time.
#[derive(Debug)]
struct Batch<'a> {
    pieces: Vec<Piece<'a>>,
    /// Their bytes, with [`TAR_END`] behind each, and then whatever was there before.
    bytes: Vec<u8>,
}

impl<'a> Batch<'a> {
    /// Reads pieces into `buffer`, whose memory is used again.
    fn read(pieces: Vec<Piece<'a>>, mut buffer: Vec<u8>, file: &ShardFile) -> Result<Batch<'a>, MixerError> {
        let num_bytes = pieces.iter().map(Piece::num_bytes_with_end).sum();
        if buffer.len() < num_bytes {
            buffer.resize(num_bytes, 0);
        }
        let mut rest = &mut buffer[..];
        for piece in &pieces {
            let (bytes, end);
            (bytes, rest) = rest.split_at_mut(piece.num_bytes as usize);
            (end, rest) = rest.split_at_mut(TAR_END.len());
            file.read_into(bytes, piece.start)?;
            end.copy_from_slice(&TAR_END);
        }
        Ok(Batch { pieces, bytes: buffer })
    }
}

/// All pieces, as many together as [`BATCH_BYTES`] hold, but at least one.
fn batches<'a>(places: &'a [Place], positions: &'a [usize]) -> impl Iterator<Item = Vec<Piece<'a>>> + Send {
    let mut pieces = pieces(places, positions).peekable();
    std::iter::from_fn(move || {
        let mut batch = vec![pieces.next()?];
        let mut num_bytes = batch[0].num_bytes;
        while let Some(piece) = pieces.next_if(|piece| num_bytes + piece.num_bytes <= BATCH_BYTES) {
            num_bytes += piece.num_bytes;
            batch.push(piece);
        }
        Some(batch)
    })
}

fn pieces<'a>(places: &'a [Place], positions: &'a [usize]) -> impl Iterator<Item = Piece<'a>> {
    let end = |position: usize| places[position].offset + places[position].num_bytes;
    let mut rest = positions;
    std::iter::from_fn(move || {
        let start = places[*rest.first()?].offset;
        let continues =
            |pair: &[usize]| places[pair[1]].offset == end(pair[0]) && end(pair[1]) - start <= BATCH_BYTES;
        let len = 1 + rest.windows(2).take_while(|pair| continues(pair)).count();
        let (positions, others) = rest.split_at(len);
        rest = others;
        Some(Piece { start, num_bytes: end(positions[len - 1]) - start, positions })
    })
}

/// The selected samples `range`, counted over all input shards, as segments of these.
fn segments(counts: &[u64], range: Range<u64>) -> Vec<Segment> {
    let mut segments = Vec::new();
    let mut start = 0;
    for (shard, count) in counts.iter().enumerate() {
        let end = start + count;
        let (first, last) = (range.start.max(start), range.end.min(end));
        if first < last {
            segments.push(Segment { shard, picks: first - start..last - start });
        }
        start = end;
    }
    segments
}

/// The table beside an output shard.
#[derive(Debug)]
struct OutputTable<'a> {
    resharder: &'a Resharder<'a>,
    schema: Arc<Schema>,
    batches: Vec<RecordBatch>,
}

impl<'a> OutputTable<'a> {
    fn new(resharder: &'a Resharder<'a>) -> OutputTable<'a> {
        let columns = resharder.names.iter().zip(resharder.schema.fields());
        let columns = columns.filter(|(name, _)| !INPUT_COLUMNS.contains(&name.as_str()));
        let mut fields: Vec<Field> =
            columns.map(|(name, field)| Field::new(name, field.data_type().clone(), true)).collect();
        if !fields.iter().any(|field| field.name() == "original_key") {
            fields.push(Field::new("original_key", arrow_schema::DataType::Utf8, true));
        }
        OutputTable { resharder, schema: Arc::new(Schema::new(fields)), batches: Vec::new() }
    }

    /// Adds the rows of the samples at `positions` of an input shard, which have been given `keys`.
    fn add(
        &mut self,
        shard: usize,
        places: &Places,
        positions: &[usize],
        keys: Vec<(SampleKey, SampleKey)>,
    ) -> Result<(), MixerError> {
        let mut keys = keys.into_iter();
        for chunk in positions.chunk_by(|a, b| a / ROWS_PER_FILE == b / ROWS_PER_FILE) {
            let table = read_table(&self.resharder.index.table_path(shard, chunk[0] / ROWS_PER_FILE))?;
            let rows = UInt32Array::from_iter_values(chunk.iter().map(|at| (at % ROWS_PER_FILE) as u32));
            let table = take_record_batch(&table, &rows).expect("the rows are those of the table");
            let table = conform(&table, &self.resharder.schema);
            let (new, old): (Vec<SampleKey>, Vec<SampleKey>) = keys.by_ref().take(chunk.len()).unzip();
            let column = |name: &str| -> ArrayRef {
                let place = self.resharder.names.iter().position(|known| known == name);
                let column = place.map(|place| table.column(place).clone());
                match (name, column) {
                    ("key", _) => Arc::new(StringArray::from_iter_values(&new)),
                    ("original_key", None) => Arc::new(StringArray::from_iter_values(&old)),
                    // A uid that stands for a missing one stays inside the mixer.
                    ("uid", Some(column)) => Arc::new(own_uids(&column, places, chunk)),
                    (_, Some(column)) => column,
                    (name, None) => unreachable!("`{name}` is a column of the pool"),
                }
            };
            let columns = self.schema.fields().iter().map(|field| column(field.name())).collect();
            let batch = RecordBatch::try_new(self.schema.clone(), columns);
            self.batches.push(batch.expect("the columns were made for the schema"));
        }
        Ok(())
    }

    fn write(self, path: &Path) -> Result<(), MixerError> {
        let mut writer = TableWriter::create(path, self.schema, &[])?;
        self.batches.iter().try_for_each(|batch| writer.write(batch))?;
        Ok(writer.finish()?)
    }
}

fn own_uids(uids: &ArrayRef, places: &Places, positions: &[usize]) -> StringArray {
    let uids = texts(uids).expect("the column uid is text");
    let own = |(uid, at): (Option<&str>, &usize)| {
        uid.filter(|_| places.samples[*at].named_by_uid).map(str::to_owned)
    };
    uids.iter().zip(positions).map(own).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The output shards hold every selected sample once, in order, and are full but for the last.
        #[test]
        fn segments_cover_everything_in_order(
            counts in prop::collection::vec(0..7_u64, 0..6),
            samples_per_shard in 1..9_u64,
        ) {
            let total: u64 = counts.iter().sum();
            let mut visited = Vec::new();
            for start in (0..total).step_by(samples_per_shard as usize) {
                let end = total.min(start + samples_per_shard);
                let segments = segments(&counts, start..end);
                let len = |segment: &Segment| segment.picks.end - segment.picks.start;
                prop_assert_eq!(segments.iter().map(len).sum::<u64>(), end - start);
                for segment in segments {
                    visited.extend(segment.picks.map(|pick| (segment.shard, pick)));
                }
            }
            let all = counts.iter().enumerate();
            let expected: Vec<_> =
                all.flat_map(|(shard, count)| (0..*count).map(move |pick| (shard, pick))).collect();
            prop_assert_eq!(visited, expected);
        }
    }
}
