//! PyTorch on the same GPU, as a child process with a script of ours.

use crate::case::{Case, Input};
use anyhow::Context as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

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

    /// What `OQVL_TORCH_PYTHON` names, or `python3`, if it has PyTorch. `None` after a line that says so.
    #[cfg(test)]
    pub(crate) fn on_the_cpu() -> Option<Self> {
        let python =
            std::env::var_os("OQVL_TORCH_PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
        let probe = Command::new(&python).args(["-c", "import torch"]).stderr(Stdio::null()).status();
        if !probe.is_ok_and(|status| status.success()) {
            println!(
                "skipped: the scripts for PyTorch beside PyTorch (OQVL_TORCH_PYTHON names a Python that has it)"
            );
            return None;
        }
        Some(Self { python, device: "cpu".to_owned(), version: String::new() })
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

    /// Starts a process that computes calls, one after the other.
    pub(crate) fn calculator(&self) -> anyhow::Result<Calculator> {
        let mut command = Command::new(&self.python);
        command.args(["-c", CHECK, &self.device]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start {}", self.python.display()))?;
        let requests = child.stdin.take().context("the child has a standard input")?;
        let answers = child.stdout.take().context("the child has a standard output")?;
        Ok(Calculator { child, requests: Some(requests), answers: BufReader::new(answers) })
    }

    /// What PyTorch times of a request.
    pub(crate) fn timings<Q: Serialize, A: DeserializeOwned>(&self, request: &Q) -> anyhow::Result<A> {
        self.run(BENCH, tempfile::tempdir()?.path(), request)
    }
}

/// A PyTorch that computes calls.
#[derive(Debug)]
pub(crate) struct Calculator {
    child: Child,
    /// None when no more will come.
    requests: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Calculator {
    /// What PyTorch makes of the inputs in bf16: the results of these names.
    pub(crate) fn results(
        &mut self,
        case: &Case,
        inputs: &[Input],
        names: &[&'static str],
    ) -> anyhow::Result<Vec<Vec<f64>>> {
        let dir = tempfile::tempdir()?;
        for input in inputs {
            let Input { name, dims, values } = input;
            let expected: usize = dims.iter().product();
            anyhow::ensure!(values.len() == expected, "{name} is {} numbers, not {dims:?}", values.len());
            write(&dir.path().join(input.name), &input.values.to_le_bytes())?;
        }
        let described = inputs.iter().map(|input| {
            let Input { name, dims, values } = input;
            json!({ "name": name, "dims": dims, "dtype": values.dtype() })
        });
        let request = json!({
            "dir": dir.path(), "op": case.op(), "settings": case.settings(),
            "inputs": described.collect::<Vec<_>>(), "results": names,
        });
        let requests = self.requests.as_mut().context("the child was told that no more will come")?;
        writeln!(requests, "{request}").and_then(|()| requests.flush()).context("PyTorch has ended")?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        let error: Option<String> = serde_json::from_str(&answer).context("PyTorch has ended")?;
        if let Some(error) = error {
            anyhow::bail!("PyTorch: {error}");
        }
        let read = |name: &&'static str| {
            let path = dir.path().join(format!("{name}.result"));
            let bytes = fs::read(&path).with_context(|| path.display().to_string())?;
            let floats = bytes.as_chunks().0.iter().map(|bytes| f64::from(f32::from_le_bytes(*bytes)));
            Ok(floats.collect())
        };
        names.iter().map(read).collect()
    }
}

impl Drop for Calculator {
    fn drop(&mut self) {
        // Its loop ends with its input.
        self.requests = None;
        let _ = self.child.wait();
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
        let Some(torch) = Torch::on_the_cpu() else { return };
        let mut calculator = torch.calculator().unwrap();
        for case in crate::cases::small() {
            let inputs = case.inputs(3);
            let expected = case.reference(&inputs).unwrap();
            let names: Vec<&str> = expected.iter().map(|result| result.name).collect();
            let found = calculator.results(&case, &inputs, &names).unwrap();
            for (expected, found) in expected.iter().zip(&found) {
                let errors = crate::check::Errors::new(found, &expected.values);
                assert!(
                    errors.relative < 0.02,
                    "{} {} {}: {errors:?}",
                    case.op(),
                    case.name(),
                    expected.name
                );
            }
        }
        let error = calculator.results(&crate::cases::small()[0], &[], &[]).unwrap_err().to_string();
        assert_eq!(error, "PyTorch: KeyError: 'qkv'");
    }
}
