//! Stages that know nothing of object stores, with inputs and outputs in one.

use oqvl_shard_io::{ShardReader, list_shards};
use oqvl_testkit::{S3Server, tiny_shard};
use oqvl_tests::{scratch_dir, stage_binary};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Runs the mixer over the shards of the bucket and returns what it wrote to standard error.
fn mix(server: S3Server, work_dir: &Path, upload_to: &str) -> String {
    let mut command = Command::new(stage_binary("mixer"));
    command.envs(S3Server::environment(server.address)).env("HOME", work_dir);
    command.arg("--work-dir").arg(work_dir);
    for set in [
        "seed=7",
        "mixer.shards=s3://pool/shards/",
        "mixer.select=all",
        "mixer.dedup=[]",
        "mixer.samples_per_shard=3",
        &format!("stores.upload_to={upload_to}"),
    ] {
        command.args(["--set", set]);
    }
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    stderr
}

#[test]
fn the_mixer_reads_shards_from_a_bucket_and_sends_its_own_to_one() {
    let Some(server) = S3Server::get() else { return };
    let dir = scratch_dir("object-stores");
    let pool = server.bucket("pool");
    let captions = ["one", "two", "three", "four", "five"];
    let keys: Vec<String> = (0..captions.len()).map(|idx| format!("{idx:09}")).collect();
    let pairs: Vec<(&str, &str)> = keys.iter().map(String::as_str).zip(captions).collect();
    for (name, some) in [("00000", &pairs[..2]), ("00001", &pairs[2..])] {
        let shard = tiny_shard(&dir.join("local"), name, some);
        pool.put(&format!("shards/{name}.tar"), &std::fs::read(shard).unwrap());
    }
    let mixed = server.bucket("mixed");
    let work_dir = dir.join("work");
    std::fs::create_dir(&work_dir).unwrap();
    let said = mix(server, &work_dir, "s3://mixed/run");
    assert!(said.contains("fetched 2 of 2 files"), "{said}");

    let shards = list_shards(&work_dir.join("mixer")).unwrap();
    let read = |shard: &Path| ShardReader::open(shard).unwrap().map(Result::unwrap).collect::<Vec<_>>();
    let found: Vec<String> = shards
        .iter()
        .flat_map(|shard| read(shard))
        .map(|sample| sample.caption().unwrap().unwrap().to_owned())
        .collect();
    assert_eq!(found, captions);
    let sent: BTreeMap<String, Vec<u8>> =
        mixed.keys().into_iter().map(|key| (key.clone(), mixed.get(&key))).collect();
    for shard in &shards {
        let name = shard.file_name().unwrap().to_str().unwrap();
        assert!(sent[&format!("run/mixer/{name}")] == std::fs::read(shard).unwrap(), "{name}");
    }
    assert!(sent.contains_key("run/mixer/manifest.json"));
    let said = mix(server, &work_dir, "s3://mixed/run");
    assert!(said.contains("up to date") && !said.contains("fetched"), "{said}");
    assert!(said.contains("sent 0 files"), "{said}");
}
