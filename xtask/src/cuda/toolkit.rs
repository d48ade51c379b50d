//! A CUDA toolkit: one that is installed, or one made of the compiler and the libraries that NVIDIA publishes as Python
//! packages.
//!
//! The fetched one lies outside the checkout, so that every checkout uses the same. It is whole or it is made again: the
//! marker of what was installed is written last.

use crate::python::Venv;
use crate::{cargo, json_file};
use anyhow::Context as _;
use serde::Deserialize;
use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Names the directory of the fetched toolkit.
const DIR_VARIABLE: &str = "OQVL_CUDA_DIR";
/// Below the cache directory of the user.
const DIR: &str = "open-qwen2vl/cuda-13.0";
/// Where an installed toolkit says that it is: what the build scripts of all that is linked look at.
const ROOT_VARIABLES: [&str; 4] = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"];
const USUAL_ROOT: &str = "/usr/local/cuda";
/// The first version whose compiler knows all that the kernels are written with and that is tried here.
const OLDEST: (u32, u32) = (12, 8);
/// What candle's own kernels are compiled for: later GPUs run what is compiled for 8.0.
pub(super) const CANDLE_CAPABILITY: &str = "80";
pub(super) const CAPABILITY_VARIABLE: &str = "CUDA_COMPUTE_CAP";

/// A toolkit that can build.
#[derive(Debug)]
pub(crate) struct Toolkit {
    root: PathBuf,
    version: (u32, u32),
    /// What else is ours: the stub of the driver's library and what candle's kernels compile to.
    dir: PathBuf,
}

impl Toolkit {
    /// An installed toolkit, or the fetched one; fetches it if there is neither. The inner error says why there can be none.
    pub(crate) fn prepare() -> anyhow::Result<Result<Self, String>> {
        let dir = dir()?;
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        // Two that set up at the same time would remove each other's files.
        let lock = File::create(dir.join("lock")).with_context(|| dir.display().to_string())?;
        lock.lock().context("cannot lock the directory of the toolkit")?;
        if let Some((root, version)) = find_installed() {
            let toolkit = Self { root, version, dir };
            toolkit.make_stub()?;
            return Ok(Ok(toolkit));
        }
        let requirements = cargo::workspace_root().join("xtask/src/cuda/requirements.txt");
        let venv_dir = dir.join("venv");
        if !venv_dir.exists() {
            println!("no CUDA toolkit is installed: fetching the packages of NVIDIA's, 1.2 GB on disk");
        }
        let venv = match Venv::prepare(&venv_dir, &requirements)? {
            Ok(venv) => venv,
            Err(why) => {
                return Ok(Err(format!("no CUDA toolkit is installed and none can be fetched: {why}")));
            }
        };
        let root = root_in(venv.dir());
        let root = root.context("the packages of the CUDA toolkit do not hold bin/nvcc where they did")?;
        complete(&root)?;
        let Some(version) = version_of(&root.join("bin/nvcc")) else {
            return Ok(Err(format!("{} does not run here", root.join("bin/nvcc").display())));
        };
        let toolkit = Self { root, version, dir };
        toolkit.make_stub()?;
        Ok(Ok(toolkit))
    }

    /// The toolkit that [`Toolkit::prepare`] would give, if nothing has to be fetched or made for it.
    pub(super) fn find_ready() -> anyhow::Result<Option<Self>> {
        let dir = dir()?;
        let fetched = || {
            let root = root_in(&dir.join("venv"))?;
            Some((version_of(&root.join("bin/nvcc"))?, root))
        };
        let found = find_installed().or_else(|| fetched().map(|(version, root)| (root, version)));
        let toolkit = found.map(|(root, version)| Self { root, version, dir });
        Ok(toolkit.filter(|toolkit| toolkit.stubs().join("libcuda.so").exists()))
    }

    /// Where bin/nvcc and the headers are.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// `CUDA 13.0`.
    pub(crate) fn version(&self) -> String {
        format!("CUDA {}.{}", self.version.0, self.version.1)
    }

    pub(super) fn nvcc(&self) -> PathBuf {
        self.root.join("bin/nvcc")
    }

