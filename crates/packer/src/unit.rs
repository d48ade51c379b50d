//! One packing unit: input shards in, their packs and a done-marker out.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use oqvl_shard_io::{
    ImageFiles, ImageShrink, Pack, PackInfo, PlanWriter, ShardError, is_cut_short, read_json,
    write_json_atomic, write_pack_tar,
};
use oqvl_stage::{ConfigError, RunContext, Tally};
use oqvl_text_prep::{TextError, Tokenizer};

use crate::document::{Document, DocumentMaker, Duplicates, Made, Reject, Rules, pack};
use crate::packed_json::{PackedJsonWriter, packed_json_files, packed_json_is_whole};
use crate::report::{PackContents, UnitStats};
use crate::source::{Source, Threads};
use crate::spool::Spool;
use crate::{
    PackAlgorithm, PackOutput, PackerConfig, PackerError, Parity, first_fit_decreasing, one_per_bin,
};

/// The token the reference's pickle packer pads with, which its training does not know.
const REFERENCE_PAD_TOKEN: &str = "<|pad|>";

/// What all units have in common.
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    pub(crate) config: &'a PackerConfig,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) run: &'a RunContext,
    /// Directory of the input.
    pub(crate) dir: PathBuf,
    /// The id packs are filled up with; none, without parity.
    pad_id: Option<i64>,
}

impl<'a> Setup<'a> {
    /// Loads the tokenizer with the special tokens that the config's packer has.
    pub(crate) fn new(config: &'a PackerConfig, run: &'a RunContext) -> Result<Self, PackerError> {
        let mut tokenizer = Tokenizer::from_file(run.resolve(&config.tokenizer)).map_err(wrong_tokenizer)?;
        if i32::try_from(tokenizer.vocab_size()).is_err() {
            let message = format!("has ids up to {}, more than fit into 31 bits", tokenizer.vocab_size() - 1);
            return Err(ConfigError::new("tokenizer", message).into());
        }
        let mut pad_id = None;
        if config.parity == Parity::Pil {
            tokenizer = tokenizer.with_special_token(REFERENCE_PAD_TOKEN).map_err(wrong_tokenizer)?;
            pad_id = tokenizer.token_id(REFERENCE_PAD_TOKEN);
        }
        Ok(Self { config, tokenizer, run, dir: run.resolve(&config.shards), pad_id })
    }

    fn is_special(&self, id: i32) -> bool {
        let tokenizer = &self.tokenizer;
        let special = [
            tokenizer.bos_id(),
            tokenizer.eos_id(),
            tokenizer.endofchunk_id(),
            tokenizer.im_start_id(),
            tokenizer.pad_id(),
        ];
        special.contains(&i64::from(id)) || self.pad_id == Some(i64::from(id))
    }

    fn pack_info(&self) -> PackInfo {
        let config = self.config;
        PackInfo {
            seq_len: config.seq_len,
            num_image_tokens: u32::try_from(config.num_image_tokens())
                .expect("at most seq_len, by validation"),
            tokenizer_digest: self.tokenizer.digest().to_owned(),
            images_dir: config.shards.display().to_string(),
            image_shrink: match config.parity {
                Parity::Pil => ImageShrink::Reference,
                Parity::Off | Parity::Json => ImageShrink::None,
            },
        }
    }
}

/// A tokenizer that cannot be loaded is the wrong one to name.
fn wrong_tokenizer(error: TextError) -> ConfigError {
    let reason = std::error::Error::source(&error).map(|source| format!(": {source}"));
    ConfigError::new("tokenizer", format!("{error}{}", reason.unwrap_or_default()))
}

/// Neighbouring input shards that are packed together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Its place among the units; names the output.
    pub(crate) index: usize,
    /// The files of each shard, relative to the input directory: a tar, or packed JSON files.
    pub(crate) shards: Vec<Vec<String>>,
}

