//! What is finished stays; what is missing is made again; the report does not know the difference.

use crate::server::Reply;
use crate::world::{World, jpeg};
use oqvl_data_fetch::{DataFetch, DataFetchError};
use oqvl_shard_io::write_atomic;
use oqvl_stage::{ShardRange, Stage as _};

fn world() -> World {
    let urls: Vec<String> = (0..20).map(|idx| format!("http://a.test/{idx}")).collect();
    let mut world = World::new(&urls, |request| {
        let number: u8 = request.path.trim_start_matches('/').parse().unwrap();
        // 0 and 10 are the same picture, in different shards.
        if number % 5 == 2 { Reply::status(410) } else { Reply::ok(&jpeg(20, 20, number % 10)) }
    });
    world.config.number_sample_per_shard = 6;
    world
}

#[test]
fn a_lost_shard_is_made_again_and_no_other() {
    let world = world();
    let (report, outputs) = (world.run(), world.outputs());
    assert_eq!((report.num_shards, report.tally.kept, report.duplicate_downloads), (4, 16, Some(8)));
    assert_eq!(world.server.requests().len(), 20);

    // Without its stats a shard is not finished, even if its tar is there.
    std::fs::remove_file(world.out_dir().join("00001_stats.json")).unwrap();
    std::fs::remove_file(world.out_dir().join("00001.parquet")).unwrap();
    write_atomic(&world.out_dir().join("00001.tar"), b"half a tar").unwrap();
    assert_eq!(world.run(), report);
    assert_eq!(world.outputs(), outputs);
    let again: Vec<_> = world.server.requests()[20..].iter().map(|request| request.path.clone()).collect();
    assert_eq!(again.len(), 6);
    assert!((6..12).all(|number| again.contains(&format!("/{number}"))), "{again:?}");

    assert_eq!(world.run(), report);
    assert_eq!(world.server.requests().len(), 26);

    // Nor is it without its tar, whatever its stats say.
    std::fs::remove_file(world.out_dir().join("00003.tar")).unwrap();
    assert_eq!(world.run(), report);
    assert_eq!(world.outputs(), outputs);
    assert_eq!(world.server.requests().len(), 28);
}

#[test]
fn a_shard_that_was_cut_short_is_made_again() {
    let world = world();
    let (report, outputs) = (world.run(), world.outputs());
    type Damage = fn(&mut Vec<u8>);
    let cut: Damage = |bytes| bytes.truncate(bytes.len() / 2);
    let damages: [(&str, Damage); 6] = [
        ("00001.tar", cut),
        // At a block, in front of the two that close it.
        ("00001.tar", |bytes| bytes.truncate(bytes.len() - 1024)),
        ("00001.tar", Vec::clear),
        ("00001.parquet", cut),
        ("00001_stats.json", cut),
        ("00001_stats.json", Vec::clear),
    ];
    for (round, (name, damage)) in damages.into_iter().enumerate() {
        let mut bytes = outputs[name].clone();
        damage(&mut bytes);
        write_atomic(&world.out_dir().join(name), &bytes).unwrap();
        assert_eq!(world.run(), report, "{name}");
        assert_eq!(world.outputs(), outputs, "{name}");
        assert_eq!(world.server.requests().len(), 20 + 6 * (round + 1), "{name}");
    }
    // A copy of the output goes without the files that tell of one run.
    std::fs::remove_file(world.out_dir().join("00001_network.local.json")).unwrap();
    assert_eq!(world.run(), report);
    assert_eq!(world.server.requests().len(), 20 + 6 * damages.len());
}

#[test]
fn the_report_is_that_of_the_answers_and_not_of_the_way_to_them() {
    let reports = [false, true].map(|is_flaky| {
        let mut world = World::new(&["http://a.test/1".to_owned()], move |request| {
            let is_first = request.num_earlier == 0;
            if is_flaky && is_first { Reply::status(503) } else { Reply::ok(&jpeg(20, 20, 1)) }
        });
        world.config.retries = 1;
        let report = world.run();
        assert_eq!(world.num_retries(), u64::from(is_flaky));
        serde_json::to_value(report).unwrap()
    });
    assert_eq!(reports[0], reports[1]);
}

#[test]
fn shares_add_up_to_the_whole() {
    let whole = world();
    let report = whole.run();
    let parts = world();
    let mut seen = 0;
    for range in ["0..1", "1..3", "3..9"] {
        let mut run = parts.context();
        run.shards = Some(ShardRange::parse(range).unwrap());
        let part = DataFetch::run(&parts.config, &run).unwrap();
        seen += part.tally.seen;
    }
    assert_eq!(seen, report.tally.seen);
    assert_eq!(parts.outputs(), whole.outputs());
    assert_eq!(parts.run(), report);
    assert_eq!(parts.server.requests().len(), 20);
}

#[test]
fn shards_of_another_list_are_refused() {
    let world = world();
    world.run();
    let mut longer = std::fs::read(world.dir.path().join("urls.jsonl")).unwrap();
    longer.extend_from_slice(b"{\"url\": \"http://a.test/20\"}\n");
    write_atomic(&world.dir.path().join("urls.jsonl"), &longer).unwrap();
    let error = world.try_run().unwrap_err();
    assert!(matches!(error, DataFetchError::ForeignShard { expected: 3, found: 2, .. }), "{error}");
}

#[test]
fn a_shard_that_cannot_be_written_ends_the_run() {
    let world = world();
    // A folder where the tar should go.
    std::fs::create_dir_all(world.out_dir().join("00002.tar")).unwrap();
    let error = world.try_run().unwrap_err();
    assert!(matches!(&error, DataFetchError::Shard(_)) && error.to_string().contains("00002.tar"), "{error}");
    assert!(!world.output_names().contains(&"00002_stats.json".to_owned()));
}
