//! Output that is sent to a bucket: all of it, once, whatever happens in between.

use crate::pictures::{self, csv};
use crate::program::{Program, appears};
use crate::proxy::Proxy;
use oqvl_shard_io::{Claim, Destination, MirrorOptions, Sent, Store, StoreError, StoreSettings, StoreUri};
use oqvl_shard_io::{list_shards, write_atomic};
use oqvl_testkit::{Bucket, S3Server};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// A local list of `num_rows` pictures, and where the output goes.
fn program(num_rows: usize, delay: Duration, store: SocketAddr, upload_to: &str) -> Program {
    let captions: Vec<String> = (0..num_rows).map(|idx| format!("caption {idx}")).collect();
    let captions: Vec<&str> = captions.iter().map(String::as_str).collect();
    let mut program = Program::new("list.csv");
    let list = csv(pictures::serve(delay), &captions);
    write_atomic(&program.dir.path().join("list.csv"), list.as_bytes()).unwrap();
    program.with_s3(store);
    program.set("stores.upload_to", &format!("\"{upload_to}\""));
    program
}

/// What lies below a prefix, without the mark of the run.
fn objects(bucket: &Bucket, prefix: &str) -> BTreeMap<String, Vec<u8>> {
    let keys = bucket.keys().into_iter().filter_map(|key| Some(key.strip_prefix(prefix)?.to_owned()));
    let keys = keys.filter(|name| name != "fingerprint.json");
    keys.map(|name| (name.clone(), bucket.get(&format!("{prefix}{name}")))).collect()
}

#[test]
fn all_output_is_sent_and_only_once() {
    let Some(server) = S3Server::get() else { return };
    let bucket = server.bucket("sent");
    let proxy = Proxy::start(server.address);
    let mut program = program(10, Duration::ZERO, proxy.address, "s3://sent/run 1/");
    let run = program.succeed();
    assert!(run.stderr.contains("sent 12 files, 0 were there already"), "{}", run.stderr);
    assert_eq!(objects(&bucket, "run 1/data-fetch/"), program.outputs());
    proxy.take_counts();
    let run = program.succeed();
    assert!(run.stderr.contains("sent 0 files, 12 were there already"), "{}", run.stderr);
    assert!(run.stderr.contains("up to date"), "{}", run.stderr);

    // One that is gone, and one that is not what it was though it is as long.
    bucket.delete("run 1/data-fetch/00001.tar");
    let mut damaged = program.outputs()["00002.tar"].clone();
    damaged.reverse();
    bucket.put("run 1/data-fetch/00002.tar", &damaged);
    // Without our digest nobody can say more than its size.
    let run = program.succeed();
    assert!(run.stderr.contains("sent 1 files, 11 were there already"), "{}", run.stderr);
    assert_eq!(bucket.get("run 1/data-fetch/00001.tar"), program.outputs()["00001.tar"]);

    // An extension that fails before its first download gives the place back.
    program.set("data-fetch.incremental_mode", "extend");
    program.set("data-fetch.caption_col", "nope");
    assert!(program.fail(2).contains("data-fetch.caption_col: names column `nope`"));
    program.unset("data-fetch.caption_col");
    program.set("data-fetch.incremental_mode", "incremental");
    assert!(program.succeed().stderr.contains("up to date"));

    // So does one that finds a file of somebody else's here.
    let notes = program.out_dir().join("notes.txt");
    write_atomic(&notes, b"mine").unwrap();
    program.set("data-fetch.incremental_mode", "extend");
    program.set("data-fetch.min_image_size", "1");
    assert!(program.fail(2).contains("notes.txt was not written by stage"));
    std::fs::remove_file(&notes).unwrap();
    program.unset("data-fetch.min_image_size");
    program.set("data-fetch.incremental_mode", "incremental");
    assert!(program.succeed().stderr.contains("up to date"));

    // Another run's place is left alone.
    program.set("data-fetch.encode_quality", "80");
    program.set("data-fetch.incremental_mode", "overwrite");
    let last = program.fail(2);
    assert!(last.contains("s3://sent/run 1/data-fetch: holds the output of another run"), "{last}");
    bucket.put("mine/data-fetch/notes.txt", b"mine");
    program.set("stores.upload_to", "\"s3://sent/mine\"");
    let last = program.fail(2);
    assert!(last.contains("s3://sent/mine/data-fetch: holds files that no run of ours put there"), "{last}");
    program.set("stores.upload_to", "\"s3://no-such-bucket/x\"");
    assert!(program.fail(1).contains("there is no bucket `no-such-bucket`"));
    program.set("stores.upload_to", "\"http://host/x\"");
    assert!(program.fail(2).contains("stores.upload_to: expected s3://bucket/prefix"));
}

