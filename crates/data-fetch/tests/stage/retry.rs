//! Rows that failed are fetched again, and nothing else is.

use crate::server::Reply;
use crate::world::{World, jpeg};
use oqvl_data_fetch::{DataFetchError, RetryFailed};
use oqvl_shard_io::write_atomic;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// 30 URLs in shards of ten. While the world is ill, every third answers 500; 4 and 14 are gone for ever.
fn world() -> (World, Arc<AtomicBool>) {
    let healed = Arc::new(AtomicBool::new(false));
    let is_healed = Arc::clone(&healed);
    let urls: Vec<String> = (0..30).map(|idx| format!("http://a.test/{idx}")).collect();
    let mut world = World::new(&urls, move |request| {
        let number: u8 = request.path.trim_start_matches('/').parse().unwrap();
        match number {
            4 | 14 => Reply::status(404),
            _ if number.is_multiple_of(3) && number < 20 && !is_healed.load(Ordering::Relaxed) => {
                Reply::status(500)
            }
            _ => Reply::ok(&jpeg(20, 20, number)),
        }
    });
    world.config.number_sample_per_shard = 10;
    world.config.retries = 0;
    (world, healed)
}

fn undisturbed() -> BTreeMap<String, Vec<u8>> {
    let (world, healed) = world();
    healed.store(true, Ordering::Relaxed);
    world.run();
    world.outputs()
}

#[test]
fn failed_rows_are_fetched_again_and_the_result_is_that_of_a_lucky_run() {
    let (mut world, healed) = world();
    let report = world.run();
    assert_eq!((report.tally.kept, report.tally.rejected["server-error"]), (21, 7));
    let before = world.outputs();

    // Nothing has changed out there: the same rows fail, and no file is touched.
    world.config.retry_failed = RetryFailed::Switch(true);
    let num_requests = world.server.requests().len();
    assert_eq!(world.run().tally.rejected, report.tally.rejected);
    assert_eq!(world.outputs(), before);
    let asked: Vec<_> =
        world.server.requests()[num_requests..].iter().map(|request| request.path.clone()).collect();
    assert_eq!(asked.len(), 7, "{asked:?}");
    assert!(asked.iter().all(|path| !["/4", "/14"].contains(&path.as_str())), "404 is final: {asked:?}");

    healed.store(true, Ordering::Relaxed);
    let report = world.run();
    assert_eq!((report.tally.kept, report.tally.num_rejected()), (28, 2));
    let (found, expected) = (world.outputs(), undisturbed());
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, bytes) in expected {
        assert!(found[&name] == bytes, "{name} differs from that of an undisturbed run");
    }
    assert_eq!(found["00002.tar"], before["00002.tar"], "a shard without failures");

    // Now there is nothing to retry.
    let num_requests = world.server.requests().len();
    world.run();
    assert_eq!(world.server.requests().len(), num_requests);
}

#[test]
fn only_the_chosen_reasons_are_retried() {
    let (mut world, healed) = world();
    world.run();
    healed.store(true, Ordering::Relaxed);
    world.config.retry_failed = RetryFailed::Reasons(vec!["timeout".to_owned()]);
    assert_eq!(world.run().tally.rejected["server-error"], 7);
    world.config.retry_failed = RetryFailed::Reasons(vec!["server-error".to_owned()]);
    assert_eq!(world.run().tally.num_rejected(), 2);
}

#[test]
fn what_a_killed_run_left_is_completed_or_cleared() {
    let (mut world, healed) = world();
    world.run();
    let ill = world.outputs();
    healed.store(true, Ordering::Relaxed);
    world.config.retry_failed = RetryFailed::Switch(true);
    world.run();
    let well = world.outputs();

    // Killed after the first of the moves: the tar is new, the rest is old.
    let out_dir = world.out_dir();
    let restore = |outputs: &BTreeMap<String, Vec<u8>>| {
        for (name, bytes) in outputs {
            write_atomic(&out_dir.join(name), bytes).unwrap();
        }
    };
    restore(&ill);
    write_atomic(&world.out_dir().join("00001.tar"), &well["00001.tar"]).unwrap();
    let directory = world.out_dir().join(".retry-00001");
    std::fs::create_dir(&directory).unwrap();
    for name in ["00001.parquet", "00001_stats.json"] {
        write_atomic(&directory.join(name), &well[name]).unwrap();
    }
    write_atomic(&directory.join("complete"), b"").unwrap();
    let mut config = world.config.clone();
    config.retry_failed = RetryFailed::Switch(false);
    std::mem::swap(&mut world.config, &mut config);
    let num_requests = world.server.requests().len();
    assert_eq!(world.run().tally.rejected["server-error"], 4, "shard 1 is well, shard 0 is not");
    assert_eq!(world.server.requests().len(), num_requests);
    assert_eq!(world.outputs()["00001.parquet"], well["00001.parquet"]);
    assert!(!directory.exists());

    // Killed before all new files were there: they go, the old ones stay.
    restore(&ill);
    std::fs::create_dir(&directory).unwrap();
    write_atomic(&directory.join("00001.tar"), b"half a tar").unwrap();
    world.run();
    assert_eq!(world.outputs(), ill);
    assert!(!directory.exists());
    std::mem::swap(&mut world.config, &mut config);
    world.run();
    assert_eq!(world.outputs(), well);
}

#[test]
fn a_table_that_does_not_fit_its_tar_is_an_error_with_a_name() {
    let (mut world, healed) = world();
    world.run();
    healed.store(true, Ordering::Relaxed);
    world.config.retry_failed = RetryFailed::Switch(true);
    let tar = world.out_dir().join("00001.tar");
    std::fs::copy(world.out_dir().join("00002.tar"), &tar).unwrap();
    let error = world.try_run().unwrap_err();
    assert!(matches!(&error, DataFetchError::BrokenShard { path, .. } if *path == tar), "{error}");
}

#[test]
fn too_many_failures_fail_the_run_and_keep_the_shards() {
    let (mut world, healed) = world();
    world.config.max_failed_fraction = Some(0.25);
    let error = world.try_run().unwrap_err().to_string();
    assert!(error.starts_with("9 of 30 rows were rejected (most often: server-error, 7 times)"), "{error}");
    assert!(world.out_dir().join("00002_stats.json").exists());
    healed.store(true, Ordering::Relaxed);
    assert!(world.try_run().is_err(), "nothing was fetched again");
    world.config.retry_failed = RetryFailed::Switch(true);
    assert_eq!(world.run().tally.num_rejected(), 2);
}
