//! PyTorch on the same GPU, as a child process with a script of ours.

use crate::case::{Case, Description, Input, Result};
use anyhow::Context as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const CHECK: &str = include_str!("torch_check.py");
const BENCH: &str = include_str!("torch_bench.py");
const PROBE: &str = "import torch; assert torch.cuda.is_available(), 'PyTorch finds no GPU'; \
                     print(f'PyTorch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}')";

/// A Python with PyTorch, and the device it computes on.
#[derive(Debug)]
pub(crate) struct Torch {
    python: PathBuf,
    device: String,
    version: String,
}

impl Torch {
    /// Asks the interpreter whether it has PyTorch with a GPU. The error says what it lacks.
    pub(crate) fn find(python: &Path, gpu: usize) -> std::result::Result<Self, String> {
        let output = Command::new(python).args(["-c", PROBE]).stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("{} cannot be started: {error}", python.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let last = said.lines().next_back().unwrap_or_default();
            return Err(format!("{}: {last}", python.display()));
        }
        let version = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        Ok(Self { python: python.to_path_buf(), device: format!("cuda:{gpu}"), version })
    }

    pub(crate) fn version(&self) -> &str {
        &self.version
    }

    /// Runs a script on a request and reads its answer; both are JSON files in `dir`.
    fn run<Q: Serialize, A: DeserializeOwned>(
        &self,
        script: &str,
        dir: &Path,
        request: &Q,
    ) -> anyhow::Result<A> {
        #[derive(Serialize)]
        struct Request<'a, Q> {
            device: &'a str,
            dir: &'a Path,
            request: &'a Q,
        }
        let [file, answer] = ["request.json", "answer.json"].map(|name| dir.join(name));
        let request = Request { device: &self.device, dir, request };
        write(&file, &serde_json::to_vec(&request)?)?;
        let mut command = Command::new(&self.python);
        command.arg("-c").arg(script).arg(&file).arg(&answer).stdin(Stdio::null());
        let status = command.status().with_context(|| format!("cannot start {}", self.python.display()))?;
        anyhow::ensure!(status.success(), "PyTorch failed ({status})");
        Ok(serde_json::from_slice(&fs::read(&answer)?)?)
    }

    /// What PyTorch makes of the inputs in bf16.
    pub(crate) fn results(&self, case: &Case, inputs: &[Input]) -> anyhow::Result<Vec<Result>> {
        #[derive(Serialize)]
        struct File<'a> {
            name: &'a str,
            dims: &'a [usize],
        }
        #[derive(Serialize)]
        struct Request<'a> {
            case: Description,
            inputs: Vec<File<'a>>,
        }
        let dir = tempfile::tempdir()?;
        for input in inputs {
            let bytes: Vec<u8> = input.values.iter().flat_map(|value| value.to_le_bytes()).collect();
            write(&dir.path().join(input.name), &bytes)?;
        }
        let files = inputs.iter().map(|input| File { name: input.name, dims: &input.dims });
        let request = Request { case: case.description(), inputs: files.collect() };
        let names = request.case.results;
        let _: bool = self.run(CHECK, dir.path(), &request)?;
        let read = |name: &&'static str| {
            let path = dir.path().join(format!("{name}.result"));
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            let floats =
                bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
            Ok(Result { name, values: floats.map(f64::from).collect() })
        };
        names.iter().map(read).collect()
    }

    /// What PyTorch times of a request.
    pub(crate) fn timings<Q: Serialize, A: DeserializeOwned>(&self, request: &Q) -> anyhow::Result<A> {
        self.run(BENCH, tempfile::tempdir()?.path(), request)
    }
}

fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let mut file = File::create(path).with_context(|| path.display().to_string())?;
    file.write_all(bytes).with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scripts parse, wherever there is a Python.
    #[test]
    fn the_scripts_are_python() {
        for script in [CHECK, BENCH, PROBE] {
            let mut command = Command::new("python3");
            let status = command.args(["-c", "import ast, sys; ast.parse(sys.argv[1])", script]).status();
            match status {
                Ok(status) => assert!(status.success()),
                Err(_) => println!("skipped: the scripts for PyTorch (no python3)"),
            }
        }
    }

    /// With a PyTorch at hand, on its CPU: the same formulas as ours.
    #[test]
    fn pytorch_computes_the_same() {
        let python =
            std::env::var_os("OQVL_TORCH_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
        let probe = Command::new(&python).args(["-c", "import torch"]).stderr(Stdio::null()).status();
        if !probe.is_ok_and(|status| status.success()) {
            println!(
                "skipped: the scripts for PyTorch beside PyTorch (OQVL_TORCH_PYTHON names a Python that has it)"
            );
            return;
        }
        let torch = Torch { python, device: "cpu".to_owned(), version: String::new() };
        // A process for each takes its time.
        let gemms = crate::check::small_gemms().into_iter().skip(3).take(3);
        for case in crate::check::small_cases().into_iter().skip(3).step_by(2).chain(gemms) {
            let inputs = case.inputs(3);
            let expected = case.reference(&inputs).unwrap();
            let found = torch.results(&case, &inputs).unwrap();
            for (expected, found) in expected.iter().zip(&found) {
                let errors = crate::check::Errors::new(&found.values, &expected.values);
                assert!(errors.relative < 0.02, "{} {}: {errors:?}", case.name(), expected.name);
            }
        }
    }
}
