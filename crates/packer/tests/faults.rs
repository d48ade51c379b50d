//! The binary when it is killed and when the disk is full.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use oqvl_shard_io::write_atomic;
use oqvl_testkit::tiny_shard;
use oqvl_text_prep::BpeTrainer;

const PACKER: &str = env!("CARGO_BIN_EXE_oqvl-packer");

/// Shards, a tokenizer and a config, which names them by `root`: empty for a work directory that they lie in.
fn inputs(output: &str, root: impl Fn(&Path) -> String) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let trained = BpeTrainer::new(300).train(std::iter::empty()).unwrap();
    write_atomic(&dir.path().join("tokenizer.json"), trained.json()).unwrap();
    for shard in 0..6 {
        let pairs: Vec<(String, String)> =
            (0..150).map(|index| (format!("{shard}-{index}"), "caption ".repeat(index % 11))).collect();
        let pairs: Vec<(&str, &str)> = pairs.iter().map(|(key, caption)| (&**key, &**caption)).collect();
        let _ = tiny_shard(&dir.path().join("shards"), &format!("{shard:08}"), &pairs);
    }
    let root = root(dir.path());
    let config = format!(
        "name = \"faults\"\nseed = 7\n[packer]\nshards = \"{root}shards\"\ntokenizer = \"{root}tokenizer.json\"\n\
         seq_len = 300\npooled_grid = 3\nalgorithm = \"first-fit-decreasing\"\npack_across_shards = 2\n\
         overlong = \"keep\"\noutput = \"{output}\"\n"
    );
    write_atomic(&dir.path().join("config.toml"), config.as_bytes()).unwrap();
    dir
}

fn packer(dir: &Path, work_dir: &Path) -> Command {
    let mut command = Command::new(PACKER);
    command.arg("--config").arg(dir.join("config.toml")).arg("--work-dir").arg(work_dir);
    command
}

/// What the run leaves, without what speaks of one run on one machine.
fn outputs(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut waiting = vec![dir.join("packer")];
    while let Some(directory) = waiting.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() {
                waiting.push(path);
            } else if !name.starts_with('.') && name != "manifest.json" && !name.contains(".local.") {
                files.insert(path.strip_prefix(dir).unwrap().to_path_buf(), std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_killed_run_goes_on_to_the_same_bytes() {
    for output in ["plan", "tar", "json"] {
        let run = |dir: &Path| packer(dir, dir);
        let undisturbed = inputs(output, |_| String::new());
        succeeded(&run(undisturbed.path()).output().unwrap());
        let expected = outputs(undisturbed.path());
        assert!(expected.len() > 6, "{:?}", expected.keys());

        let dir = inputs(output, |_| String::new());
        let mut num_killed = 0;
        for milliseconds in [3, 8, 13, 19, 26, 34, 45, 60] {
            let mut child = run(dir.path()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(milliseconds));
            num_killed += usize::from(child.try_wait().unwrap().is_none());
            child.kill().unwrap(); // SIGKILL
            child.wait().unwrap();
        }
        assert!(num_killed > 0, "every run was faster than the kill");
        succeeded(&run(dir.path()).output().unwrap());
        assert!(outputs(dir.path()) == expected, "{output}");
    }
}

#[test]
fn a_full_disk_is_one_sentence() {
    for output in ["tar", "plan", "json"] {
        let dir = inputs(output, |dir| format!("{}/", dir.display()));
        let work = dir.path().join("work");
        std::fs::create_dir(&work).unwrap();
        // A file system of its own, and root in a namespace of its own to mount it.
        let script = "mount -t tmpfs -o size=$1 tmpfs \"$2\" || exit 99; shift 2; exec \"$@\"";
        let run = |size: &str| {
            let command = packer(dir.path(), &work);
            Command::new("unshare")
                .args(["--mount", "--map-root-user", "sh", "-c", script, "sh", size])
                .arg(&work)
                .arg(command.get_program())
                .args(command.get_args())
                .output()
        };
        let Ok(probe) = run("64m") else {
            eprintln!("skipped: no `unshare` here to mount a small file system");
            return;
        };
        let reason = String::from_utf8_lossy(&probe.stderr).into_owned();
        if probe.status.code() == Some(99) || reason.starts_with("unshare") {
            eprintln!("skipped: a small file system cannot be mounted: {reason}");
            return;
        }
        succeeded(&probe);
        let full = run("40k").unwrap();
        let message = String::from_utf8_lossy(&full.stderr).into_owned();
        assert_eq!(full.status.code(), Some(1), "{output}: {message}");
        let errors: Vec<&str> = message.lines().filter(|line| line.contains("No space left")).collect();
        assert_eq!(errors.len(), 1, "{output}: {message}");
        assert!(errors[0].contains("packer/"), "{output}: {message}");
    }
}
