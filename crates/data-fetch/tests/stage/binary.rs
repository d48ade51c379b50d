//! The program: stopped and killed in the middle, started again.

use crate::server::{Delivery, Reply};
use crate::world::{World, jpeg, noise};
use oqvl_shard_io::write_atomic;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// A list of four shards; the host of the last two never answers until it is healed.
fn world() -> (World, Arc<AtomicBool>) {
    let healed = Arc::new(AtomicBool::new(false));
    let url = |idx| format!("http://{}/{idx}", if idx < 20 { "a.test" } else { "b.test" });
    let urls: Vec<String> = (0..40).map(url).collect();
    let is_healed = Arc::clone(&healed);
    let world = World::new(&urls, move |request| {
        let number: u8 = request.path.trim_start_matches('/').parse().unwrap();
        let reply = Reply::ok(&jpeg(20, 20, number));
        if number < 20 || is_healed.load(Ordering::Relaxed) {
            reply
        } else {
            reply.delivered(Delivery::Silent)
        }
    });
    let config = "seed = 7\n[data-fetch]\nurl_list = \"urls.jsonl\"\nhosts_file = \"hosts.local.json\"\n\
        image_size = 16\nnumber_sample_per_shard = 10\ndeadline_seconds = 300.0\n";
    write_atomic(&world.dir.path().join("run.toml"), config.as_bytes()).unwrap();
    (world, healed)
}

pub(crate) fn start(world: &World) -> Child {
    start_with(world, &[])
}

fn start_with(world: &World, sets: &[&str]) -> Child {
    command(world, sets).spawn().unwrap()
}

fn command(world: &World, sets: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_oqvl-data-fetch"));
    command.args(["--config", "run.toml", "--work-dir", "."]);
    command.args(sets.iter().flat_map(|set| ["--set", set]));
    command.current_dir(world.dir.path()).stderr(Stdio::piped());
    command
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(60), "never happened: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn signal(child: &Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
}

/// The stage's own files.
fn shards(world: &World) -> Vec<String> {
    let is_shard_file = |name: &String| name.starts_with("0000") && !name.contains(".local.");
    world.output_names().into_iter().filter(is_shard_file).collect()
}

#[test]
fn ctrl_c_leaves_finished_shards_and_a_rerun_goes_on() {
    let (world, healed) = world();
    let mut child = start(&world);
    wait_until("two shards and a hanging request", || {
        shards(&world).len() == 6 && world.server.requests().len() > 20
    });
    let interrupted = Instant::now();
    signal(&child, "-INT");
    let status = child.wait().unwrap();
    assert!(interrupted.elapsed() < Duration::from_secs(2), "{:?}", interrupted.elapsed());
    assert!(!status.success());
    assert_eq!(shards(&world).len(), 6);

    healed.store(true, Ordering::Relaxed);
    assert!(start(&world).wait().unwrap().success());
    assert_eq!(shards(&world).len(), 12);
    assert_undisturbed(&world);
}

#[test]
fn kill_leaves_nothing_half() {
    let (world, healed) = world();
    let mut child = start(&world);
    wait_until("two shards", || shards(&world).len() == 6);
    signal(&child, "-KILL");
    child.wait().unwrap();
    healed.store(true, Ordering::Relaxed);
    assert!(start(&world).wait().unwrap().success());
    assert!(world.output_names().iter().all(|name| !name.starts_with(".tmp-")), "{:?}", world.output_names());
    assert_undisturbed(&world);
}

/// Output and report equal those of a run that nobody disturbed.
fn assert_undisturbed(world: &World) {
    let (other, healed) = self::world();
    healed.store(true, Ordering::Relaxed);
    assert!(start(&other).wait().unwrap().success());
    let (found, expected) = (world.outputs(), other.outputs());
    for name in shards(&other) {
        assert!(found[&name] == expected[&name], "{name} differs");
    }
    let report = |outputs: &std::collections::BTreeMap<String, Vec<u8>>| outputs["report.json"].clone();
    assert_eq!(String::from_utf8(report(&found)), String::from_utf8(report(&expected)));
}

