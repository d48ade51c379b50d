//! What lies in the output directory, byte for byte and field for field.

use crate::server::{Delivery, Reply, Request};
use crate::world::{World, jpeg, png};
use arrow_array::cast::AsArray as _;
use arrow_array::types::{Float64Type, Int32Type};
use arrow_schema::DataType;
use oqvl_data_fetch::ComputeHash;
use oqvl_shard_io::{ShardReader, write_atomic};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::fs::File;
use std::time::Duration;

/// Images of many sizes, some failures, answers that come in an order of their own.
fn mixed(request: &Request) -> Reply {
    let number: u32 = request.path.trim_start_matches('/').parse().unwrap();
    let reply = match number % 7 {
        3 => Reply::status(404),
        4 => Reply::ok(&png(10 + number, 40)),
        5 if request.num_earlier == 0 => Reply::status(500),
        _ => Reply::ok(&jpeg(8 + number % 50, 30, number as u8)),
    };
    reply.delivered(Delivery::Late(Duration::from_millis(u64::from(number * 37 % 23))))
}

fn mixed_world() -> World {
    let urls: Vec<String> =
        (0..120).map(|idx| format!("http://{}/{idx}", crate::world::HOSTS[idx % 3])).collect();
    let mut world = World::new(&urls, mixed);
    world.config.number_sample_per_shard = 25;
    world
}

#[test]
fn bytes_do_not_depend_on_concurrency_or_memory() {
    let mut first = mixed_world();
    first.config.in_flight = 1;
    let report = first.run();
    assert_eq!((report.tally.seen, report.num_shards), (120, 5));
    assert_eq!(report.tally.rejected["not-found"], 17);
    assert_eq!(first.num_retries(), 17);
    for (in_flight, per_host, reorder_buffer_bytes) in [(64, 64, 1 << 20), (10, 4, 0)] {
        let mut other = mixed_world();
        other.config.in_flight = in_flight;
        other.config.per_host_in_flight = per_host;
        other.config.reorder_buffer_bytes = reorder_buffer_bytes;
        assert_eq!(other.run(), report);
        let (expected, found) = (first.outputs(), other.outputs());
        assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>());
        for (name, bytes) in expected {
            assert!(found[&name] == bytes, "{name} differs with {in_flight} in flight");
        }
    }
}

#[test]
fn a_shard_is_tar_table_and_stats() {
    let world = mixed_world();
    world.run();
    let names: Vec<_> = world.outputs().into_keys().collect();
    let expected: Vec<_> = (0..5)
        .flat_map(|idx| {
            [format!("{idx:05}.parquet"), format!("{idx:05}.tar"), format!("{idx:05}_stats.json")]
        })
        .chain(["shard_numbers.json".to_owned()])
        .collect();
    assert_eq!(names, expected);
    assert!(world.output_names().contains(&"00004_network.local.json".to_owned()));
    let stats = String::from_utf8(world.outputs()["00004_stats.json"].clone()).unwrap();
    let expected = r#"{
    "count": 20,
    "successes": 17,
    "failed_to_download": 3,
    "failed_to_resize": 0,
    "status_dict": {
        "not-found": 3,
        "success": 17
    },
    "rejected": {
        "not-found": 3
    },
"#;
    assert!(stats.starts_with(expected), "{stats}");
}

#[test]
fn samples_are_those_of_img2dataset() {
    let urls = ["http://a.test/0".to_owned(), "http://a.test/3".to_owned(), "http://a.test/4".to_owned()];
    let mut world = World::new(&urls, mixed);
    let list = "{\"url\": \"http://a.test/0\", \"caption\": \"caf\u{e9} \u{1f600}\", \"uid\": \"u0\", \"clip\": 0.25}\n\
        {\"url\": \"http://a.test/3\", \"caption\": \"gone\", \"uid\": \"u1\", \"clip\": 1}\n\
        {\"url\": \"http://a.test/4\", \"caption\": null, \"uid\": \"u2\"}\n";
    write_atomic(&world.dir.path().join("urls.jsonl"), list.as_bytes()).unwrap();
    world.config.save_additional_columns = vec!["clip".to_owned()];
    world.run();

    let reader = ShardReader::open(&world.out_dir().join("00000.tar")).unwrap();
    let samples: Vec<_> = reader.map(Result::unwrap).collect();
    assert_eq!(
        samples.iter().map(|sample| sample.key.as_str()).collect::<Vec<_>>(),
        ["00000000", "00000002"]
    );
    let members =
        |idx: usize| samples[idx].members.iter().map(|member| member.extension.as_str()).collect::<Vec<_>>();
    assert_eq!((members(0), members(1)), (vec!["jpg", "json", "txt"], vec!["jpg", "json", "txt"]));
    assert_eq!(samples[0].caption().unwrap(), Some("caf\u{e9} \u{1f600}"));
    assert_eq!(samples[1].caption().unwrap(), Some(""));
    // 8 pixels are not more than `image_size`, so the downloaded bytes are stored.
    let original = jpeg(8, 30, 0);
    assert_eq!(samples[0].image().unwrap().data, original);
    let metadata = std::str::from_utf8(&samples[0].member("json").unwrap().data).unwrap();
    let expected = r#"{
    "uid": "u0",
    "clip": 0.25,
    "caption": "caf\u00e9 \ud83d\ude00",
    "url": "http://a.test/0",
    "key": "00000000",
    "status": "success",
    "error_message": null,
    "width": 8,
    "height": 30,
    "original_width": 8,
    "original_height": 30,
    "exif": "{}",
    "sha256": "#;
    assert!(metadata.starts_with(expected), "{metadata}");
    let scaled: serde_json::Value = samples[1].metadata().unwrap().unwrap();
    let size = |name: &str| scaled[name].as_u64().unwrap();
    assert_eq!((size("width"), size("height")), (14, 40), "the shorter side is below 16 already");
}

