//! The programs that can use a GPU, built; and the CUDA side linted and linked.

use super::toolkit::{CAPABILITY_VARIABLE, Toolkit};
use crate::{cargo, json_file, units};
use anyhow::Context as _;
use serde::Deserialize;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// The feature of every package that can use a GPU.
const FEATURE: &str = "cuda";
/// The package whose build script compiles the kernels.
const KERNELS: &str = "oqvl-kernels";
/// What `check` compiles candle's own kernels for. It is a GPU of boards that nobody trains on, and it is the one thing that
/// tells cargo what `check` compiles, without optimisation, from what `build` needs.
const UNOPTIMISED_CAPABILITY: &str = "87";
/// The program that checks and times the kernels on a GPU: of all that can use one the quickest to build.
const GPU_PROGRAM: &str = "oqvl-gpu";
/// How nvcc is called.
const NVCC_SCRIPT: &str = include_str!("nvcc.sh");

/// How candle's own kernels are compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CandleKernels {
    /// As in every build, and kept outside the checkout.
    Kept,
    /// Quickly: they are never run.
    Unoptimised,
}

/// A workspace member that can use a GPU.
#[derive(Debug)]
struct Member {
    name: String,
    binaries: Vec<String>,
}

/// Builds every program that can use a GPU and puts a copy without symbols into `target/cuda`.
pub(super) fn build(toolkit: &Toolkit) -> anyhow::Result<()> {
    let members = members()?;
    let binaries: Vec<&String> = members.iter().flat_map(|member| &member.binaries).collect();
    let mut build = command(toolkit, CandleKernels::Kept, &["build", "--release", "--workspace"])?;
    build.args(["--features", &features(&members)]);
    build.args(binaries.iter().flat_map(|binary| ["--bin", binary.as_str()]));
    let capability = toolkit.environment().into_iter().find(|(name, _)| *name == CAPABILITY_VARIABLE);
    let capability = capability.map(|(_, value)| value.to_string_lossy().into_owned()).unwrap_or_default();
    println!(
        "building {} programs with {}; candle's kernels for {capability}",
        binaries.len(),
        toolkit.version()
    );
    println!(
        "(from nothing, candle's kernels take a quarter of an hour of processor time; they are kept in {})",
        toolkit.candle_cache().display()
    );
    let started = Instant::now();
    let status = build.stdin(Stdio::null()).status().context("cannot start cargo")?;
    anyhow::ensure!(status.success(), "the CUDA build failed");
    let to = cargo::target_dir()?.join(FEATURE);
    fs::create_dir_all(&to).with_context(|| to.display().to_string())?;
    for binary in &binaries {
        let copy = to.join(binary);
        strip(&cargo::binary_dir()?.join(binary), &copy)?;
        let size = fs::metadata(&copy).with_context(|| copy.display().to_string())?.len();
        println!("{:>9}  {}", units::bytes(size), copy.display());
    }
    println!("built in {}; docs/gpu.md says how to carry them to a GPU", units::duration(started.elapsed()));
    Ok(())
}

/// A program, and where the libraries are that it was linked with.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) libraries: Vec<PathBuf>,
}

/// Builds the program that checks and times the kernels on a GPU.
pub(super) fn build_gpu_program(toolkit: &Toolkit) -> anyhow::Result<Program> {
    let mut build = command(toolkit, CandleKernels::Kept, &["build", "--release", "--workspace"])?;
    build.args(["--features", &features(&members()?), "--bin", GPU_PROGRAM]);
    let status = build.stdin(Stdio::null()).status().context("cannot start cargo")?;
    anyhow::ensure!(status.success(), "the CUDA build failed");
    Ok(Program { path: cargo::binary_dir()?.join(GPU_PROGRAM), libraries: toolkit.lib_dirs() })
}