/// Six shards of a server that takes its time; some answers fail until it is healed.
fn slow_world() -> (World, Arc<AtomicBool>) {
    let healed = Arc::new(AtomicBool::new(false));
    let is_healed = Arc::clone(&healed);
    let urls: Vec<String> =
        (0..90).map(|idx| format!("http://{}/{idx}", crate::world::HOSTS[idx % 3])).collect();
    let world = World::new(&urls, move |request| {
        let number: u8 = request.path.trim_start_matches('/').parse().unwrap();
        let reply = if number % 4 == 1 && !is_healed.load(Ordering::Relaxed) {
            Reply::status(500)
        } else {
            Reply::ok(&noise(40, 30, number))
        };
        reply.delivered(Delivery::Late(Duration::from_millis(u64::from(number) * 7 % 30)))
    });
    let config = "seed = 7\n[data-fetch]\nurl_list = \"urls.jsonl\"\nhosts_file = \"hosts.local.json\"\n\
        image_size = 16\nnumber_sample_per_shard = 15\nretries = 0\nmax_host_failures = 0\nper_host_in_flight = 2\n";
    write_atomic(&world.dir.path().join("run.toml"), config.as_bytes()).unwrap();
    (world, healed)
}

fn finish(world: &World, sets: &[&str]) {
    let output = start_with(world, sets).wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// What the stage wrote, and its report.
fn results(world: &World) -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut outputs = world.outputs();
    outputs.retain(|name, _| name != "manifest.json");
    outputs
}

/// Starts the program and kills it, again and again, then lets it finish.
fn kill_often(world: &World, seed: u64, sets: &[&str], longest: Duration) {
    let mut random = oqvl_stage::stream(seed, "kill", 0, 0, 0);
    for _ in 0..5 {
        let mut child = start_with(world, sets);
        std::thread::sleep(longest.mul_f64(rand::Rng::random(&mut random)));
        // It may have finished before.
        let _ = child.kill();
        child.wait().unwrap();
    }
    finish(world, sets);
}

fn assert_same(found: &World, expected: &World, what: &str) {
    let (found, expected) = (results(found), results(expected));
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    for (name, bytes) in &expected {
        assert!(found[name] == *bytes, "{what}: {name} differs");
    }
}

#[test]
fn killed_at_random_moments_nothing_is_lost_or_doubled() {
    let (undisturbed, _ill) = slow_world();
    let started = Instant::now();
    finish(&undisturbed, &[]);
    let longest = started.elapsed();
    for seed in 0..3 {
        let (world, _ill) = slow_world();
        kill_often(&world, seed, &[], longest);
        assert_same(&world, &undisturbed, &format!("seed {seed}"));
    }
}

#[test]
fn killed_while_failed_rows_are_fetched_again_nothing_is_lost_or_doubled() {
    let retry = ["data-fetch.retry_failed=true"];
    let (undisturbed, healed) = slow_world();
    healed.store(true, Ordering::Relaxed);
    finish(&undisturbed, &[]);
    for seed in 0..3 {
        let (world, healed) = slow_world();
        finish(&world, &[]);
        healed.store(true, Ordering::Relaxed);
        let started = Instant::now();
        kill_often(&world, 100 + seed, &retry, Duration::from_millis(250));
        assert_same(&world, &undisturbed, &format!("seed {seed}, {:?}", started.elapsed()));
    }
}

/// The last line a failed run printed.
fn failure(mut command: Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    text.trim_end().lines().last().unwrap_or_default().to_owned()
}

