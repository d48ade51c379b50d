//! Python with packages from PyPI, for tests that hold our files against those of other tools.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// Interpreters in the order they are tried: some of the tools we compare with do not run on the newest one.
const INTERPRETERS: [&str; 5] = ["python3.11", "python3.12", "python3.10", "python3.13", "python3"];

/// Written last into an environment that is complete.
const READY_FILE: &str = ".ready";

/// A Python virtual environment with the asked packages.
#[derive(Debug, Clone)]
pub struct PythonVenv {
    dir: PathBuf,
}

impl PythonVenv {
    /// The environment's interpreter.
    #[must_use]
    pub fn python(&self) -> PathBuf {
        self.dir.join("bin/python")
    }

    /// A program of the environment, such as `moto_server`.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join("bin").join(name)
    }

    /// Runs the script with the arguments and returns what it wrote to standard output.
    ///
    /// # Panics
    /// If it cannot be started or fails; the message holds what it wrote to standard error.
    #[track_caller]
    #[must_use]
    pub fn run(&self, script: &Path, args: &[&str]) -> String {
        let output = Command::new(self.python()).arg(script).args(args).stdin(Stdio::null()).output();
        let output = output.expect("the interpreter of a virtual environment can be started");
        let (stdout, stderr) = texts(&output);
        assert!(output.status.success(), "{} failed ({}):\n{stderr}", script.display(), output.status);
        stdout
    }
}

/// A virtual environment with these packages (`["moto[server]==5.2.5"]`), made once under the build directory
/// (`target/python/{name}-{digest of the packages}`) and shared by all tests that ask for the same.
///
/// Tests that run at the same time, in one process or in several, wait for one another here. Where there is no
/// Python or PyPI cannot be reached, a line on standard error says that the calling test is skipped and why; the
/// test then returns early, and `cargo xtask test` lists it as skipped.
///
/// # Panics
/// If the build directory cannot be written.
#[must_use]
pub fn python_venv(name: &str, packages: &[&str]) -> Option<PythonVenv> {
    let digest = oqvl_shard_io::digest_bytes(packages.join("\n").as_bytes());
    let root = target_dir().join("python");
    std::fs::create_dir_all(&root).expect("the build directory can be written");
    let dir = root.join(format!("{name}-{}", &digest[..12]));
    let lock = File::create(dir.with_extension("lock")).expect("the build directory can be written");
    lock.lock().expect("a lock can be waited for");
    let venv = PythonVenv { dir };
    if venv.dir.join(READY_FILE).exists() {
        return Some(venv);
    }
    match install(&venv, packages) {
        Ok(()) => Some(venv),
        Err(why) => {
            let thread = std::thread::current();
            let test = thread.name().unwrap_or("a test");
            eprintln!("skipped: {test} needs Python with {}: {why}", packages.join(", "));
            None
        }
    }
}

/// Makes the environment anew; what a broken attempt left goes first.
fn install(venv: &PythonVenv, packages: &[&str]) -> Result<(), String> {
    if venv.dir.exists() {
        std::fs::remove_dir_all(&venv.dir).expect("the build directory can be written");
    }
    let interpreter = INTERPRETERS.iter().find(|name| {
        let version = Command::new(name).arg("--version").stdin(Stdio::null()).output();
        version.is_ok_and(|output| output.status.success())
    });
    let interpreter = interpreter.ok_or("no python3 on the path")?;
    succeed(Command::new(interpreter).args(["-m", "venv"]).arg(&venv.dir))?;
    let pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
    // Enough for a slow mirror, not so much that a machine without a network waits for minutes.
    let patience = ["--retries", "2", "--timeout", "20"];
    succeed(Command::new(venv.python()).args(pip).args(patience).args(packages))?;
    oqvl_shard_io::write_atomic(&venv.dir.join(READY_FILE), b"").map_err(|error| error.to_string())
}

fn succeed(command: &mut Command) -> Result<(), String> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let (_, stderr) = texts(&output);
    Err(stderr.trim().lines().last().unwrap_or("no reason given").trim().to_owned())
}

fn texts(output: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr))
}

/// The build directory the running test was built into.
fn target_dir() -> PathBuf {
    let test = std::env::current_exe().expect("the running test has a path");
    let target = test.ancestors().find(|path| path.join("CACHEDIR.TAG").is_file());
    // Doc-tests lie elsewhere.
    target.map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"), Path::to_path_buf)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_made_once_and_runs_scripts() {
        let packages = ["sortedcontainers==2.4.0"];
        let Some(venv) = python_venv("testkit", &packages) else { return };
        let script = venv.dir.join("script.py");
        let text = b"import sys, sortedcontainers\nprint(sortedcontainers.__version__, *sys.argv[1:])\n";
        oqvl_shard_io::write_atomic(&script, text).unwrap();
        assert_eq!(venv.run(&script, &["a", "b c"]), "2.4.0 a b c\n");
        // The second asking finds it: the script is still there.
        assert_eq!(python_venv("testkit", &packages).unwrap().run(&script, &[]), "2.4.0\n");
        oqvl_shard_io::write_atomic(&script, b"raise SystemExit('no such luck')\n").unwrap();
        let failed = std::panic::catch_unwind(|| venv.run(&script, &[])).unwrap_err();
        assert!(failed.downcast_ref::<String>().unwrap().contains("no such luck"));
    }

    #[test]
    fn a_package_that_cannot_be_had_is_a_reason_and_no_failure() {
        let venv = PythonVenv { dir: target_dir().join("python/nothing") };
        let failed = install(&venv, &["--index-url=http://127.0.0.1:9/", "--retries=0", "no-such-package"]);
        assert!(failed.is_err());
        assert!(!venv.dir.join(READY_FILE).exists());
    }
}