impl Unit {
    /// Packs the shards, or finds them packed by an earlier run, and returns their counts.
    pub(crate) fn run(&self, setup: &Setup<'_>, threads: Threads) -> Result<UnitStats, PackerError> {
        let out_dir = &setup.run.out_dir;
        let stats_path = out_dir.join(format!("{:08}_stats.json", self.index));
        if let Some(stats) = self.finished(setup, &stats_path)? {
            self.publish(setup, &stats_path)?;
            return Ok(stats);
        }
        let mut documents = self.read(setup, threads)?;
        let lengths = documents.spool.lengths();
        let seq_len = setup.config.seq_len;
        let bins = match setup.config.algorithm {
            PackAlgorithm::FirstFitDecreasing => first_fit_decreasing(lengths, seq_len),
            PackAlgorithm::OnePerSequence => one_per_bin(lengths),
            PackAlgorithm::AsGiven => documents.spool.given_bins(),
        };
        let num_packs_by_shard = match setup.config.algorithm {
            PackAlgorithm::FirstFitDecreasing if self.shards.len() > 1 => documents
                .shard_ranges()
                .map(|range| first_fit_decreasing(&lengths[range], seq_len).len() as u64)
                .sum(),
            _ => bins.len() as u64,
        };
        let written = self.write(setup, &mut documents.spool, &bins)?;
        let stats = UnitStats {
            len: written.len,
            tally: documents.tally,
            num_shards: self.shards.len() as u64,
            num_packs_by_shard,
            num_duplicate_keys: documents.num_duplicate_keys,
            skipped_images: documents.skipped_images,
            contents: written.contents,
        };
        write_json_atomic(&stats_path, &stats)?;
        self.publish(setup, &stats_path)?;
        Ok(stats)
    }

    /// What an earlier run left, if all of it is there. The marker of a unit that has to be made again goes first: a run
    /// that is killed while it makes the unit must not leave a part of it that looks finished.
    fn finished(&self, setup: &Setup<'_>, stats_path: &Path) -> Result<Option<UnitStats>, PackerError> {
        if !stats_path.exists() {
            return Ok(None);
        }
        match read_json::<UnitStats>(stats_path) {
            Ok(stats) if self.has_output(setup, &stats)? => return Ok(Some(stats)),
            Ok(_) => {
                tracing::warn!("{}: packs are missing or cut short, packing again", stats_path.display())
            }
            Err(error @ ShardError::Io { .. }) => return Err(error.into()),
            Err(error) => tracing::warn!(%error, "packing again"),
        }
        let failed = |source| PackerError::Io { path: stats_path.to_path_buf(), source };
        std::fs::remove_file(stats_path).map_err(failed)?;
        Ok(None)
    }

    fn has_output(&self, setup: &Setup<'_>, stats: &UnitStats) -> Result<bool, PackerError> {
        let path = self.output_path(setup);
        Ok(path.exists()
            && match setup.config.output {
                PackOutput::Json => packed_json_is_whole(&path, stats.len.len())?,
                PackOutput::Plan | PackOutput::Tar => !is_cut_short(&path),
            })
    }

    /// Hands the unit in, to be sent if output goes to a store: its marker when the rest has arrived.
    fn publish(&self, setup: &Setup<'_>, stats_path: &Path) -> Result<(), PackerError> {
        if !setup.run.publishes() {
            return Ok(());
        }
        let path = self.output_path(setup);
        let mut files = match setup.config.output {
            PackOutput::Plan | PackOutput::Tar => vec![path],
            PackOutput::Json => packed_json_files(&path)?,
        };
        files.push(stats_path.to_path_buf());
        setup.run.publish(files);
        Ok(())
    }

    fn output_path(&self, setup: &Setup<'_>) -> PathBuf {
        setup.run.out_dir.join(match setup.config.output {
            PackOutput::Plan => format!("{:08}.plan.parquet", self.index),
            PackOutput::Tar => format!("{:08}.tar", self.index),
            PackOutput::Json => self.index.to_string(),
        })
    }

