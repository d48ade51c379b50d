//! Every operation against its reference, beside PyTorch.

use crate::case::{Case, Result, attention_case, batch, packed};
use crate::torch::Torch;
use candle_core::{DType, Device};
use oqvl_kernels::Rows;
use oqvl_kernels::attention::Mask;
use oqvl_kernels::avg_pool::launch::Pooling;
use oqvl_kernels::backend::Products;
use oqvl_kernels::bias_gelu::Gelu;
use oqvl_kernels::device::Cuda;
use oqvl_kernels::gemm::{Epilogue, Gemm};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// How much further from the reference than PyTorch in bf16 a result may be.
const MAX_SHARE_OF_PYTORCH: f64 = 2.0;
/// Relative error that no result may have, however far off PyTorch is.
const MAX_RELATIVE: f64 = 1e-2;
/// The same of what is added in f32 and not rounded to bf16: PyTorch, which rounds it, is no measure of that.
const MAX_RELATIVE_IN_F32: f64 = 1e-5;
/// What sums in f32 of numbers of size 1 round off: no result is held to less, where PyTorch's is exact.
const ROUNDING: f64 = 1e-6;
/// How often each call is made; the bits must be the same every time.
const RUNS: usize = 10;
const SEED: u64 = 7;

/// One result of one call.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Check {
    pub(crate) op: String,
    pub(crate) case: String,
    /// Which result; empty if the call failed.
    pub(crate) result: String,
    /// Ours against f64.
    pub(crate) errors: Option<Errors>,
    /// PyTorch's against f64; none without PyTorch.
    pub(crate) pytorch: Option<Errors>,
    /// Whether all runs gave the same bits.
    pub(crate) deterministic: bool,
    /// Whether a candle program gets the same numbers; none where candle has no way to the kernel.
    pub(crate) same_through_candle: Option<bool>,
    pub(crate) passed: bool,
    /// Why not, in words.
    pub(crate) note: String,
}

/// How far numbers are from others.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Errors {
    /// The largest difference; infinite if a number is not finite.
    pub(crate) max: f64,
    /// The root of the mean square difference over that of the numbers themselves, over 1 if those are zeros.
    pub(crate) relative: f64,
}

impl Errors {
    pub(crate) fn new(found: &[f64], expected: &[f64]) -> Self {
        if found.len() != expected.len() || found.iter().any(|value| !value.is_finite()) {
            return Self { max: f64::MAX, relative: f64::MAX };
        }
        let differences = || found.iter().zip(expected).map(|(found, expected)| found - expected);
        let square = |sum: f64, value: f64| sum + value * value;
        let scale = expected.iter().copied().fold(0.0, square);
        let error = differences().fold(0.0, square);
        let scale = if scale == 0.0 { expected.len().max(1) as f64 } else { scale };
        let relative = (error / scale).sqrt();
        Self { max: differences().map(f64::abs).fold(0.0, f64::max), relative }
    }

    /// Whether it is at most twice as far as PyTorch.
    fn is_as_good_as(self, pytorch: Self) -> bool {
        let keeps = |ours: f64, pytorch: f64| ours <= (MAX_SHARE_OF_PYTORCH * pytorch).max(ROUNDING);
        keeps(self.max, pytorch.max) && keeps(self.relative, pytorch.relative)
    }
}

impl Check {
    /// A call that could not be made.
    pub(crate) fn failed(op: &str, case: String, note: String) -> Self {
        Self {
            op: op.to_owned(),
            case,
            result: String::new(),
            errors: None,
            pytorch: None,
            deterministic: false,
            same_through_candle: None,
            passed: false,
            note,
        }
    }
}

/// Calls of sizes that training has, and of the sizes at the edges of blocks.
fn cases() -> Vec<Case> {
    let causal = |heads, head_dim, sequences| attention_case(heads, head_dim, Mask::Causal, sequences);
    let full = |heads, head_dim, sequences| attention_case(heads, head_dim, Mask::Full, sequences);
    let pooling = |batch, grid, pooled, channels| Case::AvgPool(Pooling { batch, grid, pooled, channels });
    let rows = |rows, cols| Rows { rows, cols };
    let mut cases = small_cases();
    cases.extend([
        causal((12, 2), 128, batch(1, 1024)),
        causal((6, 1), 128, batch(1, 4096)),
        causal((12, 2), 128, packed(&[0, 1, 1, 64, 129, 400, 1023, 1280])),
        causal((4, 2), 64, batch(2, 500)),
        full((16, 16), 72, batch(2, 729)),
        full((4, 4), 64, batch(2, 197)),
        pooling(4, 27, 12, 1152),
        pooling(2, 27, 27, 1152),
        pooling(3, 12, 4, 1152),
        Case::BiasGelu(Gelu::Exact, rows(1296, 1536)),
        Case::BiasGelu(Gelu::Exact, rows(4097, 129)),
        Case::BiasGelu(Gelu::Tanh, rows(1458, 4304)),
        Case::BiasGelu(Gelu::Tanh, rows(4097, 129)),
        Case::ColumnSum(rows(4096, 2048)),
        Case::ColumnSum(rows(4097, 129)),
        Case::Gemm(Gemm::new(1024, 2048, 1536).with_b_transposed().with_epilogue(Epilogue::Bias)),
        Case::Gemm(Gemm::new(1024, 4304, 1152).with_b_transposed().with_epilogue(Epilogue::GeluBias)),
        Case::Gemm(Gemm::new(2048, 1536, 1024).with_a_transposed().accumulating()),
        Case::Gemm(Gemm::new(1000, 1536, 8960)),
    ]);
    cases.extend(small_gemms());
    cases
}

