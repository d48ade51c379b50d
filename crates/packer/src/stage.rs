//! The stage: units of input shards are packed on their own, in parallel.

use std::path::{Path, PathBuf};

use oqvl_shard_io::list_shards;
use oqvl_stage::{ConfigError, RunContext, ShardRange, Stage, StageConfig};
use rayon::prelude::*;

use crate::packed_json::list_packed_json;
use crate::report::UnitStats;
use crate::source::Threads;
use crate::unit::{Setup, Unit};
use crate::{AcrossShards, PackInput, PackerConfig, PackerError, PackerReport};

/// The packer stage.
#[derive(Debug, Clone, Copy)]
pub struct Packer;

impl Stage for Packer {
    const NAME: &'static str = "packer";
    const VERSION: &'static str = env!("CARGO_PKG_VERSION");
    const SHARDED: bool = true;
    const CHECKS_FIRST: bool = true;
    type Config = PackerConfig;
    type Report = PackerReport;
    type Error = PackerError;

    fn run(config: &PackerConfig, run: &RunContext) -> Result<PackerReport, PackerError> {
        config.validate()?;
        check_share(config, run)?;
        let setup = Setup::new(config, run)?;
        let mut units = units(config, &setup.dir)?;
        units.retain(|unit| run.owns_shard(unit.index));
        run.begin()?;

        let progress = run.progress(units.len() as u64, "units");
        // Many units: a thread each. Few: all threads on one after the other.
        let threads = if units.len() >= rayon::current_num_threads() { Threads::One } else { Threads::All };
        let pack = |unit: &Unit| {
            let stats = unit.run(&setup, threads)?;
            progress.inc(1);
            Ok(stats)
        };
        let stats = match threads {
            Threads::One => units.par_iter().map(pack).collect::<Result<Vec<UnitStats>, PackerError>>()?,
            Threads::All => units.iter().map(pack).collect::<Result<_, _>>()?,
        };
        progress.finish();
        Ok(PackerReport::new(stats, config.seq_len))
    }

    fn check(config: &PackerConfig, run: &RunContext) -> Result<(), PackerError> {
        check_share(config, run)?;
        let setup = Setup::new(config, run)?;
        units(config, &setup.dir).map(drop)
    }
}

/// Refuses shares of what is packed as one unit. In a job array one task packs it and the others have nothing to do.
fn check_share(config: &PackerConfig, run: &RunContext) -> Result<(), ConfigError> {
    if config.pack_across_shards == AcrossShards::All && matches!(run.shards, Some(ShardRange::Span { .. })) {
        let message =
            "\"all\" is one unit, which --shards cannot share: give a number, or run without --shards";
        return Err(ConfigError::new("pack_across_shards", message));
    }
    Ok(())
}

/// The units of the input directory: neighbours in name order.
fn units(config: &PackerConfig, dir: &Path) -> Result<Vec<Unit>, PackerError> {
    let shards: Vec<Vec<String>> = match config.input {
        PackInput::PackedJson => {
            let text = |path: &PathBuf| path.to_string_lossy().into_owned();
            list_packed_json(dir)?.iter().map(|files| files.iter().map(text).collect()).collect()
        }
        PackInput::Captions | PackInput::Interleaved => {
            let name = |path: PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            list_shards(dir)?.into_iter().map(|path| vec![name(path)]).collect()
        }
    };
    let per_unit = config.pack_across_shards.shards_per_unit().min(shards.len());
    let unit = |(index, shards): (usize, &[Vec<String>])| Unit { index, shards: shards.to_vec() };
    Ok(shards.chunks(per_unit).enumerate().map(unit).collect())
}

#[cfg(test)]
mod tests {
    use oqvl_shard_io::{
        Pack, Sample, SampleKey, ShardError, ShardFile, ShardReader, ShardWriter, read_json, read_pack_tar,
        read_plan, write_atomic,
    };
    use oqvl_testkit::{shared_data, tiny_shard};
    use oqvl_text_prep::{BpeTrainer, Tokenizer};

    use super::*;
    use crate::config::tests::config;
    use crate::{Overlong, PackAlgorithm, PackOutput};

    const ONE: [(&str, &str); 4] =
        [("a", "a red cube"), ("b", "red"), ("c", ""), ("d", "one blue ball, one red cube")];
    const TWO: [(&str, &str); 1] = [("e", "green")];

