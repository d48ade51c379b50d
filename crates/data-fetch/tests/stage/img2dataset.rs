//! Beside the real img2dataset: the same list, the same answers, the same options; its shards, our reader.
//!
//! `tests/fixtures/img2dataset_goldens.py` made the fixtures; its header says with which versions.

use crate::server::Reply;
use crate::world::World;
use arrow_schema::DataType;
use oqvl_data_fetch::{DataFetch, DataFetchConfig};
use oqvl_image_prep::{DecodeLimits, Interpolation, Layout, decode_on_white};
use oqvl_shard_io::{ShardReader, read_json, write_atomic};
use oqvl_stage::{ConfigFile, Stage as _};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::path::{Path, PathBuf};

/// Rows where we differ on purpose (see `transform.rs` and the stage's page), by run (`*` for all) and name.
const DEVIATIONS: [(&str, &str); 2] = [
    // An empty body is no image, nor a file to store.
    ("*", "empty.jpg"),
    // 16 bits saturate to white there.
    ("*", "deep.png"),
];

/// What becomes of `empty.jpg` here: nothing was downloaded.
const EMPTY_STATUS: &str = "failed_to_download";

/// What img2dataset leaves unsaid, as it takes it; ours are chosen for the paper's recipe.
const PEER_DEFAULTS: &str = "image_size = 256\nresize_mode = \"border\"\nresize_only_if_bigger = false\nskip_reencode = false\n\
    retries = 0\nmax_host_failures = 0\n";

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn digest(bytes: &[u8]) -> String {
    let hexadecimal: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    hexadecimal[..16].to_owned()
}

/// The pictures the server has, by name.
fn inputs() -> BTreeMap<String, Vec<u8>> {
    let samples = ShardReader::open(&fixture("img2dataset_inputs.tar")).unwrap();
    let members = samples.flat_map(|sample| {
        let sample = sample.unwrap();
        let key = sample.key.as_str().to_owned();
        sample.members.into_iter().map(move |member| (format!("{key}.{}", member.extension), member.data))
    });
    members.collect()
}

fn world() -> World {
    let inputs = inputs();
    let world = World::new(&[], move |request| {
        let name = request.path.trim_start_matches('/');
        match name {
            "status-404" => Reply::status(404),
            "status-410" => Reply::status(410),
            "status-500" => Reply::status(500),
            "moved.jpg" => Reply::redirect("http://pictures.test/plain.jpg"),
            "opted-out.jpg" => Reply::ok(&inputs["plain.jpg"]).header("X-Robots-Tag", "noai"),
            _ => Reply::ok(&inputs[name]),
        }
    });
    let hosts = json!({"pictures.test": world.server.address}).to_string();
    write_atomic(&world.dir.path().join("hosts.local.json"), hosts.as_bytes()).unwrap();
    world
}

/// The options of a run, read as our own config: the keys and values are the same.
fn config(options: &Value) -> DataFetchConfig {
    let mut table: toml::Table = PEER_DEFAULTS.parse().unwrap();
    for (key, value) in options.as_object().unwrap() {
        table.insert(key.clone(), toml::Value::try_from(value).unwrap());
    }
    for (key, value) in [
        ("url_list", fixture("img2dataset_list.parquet").to_str().unwrap()),
        ("hosts_file", "hosts.local.json"),
        ("caption_col", "caption"),
    ] {
        table.insert(key.to_owned(), value.into());
    }
    table.insert("number_sample_per_shard".to_owned(), 1000.into());
    table.insert("save_additional_columns".to_owned(), vec!["uid"].into());
    let file = toml::Table::from_iter([("data-fetch".to_owned(), table.into())]).to_string();
    ConfigFile::parse(&file).unwrap().stage("data-fetch").unwrap()
}

/// Our reason for img2dataset's message.
fn reasons(message: &str) -> &'static [&'static str] {
    match message {
        // Sizes are looked at before anything is decoded.
        "Image decoding error" => {
            &["unknown-format", "truncated-image", "corrupt-image", "image-too-large", "image-too-small"]
        }
        "hash mismatch" => &["hash-mismatch"],
        "image too small" => &["image-too-small"],
        "image area too large" => &["image-too-large"],
        "aspect ratio too large" => &["aspect-ratio"],
        "Use of image disallowed by X-Robots-Tag directive" => &["opted-out"],
        "HTTP Error 404: Not Found" => &["not-found"],
        "HTTP Error 410: Gone" => &["gone"],
        "HTTP Error 500: Internal Server Error" => &["server-error"],
        other => panic!("img2dataset said: {other}"),
    }
}

