//! Compiles the `.cu` files to machine code, which `device::module!` embeds. Without the feature `cuda` it does nothing.
//!
//! Every `src/<op>/<name>.cu` becomes `<name>.sm_80.cubin` and `<name>.sm_90a.cubin` in `OUT_DIR`, and beside each a `.txt`
//! with what ptxas says of every kernel (registers, shared memory, spills), which `cargo xtask kernels check` reads.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::io::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Ending of the machine code and what nvcc is told: A100 and its family, and Hopper with the instructions of it alone.
const TARGETS: [(&str, &str); 2] =
    [("sm_80", "-gencode=arch=compute_80,code=sm_80"), ("sm_90a", "-gencode=arch=compute_90a,code=sm_90a")];
/// Where a toolkit says that it is.
const TOOLKIT_VARIABLES: [&str; 4] = ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR"];
/// Names a compiler and nothing else.
const NVCC_VARIABLE: &str = "NVCC";

fn main() -> Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return Ok(());
    }
    println!("cargo::rerun-if-changed=src");
    for variable in TOOLKIT_VARIABLES.into_iter().chain([NVCC_VARIABLE]) {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    let sources = sources(Path::new("src"))?;
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    let jobs: Vec<Job<'_>> = sources
        .iter()
        .flat_map(|source| TARGETS.map(|target| Job { source, target, out_dir: &out_dir }))
        .collect();
    if jobs.is_empty() {
        return Ok(());
    }
    remove_old(&out_dir)?;
    let nvcc = find_nvcc()?;
    let failures = run(&jobs, &nvcc);
    if !failures.is_empty() {
        return Err(Error::other(format!("\n{}", failures.join("\n"))));
    }
    Ok(())
}

/// Removes what an earlier run made: the source of it may be gone.
fn remove_old(out_dir: &Path) -> Result<()> {
    for entry in fs::read_dir(out_dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "cubin" || extension == "txt") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// All `.cu` files below a directory, each name once.
fn sources(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_path_buf()];
    while let Some(dir) = pending.pop() {
        for entry in fs::read_dir(&dir)? {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
            } else if path.extension().is_some_and(|extension| extension == "cu") {
                found.push(path);
            }
        }
    }
    found.sort();
    let names: BTreeSet<_> = found.iter().map(|path| path.file_stem()).collect();
    assert_eq!(names.len(), found.len(), "two .cu files of one name: {found:?}");
    Ok(found)
}

/// `NVCC`, then the toolkit a variable names, then `PATH`, then the usual place.
fn find_nvcc() -> Result<PathBuf> {
    let named = env::var_os(NVCC_VARIABLE).map(PathBuf::from);
    let of_toolkit =
        TOOLKIT_VARIABLES.iter().filter_map(env::var_os).map(|root| PathBuf::from(root).join("bin/nvcc"));
    let path = env::var_os("PATH").unwrap_or_default();
    let on_path = env::split_paths(&path).map(|dir| dir.join("nvcc"));
    let usual = [PathBuf::from("/usr/local/cuda/bin/nvcc")];
    let found = named.into_iter().chain(of_toolkit).chain(on_path).chain(usual).find(|nvcc| nvcc.is_file());
    found.ok_or_else(|| {
        Error::new(
            ErrorKind::NotFound,
            "no nvcc, neither in NVCC, CUDA_HOME or PATH nor in /usr/local/cuda: build with `cargo xtask cuda build`, or \
             run `cargo xtask cuda setup` and set what it prints, or install a CUDA toolkit of version 12.8 or later",
        )
    })
}

/// One source for one target.
struct Job<'a> {
    source: &'a Path,
    target: (&'static str, &'static str),
    out_dir: &'a Path,
}

impl Job<'_> {
    /// Compiles; a warning is an error. `Err` is what a person reads.
    fn run(&self, nvcc: &Path) -> std::result::Result<(), String> {
        let (target, gencode) = self.target;
        let shown = self.source.display();
        let name = self.source.file_stem().expect("found by its extension").to_string_lossy();
        let output = self.out_dir.join(format!("{name}.{target}.cubin"));
        let mut command = Command::new(nvcc);
        // Line numbers cost nothing and let profilers and sanitizers name the source.
        command.args([gencode, "-cubin", "-O3", "-std=c++17", "-lineinfo", "-I", "src/device"]);
        command.args(["--Werror", "all-warnings", "-Xptxas", "--verbose,--warning-as-error", "-o"]);
        command.arg(&output).arg(self.source);
        let compiled =
            command.output().map_err(|error| format!("cannot start {}: {error}", nvcc.display()))?;
        let Output { status, stdout, stderr } = compiled;
        let report = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        if !status.success() {
            return Err(format!("{shown} does not compile for {target} ({status}):\n{report}"));
        }
        let path = self.out_dir.join(format!("{name}.{target}.txt"));
        write(&path, &report).map_err(|error| format!("{}: {error}", path.display()))
    }
}

fn write(path: &Path, text: &str) -> Result<()> {
    std::io::Write::write_all(&mut fs::File::create(path)?, text.as_bytes())
}

/// Runs the jobs, as many at a time as cargo allows. Returns what failed.
fn run(jobs: &[Job<'_>], nvcc: &Path) -> Vec<String> {
    let allowed = env::var("NUM_JOBS").ok().and_then(|number| number.parse::<usize>().ok()).unwrap_or(1);
    let next = AtomicUsize::new(0);
    let work = || {
        let mut failures = Vec::new();
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            failures.extend(job.run(nvcc).err());
        }
        failures
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..allowed.clamp(1, jobs.len())).map(|_| scope.spawn(work)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("a worker does not panic")).collect()
    })
}
