//! Python environments: made once below `target/`, from pinned versions.

use anyhow::Context as _;
use serde_json::{Map, Value};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Python versions that all the pinned packages run on, best first.
const VERSIONS: [&str; 2] = ["3.11", "3.12"];
/// Names the interpreter to make the environment with, where none of the usual names is right.
const PYTHON_VARIABLE: &str = "OQVL_PYTHON";

/// A virtual environment.
#[derive(Debug)]
pub(crate) struct Venv {
    dir: PathBuf,
}

impl Venv {
    /// Takes the environment in `dir`, making it first unless it was made from these `requirements`. The inner error
    /// says why there can be none here: no fitting Python, or no package index.
    pub(crate) fn prepare(dir: &Path, requirements: &Path) -> anyhow::Result<Result<Venv, String>> {
        let wanted = fs::read_to_string(requirements).with_context(|| requirements.display().to_string())?;
        let venv = Venv { dir: dir.to_path_buf() };
        let marker = dir.join("requirements.installed");
        if fs::read_to_string(&marker).is_ok_and(|installed| installed == wanted) {
            return Ok(Ok(venv));
        }
        let Some(python) = find_python() else {
            let versions = VERSIONS.join(" or ");
            return Ok(Err(format!("this needs Python {versions} (or its path in {PYTHON_VARIABLE})")));
        };
        println!("installing what {} lists into {}", requirements.display(), dir.display());
        if dir.exists() {
            fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
        }
        let made = Command::new(&python).args(["-m", "venv"]).arg(dir).stdin(Stdio::null()).status();
        if !made.is_ok_and(|status| status.success()) {
            return Ok(Err(format!("{} cannot make a virtual environment", python.display())));
        }
        let mut pip = Command::new(venv.python());
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
            .arg(requirements);
        if !pip.stdin(Stdio::null()).status().is_ok_and(|status| status.success()) {
            return Ok(Err("pip cannot install what is needed: no network or no package index".to_owned()));
        }
        crate::json_file::write_bytes(&marker, wanted.as_bytes())?;
        Ok(Ok(venv))
    }

    /// Where it lies.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The interpreter.
    pub(crate) fn python(&self) -> PathBuf {
        self.dir.join("bin/python")
    }

    /// A program that a package brought along.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.dir.join("bin").join(name)
    }

    /// Runs a script and returns the JSON object on its last line.
    pub(crate) fn run_script(&self, script: &Path, args: &[&Path]) -> anyhow::Result<Value> {
        let mut command = Command::new(self.python());
        command.arg(script).args(args).stdin(Stdio::null());
        let output = command.stderr(Stdio::inherit()).output().context("cannot start Python")?;
        anyhow::ensure!(output.status.success(), "{} failed ({})", script.display(), output.status);
        let text = String::from_utf8_lossy(&output.stdout);
        let last = text.lines().next_back().unwrap_or_default();
        serde_json::from_str(last).with_context(|| format!("{} ended with `{last}`", script.display()))
    }

    /// Everything that is installed, with its version, and the version of Python.
    pub(crate) fn versions(&self) -> anyhow::Result<Map<String, Value>> {
        const LIST: &str = "import importlib.metadata as m, json, platform; \
                            print(json.dumps({'python': platform.python_version(), \
                            **{d.metadata['Name']: d.version for d in m.distributions()}}, sort_keys=True))";
        let output =
            Command::new(self.python()).args(["-c", LIST]).output().context("cannot start Python")?;
        anyhow::ensure!(output.status.success(), "Python cannot list what is installed");
        Ok(serde_json::from_slice(&output.stdout)?)
    }
}

/// The first interpreter of a fitting version.
fn find_python() -> Option<PathBuf> {
    let named = std::env::var_os(PYTHON_VARIABLE).map(PathBuf::from);
    let on_path = VERSIONS.iter().map(|version| PathBuf::from(format!("python{version}")));
    let plain = [PathBuf::from("python3")];
    named.into_iter().chain(on_path).chain(plain).chain(pyenv_pythons()).find(|python| fits(python))
}

/// Interpreters that pyenv has built.
fn pyenv_pythons() -> Vec<PathBuf> {
    let root = std::env::var_os("PYENV_ROOT").map(PathBuf::from);
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".pyenv"));
    let Some(root) = root.or(home) else { return Vec::new() };
    let versions = fs::read_dir(root.join("versions")).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = versions.map(|version| version.path().join("bin/python3")).collect();
    found.sort();
    found
}

fn fits(python: &Path) -> bool {
    let asked = ["-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"];
    let output = Command::new(python).args(asked).stdin(Stdio::null()).stderr(Stdio::null()).output();
    output.is_ok_and(|output| {
        let version = String::from_utf8_lossy(&output.stdout);
        output.status.success() && VERSIONS.contains(&version.trim())
    })
}