/// Lints with the feature, compiles every kernel for both targets, and links the program that checks them on a GPU.
pub(super) fn check(toolkit: &Toolkit) -> anyhow::Result<()> {
    let members = members()?;
    println!("linting with {}", toolkit.version());
    let mut clippy = command(toolkit, CandleKernels::Unoptimised, &["clippy", "--release", "--workspace"])?;
    clippy.args(["--all-targets", "--features", &features(&members), "--", "-D", "warnings"]);
    let status = clippy.stdin(Stdio::null()).status().context("cannot start cargo")?;
    anyhow::ensure!(status.success(), "clippy fails with the feature `{FEATURE}`");
    compile_kernels(toolkit)?;
    starts_with_stub(toolkit)?;
    println!("the CUDA side lints, compiles, links, and says what is missing where no driver is");
    Ok(())
}

/// Compiles every kernel for both targets and links the program that checks them on a GPU. Returns the directory with the
/// machine code and what ptxas says of it.
pub(crate) fn compile_kernels(toolkit: &Toolkit) -> anyhow::Result<PathBuf> {
    let members = members()?;
    let mut build = command(toolkit, CandleKernels::Unoptimised, &["build", "--release", "--workspace"])?;
    build.args(["--features", &features(&members), "--message-format", "json-render-diagnostics"]);
    build.args(["--bin", GPU_PROGRAM]);
    let mut child =
        build.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start cargo")?;
    let stdout = child.stdout.take().expect("piped just above");
    let mut out_dir = None;
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read what cargo says")?;
        out_dir = kernel_out_dir(&line).or(out_dir);
    }
    let status = child.wait().context("cannot wait for cargo")?;
    anyhow::ensure!(status.success(), "the CUDA build failed");
    out_dir.context("cargo did not say where the kernels are")
}

/// Starts the program with the stub in place of a driver's library: it must find all its other libraries, and say in a
/// sentence what is missing.
fn starts_with_stub(toolkit: &Toolkit) -> anyhow::Result<()> {
    let mut program = Command::new(cargo::binary_dir()?.join(GPU_PROGRAM));
    let places = toolkit.lib_dirs().into_iter().chain([toolkit.stubs()]).rev();
    program.arg("check").env("LD_LIBRARY_PATH", std::env::join_paths(places)?);
    let output = program.stdin(Stdio::null()).output().context("cannot start the program that was linked")?;
    let said = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(
        said.contains("no NVIDIA driver is installed"),
        "with the stub of a driver it says: {said}"
    );
    Ok(())
}

/// The directory in a message of cargo about the build script of the kernels.
fn kernel_out_dir(line: &str) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        reason: String,
        package_id: String,
        out_dir: PathBuf,
    }
    let message: Message = serde_json::from_str(line).ok()?;
    let is_of_kernels = message.package_id.contains(&format!("#{KERNELS}@"));
    (message.reason == "build-script-executed" && is_of_kernels).then_some(message.out_dir)
}

/// A cargo command that builds with the toolkit.
fn command(toolkit: &Toolkit, candle: CandleKernels, args: &[&str]) -> anyhow::Result<Command> {
    let script = nvcc_script()?;
    let mut command = cargo::command(args);
    command.envs(toolkit.environment()).env("NVCC", script).env("OQVL_NVCC", toolkit.nvcc());
    // candle's build script takes half of the cores if it is not told.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    command.env("CUDAFORGE_THREADS", cores.to_string());
    // What results of the program that measures are named by.
    if let Some(commit) = cargo::commit() {
        command.env("OQVL_COMMIT", commit);
    }
    match candle {
        CandleKernels::Kept => command.env("OQVL_NVCC_CACHE", toolkit.candle_cache()),
        CandleKernels::Unoptimised => {
            command.env("OQVL_NVCC_FAST", "1").env(CAPABILITY_VARIABLE, UNOPTIMISED_CAPABILITY)
        }
    };
    Ok(command)
}