/// A run that ends before it has made anything leaves its mark. The next one from here has another, and takes the place.
#[test]
fn a_place_that_was_only_marked_goes_to_the_corrected_run() {
    let Some(server) = S3Server::get() else { return };
    let bucket = server.bucket("marked");
    let mut program = program(12, Duration::ZERO, server.address, "s3://marked/run");
    program.set("data-fetch.caption_col", "nope");
    assert!(program.fail(2).contains("data-fetch.caption_col: names column `nope`"));
    assert_eq!(bucket.keys().len(), 1, "the mark");
    // A neighbour's run of the same place is not ours to take it from.
    bucket.put("run/data-fetch/00000.tar", b"theirs");
    program.unset("data-fetch.caption_col");
    assert!(program.fail(2).contains("holds the output of another run"));
    bucket.delete("run/data-fetch/00000.tar");
    program.succeed();
    assert_eq!(objects(&bucket, "run/data-fetch/"), program.outputs());
}

#[test]
fn a_killed_run_is_completed_and_nothing_is_doubled() {
    let Some(server) = S3Server::get() else { return };
    let bucket = server.bucket("killed");
    let program = program(120, Duration::from_millis(150), server.address, "s3://killed/run");
    let mut undisturbed = BTreeMap::new();
    for round in 0..3 {
        let mut child = program.spawn();
        // Shards are sent while others are still being fetched.
        let tar = format!("run/data-fetch/{:05}_stats.json", round * 5);
        assert!((0..1000).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            bucket.keys().contains(&tar)
        }));
        child.kill().unwrap();
        child.wait().unwrap();
        undisturbed = objects(&bucket, "run/data-fetch/");
        assert!(!undisturbed.contains_key("manifest.json"), "it was not finished yet");
    }
    program.succeed();
    let sent = objects(&bucket, "run/data-fetch/");
    assert_eq!(sent, program.outputs());
    // What was there before the kill is what is there now.
    assert!(undisturbed.iter().all(|(name, content)| sent[name] == *content));
    assert_eq!(program.captions().len(), 120);
}

#[test]
fn a_store_that_goes_away_costs_no_output() {
    let Some(server) = S3Server::get() else { return };
    let bucket = server.bucket("away");
    let proxy = Proxy::start(server.address);
    let program = program(24, Duration::ZERO, proxy.address, "s3://away/run");
    proxy.cut_after(20_000);
    let last = program.fail(1);
    assert!(last.contains("s3://away/run/data-fetch") && last.contains("cannot be reached"), "{last}");
    assert!(program.out_dir().join("manifest.json").exists(), "the stage itself is done");
    proxy.mend();
    let run = program.succeed();
    assert!(run.stderr.contains("up to date"), "{}", run.stderr);
    assert_eq!(objects(&bucket, "run/data-fetch/"), program.outputs());
}

#[test]
fn shares_send_their_own() {
    let Some(server) = S3Server::get() else { return };
    let bucket = server.bucket("shares");
    let program = program(12, Duration::ZERO, server.address, "s3://shares/run");
    let run = program.run_with(&["--shards", "0..2"]);
    assert_eq!(run.code, Some(0), "{}", run.stderr);
    let names: Vec<_> = objects(&bucket, "run/data-fetch/").into_keys().collect();
    let shard = |number: u32| {
        ["parquet", "tar", "_stats.json"].map(|end| {
            if end.starts_with('_') { format!("{number:05}{end}") } else { format!("{number:05}.{end}") }
        })
    };
    let expected = [
        shard(0).to_vec(),
        shard(1).to_vec(),
        vec!["manifest.0-2.json".to_owned(), "report.0-2.json".to_owned()],
    ];
    assert_eq!(names, expected.concat());
    let run = program.run_with(&["--shards", "2..9"]);
    assert!(
        run.stderr.contains("--shards 2..9 reaches beyond the last shard: there are 3"),
        "{}",
        run.stderr
    );
    program.succeed();
    assert!(objects(&bucket, "run/data-fetch/").contains_key("manifest.json"));
}

