//! Models of the Hugging Face hub, against a server that speaks its interface: what comes, what goes wrong on the way,
//! and what the hub's own tools find afterwards.

use oqvl_shard_io::{
    HubSettings, Mirror, MirrorOptions, Store, StoreError, StoreSettings, StoreUri, write_atomic,
};
use oqvl_testkit::{HubFile, HubRequest, HubServer, git_blob_id, python_venv, sha256_hex};
use std::cell::RefCell;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const URI: &str = "hf://team/model";
const TOKEN: &str = "hf_secret";
/// Says to this test program that it is to be another process, and which model it is to find.
const CHILD: &str = "OQVL_TEST_MODEL";

/// A server, and the cache of a machine.
struct World {
    server: HubServer,
    home: TempDir,
    settings: StoreSettings,
}

impl World {
    /// A model with a config, a tokenizer, weights, and what else lies in such repositories.
    fn new() -> Self {
        let server = HubServer::start();
        server.put("README.md", HubFile::Small, b"# A model");
        server.put("config.json", HubFile::Small, b"{}");
        server.put("tokenizer.json", HubFile::Small, b"{\"model\": {}}");
        server.put("model.safetensors", HubFile::Large, &weights(1));
        server.put("pytorch_model.bin", HubFile::Large, &weights(2));
        Self::with(server)
    }

    fn with(server: HubServer) -> Self {
        let home = tempfile::tempdir().unwrap();
        let hub = HubSettings {
            endpoint: server.endpoint(),
            token: None,
            cache_dir: Some(home.path().join("hub")),
        };
        let settings = StoreSettings { hub, retry: Duration::from_secs(2), ..StoreSettings::default() };
        Self { server, home, settings }
    }

    fn offline(mut self) -> Self {
        self.settings.offline = true;
        self
    }

    fn model_dir(&self) -> PathBuf {
        self.home.path().join("hub/models--team--model")
    }

    fn snapshot(&self) -> PathBuf {
        self.model_dir().join("snapshots").join(self.server.commit())
    }

    fn blob(&self, digest: &str) -> PathBuf {
        self.model_dir().join("blobs").join(digest)
    }

    fn partial(&self, content: &[u8]) -> PathBuf {
        self.blob(&format!("{}.incomplete", sha256_hex(content)))
    }

    fn fetch(&self, uri: &str) -> Result<Mirror, StoreError> {
        self.fetch_until(uri, &|| false)
    }

    fn fetch_until(&self, uri: &str, is_stopped: &dyn Fn() -> bool) -> Result<Mirror, StoreError> {
        self.fetch_with(uri, &MirrorOptions { is_stopped, ..self.options() })
    }

    fn fetch_with(&self, uri: &str, options: &MirrorOptions<'_>) -> Result<Mirror, StoreError> {
        Store::new(self.settings.clone()).unwrap().mirror(&StoreUri::parse(uri).unwrap(), options)
    }

    /// What is here already.
    fn find(&self) -> Result<Option<Mirror>, StoreError> {
        let store = Store::new(self.settings.clone()).unwrap();
        store.find_mirror(&StoreUri::parse(URI).unwrap(), &self.options())
    }

    fn options(&self) -> MirrorOptions<'_> {
        MirrorOptions {
            root: self.home.path(),
            max_bytes: 1 << 30,
            wants: &|_| true,
            is_stopped: &|| false,
            progress: &|_, _| (),
        }
    }

    #[track_caller]
    fn refusal(&self, uri: &str) -> String {
        self.fetch(uri).unwrap_err().to_string()
    }

    /// A process that finds the model by what its user has set.
    fn process(&self, model: &str) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "another_process", "--nocapture"]).current_dir(self.home.path());
        for name in ["HF_TOKEN", "HF_TOKEN_PATH", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "XDG_CACHE_HOME"] {
            command.env_remove(name);
        }
        command.env("HF_HOME", self.home.path()).env("HF_ENDPOINT", self.server.endpoint()).env(CHILD, model);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// Content of some length.
fn weights(seed: u32) -> Vec<u8> {
    (0..300_000_u32).map(|idx| (idx.wrapping_mul(seed + 7919) >> 8) as u8).collect()
}

fn names(mirror: &Mirror) -> Vec<&str> {
    mirror.files.iter().map(|file| file.name.as_str()).collect()
}