    /// Directory of what candle's own kernels compile to.
    pub(super) fn candle_cache(&self) -> PathBuf {
        self.dir.join("candle-kernels")
    }

    /// Where the libraries are that programs built with this toolkit need to start, but for the driver's.
    pub(super) fn lib_dirs(&self) -> Vec<PathBuf> {
        ["lib64", "lib"].map(|name| self.root.join(name)).into_iter().filter(|dir| dir.is_dir()).collect()
    }

    /// What a build needs in its environment.
    pub(crate) fn environment(&self) -> Vec<(&'static str, OsString)> {
        let mut environment: Vec<(&str, OsString)> =
            ROOT_VARIABLES.iter().map(|name| (*name, self.root.clone().into())).collect();
        environment.push(("PATH", prepended(&self.root.join("bin"), "PATH")));
        environment.push(("LIBRARY_PATH", prepended(&self.stubs(), "LIBRARY_PATH")));
        let capability = std::env::var_os(CAPABILITY_VARIABLE).unwrap_or_else(|| CANDLE_CAPABILITY.into());
        environment.push((CAPABILITY_VARIABLE, capability));
        environment
    }

    /// Where the stub of the driver's library is.
    pub(super) fn stubs(&self) -> PathBuf {
        self.dir.join("stubs")
    }

    /// Makes a library with all functions of the driver that cudarc declares: each returns the error of NVIDIA's own stub.
    /// Programs are linked with it; they start with the driver's library, which comes in no package.
    fn make_stub(&self) -> anyhow::Result<()> {
        const STUB_LIBRARY_ERROR: u32 = 34;
        let declarations = package_dir("cudarc")?.join("src/driver/sys/mod.rs");
        let text = fs::read_to_string(&declarations).with_context(|| declarations.display().to_string())?;
        let mut source = String::new();
        for name in driver_functions(&text) {
            source.push_str(&format!("int cu{name}(void) {{ return {STUB_LIBRARY_ERROR}; }}\n"));
        }
        let stubs = self.stubs();
        let (file, library) = (stubs.join("libcuda.c"), stubs.join("libcuda.so"));
        if fs::read_to_string(&file).is_ok_and(|made| made == source) && library.exists() {
            return Ok(());
        }
        fs::create_dir_all(&stubs).with_context(|| stubs.display().to_string())?;
        let temporary = stubs.join(".tmp-libcuda.so");
        let mut compile = Command::new("cc");
        compile.args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-x", "c", "-o"]).arg(&temporary);
        // An old library beside a new source would be taken for its, should the compiler fail.
        if library.exists() {
            fs::remove_file(&library).with_context(|| library.display().to_string())?;
        }
        json_file::write_bytes(&file, source.as_bytes())?;
        let status = compile.arg(&file).stdin(Stdio::null()).status().context("cannot start cc")?;
        anyhow::ensure!(status.success(), "cc cannot make the stub of libcuda ({status})");
        fs::rename(&temporary, &library).with_context(|| library.display().to_string())?;
        // The name that programs ask for when they start; it serves the tests on machines without a driver.
        link("libcuda.so", &stubs.join("libcuda.so.1"))?;
        println!("made {}, to link with where there is no driver", library.display());
        Ok(())
    }
}

fn dir() -> anyhow::Result<PathBuf> {
    if let Some(dir) = std::env::var_os(DIR_VARIABLE) {
        return std::path::absolute(dir).context(DIR_VARIABLE);
    }
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
    Ok(cache.with_context(|| format!("neither {DIR_VARIABLE} nor HOME is set"))?.join(DIR))
}

/// The toolkit that a variable names, of the nvcc on the path, or in the usual place, if it is new enough.
fn find_installed() -> Option<(PathBuf, (u32, u32))> {
    let named = ROOT_VARIABLES.iter().filter_map(std::env::var_os).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("nvcc")).find(|nvcc| nvcc.is_file());
    let of_path =
        on_path.and_then(|nvcc| Some(fs::canonicalize(nvcc).ok()?.parent()?.parent()?.to_path_buf()));
    let roots: Vec<PathBuf> = named.chain(of_path).chain([PathBuf::from(USUAL_ROOT)]).collect();
    for root in roots {
        match version_of(&root.join("bin/nvcc")) {
            Some(version) if version >= OLDEST => return Some((root, version)),
            Some((major, minor)) => {
                eprintln!(
                    "{} is CUDA {major}.{minor}: too old, {}.{} is needed",
                    root.display(),
                    OLDEST.0,
                    OLDEST.1
                );
            }
            None => {}
        }
    }
    None
}