/// Small products of all forms.
pub(crate) fn small_gemms() -> Vec<Case> {
    let plain = Gemm::new(33, 40, 24);
    let forms = [plain, plain.with_a_transposed(), plain.with_b_transposed()];
    let mut gemms = forms.to_vec();
    gemms.push(plain.with_a_transposed().with_b_transposed());
    gemms.push(plain.with_epilogue(Epilogue::Gelu));
    gemms.push(plain.with_a_transposed().accumulating());
    gemms.push(Gemm::new(1, 8, 8));
    gemms.into_iter().map(Case::Gemm).collect()
}

/// Calls that take no time on a CPU either.
pub(crate) fn small_cases() -> Vec<Case> {
    let rows = |rows, cols| Rows { rows, cols };
    let mut cases: Vec<Case> = [1, 63, 64, 65]
        .into_iter()
        .map(|len| attention_case((2, 1), 64, Mask::Causal, batch(1, len)))
        .collect();
    cases.extend([
        attention_case((2, 2), 72, Mask::Full, batch(2, 70)),
        attention_case((4, 2), 128, Mask::Causal, packed(&[0, 5, 5, 70])),
        Case::AvgPool(Pooling { batch: 2, grid: 5, pooled: 3, channels: 16 }),
        Case::AvgPool(Pooling { batch: 1, grid: 3, pooled: 7, channels: 13 }),
        Case::BiasGelu(Gelu::Exact, rows(1, 1)),
        Case::BiasGelu(Gelu::Exact, rows(33, 24)),
        Case::BiasGelu(Gelu::Tanh, rows(1, 1)),
        Case::BiasGelu(Gelu::Tanh, rows(33, 24)),
        Case::ColumnSum(rows(70, 24)),
    ]);
    cases
}

/// Checks the operations that are wanted.
pub(crate) fn run(
    cuda: &Cuda,
    torch: Option<&Torch>,
    wanted: impl Fn(&str) -> bool,
) -> anyhow::Result<Vec<Check>> {
    let candle = Device::Cuda(cuda.candle().clone());
    let mut checks = Vec::new();
    for case in cases().into_iter().filter(|case| wanted(case.op())) {
        println!("{}: {}", case.op(), case.name());
        match check(cuda, Some(&candle), torch, &case) {
            Ok(of_case) => checks.extend(of_case),
            Err(error) => checks.push(Check::failed(case.op(), case.name(), format!("{error:#}"))),
        }
    }
    Ok(checks)
}

/// Checks one call.
fn check<D: Products>(
    on: &D,
    candle: Option<&Device>,
    torch: Option<&Torch>,
    case: &Case,
) -> anyhow::Result<Vec<Check>> {
    let inputs = case.inputs(SEED);
    let expected = case.reference(&inputs)?;
    let pytorch = torch.map(|torch| torch.results(case, &inputs)).transpose()?;
    let first = case.on(on, &inputs)?;
    let mut deterministic = vec![true; first.len()];
    for _ in 1..RUNS {
        for (same, (again, first)) in deterministic.iter_mut().zip(case.on(on, &inputs)?.iter().zip(&first)) {
            *same &= bits(again).eq(bits(first));
        }
    }
    // Sums over rows and products of a candle program are candle's own.
    let through_candle = candle.filter(|_| !matches!(case, Case::ColumnSum(_) | Case::Gemm(_)));
    let through_candle = through_candle.map(|device| case.through_candle(&inputs, device, DType::BF16));
    let mut checks = Vec::new();
    for (index, (found, expected)) in first.iter().zip(&expected).enumerate() {
        let errors = Errors::new(&found.values, &expected.values);
        let of_pytorch =
            pytorch.as_ref().map(|results| Errors::new(&results[index].values, &expected.values));
        let same = match &through_candle {
            Some(Ok(results)) => Some(results[index].values == found.values),
            Some(Err(_)) | None => None,
        };
        let mut notes = Vec::new();
        if found.values.iter().any(|value| !value.is_finite()) {
            notes.push("elements are not written, or not finite".to_owned());
        }
        match of_pytorch {
            Some(pytorch) if pytorch.relative > MAX_RELATIVE => {
                notes.push(format!("PyTorch is off by {:.1e}, which judges nothing", pytorch.relative));
            }
            Some(pytorch) if !errors.is_as_good_as(pytorch) => {
                notes.push("more than twice as far as PyTorch".to_owned());
            }
            Some(_) if errors.relative > MAX_RELATIVE => {
                notes.push(format!("off by more than {MAX_RELATIVE}"))
            }
            Some(_) => {}
            None => notes.push("not judged without PyTorch".to_owned()),
        }
        if case.is_in_f32() && errors.relative > MAX_RELATIVE_IN_F32 {
            notes.push(format!("off by more than {MAX_RELATIVE_IN_F32}, for sums in f32"));
        }
        if !deterministic[index] {
            notes.push(format!("other bits in {RUNS} runs"));
        }
        if same == Some(false) {
            notes.push("other numbers through candle".to_owned());
        }
        if let Some(Err(error)) = &through_candle {
            let error = error.to_string();
            notes.push(format!("not through candle: {}", error.lines().next().unwrap_or_default()));
        }
        checks.push(Check {
            op: case.op().to_owned(),
            case: case.name(),
            result: found.name.to_owned(),
            errors: Some(errors),
            pytorch: of_pytorch,
            deterministic: deterministic[index],
            same_through_candle: same,
            passed: notes.is_empty(),
            note: notes.join("; "),
        });
    }
    Ok(checks)
}

