//! The data stages on real photographs, flags, emoji, drawings and awkward files, where these lie beside the checkout.

use oqvl_shard_io::ShardReader;
use oqvl_testkit::shared_data;
use oqvl_tests::{Reproduce, scratch_dir};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Formats the decoder knows, as `awkward.tsv` spells them.
const FORMATS: [&str; 6] = ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"];
/// Shorter side in pixels below which the test has images rejected.
const MIN_IMAGE_SIZE: u32 = 8;
/// A checksum in the middle is wrong: Pillow looks over it, we do not.
const STRICTER_THAN_PILLOW: &str = "derived_bad_idat_crc.png";

/// URLs of the samples in the shards of a directory.
fn kept_urls(directory: &Path) -> BTreeSet<String> {
    let mut urls = BTreeSet::new();
    for entry in fs::read_dir(directory).expect("data-fetch has finished") {
        let path = entry.expect("a directory can be listed").path();
        if path.extension().is_some_and(|extension| extension == "tar") {
            for sample in ShardReader::open(&path).expect("a shard can be opened") {
                let metadata: Option<Value> =
                    sample.expect("a shard is whole").metadata().expect("metadata is JSON");
                let metadata = metadata.expect("a sample has metadata");
                urls.insert(metadata["url"].as_str().expect("a sample knows its URL").to_owned());
            }
        }
    }
    urls
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("the file is there")).expect("the file is JSON")
}

/// Lines of a tab-separated file as `(file name, should be kept)`, after the header that names the columns.
fn awkward_files(text: &str) -> Vec<(String, bool)> {
    let mut lines = text.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let header = lines.next().expect("there is a header");
    let column =
        |name| header.iter().position(|heading| *heading == name).expect("awkward.tsv has the column");
    let (file, format, pillow) = (column("file"), column("true_format"), column("pillow"));
    let sides = [column("width"), column("height")];
    let read = |line: Vec<&str>| {
        let name = line[file].rsplit('/').next().unwrap_or_default().to_owned();
        let is_readable =
            line[pillow] == "ok" && FORMATS.contains(&line[format]) && name != STRICTER_THAN_PILLOW;
        let is_large_enough =
            sides.iter().all(|side| line[*side].parse().is_ok_and(|side: u32| side >= MIN_IMAGE_SIZE));
        (name, is_readable && is_large_enough)
    };
    lines.map(read).collect()
}

/// Networks that have hardly learnt anything: they score all the same, which is all the stages after them need.
const HARDLY_TRAINED: [&str; 3] = [
    "bootstrap.siglip.training.num_steps=2",
    "bootstrap.language_model.training.num_steps=2",
    "bootstrap.mlm_filter.training.num_steps=2",
];

/// `seen`, `kept` and the reasons of a stage, after checking that every sample is one or the other.
fn balanced_counts(work_dir: &Path, stage: &str) -> (u64, u64, Vec<String>) {
    let report = json(&work_dir.join(stage).join("report.json"));
    let count = |key: &str| report[key].as_u64().unwrap_or_else(|| panic!("{stage} does not count `{key}`"));
    let rejected = report["rejected"].as_object().unwrap_or_else(|| panic!("{stage} gives no reasons"));
    let num_rejected: u64 = rejected.values().filter_map(Value::as_u64).sum();
    assert_eq!(count("seen"), count("kept") + num_rejected, "{stage}");
    (count("seen"), count("kept"), rejected.keys().cloned().collect())
}

#[test]
fn photos_go_through_the_data_stages_and_awkward_files_are_kept_or_rejected_with_a_reason() {
    let Some(data) = shared_data() else { return };
    let run = Reproduce::of("configs/photos.toml", scratch_dir("photos"))
        .flag("--to", "packer")
        .set(&format!("data-fetch.min_image_size={MIN_IMAGE_SIZE}"))
        .set_all(&HARDLY_TRAINED);
    let _ = run.finish().succeeded();

    let (_, fetched, reasons) = balanced_counts(run.work_dir(), "data-fetch");
    assert_eq!(
        reasons,
        ["corrupt-image", "empty-body", "image-too-small", "truncated-image", "unknown-format"]
    );
    for filter in ["clip-filter", "mlm-filter"] {
        assert_eq!(
            balanced_counts(run.work_dir(), filter).0,
            fetched,
            "{filter} looks at every fetched sample"
        );
    }
    let (pool, mixed, _) = balanced_counts(run.work_dir(), "mixer");
    let (to_pack, packed, _) = balanced_counts(run.work_dir(), "packer");
    assert_eq!((pool, to_pack), (fetched, mixed));
    assert!(packed > 0);

    let kept = kept_urls(&run.work_dir().join("data-fetch"));
    let list =
        fs::read_to_string(run.work_dir().join("micro-world/urls.jsonl")).expect("micro-world has finished");
    for line in list.lines() {
        let line: Value = serde_json::from_str(line).expect("a line of the list is JSON");
        let url = line["url"].as_str().expect("a URL");
        assert!(url.contains("/awkward/") || kept.contains(url), "{url} is an ordinary image");
    }
    let awkward =
        awkward_files(&fs::read_to_string(data.join("awkward.tsv")).expect("it came with the data"));
    assert!(awkward.len() > 40, "{awkward:?}");
    for (name, is_image) in awkward {
        let is_kept = kept.iter().any(|url| url.ends_with(&format!("/{name}")));
        assert_eq!(is_kept, is_image, "{name}");
    }
}