    /// A work directory with a tokenizer that has one token per byte, and two shards.
    fn work_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let trained = BpeTrainer::new(300).train(std::iter::empty()).unwrap();
        write_atomic(&dir.path().join("tokenizer.json"), trained.json()).unwrap();
        let _ = tiny_shard(&dir.path().join("mixer"), "00000000", &ONE);
        let _ = tiny_shard(&dir.path().join("mixer"), "00000001", &TWO);
        dir
    }

    fn pack(dir: &tempfile::TempDir, config: &PackerConfig) -> (PackerReport, RunContext) {
        let run = RunContext::for_test::<Packer>(dir.path(), 7).unwrap();
        (Packer::run(config, &run).unwrap(), run)
    }

    fn plan(run: &RunContext, index: usize) -> Vec<Pack> {
        read_plan(&run.out_dir.join(format!("{index:08}.plan.parquet"))).unwrap().1
    }

    /// Names and bytes of the output.
    fn files(run: &RunContext) -> Vec<(PathBuf, Vec<u8>)> {
        let entries = std::fs::read_dir(&run.out_dir).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = entries.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
        files.sort();
        files
    }

    #[test]
    fn two_shards_are_two_units() {
        let dir = work_dir();
        let (report, run) = pack(&dir, &config(40, 3));
        // 12 tokens around each caption: a 22, b 15, c 12, d 39, e 17.
        assert_eq!((report.tally.seen, report.tally.kept, report.num_shards, report.num_packs), (5, 5, 2, 4));
        let packs = plan(&run, 0);
        let keys: Vec<String> = packs.iter().map(|pack| pack.keys.join("")).collect();
        assert_eq!(keys, ["d", "ab", "c"]);
        assert_eq!(
            packs.iter().map(|pack| &pack.lengths[..]).collect::<Vec<_>>(),
            [&[39][..], &[22, 15], &[12]]
        );
        assert_eq!(plan(&run, 1).len(), 1);
        assert_eq!(report.num_tokens, 22 + 15 + 12 + 39 + 17);
        assert_eq!(report.efficiency, 105.0 / 160.0);
        assert_eq!(report.mean_pairs_per_pack, 1.25);
        assert_eq!(report.contents.length_histogram.counts.iter().sum::<u64>(), 5);

        let stats: serde_json::Value = read_json(&run.out_dir.join("00000000_stats.json")).unwrap();
        assert_eq!(stats["len"], serde_json::json!([39, 37, 12]));
    }

    #[test]
    fn references_lead_to_the_images() {
        let dir = work_dir();
        let (_, run) = pack(&dir, &config(40, 3));
        let path = run.out_dir.join("00000000.plan.parquet");
        let (info, packs) = read_plan(&path).unwrap();
        assert_eq!((info.images_dir.as_str(), info.seq_len, info.num_image_tokens), ("mixer", 40, 9));
        for image in packs.iter().flat_map(|pack| &pack.images) {
            let shard = ShardFile::open(&dir.path().join(&info.images_dir).join(&image.shard)).unwrap();
            let bytes = shard.read(image.offset, image.num_bytes).unwrap();
            let decoded = oqvl_image_prep::decode(&bytes, &Default::default()).unwrap();
            assert_eq!((decoded.width(), decoded.height()), (19, 13));
        }
    }

    #[test]
    fn one_per_sequence_is_the_padded_baseline() {
        let dir = work_dir();
        let baseline = PackerConfig { algorithm: PackAlgorithm::OnePerSequence, ..config(40, 3) };
        let (report, run) = pack(&dir, &baseline);
        assert_eq!((report.num_packs, report.mean_pairs_per_pack), (5, 1.0));
        let keys: Vec<String> = plan(&run, 0).iter().map(|pack| pack.keys.join("")).collect();
        assert_eq!(keys, ["a", "b", "c", "d"]);
    }

    #[test]
    fn overlong_documents_are_kept_alone_or_counted() {
        let dir = work_dir();
        let (report, run) = pack(&dir, &config(30, 3));
        assert_eq!((report.tally.kept, report.num_overlong_packs), (5, 1));
        assert_eq!(plan(&run, 0)[0].lengths, [39]);

        let dir = work_dir();
        let (report, run) = pack(&dir, &PackerConfig { overlong: Overlong::Reject, ..config(30, 3) });
        assert_eq!(
            (report.tally.kept, report.tally.rejected["overlong"], report.num_overlong_packs),
            (4, 1, 0)
        );
        assert_eq!(report.tally.rejects[0].key, "d");
        assert!(plan(&run, 0).iter().all(|pack| pack.lengths.iter().sum::<u32>() <= 30));
    }

    #[test]
    fn a_tar_holds_the_same_packs_and_the_images() {
        let dir = work_dir();
        let (_, run) = pack(&dir, &config(40, 3));
        let packs = plan(&run, 0);
        let dir = work_dir();
        let (_, run) = pack(&dir, &PackerConfig { output: PackOutput::Tar, ..config(40, 3) });
        let shard = ShardFile::open(&dir.path().join("mixer/00000000.tar")).unwrap();
        let read: Vec<_> =
            read_pack_tar(&run.out_dir.join("00000000.tar")).unwrap().map(Result::unwrap).collect();
        assert_eq!(read.len(), packs.len());
        for ((_, (pack, images)), expected) in read.into_iter().zip(packs) {
            assert_eq!(pack, expected);
            for (bytes, image) in images.iter().zip(&pack.images) {
                assert_eq!(*bytes, shard.read(image.offset, image.num_bytes).unwrap());
            }
        }
    }

    #[test]
    fn bad_samples_are_counted_and_equal_keys_kept() {
        let dir = work_dir();
        let image = oqvl_image_prep::encode_png(&oqvl_image_prep::RgbImage::new(2, 2, vec![5; 12]).unwrap());
        let mut writer = ShardWriter::create(&dir.path().join("mixer/00000001.tar")).unwrap();
        let mut push = |key: &str, members: &[(&str, &[u8])]| {
            let mut sample = Sample::new(SampleKey::new(key).unwrap());
            members.iter().for_each(|(extension, data)| sample.push(extension, data.to_vec()));
            writer.push(&sample).unwrap();
        };
        push("twice", &[("png", &image), ("txt", b"first")]);
        push("broken", &[("png", b"\x89PNG"), ("txt", b"x")]);
        push("twice", &[("png", &image), ("txt", b"later, and longer")]);
        push("silent", &[("png", &image)]);
        push("text", &[("txt", b"no image")]);
        writer.finish().unwrap();

        let (report, run) = pack(&dir, &config(40, 3));
        assert_eq!((report.tally.seen, report.tally.kept, report.num_duplicate_keys), (9, 6, 1));
        let reasons: Vec<(&str, u64)> =
            report.tally.rejected.iter().map(|(reason, count)| (reason.as_str(), *count)).collect();
        assert_eq!(reasons, [("missing-caption", 1), ("missing-image", 1), ("undecodable-image", 1)]);
        assert_eq!(plan(&run, 1).iter().map(|pack| pack.lengths[0]).collect::<Vec<_>>(), [29, 17]);
    }

    #[test]
    fn a_stopped_run_goes_on_to_the_same_bytes_and_report() {
        let dir = work_dir();
        let (report, run) = pack(&dir, &config(40, 3));
        let undisturbed = files(&run);
        assert_eq!(undisturbed.len(), 4);
        let removals: [&[&str]; 4] = [
            &["00000001_stats.json"],
            &["00000000_stats.json", "00000000.plan.parquet"],
            &["00000001.plan.parquet"],
            &[],
        ];
        for removed in removals {
            removed.iter().for_each(|name| std::fs::remove_file(run.out_dir.join(name)).unwrap());
            let (again, run) = pack(&dir, &config(40, 3));
            assert_eq!(again, report);
            assert_eq!(files(&run), undisturbed, "after removing {removed:?}");
        }
        // What is finished is not touched.
        write_atomic(&run.out_dir.join("00000000.plan.parquet"), b"finished, PAR1").unwrap();
        pack(&dir, &config(40, 3));
        assert_eq!(std::fs::read(run.out_dir.join("00000000.plan.parquet")).unwrap(), b"finished, PAR1");
    }

    #[test]
    fn packs_that_are_cut_short_are_made_again() {
        for (output, name) in [(PackOutput::Plan, "00000000.plan.parquet"), (PackOutput::Tar, "00000000.tar")]
        {
            let dir = work_dir();
            let config = PackerConfig { output, ..config(40, 3) };
            let (report, run) = pack(&dir, &config);
            let undisturbed = files(&run);
            let path = run.out_dir.join(name);
            let bytes = std::fs::read(&path).unwrap();
            write_atomic(&path, &bytes[..bytes.len() / 2]).unwrap();
            assert_eq!(pack(&dir, &config).0, report);
            assert!(files(&run) == undisturbed, "{name}");
        }
    }

    #[test]
    fn one_unit_is_not_shared() {
        let dir = work_dir();
        let config = PackerConfig { pack_across_shards: AcrossShards::All, ..config(40, 3) };
        let mut run = RunContext::for_test::<Packer>(dir.path(), 7).unwrap();
        run.shards = Some(ShardRange::Span { first: 0, last: 1 });
        for refused in [Packer::run(&config, &run).map(drop), Packer::check(&config, &run)] {
            let error = refused.unwrap_err();
            assert!(matches!(error, PackerError::Config(_)), "{error:?}");
            assert!(error.to_string().starts_with("pack_across_shards: "), "{error}");
        }
        // An array job that happens to run this is no request for a share.
        run.shards = Some(ShardRange::Stride { task: 0, count: 3 });
        assert_eq!(Packer::run(&config, &run).unwrap().num_shards, 2);
    }

    #[test]
    fn shares_and_threads_change_nothing() {
        let dir = work_dir();
        let (report, run) = pack(&dir, &config(40, 3));
        let whole = files(&run);

        let dir = work_dir();
        let mut run = RunContext::for_test::<Packer>(dir.path(), 7).unwrap();
        for (first, num_shards) in [(1, 1), (0, 1)] {
            run.shards = Some(ShardRange::Span { first, last: first + 1 });
            assert_eq!(Packer::run(&config(40, 3), &run).unwrap().num_shards, num_shards);
        }
        run.shards = None;
        let one_thread = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        assert_eq!(one_thread.install(|| Packer::run(&config(40, 3), &run)).unwrap(), report);
        let bytes =
            |files: Vec<(PathBuf, Vec<u8>)>| files.into_iter().map(|(_, bytes)| bytes).collect::<Vec<_>>();
        assert_eq!(bytes(files(&run)), bytes(whole));
    }

    #[test]
    fn missing_inputs_are_named() {
        let dir = work_dir();
        let run = RunContext::for_test::<Packer>(dir.path(), 7).unwrap();
        let error =
            Packer::run(&PackerConfig { shards: "nowhere".into(), ..config(40, 3) }, &run).unwrap_err();
        assert!(matches!(error, PackerError::Shard(ShardError::Io { .. })), "{error}");
        let error =
            Packer::run(&PackerConfig { shards: "packer".into(), ..config(40, 3) }, &run).unwrap_err();
        assert!(matches!(error, PackerError::Shard(ShardError::NoShards { .. })), "{error}");
        write_atomic(&dir.path().join("bad.json"), b"{}").unwrap();
        for name in ["no.json", "bad.json"] {
            let config = PackerConfig { tokenizer: name.into(), ..config(40, 3) };
            for refused in [Packer::run(&config, &run).map(drop), Packer::check(&config, &run)] {
                let error = refused.unwrap_err();
                assert!(matches!(error, PackerError::Config(_)), "{error:?}");
                let message = error.to_string();
                assert!(message.starts_with("tokenizer: ") && message.contains(name), "{message}");
            }
        }
    }

    #[test]
    fn what_precedes_damage_is_packed_and_the_damage_counted() {
        let dir = work_dir();
        let path = dir.path().join("mixer/00000000.tar");
        let bytes = std::fs::read(&path).unwrap();
        let samples: Vec<Sample> = ShardReader::open(&path).unwrap().map(Result::unwrap).collect();
        let third = usize::try_from(samples[2].offset).unwrap();
        write_atomic(&path, &bytes[..third + 700]).unwrap(); // within the first member of the third sample
        let (report, run) = pack(&dir, &config(40, 3));
        let rejects: Vec<(&str, &str)> =
            report.tally.rejects.iter().map(|reject| (reject.key.as_str(), reject.reason.as_str())).collect();
        assert_eq!(rejects, [("00000000.tar", "damaged-shard")]);
        assert_eq!(plan(&run, 0)[0].keys, ["a", "b"]);
    }

    #[test]
    fn a_tar_without_its_end_is_packed_and_counted() {
        let dir = work_dir();
        let path = dir.path().join("mixer/00000000.tar");
        let bytes = std::fs::read(&path).unwrap();
        let samples: Vec<Sample> = ShardReader::open(&path).unwrap().map(Result::unwrap).collect();
        write_atomic(&path, &bytes[..usize::try_from(samples[2].offset).unwrap()]).unwrap();
        let (report, run) = pack(&dir, &config(40, 3));
        assert_eq!(report.tally.rejected["unterminated-shard"], 1);
        assert_eq!(plan(&run, 0)[0].keys, ["a", "b"]);
    }

    #[test]
    fn lengths_with_the_public_tokenizer() {
        let Some(data) = shared_data() else { return };
        let dir = work_dir();
        let tokenizer = data.join("tokenizers/qwen2.5/tokenizer.json");
        let (report, run) = pack(&dir, &PackerConfig { tokenizer: tokenizer.clone(), ..config(4096, 12) });
        assert_eq!(report.num_packs, 2);
        let tokenizer = Tokenizer::from_file(tokenizer).unwrap();
        let [pack] = &plan(&run, 0)[..] else { panic!() };
        for (key, length) in pack.keys.iter().zip(&pack.lengths) {
            let (_, caption) = ONE.iter().find(|(other, _)| other == key).unwrap();
            // T + 147: BOS, newline, EOS and 144 image tokens.
            assert_eq!(*length as usize, tokenizer.encode(caption).unwrap().len() + 147, "{caption:?}");
        }
    }
}