/// One row of a finished shard, as the goldens have it.
fn row(sample: &oqvl_shard_io::Sample, extension: &str) -> Value {
    let image = &sample.member(extension).unwrap().data;
    let (channels, pixels) = match decode_on_white(image, &DecodeLimits::default()) {
        Ok(decoded) => {
            let channels = if decoded.raster.layout() == Layout::Gray { 1 } else { 3 };
            (channels, digest(decoded.raster.pixels()))
        }
        Err(_) => (0, String::new()),
    };
    json!([channels, pixels, digest(image), digest(&sample.member("json").unwrap().data)])
}

#[test]
fn with_its_options_we_make_what_img2dataset_makes() {
    let goldens: Value = read_json(&fixture("img2dataset_goldens.json")).unwrap();
    let world = world();
    let mut differences = Vec::new();
    let (mut num_rows, mut num_same_files) = (0, 0);
    for (name, run) in goldens["runs"].as_object().unwrap() {
        let config = config(&run["options"]);
        let _ = std::fs::remove_dir_all(world.out_dir());
        DataFetch::run(&config, &world.context()).unwrap();
        let shard = config.shard_name(0);
        check_columns(name, &world.out_dir().join(format!("{shard}.parquet")), &run["columns"]);
        let stats: Value = read_json(&world.out_dir().join(format!("{shard}_stats.json"))).unwrap();
        assert_eq!(counts(&stats), counts_there(run), "{name}");
        let table = rows_of(&world.out_dir().join(format!("{shard}.parquet")));
        let statuses: BTreeMap<&str, &str> =
            table.iter().map(|row| (row["key"].as_str().unwrap(), row["status"].as_str().unwrap())).collect();
        assert_eq!(statuses.len(), run["rows"].as_array().unwrap().len(), "{name}");
        let mut kept: BTreeMap<String, oqvl_shard_io::Sample> = BTreeMap::new();
        for sample in ShardReader::open(&world.out_dir().join(format!("{shard}.tar"))).unwrap() {
            let sample = sample.unwrap();
            kept.insert(sample.key.as_str().to_owned(), sample);
        }
        let rejected = rejected(&world, &config);
        for expected in run["rows"].as_array().unwrap() {
            let text = |idx: usize| expected[idx].as_str().unwrap_or_default();
            let (picture, key, status) = (text(0), text(1), text(2));
            let expected_status = if picture == "empty.jpg" { EMPTY_STATUS } else { status };
            if statuses[key] != expected_status {
                differences
                    .push(format!("{name} {picture}: {expected_status} there, {} here", statuses[key]));
            }
            if DEVIATIONS.iter().any(|(run, row)| (*run == "*" || run == name) && *row == picture) {
                continue;
            }
            num_rows += 1;
            if status != "success" {
                let reason = rejected.get(key).map(String::as_str).unwrap_or("kept");
                if !reasons(text(3)).contains(&reason) {
                    differences.push(format!("{name} {picture}: {} there, {reason} here", text(3)));
                }
                continue;
            }
            let Some(sample) = kept.get(key) else {
                differences.push(format!("{name} {picture}: kept there, {:?} here", rejected.get(key)));
                continue;
            };
            let (found, extension) = (row(sample, text(5)), text(5));
            let metadata: Value = sample.metadata().unwrap().unwrap();
            let sides = ["width", "height", "original_width", "original_height"].map(|side| &metadata[side]);
            let mut differs = |what: &str, found: &Value, expected: &Value| {
                if found != expected {
                    differences.push(format!("{name} {picture}: {what}: {expected} there, {found} here"));
                }
            };
            differs("sides", &json!(sides), &expected[4]);
            if config.disable_all_reencoding {
                differs("file", &found[2], &expected[8]);
            } else {
                differs("channels", &found[0], &expected[6]);
                // OpenCV's cubic weights are met within one level only, as `image-prep` tests.
                if config.downscale_interpolation != Interpolation::Cubic {
                    differs("pixels", &found[1], &expected[7]);
                }
            }
            differs("json", &found[3], &expected[9]);
            assert!(sample.member(extension).is_some() && sample.members.len() == 3);
            num_same_files += usize::from(found[2] == expected[8]);
        }
    }
    assert!(differences.is_empty(), "{} differences\n{}", differences.len(), differences.join("\n"));
    assert!(num_rows > 500, "{num_rows}");
    // The files need not be the same for the pixels to be; all JPEG files are, but for the cubic ones.
    assert!(num_same_files > 200, "{num_same_files} of {num_rows}");
}

