//! The binary under faults: killed at any moment, on a full disk.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use oqvl_shard_io::{Sample, SampleKey, ShardWriter, UidSubset};

const NUM_SHARDS: u32 = 12;
const SAMPLES_PER_SHARD: u32 = 400;

/// Shards of samples with incompressible "images", and a list of every third uid.
fn write_pool(dir: &Path) {
    std::fs::create_dir_all(dir.join("pool")).unwrap();
    let mut listed = Vec::new();
    for shard in 0..NUM_SHARDS {
        let mut writer = ShardWriter::create(&dir.join(format!("pool/{shard:05}.tar"))).unwrap();
        for index in 0..SAMPLES_PER_SHARD {
            let number = shard * SAMPLES_PER_SHARD + index;
            let mut image = vec![0; 6000];
            blake3::Hasher::new().update(&number.to_le_bytes()).finalize_xof().fill(&mut image);
            let uid = format!("{:032x}", u128::from(number) * 0x1234_5678_9abc_def1);
            if number.is_multiple_of(3) {
                listed.push(uid.parse().unwrap());
            }
            let json = serde_json::json!({"uid": uid, "width": number % 700, "url": format!("u{number}")});
            let mut sample = Sample::new(SampleKey::new(format!("{number:09}")).unwrap());
            sample.push("jpg", image);
            sample.push("json", serde_json::to_vec(&json).unwrap());
            sample.push("txt", format!("caption {}", number / 2).into_bytes());
            let _locations = writer.push(&sample).unwrap();
        }
        let _summary = writer.finish().unwrap();
    }
    listed.into_iter().collect::<UidSubset>().write(&dir.join("list.npy")).unwrap();
}

fn mixer(work_dir: &Path, input_dir: &Path, threads: u32) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oqvl-mixer"));
    command.arg("--work-dir").arg(work_dir);
    let input = input_dir.display();
    let sets = [
        "seed=7".to_owned(),
        format!("threads={threads}"),
        format!("mixer.shards=\"{input}/pool\""),
        "mixer.select=union".to_owned(),
        "mixer.dedup=[\"uid\", \"content\", \"caption\"]".to_owned(),
        "mixer.samples_per_shard=100".to_owned(),
        "mixer.memory_limit_mib=64".to_owned(),
        format!(
            "mixer.subset=[{{ name = \"list\", uids = \"{input}/list.npy\" }}, \
             {{ name = \"wide\", where = \"width > 350\" }}]"
        ),
    ];
    for set in sets {
        command.arg("--set").arg(set);
    }
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

fn finish(mut command: Command) -> Output {
    command.output().unwrap()
}

/// Everything the stage made of its input, by name, without what speaks of one run.
fn outputs(out_dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut outputs = BTreeMap::new();
    for entry in std::fs::read_dir(out_dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if !name.starts_with('.') && name != "manifest.json" {
            outputs.insert(name, std::fs::read(&path).unwrap());
        }
    }
    outputs
}

/// How many more files each of the runs finishes before it is killed: moments of its start, of the first pass, of the
/// selection and of the second pass.
const KILLED_AFTER: [usize; 9] = [0, 1, 4, 8, 8, 8, 8, 8, 8];

/// Finished files of the output and of the index.
fn num_files(out_dir: &Path) -> usize {
    let is_finished = |name: &str| !name.starts_with('.');
    let count = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name().to_str().is_some_and(is_finished)).count()
    };
    count(out_dir) + count(&out_dir.join(".index"))
}

/// Starts a run and kills it when it has finished so many files more than there were; whether it lived until then.
fn is_killed_after(num_more_files: usize, work_dir: &Path, input_dir: &Path) -> bool {
    let out_dir = work_dir.join("mixer");
    let before = num_files(&out_dir);
    let mut child = mixer(work_dir, input_dir, 2).spawn().unwrap();
    let mut is_over = false;
    while !is_over && num_files(&out_dir) < before + num_more_files {
        std::thread::sleep(Duration::from_micros(500));
        is_over = child.try_wait().unwrap().is_some();
    }
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    // Who was killed has no exit code; who was not must have come to a good end.
    assert!(output.status.code().is_none_or(|code| code == 0), "{}", String::from_utf8_lossy(&output.stderr));
    output.status.code().is_none()
}

#[test]
fn a_run_killed_at_many_moments_ends_like_an_undisturbed_one() {
    let dir = tempfile::tempdir().unwrap();
    write_pool(dir.path());
    let undisturbed = dir.path().join("undisturbed");
    std::fs::create_dir(&undisturbed).unwrap();
    let output = finish(mixer(&undisturbed, dir.path(), 1));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected = outputs(&undisturbed.join("mixer"));
    assert!(expected.len() > 20 && expected.contains_key("00000003.parquet"), "{:?}", expected.keys());
    assert!(!undisturbed.join("mixer/.index").exists());

    // A loaded machine may not look in time: then once more from the beginning.
    let is_killed_throughout = |attempt: &usize| {
        let killed = dir.path().join(format!("killed_{attempt}"));
        std::fs::create_dir(&killed).unwrap();
        KILLED_AFTER.into_iter().all(|num_files| is_killed_after(num_files, &killed, dir.path()))
    };
    let attempt = (0..10).find(is_killed_throughout).unwrap_or_else(|| {
        panic!("a run is over before all its moments were met; it leaves {} files", expected.len())
    });
    let killed = dir.path().join(format!("killed_{attempt}"));
    let output = finish(mixer(&killed, dir.path(), 2));
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found = outputs(&killed.join("mixer"));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    for (name, bytes) in &expected {
        assert!(found[name] == *bytes, "{name} differs");
    }
    assert!(!killed.join("mixer/.index").exists());
}

#[test]
fn a_full_disk_is_one_sentence_and_a_later_run_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    write_pool(dir.path());
    let small = dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let mount = |size: &str, more: &str| {
        let options = format!("size={size}{more}");
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(&small).output();
        status.is_ok_and(|output| output.status.success())
    };
    // Room for nothing, for some of the index, for some of the shards.
    if !mount("64k", "") {
        eprintln!("skipped: a full disk needs the right to mount a tmpfs");
        return;
    }
    for size in ["64k", "400k", "4m"] {
        assert!(mount(size, ",remount"));
        let output = finish(mixer(&small, dir.path(), 2));
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{size}: {stderr}");
        let last = stderr.lines().last().unwrap_or_default();
        assert!(last.contains("No space left on device") && last.contains("small/mixer"), "{size}: {stderr}");
    }
    assert!(mount("64m", ",remount"));
    let output = finish(mixer(&small, dir.path(), 2));
    let on_small = outputs(&small.join("mixer"));
    let unmounted = Command::new("umount").arg(&small).status();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(unmounted.is_ok_and(|status| status.success()));
    let undisturbed = dir.path().join("undisturbed");
    std::fs::create_dir(&undisturbed).unwrap();
    let _output = finish(mixer(&undisturbed, dir.path(), 2));
    assert!(on_small == outputs(&undisturbed.join("mixer")));
}