#[test]
fn a_full_disk_ends_the_run_in_a_sentence_and_loses_nothing() {
    let (undisturbed, _ill) = slow_world();
    finish(&undisturbed, &[]);
    let (world, healed) = slow_world();
    std::fs::create_dir(world.out_dir()).unwrap();
    let Some(disk) = SmallDisk::mount(&world.out_dir(), "100k") else { return };
    let line = failure(command(&world, &[]));
    assert!(line.starts_with("oqvl-data-fetch: ") && line.contains("No space left on device"), "{line}");
    assert!(!world.out_dir().join("00005_stats.json").exists());
    disk.resize("20m");
    finish(&world, &[]);
    assert_same(&world, &undisturbed, "after the disk was full");

    // The same while failed rows are fetched again: the old shards are larger than what is left.
    let before = results(&world);
    disk.resize(&format!("{}k", disk.used_kib() + 30));
    healed.store(true, Ordering::Relaxed);
    let line = failure(command(&world, &["data-fetch.retry_failed=true"]));
    assert!(line.contains("No space left on device"), "{line}");
    for name in before.keys().filter(|name| name.starts_with("0000")) {
        assert!(world.out_dir().join(name).exists(), "{name} is gone");
    }
    assert!(
        world.output_names().iter().all(|name| !name.starts_with(".retry")),
        "{:?}",
        world.output_names()
    );
    disk.resize("20m");
    finish(&world, &["data-fetch.retry_failed=true"]);
    undisturbed_retry(&world);
}

fn undisturbed_retry(world: &World) {
    let (lucky, healed) = slow_world();
    healed.store(true, Ordering::Relaxed);
    finish(&lucky, &[]);
    assert_same(world, &lucky, "after the disk was full during a retry");
}

/// A file system of its own; mounting one takes root.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &std::path::Path, size: &str) -> Option<Self> {
        let options = format!("size={size},mode=0777");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(Self(at.to_path_buf()));
        }
        let thread = std::thread::current();
        let test = thread.name().unwrap_or("a test");
        eprintln!("skipped: {test} needs to mount a small tmpfs, which takes root");
        None
    }

    fn used_kib(&self) -> u64 {
        let output = Command::new("df").args(["--output=used", "-k"]).arg(&self.0).output().unwrap();
        String::from_utf8(output.stdout).unwrap().lines().nth(1).unwrap().trim().parse().unwrap()
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success());
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn a_limit_on_file_sizes_ends_the_run_in_a_sentence() {
    let (undisturbed, _ill) = slow_world();
    finish(&undisturbed, &[]);
    let (world, _ill) = slow_world();
    let inner = command(&world, &[]);
    let mut limited = Command::new("sh");
    // Units of 512 or 1024 bytes, by the shell: a shard has more of either.
    limited.args(["-c", "ulimit -f 16; exec \"$0\" \"$@\""]).arg(inner.get_program()).args(inner.get_args());
    limited.current_dir(world.dir.path()).stderr(Stdio::piped());
    let line = failure(limited);
    assert!(line.starts_with("oqvl-data-fetch: ") && line.contains("File too large"), "{line}");
    finish(&world, &[]);
    assert_same(&world, &undisturbed, "after the limit");
}