#[test]
fn the_table_has_a_row_for_every_url() {
    let urls: Vec<String> = [0, 3, 33].map(|number| format!("http://a.test/{number}")).to_vec();
    let world = World::new(&urls, mixed);
    world.run();
    let file = File::open(world.out_dir().join("00000.parquet")).unwrap();
    let batches: Vec<_> = ParquetRecordBatchReaderBuilder::try_new(file)
        .unwrap()
        .build()
        .unwrap()
        .map(Result::unwrap)
        .collect();
    let batch = &batches[0];
    let schema = batch.schema();
    let columns: Vec<_> =
        schema.fields().iter().map(|field| (field.name().as_str(), field.data_type())).collect();
    let text = |name| (name, &DataType::Utf8);
    let size = |name| (name, &DataType::Int32);
    let expected = [
        ["uid", "caption", "url", "key", "status", "error_message"].map(text).to_vec(),
        ["width", "height", "original_width", "original_height"].map(size).to_vec(),
        ["exif", "sha256"].map(text).to_vec(),
    ];
    assert_eq!(columns, expected.concat());

    let column = |name: &str| -> Vec<Option<String>> {
        let column = batch.column_by_name(name).unwrap();
        match column.as_string_opt::<i32>() {
            Some(text) => text.iter().map(|value| value.map(str::to_owned)).collect(),
            None => column
                .as_primitive::<Int32Type>()
                .iter()
                .map(|value| value.map(|value| value.to_string()))
                .collect(),
        }
    };
    let some = |values: [&str; 3]| values.map(|value| (value != "-").then(|| value.to_owned())).to_vec();
    assert_eq!(column("key"), some(["00000000", "00000001", "00000002"]));
    assert_eq!(column("uid"), some(["uid-0", "uid-1", "uid-2"]));
    assert_eq!(column("status"), some(["success", "failed_to_download", "success"]));
    assert_eq!(column("error_message"), some(["-", "not-found", "-"]));
    // 33 is 41 by 30, scaled to 16 on the shorter side: 41 * 16 / 30 = 21.9.
    assert_eq!(column("width"), some(["8", "-", "22"]));
    assert_eq!(column("height"), some(["30", "-", "16"]));
    assert_eq!(column("original_width"), some(["8", "-", "41"]));
    assert_eq!(column("exif"), some(["{}", "-", "{}"]));
    assert_eq!(column("sha256").iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
}

#[test]
fn carried_numbers_keep_their_type() {
    let mut world = World::new(&[], mixed);
    write_atomic(
        &world.dir.path().join("urls.jsonl"),
        b"{\"url\": \"x\", \"clip\": 1}\n{\"url\": \"y\", \"clip\": 0.5}\n",
    )
    .unwrap();
    world.config.save_additional_columns = vec!["clip".to_owned()];
    assert_eq!(world.run().tally.rejected["bad-url"], 2);
    let file = File::open(world.out_dir().join("00000.parquet")).unwrap();
    let mut batches = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
    let batch = batches.next().unwrap().unwrap();
    let values = batch.column_by_name("clip").unwrap().as_primitive::<Float64Type>().values().to_vec();
    assert_eq!(values, [1.0, 0.5]);
}

#[test]
fn digests_are_computed_and_verified() {
    let mut world = World::new(&[], |_| Reply::ok(&jpeg(8, 30, 0)));
    let digest = "0cc175b9c0f1b6a831c399e269772661";
    let list =
        format!("{{\"url\": \"http://a.test/0\", \"md\": \"{digest}\"}}\n{{\"url\": \"http://a.test/1\"}}\n");
    write_atomic(&world.dir.path().join("urls.jsonl"), list.as_bytes()).unwrap();
    world.config.compute_hash = ComputeHash::Md5;
    let report = world.run();
    assert_eq!((report.tally.kept, report.duplicate_downloads), (2, Some(1)));
    let mut reader = ShardReader::open(&world.out_dir().join("00000.tar")).unwrap();
    let metadata: serde_json::Value = reader.next().unwrap().unwrap().metadata().unwrap().unwrap();
    let computed = metadata["md5"].as_str().unwrap().to_owned();
    assert_eq!((computed.len(), metadata.get("sha256")), (32, None));

    // The right digest passes, the wrong one and a missing one do not.
    let list = format!(
        "{{\"url\": \"http://a.test/0\", \"md\": \"{computed}\"}}\n{{\"url\": \"http://a.test/1\", \"md\": \"{digest}\"}}\n{{\"url\": \"http://a.test/2\"}}\n"
    );
    write_atomic(&world.dir.path().join("urls.jsonl"), list.as_bytes()).unwrap();
    std::fs::remove_dir_all(world.out_dir()).unwrap();
    world.config.verify_hash = Some(("md".to_owned(), ComputeHash::Md5));
    let report = world.run();
    assert_eq!((report.tally.kept, report.tally.rejected["hash-mismatch"]), (1, 2));
    assert_eq!(report.failed_to_download, 2);

    std::fs::remove_dir_all(world.out_dir()).unwrap();
    world.config.verify_hash = None;
    world.config.compute_hash = ComputeHash::None;
    assert_eq!(world.run().duplicate_downloads, None);
}