    fn read(&self, setup: &Setup<'_>, threads: Threads) -> Result<Documents, PackerError> {
        let rules = Rules::new(setup.config);
        let source = Source {
            dir: &setup.dir,
            input: setup.config.input,
            maker: DocumentMaker { tokenizer: &setup.tokenizer, rules },
            threads,
            run: setup.run,
        };
        let mut documents = Documents::new(&setup.run.out_dir, rules.duplicates);
        let mut first_file = 0;
        for names in &self.shards {
            documents.start_shard();
            source.read(names, first_file, &mut |made| documents.add(made))?;
            documents.end_shard(names);
            first_file += names.len();
        }
        Ok(documents)
    }

    /// Writes the packs, the documents of one in memory at a time.
    fn write(
        &self,
        setup: &Setup<'_>,
        spool: &mut Spool,
        bins: &[Vec<usize>],
    ) -> Result<Written, PackerError> {
        let (path, info) = (self.output_path(setup), setup.pack_info());
        let names: Vec<String> = self.shards.concat();
        let files = ImageFiles::new(&setup.dir);
        let mut packs = Packs {
            setup,
            spool,
            bins: bins.iter(),
            written: Written { len: Vec::new(), contents: PackContents::new(setup.config.seq_len) },
        };
        match setup.config.output {
            PackOutput::Plan => {
                let mut writer = PlanWriter::create(&path, &info)?;
                while let Some(documents) = packs.next().transpose()? {
                    writer.push(setup.filled(pack(&documents, &names)))?;
                }
                writer.finish()?;
            }
            PackOutput::Tar => write_tar(&path, &info, &mut packs, &names, &files)?,
            PackOutput::Json => {
                let parity = setup.config.parity;
                let mut writer =
                    PackedJsonWriter::create(&setup.run.out_dir, self.index, &files, &names, parity)?;
                while let Some(documents) = packs.next().transpose()? {
                    writer.push(&documents)?;
                }
                writer.write_stats(&packs.written.len)?;
            }
        }
        Ok(packs.written)
    }
}

impl Setup<'_> {
    /// The pack, filled up to `seq_len` ids (not tokens) where the reference does so.
    fn filled(&self, mut pack: Pack) -> Pack {
        if let Some(pad_id) = self.pad_id {
            let num_ids = pack.input_ids.len().max(self.config.seq_len as usize);
            pack.input_ids.resize(num_ids, pad_id);
        }
        pack
    }
}

/// What was written of a unit.
struct Written {
    /// Tokens of each pack.
    len: Vec<u64>,
    contents: PackContents,
}

/// The documents of one pack after the other.
struct Packs<'a> {
    setup: &'a Setup<'a>,
    spool: &'a mut Spool,
    bins: std::slice::Iter<'a, Vec<usize>>,
    written: Written,
}

impl Iterator for Packs<'_> {
    type Item = Result<Vec<Document>, PackerError>;

    fn next(&mut self) -> Option<Self::Item> {
        let bin = self.bins.next()?;
        Some(self.documents(bin))
    }
}

impl Packs<'_> {
    fn documents(&mut self, bin: &[usize]) -> Result<Vec<Document>, PackerError> {
        self.setup.run.check_interrupt()?;
        let documents = bin.iter().map(|&index| self.spool.read(index)).collect::<Result<Vec<_>, _>>();
        let documents = documents.map_err(spool_error(&self.setup.run.out_dir))?;
        let tokens = self.written.contents.add(&documents, |id| self.setup.is_special(id));
        self.written.len.push(tokens);
        Ok(documents)
    }
}