#[test]
fn lists_extend_one_another_and_each_can_be_completed() {
    let (world, _ill) = slow_world();
    let extend = "data-fetch.incremental_mode=extend";
    finish(&world, &[]);
    let first = world.outputs();
    let second_list = "{\"url\": \"http://a.test/2\"}\n{\"url\": \"http://a.test/3\"}\n";
    write_atomic(&world.dir.path().join("more.jsonl"), second_list.as_bytes()).unwrap();
    let more = "data-fetch.url_list=more.jsonl";
    finish(&world, &[extend, more]);
    let outputs = world.outputs();
    for (name, bytes) in first.iter().filter(|(name, _)| name.starts_with("0000")) {
        assert!(outputs[name] == *bytes, "{name} has changed");
    }
    let keys: Vec<String> = oqvl_shard_io::ShardReader::open(&world.out_dir().join("00006.tar"))
        .unwrap()
        .map(|sample| sample.unwrap().key.as_str().to_owned())
        .collect();
    assert_eq!(keys, ["0000600", "0000601"]);
    // Once more is no new list, and changed limits are no new request.
    let num_requests = world.server.requests().len();
    finish(&world, &[extend, more, "data-fetch.in_flight=3"]);
    assert_eq!(world.server.requests().len(), num_requests);

    // The first list again: its shards, completed.
    std::fs::remove_file(world.out_dir().join("00002.tar")).unwrap();
    finish(&world, &[extend]);
    assert_eq!(world.server.requests().len(), num_requests + 15);
    assert_eq!(world.outputs()["00002.tar"], first["00002.tar"]);
    assert!(world.out_dir().join("00006.tar").exists());

    // Overwriting leaves the first list alone in the directory.
    finish(&world, &["data-fetch.incremental_mode=overwrite"]);
    assert_eq!(world.server.requests().len(), num_requests + 15 + 90);
    assert!(!world.out_dir().join("00006.tar").exists());
    assert_eq!(world.outputs()["00002.tar"], first["00002.tar"]);

    let share = command(&world, &[extend]).args(["--shards", "0..1"]).output().unwrap();
    assert_eq!(share.status.code(), Some(2), "{}", String::from_utf8_lossy(&share.stderr));
}