fn settings(address: SocketAddr) -> StoreSettings {
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    StoreSettings {
        aws: vec![
            pair("AWS_ACCESS_KEY_ID", "test"),
            pair("AWS_SECRET_ACCESS_KEY", "test"),
            pair("AWS_ENDPOINT_URL", &format!("http://{address}")),
        ],
        retry: Duration::from_secs(1),
        ..StoreSettings::default()
    }
}

/// Bytes without a pattern that a part could be mistaken by.
fn noise(num_bytes: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let byte = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..num_bytes).map(byte).collect()
}

#[test]
fn large_files_go_in_parts_and_come_back_whole() {
    let Some(server) = S3Server::get() else { return };
    let bucket = server.bucket("large");
    let dir = tempfile::tempdir().unwrap();
    let files: Vec<(String, Vec<u8>)> = [0, 1, (8 << 20) - 1, 8 << 20, (8 << 20) + 1, 50 << 20]
        .iter()
        .enumerate()
        .map(|(idx, num_bytes)| (format!("{idx:05}.tar"), noise(*num_bytes)))
        .collect();
    let uri = || StoreUri::parse("s3://large/shards").unwrap();
    let claim = Claim { name: "mark", content: b"run 1", replaces: None, replaces_alone: None };
    let never = || false;
    for expected in [Sent::Now, Sent::Before] {
        let destination = Destination::claim(settings(server.address), uri(), claim, &never).unwrap();
        for (name, content) in &files {
            let path = dir.path().join(name);
            write_atomic(&path, content).unwrap();
            assert_eq!(destination.send(&path, name, &never).unwrap(), expected, "{name}");
        }
    }
    // As long as before, and something else.
    let changed = dir.path().join("00005.tar");
    write_atomic(&changed, &noise((50 << 20) + 1)[1..]).unwrap();
    let destination = Destination::claim(settings(server.address), uri(), claim, &never).unwrap();
    assert_eq!(destination.send(&changed, "00005.tar", &never).unwrap(), Sent::Now);
    assert!(bucket.get("shards/00005.tar") == noise((50 << 20) + 1)[1..]);
    let other =
        Claim { content: b"run 2", replaces: Some(b"run 0"), replaces_alone: Some(b"run 1"), ..claim };
    let error = Destination::claim(settings(server.address), uri(), other, &never).unwrap_err();
    assert!(matches!(error, StoreError::ForeignDestination { .. }), "{error}");
    let heir = Claim { replaces: Some(b"run 1"), ..other };
    assert!(Destination::claim(settings(server.address), uri(), heir, &never).is_ok());
    assert_eq!(bucket.get("shards/mark"), b"run 2");

    // And back: what a stage does whose input is `s3://large/shards`.
    let store = Store::new(settings(server.address)).unwrap();
    let root = dir.path().join("mirror");
    let options = MirrorOptions {
        root: &root,
        max_bytes: 1 << 30,
        wants: &|_| true,
        is_stopped: &never,
        progress: &|_, _| (),
    };
    assert_eq!(store.find_mirror(&uri(), &options).unwrap(), None);
    let mirror = store.mirror(&uri(), &options).unwrap();
    assert_eq!((mirror.files.len(), mirror.num_fetched), (7, 7));
    let shards = list_shards(&mirror.path).unwrap();
    assert_eq!(shards.len(), 6);
    for (shard, (_, content)) in shards.iter().zip(&files).take(5) {
        assert!(std::fs::read(shard).unwrap() == *content, "{}", shard.display());
    }
    // One object goes, one comes: one file is fetched, one removed.
    bucket.delete("shards/00000.tar");
    bucket.put("shards/more/00006.tar", b"six");
    let mirror = store.mirror(&uri(), &options).unwrap();
    assert_eq!(mirror.num_fetched, 1);
    let names: Vec<_> = mirror.files.iter().map(|file| file.name.as_str()).collect();
    assert_eq!(
        names,
        ["00001.tar", "00002.tar", "00003.tar", "00004.tar", "00005.tar", "mark", "more/00006.tar"]
    );
    assert!(!mirror.path.join("00000.tar").exists() && mirror.path.join("more/00006.tar").exists());
    assert_eq!(store.find_mirror(&uri(), &options).unwrap().unwrap().files, mirror.files);
    let stopped = MirrorOptions { is_stopped: &|| true, ..options };
    assert!(matches!(store.mirror(&uri(), &stopped).unwrap_err(), StoreError::Interrupted));
    assert!(appears(Path::new(&mirror.path)));
}
