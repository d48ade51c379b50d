//! Every operation against its reference, beside PyTorch.

use crate::case::{Bound, Case, Found};
use crate::cases;
use crate::torch::{Calculator, Torch};
use crate::training_step;
use candle_core::{DType, Device};
use half::bf16;
use oqvl_kernels::backend::Backend;
use oqvl_kernels::device::Cuda;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// How much further from the reference than PyTorch in bf16 a result may be.
const MAX_SHARE_OF_PYTORCH: f64 = 2.0;
/// Relative error that no result may have, however far off PyTorch is.
const MAX_RELATIVE: f64 = 1e-2;
/// What sums in f32 of numbers of size 1 round off: no result is held to less, where PyTorch's is exact.
const ROUNDING: f64 = 1e-6;
/// How often each call is made; the bits must be the same every time.
const RUNS: usize = 10;
const SEED: u64 = 7;
const NOT_JUDGED: &str = "not judged without PyTorch";

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

    /// Whether it is at most twice as far as PyTorch. Errors up to `rounding` say nothing.
    fn is_as_good_as(self, pytorch: Self, rounding: f64) -> bool {
        let keeps = |ours: f64, pytorch: f64| ours <= (MAX_SHARE_OF_PYTORCH * pytorch).max(rounding);
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

/// Checks the operations that are wanted.
pub(crate) fn run(
    cuda: &Cuda,
    torch: Option<&Torch>,
    wanted: impl Fn(&str) -> bool,
) -> anyhow::Result<Vec<Check>> {
    let candle = Device::Cuda(cuda.candle().clone());
    let mut calculator = torch.map(Torch::calculator).transpose()?;
    let mut checks = Vec::new();
    for case in cases::all().into_iter().filter(|case| wanted(case.op())) {
        println!("{}: {}", case.op(), case.name());
        match check(cuda, Some(&candle), calculator.as_mut(), &case) {
            Ok(of_case) => checks.extend(of_case),
            Err(error) => checks.push(Check::failed(case.op(), case.name(), format!("{error:#}"))),
        }
    }
    if wanted(training_step::OP) {
        println!("{}: {RUNS} runs of ten steps", training_step::OP);
        match training_step::check(|| cuda.clone(), RUNS) {
            Ok(of_step) => checks.extend(of_step),
            Err(error) => {
                checks.push(Check::failed(training_step::OP, "ten steps".to_owned(), format!("{error:#}")));
            }
        }
    }
    Ok(checks)
}

/// Checks one call.
fn check<B: Backend>(
    on: &B,
    candle: Option<&Device>,
    torch: Option<&mut Calculator>,
    case: &Case,
) -> anyhow::Result<Vec<Check>> {
    let inputs = case.inputs(SEED);
    let expected = case.reference(&inputs)?;
    let names: Vec<&str> = expected.iter().map(|result| result.name).collect();
    let pytorch = torch.map(|torch| torch.results(case, &inputs, &names)).transpose()?;
    let first = case.on(on, &inputs)?;
    let mut deterministic = vec![true; first.len()];
    for _ in 1..RUNS {
        for (same, (again, first)) in deterministic.iter_mut().zip(case.on(on, &inputs)?.iter().zip(&first)) {
            *same &= bits(again).eq(bits(first));
        }
    }
    let through_candle = candle.and_then(|device| case.through_candle(&inputs, device, DType::BF16));
    let mut checks = Vec::new();
    for (index, (found, expected)) in first.iter().zip(&expected).enumerate() {
        let errors = Errors::new(&found.values, &expected.values);
        let of_pytorch = pytorch.as_ref().map(|results| Errors::new(&results[index], &expected.values));
        let same = match &through_candle {
            Some(Ok(results)) => results
                .iter()
                .find(|result| result.name == found.name)
                .map(|result| is_same_in_half(found, result)),
            Some(Err(_)) | None => None,
        };
        let mut notes = Vec::new();
        if found.values.iter().any(|value| !value.is_finite()) {
            notes.push("elements are not written, or not finite".to_owned());
        }
        let largest = expected.values.iter().fold(0.0, |max: f64, value| max.max(value.abs()));
        let beside = judge(found.bound, errors, of_pytorch, largest);
        notes.extend(beside);
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

/// What is wrong with errors, if anything is. `largest`: of the numbers that they are of.
fn judge(bound: Bound, errors: Errors, pytorch: Option<Errors>, largest: f64) -> Vec<String> {
    let mut notes = Vec::new();
    // Sums in f32 may be as far apart as that bound says, however near one of them is to the reference.
    let rounding = match bound {
        Bound::Within(share) => (share * largest).max(ROUNDING),
        Bound::BesidePytorch | Bound::Exact => ROUNDING,
    };
    match pytorch {
        Some(pytorch) if pytorch.relative > MAX_RELATIVE && bound == Bound::BesidePytorch => {
            notes.push(format!("PyTorch is off by {:.1e}, which judges nothing", pytorch.relative));
        }
        Some(pytorch) if !errors.is_as_good_as(pytorch, rounding) => {
            notes.push("more than twice as far as PyTorch".to_owned());
        }
        Some(_) if errors.relative > MAX_RELATIVE => {
            notes.push(format!("off by more than {MAX_RELATIVE}"));
        }
        Some(_) => {}
        None => notes.push(NOT_JUDGED.to_owned()),
    }
    match bound {
        Bound::Within(share) if errors.relative > share => {
            notes.push(format!("off by more than {share}, for sums in f32"));
        }
        Bound::Exact if errors.max > 0.0 => {
            notes.push("not the very numbers of the reference".to_owned());
        }
        Bound::Within(_) | Bound::Exact | Bound::BesidePytorch => {}
    }
    notes
}

/// Whether a candle program, which has no other than half precision, gets these numbers.
fn is_same_in_half(found: &Found, of_candle: &Found) -> bool {
    let rounded = found.values.iter().map(|value| bf16::from_f64(*value).to_f64());
    found.values.len() == of_candle.values.len() && rounded.eq(of_candle.values.iter().copied())
}

fn bits(result: &Found) -> impl Iterator<Item = u64> + '_ {
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
    use crate::case::OPS;
    use std::collections::BTreeSet;

    #[test]
    fn errors_are_those_of_the_numbers() {
        let errors = Errors::new(&[1.0, 2.5], &[1.0, 2.0]);
        assert_eq!(errors.max, 0.5);
        assert!((errors.relative - (0.25f64 / 5.0).sqrt()).abs() < 1e-15);
        assert_eq!(Errors::new(&[f64::NAN], &[1.0]).max, f64::MAX);
        assert_eq!(Errors::new(&[0.0], &[0.0]), Errors { max: 0.0, relative: 0.0 });
        assert!(errors.is_as_good_as(Errors { max: 0.25, relative: 1.0 }, ROUNDING));
        assert!(!errors.is_as_good_as(Errors { max: 0.24, relative: 1.0 }, ROUNDING));
        let exact = Errors { max: 0.0, relative: 0.0 };
        let nearly = Errors::new(&[1e-7], &[0.0]);
        assert!(nearly.is_as_good_as(exact, ROUNDING) && !errors.is_as_good_as(exact, ROUNDING));
    }

    #[test]
    fn results_are_held_to_their_bounds() {
        let errors = |max, relative| Errors { max, relative };
        let notes = |bound, ours, pytorch| judge(bound, ours, Some(pytorch), 4.0).join("; ");
        assert_eq!(notes(Bound::BesidePytorch, errors(0.02, 2e-3), errors(0.01, 1e-3)), "");
        let further = notes(Bound::BesidePytorch, errors(0.021, 2e-3), errors(0.01, 1e-3));
        assert_eq!(further, "more than twice as far as PyTorch");
        assert!(notes(Bound::BesidePytorch, errors(0.0, 0.0), errors(1.0, 0.02)).contains("judges nothing"));
        // PyTorch has it in f32, too, and is nearer by chance.
        assert_eq!(notes(Bound::Within(1e-5), errors(3e-5, 9e-6), errors(1e-7, 1e-7)), "");
        let rounded = notes(Bound::Within(1e-5), errors(0.01, 1e-3), errors(0.01, 1e-3));
        assert_eq!(rounded, "off by more than 0.00001, for sums in f32");
        // Its own bound judges it where PyTorch, which adds up in bf16, does not.
        assert_eq!(notes(Bound::Within(1e-5), errors(3e-5, 9e-6), errors(1.0, 0.03)), "");
        assert_eq!(notes(Bound::Exact, errors(0.0, 0.0), errors(0.0, 0.0)), "");
        assert!(notes(Bound::Exact, errors(1e-9, 0.0), errors(0.0, 0.0)).contains("the very numbers"));
        assert_eq!(judge(Bound::Exact, errors(0.0, 0.0), None, 1.0), [NOT_JUDGED]);
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
        for case in cases::small() {
            for check in check(&emulation, None, None, &case).unwrap() {
                let errors = check.errors.unwrap();
                assert!(errors.relative < MAX_RELATIVE && check.deterministic, "{check:?}");
                assert_eq!(check.note, NOT_JUDGED, "{check:?}");
            }
        }
    }

    /// The whole judgement, with the kernels in emulation and PyTorch on its CPU.
    #[test]
    fn calls_pass_in_emulation_beside_pytorch() {
        let (Some(emulation), Some(torch)) =
            (oqvl_emulation::Emulation::new(oqvl_emulation::Mode::Plain).unwrap(), Torch::on_the_cpu())
        else {
            return;
        };
        let mut calculator = torch.calculator().unwrap();
        let checks = cases::small()
            .iter()
            .flat_map(|case| check(&emulation, None, Some(&mut calculator), case).unwrap())
            .collect::<Vec<_>>();
        println!("{}", table(&checks));
        assert!(checks.iter().all(|check| check.passed));
    }

    /// Inputs and references of all calls.
    #[test]
    fn every_call_has_a_reference() {
        for case in cases::small() {
            let inputs = case.inputs(1);
            assert!(inputs.iter().all(|input| input.values.len() == input.dims.iter().product::<usize>()));
            for result in case.reference(&inputs).unwrap() {
                let is_number = |value: &f64| value.is_finite();
                assert!(!result.values.is_empty() || case.op() == "embedding");
                assert!(result.values.iter().all(is_number), "{} {}", case.name(), result.name);
            }
        }
        let names: BTreeSet<(&str, String)> =
            cases::all().iter().map(|case| (case.op(), case.name())).collect();
        assert_eq!(names.len(), cases::all().len(), "no two calls have one name");
        for op in OPS.iter().filter(|op| **op != training_step::OP) {
            assert!(names.iter().any(|(name, _)| name == op), "{op}");
        }
    }

    /// What candle programs call, in f64 on the CPU: what is compared on a GPU is the same computation.
    #[test]
    fn candle_programs_get_the_same() {
        let mut ops = BTreeSet::new();
        for case in cases::small() {
            let inputs = case.inputs(5);
            let Some(found) = case.through_candle(&inputs, &Device::Cpu, DType::F64) else { continue };
            let expected = case.reference(&inputs).unwrap();
            ops.insert(case.op());
            for found in found.unwrap() {
                let expected = expected.iter().find(|result| result.name == found.name).unwrap();
                let errors = Errors::new(&found.values, &expected.values);
                assert!(errors.relative < 1e-9, "{} {}: {errors:?}", case.name(), found.name);
            }
        }
        assert_eq!(
            ops.into_iter().collect::<Vec<_>>(),
            ["attention", "avg_pool", "bias_gelu", "norm", "swiglu"]
        );
    }
}