fn version_of(nvcc: &Path) -> Option<(u32, u32)> {
    let output = Command::new(nvcc).arg("--version").stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| parse_version(&String::from_utf8_lossy(&output.stdout)))?
}

/// The version in what `nvcc --version` says: `Cuda compilation tools, release 13.0, V13.0.88`.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let (_, rest) = text.split_once("release ")?;
    let (major, minor) = rest.split(',').next()?.trim().split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The toolkit in the packages of a Python environment.
fn root_in(venv: &Path) -> Option<PathBuf> {
    let pythons = fs::read_dir(venv.join("lib")).ok()?.flatten();
    let mut roots = pythons.map(|python| python.path().join("site-packages/nvidia/cu13"));
    roots.find(|root| root.join("bin/nvcc").is_file())
}

/// Gives libraries the names that linkers ask for; the packages have them under versioned names only.
fn complete(root: &Path) -> anyhow::Result<()> {
    let lib = root.join("lib");
    for entry in fs::read_dir(&lib).with_context(|| lib.display().to_string())? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if let Some((stem, _)) = name.split_once(".so.") {
            link(&name, &lib.join(format!("{stem}.so")))?;
        }
    }
    link("lib", &root.join("lib64"))
}

/// A symbolic link to `target`, relative to where it lies; what is there already stays.
fn link(target: &str, path: &Path) -> anyhow::Result<()> {
    if path.exists() {
        return Ok(());
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| path.display().to_string());
        }
        _ => {}
    }
    std::os::unix::fs::symlink(target, path).with_context(|| path.display().to_string())
}

fn prepended(first: &Path, variable: &str) -> OsString {
    let rest = std::env::var_os(variable).filter(|rest| !rest.is_empty());
    let mut all = first.as_os_str().to_owned();
    if let Some(rest) = rest {
        all.push(":");
        all.push(rest);
    }
    all
}

/// Where cargo keeps the source of a package of the lock file; fetches it if it must.
fn package_dir(name: &str) -> anyhow::Result<PathBuf> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        manifest_path: PathBuf,
    }
    // For this platform alone: cargo would fetch the crates of all others.
    let platform = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut metadata = cargo::command(&["metadata", "--format-version", "1", "--all-features"]);
    metadata.args(["--filter-platform", &platform]);
    let output =
        metadata.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    anyhow::ensure!(output.status.success(), "cargo metadata failed");
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata is not JSON")?;
    let package = metadata.packages.into_iter().find(|package| package.name == name);
    let package = package.with_context(|| format!("no package {name} below this workspace"))?;
    Ok(package.manifest_path.parent().context("a manifest lies in a directory")?.to_path_buf())
}

/// Names of the functions of the driver that bindings declare, without the `cu` in front, in order, each once.
fn driver_functions(text: &str) -> Vec<&str> {
    let mut names: Vec<&str> = text
        .split("fn cu")
        .skip(1)
        .filter_map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
            let is_function =
                rest[end..].starts_with('(') && rest.starts_with(|c: char| c.is_ascii_uppercase());
            is_function.then(|| &rest[..end])
        })
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_a_compiler_is_in_what_it_says() {
        let said = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\n";
        assert_eq!(parse_version(said), Some((13, 0)));
        assert_eq!(parse_version("nvcc fatal"), None);
    }

    #[test]
    fn functions_of_the_driver_are_found_in_declarations() {
        let text = "pub fn cuInit(a: u32);\npub unsafe fn cuInit(a: u32) {}\npub fn cuCtxGetId(b: u8);\nfn culib() {}";
        assert_eq!(driver_functions(text), ["CtxGetId", "Init"]);
    }
}