#[test]
fn a_wrong_request_costs_nothing_of_what_is_there() {
    let (world, _ill) = slow_world();
    finish(&world, &[]);
    let before = world.outputs();
    let overwrite = "data-fetch.incremental_mode=overwrite";
    for wrong in ["data-fetch.url_col=nope", "data-fetch.url_list=run.toml"] {
        let output = command(&world, &[overwrite, wrong]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains("is as it was before"), "{text}");
        assert_eq!(world.outputs(), before, "{wrong}");
    }
    // What the config names beside the list is looked at before, too.
    for (wrong, key) in [
        ("data-fetch.url_col=nope", "data-fetch.url_col: names column `nope`"),
        ("data-fetch.caption_col=nope", "data-fetch.caption_col: names column `nope`"),
        ("data-fetch.uid_col=nope", "data-fetch.uid_col: names column `nope`"),
        ("data-fetch.bbox_col=nope", "data-fetch.bbox_col: names column `nope`"),
        (
            "data-fetch.save_additional_columns=[\"nope\"]",
            "data-fetch.save_additional_columns: names column `nope`",
        ),
        ("data-fetch.url_list=run.toml", "data-fetch.url_list: "),
        ("data-fetch.hosts_file=nope", "data-fetch.hosts_file: "),
        ("data-fetch.ca_file=nope", "data-fetch.ca_file: "),
    ] {
        // Rows to fetch again, because finished output needs no network.
        let extend = ["data-fetch.incremental_mode=extend", "data-fetch.retry_failed=true", wrong];
        for sets in [&[overwrite, wrong][..], &extend] {
            let output = command(&world, sets).output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{sets:?}: {text}");
            let line = text.trim_end().lines().last().unwrap_or_default();
            assert!(line.starts_with(&format!("oqvl-data-fetch: --set: {key}")), "{sets:?}: {line}");
            assert_eq!(world.outputs(), before, "{sets:?}");
        }
    }
    set_aside(&world, br#"{"stage": "data-fetch", "fingerprint": "of the request that was killed"}"#);
    write_atomic(&world.out_dir().join("00000.tar"), b"new").unwrap();
    let num_requests = world.server.requests().len();
    finish(&world, &[]);
    assert_eq!((results(&world), world.server.requests().len()), {
        let mut before = before.clone();
        before.retain(|name, _| name != "manifest.json");
        (before, num_requests)
    });

    let before = world.outputs();
    for own in ["data-fetch", "data-fetch/00000.parquet", "./data-fetch/*.parquet"] {
        let own = format!("data-fetch.url_list={own}");
        for flags in [&[][..], &["--dry-run"]] {
            let output = command(&world, &[overwrite, &own]).args(flags).output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{own}: {text}");
            assert!(text.contains("lies in this stage's own output"), "{text}");
            assert_eq!(world.outputs(), before);
        }
    }
}

/// The state that a run leaves which is killed before it begins: all of the output aside, none of the new request's there.
fn set_aside(world: &World, new_stamp: &[u8]) {
    let (out_dir, aside) = (world.out_dir(), world.out_dir().join(".replaced"));
    std::fs::create_dir(&aside).unwrap();
    for entry in std::fs::read_dir(&out_dir).unwrap() {
        let name = entry.unwrap().file_name();
        if !name.to_string_lossy().starts_with('.') {
            std::fs::rename(out_dir.join(&name), aside.join(&name)).unwrap();
        }
    }
    write_atomic(&out_dir.join("fingerprint.json"), new_stamp).unwrap();
}

#[test]
fn an_extension_that_fails_leaves_finished_output_finished() {
    let (world, _ill) = slow_world();
    finish(&world, &[]);
    let before = world.outputs();
    let num_requests = world.server.requests().len();
    let is_up_to_date = |what: &str| {
        let output = command(&world, &[]).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success() && text.contains("up to date"), "{what}: {text}");
        assert_eq!(
            (world.outputs(), world.server.requests().len()),
            (before.clone(), num_requests),
            "{what}"
        );
    };
    let extend = "data-fetch.incremental_mode=extend";
    let bad_list = "url,caption\nhttp://a.test/1,\"never closed\n";
    write_atomic(&world.dir.path().join("bad.csv"), bad_list.as_bytes()).unwrap();
    for (wrong, code) in [
        (&["data-fetch.url_list=bad.csv"][..], 1),
        (&["data-fetch.url_col=nope"], 2),
        // The same request by its fingerprint.
        (&["data-fetch.ca_file=nope", "data-fetch.retry_failed=true"], 2),
    ] {
        let sets: Vec<&str> = [extend].into_iter().chain(wrong.iter().copied()).collect();
        let output = command(&world, &sets).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{sets:?}: {text}");
        assert!(text.contains("is as it was before"), "{text}");
        is_up_to_date(&format!("{sets:?}"));
    }
    // Killed in between, by the state it then leaves: stamp and manifest aside.
    let (out_dir, aside) = (world.out_dir(), world.out_dir().join(".seals"));
    for flags in [&["--shards", "0..1"][..], &[]] {
        std::fs::create_dir(&aside).unwrap();
        for name in ["manifest.json", "fingerprint.json"] {
            std::fs::rename(out_dir.join(name), aside.join(name)).unwrap();
        }
        let stamp = br#"{"stage": "data-fetch", "fingerprint": "of the request that was killed"}"#;
        write_atomic(&out_dir.join("fingerprint.json"), stamp).unwrap();
        let output = command(&world, &[]).args(flags).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(world.server.requests().len(), num_requests);
        assert!(!aside.exists() && out_dir.join("manifest.json").exists(), "{flags:?}");
    }

    // One that succeeds makes it output of two requests, and the sentence says so.
    write_atomic(&world.dir.path().join("more.txt"), b"http://a.test/2\n").unwrap();
    finish(&world, &[extend, "data-fetch.url_list=more.txt"]);
    let output = command(&world, &[]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(
        text.contains("7 finished shards of 2 requests, one added to the other (urls.jsonl, more.txt)"),
        "{text}"
    );
    finish(&world, &[extend]);
}

#[test]
fn a_limit_on_failures_holds_for_finished_output_too() {
    let (world, _healed) = slow_world();
    finish(&world, &[]);
    let before = world.outputs();
    let limit = |fraction: &str| format!("data-fetch.max_failed_fraction={fraction}");
    for flags in [&[][..], &["--dry-run"]] {
        let output = command(&world, &[&limit("0.1")]).args(flags).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{text}");
        assert!(text.contains("23 of 90 rows were rejected (most often: server-error, 23 times)"), "{text}");
        assert!(text.contains("`data-fetch.max_failed_fraction` = 0.1"), "{text}");
        assert_eq!(world.outputs(), before);
    }
    finish(&world, &[&limit("0.5")]);
    assert_eq!(world.outputs(), before);
}

/// The output that was set aside comes back with the next whole run, and all that shares had done would go.
#[test]
fn shares_do_not_work_beside_output_that_was_set_aside() {
    let (world, _ill) = slow_world();
    let share = || {
        let mut command = command(&world, &["data-fetch.image_size=17"]);
        command.args(["--shards", "0..1"]).output().unwrap()
    };
    assert!(share().status.success());
    let stamp = std::fs::read(world.out_dir().join("fingerprint.json")).unwrap();
    std::fs::remove_dir_all(world.out_dir()).unwrap();
    finish(&world, &[]);
    let before = results(&world);
    set_aside(&world, &stamp);
    let output = share();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("run the whole stage first"), "{text}");
    finish(&world, &[]);
    assert_eq!(results(&world), before);
}