/// Writes packs with their images, one pack's images in memory at a time.
fn write_tar(
    path: &Path,
    info: &PackInfo,
    packs: &mut Packs<'_>,
    names: &[String],
    files: &ImageFiles,
) -> Result<(), PackerError> {
    let setup = packs.setup;
    let with_images = |documents: Vec<Document>| -> Result<(Pack, Vec<Vec<u8>>), PackerError> {
        let pack = setup.filled(pack(&documents, names));
        let images = pack.images.iter().map(|image| Ok(files.image(image)?.unwrap_or_default()));
        let images = images.collect::<Result<_, PackerError>>()?;
        Ok((pack, images))
    };
    // The writer takes packs, not errors: the first error ends the packs and is kept aside.
    let mut failed = None;
    let good = packs.map_while(|documents| match documents.and_then(with_images) {
        Ok(pack) => Some(pack),
        Err(error) => {
            failed = Some(error);
            None
        }
    });
    let summary = write_pack_tar(path, info, good)?;
    let Some(error) = failed else {
        setup.run.note_digest(path, summary.digest);
        return Ok(());
    };
    // What was written lacks packs. Without its marker nobody takes it for finished; better still if it is gone.
    let _ = std::fs::remove_file(path);
    Err(error)
}

/// What has been read of a unit.
struct Documents {
    spool: Spool,
    tally: Tally,
    skipped_images: BTreeMap<String, u64>,
    num_duplicate_keys: u64,
    duplicates: Duplicates,
    /// First document of each shard.
    shard_starts: Vec<usize>,
    /// The documents of the current shard by key.
    keys: HashMap<String, usize>,
    /// `num_duplicate_keys` where the current shard began.
    duplicates_before: u64,
    dir: PathBuf,
}

impl Documents {
    fn new(dir: &Path, duplicates: Duplicates) -> Self {
        Self {
            spool: Spool::new(dir),
            tally: Tally::default(),
            skipped_images: BTreeMap::new(),
            num_duplicate_keys: 0,
            duplicates,
            shard_starts: Vec::new(),
            keys: HashMap::new(),
            duplicates_before: 0,
            dir: dir.to_path_buf(),
        }
    }

    fn start_shard(&mut self) {
        self.shard_starts.push(self.spool.lengths().len());
        self.keys.clear();
        self.duplicates_before = self.num_duplicate_keys;
    }

    fn end_shard(&self, names: &[String]) {
        let num_equal = self.num_duplicate_keys - self.duplicates_before;
        if num_equal > 0 {
            let fate = match self.duplicates {
                Duplicates::Keep => "all are kept",
                Duplicates::Replace => "later ones took the places of earlier ones",
            };
            tracing::warn!(
                "{}: {num_equal} samples have the key of an earlier one; {fate}",
                names.join(", ")
            );
        }
    }

    fn add(&mut self, made: Made) -> Result<(), PackerError> {
        for reject in made.skipped_images {
            *self.skipped_images.entry(reject.reason().to_owned()).or_default() += 1;
        }
        let document = match made.document {
            Ok(document) => document,
            Err(reject) => {
                self.tally.reject(made.key, reject.reason());
                return Ok(());
            }
        };
        let earlier = self.keys.get(&document.key).copied();
        self.num_duplicate_keys += u64::from(earlier.is_some());
        let result = match (earlier, self.duplicates) {
            (Some(earlier), Duplicates::Replace) => {
                self.tally.reject(made.key, Reject::DuplicateKey.reason());
                self.spool.replace(earlier, &document)
            }
            _ => {
                self.tally.keep();
                self.keys.insert(document.key.clone(), self.spool.lengths().len());
                self.spool.push(&document)
            }
        };
        result.map_err(spool_error(&self.dir))
    }

    /// The documents of each shard.
    fn shard_ranges(&self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let ends = self.shard_starts.iter().skip(1).copied().chain([self.spool.lengths().len()]);
        self.shard_starts.iter().copied().zip(ends).map(|(start, end)| start..end)
    }
}

fn spool_error(dir: &Path) -> impl FnOnce(std::io::Error) -> PackerError + '_ {
    move |source| PackerError::Spool { path: dir.to_path_buf(), source }
}
