//! The program: stopped and killed in the middle, started again.

use crate::server::{Delivery, Reply};
use crate::world::{World, jpeg};
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

fn start(world: &World) -> Child {
    Command::new(env!("CARGO_BIN_EXE_oqvl-data-fetch"))
        .args(["--config", "run.toml", "--work-dir", "."])
        .current_dir(world.dir.path())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
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