#[test]
fn a_share_cannot_do_what_concerns_the_whole() {
    let (world, _ill) = slow_world();
    finish(&world, &[]);
    let before = world.outputs();
    for sets in [
        &["data-fetch.incremental_mode=overwrite"][..],
        &["data-fetch.incremental_mode=extend"],
        &["data-fetch.incremental_mode=overwrite", "data-fetch.url_list=nowhere.csv"],
        &["data-fetch.image_size=17"],
    ] {
        let mut by_flag = command(&world, sets);
        by_flag.args(["--shards", "0..1"]);
        let mut by_job_array = command(&world, sets);
        by_job_array.envs([("SLURM_ARRAY_TASK_ID", "0"), ("SLURM_ARRAY_TASK_COUNT", "2")]);
        for (mut command, asked_by) in [(by_flag, "--shards"), (by_job_array, "SLURM_ARRAY_TASK_ID")] {
            let output = command.output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(2), "{sets:?}: {text}");
            assert!(text.contains(&format!("oqvl-data-fetch: {asked_by}: ")), "{text}");
            assert_eq!(text.contains("--shards"), asked_by == "--shards", "{text}");
            assert_eq!(world.outputs(), before);
        }
    }
}

#[test]
fn without_a_config_one_is_asked_for() {
    let output = Command::new(env!("CARGO_BIN_EXE_oqvl-data-fetch")).output().unwrap();
    let expected = "oqvl-data-fetch: --config: is missing: it names a TOML file with a table [data-fetch], which sets the \
        stage up\n";
    assert_eq!(
        (output.status.code(), String::from_utf8(output.stderr).unwrap().as_str()),
        (Some(2), expected)
    );
}

#[test]
fn what_was_downloaded_is_not_removed_unasked() {
    let (world, _ill) = slow_world();
    finish(&world, &[]);
    let num_requests = world.server.requests().len();
    // The seed decides on waiting times only.
    finish(&world, &["seed=8"]);
    assert_eq!(world.server.requests().len(), num_requests);

    let before = world.outputs();
    let refused = |sets: &[&str], flags: &[&str]| {
        let output = command(&world, sets).args(flags).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(
            text.contains("data-fetch.incremental_mode: ") && text.contains("6 finished shards"),
            "{text}"
        );
        assert_eq!(world.outputs(), before);
    };
    refused(&["data-fetch.image_size=17"], &[]);
    refused(&["data-fetch.image_size=17"], &["--dry-run"]);
    // A run that was killed has no manifest.
    std::fs::remove_file(world.out_dir().join("manifest.json")).unwrap();
    let before = world.outputs();
    let output = command(&world, &["data-fetch.image_size=17"]).output().unwrap();
    assert_eq!((output.status.code(), world.outputs()), (Some(2), before));

    let output = command(&world, &["data-fetch.image_size=17", "data-fetch.incremental_mode=overwrite"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && text.contains("is made anew"), "{text}");
    assert_eq!(world.server.requests().len(), 2 * num_requests);
}