fn bits(result: &Result) -> impl Iterator<Item = u64> + '_ {
    result.values.iter().map(|value| value.to_bits())
}

/// The checks for a person.
pub(crate) fn table(checks: &[Check]) -> String {
    let mut text = "| op | call | result | max error | PyTorch's | relative error | PyTorch's | same bits | through candle | |\n\
                    |---|---|---|---:|---:|---:|---:|---|---|---|\n"
        .to_owned();
    let figure = |value: Option<f64>| value.map_or(String::new(), |value| format!("{value:.1e}"));
    for check in checks {
        let Check { op, case, result, errors, pytorch, deterministic, same_through_candle, passed, note } =
            check;
        let verdict = if *passed { "passed".to_owned() } else { format!("**{note}**") };
        let _ = writeln!(
            text,
            "| {op} | {case} | {result} | {} | {} | {} | {} | {} | {} | {verdict} |",
            figure(errors.map(|errors| errors.max)),
            figure(pytorch.map(|errors| errors.max)),
            figure(errors.map(|errors| errors.relative)),
            figure(pytorch.map(|errors| errors.relative)),
            if *deterministic { "yes" } else { "no" },
            same_through_candle.map_or("", |same| if same { "the same" } else { "other" }),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_those_of_the_numbers() {
        let errors = Errors::new(&[1.0, 2.5], &[1.0, 2.0]);
        assert_eq!(errors.max, 0.5);
        assert!((errors.relative - (0.25f64 / 5.0).sqrt()).abs() < 1e-15);
        assert_eq!(Errors::new(&[f64::NAN], &[1.0]).max, f64::MAX);
        assert_eq!(Errors::new(&[0.0], &[0.0]), Errors { max: 0.0, relative: 0.0 });
        assert!(errors.is_as_good_as(Errors { max: 0.25, relative: 1.0 }));
        assert!(!errors.is_as_good_as(Errors { max: 0.24, relative: 1.0 }));
        let exact = Errors { max: 0.0, relative: 0.0 };
        assert!(Errors::new(&[1e-7], &[0.0]).is_as_good_as(exact) && !errors.is_as_good_as(exact));
    }

    #[test]
    fn the_table_says_what_failed() {
        let failed = Check::failed("gemm", "1 x 1".to_owned(), "cannot launch".to_owned());
        let passed = Check {
            errors: Some(Errors { max: 0.5, relative: 1e-3 }),
            deterministic: true,
            passed: true,
            note: String::new(),
            result: "out".to_owned(),
            ..failed.clone()
        };
        let text = table(&[failed, passed]);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert_eq!(lines[0], "| gemm | 1 x 1 |  |  |  |  |  | no |  | **cannot launch** |");
        assert_eq!(lines[1], "| gemm | 1 x 1 | out | 5.0e-1 |  | 1.0e-3 |  | yes |  | passed |");
    }

    #[test]
    fn calls_pass_in_emulation_all_but_the_judgement_beside_pytorch() {
        let Some(emulation) = oqvl_emulation::Emulation::new(oqvl_emulation::Mode::Plain).unwrap() else {
            return;
        };
        for case in small_cases() {
            for check in check(&emulation, None, None, &case).unwrap() {
                let errors = check.errors.unwrap();
                assert!(errors.relative < 0.02 && check.deterministic, "{check:?}");
                assert_eq!(check.note, "not judged without PyTorch", "{check:?}");
            }
        }
    }

    /// Inputs and references of all calls have the results that PyTorch is asked for.
    #[test]
    fn every_call_has_a_reference() {
        for case in small_cases().into_iter().chain(small_gemms()) {
            let inputs = case.inputs(1);
            let expected = case.reference(&inputs).unwrap();
            let names: Vec<&str> = expected.iter().map(|result| result.name).collect();
            assert_eq!(names, case.description().results, "{}", case.name());
            assert!(expected.iter().all(|result| result.values.iter().all(|value| value.is_finite())));
            assert_eq!(inputs.len(), case.inputs(2).len());
        }
        assert!(cases().len() > small_cases().len());
    }
}