/// Rows, samples, rows without bytes, rows without an image.
fn counts(stats: &Value) -> [u64; 4] {
    ["count", "successes", "failed_to_download", "failed_to_resize"].map(|name| stats[name].as_u64().unwrap())
}

/// The counts of img2dataset's stats, with the empty file where it is here.
fn counts_there(run: &Value) -> [u64; 4] {
    let mut counts = counts(&run["stats"]);
    let empty = run["rows"].as_array().unwrap().iter().find(|row| row[0] == "empty.jpg").unwrap();
    match empty[2].as_str().unwrap() {
        "success" => counts[1] -= 1,
        "failed_to_resize" => counts[3] -= 1,
        _ => counts[2] -= 1,
    }
    counts[2] += 1;
    counts
}

/// The rows of a shard's parquet as objects, nulls included.
fn rows_of(path: &Path) -> Vec<Value> {
    let batches =
        ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap().build().unwrap();
    let mut writer = arrow_json::WriterBuilder::new()
        .with_explicit_nulls(true)
        .build::<_, arrow_json::writer::JsonArray>(Vec::new());
    batches.for_each(|batch| writer.write(&batch.unwrap()).unwrap());
    writer.finish().unwrap();
    serde_json::from_slice(&writer.into_inner()).unwrap()
}

/// Reasons by key.
fn rejected(world: &World, config: &DataFetchConfig) -> BTreeMap<String, String> {
    let report = DataFetch::run(config, &world.context()).unwrap();
    report.tally.rejects.into_iter().map(|reject| (reject.key, reject.reason)).collect()
}

fn check_columns(run: &str, path: &Path, expected: &Value) {
    let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap();
    let found: Vec<(String, String)> = builder
        .schema()
        .fields()
        .iter()
        .map(|field| (field.name().clone(), type_name(field.data_type())))
        .collect();
    let mut expected: Vec<(String, String)> = serde_json::from_value(expected.clone()).unwrap();
    if run == "filters" {
        // A digest that is verified stands where its column stood; ours are always the last.
        expected.sort_by_key(|(name, _)| name == "md5");
    }
    assert_eq!(found, expected, "{run}");
}

/// The type as pyarrow prints it.
fn type_name(data_type: &DataType) -> String {
    match data_type {
        DataType::Utf8 => "string".to_owned(),
        DataType::Int32 => "int32".to_owned(),
        DataType::Float64 => "double".to_owned(),
        DataType::List(item) => format!("list<element: {}>", type_name(item.data_type())),
        other => other.to_string(),
    }
}

#[test]
fn exif_is_that_of_img2dataset() {
    let goldens: Value = read_json(&fixture("img2dataset_goldens.json")).unwrap();
    let world = world();
    let config = config(&goldens["runs"]["ccs"]["options"]);
    DataFetch::run(&config, &world.context()).unwrap();
    let mut num_checked = 0;
    for sample in ShardReader::open(&world.out_dir().join("00000.tar")).unwrap() {
        let metadata: Value = sample.unwrap().metadata().unwrap().unwrap();
        let name = metadata["url"].as_str().unwrap().rsplit('/').next().unwrap();
        assert_eq!(metadata["exif"], goldens["exif"][name], "{name}");
        num_checked += 1;
    }
    assert!(num_checked > 30);
    assert!(goldens["exif"]["exif.jpg"].as_str().unwrap().contains("GPSLatitude"));
}