/// Writes the script that stands for nvcc.
fn nvcc_script() -> anyhow::Result<PathBuf> {
    let dir = cargo::target_dir()?.join("nvcc");
    let script = dir.join("nvcc");
    if fs::read_to_string(&script).is_ok_and(|text| text == NVCC_SCRIPT) {
        return Ok(script);
    }
    fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    let new = dir.join("nvcc.new");
    json_file::write_bytes(&new, NVCC_SCRIPT.as_bytes())?;
    let mode = fs::Permissions::from_mode(0o755);
    fs::set_permissions(&new, mode)
        .and_then(|()| fs::rename(&new, &script))
        .with_context(|| script.display().to_string())?;
    Ok(script)
}

/// `a/cuda,b/cuda`.
fn features(members: &[Member]) -> String {
    let features: Vec<String> = members.iter().map(|member| format!("{}/{FEATURE}", member.name)).collect();
    features.join(",")
}

/// All workspace members that have the feature.
fn members() -> anyhow::Result<Vec<Member>> {
    let mut metadata = cargo::command(&["metadata", "--no-deps", "--format-version", "1"]);
    let output = metadata.stdin(Stdio::null()).output().context("cannot start cargo metadata")?;
    anyhow::ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    parse_members(&output.stdout)
}

fn parse_members(metadata: &[u8]) -> anyhow::Result<Vec<Member>> {
    #[derive(Deserialize)]
    struct Metadata {
        packages: Vec<Package>,
    }
    #[derive(Deserialize)]
    struct Package {
        name: String,
        features: serde_json::Map<String, serde_json::Value>,
        targets: Vec<Target>,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    let metadata: Metadata = serde_json::from_slice(metadata).context("cargo metadata is not JSON")?;
    let with_feature = metadata.packages.into_iter().filter(|package| package.features.contains_key(FEATURE));
    let members = with_feature.map(|package| {
        let binaries =
            package.targets.into_iter().filter(|target| target.kind.iter().any(|kind| kind == "bin"));
        Member { name: package.name, binaries: binaries.map(|target| target.name).collect() }
    });
    Ok(members.collect())
}

/// Copies a program without its symbols; with them, where nothing takes them out.
fn strip(from: &Path, to: &Path) -> anyhow::Result<()> {
    let arguments: [OsString; 3] = ["-o".into(), to.into(), from.into()];
    let stripped = Command::new("strip").args(arguments).stdin(Stdio::null()).status();
    if !stripped.is_ok_and(|status| status.success()) {
        fs::copy(from, to).with_context(|| from.display().to_string())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_with_the_feature_are_found_with_their_programs() {
        let metadata = r#"{"packages": [
            {"name": "a", "features": {"cuda": []}, "targets": [{"name": "a", "kind": ["lib"]}, {"name": "run", "kind": ["bin"]}]},
            {"name": "b", "features": {}, "targets": [{"name": "b", "kind": ["bin"]}]},
            {"name": "c", "features": {"cuda": ["a/cuda"]}, "targets": []}]}"#;
        let members = parse_members(metadata.as_bytes()).unwrap();
        assert_eq!(features(&members), "a/cuda,c/cuda");
        assert_eq!(members[0].binaries, ["run"]);
        assert!(members[1].binaries.is_empty());
    }

    #[test]
    fn the_directory_of_the_kernels_is_in_the_message_about_their_build_script() {
        let message = |id: &str| {
            format!(
                r#"{{"reason":"build-script-executed","package_id":"{id}","linked_libs":[],"out_dir":"/t/out"}}"#
            )
        };
        assert_eq!(
            kernel_out_dir(&message("path+file:///c/crates/kernels#oqvl-kernels@0.1.0")),
            Some("/t/out".into())
        );
        assert_eq!(kernel_out_dir(&message("registry+x#candle-kernels@0.11.1")), None);
        assert_eq!(kernel_out_dir(r#"{"reason":"build-finished","success":true}"#), None);
    }
}