/// Requests for the content of large files.
fn large(requests: &[HubRequest]) -> Vec<&HubRequest> {
    requests.iter().filter(|request| !request.is_hub).collect()
}

fn wait_for(what: &str, is_so: impl Fn() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < Duration::from_secs(20), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Nothing by itself: other tests run this program again to have it do this in a process of its own.
#[test]
fn another_process() {
    let Ok(model) = std::env::var(CHILD) else { return };
    let line = match oqvl_stage::ModelFinder::from_env().find(&model, &|_| true) {
        Ok(path) => format!("found {}", path.display()),
        Err(error) => format!("failed {error}"),
    };
    std::io::stdout().write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// What such a process said.
fn said(process: Child) -> String {
    let output = process.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find_map(|line| {
        let start = line.find("found ").or_else(|| line.find("failed "))?;
        Some(line[start..].to_owned())
    });
    line.unwrap_or_else(|| panic!("{text}\n{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn a_checkpoint_comes_into_the_hubs_own_cache() {
    let world = World::new();
    let mirror = world.fetch(URI).unwrap();
    assert_eq!(names(&mirror), ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!((mirror.num_fetched, &mirror.path), (3, &world.snapshot()));
    assert_eq!(std::fs::read_to_string(world.model_dir().join("refs/main")).unwrap(), world.server.commit());
    for (name, digest) in
        [("config.json", git_blob_id(b"{}")), ("model.safetensors", sha256_hex(&weights(1)))]
    {
        let link = std::fs::read_link(mirror.path.join(name)).unwrap();
        assert_eq!(link, Path::new("../../blobs").join(&digest), "{name}");
        assert!(world.blob(&digest).is_file());
    }
    assert_eq!(std::fs::read(mirror.path.join("model.safetensors")).unwrap(), weights(1));
    let digests: Vec<&str> = mirror.files.iter().map(|file| file.digest.as_str()).collect();
    assert_eq!(digests[1], sha256_hex(&weights(1)));

    // The second time, the hub is asked what there is, and nothing comes.
    let _ = world.server.take_requests();
    let again = world.fetch(URI).unwrap();
    assert_eq!((again.num_fetched, &again.files), (0, &mirror.files));
    let asked = world.server.take_requests();
    assert!(asked.iter().all(|request| !request.path.contains("/resolve/")), "{asked:?}");
}

#[test]
fn shards_folders_and_the_references_layout() {
    let server = HubServer::start();
    let index = br#"{"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    server.put("model.safetensors.index.json", HubFile::Small, index);
    server.put("model-00001-of-00002.safetensors", HubFile::Large, &weights(1));
    server.put("model-00002-of-00002.safetensors", HubFile::Large, &weights(2));
    server.put("model-00001-of-00001.safetensors", HubFile::Large, &weights(3));
    server.put("released/config.json", HubFile::Small, b"{}");
    server.put("released/checkpoints/latest-checkpoint.pt", HubFile::Large, &weights(4));
    server.put("released/checkpoints/step-1.pt", HubFile::Large, &weights(5));
    let world = World::with(server);
    let sharded = world.fetch(URI).unwrap();
    let expected = [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ];
    assert_eq!(names(&sharded), expected);
    let released = world.fetch("hf://team/model/released").unwrap();
    assert_eq!(names(&released), ["checkpoints/latest-checkpoint.pt", "config.json"]);
    assert_eq!(released.path, world.snapshot().join("released"));
    assert_eq!(std::fs::read(released.path.join("checkpoints/latest-checkpoint.pt")).unwrap(), weights(4));
    let one = world.fetch("hf://team/model@refs/pr/1/released/config.json").unwrap();
    assert_eq!((one.num_fetched, std::fs::read(one.path).unwrap()), (0, b"{}".to_vec()));
    let reference = world.model_dir().join("refs/refs/pr/1");
    assert_eq!(std::fs::read_to_string(reference).unwrap(), world.server.commit());
}

#[test]
fn looking_for_a_model_changes_nothing() {
    let world = World::new();
    assert_eq!(world.find().unwrap(), None);
    assert!(!world.model_dir().exists());
    let fetched = world.fetch(URI).unwrap();
    assert_eq!(world.find().unwrap(), Some(Mirror { num_fetched: 0, ..fetched }));
    world.server.put("config.json", HubFile::Small, b"{ }");
    assert_eq!(world.find().unwrap(), None);
}

#[test]
fn limits_hold_and_progress_is_told() {
    let world = World::new();
    let refusal = world.fetch_with(URI, &MirrorOptions { max_bytes: 300_000, ..world.options() });
    assert!(matches!(refusal, Err(StoreError::TooLarge { num_bytes: 300_015, .. })), "{refusal:?}");
    assert!(!world.model_dir().exists());
    let told = RefCell::new(Vec::new());
    let progress = |num_bytes, total| told.borrow_mut().push((num_bytes, total));
    world.fetch_with(URI, &MirrorOptions { progress: &progress, ..world.options() }).unwrap();
    let told = told.into_inner();
    assert!(told.is_sorted() && told.iter().all(|(_, total)| *total == 300_000), "{told:?}");
    assert_eq!(told.last(), Some(&(300_000, 300_000)));
}

#[test]
fn a_revision_that_moves_on_brings_only_what_changed() {
    let world = World::new();
    let before = world.fetch(URI).unwrap();
    world.server.put("model.safetensors", HubFile::Large, &weights(9));
    let after = world.fetch(URI).unwrap();
    assert_eq!(after.num_fetched, 1);
    assert_eq!(std::fs::read(after.path.join("model.safetensors")).unwrap(), weights(9));
    assert_eq!(std::fs::read(before.path.join("model.safetensors")).unwrap(), weights(1));
    assert_eq!(std::fs::read_to_string(world.model_dir().join("refs/main")).unwrap(), world.server.commit());
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_ended() {
    let world = World::new();
    world.server.cut(2, 100_000);
    let mirror = world.fetch(URI).unwrap();
    assert_eq!(std::fs::read(mirror.path.join("model.safetensors")).unwrap(), weights(1));
    let ranges: Vec<_> =
        large(&world.server.take_requests()).iter().map(|request| request.range.clone()).collect();
    let expected = [None, Some("bytes=100000-".to_owned()), Some("bytes=200000-".to_owned())];
    assert_eq!(ranges, expected);
}

#[test]
fn a_process_that_is_killed_leaves_its_part_to_the_next() {
    let world = World::new();
    world.server.pause_after(100_000);
    let mut first = world.process("team/model").spawn().unwrap();
    let partial = world.partial(&weights(1));
    let len = || std::fs::metadata(&partial).map_or(0, |found| found.len());
    wait_for("a part is here", || len() == 100_000);
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(!world.snapshot().exists() && !world.model_dir().join("refs").exists());
    world.server.go_on();
    let _ = world.server.take_requests();
    let found = said(world.process("team/model").spawn().unwrap());
    assert_eq!(found, format!("found {}", world.snapshot().display()));
    let asked = world.server.take_requests();
    let [request] = large(&asked)[..] else { panic!("{asked:?}") };
    assert_eq!(request.range.as_deref(), Some("bytes=100000-"));
    assert_eq!(std::fs::read(world.snapshot().join("model.safetensors")).unwrap(), weights(1));
    assert!(!partial.exists());
}

#[test]
fn the_hub_is_asked_again_when_it_stumbles() {
    let world = World::new();
    world.server.fail(3, 503);
    assert_eq!(world.fetch(URI).unwrap().num_fetched, 3);
    world.server.fail(1000, 503);
    let refusal = world.refusal(URI);
    assert!(refusal.contains("cannot be reached: the server answers 503"), "{refusal}");
    assert!(refusal.contains("with HF_HUB_OFFLINE=1, what is in the hub's cache is taken"), "{refusal}");
}

/// A mistyped path may look like a model's id, and the machine may have no network: nobody waits a minute to learn that.
#[test]
fn what_there_is_no_way_to_is_given_up_soon() {
    let mut world = World::new();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    world.settings.hub.endpoint = format!("http://{closed}");
    world.settings.retry = Duration::from_secs(60);
    let started = Instant::now();
    let refusal = world.refusal(URI);
    assert!(refusal.contains("cannot be reached"), "{refusal}");
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

/// Configs decide what else is needed: weights come when they are asked for.
#[test]
fn what_is_small_may_come_alone() {
    let world = World::new();
    let is_small = |name: &str| !oqvl_shard_io::WEIGHT_FILES.contains(&name);
    let small = || world.fetch_with(URI, &MirrorOptions { wants: &is_small, ..world.options() }).unwrap();
    assert_eq!(names(&small()), ["config.json", "tokenizer.json"]);
    assert!(large(&world.server.take_requests()).is_empty());
    assert!(!world.snapshot().join("model.safetensors").exists());
    assert_eq!(world.fetch(URI).unwrap().num_fetched, 1);
    let world = world.offline();
    std::fs::remove_file(world.snapshot().join("model.safetensors")).unwrap();
    let mirror = world.fetch_with(URI, &MirrorOptions { wants: &is_small, ..world.options() }).unwrap();
    assert_eq!(names(&mirror), ["config.json", "tokenizer.json"]);
    assert!(world.refusal(URI).contains("no weights in"));
}

#[test]
fn the_token_goes_to_the_hub_and_nowhere_else() {
    let mut world = World::new();
    world.server.require_token(TOKEN);
    let refusal = world.refusal(URI);
    let expected = "hf://team/model: access denied: there is no model `team/model`, or it is private: Invalid username or \
                    password. (there is no HF_TOKEN)";
    assert_eq!(refusal, expected);
    world.settings.hub.token = Some("hf_old".to_owned());
    let refusal = world.refusal(URI);
    let expected = "hf://team/model: access denied: Invalid credentials in Authorization header (with the HF_TOKEN that is \
                    set)";
    assert_eq!(refusal, expected);
    world.settings.hub.token = Some(TOKEN.to_owned());
    let _ = world.server.take_requests();
    world.fetch(URI).unwrap();
    let asked = world.server.take_requests();
    assert_eq!(large(&asked).len(), 1);
    for request in &asked {
        let expected = request.is_hub.then(|| format!("Bearer {TOKEN}"));
        assert_eq!(request.authorization, expected, "{request:?}");
    }
}

#[test]
fn a_gated_model_says_where_to_ask() {
    let mut world = World::new();
    world.server.gate();
    let page = format!("ask for access at {}/team/model", world.server.endpoint());
    let refusal = world.refusal(URI);
    assert!(refusal.contains("the model is gated") && refusal.contains(&format!("{page} and set HF_TOKEN")));
    world.settings.hub.token = Some(TOKEN.to_owned());
    let refusal = world.refusal(URI);
    assert!(refusal.ends_with(&format!("{page} with the account of HF_TOKEN")), "{refusal}");
}

#[test]
fn what_is_not_there_is_said() {
    let mut world = World::new();
    world.settings.hub.token = Some(TOKEN.to_owned());
    for (uri, sentence) in [
        ("hf://team/other", "there is no model `team/other`"),
        ("hf://team/model@v9", "there is no revision `v9`"),
        ("hf://team/model/none.bin", "there is no such file, and nothing below that name"),
        ("hf://team/model/*.onnx", "nothing matches this pattern"),
    ] {
        assert_eq!(world.refusal(uri), format!("{uri}: {sentence}"));
    }
    assert!(!world.model_dir().exists(), "a mistake leaves nothing in the cache");
}

#[test]
fn content_with_another_digest_is_thrown_away() {
    for (name, kind, sent) in
        [("model.safetensors", "SHA-256", weights(6)), ("config.json", "git SHA-1", b"[]".to_vec())]
    {
        let world = World::new();
        world.server.send_instead(name, &sent);
        let refusal = world.refusal(URI);
        let expected = format!(
            "{URI} ({name}): its {kind} is not the listed one; what came was thrown away; run again to fetch it as it is \
             now"
        );
        assert_eq!(refusal, expected);
        let digest = if kind == "SHA-256" { sha256_hex(&weights(1)) } else { git_blob_id(b"{}") };
        assert!(!world.blob(&digest).exists() && !world.blob(&format!("{digest}.incomplete")).exists());
        assert!(!world.snapshot().exists());
        // What was said is true: the next run brings it.
        world.server.send_instead(name, &if name == "config.json" { b"{}".to_vec() } else { weights(1) });
        world.fetch(URI).unwrap();
    }
}

#[test]
fn a_part_that_belongs_to_nothing_is_fetched_anew() {
    let world = World::new();
    let partial = world.partial(&weights(1));
    std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    write_atomic(&partial, &[0; 250_000]).unwrap();
    let mirror = world.fetch(URI).unwrap();
    assert_eq!(std::fs::read(mirror.path.join("model.safetensors")).unwrap(), weights(1));
    let asked = world.server.take_requests();
    let ranges: Vec<_> = large(&asked).iter().map(|request| request.range.as_deref()).collect();
    assert_eq!(ranges, [Some("bytes=250000-"), None]);
}

#[test]
fn offline_is_what_the_cache_holds() {
    let world = World::new();
    let online = world.fetch(URI).unwrap();
    let _ = world.server.take_requests();
    let world = world.offline();
    let offline = world.fetch(URI).unwrap();
    assert_eq!((&offline.path, &offline.files), (&online.path, &online.files));
    let by_commit = world.fetch(&format!("{URI}@{}", world.server.commit())).unwrap();
    assert_eq!(by_commit.path, online.path);
    let absent = "offline, and there is no complete copy of it here: ";
    for uri in ["hf://team/other", "hf://team/model@v9", "hf://team/model/none.bin"] {
        let refusal = world.refusal(uri);
        assert!(refusal.starts_with(&format!("{uri}: {absent}")), "{refusal}");
    }
    // The content of the weights goes, and its link leads nowhere.
    std::fs::remove_file(world.blob(&sha256_hex(&weights(1)))).unwrap();
    assert_eq!(world.refusal(URI), format!("{URI}: {absent}no weights in {}", world.snapshot().display()));
    assert_eq!(world.server.take_requests(), []);
}

#[test]
fn offline_wants_every_shard() {
    let server = HubServer::start();
    let index = br#"{"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}"#;
    server.put("model.safetensors.index.json", HubFile::Small, index);
    server.put("one.safetensors", HubFile::Large, &weights(1));
    server.put("two.safetensors", HubFile::Large, &weights(2));
    let world = World::with(server);
    world.fetch(URI).unwrap();
    std::fs::remove_file(world.snapshot().join("two.safetensors")).unwrap();
    let world = world.offline();
    let refusal = world.refusal(URI);
    assert!(refusal.starts_with(&format!("{URI}: offline, and there is no complete copy")), "{refusal}");
    assert!(refusal.contains("no `two.safetensors` in "), "{refusal}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_says_what_it_wants() {
    let world = World::new();
    // Whatever is written to this device, it is full.
    let partial = world.partial(&weights(1));
    std::fs::create_dir_all(partial.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink("/dev/full", &partial).unwrap();
    let refusal = world.refusal(URI);
    let expected = "the disk is full, 300000 bytes of this file are to come: make room";
    assert!(refusal.starts_with(partial.to_str().unwrap()) && refusal.contains(expected), "{refusal}");
}

#[test]
fn who_is_stopped_stops_and_goes_on_later() {
    let world = World::new();
    world.server.pause_after(100_000);
    let partial = world.partial(&weights(1));
    let is_halfway = || std::fs::metadata(&partial).is_ok_and(|found| found.len() == 100_000);
    let stopped = world.fetch_until(URI, &is_halfway);
    assert!(matches!(stopped, Err(StoreError::Interrupted)), "{stopped:?}");
    assert!(is_halfway());
    world.server.go_on();
    world.fetch(URI).unwrap();
}

#[test]
fn two_at_once_fetch_once() {
    let world = World::new();
    world.server.pause_after(100_000);
    let partial = world.partial(&weights(1));
    let is_asked = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| world.fetch(URI).unwrap());
        wait_for("the first has begun", || std::fs::metadata(&partial).is_ok_and(|found| found.len() > 0));
        let second = scope.spawn(|| {
            world.fetch_until(URI, &|| {
                is_asked.store(true, Ordering::Relaxed);
                false
            })
        });
        wait_for("the second waits", || is_asked.load(Ordering::Relaxed));
        std::thread::sleep(Duration::from_millis(300));
        world.server.go_on();
        assert_eq!(first.join().unwrap().num_fetched, 3);
        assert_eq!(second.join().unwrap().unwrap().num_fetched, 0);
    });
    assert_eq!(large(&world.server.take_requests()).len(), 1);
    assert_eq!(std::fs::read(world.snapshot().join("model.safetensors")).unwrap(), weights(1));
}

#[test]
fn a_hostile_listing_writes_nothing_elsewhere() {
    for (path, oid, problem) in [
        ("../../../evil.json", None, "`../../../evil.json` cannot be a file here"),
        ("config.json", Some("../../../../evil"), "`config.json` has no digest"),
    ] {
        let world = World::new();
        world.server.put(path, HubFile::Small, b"{}");
        if let Some(oid) = oid {
            world.server.list_digest(path, oid);
        }
        let refusal = world.refusal(URI);
        assert!(refusal.contains(problem), "{refusal}");
        assert!(!world.home.path().join("evil").exists() && !world.home.path().join("evil.json").exists());
    }
}

#[test]
fn a_model_is_found_by_its_name() {
    let world = World::new();
    world.server.require_token(TOKEN);
    let run = |model: &str, variables: &[(&str, &str)]| {
        said(world.process(model).envs(variables.iter().copied()).spawn().unwrap())
    };
    let found = format!("found {}", world.snapshot().display());
    let token = [("HF_TOKEN", TOKEN)];
    for wrong in ["checkpoint", "./no/model", "s3://bucket/model", "hf://datasets/team/model", "a/b/c"] {
        let refusal = run(wrong, &[]);
        assert!(refusal.starts_with("failed ") && refusal.contains(wrong), "{refusal}");
        assert!(refusal.contains("it is no model of the hub"), "{refusal}");
    }
    assert_eq!(world.server.take_requests(), []);
    let refusal = run("team/model", &[]);
    let expected =
        "failed there is no path `team/model`, and as a model of the hub: hf://team/model: access denied: ";
    assert!(refusal.starts_with(expected), "{refusal}");
    let refusal = run("hf://team/model", &[]);
    assert!(refusal.starts_with("failed hf://team/model: access denied: "), "{refusal}");
    assert_eq!(run("team/model", &token), found);
    assert_eq!(run("hf://team/model@main", &token), found);
    write_atomic(&world.home.path().join("token"), format!("{TOKEN}\n").as_bytes()).unwrap();
    assert_eq!(run("team/model@main", &[]), found);
    let _ = world.server.take_requests();
    assert_eq!(run("team/model", &[("HF_HUB_OFFLINE", "1")]), found);
    assert_eq!(world.server.take_requests(), []);
    let elsewhere = [("HF_HUB_OFFLINE", "1"), ("HF_HUB_CACHE", "/nowhere")];
    assert!(run("team/model", &elsewhere).contains("offline, and there is no complete copy of it here"));
    // What is here goes before what is on the hub.
    std::fs::create_dir_all(world.home.path().join("team/model")).unwrap();
    assert_eq!(run("team/model", &[]), "found team/model");
}

/// The hub's own package takes our cache for its own: it finds the model without a network, and with one it asks for
/// heads and fetches nothing.
#[test]
fn the_hubs_python_package_finds_what_we_fetched() {
    let Some(venv) = python_venv("hub", &["huggingface_hub==2.4.0"]) else { return };
    let world = World::new();
    let mirror = world.fetch(URI).unwrap();
    let _ = world.server.take_requests();
    let script = world.home.path().join("find.py");
    let text = "\
from huggingface_hub import hf_hub_download, snapshot_download
print(snapshot_download('team/model', local_files_only=True))
for name in ['config.json', 'model.safetensors', 'README.md']:
    print(hf_hub_download('team/model', name))
";
    write_atomic(&script, text.as_bytes()).unwrap();
    let mut command = Command::new(venv.python());
    command.arg(&script).env("HF_HOME", world.home.path()).env("HF_ENDPOINT", world.server.endpoint());
    for name in ["HF_HUB_CACHE", "HF_HUB_OFFLINE", "HF_TOKEN"] {
        command.env_remove(name);
    }
    let output = command.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let paths: Vec<PathBuf> = String::from_utf8(output.stdout).unwrap().lines().map(PathBuf::from).collect();
    let dir = world.snapshot();
    let expected =
        [dir.clone(), dir.join("config.json"), dir.join("model.safetensors"), dir.join("README.md")];
    assert_eq!(paths, expected);
    assert_eq!(mirror.path, dir);
    let asked = world.server.take_requests();
    assert!(large(&asked).is_empty(), "{asked:?}");
    let bodies: Vec<&str> = asked
        .iter()
        .filter(|request| request.method == "GET" && request.path.contains("/resolve/"))
        .map(|request| request.path.as_str())
        .collect();
    // Only what we did not want comes to what is there, and we find that in turn.
    assert_eq!(bodies, ["/team/model/resolve/main/README.md"]);
    let readme = world.fetch("hf://team/model/README.md").unwrap();
    assert_eq!((readme.num_fetched, std::fs::read(readme.path).unwrap()), (0, b"# A model".to_vec()));
}