#[test]
fn a_shard_that_img2dataset_wrote_is_read_field_by_field() {
    let inputs = inputs();
    let mut names = BTreeSet::new();
    for sample in ShardReader::open(&fixture("img2dataset_shard/00000000.tar")).unwrap() {
        let sample = sample.unwrap();
        let extensions: Vec<_> = sample.members.iter().map(|member| member.extension.as_str()).collect();
        assert_eq!(extensions, ["jpg", "json", "txt"]);
        let metadata: Value = sample.metadata().unwrap().unwrap();
        assert_eq!(metadata["key"], sample.key.as_str());
        assert_eq!(metadata["status"], "success");
        let caption = sample.caption().unwrap().unwrap();
        assert_eq!(metadata["caption"], caption);
        assert!(caption.ends_with("\u{e4}\u{4e2d}\u{1f600}"), "{caption}");
        let name = metadata["url"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        let sha256 = metadata["sha256"].as_str().unwrap();
        assert_eq!(sha256[..16], digest(&inputs[&name]), "{name}");
        let number = u128::from_str_radix(metadata["uid"].as_str().unwrap(), 16).unwrap();
        assert_eq!(
            number.to_string(),
            sample.key.as_str().trim_start_matches('0').parse::<u128>().unwrap_or(0).to_string()
        );
        let image = oqvl_image_prep::decode(&sample.image().unwrap().data, &DecodeLimits::default()).unwrap();
        assert_eq!(json!([image.width(), image.height()]), json!([metadata["width"], metadata["height"]]));
        names.insert(name);
    }
    let expected = ["exif.jpg", "grey.jpg", "plain.jpg", "rgba.png", "small.jpg", "small.png"];
    assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

#[test]
fn its_table_and_stats_are_read_field_by_field() {
    let mut samples = BTreeMap::new();
    for sample in ShardReader::open(&fixture("img2dataset_shard/00000000.tar")).unwrap() {
        let sample = sample.unwrap();
        let metadata: Value = sample.metadata().unwrap().unwrap();
        samples.insert(sample.key.as_str().to_owned(), metadata);
    }
    let rows = rows_of(&fixture("img2dataset_shard/00000000.parquet"));
    let mut statuses: BTreeMap<&str, u64> = BTreeMap::new();
    for row in &rows {
        let key = row["key"].as_str().unwrap();
        *statuses.entry(row["status"].as_str().unwrap()).or_default() += 1;
        if row["status"] == "success" {
            assert_eq!(samples.remove(key).as_ref(), Some(row), "{key}");
            continue;
        }
        // What was not kept has what the list says, a reason, and nothing else.
        assert!(
            row["error_message"].is_string() && row["caption"].is_string() && row["url"].is_string(),
            "{key}"
        );
        for field in ["width", "height", "original_width", "original_height", "exif", "sha256"] {
            assert_eq!(row[field], Value::Null, "{key} {field}");
        }
    }
    assert!(samples.is_empty(), "in the tar and not in the table: {:?}", samples.keys());

    let stats: Value = read_json(&fixture("img2dataset_shard/00000000_stats.json")).unwrap();
    let count = |status: &str| statuses.get(status).copied().unwrap_or(0);
    let expected =
        [rows.len() as u64, count("success"), count("failed_to_download"), count("failed_to_resize")];
    assert_eq!(counts(&stats), expected);
    let messages = rows.iter().map(|row| row["error_message"].as_str().unwrap_or("success").to_owned());
    let mut by_message: BTreeMap<String, u64> = BTreeMap::new();
    messages.for_each(|message| *by_message.entry(message).or_default() += 1);
    assert_eq!(stats["status_dict"], json!(by_message));
    let times = ["start_time", "end_time", "duration"].map(|name| stats[name].as_f64().unwrap());
    assert!((times[1] - times[0] - times[2]).abs() < 1e-3, "{times:?}");
    // Ours has no times, and the two counts it has besides; all else has the same name.
    let ours: oqvl_data_fetch::ShardStats = serde_json::from_value(json!({
        "count": stats["count"], "successes": stats["successes"], "status_dict": stats["status_dict"],
        "failed_to_download": stats["failed_to_download"], "failed_to_resize": stats["failed_to_resize"],
        "rejected": {}, "bytes_downloaded": 0, "content_type_mismatch": 0,
    }))
    .unwrap();
    assert_eq!(ours.status_dict, by_message);
}
