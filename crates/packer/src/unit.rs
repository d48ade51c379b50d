//! One packing unit: an input tar in, its packs and its done-marker out.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use oqvl_shard_io::{
    Pack, PackInfo, ShardError, ShardFile, ShardReader, read_json, write_json_atomic, write_pack_tar,
    write_plan,
};
use oqvl_stage::{RunContext, Tally};
use oqvl_text_prep::Tokenizer;

use crate::document::{Document, Reject, pack};
use crate::report::{LengthHistogram, UnitStats};
use crate::{PackAlgorithm, PackOutput, PackerConfig, PackerError, first_fit_decreasing, one_per_bin};

/// One input tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Its place in the sorted list of input tars; names the output.
    pub(crate) index: usize,
    /// The tar.
    pub(crate) path: PathBuf,
}

impl Unit {
    /// Packs the tar, or finds it packed by an earlier run, and returns its counts.
    pub(crate) fn run(
        &self,
        config: &PackerConfig,
        tokenizer: &Tokenizer,
        run: &RunContext,
    ) -> Result<UnitStats, PackerError> {
        let stats_path = run.out_dir.join(format!("{:08}_stats.json", self.index));
        let output = self.output_path(config, &run.out_dir);
        // Packs are written before the marker, so the marker alone would do; a removed output is made again.
        if stats_path.exists() && output.exists() {
            return Ok(read_json(&stats_path)?);
        }
        let (documents, tally, num_duplicate_keys) = self.read_documents(config, tokenizer, run)?;
        let lengths: Vec<u32> = documents.iter().map(|document| document.length).collect();
        let bins = match config.algorithm {
            PackAlgorithm::FirstFitDecreasing => first_fit_decreasing(&lengths, config.seq_len),
            PackAlgorithm::OnePerSequence => one_per_bin(&lengths),
        };
        self.write(&output, config, tokenizer, &documents, &bins, run)?;

        let mut length_histogram = LengthHistogram::new(config.seq_len);
        lengths.iter().for_each(|&length| length_histogram.add(length));
        let tokens_of = |bin: &Vec<usize>| bin.iter().map(|&item| u64::from(lengths[item])).sum();
        let len = bins.iter().map(tokens_of).collect();
        let stats = UnitStats { len, tally, num_duplicate_keys, length_histogram };
        write_json_atomic(&stats_path, &stats)?;
        Ok(stats)
    }

    fn output_path(&self, config: &PackerConfig, out_dir: &Path) -> PathBuf {
        out_dir.join(match config.output {
            PackOutput::Plan => format!("{:08}.plan.parquet", self.index),
            PackOutput::Tar => format!("{:08}.tar", self.index),
        })
    }

    /// File name of the tar, as packs refer to it.
    fn file_name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    fn read_documents(
        &self,
        config: &PackerConfig,
        tokenizer: &Tokenizer,
        run: &RunContext,
    ) -> Result<(Vec<Document>, Tally, u64), PackerError> {
        let shard = self.file_name();
        let (mut documents, mut tally) = (Vec::new(), Tally::default());
        let (mut keys, mut num_duplicate_keys) = (BTreeSet::new(), 0);
        for sample in ShardReader::open(&self.path)? {
            run.check_interrupt()?;
            let sample = match sample {
                Ok(sample) => sample,
                // The disk, not the data, is at fault: trying again may help, going on would lose samples.
                Err(error @ (ShardError::Io { .. } | ShardError::Read { .. })) => return Err(error.into()),
                Err(error) => {
                    tracing::warn!(%error, "the rest of the shard is left out");
                    tally.reject(&shard, Reject::DamagedShard.reason());
                    break;
                }
            };
            if !keys.insert(sample.key.clone()) {
                num_duplicate_keys += 1;
            }
            let document = Document::new(&sample, &shard, tokenizer, config).map_err(|source| {
                PackerError::Caption { path: self.path.clone(), key: sample.key.to_string(), source }
            })?;
            match document {
                Ok(document) => {
                    tally.keep();
                    documents.push(document);
                }
                Err(reject) => tally.reject(sample.key.as_str(), reject.reason()),
            }
        }
        Ok((documents, tally, num_duplicate_keys))
    }

    fn write(
        &self,
        path: &Path,
        config: &PackerConfig,
        tokenizer: &Tokenizer,
        documents: &[Document],
        bins: &[Vec<usize>],
        run: &RunContext,
    ) -> Result<(), PackerError> {
        let num_image_tokens =
            u32::try_from(config.num_image_tokens()).expect("at most seq_len, by validation");
        let info = PackInfo {
            seq_len: config.seq_len,
            num_image_tokens,
            tokenizer_digest: tokenizer.digest().to_owned(),
            images_dir: config.shards.display().to_string(),
        };
        let packs = bins.iter().map(|bin| pack(documents, bin));
        match config.output {
            PackOutput::Plan => Ok(write_plan(path, &info, &packs.collect::<Vec<_>>())?),
            PackOutput::Tar => self.write_tar(path, &info, packs, run),
        }
    }

    /// Writes packs with their images, one pack's images in memory at a time.
    fn write_tar(
        &self,
        path: &Path,
        info: &PackInfo,
        packs: impl Iterator<Item = Pack>,
        run: &RunContext,
    ) -> Result<(), PackerError> {
        let shard = ShardFile::open(&self.path)?;
        let read_images = |pack: &Pack| -> Result<Vec<Vec<u8>>, PackerError> {
            run.check_interrupt()?;
            pack.images.iter().map(|image| Ok(shard.read(image.offset, image.num_bytes)?)).collect()
        };
        // The writer takes packs, not errors: the first error ends the packs and is kept aside.
        let mut failed = None;
        let packs = packs.map_while(|pack| match read_images(&pack) {
            Ok(images) => Some((pack, images)),
            Err(error) => {
                failed = Some(error);
                None
            }
        });
        write_pack_tar(path, info, packs)?;
        let Some(error) = failed else { return Ok(()) };
        // What was written lacks packs. Without its marker nobody takes it for finished; better still if it is gone.
        let _ = std::fs::remove_file(path);
        Err(error)
    }
}
