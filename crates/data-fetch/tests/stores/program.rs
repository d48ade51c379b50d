//! The program itself, run in a work directory of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Variables that could reach a store from the machine the tests run on.
const VARIABLES: [&str; 14] = [
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_PROFILE",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_ENDPOINT_URL",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "HF_HOME",
    "HF_TOKEN",
    "HF_ENDPOINT",
    "HF_HUB_OFFLINE",
    "XDG_CACHE_HOME",
];

/// A run that has ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) stderr: String,
}

/// `oqvl-data-fetch` with a work directory, settings and variables.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) dir: TempDir,
    sets: Vec<String>,
    variables: BTreeMap<&'static str, String>,
}

impl Program {
    /// `url_list` is the list; the list's URLs may be on this machine.
    pub(crate) fn new(url_list: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        std::fs::create_dir(&home).unwrap();
        let mut program = Self { dir, sets: Vec::new(), variables: BTreeMap::new() };
        program.variable("HOME", home.to_str().unwrap());
        program.set("seed", "7");
        program.set("data-fetch.url_list", &format!("\"{url_list}\""));
        program.set("data-fetch.allow_private_addresses", "true");
        program.set("data-fetch.number_sample_per_shard", "4");
        program.set("data-fetch.image_size", "16");
        program.set("stores.retry_seconds", "1.0");
        program
    }

    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.sets.push(format!("{key}={value}"));
    }

    /// Takes back what was set.
    pub(crate) fn unset(&mut self, key: &str) {
        self.sets.retain(|set| !set.starts_with(&format!("{key}=")));
    }

    pub(crate) fn variable(&mut self, name: &'static str, value: &str) {
        self.variables.insert(name, value.to_owned());
    }

    /// Credentials, and the server's address.
    pub(crate) fn with_s3(&mut self, address: std::net::SocketAddr) {
        self.variables.extend(oqvl_testkit::S3Server::environment(address));
    }

    fn command(&self, flags: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_oqvl-data-fetch"));
        VARIABLES.iter().for_each(|name| {
            command.env_remove(name);
        });
        command.envs(&self.variables).arg("--work-dir").arg(self.dir.path()).args(flags);
        self.sets.iter().for_each(|set| {
            command.args(["--set", set]);
        });
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub(crate) fn run(&self) -> Run {
        self.run_with(&[])
    }

    pub(crate) fn run_with(&self, flags: &[&str]) -> Run {
        let output = self.command(flags).output().unwrap();
        Run { code: output.status.code(), stderr: String::from_utf8(output.stderr).unwrap() }
    }

    /// Runs it and expects it to go well.
    #[track_caller]
    pub(crate) fn succeed(&self) -> Run {
        let run = self.run();
        assert_eq!(run.code, Some(0), "{}", run.stderr);
        run
    }

    /// Runs it, expects the exit code, and returns its last word.
    #[track_caller]
    pub(crate) fn fail(&self, code: i32) -> String {
        let run = self.run();
        assert_eq!(run.code, Some(code), "{}", run.stderr);
        run.stderr.trim_end().lines().last().unwrap_or_default().to_owned()
    }

    pub(crate) fn spawn(&self) -> Child {
        self.command(&[]).spawn().unwrap()
    }

    pub(crate) fn out_dir(&self) -> PathBuf {
        self.dir.path().join("data-fetch")
    }

    /// Captions of all samples, in the order of shards and samples.
    pub(crate) fn captions(&self) -> Vec<String> {
        let shards = oqvl_shard_io::list_shards(&self.out_dir()).unwrap();
        let captions = |shard: PathBuf| {
            let samples = oqvl_shard_io::ShardReader::open(&shard).unwrap();
            samples.map(|sample| sample.unwrap().caption().unwrap().unwrap().to_owned()).collect::<Vec<_>>()
        };
        shards.into_iter().flat_map(captions).collect()
    }

    /// Names and contents of the stage's output, as the runtime counts it, with report and manifest.
    pub(crate) fn outputs(&self) -> BTreeMap<String, Vec<u8>> {
        let mut outputs = BTreeMap::new();
        for entry in std::fs::read_dir(self.out_dir()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if !name.starts_with('.') && !name.contains(".local.") && name != "fingerprint.json" {
                outputs.insert(name, std::fs::read(&path).unwrap());
            }
        }
        outputs
    }
}

/// Whether a path is there, waited for up to ten seconds.
pub(crate) fn appears(path: &Path) -> bool {
    (0..1000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        path.exists()
    })
}
